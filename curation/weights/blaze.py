"""MediaPipe's networks, run one by one: TFLite on one core, Blaze detectors, and the regions they look at.

MediaPipe's own graphs run the same networks on the same pixels, and give the same points to a few hundredths
of a pixel. Run one by one they cost less, because what nobody reads is not computed (a mask of the body is a
third of the pose network), and nothing of MediaPipe has to be imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, Doubles, Floats
from talkforge.schemas.errors import ModelError, one_line

MIN_SCORE = 0.5
"""Least score of a detection, and least probability that a region shows what was looked for. Source: the
defaults of MediaPipe's tasks."""

NMS_OVERLAP = 0.3
"""Boxes that overlap by more than this IoU are one detection. Source: MediaPipe, face_detector_graph.cc and
pose_detector_graph.cc."""

_LARGEST_LOGIT = 100.0

_OUTPUTS, _OPERATORS = 8, 10
"""Where a TFLite file keeps its graph's outputs and operators. Source: schema.fbs, table SubGraph."""

_SUBPIXELS = 32
"""Parts of a pixel in which `cv2.remap` takes positions. Source: OpenCV, INTER_TAB_SIZE."""

_STEPS = 2048
"""Steps in such a part, in which positions are added up as integers, which is fast, up to 16,384 px."""


class TfliteNetwork:
    """A TFLite network on one core.

    Args:
        tflite: content of the file.
        label: names the network in errors.
        outputs: shapes of the outputs that are wanted, in the order in which they shall be returned. What
            only other outputs need is cut off.

    Raises:
        ModelError: not a TFLite model, or one without these outputs.
    """

    def __init__(self, tflite: bytes, label: str, outputs: Sequence[tuple[int, ...]]) -> None:
        from ai_edge_litert.interpreter import Interpreter  # half of all commands need no network

        try:
            self._interpreter = Interpreter(model_content=_pruned(tflite, outputs), num_threads=1)
            self._interpreter.allocate_tensors()
        except Exception as error:  # struct's, numpy's and LiteRT's errors share no base class but this
            raise ModelError(f"{label}: is not a TFLite model that runs: {one_line(error, 200)}") from None
        (found,) = self._interpreter.get_input_details()
        self._input, self.input_shape = found["index"], tuple(int(n) for n in found["shape"])
        by_shape = {
            tuple(int(n) for n in output["shape"]): output["index"]
            for output in self._interpreter.get_output_details()
        }
        if missing := [shape for shape in outputs if shape not in by_shape]:
            raise ModelError(f"{label}: expected outputs of shapes {missing}, found {sorted(by_shape)}")
        self._outputs = [by_shape[shape] for shape in outputs]

    def __call__(self, batch: Floats) -> list[Floats]:
        """The outputs for one input, float32 of the network's input shape."""
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output) for output in self._outputs]


def _pruned(tflite: bytes, outputs: Sequence[tuple[int, ...]]) -> bytes:
    """The network without the operations that none of these outputs needs.

    The lists of operations and of outputs are shortened where they lie in the file; the rest stays.
    """
    from ai_edge_litert import schema_py_generated as schema

    data = bytearray(tflite)
    model = schema.Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    wanted = [int(i) for i in graph.OutputsAsNumpy() if tuple(graph.Tensors(i).ShapeAsNumpy()) in outputs]
    needed, kept = set(wanted), []
    for number in reversed(range(graph.OperatorsLength())):
        operator = graph.Operators(number)
        if needed.intersection(operator.OutputsAsNumpy().tolist()):
            kept.append(number)
            needed.update(i for i in operator.InputsAsNumpy().tolist() if i >= 0)
    kept.reverse()
    # An entry says how far from itself its operation lies, so one that moves to the front says more.
    moved = np.array(kept, np.uint32) - np.arange(len(kept), dtype=np.uint32)
    operators = _vector(data, graph, _OPERATORS)
    operators[1 : 1 + len(kept)] = operators[1:][kept] + 4 * moved
    operators[0] = len(kept)
    listed = _vector(data, graph, _OUTPUTS)
    listed[1 : 1 + len(wanted)] = wanted
    listed[0] = len(wanted)
    return bytes(data)


