"""Audio-visual synchrony, and who speaks."""
