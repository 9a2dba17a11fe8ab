"""Motion intensity of face and body: the paper's omega_l and omega_b, before normalisation.

FantasyTalking (section 3.4) takes "the variance of the MediaPipe facial-landmark sequence" and of the DWPose
body-joint sequence. It does not say which other motion is removed before. Our definitions:

* omega_face is the variance over time of the landmarks in the face's own coordinates. Each face is aligned to
  the clip's mean face by a similarity that is fitted to points which no expression moves. So nods, turns,
  steps and zooms do not count. Eyelids and irises are left out, because blinks and gaze are no expression of
  speech. The jitter of the landmarker, estimated from second differences, is subtracted.
* omega_body is the variance over time of the visible upper-body joints in coordinates that are fixed to the
  background. So a panning or zooming camera does not count.

What they are variances of is kept for every frame (`MotionTrace`), so that training can tell the motion
intensity of a span of the clip (`span_variance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.body.joints import JOINTS
from talkforge.curation.body.pose import CameraMotion
from talkforge.schemas.arrays import (
    BODY_MOTION_DIMS,
    FACE_MOTION_DIMS,
    NUM_LANDMARKS,
    Doubles,
    Floats,
    Landmarks,
    expect_shape,
    not_measured,
)
from talkforge.schemas.records import Clip, Motion
from talkforge.schemas.units import seconds_from_frames

MIN_FACE_FRAMES = 12
"""Least number of frames with the face for omega_face, about half a second at 25 fps."""

# fmt: off
RIGID_POINTS = (10, 109, 338, 67, 297, 151, 9, 8, 168, 6, 197, 195, 5, 4, 33, 133, 362, 263)
# fmt: on
"""Landmarks of the forehead, the ridge of the nose and the corners of the eyes. They move with the skull, not
with speech."""

RIGHT_EYE, LEFT_EYE, FOREHEAD, NOSE_BASE = (33, 133), (362, 263), 10, 2
"""Landmarks of the person's eye corners (outer, inner), the top of the forehead and the base of the nose."""

_IRISES = set(range(468, NUM_LANDMARKS))
# fmt: off
EYELIDS = (7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 173, 246,
           249, 263, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466)
# fmt: on
"""Outlines of both eyes. Source: MediaPipe, FaceLandmarksConnections.FACE_LANDMARKS_LEFT_EYE and
FACE_LANDMARKS_RIGHT_EYE."""

EXPRESSION_POINTS = tuple(sorted(set(range(NUM_LANDMARKS)) - _IRISES - set(EYELIDS)))
"""All landmarks but those of eyelids and irises."""

UPPER_BODY = tuple(
    JOINTS.index(f"{side}_{name}")
    for name in ("ear", "shoulder", "elbow", "wrist", "hip")
    for side in ("left", "right")
)
"""Joints of omega_body. Both pose estimators give all of them. Source: ours. Legs are outside of nearly every
talking-head frame."""

EVERY_LANDMARK = 6
"""The face's motion of a frame is that of every sixth of `EXPRESSION_POINTS`. Source: ours, for speed."""

Halves = NDArray[np.float16]


@dataclass(frozen=True)
class MotionTrace:
    """What the motion intensities are variances of, frame by frame.

    Attributes:
        face: float16 [F, 8]. Principal components of the landmarks in the face's own coordinates, in
            inter-ocular distances. The sum of their variances is omega_face but for jitter and for what the
            components leave out. NaN where the face was not seen.
        body: float16 [F, 20]. x and y of the ten joints of `UPPER_BODY`, around their mean over the clip, in
            shoulder widths. NaN where a joint was not measured, and in every frame between measured ones.
    """

    face: Halves
    body: Halves


LEFT_SHOULDER, RIGHT_SHOULDER = JOINTS.index("left_shoulder"), JOINTS.index("right_shoulder")
MIN_BODY_MEASUREMENTS = 4
MIN_JOINT_FRACTION = 0.25
"""A joint counts if it is visible in at least this number and this fraction of the measured frames."""


