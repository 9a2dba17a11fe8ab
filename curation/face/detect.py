"""Face detection in single frames, and linking of the detections of sparse samples into tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnx
import onnxruntime
from scipy.optimize import linear_sum_assignment

from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Detections, FaceTrack, Floats
from talkforge.schemas.config import Device, ScanConfig
from talkforge.schemas.errors import ModelError, one_line
from talkforge.schemas.records import Scene

NMS_OVERLAP = 0.3
"""A box that overlaps a better one by more than this IoU is the same face. Source: CenterFace's published
demo. Faces of two people side by side overlap less."""

STRIDE_PX = 4
"""Pixels of the frame per cell of CenterFace's maps. Source: arXiv 1911.03599, section 3.1."""

MULTIPLE_PX = 32
"""Stride of CenterFace's deepest features. Both sides of a frame are padded to multiples of it."""

MAX_STEP = 1.0
"""Largest distance that a face moves between two samples, from centre to centre, in face sizes (square root
of the box's area). Source: ours. Speakers who lean or turn move up to 0.5 sizes in 0.5 s."""

MAX_GROWTH = 1.6
"""Largest ratio of a face's sizes in two samples. Source: ours, as above. Zooms are slower."""

MAX_MISSED_SAMPLES = 2
"""Consecutive samples in which a face may be missed without ending its track."""


SCRFD_OUTPUTS = {6: (3, 2), 9: (3, 2), 10: (5, 1), 15: (5, 1)}
"""Number of outputs of SCRFD's models -> their strides (8, 16, ... pixels) and boxes per cell. The
outputs are scores, boxes and, in every second kind, points. Source: InsightFace."""


class FaceDetector(Protocol):
    """Detects the faces in one frame."""

    @property
    def name(self) -> str: ...

    def detect(self, rgb: Bytes) -> tuple[Floats, Floats]:
        """Boxes and scores of the faces in `rgb`, uint8 [H, W, 3], the best first.

        Returns:
            Boxes float32 [n, 4] as x0, y0, x1, y1 in pixels of `rgb`, and scores float32 [n] in 0..1.
        """
        ...


class CenterFace:
    """CenterFace. It gives a heat map of face centres, with a size and an offset in every cell.

    Source: Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point",
    arXiv 1911.03599.
    """

    name = "centerface"

    def __init__(self, path: Path, min_score: float, device: Device = "cpu") -> None:
        self._session = _session(path, self.name, device)
        found = [list(output.shape)[1:2] for output in self._session.get_outputs()][:3]
        if found != [[1], [2], [2]]:
            raise ModelError(f"{self.name}: {path}: expected maps of 1, 2 and 2 channels, found {found}")
        self._input = self._session.get_inputs()[0].name
        self._maps = [output.name for output in self._session.get_outputs()][:3]
        self._min_score = min_score

    def detect(self, rgb: Bytes) -> tuple[Floats, Floats]:
        height_px, width_px = rgb.shape[:2]
        padded = np.pad(rgb, ((0, -height_px % MULTIPLE_PX), (0, -width_px % MULTIPLE_PX), (0, 0)))
        batch = np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32)
        heat, scale, offset = self._session.run(self._maps, {self._input: batch})
        rows, columns = np.nonzero(heat[0, 0] >= self._min_score)
        scores = heat[0, 0, rows, columns]
        size_yx = np.exp(scale[0, :, rows, columns]) * STRIDE_PX
        centre_yx = (np.stack([rows, columns], 1) + offset[0, :, rows, columns] + 0.5) * STRIDE_PX
        corners = np.concatenate([centre_yx - size_yx / 2, centre_yx + size_yx / 2], 1)[:, [1, 0, 3, 2]]
        boxes = np.clip(corners, 0, [width_px, height_px, width_px, height_px]).astype(np.float32)
        return _best(boxes, scores.astype(np.float32), self._min_score)


