"""Annotations of clips that lie in shards: transcripts and captions, joined by clip id.

An annotator reads the shards and nothing else. Its rows are committed in pieces,
`<kind>/<first clip id>.parquet`, so that an interrupted run goes on where it stopped. At the end they
become one table, `<kind>.parquet`. A clip's row stays when the clip leaves the shards, because the id
names the span of the video that it describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa

from talkforge.curation import words
from talkforge.pipeline import shards, snapshots, tables
from talkforge.pipeline.ledger import CommittedClip
from talkforge.pipeline.measured import Measured
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.records import Annotation, CaptionRow, Failure, LedgerRow, Transcript, TranscriptRow

PIECE_CLIPS = 64
"""Clips that are committed together, and most that a killed run annotates again."""

Row = TypeVar("Row", bound=Annotation)

Clips = Sequence[tuple[str, bytes]]
"""(clip id, bytes of the member that the annotator wants) of some clips."""


@dataclass(frozen=True)
class Kind(Generic[Row]):
    """One sort of annotation: its table, the stage that its failures name, and what it is made from."""

    name: str
    stage: str
    row: type[Row]
    member: str


TRANSCRIPTS = Kind("transcripts", "transcribe", TranscriptRow, "flac")
CAPTIONS = Kind("captions", "caption", CaptionRow, "mp4")


@dataclass(frozen=True)
class Counts:
    """Clips in the shards: annotated by this run, annotated before, and failed in this run."""

    annotated: int
    before: int
    failed: int


def read(store: Store, kind: Kind[Row]) -> dict[str, Row]:
    """Every row there is, by clip id.

    Raises:
        DatasetError: a table is not readable; names it.
    """
    rows: dict[str, Row] = {}
    for name in _files(store, kind):
        rows |= {row.clip_id: row for row in tables.read(store, name, kind.row)}
    return rows


def _files(store: Store, kind: Kind[Any]) -> list[str]:
    """The table and the pieces that are not in it yet."""
    table = f"{kind.name}.parquet"
    return [*([table] if store.exists(table) else []), *store.list(kind.name)]


def _lookup(store: Store, kind: Kind[Row]) -> tables.Lookup[Row]:
    return tables.Lookup(store, _files(store, kind), kind.row)


def annotate(
    store: Store,
    kind: Kind[Row],
    fingerprint: str,
    make: Callable[[Clips], Iterable[Row]],
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Counts:
    """Rows for all clips in the shards that have none with this fingerprint, or whose row is a failure.

    Args:
        store: the data set.
        kind: sort of annotation.
        fingerprint: of the model and its options.
        make: gives the rows of some clips, in their order; what it gave before it raises is kept.
        on_progress: called with the number of clips done and of all that are to be done.

    Raises:
        CommandError: there are no shards. DatasetError: a shard is damaged.
    """
    settle(store, kind)
    known = read(store, kind)
    good = {key for key, row in known.items() if row.failure is None and row.fingerprint == fingerprint}
    manifests = snapshots.current(store).shards
    if not manifests:
        raise CommandError(f"{store.root}: no shards to read clips from; `talkforge shard` cuts them")
    keys = [key for manifest in manifests for key in manifest.keys]
    wanted = set(keys) - good
    done = failed = 0
    on_progress(0, len(wanted))
    for clips in _batches(store, kind, wanted):
        rows: list[Row] = []
        try:
            for row in make(clips):
                rows.append(row)
                done, failed = done + (row.failure is None), failed + (row.failure is not None)
                on_progress(done + failed, len(wanted))
        finally:
            if rows:
                tables.write(store, f"{kind.name}/{rows[0].clip_id}.parquet", kind.row, rows)
    settle(store, kind)
    return Counts(annotated=done, before=len(keys) - len(wanted), failed=failed)


def _batches(store: Store, kind: Kind[Row], wanted: set[str]) -> Iterator[Clips]:
    snapshot = snapshots.current(store)
    for manifest in snapshot.shards:
        if wanted.isdisjoint(manifest.keys):
            continue
        tar = snapshot.tar(manifest)
        batch: list[tuple[str, bytes]] = []
        try:
            for key, members in shards.read_samples(store, tar):
                if key in wanted:
                    batch.append((key, members[kind.member]))
                if len(batch) == PIECE_CLIPS:
                    yield batch
                    batch = []
        except (DatasetError, KeyError) as error:
            raise DatasetError(f"{tar}: {error}; `talkforge verify` says more") from None
        if batch:
            yield batch


def settle(store: Store, kind: Kind[Row]) -> None:
    """Make one table of everything; pieces go when it is written.

    Args:
        store: the data set.
        kind: sort of annotation.
    """
    pieces = store.list(kind.name)
    if pieces:
        rows = read(store, kind)
        tables.write(store, f"{kind.name}.parquet", kind.row, [rows[key] for key in sorted(rows)])
        for piece in pieces:
            store.delete(piece)


def said_last(store: Store) -> Callable[[Sequence[CommittedClip]], list[CommittedClip]]:
    """A function that gives clips what was said of them; annotations are read once for all its calls."""
    transcripts, captions = _lookup(store, TRANSCRIPTS), _lookup(store, CAPTIONS)

    def said(clips: Sequence[CommittedClip]) -> list[CommittedClip]:
        keys = [clip.measures.clip.clip_id for clip in clips]
        spoken, shown = transcripts.of(keys), captions.of(keys)
        return [_joined(clip, spoken.get(key), shown.get(key)) for clip, key in zip(clips, keys, strict=True)]

    return said


def joined(store: Store, measured: Measured, forbidden: Sequence[str]) -> Measured:
    """The same with columns of what was said of each clip; failures are rows.

    Args:
        store: the data set.
        measured: what the parts say.
        forbidden: words to count.
    """
    transcripts, captions = read(store, TRANSCRIPTS), read(store, CAPTIONS)
    if not transcripts and not captions:
        return measured
    clips, failures = measured.clips, list(measured.failures)
    columns: dict[str, list[Any]] = {
        name: [None] * len(clips) for name in (*Transcript.model_fields, FORBIDDEN)
    }
    keys = zip(*(clips.column(name).to_pylist() for name in ("clip_id", "video_id", "uri")), strict=True)
    for number, (key, video_id, uri) in enumerate(keys):
        failures += _failures(key, video_id, uri, TRANSCRIPTS, transcripts.get(key))
        failures += _failures(key, video_id, uri, CAPTIONS, captions.get(key))
        said = transcripts.get(key)
        if said is not None and said.transcript is not None:
            for name in Transcript.model_fields:
                columns[name][number] = getattr(said.transcript, name)
        if said is not None and said.failure is None and forbidden:
            columns[FORBIDDEN][number] = words.occurrences(said.text, forbidden)
    types = {f.name: f.type for f in tables.arrow_schema(LedgerRow)}
    for name, values in columns.items():
        clips = clips.append_column(name, pa.array(values, types[name]))
    return replace(measured, clips=clips, failures=failures)


FORBIDDEN = "num_forbidden_words"


def _joined(
    clip: CommittedClip, transcript: TranscriptRow | None, caption: CaptionRow | None
) -> CommittedClip:
    if transcript is not None:
        measures = clip.measures.model_copy(update={"transcript": transcript.transcript})
        clip = replace(clip, measures=measures, transcript=transcript)
    return replace(clip, caption=caption)


def _failures(
    clip_id: str, video_id: str, uri: str, kind: Kind[Row], row: Annotation | None
) -> list[Failure]:
    if row is None or row.failure is None:
        return []
    error, _, message = row.failure.partition(": ")
    return [Failure(stage=kind.stage, key=clip_id, video_id=video_id, uri=uri, error=error, message=message)]
