"""A mouth that moves while there is speech, and one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from talkforge.curation.face import mouth_motion
from talkforge.schemas.arrays import Landmarks

FPS = 25.0
SPEECH = np.ones(100, np.bool_)


def landmarks(gap_px: np.ndarray, scale: float = 1.0, yaw_deg: float = 0.0) -> Landmarks:
    """Faces whose eye corners are 100 px apart and whose lips are `gap_px` apart."""
    points = np.zeros((len(gap_px), 478, 3))
    points[:, mouth_motion.EYE_CORNERS[0]] = (-50, 0, 0)
    points[:, mouth_motion.EYE_CORNERS[1]] = (50, 0, 0)
    points[:, mouth_motion.UPPER_LIP] = (0, 60, 0)
    points[:, mouth_motion.LOWER_LIP, 1] = 60 + gap_px
    turn = np.radians(yaw_deg)
    points = points @ np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    count = len(gap_px)
    shapes, angles = np.zeros((count, 52), np.float32), np.zeros((count, 3), np.float32)
    return Landmarks((scale * points).astype(np.float32), shapes, angles)


def test_the_unit_is_the_eyes_distance_whatever_the_size_and_the_turn() -> None:
    gap = np.array([0.0, 10.0, 20.0])
    for scale, yaw_deg in ((1.0, 0.0), (0.3, 0.0), (1.0, 40.0)):
        opened = mouth_motion.opening(landmarks(gap, scale, yaw_deg))
        assert opened == pytest.approx([0.0, 0.1, 0.2], abs=1e-5)


def test_a_speaking_mouth_is_never_still() -> None:
    opened = 0.1 + 0.05 * np.sin(2 * np.pi * 3 * np.arange(100) / FPS)
    assert mouth_motion.still_fraction(opened, SPEECH, FPS) == 0.0


def test_jitter_of_landmarks_is_no_movement() -> None:
    opened = 0.05 + np.random.default_rng(0).uniform(-0.01, 0.01, 100)
    assert mouth_motion.still_fraction(opened, SPEECH, FPS) == 1.0


def test_only_speech_counts() -> None:
    opened = np.where(np.arange(100) < 50, 0.05, 0.1 + 0.05 * np.sin(np.arange(100)))
    speaking = np.arange(100) >= 50
    assert mouth_motion.still_fraction(opened, speaking, FPS) == 0.0
    assert mouth_motion.still_fraction(opened, ~speaking, FPS) == pytest.approx(38 / 50)


def test_frames_without_a_face_are_left_out() -> None:
    opened = np.full(100, 0.05)
    opened[40:60] = np.nan
    assert mouth_motion.still_fraction(opened, SPEECH, FPS) == 1.0
    opened[:] = np.nan
    assert mouth_motion.still_fraction(opened, SPEECH, FPS) is None


def test_without_speech_there_is_no_answer() -> None:
    assert mouth_motion.still_fraction(np.full(100, 0.05), ~SPEECH, FPS) is None


def test_frames_with_speech_follow_the_spans() -> None:
    speaking = mouth_motion.frames_with_speech([(9.0, 10.2), (10.6, 12.0)], 10.0, 20, 25.0)
    assert np.flatnonzero(speaking).tolist() == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]
