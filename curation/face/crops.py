"""Face crops for audio-visual networks: with a margin, smoothed over time, at 25 frames per second.

Light-ASD and SyncNet were both trained on such crops.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from talkforge.schemas.arrays import Bytes, Floats, expect_shape

FPS = 25.0
"""Frame rate that these networks were trained on, frames per second."""

FACE_CROP_PX = 224
"""Edge of a face crop, pixels."""

ASD_INPUT_PX = 112
"""Edge of Light-ASD's input in pixels. It is the centre of a face crop."""

CROP_SCALE = 0.40
"""Margin of a face crop, as fraction of the face box's edge. Source: default of the published demos of
SyncNet and Light-ASD."""

GREY_LEVEL = 110
"""Grey level of the crop beyond the frame's edge. Source: as above."""

SMOOTHING_FRAMES = 13
"""Window of the running median over a face's boxes. Source: as above."""


def smooth_boxes(boxes: Floats) -> Floats:
    """Smoothed squares around face boxes, for `crop_face`.

    Centre and edge of the boxes each pass through a running median. Source: the published demos, except
    that they pad with zeros at both ends, while here the boxes are mirrored.

    Args:
        boxes: [F, 4] x0, y0, x1, y1, one for each frame at `FPS`.

    Returns:
        float32 [F, 4] x0, y0, x1, y1.
    """
    expect_shape("boxes", boxes, (None, 4))
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    rows = np.column_stack([(low + high) / 2, (high - low).max(axis=1) / 2])
    smooth = median_filter(rows, size=(SMOOTHING_FRAMES, 1), mode="mirror") if len(rows) else rows
    centre, half = smooth[:, :2], smooth[:, 2:]
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def crop_face(rgb: Bytes, box: Floats) -> Bytes:
    """The face with a margin, a little lower than its box, so that the mouth is near the middle.

    With s half the longer edge of the box and m = s * `CROP_SCALE`, the crop reaches from s above the centre
    to s + 2 m below it, and s + m to either side. It is scaled bilinearly. Source: `crop_video` of SyncNet's
    and Light-ASD's published demos.

    Args:
        rgb: frame, uint8 [H, W, 3].
        box: [4] x0, y0, x1, y1 in pixels of `rgb`. It may reach beyond the frame.

    Returns:
        uint8 [224, 224, 3], `GREY_LEVEL` beyond the frame.

    Raises:
        ValueError: the shapes are different, or the box has no area.
    """
    expect_shape("frame", rgb, (None, None, 3))
    x0, y0, x1, y1 = (float(value) for value in box)
    half = max(x1 - x0, y1 - y0) / 2
    if not (np.isfinite([x0, y0, x1, y1]).all() and half >= 1):
        raise ValueError(f"face box: expected at least 2 px, found {np.asarray(box).tolist()}")
    x, y, wide = (x0 + x1) / 2, (y0 + y1) / 2, half * (1 + CROP_SCALE)
    rows = int(np.floor(y - half)), int(np.floor(y + half * (1 + 2 * CROP_SCALE)))
    columns = int(np.floor(x - wide)), int(np.floor(x + wide))
    crop = np.full((rows[1] - rows[0], columns[1] - columns[0], 3), GREY_LEVEL, np.uint8)
    inside = rgb[_within(rows, rgb.shape[0]), _within(columns, rgb.shape[1])]
    top, left = max(0, -rows[0]), max(0, -columns[0])
    crop[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return np.asarray(
        cv2.resize(crop, (FACE_CROP_PX, FACE_CROP_PX), interpolation=cv2.INTER_LINEAR), np.uint8
    )


def _within(span: tuple[int, int], size: int) -> slice:
    return slice(max(0, min(span[0], size)), max(0, min(span[1], size)))


def to_asd(crop: Bytes) -> Bytes:
    """Light-ASD's input, grey uint8 [112, 112]: the centre of a face crop, uint8 RGB [224, 224, 3]."""
    expect_shape("crop", crop, (FACE_CROP_PX, FACE_CROP_PX, 3))
    edge = (FACE_CROP_PX - ASD_INPUT_PX) // 2
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(grey[edge : edge + ASD_INPUT_PX, edge : edge + ASD_INPUT_PX])


def nearest_frames(count: int, fps: float, num_frames: int, source_fps: float) -> NDArray[np.int64]:
    """For each frame at one rate, the index of the nearest frame of the same span at another rate.

    Args:
        count: number of frames wanted.
        fps: rate of the frames wanted.
        num_frames: number of frames that there are.
        source_fps: rate of the frames that there are.

    Returns:
        int64 [count] in 0..num_frames - 1.
    """
    nearest = np.floor(np.arange(count) * source_fps / fps + 0.5).astype(np.int64)
    return np.asarray(np.minimum(nearest, num_frames - 1))


def resample_crops(faces: Bytes, fps: float) -> Bytes:
    """Crops [F, ...] at `fps` resampled to `FPS` by the nearest frame."""
    count = max(min(len(faces), 1), int(np.floor(len(faces) * FPS / fps + 0.5)))
    return faces if fps == FPS else faces[nearest_frames(count, FPS, len(faces), fps)]
