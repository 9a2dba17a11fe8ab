"""What became of every input, and how far a data set is: what `talkforge status` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.pipeline import tables
from talkforge.pipeline.dataset import load_ingested, load_plan
from talkforge.pipeline.intake import IngestRow, Intake, footage_s, in_order, is_one_of, spans_s
from talkforge.pipeline.parts import committed_parts, footage_of, left_of, span_of_key
from talkforge.pipeline.store import Store
from talkforge.pipeline.tables import Rows
from talkforge.pipeline.totals import Totals, count
from talkforge.schemas.config import Thresholds
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.records import Failure, Outcome, SourceRow

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
    done, plan = committed_parts(store), load_plan(store)
    planned_s, todo = footage_of(plan), left_of(plan, store, done)
    exact = dataset.parts_selected in (None, len(done)) and _inputs_selected(store)
    sources, clips = _selected(store) if exact else _unselected(store, dataset.config.thresholds)
    unplaced = pc.and_(clips.column("accepted"), clips.column("shard").is_null())
    return Standing(
        totals=count(sources, clips),
        exact=exact,
        parts_done=len(done),
        parts=len(done) + len(todo),
        measured_s=planned_s - todo.duration_s,
        planned_s=planned_s,
        waiting=int(pc.sum(unplaced).as_py() or 0) if exact else 0,
    )


def _inputs_selected(store: Store) -> bool:
    """Whether the last selection knew every input as it is now."""
    if not store.exists("ledger.parquet"):
        return False
    selected = tables.read_columns(store, "sources.parquet", ["uri", "start_s", "end_s", "video_id"])
    return bool(selected.columns == _inputs_now(store))


def _inputs_now(store: Store) -> list[pa.ChunkedArray]:
    """Name, span and video of every input, which are in the order that `source_rows` has."""
    ingested = load_ingested(store)
    return [ingested.column(name) for name in ("input.uri", "input.start_s", "input.end_s", "video.video_id")]


def _selected(store: Store) -> tuple[pa.Table, pa.Table]:
    """Inputs and clips of the last selection."""
    columns = ["accepted", "failure", "duration_s", "reasons", "shard"]
    clips = tables.read_columns(store, "ledger.parquet", columns)
    return tables.read_columns(store, "sources.parquet", ["status", "duration_s"]), clips


def _unselected(store: Store, thresholds: Thresholds) -> tuple[pa.Table, pa.Table]:
    """Inputs and clips of what is committed, each clip judged by itself."""
    # Takes half a second to import, which a status of what is selected can do without.
    from talkforge.pipeline.measured import read_measured, rows_of_inputs

    intake = Intake(load_ingested(store))
    measured = read_measured(store, writes=False)
    rows, inputs = rows_of_inputs(measured.clips, intake, thresholds)
    rows.judge(thresholds)
    sources = source_rows(intake, measured.outcomes, measured.failures, intake.counts(inputs))
    return sources.table, rows.table.append_column("shard", pa.nulls(len(rows), pa.string()))


def source_rows(
    intake: Intake, outcomes: Iterable[Outcome], failures: Iterable[Failure], num_clips: NDArray[np.int64]
) -> Rows[SourceRow]:
    """What became of every input, in the order of their names and times.

    Args:
        intake: every input.
        outcomes: of the committed parts; each belongs to the input in whose span its middle lies.
        failures: of the committed parts, and of windows that are put off; likewise.
        num_clips: candidate clips of each input that is measured, int [n].
    """
    rows, planned = intake.all, intake.planned
    seen = _Seen(intake, Rows.of(Outcome, outcomes))
    status, reason = _fates(rows)
    status[intake.numbers], reason[intake.numbers] = _fates_of_planned(
        planned, seen, _broken(intake, failures), num_clips
    )
    starts_s, ends_s = spans_s(rows)
    columns = {
        **{name: rows.column(f"input.{name}") for name in OF_INPUT},
        **{name: rows.column(f"video.{name}") for name in OF_VIDEO},
        **{name: rows.column(f"video.{name}").fill_null(value) for name, value in WITHOUT_VIDEO.items()},
        "status": pa.array(status, pa.string()),
        "reason": pa.array(reason, pa.string()),
        "duration_s": pa.array(np.nan_to_num(ends_s - starts_s)),
        "speech_s": pa.array(intake.of_all(seen.speech_s)),
        "face_s": pa.array(intake.of_all(seen.face_s)),
        "num_clips": pa.array(intake.of_all(num_clips)),
        "gaps": pc.divide(pc.list_value_length(rows.column("video.gaps_s")).fill_null(0), 2),
        "training_mining": rows.table.column("training_mining"),
    }
    schema = tables.arrow_schema(SourceRow)
    made = pa.table([columns[field.name].cast(field.type) for field in schema], schema)
    return in_order(Rows(SourceRow, made.combine_chunks()))


OF_INPUT = ("uri", "source", "licence", "consent", "person", "start_s", "end_s")
"""What `sources.parquet` takes from the input."""

OF_VIDEO = ("video_id", "width_px", "height_px", "fps", "audio_track")
"""What `sources.parquet` takes from the video, and is null where there is none."""

WITHOUT_VIDEO: Mapping[str, Any] = {
    "num_bytes": 0, "audio_channel": "", "interlaced": False,
    "repaired_outliers": 0, "repaired_repeats": 0, "repaired_joins": 0,
}  # fmt: skip
"""What else it takes from the video, and what it has where there is none."""


class _Seen:
    """What the parts say of the inputs that are measured, [n] each.

    Attributes:
        seen_s, speech_s, face_s: seconds that were looked at, with speech, and with a face.
        outcomes: bits that name the outcomes of an input's windows.
    """

    def __init__(self, intake: Intake, outcomes: Rows[Outcome]) -> None:
        starts_s, ends_s = (outcomes.column(name).to_numpy() for name in ("start_s", "end_s"))
        numbers = intake.inputs_of(outcomes.column("video_id"), (starts_s + ends_s) / 2)
        is_known, count = numbers >= 0, len(intake.planned)
        numbers = numbers[is_known]

        def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(np.bincount(numbers, values[is_known], count), np.float64)

        self.seen_s = total(ends_s - starts_s)
        self.speech_s = total(outcomes.column("speech_s").to_numpy())
        self.face_s = total(outcomes.column("face_s").to_numpy())
        names = outcomes.column("outcome").combine_chunks().dictionary_encode()
        self._names: list[str] = names.dictionary.to_pylist()
        self.outcomes = np.zeros(count, np.int64)
        np.bitwise_or.at(self.outcomes, numbers, 1 << names.indices.to_numpy().astype(np.int64)[is_known])

    def texts(self) -> NDArray[np.object_]:
        """The outcomes of each input in words."""
        kinds, which = np.unique(self.outcomes, return_inverse=True)
        held = [[name for n, name in enumerate(self._names) if kind >> n & 1] for kind in kinds.tolist()]
        return np.array([", ".join(sorted(names)) for names in held], object)[which]


def _broken(intake: Intake, failures: Iterable[Failure]) -> dict[int, Failure]:
    """The last failure to measure each input, by its number among those that are measured."""
    own = [failure for failure in failures if failure.stage == "measure"]
    spans = [span_of_key(failure.key) or (np.nan, np.nan) for failure in own]
    ids = pa.chunked_array([pa.array([failure.video_id for failure in own], pa.string())])
    numbers = intake.inputs_of(ids, np.array(spans, np.float64).reshape(-1, 2).mean(axis=1))
    return {number: failure for number, failure in zip(numbers.tolist(), own, strict=True) if number >= 0}


def _fates(rows: Rows[IngestRow]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Status and reason of every input by what reading it gave, as if nothing were measured."""
    status = np.full(len(rows), "pending", object)
    reason = np.full(len(rows), "not measured yet", object)
    is_erased = is_one_of(rows.column("status"), "erased")
    status[is_erased], reason[is_erased] = "no_candidates", ERASED
    is_duplicate = is_one_of(rows.column("status"), "duplicate")
    status[is_duplicate] = "duplicate"
    same = rows.where(is_duplicate)
    pairs = zip(*(same.column(name).to_pylist() for name in ("input.uri", "first_uri")), strict=True)
    reason[is_duplicate] = [
        f"overlaps another span of {first}" if first == uri else f"same content as {first}"
        for uri, first in pairs
    ]
    has_failed = rows.table.column("failure").is_valid().to_numpy()
    status[has_failed] = "failed"
    lost = rows.where(has_failed)
    reason[has_failed] = pc.binary_join_element_wise(
        lost.column("failure.error"), lost.column("failure.message"), ": "
    ).to_pylist()
    return status, reason


def _fates_of_planned(
    planned: Rows[IngestRow], seen: _Seen, broken: Mapping[int, Failure], num_clips: NDArray[np.int64]
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Status and reason of every input that is measured."""
    is_covered = (seen.outcomes > 0) & (seen.seen_s >= footage_s(planned) - COVERED_WITHIN_S)
    status = np.where(is_covered, "no_candidates", "pending").astype(object)
    reason = np.where(is_covered, seen.texts(), "not measured yet")
    status[num_clips > 0], reason[num_clips > 0] = "measured", ""
    for number, failure in broken.items():
        if num_clips[number]:
            reason[number] = f"in part: {failure.message}"
        elif failure.kind != "video":
            status[number] = "pending"
            reason[number] = f"{failure.kind} failed, attempt {failure.attempts}: {failure.message}"
        else:
            status[number], reason[number] = "failed", f"{failure.error}: {failure.message}"
    return status, reason
