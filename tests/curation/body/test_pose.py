from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from talkforge.curation.body import motion, pose
from talkforge.curation.body.joints import JOINTS, PoseEstimator
from talkforge.curation.body.mediapipe_pose import MediaPipePose
from talkforge.curation.media import clip_indices, clip_size, read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.records import Input
from tests.conftest import Packaged, RealClip
from tests.records import clip_of

FPS = 25.0

Shift = Callable[[int], int]


@pytest.fixture(scope="module")
def model(packaged: Packaged) -> MediaPipePose:
    return MediaPipePose(packaged("pose_detector"), packaged("pose_landmark_full"))


SIDE = 480
FACE = np.array([175, 112, 255, 200], np.float32)
"""Face of the portrait in `studio` with nothing moved."""


def studio(camera_px: int = 0, body_px: int = 0) -> Bytes:
    """A person in front of a wall of texture; the camera and the body shifted to the right."""
    rng = np.random.default_rng(3)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (SIDE, 2 * SIDE, 3)).astype(np.uint8), (0, 0), 2)
    wall = cv2.normalize(wall, None, 0, 255, cv2.NORM_MINMAX)
    person = cv2.resize(skimage.data.astronaut()[:, 90:360], None, fx=0.8, fy=0.8)
    height, width = person.shape[:2]
    left = 100 + body_px + SIDE // 2
    wall[SIDE - height :, left : left + width] = person
    return np.ascontiguousarray(wall[:, SIDE // 2 + camera_px :][:, :SIDE])


def watch(
    model: PoseEstimator, camera_px: Callable[[int], int], body_px: Callable[[int], int]
) -> pose.PoseTracer:
    tracer = pose.PoseTracer(model, clip_of(41, SIDE, SIDE), 5)
    for k in range(41):
        if k % 5 == 0:
            shift = body_px(k) - camera_px(k)
            tracer.push(k, studio(camera_px(k), body_px(k)), FACE + np.float32([shift, 0, shift, 0]))
    return tracer


def nowhere(_: int) -> int:
    return 0


def swing(k: int) -> int:
    return round(30 * np.sin(2 * np.pi * k / 20))


def test_still_pan_and_move_of_a_real_person(model: MediaPipePose) -> None:
    still = watch(model, nowhere, nowhere)
    joints = still.finish()
    assert motion.body_motion(joints, still.camera())[0] == pytest.approx(0, abs=1e-9)
    width = np.linalg.norm(joints[0, motion.LEFT_SHOULDER, :2] - joints[0, motion.RIGHT_SHOULDER, :2])
    pan = watch(model, lambda k: 2 * k - 80, nowhere)
    np.testing.assert_allclose(pan.camera().to_first[-1], [[1, 0, 80], [0, 1, 0]], atol=0.6)
    move = watch(model, nowhere, swing)
    np.testing.assert_allclose(move.camera().to_first[-1], np.eye(2, 3), atol=0.3)
    panned = motion.body_motion(pan.finish(), pan.camera())[0]
    moved = motion.body_motion(move.finish(), move.camera())[0]
    # What is left is the pose network's own error, one of its pixels being four of the picture's.
    assert panned is not None
    assert moved is not None
    assert panned < 0.1 * np.var(2 * np.arange(0, 41, 5)) / width**2
    assert panned < 0.1 * moved
    assert moved == pytest.approx(np.var([swing(k) for k in range(0, 41, 5)]) / width**2, rel=0.15)


def test_joints_are_interpolated_between_strides_and_end_with_the_clip(model: MediaPipePose) -> None:
    tracer = pose.PoseTracer(model, clip_of(9, SIDE, SIDE), 5)
    for k in range(9):
        tracer.push(range(k, k + 1), studio(body_px=4 * k), FACE + np.float32([4 * k, 0, 4 * k, 0]))
    joints = tracer.finish()
    assert joints.shape == (9, 65, 3)
    assert tracer.camera().frames.tolist() == [0, 5, 8]
    nose = joints[:, JOINTS.index("nose")]
    assert np.isfinite(nose).all()
    np.testing.assert_allclose(nose[2], 0.6 * nose[0] + 0.4 * nose[5], rtol=1e-5)
    np.testing.assert_allclose(nose[:, 0] - nose[0, 0], 4 * np.arange(9), atol=4)
    x0, y0, x1, y1 = FACE
    assert x0 < nose[0, 0] < x1
    assert y0 < nose[0, 1] < y1


def test_a_body_whose_head_is_elsewhere_is_not_the_persons(model: MediaPipePose) -> None:
    tracer = pose.PoseTracer(model, clip_of(2, SIDE, SIDE), 1)
    tracer.push(0, studio(), FACE)
    tracer.push(1, studio(), FACE + np.float32([120, 0, 120, 0]))
    joints = tracer.finish()
    assert np.isfinite(joints[0, 0]).all()
    assert np.isnan(joints[1]).all()


def test_each_of_two_people_keeps_their_own_body(model: MediaPipePose) -> None:
    both = np.hstack([studio(), studio(body_px=20)])
    for box, low, high in ((FACE, 0, SIDE), (FACE + np.float32([500, 0, 500, 0]), SIDE, 2 * SIDE)):
        tracer = pose.PoseTracer(model, clip_of(1, 2 * SIDE, SIDE), 5)
        tracer.push(0, both, box)
        x = tracer.finish()[0, :, 0]
        assert ((x[np.isfinite(x)] > low) & (x[np.isfinite(x)] < high)).all()
        assert np.isfinite(x).sum() >= 11


def real_body(path: Path, box: tuple[float, float, float, float], model: PoseEstimator) -> float | None:
    """omega_body of the first three seconds; `box` in clip pixels."""
    video = probe(path, Input(uri=path.name), content_hash(path))
    clip = clip_of(70, *clip_size(video, 1024), start_s=video.start_s)
    tracer = pose.PoseTracer(model, clip, 5)
    for frame in read_frames(path, video, clip.start_s, clip.end_s):
        shown = clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if any(k % 5 == 0 for k in shown):
            tracer.push(shown, frame.rgb(clip.width_px, clip.height_px), np.array(box, np.float32))
    return motion.body_motion(tracer.finish(), tracer.camera())[0]


def test_gestures_stand_out_from_a_still_speaker(real_clip: RealClip, model: MediaPipePose) -> None:
    still = real_body(real_clip("grid_bbaf2n.mpg"), (100, 98, 207, 255), model)
    gesturing = real_body(real_clip("ls_demo3.mp4"), (260, 272, 366, 410), model)
    assert still is not None
    assert gesturing is not None
    assert gesturing > 10 * still