def face_motion(landmarks: Landmarks) -> tuple[float | None, Halves]:
    """Mean over landmarks of var x + var y, in the face's own coordinates and squared inter-ocular distances.

    Returns:
        The variance, and `MotionTrace.face`. None and NaN where the face was seen in fewer than
        `MIN_FACE_FRAMES` frames.
    """
    seen = landmarks.seen
    if int(seen.sum()) < MIN_FACE_FRAMES:
        return None, not_measured(len(seen), FACE_MOTION_DIMS)
    points = np.full((len(seen), len(EXPRESSION_POINTS), 2), np.nan)
    points[seen] = _in_face_frame(landmarks.points[seen].astype(np.float64))[:, EXPRESSION_POINTS]
    variance = np.nanvar(points, axis=0)
    omega = float(np.maximum(variance - _jitter_variance(points), 0).sum(-1).mean())
    return omega, _components(points[:, ::EVERY_LANDMARK])


def _components(points: Doubles) -> Halves:
    """Largest principal components [F, 8] of points [F, P, 2]; their variances add up to var x + var y."""
    flat = points.reshape(len(points), -1)
    seen = np.isfinite(flat).all(1)
    centred = flat[seen] - flat[seen].mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    largest = axes[:, : -FACE_MOTION_DIMS - 1 : -1]
    # The sign of an axis is arbitrary: its largest number is made positive.
    largest = largest * np.sign(largest[np.abs(largest).argmax(0), np.arange(FACE_MOTION_DIMS)])
    found = not_measured(len(flat), FACE_MOTION_DIMS)
    found[seen] = centred @ largest / np.sqrt(points.shape[1])
    return found


def _jitter_variance(points: Doubles) -> Doubles:
    """Variance [2] of the landmarker's white noise in x and y, that of the median point.

    The second difference x[t - 1] - 2 x[t] + x[t + 1] of white noise of variance s has variance
    (1 + 4 + 1) s = 6 s. Real motion hardly adds to it, because most landmarks lie far from the mouth and move
    slowly. The variance is taken from the median of the squares, which ignores jumps and repeated frames. The
    median of the square of a normal variable is 0.4549 times its variance.
    """
    second = np.diff(points, 2, axis=0)
    squares = second[np.isfinite(second).all((1, 2))] ** 2
    if len(squares) == 0:
        return np.zeros(2)
    return np.asarray(np.median(np.median(squares, axis=0), axis=0) / (6 * 0.4549))


def _in_face_frame(points: Doubles) -> Doubles:
    """Faces [n, 478, 3] with pose and scale removed: [n, 478, 2] in units of the inter-ocular distance.

    x points from the person's right eye to the left eye, y from the forehead to the nose.
    """
    steady = points[:, RIGID_POINTS]
    mean = steady[0]
    # Procrustes analysis: fit every face to the mean, take the mean of the fitted faces, and repeat.
    for _ in range(3):
        scale, rotation, shift = _similarities(steady, mean)
        mean = _moved(steady, scale, rotation, shift).mean(0)
    face = _moved(points, scale, rotation, shift)
    average = face.mean(0)
    eyes = average[list(LEFT_EYE)].mean(0) - average[list(RIGHT_EYE)].mean(0)
    x = eyes / np.linalg.norm(eyes)
    down = average[NOSE_BASE] - average[FOREHEAD]
    y = down - (down @ x) * x  # the part of `down` that is perpendicular to x
    axes = np.stack([x, y / np.linalg.norm(y)], axis=1)
    return np.asarray(face @ axes / np.linalg.norm(eyes))


