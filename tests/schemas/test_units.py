"""Clocks: exact counts, half-up rounding, and conversions that undo each other."""

from __future__ import annotations

import pytest

from talkforge.schemas import units


@pytest.mark.parametrize(
    ("frames", "fps", "samples", "features"),
    [
        (0, 25.0, 0, 0),
        (1, 25.0, 640, 2),
        (75, 25.0, 48_000, 150),
        (500, 25.0, 320_000, 1000),
        (81, 23.0, 56_348, 176),  # 56347.83 and 176.09
        (23, 23.0, 16_000, 50),
        (1, 30.0, 533, 2),  # 533.33 and 1.67
        (100, 30_000 / 1001, 53_387, 167),  # 53386.67 and 166.83
        (1, 60.0, 267, 1),  # 266.67 and 0.83
        (1, 100.0, 160, 1),  # 0.5 of a feature: half up
        (5, 100.0, 800, 3),  # 2.5: half up, where banker's rounding would say 2
    ],
)
def test_samples_and_features_under_frames(frames: int, fps: float, samples: int, features: int) -> None:
    assert units.samples_from_frames(frames, fps) == samples
    assert units.features_from_frames(frames, fps) == features


@pytest.mark.parametrize(
    ("duration_s", "fps", "frames"),
    [
        (0.0, 25.0, 0),
        (3.0, 25.0, 75),
        (2.999, 25.0, 74),
        (0.1 + 0.2, 10.0, 3),
        (0.3 - 1e-9, 10.0, 3),
        (1 / 3, 3.0, 1),
    ],
)
def test_whole_frames_in_a_duration(duration_s: float, fps: float, frames: int) -> None:
    assert units.frames_from_seconds(duration_s, fps) == frames


@pytest.mark.parametrize(
    ("duration_s", "frames"),
    [(-1.0, 0), (0.0, 0), (1e-9, 0), (0.01, 1), (0.04, 1), (0.041, 2), (0.1 + 0.2 - 0.1, 5), (0.24, 6)],
)
def test_frames_that_cover_a_duration(duration_s: float, frames: int) -> None:
    assert units.covering_frames(duration_s, 25.0) == frames


@pytest.mark.parametrize("fps", [8.0, 23.0, 23.976, 24.0, 25.0, 29.97, 30_000 / 1001, 50.0, 60.0])
def test_frames_to_seconds_and_back(fps: float) -> None:
    for frames in range(0, 3000, 7):
        assert units.frames_from_seconds(units.seconds_from_frames(frames, fps), fps) == frames


def test_samples_and_seconds() -> None:
    assert units.samples_from_seconds(1.5) == 24_000
    assert units.seconds_from_samples(24_000) == 1.5
    assert units.samples_from_seconds(0.5 / 16_000) == 1
    assert units.samples_from_seconds(-0.5 / 16_000) == 0
    assert all(units.samples_from_seconds(units.seconds_from_samples(n)) == n for n in range(0, 10**6, 997))


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 0), (1.0004, 1000), (1.0005, 1001), (83.12, 83_120)])
def test_milliseconds(seconds: float, expected: int) -> None:
    assert units.milliseconds(seconds) == expected


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (81, 21), (121, 31)])
def test_latent_frames(frames: int, latents: int) -> None:
    assert units.latent_frames(frames) == latents


@pytest.mark.parametrize("frames", [-3, 0, 2, 3, 4, 80, 82])
def test_a_causal_codec_refuses_other_counts(frames: int) -> None:
    with pytest.raises(ValueError, match=rf"^a causal codec takes 4n \+ 1 frames, not {frames}$"):
        units.latent_frames(frames)


@pytest.mark.parametrize("fps", (23.0, 25.0, 29.97))
def test_span_features_lie_where_their_frames_do(fps: float) -> None:
    clip_frames, num_frames = 200, 81
    total = units.features_from_frames(clip_frames, fps)
    for first in range(clip_frames - num_frames + 1):
        span = units.span_features(first, num_frames, clip_frames, fps)
        assert span.stop - span.start == units.features_from_frames(num_frames, fps)
        assert span.start >= 0 and span.stop <= total
        assert abs(span.start / 50 - first / fps) <= 0.5 / 50 + 1e-9 or span.stop == total
        assert abs(span.start / 50 - first / fps) <= 1 / 50
