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
from numpy.typing import NDArray

from talkforge.curation import words
from talkforge.curation.body.motion import intensity
from talkforge.curation.face import identity
from talkforge.curation.sync import active_speaker, contrastive
from talkforge.curation.verdict import NEAR_DUPLICATE, NOT_TRACED, hangs_on_numbers, judge, repair_s
from talkforge.pipeline import attempts, review, shards, tables, voices
from talkforge.pipeline.dataset import load_plan
from talkforge.pipeline.ingest import IngestRow, Planned
from talkforge.pipeline.near_duplicates import Repeats, all_repeats, find_near_duplicates
from talkforge.pipeline.parts import committed_parts
from talkforge.pipeline.people import FaceClip, describe_people
from talkforge.pipeline.standing import measured_columns, source_rows, terms
from talkforge.pipeline.store import Store
from talkforge.pipeline.totals import Totals, count
from talkforge.schemas.config import Config, Thresholds
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import (
    CaptionRow,
    ClipMeasures,
    Failure,
    LedgerRow,
    Outcome,
    PersonRow,
    Reason,
    ReviewRow,
    SourceRow,
    TranscriptRow,
    Verdict,
)

OPENING = "opening"
"""Name of the first column of the small array `mouth`, which is a thirtieth of it."""

SELECTING = ("identity", "voice", "pictures", "faces", "sound", OPENING)
"""Small arrays that selection looks at; the others serve to score sync again."""

LISTED = "source."
"""Begins the names of ledger columns that come from further columns of the inputs' lists."""

Named = tuple[list[FaceClip], dict[str, shards.ClipGroup]]
"""Faces of all clips, and person and group of each clip by its id."""

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
    """The outcome of `select`: rows in the order of their ids, and what they were scaled by.

    `clips` are the accepted ones as they were committed, with their identity vector only. `listed` are the
    further columns of the inputs' lists, by clip id: the same names for every clip.
    """

    rows: tuple[LedgerRow, ...]
    people: tuple[PersonRow, ...]
    sources: tuple[SourceRow, ...]
    failures: tuple[Failure, ...]
    quantiles: dict[str, list[float]]
    verdicts: dict[str, Verdict]
    clips: dict[str, CommittedClip]
    listed: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a user may miss: one line each, see `_notes`."""
    repeats: Repeats | None = None
    """Near duplicates among all clips on which thresholds decide, see `all_repeats`."""

    @property
    def totals(self) -> Totals:
        """Hours and counts, as every command shows them."""
        return count(((row.status, row.duration_s) for row in self.sources), self.rows)


def read_committed(store: Store, arrays: Collection[str] | None = None) -> Committed:
    """Rows and small arrays of every committed part, clips in the order of their ids.

    Args:
        store: the data set.
        arrays: names of the small arrays that are wanted, `OPENING` among them; None reads all that are
            stored.
    """
    found = Committed()
    clips: dict[str, CommittedClip] = {}
    for part in committed_parts(store):
        found.parts += 1
        folder = f"parts/{part}"
        failures = tables.read(store, f"{folder}/failures.parquet", Failure)
        by_key = {failure.key: failure for failure in failures}
        features = _features(store, f"{folder}/features.npz", arrays)
        for measures in tables.read(store, f"{folder}/clips.parquet", ClipMeasures):
            key = measures.clip.clip_id
            # Twice: a window whose part was cut up anew, or a clip that was traced after its part.
            if key not in clips or clips[key].measures.stopped_by == NOT_TRACED.code:
                clips[key] = CommittedClip(part, measures, features.get(key, {}), by_key.get(key))
        found.outcomes += tables.read(store, f"{folder}/outcomes.parquet", Outcome)
        found.failures += failures
    found.failures += attempts.waiting(store, load_plan(store)).values()
    found.outcomes = _each_once(found.outcomes)
    found.clips = [clips[key] for key in sorted(clips)]
    found.failures.sort(key=lambda failure: (failure.uri, failure.key))
    return found


def _each_once(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Of every window one, in the order of time: which part was committed first must not show."""
    by_span = {(o.video_id, o.start_s, o.end_s): o for o in outcomes}
    return [by_span[span] for span in sorted(by_span)]


