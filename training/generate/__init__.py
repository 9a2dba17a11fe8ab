"""From a portrait and audio to a video. Begin with `job.py`."""
