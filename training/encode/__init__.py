"""Latents and conditions, computed once and cached beside the shards."""
