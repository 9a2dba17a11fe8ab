"""Pose estimation by MediaPipe Pose: a detector and a landmark network that gives 33 points."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.body.joints import JOINTS
from talkforge.curation.weights.blaze import (
    MIN_SCORE,
    BlazeDetector,
    Detection,
    Region,
    TfliteNetwork,
    sigmoid,
)
from talkforge.schemas.arrays import Bytes, Floats

MIN_JOINT_SCORE = 0.5
"""Least score of a joint that counts as seen. Source: MediaPipe Pose's default confidences."""

REGION_EDGE_PX = 384
"""Longest edge of the region in which people are looked for. The networks take 224 and 256."""

MAX_POSES = 3

LANDMARKS_PX = 256
"""Edge of the square that the landmark network sees."""

SQUARE_MARGIN = 1.25
"""Side of that square, in units of twice the way from the hips to the point that gives the body's size.
Source: MediaPipe, pose_detector_graph.cc."""

HEAT_CELLS = 64
HEAT_REACH_CELLS = 3
"""Edge of the heat maps, and how far around a point they are averaged. Source: MediaPipe,
pose_landmarks_detector_graph.cc (a kernel of 7)."""

_NUM_POINTS = 39
"""Points of the network: 33 of the body and six that are not used."""

_POINTS = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye",
    "right_eye_outer", "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_pinky_finger1",
    "right_pinky_finger1", "left_forefinger1", "right_forefinger1", "left_thumb2", "right_thumb2",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel",
    "right_heel", "left_big_toe", "right_big_toe",
)  # fmt: skip
"""MediaPipe's 33 points, those that are joints of ours by our names. Source: MediaPipe's pose landmarks 17 to
22 are "pinky #1 knuckle", "index #1 knuckle" and "thumb #2 knuckle". 31 and 32, "foot index", are the toe
tips."""

_GIVEN = [joint for joint, name in enumerate(JOINTS) if name in _POINTS]
_FROM = [_POINTS.index(JOINTS[joint]) for joint in _GIVEN]


class MediaPipePose:
    """MediaPipe's pose landmarker for single frames.

    Args:
        detector: file of the network that detects people.
        landmarks: file of the network that finds the points of one.

    Raises:
        ModelError: one of them is another file.
    """

    min_score = MIN_JOINT_SCORE

    def __init__(self, detector: Path, landmarks: Path) -> None:
        self._detector = BlazeDetector(
            TfliteNetwork(detector.read_bytes(), f"{detector}: pose detector", ((1, 2254, 12), (1, 2254, 1))),
            {8: 2, 16: 2, 32: 6},
            rounded=True,
        )
        shapes = ((1, 5 * _NUM_POINTS), (1, 1), (1, HEAT_CELLS, HEAT_CELLS, _NUM_POINTS))
        self._landmarks = TfliteNetwork(landmarks.read_bytes(), f"{landmarks}: pose landmarks", shapes)

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """At most `MAX_POSES` poses, see `PoseEstimator`. The score is MediaPipe's visibility."""
        image = _part(rgb, region)
        people = self._detector.detect(image, MAX_POSES)
        found = [points for one in people if (points := self._points(image, _square(one))) is not None]
        poses = np.full((len(found), len(JOINTS), 3), np.nan, np.float32)
        if found:
            left, top, right, bottom = region
            points = np.stack(found)
            points[..., :2] *= ((right - left) / image.shape[1], (bottom - top) / image.shape[0])
            points[..., :2] += (left - 0.5, top - 0.5)
            poses[:, _GIVEN] = points
        return poses

    def _points(self, image: Bytes, square: Region) -> Floats | None:
        """Points [27, 3] of a person, in the order of `_GIVEN`: x, y from the image's edge, visibility."""
        pixels = square.cut(image, LANDMARKS_PX, border=cv2.BORDER_REPLICATE, rounded=True)
        batch = np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)[None]
        raw, presence, heat = self._landmarks(batch)
        if presence.item() < MIN_SCORE:  # a probability, unlike that of the face
            return None
        points = raw.reshape(_NUM_POINTS, 5)[_FROM]
        at = _refined(points[:, :2] / np.float32(LANDMARKS_PX), heat[0][..., _FROM])
        return np.concatenate([square.to_image(at), sigmoid(points[:, 3:4]).astype(np.float32)], axis=1)


def _square(person: Detection) -> Region:
    """What the landmark network sees of a person: around the hips, upright with the body."""
    (x, y), (up_x, up_y) = person.keypoints[:2].tolist()
    side = SQUARE_MARGIN * 2 * math.hypot(up_x - x, up_y - y)
    return Region(x, y, side, side, math.pi / 2 - math.atan2(y - up_y, up_x - x))


def _part(rgb: Bytes, region: tuple[int, int, int, int]) -> Bytes:
    """The region, scaled down to `REGION_EDGE_PX` where it is larger."""
    left, top, right, bottom = region
    scale = min(1.0, REGION_EDGE_PX / max(right - left, bottom - top))
    size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    return np.asarray(cv2.resize(rgb[top:bottom, left:right], size, interpolation=cv2.INTER_AREA), np.uint8)


def _refined(points: Floats, heat: Floats) -> Floats:
    """Points [n, 2] moved to the centre of their heat, where there is any.

    Args:
        points: x and y in units of the map's edge.
        heat: logits [64, 64, n].

    Source: MediaPipe, refine_landmarks_from_heatmap_calculator.cc.
    """
    refined = points.copy()
    for i, (column, row) in enumerate((points * HEAT_CELLS).astype(int).tolist()):
        if not (0 <= column < HEAT_CELLS and 0 <= row < HEAT_CELLS):
            continue
        top, left = max(row - HEAT_REACH_CELLS, 0), max(column - HEAT_REACH_CELLS, 0)
        near = heat[top : row + HEAT_REACH_CELLS + 1, left : column + HEAT_REACH_CELLS + 1, i]
        weights = sigmoid(near)
        if weights.max() < MIN_SCORE:
            continue
        by_row, by_column = weights.sum(1), weights.sum(0)
        x = left + (by_column * np.arange(len(by_column))).sum() / by_column.sum()
        y = top + (by_row * np.arange(len(by_row))).sum() / by_row.sum()
        refined[i] = x / HEAT_CELLS, y / HEAT_CELLS
    return refined
