"""Whether lips are seen or covered: by a mask, a mosaic, a hand, a microphone, or anything else.

The landmarker gives landmarks for lips that it guesses behind a cover. A small network looks at a crop of the
mouth in every frame. It was fitted by `benchmarks.fit_covered_mouth` on clear mouths with painted covers. A
fine mosaic, through which the mouth's motion can be seen, is found by its grid instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Floats, expect_shape

WEIGHTS = Path(__file__).with_name("covered_mouth.onnx")

NAME = "covered-mouth-v1"
"""Name of the shipped weights in `dataset.json`."""

CROP_PX = 48
"""Edge of the network's input, pixels."""

REACH, EYES_FRACTION = 0.95, 0.55
"""Half the edge of the crop, in widths of the mouth, or of this fraction of the eyes' distance where that is
more."""

EYES = ((33, 133), (362, 263))
"""Landmarks of the corners of both eyes."""

LEAST_LOGIT = 1.0
"""A mouth is covered from this output of the network on. Source: one or two in a hundred clear mouths of
people that it was not fitted on are above it (docs/judgement.md)."""

SMOOTHING_FRAMES = 5
"""Window of the running median over the outputs: a frame that differs from its neighbours does not count."""

MAX_YAW_DEG = 45.0
"""Frames with more yaw are not judged. Source: ours. Of a profile half of the mouth is seen, against
whatever is behind it, and none was fitted on."""


MOSAIC_EVERY_FRAMES = 10
"""A grid is looked for in every tenth decoded frame. A mosaic is there for longer."""

MOSAIC_SCORE = 0.17
"""A mouth is under a mosaic from this `mosaic_score` on. Source: ours; 167 clear mouths of 30 people have
up to 0.12, in JPEG of quality 60 to 90 as well (docs/judgement.md)."""

_SHORTEST_CELL_PX, _LEAST_PX = 3, 16
"""Shortest edge of a cell, and least size of the lips' surroundings in which a grid is looked for."""


class Square(NamedTuple):
    """A square of a frame: centre and half the edge, pixels. Pixel k has its centre at k."""

    x: float
    y: float
    half: float


def mouth_square(points: Floats) -> Square:
    """The square around the mouth that the network sees.

    Args:
        points: landmarks of the face [478, 3] in pixels.
    """
    lips = points[list(OUTER_LIPS), :2]
    low, high = lips.min(0), lips.max(0)
    right, left = (points[list(corners), :2].mean(0) for corners in EYES)
    half = REACH * max(float(high[0] - low[0]), EYES_FRACTION * float(np.linalg.norm(left - right)))
    x, y = (low + high) / 2
    return Square(float(x), float(y), max(half, 1.0))


def cut(rgb: Bytes, square: Square, edge_px: int) -> Bytes:
    """A square of a frame scaled to `edge_px`, uint8 [edge, edge, 3]; the frame's edge is repeated beyond it.

    Args:
        rgb: frame, uint8 [H, W, 3].
        square: what to cut.
        edge_px: edge of the result.
    """
    side = max(2, round(2 * square.half))
    left, top = round(square.x - side / 2 + 0.5), round(square.y - side / 2 + 0.5)
    height, width = rgb.shape[:2]
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    inside = rgb[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if inside.shape[:2] != (side, side):
        inside = rgb[np.ix_(rows, columns)]
    how = cv2.INTER_AREA if side > edge_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inside, (edge_px, edge_px), interpolation=how), np.uint8)


def mosaic_score(rgb: Bytes, points: Floats) -> float:
    """How much of the differences between neighbouring pixels over the lips lies on the lines of a grid.

    Args:
        rgb: frame, uint8 [H, W, 3].
        points: landmarks of the face [478, 3] in its pixels.

    Returns:
        0 where lines are like any others, 1 where there is nothing between the lines of a grid; the lesser of
        rows and columns. 0 where the lips are small.
    """
    square = mouth_square(points)
    half = square.half / (2 * REACH)
    rows = slice(max(0, round(square.y - 0.7 * half)), max(0, round(square.y + 0.7 * half)))
    columns = slice(max(0, round(square.x - half)), max(0, round(square.x + half)))
    lips = rgb[rows, columns]
    if min(lips.shape[:2]) < _LEAST_PX:
        return 0.0
    grey = cv2.cvtColor(lips, cv2.COLOR_RGB2GRAY).astype(np.float32)
    profiles = (np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis) for axis in (0, 1))
    return min(_on_a_grid(profile) for profile in profiles)