class Scrfd:
    """SCRFD of InsightFace: in every cell of its maps a score and distances to a box's sides.

    Source: Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", arXiv
    2105.04714; the layout of the outputs and the scaling of the input as in InsightFace.
    """

    name = "scrfd"

    def __init__(self, path: Path, min_score: float, device: Device = "cpu") -> None:
        self._session = _session(path, self.name, device)
        count = len(self._session.get_outputs())
        if count not in SCRFD_OUTPUTS:
            raise ModelError(f"{self.name}: {path}: expected {tuple(SCRFD_OUTPUTS)} outputs, found {count}")
        self._num_strides, self._num_anchors = SCRFD_OUTPUTS[count]
        self._input = self._session.get_inputs()[0].name
        self._min_score = min_score

    def detect(self, rgb: Bytes) -> tuple[Floats, Floats]:
        """See `FaceDetector.detect`."""
        height_px, width_px = rgb.shape[:2]
        padded, scale = _fitted(rgb)
        blob = cv2.dnn.blobFromImage(padded, 1 / 128, mean=(127.5, 127.5, 127.5))
        maps = self._session.run(None, {self._input: blob})
        levels = [self._decoded(maps, level, padded.shape) for level in range(self._num_strides)]
        boxes = np.concatenate([level_boxes / scale for level_boxes, _ in levels])
        scores = np.concatenate([level_scores for _, level_scores in levels])
        order = np.argsort(-scores, kind="stable")
        kept = order[_distinct(boxes[order])]
        clipped = np.clip(boxes[kept], 0, [width_px, height_px, width_px, height_px])
        return clipped.astype(np.float32), scores[kept]

    def _decoded(self, maps: list[Floats], level: int, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        """Boxes [n, 4] and scores [n] of one stride, in pixels of the network's input of this shape."""
        stride_px = 8 * 2**level
        scores = maps[level].reshape(-1)
        sides = maps[level + self._num_strides].reshape(-1, 4) * stride_px
        y, x = np.mgrid[: shape[0] // stride_px, : shape[1] // stride_px].astype(np.float32) * stride_px
        centres = np.repeat(np.stack([x, y], -1).reshape(-1, 2), self._num_anchors, axis=0)
        seen = scores >= self._min_score
        return np.hstack([centres - sides[:, :2], centres + sides[:, 2:]])[seen], scores[seen]


def _fitted(rgb: Bytes) -> tuple[Bytes, float]:
    """The frame in the upper left corner of one whose sides are multiples of `MULTIPLE_PX`, enlarged
    until it touches a far side, and how much it was enlarged."""
    height_px, width_px = rgb.shape[:2]
    out = np.zeros((height_px + -height_px % MULTIPLE_PX, width_px + -width_px % MULTIPLE_PX, 3), np.uint8)
    ratio = height_px / width_px
    if ratio > out.shape[0] / out.shape[1]:
        size = (int(out.shape[0] / ratio), out.shape[0])
    else:
        size = (out.shape[1], int(out.shape[1] * ratio))
    out[: size[1], : size[0]] = cv2.resize(rgb, size)
    return out, size[1] / height_px


def _distinct(boxes: Floats) -> list[int]:
    """Indices of boxes [n, 4], best first, that no better one overlaps by more than `NMS_OVERLAP`. Sides
    count as InsightFace counts them, with both end pixels."""
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    for i, box in enumerate(boxes):
        better = boxes[kept]
        low, high = np.maximum(box[:2], better[:, :2]), np.minimum(box[2:], better[:, 2:])
        shared = np.prod(np.maximum(0, high - low + 1), axis=1)
        if np.all(shared / (areas[i] + areas[kept] - shared) <= NMS_OVERLAP):
            kept.append(i)
    return kept


def load_detector(config: ScanConfig, device: Device = "cpu") -> FaceDetector:
    """The face detector that the configuration names.

    Args:
        config: its name and least score.
        device: `measure.device`.

    Raises:
        ModelError: the weights are missing, altered, or belong to another model; or the device is not there.
    """
    path = registry.weights(config.detector)
    if config.detector == "scrfd":
        return Scrfd(path, config.min_score, device)
    return CenterFace(path, config.min_score, device)


def _session(path: Path, name: str, device: Device) -> onnxruntime.InferenceSession:
    """A session of an ONNX model for frames of any size.

    Raises:
        ModelError: the file is not an ONNX model with one input [any, 3, any, any]. The message is one line.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # the file can hold anything, and fail in any way
        reason = one_line(error)
        raise ModelError(f"{name}: {path}: is not an ONNX model that runs: {reason}") from None
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    # Weights that are listed as inputs are not constants for the runtime. It then cannot fold the batch
    # normalisation into the convolutions, and CenterFace takes 1.5 times as long.
    inputs = [value for value in graph.input if value.name not in constants]
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise ModelError(f"{name}: {path}: expected one input [any, 3, any, any], found {shapes}")
    del graph.input[:]
    graph.input.extend(inputs)
    # The sizes fixed at export (batch 10, 32 x 32) are replaced by free ones.
    for value in [*graph.input, *graph.output]:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if axis != 1:
                dimension.dim_param = f"{value.name}_{axis}"
    return open_onnx(model.SerializeToString(), f"{name}: {path}", device)


def _best(boxes: Floats, scores: Floats, min_score: float) -> tuple[Floats, Floats]:
    """Non-maximum suppression: one box for each face, the best first."""
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(corner_and_size.tolist(), scores.tolist(), min_score, NMS_OVERLAP)
    order = np.asarray(kept, np.intp).reshape(-1)
    return boxes[order], scores[order]


def displacements(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """Distance and change of size between every pair of boxes of two sets.

    Args:
        before: [n, 4] x0, y0, x1, y1.
        after: [m, 4], likewise.

    Returns:
        Distance of the centres, in square roots of the smaller box's area, and ratio of the larger size to
        the smaller. Both are float32 [n, m].
    """
    sizes = [np.sqrt(np.maximum(np.prod(b[:, 2:] - b[:, :2], axis=1), 1.0)) for b in (before, after)]
    centres = [(b[:, :2] + b[:, 2:]) / 2 for b in (before, after)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    smaller = np.minimum(sizes[0][:, None], sizes[1][None])
    larger = np.maximum(sizes[0][:, None], sizes[1][None])
    return (distance / smaller).astype(np.float32), (larger / smaller).astype(np.float32)


@dataclass
class _OpenTrack:
    """A track that is being linked: the samples it was seen in, and its box and score in each."""

    samples: list[int] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, sample: int, detections: Detections, face: int) -> None:
        self.samples.append(sample)
        self.boxes.append(detections.boxes[face])
        self.scores.append(float(detections.scores[face]))


def link(detections: Sequence[Detections], scenes: Sequence[Scene], detector: str) -> tuple[FaceTrack, ...]:
    """Link the faces of sparse samples into tracks, none of which crosses a cut.

    The faces of a sample are assigned to the open tracks by minimum total cost. A face continues a track
    only if it moved by at most `MAX_STEP`, changed its size by at most `MAX_GROWTH`, and was missed in at
    most `MAX_MISSED_SAMPLES` consecutive samples. Every detection belongs to exactly one track, and one
    sample is enough for a track.

    A track that was seen in the first sample of its scene starts with the scene. Otherwise it starts half
    way between its first sample and the sample before. Its end is found in the same way.

    Args:
        detections: faces of the sampled frames, in order of time.
        scenes: the scenes, in order of time.
        detector: name of the detector, kept in each track.

    Returns:
        Tracks, numbered from 0 by their first sample, then from left to right.
    """
    tracks: list[FaceTrack] = []
    for scene in scenes:
        samples = [d for d in detections if scene.start_s <= d.time_s < scene.end_s]
        for track in _link_scene(samples):
            tracks.append(_track(len(tracks), track, samples, scene, detector))
    return tuple(tracks)


def _link_scene(samples: Sequence[Detections]) -> list[_OpenTrack]:
    """Tracks of one scene in order of their first sample, then from left to right."""
    tracks: list[_OpenTrack] = []
    for index, seen in enumerate(samples):
        open_tracks = [t for t in tracks if index - t.samples[-1] <= MAX_MISSED_SAMPLES + 1]
        taken = set()
        for track, face in _assign(open_tracks, seen.boxes):
            open_tracks[track].add(index, seen, face)
            taken.add(face)
        for face in sorted(set(range(len(seen.boxes))) - taken, key=lambda f: tuple(seen.boxes[f])):
            tracks.append(_OpenTrack())
            tracks[-1].add(index, seen, face)
    return tracks


def _assign(tracks: Sequence[_OpenTrack], boxes: Floats) -> list[tuple[int, int]]:
    """Which box continues which track, as pairs of indices (track, box)."""
    if not tracks or not len(boxes):
        return []
    distance, growth = displacements(np.array([t.boxes[-1] for t in tracks], np.float32), boxes)
    allowed = (distance <= MAX_STEP) & (growth <= MAX_GROWTH)
    # Moving by one face size costs as much as growing by a factor of e. A forbidden pair costs more than
    # any number of allowed ones, so the assignment never prefers it.
    cost = np.where(allowed, distance + np.log(growth), 1e3)
    rows, columns = linear_sum_assignment(cost)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


def _track(
    number: int, track: _OpenTrack, samples: Sequence[Detections], scene: Scene, detector: str
) -> FaceTrack:
    first, last = track.samples[0], track.samples[-1]
    start_s, end_s = scene.start_s, scene.end_s
    if first > 0:
        start_s = (samples[first - 1].time_s + samples[first].time_s) / 2
    if last + 1 < len(samples):
        end_s = (samples[last].time_s + samples[last + 1].time_s) / 2
    return FaceTrack(
        scene=scene.index,
        track=number,
        start_s=start_s,
        end_s=end_s,
        times_s=np.array([samples[i].time_s for i in track.samples], np.float64),
        boxes=np.array(track.boxes, np.float32),
        scores=np.array(track.scores, np.float32),
        detector=detector,
    )
