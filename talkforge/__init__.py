"""Talkforge: raw talking-head footage in, training data for audio-driven portrait video out."""
