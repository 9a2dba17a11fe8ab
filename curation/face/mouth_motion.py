"""Whether the mouth moves while there is speech: a still photo or a listener under somebody else's voice
does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from talkforge.schemas.arrays import Doubles, Landmarks

UPPER_LIP, LOWER_LIP = 13, 14
"""Landmarks of the middle of the inner lips."""

EYE_CORNERS = (33, 263)
"""Landmarks of the outer eye corners, whose distance is the unit."""

WINDOW_S = 1.0
"""The range of the opening is taken over this time around a frame, seconds. Speech has three syllables and
more in it."""

MIN_RANGE = 0.025
"""Least range of the opening within `WINDOW_S` of a mouth that moves, in distances of the outer eye corners.
Source: ours. A photo that is zoomed has up to 0.01, speakers 0.05 to 0.3 (docs/judgement.md)."""


def opening(landmarks: Landmarks) -> Doubles:
    """Opening between the lips [F], in distances of the outer eye corners; NaN where the face is not seen.

    Distances are taken in three dimensions, so they do not change when the head turns.
    """
    points = landmarks.points.astype(np.float64)
    eyes = np.linalg.norm(points[:, EYE_CORNERS[0]] - points[:, EYE_CORNERS[1]], axis=-1)
    gap = np.linalg.norm(points[:, UPPER_LIP] - points[:, LOWER_LIP], axis=-1)
    return np.asarray(gap / np.maximum(eyes, 1e-6))


def still_fraction(opened: Doubles, speaking: NDArray[np.bool_], fps: float) -> float | None:
    """Fraction of the speech during which the mouth is still, 0..1.

    A frame is still where the opening varies by less than `MIN_RANGE` within the second around it.

    Args:
        opened: [F] of `opening`.
        speaking: bool [F], the frames with speech.
        fps: frame rate of the clip.

    Returns:
        None without a frame that has speech and a face.
    """
    used = speaking & np.isfinite(opened)
    if not used.any():
        return None
    window = max(3, round(WINDOW_S * fps) | 1)
    high = maximum_filter1d(np.where(np.isfinite(opened), opened, -np.inf), window, mode="nearest")
    low = minimum_filter1d(np.where(np.isfinite(opened), opened, np.inf), window, mode="nearest")
    return round(float(((high - low)[used] < MIN_RANGE).mean()), 4)


def frames_with_speech(
    spans: Sequence[tuple[float, float]], start_s: float, num_frames: int, fps: float
) -> NDArray[np.bool_]:
    """The frames of a clip with speech, bool [F].

    Args:
        spans: speech, (start_s, end_s).
        start_s: start of the clip on the same clock, seconds.
        num_frames: length of the clip, frames.
        fps: frame rate of the clip.
    """
    times_s = start_s + np.arange(num_frames) / fps
    speaking = np.zeros(num_frames, np.bool_)
    for begin_s, end_s in spans:
        speaking |= (times_s >= begin_s) & (times_s < end_s)
    return speaking
