"""The plan covers every second once, and does not depend on anything but the videos."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkforge.pipeline import parts, tables
from talkforge.pipeline.parts import Part, Window, plan, remaining, windows_of
from talkforge.pipeline.store import Store
from tests.records import video


def test_short_videos_share_a_part_until_it_is_full() -> None:
    parts = plan([video(i, 200.0) for i in range(400)], 600.0)
    assert [part.name for part in parts[:2]] == ["000000", "000001"]
    assert [len(part.windows) for part in parts] == [3] * 133 + [1]


def test_a_small_set_is_spread_over_more_parts() -> None:
    parts = plan([video(i, 8.0) for i in range(7)], 600.0)
    assert [len(part.windows) for part in parts] == [2, 2, 2, 1]


def test_what_a_window_is_does_not_depend_on_the_set() -> None:
    (alone,) = plan([video(1, 590.0)], 600.0)
    among = plan([video(1, 590.0), *(video(i, 300.0) for i in range(2, 500))], 600.0)
    assert among[0].windows[0] == alone.windows[0]


@pytest.mark.parametrize("seconds", [0.04, 599.9, 600.0, 600.1, 7200.0])
def test_windows_cover_a_video_exactly(seconds: float) -> None:
    windows = windows_of(video(1, start_s=0.85, end_s=0.85 + seconds), 600.0)
    assert windows[0].start_s == 0.85
    assert windows[-1].end_s == 0.85 + seconds
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(windows))
    assert all(window.duration_s <= 600.0 + 1e-6 for window in windows)


def test_later_parts_are_numbered_after_the_first() -> None:
    assert [part.name for part in plan([video(1, 10.0)], 600.0, first_number=12)] == ["000012"]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan([], 600.0) == []


def test_halves_hold_the_same_windows() -> None:
    (part,) = plan([video(i, 5.0) for i in range(3)], 600.0)
    first, second = part.halves()
    assert first.name != second.name
    assert first.name.startswith("000000-")
    # What a half is called depends on what it holds, and on nothing else.
    assert part.model_copy(update={"windows": part.windows[:2]}).halves()[0].name == first.name
    assert (*first.windows, *second.windows) == part.windows
    assert isinstance(first, Part)
    assert (len(first.windows), len(second.windows)) == (1, 2)


def test_what_no_window_holds_is_planned_and_slivers_are_not() -> None:
    whole = Window(video=video(60), start_s=0, end_s=60)

    def spans(*planned: tuple[float, float]) -> list[tuple[float, float]]:
        windows = [Window(video=whole.video, start_s=a, end_s=b) for a, b in planned]
        return [(piece.start_s, piece.end_s) for piece in parts.uncovered(whole, windows)]

    assert spans() == [(0, 60)]
    assert spans((0, 30), (30, 60)) == spans((0, 59.8)) == []
    assert spans((20, 40)) == [(0, 20), (40, 60)]
    assert spans((0, 20), (40, 60)) == [(20, 40)]


Spans = list[tuple[float, float]]


@st.composite
def footage_drawn(draw: st.DrawFn) -> Window:
    """A span of a video with gaps, whose audio may be missing at either end, or altogether."""
    seconds = draw(st.floats(0.04, 4000))
    inside = st.floats(0, seconds)
    # Gaps of 1 s at least, in order and apart, as a timeline has them.
    edges: list[float] = []
    for at, length in sorted(draw(st.lists(st.tuples(inside, st.floats(1, 300)), max_size=5))):
        if at > (edges[-1] if edges else 0.0) and at + length < seconds:
            edges += [at, at + length]
    audio = sorted((draw(inside), draw(inside)))
    facts = draw(st.sampled_from([
        {"audio_start_s": None}, {"audio_start_s": 0.0}, {"audio_start_s": audio[0]},
        {"audio_start_s": audio[0], "audio_end_s": audio[1]},
    ]))  # fmt: skip
    start_s, end_s = sorted((draw(inside), draw(inside)))
    of = video(1, seconds, gaps_s=tuple(edges), **facts)
    whole = end_s - start_s < 0.04 or draw(st.booleans())
    return Window(video=of, start_s=0.0 if whole else start_s, end_s=seconds if whole else end_s)


def spans_of(windows: list[Window]) -> Spans:
    return [(window.start_s, window.end_s) for window in windows]


def seconds_of(spans: Spans) -> float:
    return sum(end_s - start_s for start_s, end_s in spans)


@settings(max_examples=300, deadline=None)
@given(whole=footage_drawn(), part_s=st.floats(5, 900))
def test_windows_of_any_footage_cover_it_once_and_hold_no_gap(whole: Window, part_s: float) -> None:
    spans = spans_of(windows_of(whole, part_s))
    footage = parts.footage(whole)
    assert (spans[0][0], spans[-1][1]) == (footage[0][0], footage[-1][1])
    assert whole.start_s <= spans[0][0] and spans[-1][1] <= whole.end_s
    assert all(start_s < end_s for start_s, end_s in spans)
    assert all(end_s - start_s <= part_s + 1e-6 for start_s, end_s in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert seconds_of(spans) == pytest.approx(seconds_of(footage), abs=1e-6)
    if footage != [(whole.start_s, whole.end_s)]:  # where there is nothing at all, the span itself is tried
        gaps = whole.video.gaps_s
        for gap in zip(gaps[::2], gaps[1::2], strict=True):
            assert all(end_s <= gap[0] or gap[1] <= start_s for start_s, end_s in spans)
    # The parts of a plan hold the same windows, and none is left over.
    planned = [window for part in plan([whole], part_s) for window in part.windows]
    assert spans_of(planned) == spans
    assert parts.uncovered(whole, planned) == []


@settings(max_examples=300, deadline=None)
@given(whole=footage_drawn(), part_s=st.floats(5, 900), data=st.data())
def test_what_is_planned_and_what_is_not_are_all_of_the_footage(
    whole: Window, part_s: float, data: st.DataObject
) -> None:
    windows = windows_of(whole, part_s)
    planned = [window for window in windows if data.draw(st.booleans())]
    left = parts.uncovered(whole, planned)
    for piece in spans_of(left):
        assert whole.start_s <= piece[0] < piece[1] <= whole.end_s
        assert all(piece[1] <= window.start_s or window.end_s <= piece[0] for window in planned)
    slivers_s = parts.AUDIO_SLACK_S * len(windows)
    missing_s = seconds_of(parts.footage(whole)) - seconds_of(spans_of(planned))
    in_left_s = seconds_of([span for piece in left for span in parts.footage(piece)])
    assert missing_s - slivers_s <= in_left_s <= missing_s + 1e-6
    # Once those are planned as well, nothing is left.
    assert parts.uncovered(whole, [*planned, *(w for piece in left for w in windows_of(piece, part_s))]) == []


@pytest.mark.parametrize("seed", range(60))
def test_however_a_part_is_split_put_off_and_broken_off_each_window_is_measured_once(seed: int) -> None:
    """A random history of runs over one part: splits, windows put off, kills before and after a commit."""
    draw = random.Random(seed)
    store = Store(f"memory://parts-{seed}")
    windows = tuple(Window(video=video(n), start_s=0.0, end_s=4.0) for n in range(draw.randint(1, 6)))
    part = Part(name="000000", windows=windows)
    measured: Counter[str] = Counter()
    for _ in range(100):
        todo = remaining([part], store)
        left = Counter(window.key for piece in todo for window in piece.windows)
        assert left + measured == Counter(window.key for window in windows), todo
        assert not (todo and parts.settled([part.name], store, parts.committed_parts(store)))
        draw.shuffle(todo)
        while todo and draw.random() > 0.15:  # else this run is killed here
            piece = todo.pop()
            if len(piece.windows) > 1 and draw.random() < 0.3:
                todo += piece.halves()
                continue
            put_off = [window for window in piece.windows if draw.random() < 0.3]
            for window in put_off:
                store.write(f"{parts.ATTEMPTS}/{piece.alone(window).name}.json", b"{}")
            kept = tuple(window for window in piece.windows if window not in put_off)
            if not kept or draw.random() < 0.1:
                continue
            assert not store.exists(f"parts/{piece.name}/part.json")
            tables.write(store, f"parts/{piece.name}/windows.parquet", Window, kept)
            store.write(f"parts/{piece.name}/part.json", b"{}")
            measured.update(window.key for window in kept)
        if measured.total() == len(windows):
            break
    assert remaining([part], store) == []


def test_a_part_is_settled_by_its_name_where_it_is_there_whole() -> None:
    store, names = Store("memory://settled"), ["000000", "000001", "000002", "000003"]
    store.write(f"{parts.ATTEMPTS}/000001-ab.json", b"{}")
    committed = ["000000", "000001", "000002-cd"]
    assert parts.settled(names, store, committed) == {"000000"}
