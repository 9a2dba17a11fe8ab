"""Pose estimation by MediaPipe Pose: a detector and a landmark network that gives 33 points."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.body.joints import JOINTS
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import Bytes, Floats

MIN_JOINT_SCORE = 0.5
"""Least score of a joint that counts as seen. Source: MediaPipe Pose's default confidences."""

REGION_EDGE_PX = 384
"""Longest edge of the region as it is passed to the pose landmarker, whose networks take 224 and 256."""

MAX_POSES = 3

_OTHER_NAMES = {
    "big_toe": "foot_index",
    "thumb2": "thumb",
    "forefinger1": "index",
    "pinky_finger1": "pinky",
}
"""MediaPipe's names of joints that we name differently. Source: MediaPipe's pose landmarks 17 to 22 are
"pinky #1 knuckle", "index #1 knuckle" and "thumb #2 knuckle". 31 and 32, "foot index", are the toe tips."""


def _joint_mapping() -> tuple[list[int], list[int]]:
    """Indices of the joints that MediaPipe gives, and of its 33 points that give them."""
    from mediapipe.tasks.python import vision

    points = {point.name.lower(): int(point) for point in vision.PoseLandmark}
    given = {}
    for joint, name in enumerate(JOINTS):
        side, _, part = name.partition("_")
        theirs = f"{side}_{_OTHER_NAMES[part]}" if part in _OTHER_NAMES else name
        if theirs in points:
            given[joint] = points[theirs]
    return list(given), list(given.values())


class MediaPipePose:
    """MediaPipe's pose landmarker for single frames.

    Args:
        task: the pose bundle, see `curation.weights.registry.pose_task`.

    Raises:
        ModelError: `task` is not the bundle of a pose landmarker.
    """

    min_score = MIN_JOINT_SCORE

    def __init__(self, task: Path) -> None:
        self._detect = load_task("PoseLandmarker", task, num_poses=MAX_POSES)
        self._given, self._points = _joint_mapping()

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """At most `MAX_POSES` poses, see `PoseEstimator`. The score is MediaPipe's visibility."""
        left, top, right, bottom = region
        scale = min(1.0, REGION_EDGE_PX / max(right - left, bottom - top))
        size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
        small = cv2.resize(rgb[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
        found = self._detect(small).pose_landmarks
        poses = np.full((len(found), len(JOINTS), 3), np.nan, np.float32)
        if found:
            points = np.array([[(p.x, p.y, p.visibility) for p in pose] for pose in found], np.float32)
            points[..., :2] *= (right - left, bottom - top)
            points[..., :2] += (left - 0.5, top - 0.5)
            poses[:, self._given] = points[:, self._points]
        return poses
