"""Bars: the fraction of the frame under a letterbox, a pillarbox or both, black, of one colour, or blurred.

A bar is black, or of one colour, in every frame and ends at a straight edge. That tells it from a dark scene
or a plain wall, where something becomes visible at some time, with an outline that is not straight. Bars that
are filled with the blurred image lie on both sides, are equally deep, have little detail, and end at an edge
over the whole height or width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, Doubles, expect_shape

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

COLOUR_LEVELS = 6
"""A bar of one colour stays within so many levels of it. Source: ours; the walls, skies and plain grounds of
70 real files are no bars with it."""

COLOUR_INSIDE = 0.25
"""Beside a bar of one colour at most this fraction of a line has it. Source: ours. A speaker with straight
sides who fills two thirds of the height before a plain wall leaves more."""

BLURRED_STEP, BLURRED_DETAIL, BLURRED_MIN_DEPTH = 8.0, 0.3, 0.03
"""Blurred bars end where neighbouring lines differ at least `BLURRED_STEP` times as much as those around, and
have at most `BLURRED_DETAIL` times the detail of what is between; they are at least `BLURRED_MIN_DEPTH` of
the frame deep. Source: ours. A telephone video with blurred sides has 58 and 0.04 (by medians). Of 70 other
files one has a step of more than 4 (23, a screen split in two), with a detail of 0.61."""

STEP_QUANTILE = 0.25
"""Lines differ by this quantile of their pixels' differences: an edge goes over three quarters of a line."""


class BlackBarDetector:
    """Bars of one clip, from some of its frames, which must all have the same size.

    It keeps the brightest and the darkest value that each pixel had in any frame, and for every line how much
    detail it has and how far it differs from the line before.
    """

    def __init__(self) -> None:
        self._brightest: Bytes | None = None
        self._darkest: Bytes | None = None
        self._profiles: list[tuple[_Profile, _Profile]] = []

    def push(self, rgb: Bytes) -> None:
        """Take one frame, uint8 [H, W, 3]."""
        expect_shape("frame", rgb, (None, None, 3))
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        self._brightest = grey if self._brightest is None else np.maximum(self._brightest, grey)
        self._darkest = grey if self._darkest is None else np.minimum(self._darkest, grey)
        detail = np.abs(cv2.Laplacian(grey, cv2.CV_16S))
        self._profiles.append(
            (_Profile(detail.mean(axis=1), _steps(grey)), _Profile(detail.mean(axis=0), _steps(grey.T)))
        )

    def finish(self) -> float | None:
        """Fraction of the frame's area under bars, 0..1. None without a frame."""
        if self._brightest is None or self._darkest is None:
            return None
        brightest, darkest = self._brightest, self._darkest
        height, width = brightest.shape
        top, bottom = _plain_depth(brightest, darkest), _plain_depth(brightest[::-1], darkest[::-1])
        inside = slice(top, height - bottom)
        across = brightest[inside].T, darkest[inside].T
        left, right = _plain_depth(*across), _plain_depth(across[0][::-1], across[1][::-1])
        rows = _blurred_depth([rows for rows, _ in self._profiles])
        columns = _blurred_depth([columns for _, columns in self._profiles])
        # A plain bar ends at an edge as well, found a line further in.
        top, bottom = (rows, rows) if 2 * rows > top + bottom + EDGE_LINES else (top, bottom)
        left, right = (columns, columns) if 2 * columns > left + right + EDGE_LINES else (left, right)
        area = (height - top - bottom) * (width - left - right)
        return round(1 - float(area) / float(height * width), 4)


class _Profile(NamedTuple):
    """What one frame shows along an axis: detail of each line [n], and the step to the next [n - 1]."""

    detail: Doubles
    step: Doubles


def _steps(grey: Bytes) -> Doubles:
    """How far each row differs from the one before [n - 1], by every fourth of its pixels."""
    some = grey[:, ::4].astype(np.int16)
    return np.asarray(np.quantile(np.abs(np.diff(some, axis=0)), STEP_QUANTILE, axis=1))


def _plain_depth(brightest: Bytes, darkest: Bytes) -> int:
    """Depth in lines of a bar at the beginning that is black or of one colour."""
    black = bar_depth((brightest <= BLACK_LUMA).mean(axis=1))
    colour = int(np.median(brightest[:MIN_DEPTH_PX]))
    plain = (brightest <= colour + COLOUR_LEVELS) & (darkest.astype(int) >= colour - COLOUR_LEVELS)
    return max(black, bar_depth(plain.mean(axis=1), COLOUR_INSIDE))


def _blurred_depth(profiles: Sequence[_Profile]) -> int:
    """Depth in lines of two blurred bars, 0 if there are none."""
    detail = np.mean([profile.detail for profile in profiles], axis=0)
    step = np.median([profile.step for profile in profiles], axis=0)
    count = len(detail)
    best, edge = 0, 0.0
    for depth in range(max(4, round(BLURRED_MIN_DEPTH * count)), int(MAX_DEPTH_FRACTION * count)):
        if min(_peak(step, depth - 1), _peak(step, count - depth - 1)) < BLURRED_STEP:
            continue
        outside = np.concatenate([detail[: depth - 2], detail[count - depth + 2 :]]).mean()
        sharpness = float(step[depth - 1] + step[count - depth - 1])
        if outside <= BLURRED_DETAIL * detail[depth + 2 : count - depth - 2].mean() and sharpness > edge:
            best, edge = depth, sharpness
    return best


def _peak(step: Doubles, at: int) -> float:
    """Ratio of the step at a line, give or take one, to the median of those around."""
    around = np.concatenate([step[max(0, at - 10) : max(0, at - 2)], step[at + 3 : at + 11]])
    nearest = step[max(0, at - 1) : at + 2]
    return float(nearest.max() / max(np.median(around), 0.5)) if len(around) and len(nearest) else 0.0


def bar_depth(fractions: NDArray[np.float64], most_inside: float = INSIDE_FRACTION) -> int:
    """Depth in lines of the bar at the beginning of the frame, 0 if there is none.

    Args:
        fractions: [n] fraction of black pixels in each line, from the frame's edge inwards.
        most_inside: beside the bar there is a line of which at most this fraction is black.
    """
    best, within = 0, np.cumsum(fractions) / np.arange(1, len(fractions) + 1)
    for count in range(MIN_DEPTH_PX, int(MAX_DEPTH_FRACTION * len(fractions)) + 1):
        ends = (
            fractions[count - 1] >= EDGE_FRACTION
            and fractions[count : count + EDGE_LINES].min() <= most_inside
        )
        if ends and within[count - 1] >= BAR_FRACTION:
            best = count
    return best
