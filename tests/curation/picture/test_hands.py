"""Hands drawn at known places, and a real hand held over a real face."""

from __future__ import annotations

import zipfile

import cv2
import numpy as np
import pytest

from examples.portraits import PORTRAITS, frame
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.media import read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.picture import hands
from talkforge.curation.picture.hands import HandDetector
from talkforge.curation.picture.scorer import covered
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip


@pytest.fixture(scope="module")
def detector() -> HandDetector:
    try:
        return HandDetector(registry.hand_task())
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cut_out(real_clip: RealClip) -> tuple[np.ndarray, np.ndarray]:
    """An open hand before a white shirt, RGB, and where it is: what is redder than cloth."""
    path = real_clip("ls_demo3.mp4")
    video = probe(path, Input(uri=path.name), content_hash(path))
    rgb = next(read_frames(path, video, 4.0, 4.1)).rgb(576, 1024)[498:625, 352:466]
    red = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., 1]
    mask = cv2.morphologyEx((red > 138).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    assert 0.25 < mask.mean() < 0.75
    return rgb, mask


def held(
    rgb: np.ndarray, hand: np.ndarray, mask: np.ndarray, centre: np.ndarray, size_px: float
) -> np.ndarray:
    scale = size_px / max(hand.shape[:2])
    hand = cv2.resize(hand, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(mask.astype(np.float32), hand.shape[1::-1])[..., None]
    x0, y0 = (centre - np.array(hand.shape[1::-1]) / 2).astype(int)
    out = rgb.copy()
    window = out[y0 : y0 + hand.shape[0], x0 : x0 + hand.shape[1]]
    window[:] = alpha * hand + (1 - alpha) * window
    return out


def test_a_hand_is_its_palm_and_its_fingers() -> None:
    points = np.zeros((21, 2), np.float32)
    points[0] = (50, 90)
    for finger, x in enumerate((30, 40, 50, 60, 70)):
        points[1 + 4 * finger : 5 + 4 * finger] = [(x, y) for y in (60, 45, 30, 15)]
    mask = np.zeros((100, 100), np.uint8)
    hands.paint(mask, points)
    assert mask[70, 50] and mask[15, 40] and mask[15, 70]
    assert not mask[5, 50] and not mask[90, 20] and not mask[40, 85]
    assert mask[30, 36:45].all() and not mask[30, 80]  # 0.3 of the 30 px between the outer knuckles


def test_nobody_s_hand_is_near_a_portrait_s_mouth(detector: HandDetector) -> None:
    landmarker = FaceLandmarker(registry.weights("face_landmarker"))
    for name in PORTRAITS:
        rgb = frame(name, 480, 480).picture
        found = landmarker.detect(rgb)
        assert found is not None
        assert detector.detect(rgb, found.points) == []


@pytest.mark.parametrize("name", PORTRAITS)
def test_a_hand_over_the_mouth_covers_it_and_one_beside_it_does_not(
    detector: HandDetector, cut_out: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    head = frame(name, 480, 480)
    found = FaceLandmarker(registry.weights("face_landmarker")).detect(head.picture)
    assert found is not None
    lips = found.points[list(OUTER_LIPS), :2]
    shares = []
    for shift in ((0.0, 0.1), (0.7, 0.1)):
        centre = lips.mean(0) + np.array(shift) * head.face.height_px
        rgb = held(head.picture, *cut_out, centre, 0.8 * head.face.height_px)
        near = detector.detect(rgb, found.points)
        assert len(near) == 1
        mask = np.zeros((480, 480), np.uint8)
        hands.paint(mask, near[0])
        shares.append(covered(mask, lips))
    assert shares[0] > 0.5
    assert shares[1] == 0


def test_a_face_outside_of_the_picture_has_no_hands(detector: HandDetector) -> None:
    points = np.full((478, 3), -500, np.float32)
    points[:240] -= 20
    assert detector.detect(np.zeros((64, 64, 3), np.uint8), points) == []


def test_the_bundle_holds_both_models_as_they_are_and_is_made_once(detector: HandDetector) -> None:
    del detector  # the weights are here
    path = registry.hand_task()
    before = path.stat().st_mtime_ns
    with zipfile.ZipFile(path) as bundle:
        names = bundle.namelist()
        assert names == ["hand_detector.tflite", "hand_landmarks_detector.tflite"]
        for member, name in zip(names, ("palm_detector", "hand_landmark_full"), strict=True):
            assert bundle.getinfo(member).compress_type == zipfile.ZIP_STORED
            assert bundle.read(member) == registry.weights(name).read_bytes()
    assert registry.hand_task().stat().st_mtime_ns == before


def test_another_bundle_is_refused() -> None:
    with pytest.raises(ModelError, match="expected a bundle for HandLandmarker"):
        HandDetector(registry.weights("face_landmarker"))
