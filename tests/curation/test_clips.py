"""Candidates cover every track exactly, and cuts fall into pauses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkforge.curation.clips import Segment, candidates, split_span, union
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


def test_a_split_that_moved_ahead_does_not_make_the_next_part_too_long() -> None:
    # The first split moves from 9 s into the pause at 7 s. The second one is ideal at 18 s, 11 s later.
    assert split_span(0.0, 27.0, [(0.0, 6.9), (7.1, 27.0)], 10.0) == [(0.0, 7.0), (7.0, 17.0), (17.0, 27.0)]


def spoken(start_s: float, lengths_s: list[float]) -> list[Segment]:
    """Speech and pauses by turns, of these lengths."""
    edges_s = start_s + np.cumsum([0.0, *lengths_s])
    return list(zip(edges_s[::2].tolist(), edges_s[1::2].tolist(), strict=False))


SPEECH = st.builds(spoken, st.floats(0, 100), st.lists(st.floats(0.05, 6), max_size=40))


@settings(max_examples=300, deadline=None)
@given(
    start_s=st.floats(0, 5000), length_s=st.floats(0.001, 200), speech=SPEECH, max_s=st.floats(0.2, 60),
)  # fmt: skip
def test_any_span_is_split_into_the_fewest_parts_that_are_short_enough(
    start_s: float, length_s: float, speech: list[Segment], max_s: float
) -> None:
    speech = [(start_s + begin_s, start_s + end_s) for begin_s, end_s in speech]
    end_s = start_s + length_s
    parts = split_span(start_s, end_s, speech, max_s)
    assert (parts[0][0], parts[-1][1]) == (start_s, end_s)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert len(parts) == max(1, np.ceil((end_s - start_s) / max_s - 1e-6))
    equal_s = (end_s - start_s) / len(parts)
    for part_start_s, part_end_s in parts:
        assert 0 < part_end_s - part_start_s <= max_s + 1e-6 * max_s + 1e-9
    pauses = [(a[1] + b[0]) / 2 for a, b in itertools.pairwise(speech)]
    for index, (_, split_s) in enumerate(parts[:-1], 1):
        ideal_s = start_s + (end_s - start_s) * index / len(parts)
        assert abs(split_s - ideal_s) <= equal_s / 4 + 1e-9
        # What leaves the ideal time goes into a pause, or makes room for a part of the greatest length.
        rest_s = max_s * (len(parts) - index)
        assert (
            split_s in pauses
            or split_s == pytest.approx(ideal_s, abs=1e-9)
            or split_s - parts[index - 1][0] == pytest.approx(max_s, abs=1e-9)
            or end_s - split_s == pytest.approx(rest_s, rel=2e-6)
        )


@settings(max_examples=200, deadline=None)
@given(
    spans=st.lists(st.tuples(st.floats(0, 300), st.floats(0.001, 90)), max_size=6),
    speech=SPEECH,
    max_s=st.floats(1, 60),
    fps=st.sampled_from([8.0, 23.976, 25.0, 30.0, 60.0]),
)
def test_every_second_of_any_track_belongs_to_one_candidate(
    spans: list[tuple[float, float]], speech: list[Segment], max_s: float, fps: float
) -> None:
    tracks = [track(start_s, start_s + length_s, n) for n, (start_s, length_s) in enumerate(spans)]
    found = candidates(video(ID), tracks, speech, ClipConfig(max_s=max_s, fps=fps))
    assert len({clip.clip_id for clip, _ in found}) == len(found)
    assert [clip.start_s for clip, _ in found] == sorted(clip.start_s for clip, _ in found)
    for of in tracks:
        clips = [clip for clip, its in found if its is of]
        # Before the first, between two, and after the last there is less than a frame; none overlap.
        ends_s = [of.start_s, *(clip.end_s for clip in clips)]
        starts_s = [*(clip.start_s for clip in clips), of.end_s]
        assert all(-1e-6 <= b - a < 1 / fps for a, b in zip(ends_s, starts_s, strict=True))
        for clip in clips:
            assert 1 <= clip.num_frames <= max_s * fps * (1 + 1e-6) + 1e-6
            assert clip.end_s - clip.start_s == pytest.approx(clip.num_frames / fps, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=12))
def test_the_union_holds_what_any_span_holds_and_nothing_else(drawn: list[tuple[int, int]]) -> None:
    spans = [(float(start), float(start + length)) for start, length in drawn]
    merged = union(spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))

    def holds(among: list[Segment], at: float) -> bool:
        return any(start <= at < end for start, end in among)

    assert all(holds(merged, at / 2) == holds(spans, at / 2) for at in range(-1, 110))


def test_union_merges_overlaps() -> None:
    assert union([(3, 4), (0, 1), (0.5, 2), (2, 2.5)]) == [(0, 2.5), (3, 4)]
    assert union([]) == []
