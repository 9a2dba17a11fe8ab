from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data

from talkforge.curation.body.joints import JOINTS
from talkforge.curation.body.mediapipe_pose import _FROM, _GIVEN, MAX_POSES, MediaPipePose, _part
from talkforge.curation.body.motion import UPPER_BODY
from talkforge.curation.media import read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.weights import registry
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import Packaged, RealClip

PUBLISHED = {
    0: "nose", 1: "left_eye", 4: "right_ear", 5: "left_shoulder", 10: "right_wrist", 11: "left_hip",
    16: "right_ankle", 17: "left_big_toe", 19: "left_heel", 20: "right_big_toe", 22: "right_heel",
    91: "left_hand_root", 92: "left_thumb1", 96: "left_forefinger1", 100: "left_middle_finger1",
    111: "left_pinky_finger4", 112: "right_hand_root", 120: "right_forefinger4", 132: "right_pinky_finger4",
}  # fmt: skip
"""Some keypoints by their number in COCO-WholeBody, whose numbers 23 to 90 are the face."""


def test_the_joints_are_those_of_coco_wholebody_without_the_face() -> None:
    assert len(JOINTS) == 133 - 68
    without_face = {number if number < 23 else number - 68: name for number, name in PUBLISHED.items()}
    assert {number: JOINTS[number] for number in without_face} == without_face


@pytest.fixture(scope="module")
def model(packaged: Packaged) -> MediaPipePose:
    return MediaPipePose(packaged("pose_detector"), packaged("pose_landmark_full"))


@pytest.fixture(scope="module")
def astronaut(model: MediaPipePose) -> Floats:
    """Joints of a portrait of 512 x 512 px, head to waist, found in a region that starts at (30, 10)."""
    (joints,) = model.detect(skimage.data.astronaut(), (30, 10, 430, 512))
    return joints


def test_each_point_has_its_joint_and_the_others_are_nan(astronaut: Floats) -> None:
    given = {name for name, joint in zip(JOINTS, astronaut, strict=True) if np.isfinite(joint).all()}
    hand = {
        f"{side}_{name}" for side in ("left", "right") for name in ("thumb2", "forefinger1", "pinky_finger1")
    }
    feet = {f"{side}_{name}" for side in ("left", "right") for name in ("big_toe", "heel")}
    assert given == {*JOINTS[:17], *feet, *hand}
    assert set(UPPER_BODY) <= {JOINTS.index(name) for name in given}
    assert np.isnan(astronaut[[name not in given for name in JOINTS]]).all()


def test_a_portrait_has_its_joints_where_they_are(astronaut: Floats) -> None:
    by_eye = {"nose": (219, 124), "left_eye": (245, 108), "right_eye": (201, 103)}
    for name, at in by_eye.items():
        np.testing.assert_allclose(astronaut[JOINTS.index(name), :2], at, atol=8, err_msg=name)
    for name in ("ear", "shoulder", "elbow", "hip"):
        left, right = astronaut[[JOINTS.index(f"left_{name}"), JOINTS.index(f"right_{name}")], 0]
        assert left > right + 60, name


def test_the_joints_are_those_of_mediapipes_own_graph(model: MediaPipePose, real_clip: RealClip) -> None:
    reference = load_task("PoseLandmarker", registry.pose_task(), num_poses=MAX_POSES)
    images = [skimage.data.astronaut()]
    for name in ("ls_demo3.mp4", "grid_bbaf2n.mpg"):
        path = real_clip(name)
        video = probe(path, Input(uri=path.name), content_hash(path))
        images += [frame.rgb(longest_edge_px=384) for frame in list(read_frames(path, video, 0, 2))[::20]]
    apart_px, apart_score = [], []
    for image in images:
        height, width = image.shape[:2]
        ours = model.detect(image, (0, 0, width, height))
        theirs = reference(_part(image, (0, 0, width, height))).pose_landmarks
        assert len(ours) == len(theirs) == 1
        points = np.array([(p.x * width - 0.5, p.y * height - 0.5, p.visibility) for p in theirs[0]])[_FROM]
        apart_px.append(np.abs(ours[0, _GIVEN, :2] - points[:, :2]))
        apart_score.append(np.abs(ours[0, _GIVEN, 2] - points[:, 2]))
    assert np.median(apart_px) < 0.05
    assert np.percentile(apart_px, 99) < 1
    assert np.max(apart_score) < 0.01


def test_a_file_that_is_another_network_is_named(tmp_path: Path, packaged: Packaged) -> None:
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match=r"bad\.tflite: pose detector: is not a TFLite model that runs"):
        MediaPipePose(path, packaged("pose_landmark_full"))
    with pytest.raises(ModelError, match=r"pose landmarks: expected outputs of shapes"):
        MediaPipePose(packaged("pose_detector"), packaged("pose_detector"))