def _vector(data: bytearray, graph: Any, field: int) -> NDArray[np.uint32]:
    """A list of 32-bit numbers in a flatbuffer, where it lies: its length, then its entries."""
    at = graph._tab.Vector(graph._tab.Offset(field))
    count = graph._tab.VectorLen(graph._tab.Offset(field))
    return np.frombuffer(data, np.uint32, count + 1, at - 4)


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, turned about its centre.

    Attributes:
        x_px: centre, counted from the image's edge. Pixel k reaches from k to k + 1.
        y_px: the same from the upper edge.
        width_px: extent along its own x axis.
        height_px: extent along its own y axis.
        angle_rad: by how much it is turned, clockwise in the image.
    """

    x_px: float
    y_px: float
    width_px: float
    height_px: float
    angle_rad: float = 0.0

    @classmethod
    def square_around(cls, rgb: Bytes) -> Region:
        """The smallest upright square that holds an image [H, W, 3]."""
        height, width = rgb.shape[:2]
        return cls(width / 2, height / 2, max(width, height), max(width, height))

    def cut(self, rgb: Bytes, edge_px: int, *, border: int, rounded: bool = False) -> Bytes:
        """The region as an upright square image.

        Args:
            rgb: the image, uint8 [H, W, 3].
            edge_px: edge of the result.
            border: OpenCV's border type, for what lies outside of the image.
            rounded: round positions to a 32nd of a pixel, as OpenCV 4 did, with which MediaPipe cuts. It
                costs twice as much. The networks of the body notice: without it joints that are hard to see
                move by several pixels. Those of the face do not.
        """
        if rounded:
            return np.asarray(cv2.remap(rgb, *self._positions(edge_px), cv2.INTER_LINEAR, borderMode=border))
        matrix = self.matrix()
        matrix[:, :2] /= edge_px
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(rgb, matrix, (edge_px, edge_px), flags=how, borderMode=border))

    def _positions(self, edge_px: int) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Where the pixels of `cut` lie, for `cv2.remap`: whole pixels [edge, edge, 2] and parts of one."""
        at = np.arange(edge_px) / edge_px
        across, down, corner = self.matrix().T[..., None] * (_SUBPIXELS * _STEPS)
        by_column = np.rint(across * at).astype(np.int32)[:, None]
        by_row = np.rint(down * at + corner + _STEPS / 2).astype(np.int32)[:, :, None]
        x, y = (by_column + by_row) // _STEPS
        whole = np.empty((edge_px, edge_px, 2), np.int16)
        whole[..., 0], whole[..., 1] = x // _SUBPIXELS, y // _SUBPIXELS
        return whole, (y % _SUBPIXELS * _SUBPIXELS + x % _SUBPIXELS).astype(np.uint16)

    def to_image(self, points: Floats) -> Floats:
        """Points [n, 2] in units of the region's sides, in pixels of the image from its edge."""
        matrix = self.matrix()
        return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)

    def matrix(self) -> Doubles:
        """The map [2, 3] from units of the region's sides to pixels of the image."""
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        across, down = np.array([cos, sin]) * self.width_px, np.array([-sin, cos]) * self.height_px
        corner = np.array([self.x_px, self.y_px]) - (across + down) / 2
        return np.stack([across, down, corner], 1)


@dataclass(frozen=True)
class Detection:
    """One detection in an image, in pixels from its edge.

    Attributes:
        box: float32 [4], x0, y0, x1, y1.
        keypoints: float32 [k, 2].
    """

    box: Floats
    keypoints: Floats


class BlazeDetector:
    """A single-shot detector with one size of anchor, as BlazeFace and BlazePose have.

    Args:
        network: gives boxes with keypoints, [1, anchors, 4 + 2 k], and logits, [1, anchors, 1].
        anchors: number of anchors in a cell by stride, px. Strides ascend.
        rounded: how the image is cut, see `Region.cut`.

    Source: Bazarevsky et al., arXiv 1907.05047; decoding as in MediaPipe's
    tensors_to_detections_calculator.cc and non_max_suppression_calculator.cc.
    """

    def __init__(self, network: TfliteNetwork, anchors: dict[int, int], *, rounded: bool = False) -> None:
        self._network, self._rounded = network, rounded
        self._edge_px = network.input_shape[1]
        self._anchors = _anchors(self._edge_px, anchors)

    def detect(self, rgb: Bytes, max_detections: int) -> list[Detection]:
        """The best detections in an image, uint8 [H, W, 3], the best first."""
        square = Region.square_around(rgb)
        pixels = square.cut(rgb, self._edge_px, border=cv2.BORDER_CONSTANT, rounded=self._rounded)
        batch = np.multiply(pixels, np.float32(2 / 255), dtype=np.float32)[None] - np.float32(1)
        boxes, logits = self._network(batch)
        likely = np.flatnonzero(logits[0, :, 0] >= math.log(MIN_SCORE / (1 - MIN_SCORE)))
        scores = sigmoid(logits[0, likely, 0])
        # Of each detection: centre, size, keypoints.
        centred = boxes[0, likely].reshape(len(likely), boxes.shape[2] // 2, 2) / self._edge_px
        centred[:, [0, *range(2, centred.shape[1])]] += self._anchors[likely, None]
        points = np.concatenate(
            [
                (centred[:, 0] - centred[:, 1] / 2)[:, None],
                (centred[:, 0] + centred[:, 1] / 2)[:, None],
                centred[:, 2:],
            ],
            axis=1,
        )
        return [
            Detection(corners[:2].ravel(), corners[2:])
            for corners in map(square.to_image, _merged(points, scores, max_detections))
        ]


def _anchors(edge_px: int, per_cell: dict[int, int]) -> Floats:
    """Centres [n, 2] of the anchors, x and y in units of the image's edge."""
    centres = []
    for stride, count in per_cell.items():
        y, x = np.mgrid[: edge_px // stride, : edge_px // stride].reshape(2, -1)
        centres.append(np.repeat((np.stack([x, y], 1) + 0.5) * stride / edge_px, count, axis=0))
    return np.concatenate(centres).astype(np.float32)


def _merged(points: Floats, scores: Doubles, max_detections: int) -> list[Floats]:
    """Detections [n, 2 + k, 2] (corners of the box, keypoints) merged where they overlap, the best first.

    Each is the mean of the boxes that overlap its best one, weighted by score.
    """
    merged: list[Floats] = []
    order = np.argsort(-scores, kind="stable")
    while len(order) and len(merged) < max_detections:
        low, high = points[order, 0], points[order, 1]
        shared = np.clip(np.minimum(high, high[0]) - np.maximum(low, low[0]), 0, None).prod(1)
        areas = (high - low).prod(1)
        same = shared / np.maximum(areas + areas[0] - shared, 1e-12) > NMS_OVERLAP
        same[0] = True
        group = order[same]
        weights = (scores[group] / scores[group].sum())[:, None, None]
        merged.append(np.asarray((points[group] * weights).sum(0), np.float32))
        order = order[~same]
    return merged


def sigmoid(logits: Floats) -> Doubles:
    """The logistic function, of an array of any shape."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT).astype(np.float64))))
