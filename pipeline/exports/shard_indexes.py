"""Indexes for readers of the shards themselves. The tar files stay as they are.

    .nv-meta/.info.yaml, split.yaml, dataset.yaml    for Megatron-Energon, with
    <shard>.tar.idx                                  where each sample begins, beside its tar file
    wids-<split>.json                                for wids, the random access of webdataset

They lie beside the shards, in `shards/` of the data set, until other shards are published: then they go, as
they would point to other places. With a folder of their own the shards are linked there, or copied.
"""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path
from typing import BinaryIO

import yaml

from talkforge.pipeline.exports.clips import Source
from talkforge.pipeline.exports.folder import StoredFile
from talkforge.pipeline.store import CHUNK_BYTES, Store
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import DatasetError, one_line
from talkforge.schemas.sample import ShardManifest

SPLIT_PARTS = {"train": "train", "validation": "val"}
"""Our split -> Energon's name of it."""


def sample_offsets(stream: BinaryIO, shard: ShardManifest) -> list[int]:
    """Where each sample of a shard begins, and where the last one ends, in bytes.

    Headers are read and contents passed over.

    Args:
        stream: the tar file; seekable.
        shard: its manifest, which must name the same samples.

    Raises:
        DatasetError: the tar file is damaged, or has other samples.
    """
    offsets: list[int] = []
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                key = entry.name.partition(".")[0]
                if not keys or keys[-1] != key:
                    keys.append(key)
                    offsets.append(entry.offset)
            offsets.append(archive.offset)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DatasetError(f"shard {shard.name}: {one_line(error)}; talkforge verify says more") from None
    if tuple(keys) != shard.keys:
        raise DatasetError(
            f"shard {shard.name}: expected the {len(shard.keys)} samples of its manifest, found "
            f"{len(keys)} others; talkforge verify says more"
        )
    return offsets


def energon_files(source: Source, folder: str = "") -> dict[str, bytes]:
    """The files by which Megatron-Energon reads the shards, by name.

    Samples are bytes, as a `CrudeWebdataset` gives them to a cooker, which can hand them to
    `schemas.sample.decode`: Energon's own decoder would read every video whole, through torchvision.
    Source: Megatron-Energon's data format on disk (`.nv-meta`), and its `TarIndexReader` (offsets as unsigned
    64 bit numbers).

    Args:
        source: whose shards are indexed.
        folder: where the tar files lie below the folder of `.nv-meta`, with `/` at its end.
    """
    files: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    parts: dict[str, list[str]] = {part: [] for part in SPLIT_PARTS.values()}
    for split, shards in source.shards.items():
        for shard in shards:
            name = f"{folder}{shard.name}.tar"
            with source.store.open(source.snapshot.tar(shard)) as stream:
                offsets = sample_offsets(stream, shard)
            files[f"{name}.idx"] = struct.pack(f"<{len(offsets)}Q", *offsets)
            counts[name] = shard.count
            parts[SPLIT_PARTS[split]].append(name)
    files[".nv-meta/.info.yaml"] = _yaml({"shard_counts": counts})
    files[".nv-meta/split.yaml"] = _yaml({"split_parts": {**parts, "test": []}, "exclude": []})
    files[".nv-meta/dataset.yaml"] = _yaml(
        {
            "__module__": "megatron.energon",
            "__class__": "CrudeWebdataset",
            "auto_decode": False,
            "subflavors": {"talkforge": "talking_head"},
        }
    )
    return files


def wids_files(source: Source, folder: str = "") -> dict[str, bytes]:
    """Indexes of wids, one for each split, by name.

    Source: wids' dataset descriptions, version 1 (`wids_specs.py` of webdataset 0.2).

    Args:
        source: whose shards are indexed.
        folder: where the tar files lie below that of the indexes, with `/` at its end.
    """
    files: dict[str, bytes] = {}
    for split, shards in source.shards.items():
        listed = [
            {"url": f"{folder}{shard.name}.tar", "nsamples": shard.count, "filesize": shard.bytes}
            for shard in shards
        ]
        index = {"wids_version": 1, "name": f"talkforge-{split}", "shardlist": listed}
        files[f"wids-{split}.json"] = json.dumps(index, indent=1).encode() + b"\n"
    return files


def link_shards(source: Source, target: Store, folder: str) -> dict[str, StoredFile]:
    """Put the tar files of a snapshot into another folder: links on the same disk, else copies.

    A file that is there with its size is left as it is.

    Args:
        source: whose shards.
        target: the folder.
        folder: below it, with `/` at its end, or empty.

    Returns:
        Name -> what is there.

    Raises:
        DatasetError: a copy does not have the sha256 of its manifest.
    """
    found: dict[str, StoredFile] = {}
    for shards in source.shards.values():
        for shard in shards:
            name, held = f"{folder}{shard.name}.tar", source.snapshot.tar(shard)
            found[name] = StoredFile(bytes=shard.bytes, sha256=shard.sha256)
            if target.exists(name) and target.size(name) == shard.bytes:
                continue
            with target.writing(name) as temporary:
                if not _linked(source.store, held, temporary):
                    _copy(source.store, held, target, name, temporary)
                    if sha256_of(temporary) != shard.sha256:
                        raise DatasetError(
                            f"{held}: not the bytes of its manifest; talkforge verify says more"
                        )
    return found


def _linked(store: Store, held: str, path: Path) -> bool:
    if store.local_root is None:
        return False
    try:
        path.hardlink_to(store.local_root / held)
    except OSError:  # another disk, or one without links
        return False
    return True


def _copy(store: Store, held: str, target: Store, name: str, path: Path) -> None:
    with store.open(held) as stream, target.reporting_errors("write", name), path.open("wb") as out:
        while block := stream.read(CHUNK_BYTES):
            out.write(block)


def _yaml(data: object) -> bytes:
    return yaml.safe_dump(data, sort_keys=False).encode()