def _features(store: Store, name: str, wanted: Collection[str] | None) -> dict[str, dict[str, NDArray[Any]]]:
    """Clip id -> name -> array, of those whose name is `wanted`."""
    features: dict[str, dict[str, NDArray[Any]]] = {}
    names = {*(wanted or ()), *(["mouth"] if wanted and OPENING in wanted else [])}
    stored = read_npz(store.read(name), name, wanted=lambda key: not names or key.partition("/")[2] in names)
    for key, array in stored.items():
        clip, _, what = key.partition("/")
        own = features.setdefault(clip, {})
        if what == "mouth" and OPENING in names:
            own[OPENING] = array[:, 0].copy()  # a view would keep all of the array
        if what != "mouth" or not wanted or "mouth" in wanted:
            own[what] = array
    return features


def select(
    committed: Committed,
    ingested: Sequence[IngestRow],
    config: Config,
    reviewed: Mapping[str, ReviewRow] = MappingProxyType({}),
) -> Selection:
    """Apply the thresholds: verdicts, near duplicates, people, splits, motion intensities.

    Args:
        committed: what the parts say, with annotations.
        ingested: every input.
        config: its thresholds are applied.
        reviewed: what people said of clips, by clip id, see `pipeline.review`.
    """
    planned = Planned(ingested)
    # What was measured of a file that has changed since is no longer part of the data set.
    found = [(clip, entry) for clip in committed.clips if (entry := planned.of_clip(clip.measures.clip))]
    pairs = [(clip, entry.input) for clip, entry in found]
    clips = [clip for clip, _ in pairs]
    flat = [_flat(clip, entry) for clip, entry in found]
    named = _face_groups(clips, flat, config)
    _compare_voices(clips, flat)
    _name_speakers(clips, flat)
    for clip, row in zip(clips, flat, strict=True):
        row["num_forbidden_words"] = _forbidden(clip.transcript, config.thresholds.forbidden_words)
    for (_, entry), row in zip(found, flat, strict=True):
        row["audio_shift_s"] = _audio_shift_s(row, entry, config.thresholds)
    verdicts: dict[str, Verdict] = {}
    for clip, row in zip(clips, flat, strict=True):
        said, is_traced = reviewed.get(row["clip_id"]), clip.measures.lips is not None
        verdict, columns = review.decide(judge(row, config.thresholds), said, is_traced)
        verdicts[row["clip_id"]] = verdict
        row |= {"overruled": ()} | columns
        row["accepted"] = verdict.accepted and row["failure"] is None
        row["reasons"] = tuple(reason.code for reason in verdict.reasons)
        row["reason_details"] = tuple(map(str, verdict.reasons))
    verdicts |= _reject_near_duplicates(clips, flat, config.thresholds)
    quantiles = {name: _quantiles(row[f"{name}_raw"] for row in flat if row["accepted"]) for name in OMEGAS}
    for row in flat:
        for name in OMEGAS:
            row[name] = intensity(row[f"{name}_raw"], quantiles[name])
    people, groups = _describe_people(named, flat, config)
    on_numbers = [
        (row, clip.features)
        for clip, row in zip(clips, flat, strict=True)
        if hangs_on_numbers(row["failure"], row["stopped_by"], row["reasons"])
    ]
    candidates = (clip.measures.clip for clip in committed.clips)
    names = sorted({column.name for _, given in pairs for column in given.columns})
    return Selection(
        rows=tuple(LedgerRow.model_validate(row) for row in flat),
        people=tuple(people),
        sources=tuple(source_rows(ingested, committed.outcomes, committed.failures, candidates)),
        failures=tuple(_ingest_failures(ingested) + committed.failures),
        quantiles=quantiles,
        verdicts=verdicts,
        clips={row["clip_id"]: _to_cut(c) for c, row in zip(clips, flat, strict=True) if row["accepted"]},
        notes=tuple(_notes(flat, groups, config)),
        repeats=all_repeats(on_numbers, config.thresholds),
        listed={
            clip.measures.clip.clip_id: dict.fromkeys(names, "")
            | {column.name: column.value for column in given.columns}
            for clip, given in pairs
        },
    )


