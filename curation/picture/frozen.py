"""Frozen picture: stretches of a clip in which the picture of the face does not change at all.

A stalled stream or a still picture repeats one frame while the sound goes on. A living face never does, not
even between two sentences: it differs from frame to frame by breath, blinks and the noise of the camera.
"""

from __future__ import annotations

import cv2
import numpy as np

from talkforge.schemas.arrays import Bytes, Floats

MIN_FROZEN_S = 0.4
"""Shortest stretch that counts as frozen, seconds. Source: ours. Frames that are repeated to reach a higher
frame rate, or that a low bit rate leaves unchanged, stay below it."""

GRID_PX = 64
"""The face is compared in this many by this many cells."""

MAX_MEAN, MAX_CELL, CELLS_ABOVE = 0.6, 3, 40
"""Two pictures are the same if their cells differ by at most `MAX_MEAN` grey levels on average, and all but
`CELLS_ABOVE` of them by at most `MAX_CELL`. Source: ours. A frozen frame that a codec sends anew differs
by less, and speakers in 640x360 and less by more within 0.4 s (docs/judgement.md)."""


class FrozenDetector:
    """Finds frozen stretches in one clip. Frames must come in ascending order.

    Args:
        num_frames: length of the clip, frames.
        fps: frame rate of the clip.
        boxes: [F, 4] x0, y0, x1, y1 of the face in clip pixels. Their median is the region that is compared.
    """

    def __init__(self, num_frames: int, fps: float, boxes: Floats) -> None:
        self._frozen = np.zeros(num_frames, np.bool_)
        self._min_frames = max(2, round(MIN_FROZEN_S * fps))
        self._box = np.median(boxes, axis=0)
        self._first: Bytes | None = None
        self._run = range(0)

    def push(self, shown: range, rgb: Bytes) -> None:
        """Take one decoded frame.

        Args:
            shown: indices of the clip's frames that show it.
            rgb: uint8 [clip height, clip width, 3].
        """
        face = self._face(rgb)
        if self._first is not None and self._run.stop == shown.start and _same(self._first, face):
            self._run = range(self._run.start, shown.stop)
        else:
            self._first, self._run = face, shown
        if len(self._run) >= self._min_frames:
            self._frozen[self._run.start : self._run.stop] = True

    def finish(self) -> float:
        """Fraction of the clip's frames in frozen stretches, 0..1."""
        return round(float(self._frozen.mean()), 4) if len(self._frozen) else 0.0

    def _face(self, rgb: Bytes) -> Bytes:
        height, width = rgb.shape[:2]
        x0, y0 = np.clip(np.floor(self._box[:2]), 0, (width - 1, height - 1)).astype(int)
        x1, y1 = np.clip(np.ceil(self._box[2:]), (x0 + 1, y0 + 1), (width, height)).astype(int)
        grey = cv2.cvtColor(rgb[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(grey, (GRID_PX, GRID_PX), interpolation=cv2.INTER_AREA), np.uint8)


def _same(one: Bytes, other: Bytes) -> bool:
    difference = cv2.absdiff(one, other)
    return bool(difference.mean() <= MAX_MEAN and (difference > MAX_CELL).sum() <= CELLS_ABOVE)
