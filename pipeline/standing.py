"""What became of every input, and how far a data set is: what `talkforge status` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from talkforge.pipeline import attempts, tables
from talkforge.pipeline.dataset import load_ingested, load_plan
from talkforge.pipeline.ingest import IngestRow, Planned
from talkforge.pipeline.parts import committed_parts, footage, remaining, span_of_key
from talkforge.pipeline.store import Store
from talkforge.pipeline.totals import ClipStatus, Totals, count
from talkforge.schemas.config import Thresholds
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Failure,
    Input,
    InputKey,
    Outcome,
    SourceRow,
    SourceStatus,
    Video,
    ledger_columns,
)

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
    plan = load_plan(store)
    todo = remaining(plan, store)
    done = committed_parts(store)
    planned_s = sum(part.duration_s for part in plan)
    exact = dataset.parts_selected in (None, len(done)) and _inputs_selected(store)
    sources, clips = _selected(store) if exact else _unselected(store, done, dataset.config.thresholds)
    return Standing(
        totals=count(((row.status, row.duration_s) for row in sources), (clip for clip, _ in clips)),
        exact=exact,
        parts_done=len(done),
        parts=len(done) + len(todo),
        measured_s=planned_s - sum(part.duration_s for part in todo),
        planned_s=planned_s,
        waiting=sum(clip.accepted and not shard for clip, shard in clips) if exact else 0,
    )


def _inputs_selected(store: Store) -> bool:
    """Whether the last selection knew every input as it is now."""
    if not store.exists("ledger.parquet"):
        return False
    known = {
        (row.uri, row.start_s, row.end_s, row.video_id)
        for row in tables.read(store, "sources.parquet", SourceRow)
    }
    now = {
        (row.input.uri, row.input.start_s, row.input.end_s, row.video.video_id if row.video else None)
        for row in load_ingested(store)
    }
    return known == now


def _selected(store: Store) -> tuple[list[SourceRow], list[tuple[ClipStatus, str | None]]]:
    """Inputs and clips of the last selection."""
    columns = ["accepted", "failure", "duration_s", "reasons", "shard"]
    rows = tables.from_bytes(store.read("ledger.parquet"), "ledger.parquet").select(columns).to_pylist()
    return tables.read(store, "sources.parquet", SourceRow), [
        (ClipStatus(row["accepted"], row["failure"], row["duration_s"], row["reasons"]), row["shard"])
        for row in rows
    ]


def measured_columns(measures: ClipMeasures, video: Video | None) -> dict[str, Any]:
    """Ledger columns of what was measured, also of parts of earlier versions.

    Args:
        measures: of the clip.
        video: its video; None: the columns that follow from it are left as they are.
    """
    row = ledger_columns(measures)
    if row["face_clip_px"] is None and row["face_px"] is not None and video is not None:
        from talkforge.curation.media import height_scale  # loads PyAV, which a part of today does not need

        row["face_clip_px"] = round(row["face_px"] * height_scale(measures.clip, video), 2)
    return row


def terms(given: Input) -> dict[str, str]:
    """Ledger columns of what the list says of an input."""
    return {name: getattr(given, name) for name in ("source", "licence", "consent", "person")}


def _unselected(
    store: Store, parts: Iterable[str], thresholds: Thresholds
) -> tuple[list[SourceRow], list[tuple[ClipStatus, str | None]]]:
    """Inputs and clips of what is committed, each clip judged by itself."""
    from talkforge.curation.verdict import NOT_TRACED, judge

    ingested = load_ingested(store)
    planned = Planned(ingested)
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    clips: dict[str, tuple[ClipMeasures, IngestRow]] = {}
    failures += attempts.waiting(store, load_plan(store)).values()
    for part in parts:
        outcomes += tables.read(store, f"parts/{part}/outcomes.parquet", Outcome)
        failures += tables.read(store, f"parts/{part}/failures.parquet", Failure)
        for row in tables.read(store, f"parts/{part}/clips.parquet", ClipMeasures):
            key = row.clip.clip_id
            known = clips[key][0].stopped_by if key in clips else NOT_TRACED.code
            if known == NOT_TRACED.code and (entry := planned.of_clip(row.clip)):
                clips[key] = (row, entry)
    broken = {failure.key: failure.error for failure in failures}
    counted: list[tuple[ClipStatus, str | None]] = []
    for key, (measures, entry) in sorted(clips.items()):
        flat = measured_columns(measures, entry.video)
        verdict = judge(flat | terms(entry.input), thresholds)
        codes = [reason.code for reason in verdict.reasons]
        accepted = verdict.accepted and key not in broken
        counted.append((ClipStatus(accepted, broken.get(key), measures.clip.duration_s, codes), None))
    candidates = [measures.clip for measures, _ in clips.values()]
    return source_rows(ingested, outcomes, failures, candidates), counted


def source_rows(
    ingested: Sequence[IngestRow],
    outcomes: Iterable[Outcome],
    failures: Iterable[Failure],
    clips: Iterable[Clip],
) -> list[SourceRow]:
    """What became of every input, in the order of their names and times.

    Args:
        ingested: every input.
        outcomes: of the committed parts; each belongs to the input in whose span its middle lies.
        failures: of the committed parts, and of windows that are put off; likewise.
        clips: every candidate; likewise.
    """
    planned = Planned(ingested)
    seen_in: dict[InputKey, list[Outcome]] = {}
    for outcome in outcomes:
        if entry := planned.at(outcome.video_id, (outcome.start_s, outcome.end_s)):
            seen_in.setdefault(entry.input.key, []).append(outcome)
    counts = Counter(entry.input.key for clip in clips if (entry := planned.of_clip(clip)))
    broken: dict[InputKey, Failure] = {}
    for failure in failures:
        if failure.stage == "measure" and (entry := planned.at(failure.video_id, span_of_key(failure.key))):
            broken[entry.input.key] = failure
    rows = []
    for entry in sorted(ingested, key=lambda row: row.input.key):
        given, video = entry.input, entry.video
        measured = entry.status == "planned"
        seen = seen_in.get(given.key, []) if measured else []
        clips_found = counts[given.key] if measured else 0
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
