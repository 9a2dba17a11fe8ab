"""Audio: voice activity, speech features and encoders, noise, music."""
