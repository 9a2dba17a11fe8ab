"""How much of the picture is black bars: letterbox, pillarbox, or both?

A bar is black in every frame and ends along a straight edge. A dark scene is neither: what moves or
is lit shows, at some time, and its outline is not straight.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, expect_shape

BLACK_LUMA = 24
"""Luma up to which a pixel is black, 0 to 255. Source: ours; black of limited range taken for full
range is 16, and codecs ring by a few levels beside the picture."""

BAR_FRACTION = 0.9
"""Least share of black pixels in a bar: there may be a subtitle or a logo in it. Source: ours."""

EDGE_FRACTION, INSIDE_FRACTION, EDGE_PX = 0.98, 0.6, 4
"""A bar's last line is black to this share; within so many pixels behind it comes a line that is black to
no more than that one. Source: ours; the lit part of a dark stage touches such a line in a few places
only."""

MAX_DEPTH_FRACTION = 0.45
"""Deepest bar at one edge, share of the picture."""

MIN_DEPTH_PX = 2


class BlackBarDetector:
    """Black bars of one clip, from some of its pictures; all must have one size."""

    def __init__(self) -> None:
        self._brightest: Bytes | None = None

    def push(self, rgb: Bytes) -> None:
        """See a picture, uint8 [H, W, 3]."""
        expect_shape("picture", rgb, (None, None, 3))
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        self._brightest = grey if self._brightest is None else np.maximum(self._brightest, grey)

    def finish(self) -> float | None:
        """Share of the picture's area under bars, 0 to 1; None if no picture was seen."""
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
    """Lines of the bar at the beginning of [n] fractions of black pixels, one a line; 0: there is none."""
    best, within = 0, np.cumsum(fractions) / np.arange(1, len(fractions) + 1)
    for count in range(MIN_DEPTH_PX, int(MAX_DEPTH_FRACTION * len(fractions)) + 1):
        ends = (
            fractions[count - 1] >= EDGE_FRACTION
            and fractions[count : count + EDGE_PX].min() <= INSIDE_FRACTION
        )
        if ends and within[count - 1] >= BAR_FRACTION:
            best = count
    return best
