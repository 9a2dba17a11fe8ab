"""Selection: thresholds are applied to the committed parts, and the ledger says which clips are accepted.

`select` reads what was measured and applies thresholds; it never touches a video and takes seconds.
Everything here is a pure function of the committed parts, the inputs and the configuration, in
sorted order, so the ledger's bytes depend on nothing else.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.curation.body.motion import intensities
from talkforge.curation.credentials import UNREAD
from talkforge.curation.face import identity
from talkforge.curation.sync import active_speaker, contrastive
from talkforge.curation.verdict import (
    NEAR_DUPLICATE,
    NOT_TRACED,
    Reasons,
    hangs_on_numbers,
    judge,
    judge_columns,
    repair_s,
)
from talkforge.pipeline import attempts, near_duplicates, review, shards, small_arrays, tables, voices
from talkforge.pipeline.intake import IngestRow, Intake
from talkforge.pipeline.measured import ClipRows, Measured, read_clips, rows_of_inputs
from talkforge.pipeline.parts import committed_parts
from talkforge.pipeline.standing import source_rows
from talkforge.pipeline.store import Store
from talkforge.pipeline.totals import Totals, count
from talkforge.schemas.config import Config, Thresholds
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import (
    CaptionRow,
    Clip,
    ClipMeasures,
    Failure,
    LedgerRow,
    Outcome,
    PersonRow,
    ReviewRow,
    SourceRow,
    Sync,
    TranscriptRow,
)
from talkforge.schemas.units import covering_frames

LISTED = "source."
"""Begins the names of ledger columns that come from further columns of the inputs' lists."""

ACCEPTED_ROW = (
    "clip_id", "video_id", "source", "licence", "consent", "start_s", "num_frames", "audio_shift_s",
    "omega_face", "omega_body", "person_id", "split",
)  # fmt: skip
"""Columns of the ledger that a clip is cut by."""

QUANTILES = 101
"""Quantiles of omega that are stored: the percentiles 0 to 100."""


@dataclass(frozen=True)
class CommittedClip:
    """A clip as it was committed: which part holds it, its measures and its small arrays; and what
    was said of it since, see `pipeline.annotate`."""

    part: str
    measures: ClipMeasures
    features: Mapping[str, NDArray[Any]]
    failure: Failure | None
    transcript: TranscriptRow | None = None
    caption: CaptionRow | None = None


@dataclass
class Committed:
    """Everything that the committed parts say, and the failures of windows that are put off."""

    clips: list[CommittedClip] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    parts: int = 0
    """Number of the parts."""