def _to_cut(clip: CommittedClip) -> CommittedClip:
    return replace(clip, features={k: v for k, v in clip.features.items() if k == "identity"})


def _reject_near_duplicates(
    clips: Sequence[CommittedClip], flat: Sequence[dict[str, Any]], thresholds: Thresholds
) -> dict[str, Verdict]:
    """Turn accepted rows that repeat a better one into rejected ones, but for those that a reviewer keeps;
    their verdicts."""
    accepted = {
        row["clip_id"]: (row, clip.features) for clip, row in zip(clips, flat, strict=True) if row["accepted"]
    }
    found = find_near_duplicates(accepted.values(), thresholds)
    found = {key: kept for key, kept in found.items() if accepted[key][0]["reviewed"] != "keep"}
    for key, kept in found.items():
        accepted[key][0].update(
            accepted=False,
            duplicate_of=kept,
            reasons=(NEAR_DUPLICATE.code,),
            reason_details=(f"{NEAR_DUPLICATE.code} (of {kept})",),
        )
    reason = Reason(code=NEAR_DUPLICATE.code, field=NEAR_DUPLICATE.field, value=None, threshold=None)
    return {key: Verdict(clip_id=key, accepted=False, reasons=(reason,)) for key in found}


OMEGAS = ("omega_face", "omega_body")


def _flat(clip: CommittedClip, entry: IngestRow) -> dict[str, Any]:
    row = measured_columns(clip.measures, entry.video) | terms(entry.input)
    row["failure"] = f"{clip.failure.error}: {clip.failure.message}" if clip.failure else None
    return row


def _audio_shift_s(row: Mapping[str, Any], entry: IngestRow, thresholds: Thresholds) -> float | None:
    """By how much the audio is moved when the clip is cut; None where not at all.

    It is not moved where the audio that fits the mouth is not all in the file, or lies outside the span that
    the input names: there would be silence in its place, or what the user left out.
    """
    shift_s, video = repair_s(row, thresholds), entry.video
    if not shift_s or video is None or video.audio_start_s is None:
        return None
    audio_end_s = video.end_s if video.audio_end_s is None else video.audio_end_s
    first_s, last_s = entry.input.span_s
    inside = row["start_s"] - shift_s >= max(first_s, video.audio_start_s)
    return shift_s if inside and row["end_s"] - shift_s <= min(last_s, audio_end_s) else None


def _name_speakers(clips: Sequence[CommittedClip], flat: Sequence[dict[str, Any]]) -> None:
    """Where clips of one video overlap in time, mark which of the faces speaks."""
    by_video: dict[str, list[int]] = {}
    for index, row in enumerate(flat):
        if row["sync_probability"] is not None or row["speaking_fraction"] is not None:
            by_video.setdefault(row["video_id"], []).append(index)
    for indices in by_video.values():
        for index in indices:
            rivals = [i for i in indices if i != index and _overlap_s(flat[i], flat[index]) > 0]
            if rivals:
                speaker = _speaker([clips[i].measures for i in (index, *rivals)])
                if speaker is not None:
                    flat[index]["active_speaker"] = speaker == flat[index]["clip_id"]


def _speaker(together: Sequence[ClipMeasures]) -> str | None:
    """Clip of the face that speaks, by Light-ASD where it distinguishes them, else by sync."""
    seen = {m.clip.clip_id: m.speaker.speaking_fraction if m.speaker else None for m in together}
    by_sync = {m.clip.clip_id: m.sync for m in together if m.sync is not None}
    return active_speaker.speaker(seen) or contrastive.speaker(by_sync)


