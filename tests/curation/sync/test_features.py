"""Inputs of the sync scorer: bands at the frames' instants, measures free of pose, unit power."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from talkforge.curation.sync.features import (
    NUM_BANDS,
    NUM_MEASURES,
    PHONE_SPREAD,
    POWER_FLOOR,
    at_sync_rate,
    audio_bands,
    audio_input,
    mouth_input,
    mouth_measures,
)
from talkforge.schemas.arrays import Floats, Landmarks

RNG_SEED = 7


def test_bands_follow_the_frames_instants() -> None:
    samples = np.zeros(16000 * 2, np.float32)
    click = round(1.2 * 16000)
    samples[click - 80 : click + 80] = 0.5
    for fps in (23.0, 25.0, 30.0):
        bands = audio_bands(samples, int(2 * fps), fps)
        assert bands.shape == (int(2 * fps), NUM_BANDS) and bands.dtype == np.float32
        assert abs(int(bands.sum(axis=1).argmax()) / fps - 1.2) <= 0.5 / fps
    silent = audio_bands(np.zeros(100, np.float32), 10, 25.0)
    assert np.allclose(silent, np.log(POWER_FLOOR)) and silent.shape == (10, NUM_BANDS)


def test_a_tone_lands_in_rising_bands() -> None:
    time = np.arange(16000) / 16000
    best = [
        int(audio_bands(np.sin(2 * np.pi * hz * time).astype(np.float32), 25, 25.0)[12].argmax())
        for hz in (200, 800, 2000, 5000)
    ]
    assert all(a < b for a, b in pairwise(best))


def test_mouth_measures_ignore_size_place_and_turn_of_the_head() -> None:
    rng = np.random.default_rng(RNG_SEED)
    points = rng.normal(size=(5, 478, 3))
    shapes = rng.random((5, 52)).astype(np.float32)
    points[3], shapes[3] = np.nan, np.nan
    angle = 0.7
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])

    def measure(moved: np.ndarray) -> Floats:
        angles = np.zeros((5, 3), np.float32)
        return mouth_measures(Landmarks(moved.astype(np.float32), shapes, angles))

    plain, moved = measure(points), measure(3.5 * points @ turn.T + np.array([100.0, 50.0, 0.0]))
    assert plain.shape == (5, NUM_MEASURES) and np.isnan(plain[3]).all()
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-4)
    expected = np.linalg.norm(points[0, 13] - points[0, 14]) / np.linalg.norm(points[0, 33] - points[0, 263])
    assert plain[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fps", [25.0, 23.976, 29.97, 60.0])
def test_features_at_other_rates_are_taken_at_the_instants_of_25_per_second(fps: float) -> None:
    times = np.arange(int(4 * fps)) / fps
    found = at_sync_rate(np.stack([times, 2 * times], axis=1).astype(np.float32), fps)
    np.testing.assert_allclose(found[:, 0], np.arange(len(found)) / 25.0, atol=1e-5)
    assert abs(len(found) - 100) <= 1


def test_mouth_input_is_motion_and_posture_of_unit_power_without_the_missing_frames() -> None:
    rng = np.random.default_rng(RNG_SEED)
    measures = 5 + 3 * rng.normal(size=(200, NUM_MEASURES)).cumsum(axis=0)
    measures[:, 3] = 0.5
    measures[50:60] = np.nan
    found, seen = mouth_input(measures)
    assert found.shape == (200, 2 * NUM_MEASURES) and seen.sum() == 190 and not found[50:60].any()
    power = np.sqrt((found[seen] ** 2).mean(axis=0))
    constant = [3, NUM_MEASURES + 3]
    assert not power[constant].any()
    np.testing.assert_allclose(np.delete(power, constant), 1.0)
    np.testing.assert_allclose(found[seen][:, NUM_MEASURES:].mean(axis=0), 0.0, atol=1e-12)
    # A speaker whose measures are scaled and moved gives the same input.
    np.testing.assert_allclose(mouth_input(measures * 4 - 2)[0], found, atol=1e-9)


def test_audio_input_ignores_loudness_and_is_nothing_in_silence() -> None:
    bands = np.random.default_rng(RNG_SEED).normal(size=(100, NUM_BANDS))
    found = audio_input(bands)
    assert np.sqrt((found**2).mean()) == pytest.approx(1.0)
    np.testing.assert_allclose(audio_input(bands + 3.0), found, atol=1e-12)
    assert not audio_input(np.full((100, NUM_BANDS), -13.8)).any()
    assert audio_input(bands[:0]).shape == (0, NUM_BANDS)


def test_phones_stand_beside_the_bands_without_their_means() -> None:
    rng = np.random.default_rng(RNG_SEED)
    bands, phones = rng.normal(size=(100, NUM_BANDS)), rng.normal(size=(100, 5))
    found = audio_input(bands, phones)
    np.testing.assert_array_equal(found[:, :NUM_BANDS], audio_input(bands))
    np.testing.assert_allclose(found[:, NUM_BANDS:], (phones - phones.mean(axis=0)) / PHONE_SPREAD)
    assert not audio_input(np.full((100, NUM_BANDS), -13.8), phones).any(), "silence says nothing"
    assert audio_input(bands[:0], phones[:0]).shape == (0, NUM_BANDS + 5)
