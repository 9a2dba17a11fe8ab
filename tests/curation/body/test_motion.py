from __future__ import annotations

import numpy as np
import pytest
from mediapipe.tasks.python import vision
from scipy.spatial.transform import Rotation

from talkforge.curation.body import motion, pose
from talkforge.curation.body.joints import JOINTS, no_joints
from talkforge.schemas.arrays import Floats, Landmarks
from tests.records import clip_of

FPS = 25.0
CLIP = clip_of(num_frames=11, width_px=640, height_px=360, fps=FPS)
EYES_PX = 100.0
LIPS = [i for i in range(11, 109) if i in motion.EXPRESSION_POINTS and i not in motion.RIGID_POINTS]
"""Some points that an expression moves; which ones does not matter here."""


def face(num_frames: int) -> np.ndarray:
    """A face that stands still, [F, 478, 3] in its own axes, eyes EYES_PX apart."""
    points = np.random.default_rng(7).normal(0, 60, (478, 3))
    points[list(motion.RIGHT_EYE)] = [(-60, 0, 0), (-40, 0, 0)]
    points[list(motion.LEFT_EYE)] = [(60, 0, 0), (40, 0, 0)]
    points[motion.FOREHEAD], points[motion.NOSE_BASE] = (0, -70, -10), (0, 60, -10)
    return np.repeat(points[None], num_frames, axis=0)


def filmed(points: np.ndarray, moving_head: bool = True) -> Landmarks:
    """The face in pixels of a picture; the head nods, turns, leans, comes nearer and walks."""
    frames = len(points)
    if moving_head:
        at = np.linspace(0, 2 * np.pi, frames)[:, None]
        turns = Rotation.from_euler("yxz", np.sin(at * [1, 2, 3]) * [30, 15, 10], degrees=True)
        scale = 1 + 0.2 * np.sin(1.5 * at)[:, None]
        points = scale * np.einsum("fij,fkj->fki", turns.as_matrix(), points)
        points = points + np.stack([80 * np.sin(at), 20 * np.cos(at), 0 * at], -1)
    angles = np.zeros((frames, 3), np.float32)
    return Landmarks((points + 300).astype(np.float32), np.zeros((frames, 52), np.float32), angles)


def omega_face(landmarks: Landmarks) -> float | None:
    return motion.face_motion(landmarks)[0]


def omega_body(joints: Floats, camera: pose.CameraMotion) -> float | None:
    return motion.body_motion(joints, camera)[0]


