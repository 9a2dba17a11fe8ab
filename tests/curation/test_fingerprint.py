"""Hashes of frames and of audio, and what is missing for them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from talkforge.curation import fingerprint
from talkforge.curation.fingerprint import HOP_SAMPLES, FrameHasher, hash_audio, hash_frame
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

BOX = np.array([8, 9, 24, 27], np.float32)


def noise(seed: int, height_px: int = 36, width_px: int = 64) -> np.ndarray:
    """A picture of soft blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_CUBIC)


def test_two_pictures_a_second_are_hashed_each_with_its_face() -> None:
    hasher = FrameHasher(num_frames=51, fps=25.0)
    frames = [noise(k) for k in range(51)]
    for k, rgb in enumerate(frames):
        hasher.push(range(k, k + 1), rgb, BOX + k / 10)
    wanted = (0, 13, 25, 38, 50)
    assert np.array_equal(hasher.hashes, np.stack([hash_frame(frames[k]) for k in wanted]))
    expected = np.stack([(BOX + k / 10) / (64, 36, 64, 36) for k in wanted])
    assert np.allclose(hasher.face_boxes, expected)


def test_a_picture_that_is_shown_long_counts_for_every_time_and_a_missing_one_for_none() -> None:
    hasher = FrameHasher(num_frames=60, fps=25.0)
    hasher.push(range(10, 30), noise(1), BOX)
    assert np.isnan(hasher.face_boxes[:, 0]).tolist() == [True, False, False, True, True]
    assert np.array_equal(hasher.hashes[1], hasher.hashes[2])


def test_a_hash_depends_on_the_picture_and_not_on_its_size() -> None:
    one, larger, other = (hash_frame(p) for p in (noise(1), noise(1, 360, 640), noise(2)))
    assert np.bitwise_count(one ^ larger).sum() <= 4
    assert np.bitwise_count(one ^ other).sum() >= 16


def test_audio_hashes_are_in_order_and_move_with_the_audio() -> None:
    chirps = np.random.default_rng(0).standard_normal(AUDIO_HZ).astype(np.float32)
    here = hash_audio(np.pad(chirps, (AUDIO_HZ // 2, AUDIO_HZ)))
    later = hash_audio(np.pad(chirps, (AUDIO_HZ // 2 + 100 * HOP_SAMPLES, AUDIO_HZ)))
    assert (np.diff(here) > 0).all()
    moved = np.isin(here + np.uint64(100 << fingerprint.HASH_BITS), later)
    assert moved.mean() > 0.9


def test_audio_hashes_are_those_of_audfprint() -> None:
    noise = (np.random.default_rng(0).integers(-(2**15), 2**15, AUDIO_HZ) / 2**15).astype(np.float32)
    found = hash_audio(noise)
    # Of audfprint2 0.1.2 with a density of 100 and hops of 64: its first four and last two, as time, first
    # bin, difference of bins (of 64) and hops between.
    first = [(4, 140, 21, 5), (4, 140, 35, 18), (4, 140, 36, 20), (5, 74, 0, 18)]
    last = [(246, 135, 27, 4), (246, 220, 44, 4)]
    assert len(found) == 541
    ends = [*found[:4].tolist(), *found[-2:].tolist()]
    assert [(h >> 20, h >> 12 & 255, h >> 6 & 63, h & 63) for h in ends] == first + last


@pytest.mark.parametrize(
    ("hop", "bin_", "paired"),
    [(1, 100, False), (2, 100, True), (62, 100, True), (63, 100, False), (9, 130, True), (9, 131, False)],
)
def test_a_peak_is_paired_with_those_in_reach(hop: int, bin_: int, paired: bool) -> None:
    first, second = fingerprint._pairs(np.array([0, hop]), np.array([100, bin_]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1)] * paired


def test_a_peak_is_paired_with_the_next_three() -> None:
    first, second = fingerprint._pairs(np.array([0, 2, 2, 5, 6]), np.full(5, 7))
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (1, 4), (2, 3), (2, 4)]


@pytest.mark.parametrize(
    "samples", [np.zeros(48_000), np.zeros(0), np.ones(100)], ids=["silent", "none", "short"]
)
def test_silence_and_less_than_half_a_second_have_no_hashes(samples: np.ndarray) -> None:
    found = hash_audio(samples.astype(np.float32))
    assert found.dtype == np.uint64 and len(found) == 0


def test_the_other_build_of_opencv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "img_hash")
    with pytest.raises(ModelError, match=r"cv2\.img_hash is missing: opencv-python lies over"):
        fingerprint.check_installed()
