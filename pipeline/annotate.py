"""Annotations of clips that lie in shards: transcripts and captions, joined by clip id.

An annotator reads the shards and nothing else. Its rows are committed in pieces,
`<kind>/<first clip id>.parquet`, so that an interrupted run goes on where it stopped. At the end they
become one table, `<kind>.parquet`. A clip's row stays when the clip leaves the shards, because the id
names the span of the video that it describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from talkforge.pipeline import shards, snapshots, tables
from talkforge.pipeline.ledger import Committed, CommittedClip
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.records import Annotation, CaptionRow, Failure, TranscriptRow

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
    table = f"{kind.name}.parquet"
    names = [table] if store.exists(table) else []
    rows: dict[str, Row] = {}
    for name in [*names, *store.list(kind.name)]:
        rows |= {row.clip_id: row for row in tables.read(store, name, kind.row)}
    return rows


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


def annotated(store: Store, committed: Committed) -> Committed:
    """The same with what was said of each clip; failures are rows."""
    transcripts, captions = read(store, TRANSCRIPTS), read(store, CAPTIONS)
    clips, failures = [], list(committed.failures)
    for clip in committed.clips:
        key = clip.measures.clip.clip_id
        failures += _failure(clip, TRANSCRIPTS, transcripts.get(key))
        failures += _failure(clip, CAPTIONS, captions.get(key))
        clips.append(_joined(clip, transcripts.get(key), captions.get(key)))
    return replace(committed, clips=clips, failures=failures)


def _joined(
    clip: CommittedClip, transcript: TranscriptRow | None, caption: CaptionRow | None
) -> CommittedClip:
    if transcript is not None:
        measures = clip.measures.model_copy(update={"transcript": transcript.transcript})
        clip = replace(clip, measures=measures, transcript=transcript)
    return replace(clip, caption=caption)


def _failure(clip: CommittedClip, kind: Kind[Row], row: Annotation | None) -> list[Failure]:
    if row is None or row.failure is None:
        return []
    error, _, message = row.failure.partition(": ")
    of = clip.measures.clip
    return [
        Failure(
            stage=kind.stage, key=of.clip_id, video_id=of.video_id, uri=of.uri, error=error, message=message
        )
    ]
