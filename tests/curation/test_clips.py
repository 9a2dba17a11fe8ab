"""Candidates cover every track exactly, and cuts fall into pauses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from talkforge.curation.clips import candidates, split_span, union
from talkforge.schemas.arrays import FaceTrack
from talkforge.schemas.config import ClipConfig
from tests.records import video

ID = 0x0123456789AB
TALL = video(ID, width_px=1080, height_px=1920)


def track(start_s: float, end_s: float, number: int = 0) -> FaceTrack:
    return FaceTrack(
        scene=0, track=number, start_s=start_s, end_s=end_s, times_s=np.array([start_s]),
        boxes=np.array([[0, 0, 10, 10]], np.float32), scores=np.ones(1, np.float32), detector="x",
    )  # fmt: skip


def test_a_short_track_is_one_clip_with_whole_frames() -> None:
    ((clip, of),) = candidates(video(ID), [track(1.0, 4.01)], [], ClipConfig())
    assert (clip.num_frames, clip.start_s, clip.end_s, of.track) == (75, 1.0, 4.0, 0)
    assert clip.clip_id == "0123456789ab_00001000_00004000_t0"
    assert (clip.width_px, clip.height_px) == (64, 64)


def test_three_seconds_at_25_fps_are_75_frames_in_spite_of_rounding() -> None:
    ((clip, _),) = candidates(video(ID), [track(0.1 + 0.2, 3.3)], [], ClipConfig())
    assert clip.num_frames == 75


def test_a_track_shorter_than_a_frame_gives_nothing() -> None:
    assert candidates(video(ID), [track(1.0, 1.03)], [], ClipConfig()) == []


def test_large_frames_are_scaled_down_to_even_sizes() -> None:
    ((clip, _),) = candidates(TALL, [track(0, 4)], [], ClipConfig(longest_edge_px=1000, crop="none"))
    assert (clip.width_px, clip.height_px) == (562, 1000)


def test_clips_come_in_order_of_start_then_track() -> None:
    tracks = [track(5, 9, 1), track(0, 4, 2), track(0, 4, 0)]
    found = [(clip.start_s, clip.track) for clip, _ in candidates(video(ID), tracks, [], ClipConfig())]
    assert found == [(0, 0), (0, 2), (5, 1)]


@pytest.mark.parametrize("length_s", [20.0, 20.04, 41.0, 59.9, 3600.0])
def test_parts_cover_the_span_and_none_is_too_long(length_s: float) -> None:
    speech = [(i * 1.7, i * 1.7 + 1.3) for i in range(int(length_s))]
    parts = split_span(0.0, length_s, speech, 20.0)
    assert parts[0][0] == 0.0
    assert parts[-1][1] == length_s
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(0 < end - start <= 20.0 + 1e-9 for start, end in parts)
    assert len(parts) == np.ceil(length_s / 20.0)


def test_a_cut_falls_into_the_pause_nearest_to_the_middle() -> None:
    speech = [(0.0, 8.0), (9.0, 14.0), (15.0, 24.0)]
    assert split_span(0.0, 24.0, speech, 20.0) == [(0.0, 14.5), (14.5, 24.0)]


def test_without_a_pause_the_parts_are_equal() -> None:
    assert split_span(0.0, 24.0, [(0.0, 24.0)], 20.0) == [(0.0, 12.0), (12.0, 24.0)]


def test_union_merges_overlaps() -> None:
    assert union([(3, 4), (0, 1), (0.5, 2), (2, 2.5)]) == [(0, 2.5), (3, 4)]
    assert union([]) == []
