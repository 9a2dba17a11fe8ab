"""A frozen picture is found, a still but living one is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.picture.frozen import FrozenDetector
from talkforge.schemas.records import Input

BOXES = np.tile(np.array([[8, 8, 72, 72]], np.float32), (50, 1))


def noisy(seed: int, deviation: float = 4.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, (80, 80, 3))
    return np.clip(120 + noise, 0, 255).astype(np.uint8)


def frozen(pictures: list[np.ndarray], fps: float = 25.0, shown_frames: int = 1) -> float:
    detector = FrozenDetector(len(pictures) * shown_frames, fps, BOXES)
    for k, rgb in enumerate(pictures):
        detector.push(range(k * shown_frames, (k + 1) * shown_frames), rgb)
    return detector.finish()


def test_noise_of_a_camera_is_no_frozen_picture() -> None:
    assert frozen([noisy(k) for k in range(50)]) == 0.0


def test_the_frozen_stretch_is_counted() -> None:
    assert frozen([noisy(min(k, 30)) for k in range(50)]) == 20 / 50


@pytest.mark.parametrize(("length", "fraction"), [(9, 0.0), (10, 0.2)])
def test_a_stretch_counts_from_0_4_s_on(length: int, fraction: float) -> None:
    assert frozen([noisy(0 if k < length else k) for k in range(50)]) == fraction


def test_frames_repeated_for_a_higher_rate_are_no_stall() -> None:
    assert frozen([noisy(k // 3) for k in range(48)]) == 0.0


def test_one_frame_that_is_shown_for_long_is_a_stall() -> None:
    assert frozen([noisy(k) for k in range(5)], shown_frames=10) == 1.0


def test_only_the_face_counts() -> None:
    pictures = []
    for k in range(50):
        rgb = noisy(k)
        rgb[8:72, 8:72] = 100
        pictures.append(rgb)
    assert frozen(pictures) == 1.0


def test_frames_that_are_missing_end_a_stretch() -> None:
    detector = FrozenDetector(50, 25.0, BOXES)
    for k in [*range(9), *range(20, 29)]:
        detector.push(range(k, k + 1), noisy(0))
    assert detector.finish() == 0.0


def test_a_face_beyond_the_frame_is_measured_by_what_is_left_of_it() -> None:
    detector = FrozenDetector(20, 25.0, np.array([[90.0, 90, 200, 200]]))
    for k in range(20):
        detector.push(range(k, k + 1), noisy(0))
    assert detector.finish() == 1.0


@pytest.mark.parametrize("crf", [18, 32])
def test_a_codec_does_not_hide_a_frozen_picture(crf: int, tmp_path: Path) -> None:
    """Frames that move, then one of them for two seconds, through H.264."""
    rows, columns = np.mgrid[:96, :96]
    still = 6 * 25 // 3

    def picture(k: int) -> np.ndarray:
        wave = 120 + 60 * np.sin((columns + 3 * k) / 9) * np.cos(rows / 7)
        return np.repeat(np.clip(wave, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    path = tmp_path / "frozen.mp4"
    media.encode_mp4(path, (picture(min(k, still)) for k in range(100)), 25.0, None, crf, "veryfast")
    video = probe(path, Input(uri=str(path)), content_hash(path))
    detector = FrozenDetector(100, 25.0, np.array([[0.0, 0, 96, 96]]))
    for frame in media.read_frames(path, video):
        detector.push(media.clip_indices(frame, 0.0, 25.0, 100), frame.rgb(96, 96))
    assert detector.finish() == pytest.approx(0.5, abs=0.03)
