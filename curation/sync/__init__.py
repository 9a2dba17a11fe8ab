"""Audio-visual synchrony, and who speaks."""

SPEAKING_FRACTION = 0.5
"""A face that is seen to speak in more than this fraction of the speech is taken to speak. Source: ours,
the majority."""
