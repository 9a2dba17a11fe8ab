"""What became of every input, and how far a data set is: what `talkforge status` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talkforge.pipeline import tables
from talkforge.pipeline.dataset import INTAKE, PLAN, load_ingested
from talkforge.pipeline.ingest import IngestRow, Planned
from talkforge.pipeline.parts import Part, committed_parts, footage, remaining, settled, span_of_key
from talkforge.pipeline.store import Store
from talkforge.pipeline.totals import Totals, count
from talkforge.schemas.config import Thresholds
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.records import Failure, InputKey, Outcome, SourceRow, SourceStatus, Video

ERASED = "erased"
"""Reason of an input whose content was erased from the data set, and was given again."""

COVERED_WITHIN_S = 0.01
"""A video is measured when its windows make up its length to within so much, s."""


@dataclass(frozen=True)
class Standing:
    """How far a data set is.

    Attributes:
        totals: as of what is committed now.
        exact: False where parts were committed since the last selection: `totals` then takes clips by
            their measurements alone, before speakers are named and near duplicates are found.
        parts_done, parts: parts that are committed, and all parts of the plan.
        measured_s, planned_s: footage in them.
        waiting: accepted clips that are in no shard yet; of the last selection.
    """

    totals: Totals
    exact: bool
    parts_done: int
    parts: int
    measured_s: float
    planned_s: float
    waiting: int


def standing(store: Store, dataset: Dataset) -> Standing:
    """How far the data set in `store` is; opens no video and takes no lock."""
    done = committed_parts(store)
    planned_s, todo = planned_and_left(store, done)
    exact = dataset.parts_selected in (None, len(done)) and _inputs_selected(store)
    sources, clips = _selected(store) if exact else _unselected(store, dataset.config.thresholds)
    unplaced = pc.and_(clips.column("accepted"), clips.column("shard").is_null())
    return Standing(
        totals=count(sources, clips),
        exact=exact,
        parts_done=len(done),
        parts=len(done) + len(todo),
        measured_s=planned_s - sum(part.duration_s for part in todo),
        planned_s=planned_s,
        waiting=int(pc.sum(unplaced).as_py() or 0) if exact else 0,
    )


def planned_and_left(store: Store, done: Sequence[str]) -> tuple[float, list[Part]]:
    """Seconds of footage in the plan, and what is left of it; parts that are there do not become objects.

    Args:
        store: the data set.
        done: names of the committed parts.
    """
    if not store.exists(PLAN):
        return 0.0, []
    plan = tables.from_bytes(store.read(PLAN), PLAN)
    windows = pc.list_flatten(plan.column("windows"))
    lengths_s = pc.subtract(pc.struct_field(windows, "end_s"), pc.struct_field(windows, "start_s"))
    names = plan.column("name").to_pylist()
    there = settled(names, store, done)
    bits = np.packbits([name not in there for name in names], bitorder="little")
    # Not pa.array, which imports pandas.
    is_open = pa.Array.from_buffers(pa.bool_(), len(names), [None, pa.py_buffer(bits)])
    open_parts = tables.from_table(Part, plan.filter(is_open))
    return float(pc.sum(lengths_s).as_py() or 0.0), remaining(open_parts, store, done)


def _inputs_selected(store: Store) -> bool:
    """Whether the last selection knew every input as it is now."""
    if not store.exists("ledger.parquet"):
        return False
    selected = tables.read_columns(store, "sources.parquet", ["uri", "start_s", "end_s", "video_id"])
    known = set(zip(*(column.to_pylist() for column in selected.columns), strict=True))
    return known == _inputs_now(store)


def _inputs_now(store: Store) -> set[tuple[Any, ...]]:
    if not store.exists(PLAN):
        return set()
    table = tables.from_bytes(store.read(INTAKE), INTAKE)
    given = table.column(
        "input" if "input" in table.column_names else "source"
    )  # as earlier versions call it
    columns = [pc.struct_field(given, name) for name in ("uri", "start_s", "end_s")]
    columns.append(pc.struct_field(table.column("video"), "video_id"))
    return set(zip(*(column.to_pylist() for column in columns), strict=True))


Inputs = list[tuple[SourceStatus, float]]
"""Status and length of every input."""


def _selected(store: Store) -> tuple[Inputs, pa.Table]:
    """Inputs and clips of the last selection."""
    columns = ["accepted", "failure", "duration_s", "reasons", "shard"]
    clips = tables.read_columns(store, "ledger.parquet", columns)
    sources = tables.read_columns(store, "sources.parquet", ["status", "duration_s"])
    return list(zip(*(column.to_pylist() for column in sources.columns), strict=True)), clips


def _unselected(store: Store, thresholds: Thresholds) -> tuple[Inputs, pa.Table]:
    """Inputs and clips of what is committed, each clip judged by itself."""
    # Takes half a second to import, which a status of what is selected can do without.
    from talkforge.pipeline.measured import read_measured, rows_of_inputs

    ingested = load_ingested(store)
    planned = Planned(ingested)
    measured = read_measured(store, writes=False)
    rows, inputs = rows_of_inputs(measured.clips, planned, thresholds)
    rows.judge(thresholds)
    counts = np.bincount(inputs, minlength=len(planned.rows)).tolist()
    clips_of = {row.input.key: count for row, count in zip(planned.rows, counts, strict=True)}
    sources = source_rows(ingested, measured.outcomes, measured.failures, clips_of)
    clips = rows.table.append_column("shard", pa.nulls(len(rows), pa.string()))
    return [(row.status, row.duration_s) for row in sources], clips


def source_rows(
    ingested: Sequence[IngestRow],
    outcomes: Iterable[Outcome],
    failures: Iterable[Failure],
    clips_of: Mapping[InputKey, int],
) -> list[SourceRow]:
    """What became of every input, in the order of their names and times.

    Args:
        ingested: every input.
        outcomes: of the committed parts; each belongs to the input in whose span its middle lies.
        failures: of the committed parts, and of windows that are put off; likewise.
        clips_of: number of candidate clips of each input.
    """
    planned = Planned(ingested)
    seen_in: dict[InputKey, list[Outcome]] = {}
    for outcome in outcomes:
        if entry := planned.at(outcome.video_id, (outcome.start_s, outcome.end_s)):
            seen_in.setdefault(entry.input.key, []).append(outcome)
    broken: dict[InputKey, Failure] = {}
    for failure in failures:
        if failure.stage == "measure" and (entry := planned.at(failure.video_id, span_of_key(failure.key))):
            broken[entry.input.key] = failure
    rows = []
    for entry in sorted(ingested, key=lambda row: row.input.key):
        given, video = entry.input, entry.video
        measured = entry.status == "planned"
        seen = seen_in.get(given.key, []) if measured else []
        clips_found = clips_of.get(given.key, 0) if measured else 0
        status, reason = _status(entry, seen, clips_found, broken.get(given.key))
        rows.append(
            SourceRow(
                uri=given.uri,
                video_id=video.video_id if video else None,
                status=status,
                reason=reason,
                duration_s=entry.span.duration_s if entry.span else 0.0,
                speech_s=sum(outcome.speech_s for outcome in seen),
                face_s=sum(outcome.face_s for outcome in seen),
                num_clips=clips_found,
                num_bytes=video.num_bytes if video else 0,
                width_px=video.width_px if video else None,
                height_px=video.height_px if video else None,
                fps=video.fps if video else None,
                **_repairs(video),
                source=given.source,
                licence=given.licence,
                consent=given.consent,
                training_mining=entry.training_mining,
                person=given.person,
                start_s=given.start_s,
                end_s=given.end_s,
            )
        )
    return rows


def _repairs(video: Video | None) -> dict[str, Any]:
    """What was chosen and mended in reading a video."""
    if video is None:
        return {}
    chosen = ("audio_track", "audio_channel", "interlaced")
    repaired = ("repaired_outliers", "repaired_repeats", "repaired_joins")
    return {name: getattr(video, name) for name in chosen + repaired} | {"gaps": len(video.gaps_s) // 2}


def _status(
    entry: IngestRow, seen: Sequence[Outcome], clips: int, failure: Failure | None
) -> tuple[SourceStatus, str]:
    if entry.failure is not None:
        return "failed", f"{entry.failure.error}: {entry.failure.message}"
    if entry.status == "erased":
        return "no_candidates", ERASED
    if entry.status == "duplicate":
        if entry.first_uri == entry.input.uri:
            return "duplicate", f"overlaps another span of {entry.first_uri}"
        return "duplicate", f"same content as {entry.first_uri}"
    if clips:
        return "measured", f"in part: {failure.message}" if failure else ""
    if failure and failure.kind != "video":
        return "pending", f"{failure.kind} failed, attempt {failure.attempts}: {failure.message}"
    if failure:
        return "failed", f"{failure.error}: {failure.message}"
    seen_s = sum(outcome.end_s - outcome.start_s for outcome in seen)
    planned_s = sum(end_s - start_s for start_s, end_s in footage(entry.span)) if entry.span else 0.0
    if not seen or seen_s < planned_s - COVERED_WITHIN_S:
        return "pending", "not measured yet"
    return "no_candidates", ", ".join(sorted({outcome.outcome for outcome in seen}))
