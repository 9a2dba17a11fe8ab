"""The lip-tracing mask: the outline of the outer lips, frame by frame, and its filled polygon.

    landmarks -> 20 outer-lip points -> smoothed in time -> closed curve of 40 points -> dilated

Every step is defined frame by frame or is symmetric in time, so the outline never lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.signal import savgol_filter

from talkforge.schemas.arrays import (
    INTERPOLATED,
    MEASURED,
    MISSING,
    Floats,
    Landmarks,
    LipTrace,
    expect_shape,
)
from talkforge.schemas.config import LipsConfig
from talkforge.schemas.records import Clip, Lips

# fmt: off
OUTER_LIPS = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
)
# fmt: on
"""The outer lips clockwise in the picture, from the corner at the viewer's left.
Source: MediaPipe, FACE_LANDMARKS_LIPS."""

RIGHT_CORNER = OUTER_LIPS.index(291)

NUM_CONTOUR_POINTS = 40
"""P: the twenty points and one between each two."""

MAX_YAW_DEG = 60.0
"""Beyond this the far half of the mouth is hidden, and its points are guesses: such a frame counts
as missing. Source: ours, the default of `thresholds.max_yaw_p95_deg`."""

SMOOTHING_ORDER = 2
"""Order of the Savitzky-Golay polynomial: with the default 5 frames at 25 fps, motion at 4 Hz keeps
93 % of its amplitude. Source: the filter's frequency response, (17 + 24 cos w - 6 cos 2w) / 35."""

SUBPIXELS = 4
"""The polygon is filled on a grid this many times finer, then a pixel is in if most of it is."""

_SHIFT_BITS = 4  # cv2 takes sixteenths of a pixel


def trace(landmarks: Landmarks, config: LipsConfig) -> LipTrace:
    """Outline of the outer lips in every frame where it is known.

    A frame is measured (2) where the face was seen and turned by at most `MAX_YAW_DEG`; at most
    `config.max_gap_frames` frames between two measured ones are interpolated linearly (1); all
    others are missing (0, NaN). The points are smoothed over each run of measured frames by a
    symmetric Savitzky-Golay filter in picture coordinates: it is linear and exact for motion
    of constant acceleration, so a moving head is neither delayed nor pulled back.
    """
    with np.errstate(invalid="ignore"):
        measured = landmarks.seen & (np.abs(landmarks.angles_deg[:, 0]) <= MAX_YAW_DEG)
    lips = np.full((len(measured), len(OUTER_LIPS), 2), np.nan, np.float64)
    lips[measured] = landmarks.points[measured][:, OUTER_LIPS, :2]
    valid = np.where(measured, MEASURED, MISSING).astype(np.uint8)
    spans = list(_runs(measured))
    for start, end in spans:
        lips[start:end] = _smooth(lips[start:end], config.smoothing_frames)
    for (_, end), (start, _) in pairwise(spans):
        if start - end <= config.max_gap_frames:
            weight = (np.arange(1, start - end + 1) / (start - end + 1))[:, None, None]
            lips[end:start] = (1 - weight) * lips[end - 1] + weight * lips[start]
            valid[end:start] = INTERPOLATED
    return LipTrace(_dilate(lips, config.dilation).astype(np.float32), valid)


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Half-open spans in which `flags` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from ((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _smooth(points: NDArray[np.float64], window_frames: int) -> NDArray[np.float64]:
    """Points [n, K, 2] smoothed over n; short runs take a shorter window, an even one is widened."""
    window = min(window_frames | 1, (len(points) - 1) | 1)
    if window > len(points) or window <= SMOOTHING_ORDER + 1:
        return points
    return np.asarray(savgol_filter(points, window, SMOOTHING_ORDER, axis=0, mode="interp"))


def _curve_matrix() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[P, 20] each: points and tangents of the closed cubic spline through the lip points."""
    knots = len(OUTER_LIPS)
    closed = np.vstack([np.eye(knots), np.eye(knots)[:1]])
    spline = CubicSpline(np.arange(knots + 1), closed, bc_type="periodic")
    at = np.arange(NUM_CONTOUR_POINTS) * knots / NUM_CONTOUR_POINTS
    return spline(at), spline(at, 1)


_CURVE, _TANGENT = _curve_matrix()


def _dilate(lips: NDArray[np.float64], dilation: float) -> NDArray[np.float64]:
    """Contours [F, P, 2]: the spline moved outwards by `dilation` x the distance of the corners."""
    curve = np.einsum("pk,fkc->fpc", _CURVE, lips)
    tangent = np.einsum("pk,fkc->fpc", _TANGENT, lips)
    # Walking clockwise with y down, the outside is on the left hand.
    outward = np.stack([tangent[..., 1], -tangent[..., 0]], axis=-1)
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-9)
    width = np.linalg.norm(lips[:, RIGHT_CORNER] - lips[:, 0], axis=-1)
    return np.asarray(curve + dilation * width[:, None, None] * outward)


def rasterise(contour: Floats, height_px: int, width_px: int) -> NDArray[np.bool_]:
    """The filled contour [P, 2] as a mask [height_px, width_px], cut off at the picture's edges.

    A contour of NaN (a missing frame) gives an empty mask.
    """
    expect_shape("contour", contour, (None, 2))
    mask = np.zeros((height_px, width_px), np.bool_)
    if not np.isfinite(contour).all():
        return mask
    size = np.array([width_px, height_px])
    low = np.clip(np.floor(contour.min(0)).astype(int), 0, size)
    high = np.clip(np.ceil(contour.max(0)).astype(int) + 1, low, size)
    width, height = high - low
    if width == 0 or height == 0:
        return mask
    fine = np.zeros((height * SUBPIXELS, width * SUBPIXELS), np.uint8)
    polygon = (contour - low + 0.5) * SUBPIXELS - 0.5
    cv2.fillPoly(fine, [np.round(polygon * 2**_SHIFT_BITS).astype(np.int32)], 1, shift=_SHIFT_BITS)
    covered = fine.reshape(height, SUBPIXELS, width, SUBPIXELS).mean((1, 3))
    mask[low[1] : high[1], low[0] : high[0]] = covered > 0.5
    return mask


def measure(trace: LipTrace, clip: Clip) -> Lips:
    """How well the trace is founded; the area is the mean over frames that have a contour."""
    have = np.flatnonzero(trace.valid)
    areas = [rasterise(trace.contour[k], clip.height_px, clip.width_px).sum() for k in have]
    pixels = clip.height_px * clip.width_px
    return Lips(
        lip_valid_fraction=float((trace.valid == MEASURED).mean()),
        lip_interpolated_fraction=float((trace.valid == INTERPOLATED).mean()),
        lip_area_fraction=float(np.mean(areas)) / pixels if len(have) else 0.0,
    )
