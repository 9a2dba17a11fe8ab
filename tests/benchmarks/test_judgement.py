"""The faults of the benchmark are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.covers import PAINTERS, Mouth, cover
from benchmarks.judgement import FAULTS, Piece
from talkforge.curation.face.lips import OUTER_LIPS

COUNT = 20


def piece(seed: int) -> Piece:
    """Noise of 240x180 with a face of about 110 px in its middle."""
    rng = np.random.default_rng(seed)
    points = np.tile(np.array([120.0, 90.0, 0.0], np.float32), (478, 1))
    points[10, 1], points[152, 1] = 40, 140
    turns = np.linspace(0, 2 * np.pi, len(OUTER_LIPS), endpoint=False)
    points[list(OUTER_LIPS), 0] = 120 - 15 * np.cos(turns)
    points[list(OUTER_LIPS), 1] = 115 - 6 * np.sin(turns)
    frames = [rng.integers(0, 255, (180, 240, 3), dtype=np.uint8) for _ in range(COUNT)]
    sound = rng.normal(0, 0.1, COUNT * 640).astype(np.float32)
    return Piece(f"p{seed}", frames, sound, [points] * COUNT)


ONE, OTHER = piece(1), piece(2)


def made(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    frames, sound = FAULTS[name](ONE, OTHER)
    return list(frames), sound


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_keeps_length_and_kind(name: str) -> None:
    frames, sound = made(name)
    assert (len(frames), len(sound), sound.dtype) == (COUNT, len(ONE.sound), np.float32)
    assert {(frame.dtype, frame.ndim, frame.shape) for frame in frames} == {
        (np.dtype(np.uint8), 3, frames[0].shape)
    }


def test_what_has_no_fault_is_not_changed() -> None:
    frames, sound = made("none")
    assert all(np.array_equal(a, b) for a, b in zip(frames, ONE.frames, strict=True))
    assert np.array_equal(sound, ONE.sound)


def test_pictures_stand_still() -> None:
    frozen, stalled = made("frozen picture")[0], made("picture stalls in the middle")[0]
    assert all(np.array_equal(frame, ONE.frames[0]) for frame in frozen)
    assert [int(np.array_equal(a, b)) for a, b in zip(stalled, ONE.frames, strict=True)] == [1] * 11 + [0] * 9


def test_sound_is_another_persons_or_comes_early() -> None:
    assert np.array_equal(made("voice of another person")[1], OTHER.sound)
    assert np.array_equal(made("sound 200 ms early")[1][:-3200], ONE.sound[3200:])
    assert np.array_equal(made("sound 240 ms early")[1][:-3840], ONE.sound[3840:])


def test_music_is_as_loud_as_the_voice() -> None:
    music = made("music as loud as the voice")[1] / 0.7 - ONE.sound
    assert np.mean(music**2) == pytest.approx(np.mean(ONE.sound**2), rel=0.01)


def test_a_face_is_made_small() -> None:
    frames, _ = made("face small in 4K")
    assert frames[0].shape == (2160, 3840, 3)
    assert ONE.face_px == pytest.approx(110)
    rows = np.flatnonzero((frames[0][:, 1920] != (70, 74, 80)).any(axis=1))
    assert np.ptp(rows) + 1 == pytest.approx(180 * 146 / 110, abs=3)


@pytest.mark.parametrize("kind", PAINTERS)
def test_covers_hide_the_lips_where_they_lie_and_nothing_far_away(kind: str) -> None:
    lips = ONE.points[0][list(OUTER_LIPS), :2]
    mouth, rgb = Mouth(120, 115, 30, lips), np.full((180, 240, 3), 128, np.uint8)
    hidden = [cover(rgb, mouth, kind, np.random.default_rng(seed), 0, 0).hidden for seed in range(12)]
    assert np.mean(hidden) > 0.75
    beside = cover(rgb, mouth, kind, np.random.default_rng(0), 0, -6)
    if kind not in ("fingers", "microphone"):  # whose hands and handles reach far
        assert beside.hidden == 0
