"""Inputs as columns give what inputs as objects, one by one, give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from talkforge.pipeline import parts, tables
from talkforge.pipeline.dataset import extend_plan, load_ingested, load_plan
from talkforge.pipeline.intake import (
    IngestRow,
    Intake,
    each_once,
    footage_s,
    in_order,
    mark_duplicates,
    rows_of,
    spans_s,
    with_rows,
)
from talkforge.pipeline.parts import Part, Window, footage_of, hold, left_of, remaining
from talkforge.pipeline.standing import COVERED_WITHIN_S, ERASED, source_rows
from talkforge.pipeline.store import Store
from talkforge.pipeline.tables import Rows
from talkforge.schemas.records import Failure, Input, Outcome, SourceRow
from tests.records import video

PART_S = 100.0
SEEDS = range(12)


def some_input(random: Random) -> Input:
    """One of few names, whole or a span of it."""
    spans = [(None, None), (None, None), (None, 20.0), (20.0, 45.0), (30.0, None)]
    start_s, end_s = random.choice(spans)
    uri = random.choice(["a.mp4", "a/b.mp4", "a-b.mp4", "ä.mp4", "c.mp4", "d.mp4", "e.mp4"])
    return Input(uri=uri, start_s=start_s, end_s=end_s, person=random.choice(["", "ann"]))


def some_row(random: Random, given: Input) -> IngestRow:
    """Of few contents, some with late audio, and some with gaps."""
    if random.random() < 0.15:
        failure = Failure(
            stage="probe", key=given.uri, video_id="", uri=given.uri, error="MediaError", message="no video"
        )
        return IngestRow(input=given, stamp="1", status="failed", failure=failure)
    if random.random() < 0.1:
        return IngestRow(input=given, stamp="1", status="erased")
    content = random.randrange(6)
    changes = [{}, {"audio_start_s": 7.0}, {"audio_end_s": 50.0}, {"gaps_s": (10.0, 12.0, 30.0, 33.0)}]
    shown = video(content, 60.0, uri=given.uri, **changes[content % 4])
    return IngestRow(input=given, stamp="1", status="planned", video=shown)


def some_rows(random: Random) -> list[IngestRow]:
    given = {one.key: one for one in (some_input(random) for _ in range(random.randrange(1, 9)))}
    return [some_row(random, one) for one in given.values()]


# ------------------------------------------------------------------------------ the plan


def extended(
    known: list[IngestRow], plan: list[Part], new: list[IngestRow]
) -> tuple[list[IngestRow], list[Part]]:
    """`extend_plan` as it is defined: every row and every part is looked at again."""
    keys = {row.input.key for row in new}
    known = [row for row in known if row.input.key not in keys]
    settled = [row for row in known if row.status != "duplicate"]
    open_rows = new + [row for row in known if row.status == "duplicate"]
    rows = sorted([*settled, *mark_duplicates(open_rows, settled)], key=lambda row: row.input.key)
    spans: dict[str, list[Window]] = {}
    for row in rows:
        if row.span and row.status == "planned":
            spans.setdefault(row.span.video.video_id, []).append(row.span)
    number = 1 + max((int(part.name) for part in plan), default=-1)
    kept = []
    for part in plan:
        windows = [
            window.model_copy(update={"video": holder.video})
            for window in part.windows
            for holder in [s for s in spans.get(window.video.video_id, ()) if s.holds(window)][:1]
        ]
        if windows:
            kept.append(part.model_copy(update={"windows": tuple(windows)}))
    planned = [window for part in kept for window in part.windows]
    pieces = [
        piece
        for video_id, of_video in spans.items()
        for span in of_video
        for piece in parts.uncovered(span, [w for w in planned if w.video.video_id == video_id])
    ]
    return rows, kept + parts.plan(pieces, PART_S, number)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_grows_as_if_all_of_it_were_looked_at_again(seed: int, tmp_path: Path) -> None:
    random, store = Random(seed), Store(str(tmp_path))
    rows: list[IngestRow] = []
    plan: list[Part] = []
    for _ in range(6):
        new = some_rows(random)
        rows, plan = extended(rows, plan, new)
        found = extend_plan(store, iter(new), PART_S)
        assert (list(found[0]), list(found[1])) == (rows, plan)
        assert (load_ingested(store), load_plan(store)) == (rows, plan)
    assert sum(len(part.windows) for part in plan) >= 3


def test_what_is_left_of_a_plan_is_what_remains_of_its_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    windows = [Window(video=video(n), start_s=0.0, end_s=30.0) for n in range(12)]
    plan = [Part(name=f"{n:06d}", windows=tuple(windows[2 * n : 2 * n + 2])) for n in range(6)]
    done, half = plan[0], plan[3].halves()[1]
    for part in (done, half):
        tables.write(store, f"parts/{part.name}/windows.parquet", Window, part.windows)
        store.write(f"parts/{part.name}/part.json", b"{}")
    left = left_of(plan, store)
    assert list(left) == remaining(plan, store) == [*plan[1:3], plan[3].halves()[0], *plan[4:]]
    assert (len(left), len(left.whole), left.duration_s) == (5, 4, 4 * 60.0 + 30.0)
    rows = Rows.of(Part, plan)
    assert footage_of(rows) == 360.0
    assert hold(rows, pa.array([video(1).video_id, video(7).video_id])).tolist() == [
        part in (plan[0], plan[3]) for part in plan
    ]


# ------------------------------------------------------------------------------ looking up


@pytest.mark.parametrize("seed", SEEDS)
def test_an_input_is_found_by_content_and_time(seed: int) -> None:
    random = Random(seed)
    intake = Intake(mark_duplicates(some_rows(random) + some_rows(random)))
    planned = list(intake.planned)
    assert planned == [row for row in intake.all if row.status == "planned"]
    ids = [video(content).video_id for content in range(7)] * 3
    at_s = [random.choice([math.nan, 5.0, 20.0, 40.0, 59.0]) for _ in ids]
    expected = [
        next(
            (
                number
                for number, row in enumerate(planned)
                if row.video and row.video.video_id == video_id
                if math.isnan(when_s) or row.input.span_s[0] <= when_s < row.input.span_s[1]
            ),
            -1,
        )
        for video_id, when_s in zip(ids, at_s, strict=True)
    ]
    assert intake.inputs_of(pa.chunked_array([ids]), np.array(at_s)).tolist() == expected
    for video_id, when_s, number in zip(ids, at_s, expected, strict=True):
        span_s = None if math.isnan(when_s) else (when_s - 1, when_s + 1)
        assert intake.at(video_id, span_s) == (planned[number] if number >= 0 else None)
    assert intake.of_videos(ids) == {row.video.video_id: row for row in planned if row.video}


def test_spans_and_footage_of_every_input() -> None:
    random = Random(3)
    rows = [some_row(random, some_input(random)) for _ in range(200)]
    columns = Rows.of(IngestRow, rows)
    starts_s, ends_s = spans_s(columns)
    seconds = footage_s(columns)
    for number, row in enumerate(rows):
        if row.span is None:
            assert np.isnan([starts_s[number], ends_s[number], seconds[number]]).all()
        else:
            assert (starts_s[number], ends_s[number]) == (row.span.start_s, row.span.end_s)
            expected_s = sum(end_s - start_s for start_s, end_s in parts.footage(row.span))
            assert seconds[number] == pytest.approx(expected_s, abs=1e-9)


def test_inputs_lie_in_the_order_of_their_keys_and_each_once() -> None:
    random = Random(4)
    given = [some_input(random) for _ in range(100)]
    ordered = sorted(given, key=lambda one: one.key)
    assert in_order(Rows.of(Input, given)) == ordered
    first = {one.key: one for one in reversed(given)}
    assert each_once(Rows.of(Input, given)) == [first[key] for key in sorted(first)]
    assert each_once(Rows.of(Input, ())) == []


def test_what_is_known_of_an_input_is_known_only_if_it_was_given_just_so() -> None:
    random = Random(5)
    known = {row.input.key: row for row in (some_row(random, some_input(random)) for _ in range(40))}
    rows = in_order(Rows.of(IngestRow, known.values()))
    given = [some_input(random) for _ in range(60)]
    expected = {row.input: row for row in known.values() if row.input in given}
    assert len(expected) >= 5
    assert any(one.key in known and one not in expected for one in given), "another person"
    found = rows_of(given, rows)
    assert {one: found[one] for one in given if one in found} == expected
    assert list(with_rows(Rows.of(Input, given), rows)) == [(one, expected.get(one)) for one in given]
    assert rows_of([], rows) == rows_of(given, rows[:0]) == {}


# ------------------------------------------------------------------------------ what became of them


def fate(row: IngestRow, seen: Sequence[Outcome], num_clips: int, failure: Failure | None) -> tuple[str, str]:
    """Status and reason of an input as they are defined."""
    if row.failure is not None:
        return "failed", f"{row.failure.error}: {row.failure.message}"
    if row.status == "erased":
        return "no_candidates", ERASED
    if row.status == "duplicate":
        if row.first_uri == row.input.uri:
            return "duplicate", f"overlaps another span of {row.first_uri}"
        return "duplicate", f"same content as {row.first_uri}"
    if num_clips:
        return "measured", f"in part: {failure.message}" if failure else ""
    if failure and failure.kind != "video":
        return "pending", f"{failure.kind} failed, attempt {failure.attempts}: {failure.message}"
    if failure:
        return "failed", f"{failure.error}: {failure.message}"
    assert row.span is not None
    planned_s = sum(end_s - start_s for start_s, end_s in parts.footage(row.span))
    if not seen or sum(one.end_s - one.start_s for one in seen) < planned_s - COVERED_WITHIN_S:
        return "pending", "not measured yet"
    return "no_candidates", ", ".join(sorted({one.outcome for one in seen}))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_became_of_every_input(seed: int) -> None:
    random = Random(seed)
    intake = Intake(mark_duplicates({r.input.key: r for _ in range(4) for r in some_rows(random)}.values()))
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    num_clips = np.zeros(len(intake.planned), np.int64)
    expected = {}
    for number, row in enumerate(intake.planned):
        assert row.video is not None and row.span is not None
        whole = parts.windows_of(row.span, 20.0)
        seen = [
            Outcome(
                video_id=window.video.video_id, start_s=window.start_s, end_s=window.end_s,
                outcome=random.choice(["no_face", "no_speech"]), speech_s=random.random(), face_s=1.0,
            )
            for window in whole[: random.choice([0, 1, len(whole), len(whole)])]
        ]  # fmt: skip
        failure = None
        if random.random() < 0.3:
            failure = Failure(
                stage="measure", key=whole[-1].key, video_id=row.video.video_id, uri=row.input.uri, error="E",
                message="m", kind=random.choice(["video", "network"]), attempts=2,
            )  # fmt: skip
            failures.append(failure)
        num_clips[number] = random.choice([0, 0, 3])
        outcomes += seen
        told = fate(row, seen, int(num_clips[number]), failure)
        speech_s = sum(one.speech_s for one in seen)
        expected[row.input.key] = (*told, row.span.duration_s, speech_s, len(seen), int(num_clips[number]))
    for row in intake.all:
        whole_s = row.span.duration_s if row.span else 0.0
        expected.setdefault(row.input.key, (*fate(row, (), 0, None), whole_s, 0.0, 0, 0))
    found = source_rows(intake, outcomes, failures, num_clips)
    assert found.table.schema.equals(tables.arrow_schema(SourceRow), check_metadata=True)
    keys = [Input(uri=source.uri, start_s=source.start_s, end_s=source.end_s).key for source in found]
    assert keys == sorted(expected)
    for key, source in zip(keys, found, strict=True):
        told = (
            source.status,
            source.reason,
            source.duration_s,
            source.speech_s,
            source.face_s,
            source.num_clips,
        )
        assert told == expected[key]
    of = {source.input.key: source for source in intake.all}
    for key, source in zip(keys, found, strict=True):
        shown = of[key].video
        assert source.num_bytes == (shown.num_bytes if shown else 0)
        assert (source.video_id, source.width_px) == (
            (shown.video_id, shown.width_px) if shown else (None, None)
        )
        assert source.gaps == (len(shown.gaps_s) // 2 if shown else 0)
        assert source.audio_channel == (shown.audio_channel if shown else "")
        assert source.person == of[key].input.person
