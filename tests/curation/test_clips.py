"""Candidates cover every track exactly, and cuts fall into pauses."""

from __future__ import annotations

import numpy as np
import pytest

from curation.clips import candidates, split_span, union
from schemas.arrays import FaceTrack
from schemas.config import ClipConfig
from schemas.records import Video


def video(width_px: int = 640, height_px: int = 480) -> Video:
    return Video(
        video_id="0123456789ab", sha256="0123456789ab" + "0" * 52, uri="a.mp4", num_bytes=1, container="mp4",
        video_codec="h264", pixel_format="yuv420p", width_px=width_px, height_px=height_px,
        coded_width_px=width_px, coded_height_px=height_px, rotation_deg=0, sample_aspect_ratio=1.0, fps=25.0,
        fps_nominal=25.0, start_s=0.0, end_s=60.0, audio_start_s=0.0,
    )  # fmt: skip


def track(start_s: float, end_s: float, number: int = 0) -> FaceTrack:
    return FaceTrack(
        scene=0, track=number, start_s=start_s, end_s=end_s, times_s=np.array([start_s]),
        boxes=np.array([[0, 0, 10, 10]], np.float32), scores=np.ones(1, np.float32), detector="x",
    )  # fmt: skip


def test_a_short_track_is_one_clip_with_whole_frames() -> None:
    ((clip, of),) = candidates(video(), [track(1.0, 4.01)], [], ClipConfig())
    assert (clip.num_frames, clip.start_s, clip.end_s, of.track) == (75, 1.0, 4.0, 0)
    assert clip.clip_id == "0123456789ab_00001000_00004000_t0"
    assert (clip.width_px, clip.height_px) == (640, 480)


def test_three_seconds_at_25_fps_are_75_frames_in_spite_of_rounding() -> None:
    ((clip, _),) = candidates(video(), [track(0.1 + 0.2, 3.3)], [], ClipConfig())
    assert clip.num_frames == 75


def test_a_track_shorter_than_a_frame_gives_nothing() -> None:
    assert candidates(video(), [track(1.0, 1.03)], [], ClipConfig()) == []


def test_large_pictures_are_scaled_down_to_even_sizes() -> None:
    ((clip, _),) = candidates(video(1080, 1920), [track(0, 4)], [], ClipConfig(longest_edge_px=1000))
    assert (clip.width_px, clip.height_px) == (562, 1000)


def test_clips_come_in_order_of_start_then_track() -> None:
    tracks = [track(5, 9, 1), track(0, 4, 2), track(0, 4, 0)]
    found = [(clip.start_s, clip.track) for clip, _ in candidates(video(), tracks, [], ClipConfig())]
    assert found == [(0, 0), (0, 2), (5, 1)]


@pytest.mark.parametrize("length_s", [20.0, 20.04, 41.0, 59.9, 3600.0])
def test_parts_cover_the_span_and_none_is_too_long(length_s: float) -> None:
    speech = [(i * 1.7, i * 1.7 + 1.3) for i in range(int(length_s))]
    parts = split_span(0.0, length_s, speech, 20.0)
    assert parts[0][0] == 0.0
    assert parts[-1][1] == length_s
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
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