def _on_a_grid(steps: Floats) -> float:
    """Greatest fraction of the steps [n] that lies on equidistant lines, beyond what any lines would have."""
    total, best = float(steps.sum()), 0.0
    if total <= 0:
        return 0.0
    for period in range(_SHORTEST_CELL_PX, len(steps) // 2 + 1):
        padding = -len(steps) % period
        on_lines = np.pad(steps, (0, padding)).reshape(-1, period).sum(axis=0)
        counts = np.pad(np.ones(len(steps)), (0, padding)).reshape(-1, period).sum(axis=0)
        phase = int(np.argmax(on_lines))
        by_chance = counts[phase] / len(steps)
        best = max(best, float((on_lines[phase] / total - by_chance) / (1 - by_chance)))
    return best


def network_input(crops: Bytes) -> Floats:
    """Crops uint8 [n, 48, 48, 3] as the network takes them: float32 [n, 3, 48, 48] in 0..1."""
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


class MouthClassifier:
    """The network, loaded once.

    Raises:
        ModelError: the weights are damaged.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._session = open_onnx(weights, f"covered mouth: {weights}")

    def logits(self, crops: Bytes) -> Floats:
        """Outputs [n]: the higher, the likelier the mouth is covered, see `LEAST_LOGIT`.

        Args:
            crops: uint8 [n, 48, 48, 3], each the `mouth_square` of a frame by `cut`.
        """
        expect_shape("crops", crops, (None, CROP_PX, CROP_PX, 3))
        if not len(crops):
            return np.zeros(0, np.float32)
        return np.asarray(self._session.run(None, {"pictures": network_input(crops)})[0][:, 0], np.float32)


class CoverTracer:
    """Finds the frames of one clip in which the mouth is covered. Frames must come in ascending order.

    Args:
        classifier: the network.
        num_frames: length of the clip, frames.
    """

    def __init__(self, classifier: MouthClassifier, num_frames: int) -> None:
        self._classifier = classifier
        self._crops = np.zeros((num_frames, CROP_PX, CROP_PX, 3), np.uint8)
        self._have = np.zeros(num_frames, np.bool_)
        self._mosaic = np.zeros(num_frames, np.bool_)
        self._num_pushed, self._is_mosaic = 0, False

    def push(self, shown: range, rgb: Bytes, points: Floats | None) -> None:
        """Take one decoded frame.

        Args:
            shown: indices of the clip's frames that show it.
            rgb: uint8 [clip height, clip width, 3].
            points: landmarks of the face [478, 3] in clip pixels. None: the face was not found.
        """
        if points is not None:
            self._crops[shown.start : shown.stop] = cut(rgb, mouth_square(points), CROP_PX)
            self._have[shown.start : shown.stop] = True
            if self._num_pushed % MOSAIC_EVERY_FRAMES == 0:
                self._is_mosaic = mosaic_score(rgb, points) >= MOSAIC_SCORE
            self._num_pushed += 1
            self._mosaic[shown.start : shown.stop] = self._is_mosaic

    def finish(self, yaw_deg: Floats) -> NDArray[np.bool_]:
        """Whether the mouth is covered, bool [F]. False where the face was not found or is turned away.

        Args:
            yaw_deg: [F] yaw of the head, NaN where the face was not found.
        """
        with np.errstate(invalid="ignore"):
            judged = self._have & (np.abs(yaw_deg) <= MAX_YAW_DEG)
        covered = judged & self._mosaic
        if judged.any():
            logits = self._classifier.logits(self._crops[judged])
            covered[judged] |= median_filter(logits, SMOOTHING_FRAMES, mode="nearest") >= LEAST_LOGIT
        return covered
