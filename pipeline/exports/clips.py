"""What an export reads: the clips of a snapshot with their rows of the ledger, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from talkforge.pipeline import snapshots, tables
from talkforge.pipeline.exports.folder import ClipEntry, ExportFolder, StoredFile
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store
from talkforge.schemas import sample, tar
from talkforge.schemas.dataset import Dataset, parse_dataset
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.progress import ProgressCallback, counted
from talkforge.schemas.sample import SampleMeta, ShardManifest

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Source:
    """The clips of one snapshot that are exported.

    Attributes:
        store: the data set.
        snapshot: whose shards are read.
        split: only this one; None means both.
    """

    store: Store
    snapshot: Snapshot
    split: str | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """`dataset.json` of the snapshot."""
        return parse_dataset(self.store.read(self.snapshot.table("dataset.json")))

    @cached_property
    def shards(self) -> dict[str, list[ShardManifest]]:
        """Split -> its shards, in the order of their names; only splits with shards."""
        found: dict[str, list[ShardManifest]] = {}
        for shard in self.snapshot.shards:
            split = shard.name.partition("-")[0]
            if self.split in (None, split):
                found.setdefault(split, []).append(shard)
        return found

    @cached_property
    def keys(self) -> dict[str, list[str]]:
        """Split -> ids of its clips, in the order of the shards."""
        return {split: [key for shard in of for key in shard.keys] for split, of in self.shards.items()}

    @cached_property
    def ledger(self) -> pa.Table:
        """The snapshot's ledger."""
        return self.table("ledger.parquet")

    def table(self, name: str) -> pa.Table:
        """A table of the snapshot."""
        file = self.snapshot.table(name)
        return tables.from_bytes(self.store.read(file), file)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.ledger.column("clip_id").to_pylist())}

    def row(self, clip_id: str) -> dict[str, Any]:
        """A clip's row of the ledger.

        Raises:
            DatasetError: it has none.
        """
        number = self._rows.get(clip_id)
        if number is None:
            raise DatasetError(f"clip {clip_id}: expected a row in the ledger, found none")
        row: dict[str, Any] = self.ledger.slice(number, 1).to_pylist()[0]
        return row

    def clip_rows(self) -> pa.Table:
        """Rows of the ledger of all clips that are exported, in the order of the shards."""
        return self.rows_of([key for of_split in self.keys.values() for key in of_split])

    def rows_of(self, keys: Sequence[str]) -> pa.Table:
        """Rows of the ledger of some clips, in this order.

        Raises:
            DatasetError: a clip has none.
        """
        for key in keys:
            if key not in self._rows:
                self.row(key)  # says which
        return self.ledger.take(pa.array([self._rows[key] for key in keys], pa.int64()))


def open_source(store: Store, which: int | str | None = None, split: str | None = None) -> Source:
    """What is to be exported.

    Args:
        store: the data set.
        which: number or tag of a snapshot; None means the current one, which must then be what is selected.
        split: `train` or `validation`; None means both.

    Raises:
        CommandError: there is no such split or snapshot, there are no clips, or clips in the shards are not
            accepted any more.
    """
    if split not in (None, *SPLITS):
        raise CommandError(f"--split {split}: expected {' or '.join(SPLITS)}")
    source = Source(store, snapshots.find(store, which), split)
    if not any(source.keys.values()):
        in_split = f" in the split {split}" if split else ""
        raise CommandError(f"{store.root}: no clips in shards{in_split}; talkforge shard {store.root}")
    if which is None:
        _expect_accepted(store, source)
    return source


def _expect_accepted(store: Store, source: Source) -> None:
    """What is rejected since the shards were cut may be so because of a consent: it is not handed on."""
    name = snapshots.current_table(store, "ledger.parquet")
    table = tables.from_bytes(store.read(name), name).select(["clip_id", "accepted"]).to_pydict()
    accepted = {key for key, good in zip(table["clip_id"], table["accepted"], strict=True) if good}
    stale = [key for of_split in source.keys.values() for key in of_split if key not in accepted]
    if stale:
        raise CommandError(
            f"{store.root}: {len(stale)} clips in the shards are not accepted any more, such as {stale[0]}: "
            f"talkforge shard {store.root} first, or name the snapshot with --snapshot"
        )


@dataclass(frozen=True)
class ClipMembers:
    """A clip as it lies in a shard.

    Attributes:
        split: `train` or `validation`.
        key: the clip's id.
        members: name -> bytes.
        meta: what the `json` member holds.
        ledger: the clip's row of the ledger.
    """

    split: str
    key: str
    members: dict[str, bytes]
    meta: SampleMeta
    ledger: dict[str, Any]

    @property
    def text(self) -> str:
        """Transcript or caption, may be empty."""
        return sample.read_text(self.key, self.members["txt"]).strip()


Written = tuple[dict[str, StoredFile], dict[str, Any]]
"""Files of a clip that were written, and its row in the format's own list."""


def write_clips(
    source: Source,
    folder: ExportFolder,
    write: Callable[[ClipMembers], Written],
    workers: int,
    on_progress: ProgressCallback,
) -> None:
    """Write every clip that is not there yet.

    Args:
        source: what is exported.
        folder: where to.
        write: writes the files of one clip; called by several threads.
        workers: number of threads, at least 1.
        on_progress: called for each clip.

    Raises:
        DatasetError: a shard or a sample is damaged, or a clip has no row in the ledger.
        RunError: the folder cannot be written to.
    """
    total = sum(map(len, source.keys.values()))
    running: deque[tuple[ClipMembers, Future[Written]]] = deque()

    def collect() -> None:
        clip, future = running.popleft()
        files, row = future.result()
        folder.add(ClipEntry(clip_id=clip.key, split=clip.split, files=files, row=row, ledger=clip.ledger))
        on_progress(counted("exporting", len(folder.done), total, "clips"))

    on_progress(counted("exporting", len(folder.done), total, "clips"))
    with ThreadPoolExecutor(workers) as pool:
        try:
            for clip in _missing(source, folder):
                running.append((clip, pool.submit(write, clip)))
                if len(running) > 2 * workers:
                    collect()
            while running:
                collect()
        finally:
            pool.shutdown(cancel_futures=True)


def _missing(source: Source, folder: ExportFolder) -> Iterator[ClipMembers]:
    for split, shards in source.shards.items():
        for shard in shards:
            missing = {key for key in shard.keys if key not in folder.done}
            if not missing:
                continue
            file = source.snapshot.tar(shard)
            try:
                with source.store.open(file) as stream:
                    for key, members in tar.read_samples(stream):
                        if key in missing:
                            meta = sample.read_meta(key, members["json"])
                            yield ClipMembers(split, key, members, meta, source.row(key))
            except KeyError as error:
                raise DatasetError(f"{file}: expected a member {error} in every sample, found none") from None
            except DatasetError as error:
                raise DatasetError(f"{file}: {error}; talkforge verify says more") from None
