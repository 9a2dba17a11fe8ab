"""Body joints of one person and camera motion, measured every few frames of a clip.

Joints are detected in a region around the face, so that they are those of the same person. The camera motion
is that of the background, whose corners are tracked from one measured frame to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.curation.body.dwpose import DwPose
from talkforge.curation.body.joints import HEAD, PoseEstimator, no_joints
from talkforge.curation.body.mediapipe_pose import MediaPipePose
from talkforge.curation.media import longer_edge_px
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Doubles, Floats, expect_shape
from talkforge.schemas.config import Device, MotionConfig
from talkforge.schemas.records import Clip

REACH_SIDE, REACH_UP, REACH_DOWN = 3.0, 1.0, 5.0
"""Region in which the body is detected: its extent to each side of the face's centre, above the face's box
and below it, in units of the box's longer side. Source: ours. An arm is about three faces long."""

HEAD_SHIFT = 0.75
"""A pose belongs to the person if the centre of its head lies within this many face sizes of the face."""

CAMERA_EDGE_PX = 320
"""Longest edge of the grey frames in which the background is tracked."""

MAX_CORNERS, MIN_CORNERS = 200, 12
"""Most background points that are tracked, and the least: with fewer the camera counts as still."""


@dataclass(frozen=True)
class CameraMotion:
    """Motion of the background over the measured frames.

    Attributes:
        frames: int64 [n], indices of the clip's frames.
        to_first: [n, 2, 3], maps pixels of each of these frames to the same background in the first of them.
    """

    frames: NDArray[np.int64]
    to_first: Doubles

    def __post_init__(self) -> None:
        expect_shape("to_first", self.to_first, (len(self.frames), 2, 3))


def load_estimator(config: MotionConfig, device: Device = "cpu") -> PoseEstimator | None:
    """The pose estimator that the configuration names. None where the body is not measured.

    Args:
        config: its name.
        device: `measure.device`, for DWPose. MediaPipe's networks are run by LiteRT, on the CPU.

    Raises:
        ModelError: its weights are missing or belong to another model; or the device is not there.
    """
    if config.body == "mediapipe":
        return MediaPipePose(registry.weights("pose_detector"), registry.weights("pose_landmark_full"))
    return DwPose(registry.weights("dwpose"), device) if config.body == "dwpose" else None


class PoseTracer:
    """Joints of one person through one clip, and the camera's motion, every `stride_frames`."""

    def __init__(self, model: PoseEstimator, clip: Clip, stride_frames: int) -> None:
        self._model = model
        self._clip = clip
        self._stride_frames = stride_frames
        self._joints = no_joints(clip.num_frames)
        self._frames: list[int] = []
        self._to_first: list[Doubles] = []
        self._last: tuple[Bytes, Bytes] | None = None  # grey frame, mask of its background

    def push(self, k: int | range, rgb: Bytes, face_box: Floats) -> None:
        """Measure one decoded frame, if it is due. Frames must come in ascending order.

        Every `stride_frames`-th frame and the last frame of the clip are due.

        Args:
            k: index or indices of the clip's frames that show it.
            rgb: uint8 [clip height, clip width, 3].
            face_box: [4] x0, y0, x1, y1 of the person's face in clip pixels.
        """
        shown = range(k, k + 1) if isinstance(k, int) else k
        last = self._clip.num_frames - 1
        due = [i for i in shown if i % self._stride_frames == 0 or i == last]
        if not due:
            return
        joints = self._find(rgb, face_box)
        to_first = self._camera(rgb, _person_box(joints, face_box))
        self._frames += due
        self._to_first += [to_first] * len(due)
        if joints is not None:
            self._joints[due] = joints

    def finish(self) -> Floats:
        """Joints [F, 65, 3]: x, y in clip pixels and score 0..1, in the order of `curation.body.joints`.

        Frames between two measured ones are interpolated linearly if the joint is visible in both. Elsewhere
        the joints are NaN.
        """
        joints = self._joints.copy()
        for a, b in zip(self._frames, self._frames[1:], strict=False):
            weight = (np.arange(1, b - a) / max(b - a, 1))[:, None, None]
            joints[a + 1 : b] = (1 - weight) * joints[a] + weight * joints[b]
        return joints

    def camera(self) -> CameraMotion:
        """The camera's motion over the measured frames."""
        to_first = np.array(self._to_first, np.float64).reshape(-1, 2, 3)
        return CameraMotion(np.array(self._frames, np.int64), to_first)

    def _find(self, rgb: Bytes, face_box: Floats) -> Floats | None:
        """Joints [65, 3] of the pose whose head lies at the face, NaN where not visible. None without one."""
        region = _region(face_box, rgb.shape[1], rgb.shape[0])
        if region[2] - region[0] < 2 or region[3] - region[1] < 2:
            return None
        poses = self._model.detect(rgb, region)
        if not len(poses):
            return None
        heads = poses[:, HEAD, :2].mean(1)
        distance = np.linalg.norm(heads - (face_box[:2] + face_box[2:]) / 2, axis=1)
        joints = poses[int(distance.argmin())]
        if distance.min() > HEAD_SHIFT * longer_edge_px(face_box):
            return None
        return np.where(joints[:, 2:] >= self._model.min_score, joints, np.float32(np.nan))

    def _camera(self, rgb: Bytes, person: Floats) -> Doubles:
        """The map [2, 3] from this frame to the first measured one."""
        height, width = rgb.shape[:2]
        scale = min(1.0, CAMERA_EDGE_PX / max(height, width))
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        whole = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        grey = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.full(grey.shape, 255, np.uint8)
        x0, y0, x1, y1 = np.clip(np.round(person * scale), 0, [*size, *size]).astype(int)
        mask[y0:y1, x0:x1] = 0
        previous, self._last = self._last, (grey, mask)
        if previous is None:
            return np.eye(2, 3)
        step = _background_motion(*previous, grey, mask)
        step[:, 2] /= scale  # the shift was found in the smaller frame
        return _chain(self._to_first[-1], step)


