"""Black bars: the fraction of the frame under a letterbox, a pillarbox or both.

A bar is black in every frame and ends at a straight edge. That tells it from a dark scene, where something
becomes visible at some time, with an outline that is not straight.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, expect_shape

BLACK_LUMA = 24
"""Luma, 0 to 255, up to which a pixel is black. Source: ours. Black of limited range that is taken for full
range is 16, and codecs ring by a few levels beside the image."""

BAR_FRACTION = 0.9
"""Least fraction of black pixels in a bar, which may hold a subtitle or a logo. Source: ours."""

EDGE_FRACTION, INSIDE_FRACTION, EDGE_LINES = 0.98, 0.6, 4
"""At least `EDGE_FRACTION` of a bar's last line is black. Within the next `EDGE_LINES` lines there is one of
which at most `INSIDE_FRACTION` is black. Source: ours. The edge of a lit stage is less sharp."""

MAX_DEPTH_FRACTION = 0.45
"""Greatest depth of a bar at one edge, as fraction of the frame."""

MIN_DEPTH_PX = 2


class BlackBarDetector:
    """Black bars of one clip, from some of its frames, which must all have the same size.

    It keeps the brightest value that each pixel had in any frame.
    """

    def __init__(self) -> None:
        self._brightest: Bytes | None = None

    def push(self, rgb: Bytes) -> None:
        """Take one frame, uint8 [H, W, 3]."""
        expect_shape("frame", rgb, (None, None, 3))
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        self._brightest = grey if self._brightest is None else np.maximum(self._brightest, grey)

    def finish(self) -> float | None:
        """Fraction of the frame's area under bars, 0..1. None without a frame."""
        if self._brightest is None:
            return None
        black = self._brightest <= BLACK_LUMA
        height, width = black.shape
        rows = black.mean(axis=1)
        top, bottom = bar_depth(rows), bar_depth(rows[::-1])
        columns = black[top : height - bottom].mean(axis=0)
        left, right = bar_depth(columns), bar_depth(columns[::-1])
        inside = (height - top - bottom) * (width - left - right)
        return round(1 - float(inside) / float(height * width), 4)


def bar_depth(fractions: NDArray[np.float64]) -> int:
    """Depth in lines of the bar at the beginning of the frame, 0 if there is none.

    Args:
        fractions: [n] fraction of black pixels in each line, from the frame's edge inwards.
    """
    best, within = 0, np.cumsum(fractions) / np.arange(1, len(fractions) + 1)
    for count in range(MIN_DEPTH_PX, int(MAX_DEPTH_FRACTION * len(fractions)) + 1):
        ends = (
            fractions[count - 1] >= EDGE_FRACTION
            and fractions[count : count + EDGE_LINES].min() <= INSIDE_FRACTION
        )
        if ends and within[count - 1] >= BAR_FRACTION:
            best = count
    return best
