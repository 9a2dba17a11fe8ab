"""Text detection by PP-OCRv4: subtitles, captions and logos, but also a sign on the wall behind.

The network gives each pixel a probability of text. Nothing is read. Lines and long words of any script are
detected, but words of two or three letters are not.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Floats, expect_shape
from talkforge.schemas.errors import ModelError

INPUT_EDGE_PX = 480
"""Longest edge of the network's input. Source: ours. On 30 frames of real clips no drawn line of 1/22 of the
height was missed. On 170 frames without text it gave one false box, and 640 px gave 18."""

GRID_PX = 32
"""The edges of the network's input are multiples of this."""

MEAN, STD = 0.5, 0.5
"""Mean and standard deviation: the input is (level / 255 - MEAN) / STD. Source of these and the next four:
the detector's settings in rapidocr-onnxruntime 1.4.4."""

PIXEL_SCORE = 0.3
BOX_SCORE = 0.5
MIN_BOX_PX = 3
UNCLIP = 1.6
"""Thresholds of a pixel and of the mean over a box, least edge of a box, and growth of the boxes. The network
marks only the core of a line, so a box grows by UNCLIP * area / perimeter on all sides."""


MIN_ASPECT = 3.0
"""Least ratio of length to height of a line of text, before its box grows. Shorter boxes are teeth, eyes and
leaves, and also words of two or three letters. Source: ours, on the same frames."""


class TextDetector:
    """PP-OCRv4's text detector.

    Raises:
        ModelError: the file is not an ONNX model that takes images of any size.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_onnx(path, f"text detector: {path}")
        shapes = [list(i.shape) for i in self._session.get_inputs()]
        fixed = [[size if isinstance(size, int) else None for size in shape][1:] for shape in shapes]
        if fixed != [[3, None, None]]:
            raise ModelError(f"text detector: {path}: expected input [any, 3, any, any], found {shapes}")
        self._name = self._session.get_inputs()[0].name

    def detect(self, rgb: Bytes) -> Bytes:
        """The boxes of text in a frame uint8 [H, W, 3], as a mask of the whole frame.

        Returns:
            uint8 [h, w], 1 under a box and 0 elsewhere. h and w are multiples of 32, at most 480.
        """
        expect_shape("frame", rgb, (None, None, 3))
        height_px, width_px = rgb.shape[:2]
        scale = min(1.0, INPUT_EDGE_PX / max(height_px, width_px))
        size = (_on_grid(width_px * scale), _on_grid(height_px * scale))
        bgr = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        planes = ((bgr / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
        scores = self._session.run(None, {self._name: planes[None]})[0][0, 0]
        return boxes_mask(np.asarray(scores, np.float32))


def boxes_mask(scores: Floats) -> Bytes:
    """The boxes of text as a mask uint8 [h, w], from the probability of text in each pixel [h, w].

    Each box is the smallest rectangle, at any angle, around a connected region. Source: Liao et al.,
    Real-time Scene Text Detection with Differentiable Binarization (AAAI 2020), 3.5.
    """
    core = (scores > PIXEL_SCORE).astype(np.uint8)
    mask = np.zeros_like(core)
    contours, _ = cv2.findContours(core, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        middle, (width_px, height_px), angle = cv2.minAreaRect(contour)
        short_px, long_px = sorted((width_px, height_px))
        if short_px < MIN_BOX_PX or long_px < MIN_ASPECT * short_px:
            continue
        if _mean_under(scores, contour) < BOX_SCORE:
            continue
        # UNCLIP * area / perimeter on each side, so twice that in width and in height.
        grown = 2 * width_px * height_px * UNCLIP / (2 * (width_px + height_px))
        corners = cv2.boxPoints((middle, (width_px + grown, height_px + grown), angle))
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask


def _mean_under(scores: Floats, contour: Bytes) -> float:
    x, y, width, height = cv2.boundingRect(contour)
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [contour - (x, y)], 1)
    return float(scores[y : y + height, x : x + width][inside > 0].mean(dtype=np.float64))


def _on_grid(edge_px: float) -> int:
    return max(GRID_PX, round(edge_px / GRID_PX) * GRID_PX)
