"""The lip-tracing mask: the outline of the outer lips in every frame, and its filled polygon.

    landmarks -> 20 outer-lip points -> smoothed in time -> closed curve of 40 points -> dilated

Every step works on single frames or is symmetric in time, so the outline never lags behind the mouth.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from talkforge.schemas.arrays import (
    INTERPOLATED,
    MEASURED,
    MISSING,
    Bytes,
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
"""Landmarks of the outer lips, clockwise in the image, from the corner at the viewer's left.
Source: MediaPipe, FACE_LANDMARKS_LIPS."""

RIGHT_CORNER = OUTER_LIPS.index(291)

NUM_CONTOUR_POINTS = 40
"""P: the twenty lip points and one more between each two."""

MAX_YAW_DEG = 60.0
"""A frame with more yaw counts as missing, because the far half of the mouth is hidden and its landmarks are
guesses. Source: ours, the default of `thresholds.max_yaw_p95_deg`."""

SMOOTHING_ORDER = 2
"""Order of the Savitzky-Golay polynomial. With the default window of 5 frames at 25 fps, motion at 4 Hz keeps
93 % of its amplitude. Source: the filter's frequency response, (17 + 24 cos w - 6 cos 2w) / 35."""

SUBPIXELS = 4
"""The polygon is filled on a grid that is this many times finer. A pixel belongs to the mask if more than
half of it is covered."""

_SHIFT_BITS = 4  # cv2 takes sixteenths of a pixel


def trace(landmarks: Landmarks, config: LipsConfig, covered: NDArray[np.bool_] | None = None) -> LipTrace:
    """Outline of the outer lips in every frame where it is known.

    A frame is measured (2) where the face was seen, is turned by at most `MAX_YAW_DEG`, and has no cover
    over the mouth. Gaps of at most
    `config.max_gap_frames` frames between two measured ones are interpolated linearly (1). All other frames
    are missing (0) and NaN.

    The points of each run of measured frames are smoothed in frame coordinates by a symmetric Savitzky-Golay
    filter. It is exact for motion of constant acceleration, so a moving head is neither delayed nor damped.

    Args:
        landmarks: of the clip's F frames, in clip pixels.
        config: smoothing, gaps and dilation.
        covered: bool [F], the frames in which the mouth is covered. None: it was not looked for.
    """
    with np.errstate(invalid="ignore"):
        measured = landmarks.seen & (np.abs(landmarks.angles_deg[:, 0]) <= MAX_YAW_DEG)
    if covered is not None:
        measured &= ~covered
    lips = np.full((len(measured), len(OUTER_LIPS), 2), np.nan, np.float64)
    lips[measured] = landmarks.points[measured][:, OUTER_LIPS, :2]
    valid = np.where(measured, MEASURED, MISSING).astype(np.uint8)
    for start, end in _runs(measured):
        lips[start:end] = _smooth(lips[start:end], config.smoothing_frames)
    fill_gaps(lips, valid, config.max_gap_frames)
    return LipTrace(_dilate(lips, config.dilation).astype(np.float32), valid)


def fill_gaps(points: NDArray[np.float64], valid: Bytes, max_gap_frames: int) -> None:
    """Interpolate short gaps linearly, in place.

    Args:
        points: [F, K, 2], NaN where missing.
        valid: [F], 2 where measured and 0 elsewhere. Filled frames become 1.
        max_gap_frames: longest gap between two measured frames that is filled.
    """
    for (_, end), (start, _) in pairwise(list(_runs(valid == MEASURED))):
        if start - end <= max_gap_frames:
            weight = (np.arange(1, start - end + 1) / (start - end + 1))[:, None, None]
            points[end:start] = (1 - weight) * points[end - 1] + weight * points[start]
            valid[end:start] = INTERPOLATED


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Half-open spans in which `flags` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from ((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _smooth(points: NDArray[np.float64], window_frames: int) -> NDArray[np.float64]:
    """Points [n, K, 2] smoothed over n. An even window is widened by one, a long one shortened to n."""
    window = min(window_frames | 1, (len(points) - 1) | 1)
    if window > len(points) or window <= SMOOTHING_ORDER + 1:
        return points
    from scipy.signal import savgol_filter  # takes 0.3 s, because it imports scipy.stats

    return np.asarray(savgol_filter(points, window, SMOOTHING_ORDER, axis=0, mode="interp"))


def _curve_matrix() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two matrices [P, 20] that map the lip points to points and tangents of the closed spline through them.

    A cubic spline is linear in its knots, so evaluating the splines of the 20 unit vectors gives the matrix.
    """
    knots = len(OUTER_LIPS)
    closed = np.vstack([np.eye(knots), np.eye(knots)[:1]])
    spline = CubicSpline(np.arange(knots + 1), closed, bc_type="periodic")
    at = np.arange(NUM_CONTOUR_POINTS) * knots / NUM_CONTOUR_POINTS
    return spline(at), spline(at, 1)


_CURVE, _TANGENT = _curve_matrix()


def _dilate(lips: NDArray[np.float64], dilation: float) -> NDArray[np.float64]:
    """Contours [F, P, 2] of the lips [F, 20, 2], moved outwards by `dilation` x the width of the mouth."""
    curve = np.einsum("pk,fkc->fpc", _CURVE, lips)
    tangent = np.einsum("pk,fkc->fpc", _TANGENT, lips)
    # The points run clockwise with y down, so (y, -x), the tangent (x, y) turned left, points outwards.
    outward = np.stack([tangent[..., 1], -tangent[..., 0]], axis=-1)
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-9)
    width = np.linalg.norm(lips[:, RIGHT_CORNER] - lips[:, 0], axis=-1)
    return np.asarray(curve + dilation * width[:, None, None] * outward)


def rasterise(contour: Floats, height_px: int, width_px: int) -> NDArray[np.bool_]:
    """The filled contour as a mask bool [height_px, width_px], clipped at the frame's edges.

    Args:
        contour: [P, 2] in clip pixels. NaN (a missing frame) gives an empty mask.
        height_px: height of the mask.
        width_px: width of the mask.
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
    # With this value the average of a pixel's cells is the number of those that are covered.
    cv2.fillPoly(fine, [np.round(polygon * 2**_SHIFT_BITS).astype(np.int32)], SUBPIXELS**2, shift=_SHIFT_BITS)
    covered = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    mask[low[1] : high[1], low[0] : high[0]] = covered > SUBPIXELS**2 // 2
    return mask


def rasterise_all(contours: Floats, height_px: int, width_px: int) -> NDArray[np.bool_]:
    """The filled contours [n, P, 2] of n frames as masks bool [n, height_px, width_px], see `rasterise`."""
    masks = np.zeros((len(contours), height_px, width_px), np.bool_)
    for mask, contour in zip(masks, contours, strict=True):
        mask[:] = rasterise(contour, height_px, width_px)
    return masks


def measure(trace: LipTrace, clip: Clip) -> Lips:
    """Fractions of measured and interpolated frames, and the mean area of the mask where there is one."""
    have = np.flatnonzero(trace.valid)
    areas = [rasterise(trace.contour[k], clip.height_px, clip.width_px).sum() for k in have]
    pixels = clip.height_px * clip.width_px
    return Lips(
        lip_valid_fraction=float((trace.valid == MEASURED).mean()),
        lip_interpolated_fraction=float((trace.valid == INTERPOLATED).mean()),
        lip_area_fraction=float(np.mean(areas)) / pixels if len(have) else 0.0,
    )
