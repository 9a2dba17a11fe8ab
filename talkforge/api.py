"""The Python API: curate footage, and open a data set.

Importing this module is cheap: what a function needs is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from talkforge.samples import Sample, read_shard
from talkforge.schemas import extras
from talkforge.schemas.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    import pandas as pd

    from talkforge.pipeline.snapshots import Snapshot
    from talkforge.pipeline.store import Store
    from talkforge.schemas.dataset import Dataset
    from talkforge.schemas.sample import ShardManifest
    from talkforge.torch_dataset import ClipDataset

Split = Literal["train", "validation"]


class CuratedSet:
    """A data set that `curate` or `talkforge curate` made, on a local disk or behind an fsspec URI.

    Tables are read once, when they are first used.
    """

    def __init__(self, store: Store, snapshot: int | str | None = None) -> None:
        self._store, self._which = store, snapshot

    def __repr__(self) -> str:
        return f"talkforge.open({self._store.root!r})"

    @property
    def path(self) -> str:
        """Absolute path or URI of the data set."""
        return self._store.root

    @cached_property
    def info(self) -> Dataset:
        """`dataset.json`: configuration, models with sha256, joint names, tool version."""
        from talkforge.pipeline.dataset import load_dataset
        from talkforge.schemas.dataset import parse_dataset

        if self._which is None:
            return load_dataset(self._store)
        return parse_dataset(self._store.read(self.snapshot.table("dataset.json")))

    @cached_property
    def snapshot(self) -> Snapshot:
        """The snapshot whose shards are read, from the first use on; number 0 in a data set without any."""
        from talkforge.pipeline import snapshots

        return snapshots.find(self._store, self._which)

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """One row per candidate clip: measurements, verdict, reasons, shard; see docs/dataset.md."""
        return self._table("ledger.parquet")

    @cached_property
    def sources(self) -> pd.DataFrame:
        """One row per input: measured, failed, duplicate or without candidates, and why."""
        return self._table("sources.parquet")

    @cached_property
    def people(self) -> pd.DataFrame:
        """One row per person: clips, seconds, who is alike."""
        return self._table("people.parquet")

    @cached_property
    def shards(self) -> tuple[ShardManifest, ...]:
        """Manifests of all shards, in the order of their names."""
        return self.snapshot.shards

    def shard_urls(self, split: Split | None = None) -> list[str]:
        """Paths or URIs of the tar files, for any WebDataset reader.

        Args:
            split: only shards of this split; None means all.
        """
        wanted = [shard for shard in self.shards if split in (None, shard.name.partition("-")[0])]
        return [self._url(shard) for shard in wanted]

    def _url(self, shard: ShardManifest) -> str:
        return f"{self._store.root}/{self.snapshot.tar(shard)}"

    def samples(self, split: Split | None = None) -> Iterator[Sample]:
        """Every sample, decoded and checked, in the order of the shards.

        Args:
            split: only samples of this split; None means all.

        Raises:
            DatasetError: a sample or a shard is damaged.
        """
        for url in self.shard_urls(split):
            yield from read_shard(self._store, url)

    def sample(self, clip_id: str) -> Sample:
        """The sample of one clip.

        Args:
            clip_id: as in the ledger.

        Raises:
            DatasetError: the clip is in no shard, or its shard is damaged.
        """
        from talkforge.schemas.errors import DatasetError

        for shard in self.shards:
            if clip_id in shard.keys:
                samples = read_shard(self._store, self._url(shard))
                found = next((s for s in samples if s.key == clip_id), None)
                if found is not None:
                    return found
        raise DatasetError(
            f"{self.path}: no sample {clip_id!r} in any shard; see the column shard of the ledger"
        )

    def torch(self, split: Split | None = "train") -> ClipDataset:
        """The samples as a `torch.utils.data.IterableDataset` of dictionaries of tensors.

        Shards are divided among loader processes and, where `torch.distributed` is running, among ranks.

        Args:
            split: only samples of this split; None means all.

        Raises:
            MissingExtraError: torch is not installed.
        """
        extras.require("torch", "CuratedSet.torch")
        from talkforge.torch_dataset import ClipDataset

        return ClipDataset(self._store, tuple(self.shard_urls(split)))

    def _table(self, name: str) -> pd.DataFrame:
        from talkforge.pipeline import snapshots, tables

        fixed = self._which is not None
        file = self.snapshot.table(name) if fixed else snapshots.current_table(self._store, name)
        return tables.from_bytes(self._store.read(file), file).to_pandas()


def open(path: str | Path, snapshot: int | str | None = None) -> CuratedSet:
    """A data set, for reading.

    Args:
        path: its folder, or an fsspec URI such as `s3://bucket/set`.
        snapshot: number or tag of a snapshot, see docs/dataset.md; tables and shards are then those that it
            holds. None means the shards of the current one, and the tables of the last selection.

    Raises:
        CommandError: there is no data set, or no such snapshot.
        DatasetError: `dataset.json` is damaged, or of a version that this one cannot read.
    """
    from talkforge.pipeline.store import Store

    found = CuratedSet(Store(str(path)), snapshot)
    _ = found.info  # says at once where there is none
    return found


def curate(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    executor: Literal["ray", "inline"] = "ray",
    address: str | None = None,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    base: str | Path = "",
    on_progress: ProgressCallback | None = None,
) -> CuratedSet:
    """Measure videos, choose clips, cut them into shards and write the report; as `talkforge curate`.

    A call that was interrupted goes on where it stopped when it is made again.

    Args:
        inputs: files, folders, globs, lists or fsspec URIs.
        out: folder or URI of the data set.
        config: a YAML file or the name of a preset; None means the defaults, which need no download.
        settings: single values such as `thresholds.min_face_px=96`.
        executor: `ray`, or `inline` for everything in this process.
        address: the Ray cluster to use; None means one on this machine.
        limit: take only so many inputs.
        exclude: globs of inputs to leave out; see docs/inputs.md.
        base: folder or URI that inputs are named relative to; given again in each call.
        on_progress: called about once a second with the phase (such as `measuring`) and how far it is.

    Raises:
        CommandError: inputs, output or configuration cannot be used.
        ModelError: weights are missing.
        RunError: the run cannot go on.
    """
    from talkforge.pipeline import jobs
    from talkforge.pipeline.executor import make_executor
    from talkforge.pipeline.store import Store
    from talkforge.schemas.config import load_config

    given = [inputs] if isinstance(inputs, str | Path) else inputs
    resolved = load_config(None if config is None else Path(config), list(settings))
    store = Store(str(out), str(base or ""))
    jobs.curate(
        [str(path) for path in given],
        store,
        resolved,
        lambda: make_executor(executor, resolved, address),
        limit,
        on_progress or no_progress,
        exclude=exclude,
    )
    return CuratedSet(store)
