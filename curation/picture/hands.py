"""Which hands lie over a face? MediaPipe's hand landmarker, in a region around it.

It sees hands and nothing else: not a microphone, a cup or a mask, nor a hand of which only a finger shows.
Of 243 mouths on real frames of which a pasted hand hid more than half, it covers a quarter or more in 89 %;
the hand joints of MediaPipe Pose, which is measured anyway, lie near 11 % of them. Neither sees one in 270
frames with the same hands beside the face.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import Bytes, Floats

REACH = 3.0
"""Side of the square in which hands are looked for, in units of the longer side of the landmarks' box."""

MAX_HANDS = 2

PALM = (0, 1, 5, 9, 13, 17)
FINGERS = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (17, 18, 19, 20))
"""Of the hand's 21 points, those around the palm, and each finger's from the root to the tip. Source:
MediaPipe, HandLandmark."""

FINGER_FRACTION = 0.3
"""Thickness of a finger, in units of the distance from the first knuckle (5) to the last (17): four fingers
make up a hand, and what lies between is covered by the line's own width. Source: ours."""


@lru_cache(maxsize=1)
def _landmarker(path: Path) -> Callable[[Bytes], Any]:
    return load_task("HandLandmarker", path, num_hands=MAX_HANDS)


class HandDetector:
    """Args:
        task: MediaPipe hand bundle; loaded once per process, and keeps nothing between pictures.

    Raises:
        ModelError: `task` is not a hand landmarker's bundle.
    """

    def __init__(self, task: Path) -> None:
        self._detect = _landmarker(task)

    def detect(self, rgb: Bytes, points: Floats) -> list[Floats]:
        """Hands near a face: [21, 2] each, in pixels of `rgb`, uint8 [H, W, 3].

        `points` [478, 3] are the face's landmarks in the same pixels.
        """
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        middle, half = (low + high) / 2, REACH * float((high - low).max()) / 2
        x0, y0 = np.maximum(np.floor(middle - half), 0).astype(int)
        x1, y1 = np.maximum(np.ceil(middle + half), 0).astype(int)
        region = rgb[y0:y1, x0:x1]
        if min(region.shape[:2]) < 2:
            return []
        size = np.array([region.shape[1], region.shape[0]], np.float32)
        corner = np.array([x0 - 0.5, y0 - 0.5], np.float32)
        hands = self._detect(region).hand_landmarks
        return [np.array([(p.x, p.y) for p in hand], np.float32) * size + corner for hand in hands]


def paint(mask: Bytes, hand: Floats) -> None:
    """Set the pixels of `mask`, uint8 [h, w], under a hand [21, 2] to 1: its palm and its fingers."""
    places = np.round(hand).astype(np.int32)
    thick_px = max(1, round(FINGER_FRACTION * float(np.linalg.norm(hand[5] - hand[17]))))
    cv2.fillPoly(mask, [places[list(PALM)]], 1)
    cv2.polylines(mask, [places[list(PALM)]], True, 1, thick_px)
    for finger in FINGERS:
        cv2.polylines(mask, [places[list(finger)]], False, 1, thick_px)
