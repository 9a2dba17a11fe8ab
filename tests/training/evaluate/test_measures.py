"""Measures of one video, on landmarks and pictures of known truth."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from talkforge.curation.body.motion import RIGID_POINTS
from talkforge.schemas.arrays import Landmarks
from talkforge.training.evaluate import measures
from talkforge.training.evaluate.measures import (
    Models,
    VideoTrace,
    identity_values,
    jitter,
    of_pair,
    silence_opening,
    trace_frames,
    with_sound,
)

FPS = 25.0


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load("none")


def face(frames: int) -> np.ndarray:
    """Landmarks [F, 478, 3] that stand still, outer eye corners 100 px apart."""
    points = np.tile(np.random.default_rng(0).uniform(0, 100, (478, 3)), (frames, 1, 1))
    points[:, 33], points[:, 263] = (0, 0, 0), (100, 0, 0)
    return points


def trace_of(points: np.ndarray, **changes: object) -> VideoTrace:
    frames = len(points)
    landmarks = Landmarks(
        points.astype(np.float32), np.zeros((frames, 52), np.float32), np.zeros((frames, 3), np.float32)
    )
    plain = VideoTrace(
        FPS, landmarks, np.zeros((frames, 4), np.float32), np.zeros((0, 0), np.float32), np.zeros(0), {}
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def mouth(openings: np.ndarray) -> np.ndarray:
    """A face whose lips are so far apart, in distances of the outer eye corners."""
    points = face(len(openings))
    points[:, 13] = points[:, 14] = (50, 60, 0)
    points[:, 14, 1] += 100 * openings
    return points


def test_jitter_is_the_error_of_location_and_steady_motion_has_none() -> None:
    still = face(400)
    assert jitter(still) == 0.0
    moving = still + np.arange(400)[:, None, None] * np.array([2.0, 1.0, 0])  # 50 px a second
    assert jitter(moving) == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(1).normal(0, 0.5, (400, len(RIGID_POINTS), 2))
    noisy = moving.copy()
    noisy[:, RIGID_POINTS, :2] += noise
    # 0.5 px in x and in y of 100 px: 0.5 * sqrt(2) / 100 = 7.07 per mille.
    assert jitter(noisy) == pytest.approx(7.07, rel=0.05)


def test_jitter_of_a_face_that_is_hardly_seen_is_not_known() -> None:
    points = face(10)
    points[3:] = np.nan
    assert jitter(points) is None


def test_the_mouth_in_silence_is_measured_away_from_speech() -> None:
    opening = np.full(100, 0.02)
    speaking = np.zeros(100, bool)
    speaking[40:60] = True
    opening[37:63] = 0.3  # it opens 3 frames before the word and closes 3 after
    assert silence_opening(opening, speaking, FPS) == pytest.approx(2.0)
    assert silence_opening(opening, ~np.zeros(100, bool), FPS) is None
    opening[:36] = opening[64:] = np.nan
    assert silence_opening(opening, speaking, FPS) is None


def test_lip_aperture_is_compared_frame_by_frame() -> None:
    wave = 0.1 + 0.05 * np.sin(np.arange(50))
    true = trace_of(mouth(wave))
    assert of_pair(true, true) == {"lip_aperture_r": 1.0, "lip_aperture_ratio": 1.0}
    half = of_pair(trace_of(mouth(0.05 + wave / 2)), true)
    assert half == {"lip_aperture_r": pytest.approx(1.0, abs=1e-4), "lip_aperture_ratio": 0.5}
    assert of_pair(trace_of(mouth(0.3 - wave)), true)["lip_aperture_r"] == pytest.approx(-1.0, abs=1e-4)
    assert of_pair(trace_of(mouth(np.full(50, 0.1))), true) == {
        "lip_aperture_r": 0.0,
        "lip_aperture_ratio": pytest.approx(0, abs=1e-4),
    }
    # A true mouth that never moves tells nothing, and neither does a face that is not found.
    unknown = {"lip_aperture_r": None, "lip_aperture_ratio": None}
    assert of_pair(true, trace_of(mouth(np.full(50, 0.1)))) == unknown
    assert of_pair(trace_of(np.full((50, 478, 3), np.nan)), true) == unknown


def test_identity_leaves_out_the_first_face_and_drifts() -> None:
    angles = np.radians([0, 0, 0, 30, 60, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    trace = trace_of(face(6), identities=vectors, places=np.arange(6) / 6)
    found = identity_values(trace, np.array([1, 0], np.float32))
    # Without the first: 1, 1, 0.866, 0.5, 0.5. Early (before 3/8): 1, 1; late (from 5/8): 0.5, 0.5.
    assert found == {"identity_similarity": pytest.approx(0.7732), "identity_drift": pytest.approx(-0.5)}
    assert identity_values(trace, None) == {"identity_similarity": None, "identity_drift": None}


def test_without_sound_or_a_face_nothing_is_said_of_sync(models: Models) -> None:
    nothing = dict.fromkeys(("sync_probability", "av_delay_ms", "silence_opening", "still_fraction"))
    assert with_sound(trace_of(face(50)), None, models) == nothing
    unseen = trace_of(np.full((50, 478, 3), np.nan))
    assert with_sound(unseen, np.zeros(32_000, np.float32), models) == nothing


def test_a_video_without_a_face_is_measured_as_far_as_it_goes(models: Models) -> None:
    frames = [np.full((64, 80, 3), 90, np.uint8)] * 8
    found = trace_frames(frames, 8, FPS, models)
    assert found.values == {"face_seen_fraction": 0.0, "flow_subject": None, "flow_background": None}
    assert not found.landmarks.seen.any() and len(found.boxes) == 0


def test_flow_is_told_apart_for_subject_and_background(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A textured left half moves by 2 px a frame, and the right half stands still."""
    rng = np.random.default_rng(2)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (192, 300)).astype(np.float32), (0, 0), 2)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    frames = []
    for k in range(6):
        grey = np.concatenate([texture[:, 40 - 2 * k : 136 - 2 * k], texture[:, 150:246]], axis=1)
        frames.append(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))
    left = np.zeros((128, 128), bool)  # at the size at which flow is measured
    left[:, :54] = True  # some px away from the border between the halves
    monkeypatch.setattr(measures, "_person", lambda *_: left)
    values = trace_frames(frames, 6, FPS, models).values
    # 2 px of 192 in 1/25 s are 26.04 % of the height a second.
    assert values["flow_subject"] == pytest.approx(26.04, rel=0.06)
    assert values["flow_background"] is not None and values["flow_background"] < 8
