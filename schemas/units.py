"""The only place that converts between clocks.

Five clocks meet in a talking-head data set:

* source seconds: the container's presentation clock, 0 at the container's start;
* clip frames: a constant rate, `fps`, 25 by default;
* audio samples: 16 kHz mono;
* speech features: 50 Hz, the hop of wav2vec2 (320 samples);
* latent frames: a causal video codec maps `4n + 1` frames to `n + 1`.

Every span is half open. Every rounding is half up, so that a count never depends on
Python's banker's rounding.
"""

from __future__ import annotations

import math

AUDIO_HZ = 16_000
"""Sample rate of every audio array in the project, in Hz."""

SPEECH_HZ = 50
"""Rate of speech features (wav2vec2: 16 kHz / 320), in Hz."""

LATENT_STRIDE_FRAMES = 4
"""Frames per latent frame after the first one. Source: Wan2.1 causal 3-D VAE."""

LATENT_STRIDE_PX = 8
"""Pixels along an edge of one latent cell. Source: Wan2.1 causal 3-D VAE."""

LATENT_CHANNELS = 16
"""Channels of a latent. Source: Wan2.1 causal 3-D VAE."""

CONDITION_CHANNELS = 20
"""Channels of the first-frame condition: four of mask, then a latent. Source: Wan2.1 image-to-video."""


def _round(value: float) -> int:
    return math.floor(value + 0.5)


def frames_from_seconds(duration_s: float, fps: float) -> int:
    """Whole frames that fit in `duration_s`; a frame short by a billionth still counts."""
    return math.floor(duration_s * fps + 1e-6)


def covering_frames(duration_s: float, fps: float) -> int:
    """Fewest whole frames that last `duration_s`, a billionth more or less; none where that is negative."""
    return max(0, -frames_from_seconds(-duration_s, fps))


def seconds_from_frames(frames: float, fps: float) -> float:
    """Instant of a frame index (or length of a frame count) in seconds."""
    return frames / fps


def samples_from_frames(frames: float, fps: float) -> int:
    """Audio samples (16 kHz) that lie under `frames` video frames."""
    return _round(frames / fps * AUDIO_HZ)


def features_from_frames(frames: float, fps: float) -> int:
    """Speech features (50 Hz) that lie under `frames` video frames."""
    return _round(frames / fps * SPEECH_HZ)


def span_features(first_frame: int, num_frames: int, clip_frames: int, fps: float) -> slice:
    """Speech features of frames [first_frame, first_frame + num_frames) of a clip of `clip_frames`.

    As many as `features_from_frames(num_frames, fps)`, within half a feature of the frames' time; within
    one at the end of a clip whose length is no whole number of features.
    """
    count = features_from_frames(num_frames, fps)
    last_start = features_from_frames(clip_frames, fps) - count
    start = min(features_from_frames(first_frame, fps), last_start)
    return slice(start, start + count)


def samples_from_seconds(seconds: float) -> int:
    """Audio samples (16 kHz) in `seconds`."""
    return _round(seconds * AUDIO_HZ)


def seconds_from_samples(samples: int) -> float:
    """Seconds in `samples` at 16 kHz."""
    return samples / AUDIO_HZ


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, for sample keys."""
    return _round(seconds * 1000)


def latent_frames(frames: int) -> int:
    """Latent frames of a causal codec for `frames` video frames.

    Raises:
        ValueError: `frames` is not of the form 4n + 1.
    """
    if frames < 1 or (frames - 1) % LATENT_STRIDE_FRAMES:
        raise ValueError(f"a causal codec takes 4n + 1 frames, not {frames}")
    return (frames - 1) // LATENT_STRIDE_FRAMES + 1