def _region(face_box: Floats, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Region in which the person's body may be: left, top, right and bottom inside the frame."""
    x0, y0, x1, y1 = (float(v) for v in face_box)
    size, middle = longer_edge_px(face_box), (x0 + x1) / 2
    left, right = middle - REACH_SIDE * size, middle + REACH_SIDE * size
    top, bottom = y0 - REACH_UP * size, y1 + REACH_DOWN * size
    return (
        max(int(left), 0),
        max(int(top), 0),
        min(int(right) + 1, width_px),
        min(int(bottom) + 1, height_px),
    )


def _person_box(joints: Floats | None, face_box: Floats) -> Floats:
    """Box [4] of the head, the trunk below it down to the frame's edge, and the visible joints."""
    x0, y0, x1, y1 = face_box
    size = np.float32(longer_edge_px(face_box))
    boxes = [np.array([x0 - 1.2 * size, y0 - 0.7 * size, x1 + 1.2 * size, y1 + 9 * size])]
    if joints is not None and np.isfinite(joints[:, 0]).any():
        seen = joints[np.isfinite(joints[:, 0]), :2]
        boxes.append(np.concatenate([seen.min(0) - 0.5 * size, seen.max(0) + 0.5 * size]))
    stack = np.stack(boxes)
    return np.concatenate([stack[:, :2].min(0), stack[:, 2:].max(0)]).astype(np.float32)


def _background_motion(old: Bytes, old_mask: Bytes, new: Bytes, new_mask: Bytes) -> Doubles:
    """Similarity [2, 3] from the new frame to the old one, fitted to the background by RANSAC.

    Corners outside of the person are detected in the new frame and tracked back into the old one. If too few
    can be tracked, the result is the identity.
    """
    still = np.eye(2, 3)
    corners = cv2.goodFeaturesToTrack(new, MAX_CORNERS, 0.01, 5, mask=new_mask)
    if corners is None or len(corners) < MIN_CORNERS:
        return still
    moved, status, _ = cv2.calcOpticalFlowPyrLK(new, old, corners, None, winSize=(15, 15), maxLevel=4)
    moved, corners = moved.reshape(-1, 2), corners.reshape(-1, 2)
    x, y = np.round(moved).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < old.shape[1]) & (y < old.shape[0])
    good = (status.ravel() == 1) & inside
    good[good] = old_mask[y[good], x[good]] > 0
    if good.sum() < MIN_CORNERS:
        return still
    fit, inliers = cv2.estimateAffinePartial2D(
        corners[good], moved[good], method=cv2.RANSAC, ransacReprojThreshold=1.0
    )
    if fit is None or inliers.sum() < max(MIN_CORNERS, 0.5 * good.sum()):
        return still
    return np.asarray(fit, np.float64)


def _chain(outer: Doubles, inner: Doubles) -> Doubles:
    """The map [2, 3] that applies `inner`, then `outer`."""
    return np.asarray(outer @ np.vstack([inner, [0, 0, 1]]))
