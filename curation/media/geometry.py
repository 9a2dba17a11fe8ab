"""Where the pixels of a clip lie in the frames of its video: first the crop, then the scale.

Everything that needs a clip's pixels takes them from here: sizes, boxes of the sparse pass, the dense pass,
the cut. Display pixels are those of the upright frame with square pixels, coded pixels those of the file.
Both are measured from the frame's upper left corner.
"""

from __future__ import annotations

import math

import numpy as np

from talkforge.schemas.arrays import Floats
from talkforge.schemas.records import Clip, Rectangle, Video

GRID_PX = 4
"""Crops begin and end at multiples of this many coded pixels. It is the largest cell of subsampled colour
(4:1:1), so a crop of the stored frame moves no colour against the brightness."""


def whole_frame(video: Video) -> Rectangle:
    """The whole frame, in display pixels."""
    return Rectangle(0.0, 0.0, float(video.width_px), float(video.height_px))


def clip_size(video: Video, longest_edge_px: int, crop: Rectangle | None = None) -> tuple[int, int]:
    """(width_px, height_px) of a clip. Both are even, no larger than what is cut, and scaled alike.

    Args:
        video: the video.
        longest_edge_px: greatest longest edge.
        crop: what the clip shows of the frame, in display pixels. None: all of it.
    """
    shown = crop or whole_frame(video)
    scale = min(1.0, longest_edge_px / max(shown.width_px, shown.height_px))

    def even(size_px: float) -> int:
        nearest = 2 * math.floor(size_px * scale / 2 + 0.5)
        return max(2, min(nearest, int(size_px + 1e-6) // 2 * 2))

    return even(shown.width_px), even(shown.height_px)


def to_clip_px(corners: Floats, clip: Clip, video: Video) -> Floats:
    """Corners from display pixels of the frame into pixels of the clip.

    Args:
        corners: [..., 2n]: x and y in turn, such as boxes [n, 4].
        clip: the clip.
        video: its video.
    """
    corner, scale = _corner_and_scale(corners, clip, video)
    return np.asarray((corners - corner) * scale, np.float32)


def from_clip_px(corners: Floats, clip: Clip, video: Video) -> Floats:
    """Inverse of `to_clip_px`: where corners in pixels of the clip lie in the frame, in display pixels."""
    corner, scale = _corner_and_scale(corners, clip, video)
    return np.asarray(corners / scale + corner, np.float32)


def _corner_and_scale(corners: Floats, clip: Clip, video: Video) -> tuple[Floats, Floats]:
    shown = clip.crop or whole_frame(video)
    pairs = corners.shape[-1] // 2
    scale = np.array([clip.width_px / shown.width_px, clip.height_px / shown.height_px] * pairs, np.float32)
    return np.array([shown.left_px, shown.top_px] * pairs, np.float32), scale


def uncropped(clip: Clip, video: Video, longest_edge_px: int) -> Clip:
    """The clip as it would be without its crop."""
    width_px, height_px = clip_size(video, longest_edge_px)
    nothing = dict.fromkeys(("crop_left_px", "crop_top_px", "crop_width_px", "crop_height_px"))
    return clip.model_copy(update={"width_px": width_px, "height_px": height_px, **nothing})


def longer_edge_px(box: Floats | tuple[float, float, float, float]) -> float:
    """Length of the longer edge of a box x0, y0, x1, y1, in its pixels."""
    return float(max(box[2] - box[0], box[3] - box[1]))


def height_scale(clip: Clip, video: Video) -> float:
    """Pixels of the clip for each display pixel, downwards."""
    return clip.height_px / (clip.crop or whole_frame(video)).height_px


def on_grid(video: Video, wanted: Rectangle) -> Rectangle:
    """The smallest rectangle, in display pixels, that holds `wanted` and can be cut out of the stored frame.

    Beyond the frame there is nothing, and up to three pixels at its far edges are not reached, see `GRID_PX`.
    """
    width, height = video.coded_width_px, video.coded_height_px
    coded = _turned_back(video, wanted)

    def span(start: float, length: float, size: int) -> tuple[int, int]:
        last = max(size // GRID_PX, 1)
        first = min(max(math.floor(start / GRID_PX + 1e-6), 0), last - 1)
        end = min(max(math.ceil((start + length) / GRID_PX - 1e-6), first + 1), last)
        return first * GRID_PX, (end - first) * GRID_PX

    left, wide = span(coded.left_px, coded.width_px, width)
    top, high = span(coded.top_px, coded.height_px, height)
    return _turned(video, Rectangle(left, top, wide, high))


def coded_rectangle(video: Video, crop: Rectangle) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop in coded pixels, whole numbers for what `on_grid` gave."""
    left, top, width, height = (math.floor(value + 0.5) for value in _turned_back(video, crop))
    return left, top, width, height


def _stretch(video: Video) -> tuple[float, float]:
    """Display pixels for each coded pixel, along the rows and the columns of the stored frame."""
    wide, high = video.width_px, video.height_px
    if video.rotation_deg in (90, 270):
        wide, high = high, wide
    return wide / video.coded_width_px, high / video.coded_height_px


def _turned(video: Video, coded: Rectangle) -> Rectangle:
    """From coded to display pixels: stretched, flipped where the video is mirrored, turned clockwise."""
    x, y = _stretch(video)
    left, top, width, height = coded.left_px * x, coded.top_px * y, coded.width_px * x, coded.height_px * y
    whole_width, whole_height = video.coded_width_px * x, video.coded_height_px * y
    if video.mirrored:
        top = whole_height - top - height
    for _ in range(video.rotation_deg // 90):
        left, top, width, height = whole_height - top - height, left, height, width
        whole_width, whole_height = whole_height, whole_width
    return Rectangle(left, top, width, height)


def _turned_back(video: Video, shown: Rectangle) -> Rectangle:
    """Inverse of `_turned`."""
    left, top, width, height = shown
    whole_width, whole_height = float(video.width_px), float(video.height_px)
    for _ in range(video.rotation_deg // 90):
        left, top, width, height = top, whole_width - left - width, height, width
        whole_width, whole_height = whole_height, whole_width
    if video.mirrored:
        top = whole_height - top - height
    x, y = _stretch(video)
    return Rectangle(left / x, top / y, width / x, height / y)