def _similarities(shapes: Doubles, target: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Scale [n], rotation [n, 3, 3] and shift [n, 3] that fit shapes [n, K, 3] to `target` [K, 3].

    The rotation comes from the singular value decomposition of the covariance between shape and target. The
    sign of its last column excludes reflections. Source: Umeyama, Least-squares estimation of transformation
    parameters (PAMI 1991), eq. 40-42.
    """
    centres, target_centre = shapes.mean(1), target.mean(0)
    centred = shapes - centres[:, None]
    covariance = np.einsum("kc,nkd->ncd", target - target_centre, centred)
    u, singular, v = np.linalg.svd(covariance)
    sign = np.ones_like(singular)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(v))
    rotation = u * sign[:, None, :] @ v
    scale = (singular * sign).sum(1) / (centred**2).sum((1, 2))
    shift = target_centre - scale[:, None] * np.einsum("ncd,nd->nc", rotation, centres)
    return scale, rotation, shift


def _moved(shapes: Doubles, scale: Doubles, rotation: Doubles, shift: Doubles) -> Doubles:
    turned = np.einsum("ncd,nkd->nkc", rotation, shapes)
    return np.asarray(scale[:, None, None] * turned + shift[:, None])


def body_motion(joints: Floats, camera: CameraMotion) -> tuple[float | None, Halves]:
    """Mean over upper-body joints of var x + var y without camera motion, in squared shoulder widths.

    It is the smaller of the motion against the background and the motion in the frame. The first is right
    when the camera pans or zooms. The second is right when the camera travels around a still person, because
    then the background moves by itself.

    Args:
        joints: [F, 65, 3] x, y in clip pixels and score, NaN where not visible.
        camera: motion of the background. Only its frames are used, because only they were measured.

    Returns:
        The variance, and `MotionTrace.body`. None and NaN if the shoulders are visible too rarely, see
        `MIN_JOINT_FRACTION`. The shoulder width is the median over the frames.
    """
    expect_shape("joints", joints, (None, len(JOINTS), 3))
    in_frame = joints[camera.frames, :, :2].astype(np.float64)
    turned = np.einsum("nij,nkj->nki", camera.to_first[:, :, :2], in_frame)
    both = (_upper_body(turned + camera.to_first[:, None, :, 2]), _upper_body(in_frame))
    measured = [(_mean_variance(points), points) for points in both if points is not None]
    trace = not_measured(len(joints), BODY_MOTION_DIMS)
    if not measured:
        return None, trace
    variance, points = min(measured, key=lambda one: one[0])
    trace[camera.frames] = points.reshape(len(points), -1)
    return variance, trace


def _upper_body(points: Doubles) -> Doubles | None:
    """Upper-body joints [n, 10, 2] of joints [n, 65, 2] around their means, in shoulder widths.

    A joint that is visible too rarely is NaN throughout. None where a shoulder is.
    """
    visible = np.isfinite(points[..., 0]).sum(0)
    counts = visible >= max(MIN_BODY_MEASUREMENTS, MIN_JOINT_FRACTION * len(points))
    shoulders = np.linalg.norm(points[:, LEFT_SHOULDER] - points[:, RIGHT_SHOULDER], axis=1)
    shoulders = shoulders[np.isfinite(shoulders)]
    if not (counts[LEFT_SHOULDER] and counts[RIGHT_SHOULDER]) or len(shoulders) < MIN_BODY_MEASUREMENTS:
        return None
    used = counts[list(UPPER_BODY)]
    around = np.full((len(points), len(UPPER_BODY), 2), np.nan)
    seen = points[:, UPPER_BODY][:, used]
    around[:, used] = (seen - np.nanmean(seen, axis=0)) / max(float(np.median(shoulders)), 1.0)
    return around


def _mean_variance(points: Doubles) -> float:
    """Mean over the joints [n, 10, 2] that are there of var x + var y."""
    used = np.isfinite(points).any((0, 2))
    return float(np.nanvar(points[:, used], axis=0).sum(-1).mean())


def span_variance(trace: Halves) -> float | None:
    """Variance of the motion of a clip, or of a span of it, up to a factor that is the same for both.

    What it is of a span over what it is of the clip, times the clip's `omega_face_raw` or `omega_body_raw`,
    is that of the span (docs/training.md says how well).

    Args:
        trace: frames of `MotionTrace.face` or `MotionTrace.body`, [n, 8] or [n, 20].

    Returns:
        None with fewer than `MIN_BODY_MEASUREMENTS` frames that were measured.
    """
    pairs = trace.astype(np.float64).reshape(len(trace), -1, 2)
    used = np.isfinite(pairs).all(2).sum(0) >= MIN_BODY_MEASUREMENTS
    return float(np.nanvar(pairs[:, used], axis=0).sum(-1).mean()) if used.any() else None


def intensity(raw: float | None, quantiles: Sequence[float]) -> float | None:
    """Motion intensity of one variance, see `intensities`; None where there is nothing to compare."""
    return intensities(np.array([np.nan if raw is None else raw], np.float64), quantiles)[0]


def intensities(raw: NDArray[np.float64], quantiles: Sequence[float]) -> list[float | None]:
    """Motion intensities 0 to 1: the ranks of raw variances among the data set's quantiles.

    0.5 is the data set's median. A value equal to several quantiles gets their middle rank, so that
    a data set without differences is all 0.5. None where there is nothing to compare.

    Args:
        raw: variances, NaN where none is known.
        quantiles: of the accepted clips, at even steps from least to largest; may be empty.

    Source: FantasyTalking §3.4 wants [0, 1] and leaves the map open. This one is ours.
    """
    if not quantiles:
        return [None] * len(raw)
    ranks = np.linspace(0, 1, len(quantiles))
    first, last = (np.searchsorted(quantiles, raw, side) for side in ("left", "right"))
    equal = last > first
    found = np.interp(raw, quantiles, ranks)
    found[equal] = (ranks[first[equal]] + ranks[last[equal] - 1]) / 2
    return [None if np.isnan(value) else round(value, 4) for value in found.tolist()]


def camera_speed(camera: CameraMotion, clip: Clip) -> float | None:
    """How fast the background moves through the frame, in widths of the frame per second.

    It is the way of the frame's corners from one measured frame to the next (their root mean square), over
    the clip's width and time. So a pan, a zoom and a shaking hand count alike. None with fewer than two
    measured frames.

    Args:
        camera: motion of the background.
        clip: gives size and rate of the frames.
    """
    if len(camera.frames) < 2:
        return None
    right, bottom = clip.width_px - 1, clip.height_px - 1
    corners = np.array([(0, 0, 1), (right, 0, 1), (0, bottom, 1), (right, bottom, 1)], np.float64)
    square = np.concatenate([camera.to_first, np.tile([[[0.0, 0.0, 1.0]]], (len(camera.frames), 1, 1))], 1)
    steps = np.linalg.inv(square[:-1]) @ square[1:]
    ways = (np.einsum("nij,kj->nki", steps, corners) - corners)[..., :2]
    way_px = np.sqrt((ways**2).sum(-1).mean(-1)).sum()
    elapsed_s = seconds_from_frames(int(camera.frames[-1] - camera.frames[0]), clip.fps)
    return float(way_px / clip.width_px / elapsed_s)


def measure(
    landmarks: Landmarks, joints: Floats, camera: CameraMotion | None, clip: Clip
) -> tuple[Motion, MotionTrace]:
    """Motion of face and body.

    Args:
        landmarks: of the clip's F frames.
        joints: [F, 65, 3] x, y in clip pixels and score.
        camera: motion of the background. None: the body was not measured.
        clip: the clip.
    """
    seen = np.isfinite(joints[:, :, 0]).any(1)
    face_raw, face = face_motion(landmarks)
    body_raw, body = None, not_measured(len(joints), BODY_MOTION_DIMS)
    if camera is not None:
        body_raw, body = body_motion(joints, camera)
    speed = None if camera is None else camera_speed(camera, clip)
    row = Motion(
        omega_face_raw=face_raw,
        omega_body_raw=body_raw,
        joints_valid_fraction=float(seen.mean()),
        camera_motion_per_s=None if speed is None else round(speed, 5),
    )
    return row, MotionTrace(face, body)
