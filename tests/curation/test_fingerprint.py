"""Hashes of pictures, landmarks of sound, and what is missing for them."""

from __future__ import annotations

import logging

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


def test_landmarks_are_in_order_and_move_with_the_sound() -> None:
    chirps = np.random.default_rng(0).standard_normal(AUDIO_HZ).astype(np.float32)
    here = hash_audio(np.pad(chirps, (AUDIO_HZ // 2, AUDIO_HZ)))
    later = hash_audio(np.pad(chirps, (AUDIO_HZ // 2 + 100 * HOP_SAMPLES, AUDIO_HZ)))
    assert (np.diff(here) > 0).all()
    moved = np.isin(here + np.uint64(100 << fingerprint.HASH_BITS), later)
    assert moved.mean() > 0.9


@pytest.mark.parametrize(
    "samples", [np.zeros(48_000), np.zeros(0), np.ones(100)], ids=["silent", "none", "short"]
)
def test_without_sound_there_are_no_landmarks(samples: np.ndarray) -> None:
    found = hash_audio(samples.astype(np.float32))
    assert found.dtype == np.uint64 and len(found) == 0


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The package is imported again by the next call."""
    fingerprint._analysis.cache_clear()
    return monkeypatch


def test_without_the_package_the_message_names_it(anew: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ImportError("No module named 'audfprint2'")

    anew.setattr(fingerprint.importlib, "import_module", absent)
    with pytest.raises(ModelError, match=r"duplicates: the package audfprint2==0\.1\.2 is not installed"):
        fingerprint.check_installed()


def test_the_other_build_of_opencv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "img_hash")
    with pytest.raises(ModelError, match=r"cv2\.img_hash is missing: opencv-python lies over"):
        fingerprint.check_installed()


def test_the_import_changes_nobodys_log(anew: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    anew.setattr(root, "handlers", [])
    anew.setattr(fingerprint.importlib, "import_module", lambda _: logging.basicConfig(level=logging.INFO))
    level = root.level
    fingerprint._analysis()
    fingerprint._analysis.cache_clear()
    assert (root.level, root.handlers) == (level, [])
