"""Gaze and blinks of made blendshapes, of faces whose irises were moved, and of generated and real heads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
from scipy.signal import find_peaks

from benchmarks.gaze import close_up, first_frame, followed, gaze
from examples.portraits import frame
from examples.speech import speak
from examples.talking_heads import talk
from talkforge.curation.face import eyes
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import BLENDSHAPES, Landmarks
from tests.conftest import RealClip

FPS = 25.0


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker(registry.weights("face_landmarker"))


def landmarks(
    frames: int, angles: tuple[float, float] = (0.0, 0.0), **shapes: float | np.ndarray
) -> Landmarks:
    """Frames with the given blendshapes; all others are 0."""
    blendshapes = np.zeros((frames, 52), np.float32)
    for name, value in shapes.items():
        blendshapes[:, BLENDSHAPES.index(name)] = value
    angles_deg = np.tile(np.array([*angles, 0], np.float32), (frames, 1))
    return Landmarks(np.zeros((frames, 478, 3), np.float32), blendshapes, angles_deg)


# ------------------------------------------------------------------------------ gaze


def test_head_and_eyes_add_up() -> None:
    """Eyes that turn by 20 degrees move their irises by 10.5 mm sin 20, so far in irises of 11.7 mm."""
    irises = eyes.CENTRE_MM * np.sin(np.radians(20)) / eyes.IRIS_MM
    aside, up = irises * eyes.YAW_PER_IRIS, irises * eyes.PITCH_PER_IRIS
    right = landmarks(5, (10, 4), eyeLookOutLeft=aside, eyeLookInRight=aside)
    left = landmarks(5, (10, 4), eyeLookInLeft=aside, eyeLookOutRight=aside)
    high = landmarks(5, (10, 4), eyeLookUpLeft=up, eyeLookUpRight=up)
    low = landmarks(5, (10, 4), eyeLookDownLeft=up, eyeLookDownRight=up)
    for shown, wanted in ((right, (30, 4)), (left, (-10, 4)), (high, (10, 24)), (low, (10, -16))):
        np.testing.assert_allclose(eyes.gaze_deg(shown), np.tile(wanted, (5, 1)), atol=1e-3)


def test_the_gaze_of_closed_eyes_is_not_known() -> None:
    shut = np.array([0.0, 0.0, 0.9, 0.9, 0.0])
    row = eyes.measure(landmarks(5, (40, 0), eyeBlinkLeft=shut, eyeBlinkRight=shut), FPS)
    assert row is not None
    assert (row.gaze_yaw_deg, row.gaze_pitch_deg, row.gaze_camera_fraction) == (40.0, 0.0, 0.0)
    never = eyes.measure(landmarks(5, eyeBlinkLeft=0.9, eyeBlinkRight=0.9), FPS)
    assert never is not None
    assert (never.gaze_yaw_deg, never.gaze_pitch_deg, never.gaze_camera_fraction) == (None, None, None)


def test_a_head_that_is_turned_away_looks_into_the_camera_with_its_eyes() -> None:
    aside = eyes.CENTRE_MM * np.sin(np.radians(20)) / eyes.IRIS_MM * eyes.YAW_PER_IRIS
    shapes = {"eyeLookOutLeft": np.repeat([0.0, aside], 5), "eyeLookInRight": np.repeat([0.0, aside], 5)}
    row = eyes.measure(landmarks(10, (-20, 0), **shapes), FPS)
    assert row is not None and row.gaze_camera_fraction == 0.5


def test_where_no_face_is_seen_there_are_no_eyes() -> None:
    unseen = Landmarks(*(np.full(shape, np.nan, np.float32) for shape in ((9, 478, 3), (9, 52), (9, 3))))
    assert eyes.measure(unseen, FPS) is None
    assert np.isnan(eyes.gaze_deg(unseen)).all()


@pytest.mark.parametrize("name", ["astronaut", "grid_bbaf2n.mpg", "grid_lrwp9a.mpg"])
def test_eyes_that_are_moved_in_the_image_are_followed(
    name: str, landmarker: FaceLandmarker, real_clip: RealClip
) -> None:
    """Up and down less well than to the side: their lids do not go with them here."""
    rgb = (
        skimage.data.astronaut()[:260, 90:350] if name == "astronaut" else first_frame(Path(real_clip(name)))
    )
    found = followed(rgb, landmarker)
    assert found is not None
    assert 0.7 < found[0] < 1.5
    assert 0.5 < found[1] < 1.7


def test_a_speaker_who_faces_the_camera_looks_into_it(
    landmarker: FaceLandmarker, real_clip: RealClip
) -> None:
    shown = close_up(first_frame(Path(real_clip("grid_lrwp9a.mpg"))), landmarker)
    assert shown is not None
    assert np.hypot(*gaze(shown[1])) < eyes.CAMERA_DEG


# ------------------------------------------------------------------------------ blinks


def test_blinks_are_counted_and_closed_eyes_are_none() -> None:
    closed = np.zeros(200)
    for start in (20, 80, 140):
        closed[start : start + 5] = [0.3, 0.7, 0.8, 0.6, 0.2]
    closed[40:70] = 0.8  # asleep for 1.2 s
    closed[100:103] = [0.1, 0.2, 0.1]  # a squint
    given = landmarks(200, eyeBlinkLeft=closed, eyeBlinkRight=closed)
    assert eyes.blinks(given, FPS).tolist() == [22, 82, 142]
    row = eyes.measure(given, FPS)
    assert row is not None and (row.num_blinks, row.blinks_per_min) == (3, 22.5)
    one = landmarks(200, eyeBlinkLeft=closed)  # a wink closes half as much, on average
    assert len(eyes.blinks(one, FPS)) == 3


def seen_in(frames: Iterable[np.ndarray], landmarker: FaceLandmarker) -> Landmarks:
    found = [one for rgb in frames if (one := landmarker.detect(np.ascontiguousarray(rgb)))]
    names = ("points", "blendshapes", "angles_deg")
    return Landmarks(*(np.stack([getattr(one, name) for one in found]) for name in names))


def test_blinks_of_a_speaker_are_those_that_one_sees(landmarker: FaceLandmarker, real_clip: RealClip) -> None:
    with av.open(str(real_clip("grid_id2_swwp2s.mpg"))) as container:
        images = [image.to_ndarray(format="rgb24") for image in container.decode(video=0)]
    seen = seen_in(images, landmarker)
    assert len(seen.points) == 75
    assert eyes.blinks(seen, FPS).tolist() == pytest.approx([28, 44, 72], abs=1)


def test_blinks_of_a_generated_head_are_found_when_they_are(landmarker: FaceLandmarker) -> None:
    take = talk(frame("collins", 320, 320), speak("we went home after the rain", duration_s=8.0), FPS, seed=3)
    seen = seen_in(take.frames(), landmarker)
    assert len(seen.points) == take.num_frames
    shut, _ = find_peaks(take.faces[0].lids, height=0.5)
    assert len(shut) >= 2
    assert eyes.blinks(seen, FPS).tolist() == pytest.approx(shut.tolist(), abs=2)
