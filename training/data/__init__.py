"""From shards to batches: readers, spans of frames, cached latents."""
