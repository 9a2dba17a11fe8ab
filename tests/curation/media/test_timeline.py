"""Timelines of packets whose truth is known: what is repaired, and what is left alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkforge.curation.media.timeline import NO_STAMP, Packets, Repairs, Timeline, build

FRAME = 3600
"""Ticks of a frame at 25 frames/s."""

AUDIO = 1920
"""Ticks of 1024 samples at 48 kHz."""

TICK_S = Fraction(1, 90_000)

PYRAMID = (0, 4, 2, 1, 3)
"""Order of display of the first frames of a stream with two layers of B-frames; then in fours."""


def stream(pts: list[int | None], ticks: int = FRAME, keys: tuple[int, ...] = (0,)) -> Packets:
    """Packets with these timestamps."""
    stamps = np.array([NO_STAMP if stamp is None else stamp for stamp in pts])
    count = len(stamps)
    return Packets(
        pts=stamps,
        dts=stamps,
        ticks=np.full(count, ticks),
        size=1000 + np.arange(count),
        keyframe=np.isin(np.arange(count), keys),
        tick_s=TICK_S,
    )


def pyramid(groups: int) -> list[int]:
    """Timestamps of 4 * groups + 1 frames in the order in which they are decoded."""
    frames = [0, *(4 * group + place for group in range(groups) for place in PYRAMID[1:])]
    return [FRAME * frame for frame in frames]


def shown(timeline: Timeline) -> list[int]:
    """Times in ticks in the order of the file; -1 where a frame is not shown."""
    ticks = np.round(np.where(np.isnan(timeline.time_s), -1, timeline.time_s / float(TICK_S)))
    return ticks.astype(int).tolist()


def test_plain_streams_stay_as_they_are() -> None:
    plain = build(stream([FRAME * k for k in range(50)]), None, Fraction(0))
    assert shown(plain) == [FRAME * k for k in range(50)]
    assert (plain.repairs, plain.end_s, plain.breaks_s, plain.audio_shift_s) == (Repairs(), 2.0, (), (0.0,))
    layered = build(stream(pyramid(12)), None, Fraction(0), reorder=2)
    assert (shown(layered), layered.repairs) == (pyramid(12), Repairs())


def test_a_long_reordering_is_no_fault() -> None:
    order = [
        0,
        *(
            16 * group + place
            for group in range(5)
            for place in (16, 8, 4, 2, 1, 3, 6, 5, 7, 12, 10, 9, 11, 14, 13, 15)
        ),
    ]
    stamps = [FRAME * place for place in order]
    assert build(stream(stamps), None, Fraction(0), reorder=4).repairs == Repairs()


@pytest.mark.parametrize("off", (-25, -12, 12, 250, 25_000))
@pytest.mark.parametrize("place", (4, 30, 44))
def test_a_lone_wrong_timestamp_is_put_where_a_frame_is_missing(off: int, place: int) -> None:
    stamps = [FRAME * k for k in range(50)]
    stamps[place] += FRAME * off
    found = build(stream(stamps), None, Fraction(0))
    assert shown(found) == [FRAME * k for k in range(50)]
    assert found.repairs == Repairs(outliers=1)


def test_a_wrong_timestamp_among_b_frames() -> None:
    stamps = pyramid(12)
    stamps[20] += 25 * FRAME
    found = build(stream(stamps), None, Fraction(0), reorder=2)
    assert (shown(found), found.repairs) == (pyramid(12), Repairs(outliers=1))


def test_a_missing_timestamp_is_filled_in() -> None:
    stamps: list[int | None] = [FRAME * k for k in range(50)]
    stamps[7] = stamps[31] = None
    found = build(stream(stamps), None, Fraction(0))
    assert (shown(found), found.repairs.outliers) == ([FRAME * k for k in range(50)], 2)


def test_frames_with_one_timestamp_are_shown_once() -> None:
    stamps = [FRAME * (k - (k > 20)) for k in range(50)]
    found = build(stream(stamps), None, Fraction(0))
    assert (shown(found)[20:23], found.repairs) == ([20 * FRAME, -1, 21 * FRAME], Repairs(repeats=1))


def test_segments_that_overlap_are_shown_once() -> None:
    stamps = [FRAME * k for k in (*range(50), *range(48, 98))]
    found = build(stream(stamps, keys=(0, 50)), None, Fraction(0))
    assert shown(found)[48:54] == [48 * FRAME, 49 * FRAME, -1, -1, 50 * FRAME, 51 * FRAME]
    assert found.repairs == Repairs(repeats=2)


@pytest.mark.parametrize("restart", (0, 90_000_000), ids=("set back", "jump of 1000 s"))
def test_a_clock_that_jumps_in_both_streams_goes_on(restart: int) -> None:
    frames = [FRAME * k for k in range(100)]
    sound = [AUDIO * k for k in range(188)]  # 8.02 frames longer than the video
    video = stream(frames + [restart + f for f in frames], keys=(0, 100))
    audio = stream(sound + [restart + f for f in sound], AUDIO)
    found = build(video, audio, Fraction(0))
    join = 188 * AUDIO
    assert shown(found) == frames + [join + f for f in frames]
    assert found.breaks_s == pytest.approx((join / 90_000,))
    assert found.audio_order == (0, 188)
    assert found.audio_shift_s == pytest.approx((0.0, (join - restart) / 90_000))
    assert found.repairs == Repairs(joins=1)


def test_video_that_stops_while_the_audio_goes_on_is_a_gap() -> None:
    frames = [FRAME * k for k in (*range(75), *range(125, 200))]
    audio = stream([AUDIO * k for k in range(376)], AUDIO)
    found = build(stream(frames), audio, Fraction(0))
    assert shown(found) == frames
    assert found.gaps_s == (pytest.approx((3.0, 5.0)),)
    assert (found.breaks_s, found.repairs) == (pytest.approx((3.0, 5.0)), Repairs(gaps=1))


def test_a_last_packet_far_away_does_not_stretch_the_video() -> None:
    found = build(stream([*(FRAME * k for k in range(50)), 90_000 * 10**9]), None, Fraction(0))
    assert found.end_s == pytest.approx(51 / 25)


def test_containers_without_timestamps_count() -> None:
    found = build(stream([FRAME * (k + 1) for k in range(50)]), None, Fraction(0), reorder=2, ordinal=True)
    assert found.time_s.tolist() == pytest.approx([(k + 1) / 25 for k in range(50)])


def test_where_to_begin_decoding() -> None:
    stamps = [FRAME * k for k in range(50)]
    found = build(stream(stamps, keys=(0, 12, 24, 36)), None, Fraction(0))
    assert [found.key_before(k / 25 + 0.01) for k in (0, 11, 12, 35, 49)] == [0, 0, 12, 24, 36]
    assert found.key_before(-1.0) == 0


@settings(max_examples=60, deadline=None)
@given(
    wrong=st.dictionaries(st.integers(3, 90).map(lambda k: 3 * k), st.integers(10, 500), max_size=6),
    repeats=st.sets(st.integers(10, 280), max_size=6),
)
def test_whatever_is_wrong_times_go_forward_and_sound_frames_keep_theirs(
    wrong: dict[int, int], repeats: set[int]
) -> None:
    numbers = sorted([*range(300), *repeats])
    stamps = [FRAME * number for number in numbers]
    touched = set()
    for place, off in wrong.items():
        stamps[place] += off * FRAME
        touched.add(place)
    found = build(stream(stamps), None, Fraction(0))
    times = found.time_s[~np.isnan(found.time_s)]
    assert (np.diff(np.sort(times)) > 0).all()
    for place, number in enumerate(numbers):
        if place not in touched and not np.isnan(found.time_s[place]):
            assert found.time_s[place] == pytest.approx(number / 25)