def _forbidden(transcript: TranscriptRow | None, forbidden: Sequence[str]) -> int | None:
    if not forbidden or transcript is None or transcript.failure is not None:
        return None
    return words.occurrences(transcript.text, forbidden)


def _overlap_s(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return float(min(a["end_s"], b["end_s"]) - max(a["start_s"], b["start_s"]))


def _quantiles(values: Iterable[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    if not known:
        return []
    return [float(q) for q in np.quantile(known, np.linspace(0, 1, QUANTILES))]


def _face_groups(clips: Sequence[CommittedClip], flat: Sequence[dict[str, Any]], config: Config) -> Named:
    """The faces of all clips with their people and groups; the person goes into every row.

    All traced clips decide on people, so `select` moves no name.
    """
    faces = [
        FaceClip(
            row["clip_id"],
            row["video_id"],
            row["start_s"],
            row["end_s"],
            clip.features.get("identity"),
            row["person"],
        )
        for clip, row in zip(clips, flat, strict=True)
    ]
    model = next((row["identity_model"] for row in flat if row["identity_model"]), None)
    named = shards.split_groups(faces, identity.same_person_threshold(config.shards, model))
    for row in flat:
        row["person_id"] = named[row["clip_id"]].person_id
    return faces, named


def _compare_voices(clips: Sequence[CommittedClip], flat: Sequence[dict[str, Any]]) -> None:
    """Voice of every row, and its similarity to the usual voice of the face, or of the person of the list."""
    person_of = {row["clip_id"]: row["person_id"] or row["person"] for row in flat}
    vectors = {
        clip.measures.clip.clip_id: clip.features["voice"] for clip in clips if "voice" in clip.features
    }
    heard = voices.compare(vectors, person_of)
    for row in flat:
        if found := heard.get(row["clip_id"]):
            row |= {"voice_person": found.person, "voice_similarity": found.similarity}


def _describe_people(
    named: Named, flat: Sequence[dict[str, Any]], config: Config
) -> tuple[list[PersonRow], dict[str, str]]:
    """The people, and the group of every clip. The split goes into every row."""
    faces, found = named
    groups = {key: group for key, (_, group) in found.items()}
    splits = shards.assign_splits(groups, config.shards)
    for row in flat:
        row["split"] = splits[row["clip_id"]] if row["accepted"] else None
    return describe_people(faces, {key: who for key, (who, _) in found.items() if who}), groups


def _notes(flat: Sequence[Mapping[str, Any]], groups: Mapping[str, str], config: Config) -> Iterator[str]:
    """Where a gate ended measuring of clips, and where nothing is held out for validation, a line each."""
    stopped = Counter(row["stopped_by"] for row in flat if row["stopped_by"] not in (None, NOT_TRACED.code))
    if stopped:
        told = ", ".join(f"{code} {number}" for code, number in sorted(stopped.items()))
        yield (
            f"{stopped.total()} clips were not measured further because of a gate ({told}): no threshold can "
            "accept them. The gates are measure.gates and measure.clip.min_s of a new data set"
        )
    accepted = [row for row in flat if row["accepted"]]
    fraction = config.shards.validation_fraction
    if not accepted or not fraction or any(row["split"] == "validation" for row in accepted):
        return
    of_accepted = {groups[row["clip_id"]] for row in accepted}
    why = f"of {len(of_accepted)} people or videos none falls into shards.validation_fraction={fraction:g}"
    if len(of_accepted) == 1:
        yield f"no clip is held out for validation: {why}, and the only one is for training"
    else:
        least = shards.least_fraction(of_accepted, config.shards)
        yield f"no clip is held out for validation: {why}; shards.validation_fraction={least:g} holds one out"


def _ingest_failures(ingested: Sequence[IngestRow]) -> list[Failure]:
    return sorted(
        (entry.failure for entry in ingested if entry.failure), key=lambda failure: (failure.uri, failure.key)
    )


def with_shards(selection: Selection, where: Mapping[str, str]) -> Selection:
    """The selection with the shard of every accepted clip that lies in one."""
    rows = (
        row.model_copy(update={"shard": where.get(row.clip_id) if row.accepted else None})
        for row in selection.rows
    )
    return replace(selection, rows=tuple(rows))


def with_failures(selection: Selection, failures: Sequence[Failure], kept: Collection[str] = ()) -> Selection:
    """The selection with clips that could not be cut turned from accepted to failed.

    Clips that are `kept` have a sample of an earlier run: they stay accepted, and their failures are listed.
    """
    by_key = {failure.key: failure for failure in failures if failure.key not in kept}
    rows = (
        row.model_copy(
            update={
                "accepted": False,
                "split": None,
                "shard": None,
                "failure": f"{by_key[row.clip_id].error}: {by_key[row.clip_id].message}",
            }
        )
        if row.clip_id in by_key
        else row
        for row in selection.rows
    )
    return replace(selection, rows=tuple(rows), failures=(*selection.failures, *failures))


def parts_of_clips(store: Store) -> dict[str, str]:
    """Name of the part that holds each candidate clip, as `read_committed` takes it."""
    where: dict[str, str] = {}
    waiting: set[str] = set()
    for part in committed_parts(store):
        name = f"parts/{part}/clips.parquet"
        rows = tables.from_bytes(store.read(name), name).select(["clip", "stopped_by"]).to_pylist()
        for key, stopped in ((row["clip"]["clip_id"], row["stopped_by"]) for row in rows):
            if key not in where or key in waiting:
                where[key] = part
                (waiting.add if stopped == NOT_TRACED.code else waiting.discard)(key)
    return where


def thumbnails(store: Store) -> Callable[[str], bytes | None]:
    """Looks up the JPEG image of a clip by its id, or of its face by `<id>/face`; None where there is none.

    Only the images of the part that was read last are held in memory.
    """
    where = {key: f"parts/{part}/thumbnails.npz" for key, part in parts_of_clips(store).items()}

    @functools.lru_cache(maxsize=1)
    def images(name: str) -> dict[str, bytes]:
        return {key: array.tobytes() for key, array in read_npz(store.read(name), name).items()}

    def look_up(name: str) -> bytes | None:
        file = where.get(name.partition("/")[0])
        return images(file).get(name) or None if file else None

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
    for row in selection.rows:
        fates = [row.accepted, row.failure is not None, bool(row.reasons) and row.failure is None]
        if sum(fates) != 1:
            raise DatasetError(
                f"ledger {row.clip_id}: expected one of accepted, rejected, failed; found {fates}"
            )


def ledger_tables(selection: Selection) -> dict[str, bytes]:
    """Content of `ledger.parquet`, `people.parquet`, `sources.parquet` and `failures.parquet`, by name."""
    found = {
        "failures.parquet": tables.to_table(Failure, selection.failures),
        "people.parquet": tables.to_table(PersonRow, selection.people),
        "sources.parquet": tables.to_table(SourceRow, selection.sources),
        "ledger.parquet": _ledger_table(selection),
    }
    return {name: tables.to_bytes(table) for name, table in found.items()}


def write_ledger(store: Store, selection: Selection) -> None:
    """Write the `ledger_tables`."""
    for name, data in ledger_tables(selection).items():
        store.write(name, data)


def _ledger_table(selection: Selection) -> pa.Table:
    """The rows, and a text column `source.<name>` for each further column of the inputs' lists."""
    table = tables.to_table(LedgerRow, selection.rows)
    for name in next(iter(selection.listed.values()), {}):
        values = [selection.listed[row.clip_id][name] for row in selection.rows]
        table = table.append_column(f"{LISTED}{name}", pa.array(values, pa.string()))
    return table