def test_head_pose_and_scale_are_no_expression() -> None:
    assert omega_face(filmed(face(100))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("moving_head", [False, True])
def test_a_known_expression_has_its_variance(moving_head: bool) -> None:
    points = face(100)
    amplitude_px = 6.0
    points[:, LIPS, 1] += amplitude_px * np.sin(2 * np.pi * 2 * np.arange(100) / FPS)[:, None]
    wanted = amplitude_px**2 / 2 / EYES_PX**2 * len(LIPS) / len(motion.EXPRESSION_POINTS)
    assert omega_face(filmed(points, moving_head)) == pytest.approx(wanted, rel=0.01)


def test_the_unit_is_the_distance_of_the_eyes() -> None:
    points = face(50)
    points[:, LIPS, 0] += 5 * np.sin(np.arange(50))[:, None]
    near, far = filmed(points, False), filmed(points / 4, False)
    assert omega_face(near) == pytest.approx(omega_face(far), rel=1e-3)


def test_blinks_and_gaze_are_no_expression() -> None:
    points = face(100)
    still = sorted(set(range(478)) - set(motion.EXPRESSION_POINTS) - set(motion.RIGID_POINTS))
    assert len(still) == 10 + 32 - 4  # irises, and eyelids without their corners
    points[:, still, 1] += np.random.default_rng(0).normal(0, 10, (100, 1))
    assert omega_face(filmed(points)) == pytest.approx(0, abs=1e-9)


def test_jitter_of_the_tracker_is_taken_out() -> None:
    points = face(200)
    noise_px = 1.0
    points += np.random.default_rng(0).normal(0, noise_px, points.shape)
    omega = omega_face(filmed(points, False))
    assert omega is not None
    assert omega < 0.15 * 2 * noise_px**2 / EYES_PX**2


def test_an_expression_is_measured_through_jitter_and_gaps() -> None:
    points = face(200)
    points[:, LIPS, 1] += 6 * np.sin(2 * np.pi * 2 * np.arange(200) / FPS)[:, None]
    clean = omega_face(filmed(points))
    points += np.random.default_rng(0).normal(0, 0.5, points.shape)
    shaken = filmed(points)
    shaken.points[20:35] = shaken.points[90] = np.nan
    assert clean is not None
    assert omega_face(shaken) == pytest.approx(clean, rel=0.1)


def test_half_a_second_of_face_is_needed() -> None:
    landmarks = filmed(face(40))
    landmarks.points[motion.MIN_FACE_FRAMES - 1 :] = np.nan
    assert omega_face(landmarks) is None
    landmarks.points[30] = landmarks.points[0]
    assert omega_face(landmarks) == pytest.approx(0, abs=1e-9)


def body(frames: int) -> Floats:
    """Joints of a person who stands still, shoulders 100 px apart, legs and hips out of sight."""
    joints = no_joints(frames)
    at = {"ear": (20, 100), "shoulder": (50, 200), "elbow": (70, 300)}
    for name, (aside, y) in at.items():
        joints[:, JOINTS.index(f"left_{name}")] = 300 + aside, y, 0.9
        joints[:, JOINTS.index(f"right_{name}")] = 300 - aside, y, 0.9
    return joints


def still_camera(frames: int) -> pose.CameraMotion:
    return pose.CameraMotion(np.arange(frames), np.repeat(np.eye(2, 3)[None], frames, axis=0))


def test_a_still_body_is_still_under_a_pan_and_a_zoom() -> None:
    joints, camera = body(30), still_camera(30)
    for k in range(30):
        zoom = 1 + 0.01 * k
        joints[k, :, :2] = zoom * joints[k, :, :2] + (4 * k, -k)
        inverse = np.array([[1 / zoom, 0, -4 * k / zoom], [0, 1 / zoom, k / zoom]])
        camera.to_first[k] = inverse
    assert omega_body(joints, camera) == pytest.approx(0, abs=1e-8)
    assert (omega_body(joints, still_camera(30)) or 0) > 0.1


def test_a_camera_that_travels_round_a_still_body_adds_nothing() -> None:
    camera = still_camera(30)
    camera.to_first[:, 0, 2] = -5 * np.arange(30)
    assert omega_body(body(30), camera) == pytest.approx(0, abs=1e-8)


def test_a_known_gesture_has_its_variance_among_the_joints_seen() -> None:
    joints = body(40)
    joints[:, JOINTS.index("right_elbow"), 0] += 30 * np.sin(2 * np.pi * np.arange(40) / 20)
    assert omega_body(joints, still_camera(40)) == pytest.approx(30**2 / 2 / 100**2 / 6, rel=1e-3)


def test_without_shoulders_or_frames_there_is_no_body() -> None:
    joints = body(30)
    joints[:28, motion.LEFT_SHOULDER] = np.nan
    assert omega_body(joints, still_camera(30)) is None
    assert omega_body(body(30), pose.CameraMotion(np.arange(3), np.zeros((3, 2, 3)))) is None
    assert omega_body(no_joints(30), still_camera(30)) is None


def test_measure_says_what_is_missing() -> None:
    joints = body(20)
    joints[:5] = np.nan
    row, _ = motion.measure(filmed(face(20)), joints, still_camera(20), CLIP)
    assert row.joints_valid_fraction == pytest.approx(0.75)
    assert row.omega_body_raw == pytest.approx(0, abs=1e-9)
    unmeasured, _ = motion.measure(filmed(face(5)), no_joints(5), None, CLIP)
    assert unmeasured.model_dump() == {
        "omega_face_raw": None,
        "omega_body_raw": None,
        "joints_valid_fraction": 0.0,
        "frozen_fraction": None,
        "mouth_still_fraction": None,
        "camera_motion_per_s": None,
    }


def test_eyelids_are_those_of_mediapipe() -> None:
    sides = vision.FaceLandmarksConnections
    edges = [*sides.FACE_LANDMARKS_LEFT_EYE, *sides.FACE_LANDMARKS_RIGHT_EYE]
    assert sorted(motion.EYELIDS) == sorted({end for edge in edges for end in (edge.start, edge.end)})


# ------------------------------------------------------------------------------ frame by frame


def two_loud_then_quiet() -> Floats:
    """A face [200, 478, 3] whose lips move by 8 px in its first half, and by 2 px in its second."""
    points, at = face(200), np.arange(200)
    size_px = np.where(at < 100, 8.0, 2.0)
    points[:, LIPS, 1] += (size_px * np.sin(2 * np.pi * 2 * at / FPS))[:, None]
    return points


def test_the_motion_of_a_face_tells_the_variance_of_spans() -> None:
    landmarks = filmed(two_loud_then_quiet())
    raw, trace = motion.face_motion(landmarks)
    assert (trace.dtype, trace.shape) == (np.float16, (200, 8))
    whole = motion.span_variance(trace)
    assert raw is not None
    assert whole is not None
    for first, size_px in ((0, 8.0), (100, 2.0)):
        of_span = motion.span_variance(trace[first : first + 100])
        assert of_span is not None
        wanted = size_px**2 / 2 / EYES_PX**2 * len(LIPS) / len(motion.EXPRESSION_POINTS)
        assert raw * of_span / whole == pytest.approx(wanted, rel=0.03)


def test_the_motion_of_a_body_tells_the_variance_of_spans() -> None:
    joints, at = body(80), np.arange(80)
    joints[:, JOINTS.index("right_elbow"), 0] += np.where(at < 40, 30, 6) * np.sin(2 * np.pi * at / 20)
    camera = pose.CameraMotion(at[::5], np.repeat(np.eye(2, 3)[None], 16, axis=0))
    raw, trace = motion.body_motion(joints, camera)
    assert (trace.dtype, trace.shape) == (np.float16, (80, 20))
    assert np.isnan(np.delete(trace, at[::5], axis=0)).all()
    whole, loud, quiet = (motion.span_variance(part) for part in (trace, trace[:40], trace[40:]))
    assert raw == pytest.approx(whole, rel=1e-2)
    assert loud == pytest.approx(30**2 / 2 / 100**2 / 6, rel=0.02)
    assert quiet == pytest.approx(6**2 / 2 / 100**2 / 6, rel=0.02)


def test_what_was_not_seen_has_no_motion() -> None:
    landmarks = filmed(face(30))
    landmarks.points[5:] = np.nan
    raw, trace = motion.face_motion(landmarks)
    assert raw is None
    assert np.isnan(trace).all()
    assert motion.span_variance(trace) is None
    _, moving = motion.face_motion(filmed(two_loud_then_quiet()))
    assert motion.span_variance(moving[:3]) is None
    assert motion.body_motion(no_joints(30), still_camera(30))[0] is None
    assert np.isnan(motion.body_motion(no_joints(30), still_camera(30))[1]).all()


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ([[1, 0, 0], [0, 1, 0]], 0.0),
        ([[1, 0, 4], [0, 1, -3]], 5 / 640 * 25),  # 5 px a frame
        ([[0.99, 0, 0], [0, 0.99, 0]], 0.01 * np.sqrt((639**2 + 359**2) / 2) / 640 * 25),  # about a corner
    ],
)
def test_the_camera_has_its_speed(step: list[list[float]], wanted: float) -> None:
    whole = np.vstack([step, [0, 0, 1]])
    powers = [np.linalg.matrix_power(whole, int(k))[:2] for k in range(0, 11, 5)]
    camera = pose.CameraMotion(np.arange(0, 11, 5), np.array(powers, np.float64))
    # The way between two measured frames is straight, so a zoom's is a little shorter.
    assert motion.camera_speed(camera, CLIP) == pytest.approx(wanted, rel=0.03)


def test_one_frame_has_no_camera_speed() -> None:
    assert motion.camera_speed(still_camera(1), CLIP) is None


@pytest.mark.parametrize(
    ("raw", "quantiles", "expected"),
    [
        (3.0, [1.0, 2.0, 3.0, 4.0, 5.0], 0.5),
        (2.5, [1.0, 2.0, 3.0, 4.0, 5.0], 0.375),
        (0.0, [1.0, 2.0], 0.0),
        (9.0, [1.0, 2.0], 1.0),
        (7.0, [7.0] * 101, 0.5),
        (1.0, [1.0, 1.0, 1.0, 2.0, 3.0], 0.25),
        (None, [1.0, 2.0], None),
        (1.0, [], None),
    ],
)
def test_intensity(raw: float | None, quantiles: list[float], expected: float | None) -> None:
    assert motion.intensity(raw, quantiles) == expected