@dataclass(frozen=True)
class Selection:
    """The outcome of `select`, and what it was scaled by.

    Attributes:
        table: the ledger: the columns of `LedgerRow` and, as `source.<name>`, the further columns of the
            inputs' lists; in the order of the clips' ids.
        parts: name of the part that holds each clip.
        people_table: rows of `PersonRow`, by id.
        sources: what became of every input.
        failures: everything that failed.
        quantiles: of the motions of the accepted clips.
    """

    table: pa.Table
    parts: pa.ChunkedArray
    people_table: pa.Table
    sources: tables.Rows[SourceRow]
    failures: tuple[Failure, ...]
    quantiles: dict[str, list[float]]
    notes: tuple[str, ...] = ()
    """What a user may miss: one line each, see `_notes`."""
    repeats: near_duplicates.Repeats | None = None
    """Near duplicates among all clips on which thresholds decide, see `near_duplicates.all_repeats`."""

    @functools.cached_property
    def rows(self) -> tuple[LedgerRow, ...]:
        """Every row of the ledger as an object: not for a million clips."""
        return tuple(tables.from_table(LedgerRow, self.table))

    @property
    def people(self) -> tuple[PersonRow, ...]:
        """Who is who, by id."""
        return tuple(tables.from_table(PersonRow, self.people_table))

    @property
    def accepted(self) -> list[str]:
        """Ids of the accepted clips."""
        found: list[str] = self.table.column("clip_id").filter(self.table.column("accepted")).to_pylist()
        return found

    @property
    def waiting(self) -> int:
        """Number of accepted clips that lie in no shard yet."""
        unplaced = self.table.column("shard").is_null()
        return int(pc.sum(pc.and_(self.table.column("accepted"), unplaced)).as_py() or 0)

    def accepted_by_part(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Each part that holds accepted clips, and their rows of the ledger as far as `ACCEPTED_ROW` goes.

        A row has the further columns of the inputs' lists as its value `listed`, by their names there.
        """
        is_accepted = self.table.column("accepted")
        parts = self.parts.filter(is_accepted)
        ours = [name for name in self.table.column_names if name.startswith(LISTED)]
        rows = self.table.select([*ACCEPTED_ROW, *ours]).filter(is_accepted)
        order = pc.sort_indices(
            pa.table({"part": parts, "clip_id": rows.column("clip_id")}),
            sort_keys=[("part", "ascending"), ("clip_id", "ascending")],
        )
        rows = rows.take(order)
        begin = 0
        for part, num_rows in Counter(parts.take(order).to_pylist()).items():
            found = rows.slice(begin, num_rows).to_pylist()
            for row in found:
                row["listed"] = {name.removeprefix(LISTED): row.pop(name) for name in ours}
            yield part, found
            begin += num_rows

    @property
    def totals(self) -> Totals:
        """Hours and counts, as every command shows them."""
        return count(self.sources.table, self.table)

    def with_columns(self, **columns: Sequence[Any]) -> Selection:
        """The same with other values in some columns of the ledger."""
        table = self.table
        for name, values in columns.items():
            number = table.column_names.index(name)
            field = table.schema.field(number)
            table = table.set_column(number, field, pa.array(values, field.type))
        return replace(self, table=table)


def read_committed(
    store: Store, arrays: Collection[str] | None = None, parts: Mapping[str, Collection[str]] | None = None
) -> Committed:
    """Rows and small arrays of the committed parts, clips in the order of their ids.

    Every clip is an object in memory. `measured.read_measured` has the same as columns.

    Args:
        store: the data set.
        arrays: names of the small arrays that are wanted; None reads all of them.
        parts: part -> ids of its clips that are wanted; None reads all parts.
    """
    found = Committed()
    clips: dict[str, CommittedClip] = {}
    for part in committed_parts(store) if parts is None else sorted(parts):
        found.parts += 1
        failures = tables.read(store, f"parts/{part}/failures.parquet", Failure)
        for clip in clips_of_part(store, part, arrays, None if parts is None else parts[part], failures):
            key = clip.measures.clip.clip_id
            # Twice: a window whose part was cut up anew, or a clip that was traced after its part.
            if key not in clips or clips[key].measures.stopped_by == NOT_TRACED.code:
                clips[key] = clip
        found.outcomes += tables.read(store, f"parts/{part}/outcomes.parquet", Outcome)
        found.failures += failures
    found.failures += attempts.waiting(store).values()
    found.outcomes = _each_once(found.outcomes)
    found.clips = [clips[key] for key in sorted(clips)]
    found.failures.sort(key=lambda failure: (failure.uri, failure.key))
    return found


def clips_of_part(
    store: Store,
    part: str,
    arrays: Collection[str] | None = None,
    wanted: Collection[str] | None = None,
    failures: Iterable[Failure] = (),
) -> list[CommittedClip]:
    """The clips of one part, in its order.

    Args:
        store: the data set.
        part: its name.
        arrays: names of the small arrays that are wanted; None reads all of them.
        wanted: ids of the clips that are wanted; None: all of them.
        failures: of the part.
    """
    folder, by_key = f"parts/{part}", {failure.key: failure for failure in failures}
    features = small_arrays.read(store, folder, arrays, wanted)
    return [
        CommittedClip(part, row, features.get(row.clip.clip_id, {}), by_key.get(row.clip.clip_id))
        for row in tables.read(store, f"{folder}/clips.parquet", ClipMeasures)
        if wanted is None or row.clip.clip_id in wanted
    ]


def _each_once(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Of every window one, in the order of time: which part was committed first must not show."""
    by_span = {(o.video_id, o.start_s, o.end_s): o for o in outcomes}
    return [by_span[span] for span in sorted(by_span)]


def select(
    measured: Measured,
    ingested: Sequence[IngestRow],
    config: Config,
    reviewed: Mapping[str, ReviewRow] = MappingProxyType({}),
) -> Selection:
    """Apply the thresholds: verdicts, near duplicates, people, splits, motion intensities.

    Args:
        measured: what the parts say, with annotations.
        ingested: every input.
        config: its thresholds are applied.
        reviewed: what people said of clips, by clip id, see `pipeline.review`.
    """
    intake = Intake(ingested)
    found, inputs = rows_of_inputs(measured.clips, intake, config.thresholds)
    people, groups = _name_people(found, measured, config)
    _compare_voices(found, measured)
    _name_speakers(found)
    _shift_audio(found, intake.planned, inputs, config)
    reasons = _follow_reviews(found, judge_columns(found, config.thresholds), reviewed, config.thresholds)
    found.set_reasons(reasons)
    found.set_reasons(_reject_near_duplicates(found, reasons, measured, config.thresholds))
    accepted = found.table.column("accepted").to_numpy()
    quantiles = {}
    for name in OMEGAS:
        raw = found.floats(f"{name}_raw")
        quantiles[name] = _quantiles(raw[accepted])
        found[name] = pa.array(intensities(raw, quantiles[name]), pa.float64())
    _split(found, accepted, groups, config)
    return Selection(
        table=_ordered(found.table, _listed(intake.planned, inputs)),
        parts=found.table.column("part"),
        people_table=people,
        sources=source_rows(intake, measured.outcomes, measured.failures, intake.counts(inputs)),
        failures=tuple(_ingest_failures(intake) + measured.failures),
        quantiles=quantiles,
        notes=tuple(_notes(found.table, groups, config)),
        repeats=all_repeats(found.table, measured.read_copies, config.thresholds),
    )


def _shift_audio(
    found: ClipRows, planned: Sequence[IngestRow], inputs: NDArray[np.int64], config: Config
) -> None:
    """By how much the audio of each clip is moved, null where not at all; and the span that is cut then."""
    shifts = np.full(len(found), np.nan)
    spans = {name: found.floats(name).copy() for name in SPAN}
    limit = config.thresholds.max_abs_sync_offset_frames
    if config.thresholds.repair_sync and limit is not None:
        far = np.flatnonzero(np.abs(found.floats("sync_offset_frames")) > limit)
        for number, row in found.rows(far, [*Clip.model_fields, *Sync.model_fields]):
            if moved := _moved(row, planned[inputs[number]], config):
                shifts[number], clip = moved
                for name, column in spans.items():
                    column[number] = getattr(clip, name)
    found["audio_shift_s"] = pa.array(shifts, pa.float64(), from_pandas=True)
    for name, column in spans.items():
        found[name] = pa.array(column).cast(found.table.schema.field(name).type)


SPAN = ("start_s", "end_s", "duration_s", "num_frames")
"""Columns that say which span of the source a clip shows."""


def _follow_reviews(
    found: ClipRows, reasons: Reasons, reviewed: Mapping[str, ReviewRow], thresholds: Thresholds
) -> Reasons:
    """The reasons once people have decided, and the columns that name the decisions."""
    ids = found.table.column("clip_id").combine_chunks()
    decided = pa.array(sorted(key for key, row in reviewed.items() if row.decision != "none"), pa.string())
    numbers = np.flatnonzero(pc.is_in(ids, value_set=decided).to_numpy(zero_copy_only=False))
    columns: dict[str, NDArray[Any]] = {name: np.full(len(found), None, object) for name in REVIEWED}
    columns["overruled"][:] = [()] * len(found)
    left: list[tuple[int, str, str]] = []
    for number, row in found.rows(numbers, found.table.column_names):
        is_traced = row["lip_valid_fraction"] is not None
        verdict, named = review.decide(judge(row, thresholds), reviewed[row["clip_id"]], is_traced)
        left += [(number, reason.code, str(reason)) for reason in verdict.reasons]
        for name, value in named.items():
            columns[name][number] = value
    types = {f.name: f.type for f in tables.arrow_schema(LedgerRow)}
    for name in REVIEWED:
        found[name] = pa.array(columns[name], types[name])
    return reasons.without(numbers).with_more(*zip(*left, strict=True)) if left else reasons.without(numbers)


REVIEWED = ("reviewed", "overruled")
"""Columns that name the decisions of people."""


def _reject_near_duplicates(
    found: ClipRows, reasons: Reasons, measured: Measured, thresholds: Thresholds
) -> Reasons:
    """All reasons once accepted rows that repeat a better one are rejected, but for those that a reviewer
    keeps."""
    kept_of: dict[str, str] = {}
    copies = found.table.select(["clip_id"]).slice(0, 0)
    if thresholds.near_duplicates:
        needed = found.table.select([*near_duplicates.RANKED, "reviewed"])
        good = needed.filter(found.table.column("accepted"))
        kept_of = near_duplicates.repeated(good, measured.read_copies(), thresholds)
        copies = good.filter(pc.is_in(good.column("clip_id"), value_set=pa.array(list(kept_of), pa.string())))
        copies = copies.filter(pc.fill_null(pc.not_equal(copies.column("reviewed"), "keep"), True))
    keys = copies.column("clip_id")
    numbers = pc.index_in(keys, value_set=found.table.column("clip_id").combine_chunks()).to_pylist()
    originals = np.full(len(found), None, object)
    originals[numbers] = [kept_of[key] for key in keys.to_pylist()]
    found["duplicate_of"] = pa.array(originals, pa.string())
    details = [f"{NEAR_DUPLICATE.code} (of {kept})" for kept in originals[numbers]]
    return reasons.with_more(numbers, [NEAR_DUPLICATE.code] * len(numbers), details)


def _listed(planned: tables.Rows[IngestRow], inputs: NDArray[np.int64]) -> dict[str, pa.Array]:
    """A text column `source.<name>` for each further column of the inputs' lists.

    Args:
        planned: the inputs that are measured.
        inputs: number of the input of each clip, [n].
    """
    said = planned.column("input.columns").combine_chunks()
    said = said.chunk(0) if isinstance(said, pa.ChunkedArray) else said
    rows, pairs = pc.list_parent_indices(said).to_numpy(), pc.list_flatten(said)
    names = pairs.field("name").dictionary_encode()
    which = names.indices.to_numpy()
    is_used = np.isin(rows, inputs)
    found = {}
    for number, name in sorted(enumerate(names.dictionary.to_pylist()), key=lambda pair: pair[1]):
        own = np.flatnonzero((which == number) & is_used)
        if len(own):
            value_of = np.zeros(len(planned), np.int64)  # the last one of several
            value_of[rows[own]] = 1 + own
            values = pa.concat_arrays([pa.array([""]), pairs.field("value")])
            found[f"{LISTED}{name}"] = values.take(pa.array(value_of[inputs]))
    return found


def _ordered(table: pa.Table, listed: Mapping[str, pa.Array]) -> pa.Table:
    """The table in the columns of the ledger, null where nothing was decided yet; then the lists' own."""
    schema = tables.arrow_schema(LedgerRow)
    columns = [
        table.column(f.name).cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    ordered = pa.table(columns, schema=schema)
    for name, column in listed.items():
        ordered = ordered.append_column(name, column)
    return ordered


OMEGAS = ("omega_face", "omega_body")


def _moved(row: Mapping[str, Any], entry: IngestRow, config: Config) -> tuple[float, Clip] | None:
    """By how much the audio is moved when a clip is cut, s, and the clip then; None where it is not moved.

    Frames whose audio is not in the file then, or lies outside the span that the input names, are left out:
    there would be silence in its place, or what the user left out. Where less than `measure.clip.min_s`
    would remain, the audio is not moved.
    """
    shift_s, video = repair_s(row, config.thresholds), entry.video
    if not shift_s or video is None or video.audio_start_s is None:
        return None
    clip = Clip.model_validate({name: row[name] for name in Clip.model_fields})
    audio_end_s = video.end_s if video.audio_end_s is None else video.audio_end_s
    first_s, last_s = entry.input.span_s
    early_s = max(first_s, video.audio_start_s) - (clip.start_s - shift_s)
    late_s = clip.end_s - shift_s - min(last_s, audio_end_s)
    clip = clip.trimmed((covering_frames(early_s, clip.fps), covering_frames(late_s, clip.fps)))
    return None if clip.num_frames < config.measure.clip.min_s * clip.fps else (shift_s, clip)


def _name_speakers(found: ClipRows) -> None:
    """Where clips of one video overlap in time, mark which of the faces speaks."""
    speaks = np.full(len(found), None, object)
    scored = ~(np.isnan(found.floats("sync_probability")) & np.isnan(found.floats("speaking_fraction")))
    names = ["clip_id", "start_s", "end_s", "speaking_fraction", *Sync.model_fields]
    for together in _overlapping(found, np.flatnonzero(scored)):
        rows = dict(found.rows(together, names))
        for number, row in rows.items():
            rivals = [other for n, other in rows.items() if n != number and _overlap_s(other, row) > 0]
            if rivals and (speaker := _speaker([row, *rivals])) is not None:
                speaks[number] = speaker == row["clip_id"]
    found["active_speaker"] = pa.array(speaks, pa.bool_())


def _overlapping(found: ClipRows, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of one video that hang together by overlaps in time, two and more; ascending."""
    _, videos = found.distinct("video_id")
    starts, ends = (found.floats(name)[numbers] for name in ("start_s", "end_s"))
    # One time line of whole numbers on which videos follow each other, so that nothing is rounded.
    times, ranks = np.unique(np.concatenate([starts, ends]), return_inverse=True)
    ranks = ranks.reshape(2, -1) + videos[numbers] * len(times)
    order = np.lexsort(ranks[::-1])
    starts, ends = ranks[0][order], np.maximum.accumulate(ranks[1][order])
    # Clips that follow each other do not overlap.
    begins = np.append(0, np.flatnonzero(starts[1:] >= ends[:-1]) + 1)
    sizes = np.diff(begins, append=len(order))
    for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield np.sort(numbers[order[begin : begin + size]])


def _speaker(together: Sequence[Mapping[str, Any]]) -> str | None:
    """Clip of the face that speaks, by Light-ASD where it distinguishes them, else by sync."""
    seen = {row["clip_id"]: row["speaking_fraction"] for row in together}
    by_sync = {
        row["clip_id"]: Sync.model_validate({name: row[name] for name in Sync.model_fields})
        for row in together
        if row["sync_method"] is not None
    }
    return active_speaker.speaker(seen) or contrastive.speaker(by_sync)


def _overlap_s(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return float(min(a["end_s"], b["end_s"]) - max(a["start_s"], b["start_s"]))


def _quantiles(values: NDArray[np.float64]) -> list[float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    return [float(q) for q in np.quantile(known, np.linspace(0, 1, QUANTILES))]


def _name_people(found: ClipRows, measured: Measured, config: Config) -> tuple[pa.Table, list[str]]:
    """The person of every row: the people, and the group of every clip.

    All measured clips decide on people, so thresholds move no name.
    """
    ids, videos, labels = (found.table.column(name) for name in ("clip_id", "video_id", "person"))
    models = found.table.column("identity_model").drop_null()
    same_person = identity.same_person_threshold(config.shards, models[0].as_py() if len(models) else None)
    who = measured.people(found.table, same_person)
    persons = (
        who["persons"]
        .column("person_id")
        .take(pc.index_in(ids, value_set=who["persons"].column("clip_id").combine_chunks()))
    )
    groups = shards.group_names(videos, persons, labels)
    found["person_id"] = persons.combine_chunks()
    return who["people"], groups


def _split(found: ClipRows, accepted: NDArray[np.bool_], groups: Sequence[str], config: Config) -> None:
    """The split of every accepted row."""
    splits = shards.assign_splits({group: group for group in set(groups)}, config.shards)
    chosen = [splits[g] if good else None for g, good in zip(groups, accepted.tolist(), strict=True)]
    found["split"] = pa.array(chosen, pa.string())


def _compare_voices(found: ClipRows, measured: Measured) -> None:
    """Voice of every row, and its similarity to the usual voice of the face, or of the person of the list."""
    of_clip = measured.read_voices()
    if not of_clip:  # seldom measured
        found["voice_person"] = pa.nulls(len(found), pa.string())
        found["voice_similarity"] = pa.nulls(len(found), pa.float64())
        return
    table = found.table
    keys, persons, labels = (table.column(name).to_pylist() for name in ("clip_id", "person_id", "person"))
    person_of = {key: person or label for key, person, label in zip(keys, persons, labels, strict=True)}
    vectors = {key: vector for key, vector in of_clip.items() if key in person_of}
    heard = list(map(voices.compare(vectors, person_of).get, keys))
    found["voice_person"] = pa.array([one and one.person for one in heard], pa.string())
    found["voice_similarity"] = pa.array([one and one.similarity for one in heard], pa.float64())


def all_repeats(
    table: pa.Table, read_copies: Callable[[], pa.Table], thresholds: Thresholds
) -> near_duplicates.Repeats | None:
    """Near duplicates among all clips on which thresholds decide; None where these are too many.

    Args:
        table: the ledger.
        read_copies: see `Measured`; not called where it is not needed.
        thresholds: when two clips are duplicates.
    """
    is_open = pc.and_(table.column("failure").is_null(), table.column("stopped_by").is_null())
    rows = table.select([*near_duplicates.RANKED, "reasons"]).filter(is_open)
    sets = pc.binary_join(rows.column("reasons").combine_chunks(), ",").dictionary_encode()
    known = (text.split(",") if text else () for text in sets.dictionary.to_pylist())
    of_set = [hangs_on_numbers(None, None, codes) for codes in known]
    rows = rows.filter(pa.array(of_set, pa.bool_()).take(sets.indices))
    if len(rows) > near_duplicates.MAX_CLIPS:
        return None
    copies = read_copies() if thresholds.near_duplicates else near_duplicates.empty()
    return near_duplicates.all_repeats(rows, copies, thresholds)


def _notes(table: pa.Table, groups: Sequence[str], config: Config) -> Iterator[str]:
    """What was not read of inputs, where a gate ended measuring, where nothing is held out: a line each."""
    unread = pc.sum(pc.equal(table.column("training_mining"), UNREAD)).as_py()
    if unread:
        yield (
            f"{unread} clips are rejected because nobody has read the content credentials of their files: "
            "talkforge curate with the same inputs reads them (extra c2pa)"
        )
    found = table.column("stopped_by").drop_null()
    stopped = found.filter(pc.not_equal(found, NOT_TRACED.code)).value_counts().to_pylist()
    if stopped:
        told = ", ".join(
            f"{row['values']} {row['counts']}" for row in sorted(stopped, key=lambda r: r["values"])
        )
        yield (
            f"{sum(row['counts'] for row in stopped)} clips were not measured further because of a gate "
            f"({told}): no threshold can accept them. The gates are measure.gates and measure.clip.min_s of "
            "a new data set"
        )
    splits = table.column("split").to_pylist()
    of_accepted = {group for group, split in zip(groups, splits, strict=True) if split}
    fraction = config.shards.validation_fraction
    if not of_accepted or not fraction or "validation" in splits:
        return
    why = f"of {len(of_accepted)} people or videos none falls into shards.validation_fraction={fraction:g}"
    if len(of_accepted) == 1:
        yield f"no clip is held out for validation: {why}, and the only one is for training"
    else:
        least = shards.least_fraction(of_accepted, config.shards)
        yield f"no clip is held out for validation: {why}; shards.validation_fraction={least:g} holds one out"


def _ingest_failures(intake: Intake) -> list[Failure]:
    failed = intake.all.where(intake.all.table.column("failure").is_valid())
    return sorted(
        (entry.failure for entry in failed if entry.failure), key=lambda failure: (failure.uri, failure.key)
    )


def with_shards(selection: Selection, where: Mapping[str, str]) -> Selection:
    """The selection with the shard of every accepted clip that lies in one."""
    if not where:
        return selection
    keys, accepted = (selection.table.column(name).to_pylist() for name in ("clip_id", "accepted"))
    shard = [where.get(key) if good else None for key, good in zip(keys, accepted, strict=True)]
    return selection.with_columns(shard=shard)


def with_failures(selection: Selection, failures: Sequence[Failure], kept: Collection[str] = ()) -> Selection:
    """The selection with clips that could not be cut turned from accepted to failed.

    Clips that are `kept` have a sample of an earlier run: they stay accepted, and their failures are listed.
    """
    by_key = {failure.key: failure for failure in failures if failure.key not in kept}
    after = replace(selection, failures=(*selection.failures, *failures))
    if not by_key:
        return after
    keys = selection.table.column("clip_id").to_pylist()
    changed = {
        name: selection.table.column(name).to_pylist() for name in ("accepted", "split", "shard", "failure")
    }
    for number, key in enumerate(keys):
        if failure := by_key.get(key):
            changed["accepted"][number] = False
            changed["split"][number] = changed["shard"][number] = None
            changed["failure"][number] = f"{failure.error}: {failure.message}"
    return after.with_columns(**changed)


def parts_of_clips(store: Store, selection: Selection | None = None) -> dict[str, str]:
    """Name of the part that holds each candidate clip.

    Args:
        store: the data set.
        selection: the last one, where it is at hand: the parts are then not looked through once more.
    """
    if selection is None:
        clips = read_clips(store, ["clip_id", "part"])
        names = clips.column("clip_id"), clips.column("part")
    else:
        names = selection.table.column("clip_id"), selection.parts
    return dict(zip(*(column.to_pylist() for column in names), strict=True))


def thumbnails(store: Store, part_of: Mapping[str, str] | None = None) -> Callable[[str], bytes | None]:
    """Looks up the JPEG image of a clip by its id, or of its face by `<id>/face`; None where there is none.

    Only the images of the part that was read last are held in memory.

    Args:
        store: the data set.
        part_of: answer of `parts_of_clips`, where it is known already; None looks.
    """
    where = parts_of_clips(store) if part_of is None else part_of

    @functools.lru_cache(maxsize=1)
    def images(name: str) -> dict[str, bytes]:
        return {key: array.tobytes() for key, array in read_npz(store.read(name), name).items()}

    def look_up(name: str) -> bytes | None:
        part = where.get(name.partition("/")[0])
        return images(f"parts/{part}/thumbnails.npz").get(name) or None if part else None

    return look_up


def check_conservation(selection: Selection, ingested: Sequence[IngestRow]) -> None:
    """Nothing may be lost.

    Raises:
        DatasetError: an input without a source row, or a candidate that is not exactly one of
            accepted, rejected or failed; with the counts.
    """
    if len(selection.sources) != len(ingested):
        raise DatasetError(
            f"sources: expected {len(ingested)} rows, one an input, found {len(selection.sources)}"
        )
    table = selection.table
    failed = table.column("failure").is_valid()
    rejected = pc.and_(pc.greater(pc.list_value_length(table.column("reasons")), 0), pc.invert(failed))
    fates = [table.column("accepted"), failed, rejected]
    total = functools.reduce(pc.add, (pc.cast(fate, pa.int8()) for fate in fates))
    for number in np.flatnonzero(pc.not_equal(total, 1).to_numpy()).tolist():
        found = [fate[number].as_py() for fate in fates]
        key = table.column("clip_id")[number]
        raise DatasetError(f"ledger {key}: expected one of accepted, failed, rejected; found {found}")


def ledger_tables(selection: Selection) -> dict[str, bytes]:
    """Content of `ledger.parquet`, `people.parquet`, `sources.parquet` and `failures.parquet`, by name."""
    found = {
        "failures.parquet": tables.to_table(Failure, selection.failures),
        "people.parquet": selection.people_table,
        "sources.parquet": tables.to_table(SourceRow, selection.sources),
        "ledger.parquet": selection.table,
    }
    return {name: tables.to_bytes(table) for name, table in found.items()}


def write_ledger(store: Store, selection: Selection) -> None:
    """Write the `ledger_tables`."""
    for name, data in ledger_tables(selection).items():
        store.write(name, data)
