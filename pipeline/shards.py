"""Shards: the plan that divides accepted clips into WebDataset shards, and the tar files themselves.

    split_groups   clips of one person or one source video stay together
    assign_splits  each group is for training or for validation
    plan           clips of a split into shards of a size, in an order that mixes videos
    write_shard    one shard: tar file first, manifest last

All of it is a pure function of its arguments. A shard is there when its manifest is there; a tar
file without one is left from a run that was killed, and is written again.

New shards are written to `shards.next/`. When the last is whole they are published together, see
`pipeline.snapshots`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from talkforge.pipeline.people import FaceClip, name_people
from talkforge.pipeline.snapshots import SHARDS, manifest_bytes
from talkforge.pipeline.store import Store
from talkforge.schemas import sample, tar
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.config import ShardConfig
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.sample import Members, ShardManifest

log = logging.getLogger(__name__)

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


@dataclass(frozen=True, slots=True)
class ShardClip:
    """What the plan needs to know of an accepted clip.

    Attributes:
        split: "train" or "validation".
        content_hash: changes whenever the sample would be written differently for another reason
            than the `ShardConfig`: measurements, verdict, normalised motion, person, models.
    """

    clip_id: str
    split: str
    num_frames: int
    fps: float
    width_px: int
    height_px: int
    content_hash: str


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: its name (`train-000000`), the keys in order, and what they depend on."""

    name: str
    keys: tuple[str, ...]
    fingerprint: str

    folder: str = SHARDS
    """Where it is written to."""

    @property
    def tar(self) -> str:
        return f"{self.folder}/{self.name}.tar"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/{self.name}.json"


class ClipGroup(NamedTuple):
    """`person_id` is None where no face embedding is known; `group` is never split."""

    person_id: str | None
    group: str


def split_groups(clips: Iterable[FaceClip], same_person: float) -> dict[str, ClipGroup]:
    """Person and group of every clip, in any order.

    Groups are the connected components of "same person, same label or same video", so that neither a face
    nor a source is ever on both sides of a split. Clips without an embedding are grouped by video. A
    group is named after the smallest video id in it; people are those of `people.name_people`.

    Raises:
        DatasetError: embeddings differ in length.
    """
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    person_of = name_people(ordered, same_person)
    persons = [person_of.get(clip.clip_id) for clip in ordered]
    columns = ([clip.video_id for clip in ordered], persons, [clip.label for clip in ordered])
    groups = group_names(*(pa.array(column, pa.string()) for column in columns))
    return {
        clip.clip_id: ClipGroup(person, group)
        for clip, person, group in zip(ordered, persons, groups, strict=True)
    }


def group_names(video_ids: Column, person_ids: Column, labels: Column) -> list[str]:
    """Group of every clip, see `split_groups`.

    Args:
        video_ids: of the clips.
        person_ids: likewise, null where no face embedding is known.
        labels: likewise, who is seen by the list of inputs; empty where it does not say.
    """
    # One node for each video, person and label; a clip joins its video with its person and its label.
    named = pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)
    (videos, names), (persons, people), (said, others) = (
        _codes(column) for column in (video_ids, person_ids, named)
    )
    count = len(names) + len(people) + len(others)
    left = np.concatenate([videos[persons >= 0], videos[said >= 0]])
    right = np.concatenate([persons[persons >= 0] + len(names), said[said >= 0] + len(names) + len(people)])
    graph = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(count, count))
    component = connected_components(graph, directed=False)[1].tolist()
    found: dict[int, str] = {}
    for video_id, number in sorted(zip(names, range(len(names)), strict=True)):
        found.setdefault(component[number], video_id)
    of_video = [found[component[number]] for number in range(len(names))]
    return [of_video[number] for number in videos.tolist()]


def _codes(column: Column) -> tuple[NDArray[np.int64], list[str]]:
    """A number for each value of a column, -1 for null, and the values by number."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def assign_splits(groups: Mapping[str, str], config: ShardConfig) -> dict[str, str]:
    """Clip id -> "train" or "validation", from clip id -> group.

    A group is held out when its hash falls into the lowest `validation_fraction`, whatever other
    groups there are: clips that come later do not move those that are there. With few groups
    what is held out may be far from the fraction, and may be nothing: see `least_fraction`.
    """

    def split(group: str) -> str:
        return "validation" if _place(group, config) < config.validation_fraction else "train"

    return {clip_id: split(group) for clip_id, group in groups.items()}


def least_fraction(groups: Iterable[str], config: ShardConfig) -> float:
    """The least `validation_fraction` of three digits that holds out one of these groups."""
    return min(0.999, math.floor(1000 * min(_place(group, config) for group in groups) + 1) / 1000)


def _place(group: str, config: ShardConfig) -> float:
    """Where a group lies between 0 and 1, by its hash."""
    digest = hashlib.sha256(f"{config.seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def estimate_bytes(clip: ShardClip, config: ShardConfig) -> int:
    """Bytes that a sample will have, give or take a factor of three.

    Picture: 0.15 bits per pixel at x264's CRF 18, halved with every 5 CRF. Source: median of
    twelve talking-head clips (0.04 to 0.41). Landmarks, lips and joints: 4 kB per frame. Sound
    and speech features (AAC, FLAC, 768 float16 at 50 Hz): 100 kB per second. The rest: 15 kB.
    """
    bits_per_px = 0.15 * 2 ** ((18 - config.crf) / 5)
    video = clip.num_frames * clip.width_px * clip.height_px * bits_per_px / 8
    return round(video + 4_000 * clip.num_frames + 100_000 * clip.num_frames / clip.fps + 15_000)


def plan(clips: Iterable[ShardClip], config: ShardConfig) -> list[ShardPlan]:
    """Shards for all clips, by split and number.

    Clips are ordered by the hash of seed and id, which spreads those of one video over the
    shards; a shard is closed before it would exceed `max_samples` or, by estimate, `target_mb`.

    Raises:
        DatasetError: a clip id is no valid key or occurs twice, or a split is unknown.
    """
    by_split: dict[str, list[ShardClip]] = defaultdict(list)
    seen: set[str] = set()
    for clip in clips:
        sample.check_key(clip.clip_id)
        if clip.clip_id in seen:
            raise DatasetError(f"clip {clip.clip_id}: expected once among the accepted, found twice")
        if clip.split not in ("train", "validation"):
            raise DatasetError(
                f"clip {clip.clip_id}: expected split train or validation, found {clip.split!r}"
            )
        seen.add(clip.clip_id)
        by_split[clip.split].append(clip)
    return [
        ShardPlan(f"{split}-{number:06d}", tuple(c.clip_id for c in packed), _fingerprint(packed, config))
        for split in sorted(by_split)
        for number, packed in enumerate(_pack(by_split[split], config))
    ]


def current(store: Store, shard: ShardPlan) -> ShardManifest | None:
    """The manifest of the shard as it lies in the store, if it is whole and as planned."""
    if not store.exists(shard.manifest):
        return None
    try:
        manifest = sample.read_manifest(store.read(shard.manifest), shard.manifest)
        same = manifest.fingerprint == shard.fingerprint and manifest.keys == shard.keys
        return manifest if same and store.size(shard.tar) == manifest.bytes else None
    except DatasetError:
        return None


def write_shard(
    store: Store, shard: ShardPlan, samples: Iterable[tuple[str, Members]], kept: Sequence[str] = ()
) -> ShardManifest | None:
    """Write one shard, tar file first, manifest last; one sample is in memory at a time.

    Args:
        store: the data set.
        shard: what is planned.
        samples: (key, members) in the plan's order. Keys may be missing, where their clips could not be
            cut: the shard is written without them, and will not count as `current`.
        kept: keys whose samples are those of an earlier shard; with any the shard is not `current` either.

    Returns:
        The manifest, or None where there was not one sample; then there is no shard.

    Raises:
        DatasetError: a key that is not planned here or is out of order, or members that do not
            belong into a sample.
        RunError: the store cannot be written to.
    """
    # The old manifest must not vouch for the new tar file, not even for a moment.
    store.delete(shard.manifest)
    with store.writing(shard.tar) as path:
        keys = _write_tar(store, shard, path, samples)
        with store.reporting_errors("read", shard.tar):
            manifest = ShardManifest(
                name=shard.name,
                sha256=sha256_of(path),
                bytes=path.stat().st_size,
                count=len(keys),
                keys=tuple(keys),
                fingerprint=_fingerprint_with(shard.fingerprint, kept),
            )
    if not keys:
        store.delete(shard.tar)
        return None
    if len(keys) < len(shard.keys):
        log.warning("shard %s: %d of %d samples written", shard.name, len(keys), len(shard.keys))
    store.write(shard.manifest, manifest_bytes(manifest))
    return manifest


def read_samples(store: Store, file: str) -> Iterator[tuple[str, Members]]:
    """(key, members) of a shard in order, members exactly as they lie in the tar file.

    Args:
        store: the data set.
        file: the tar file, such as `shards/train-000000.tar`.

    Raises:
        DatasetError: the tar file is missing, damaged, or holds something else than samples.
    """
    with store.open(file) as stream:
        yield from tar.read_samples(stream)


def _write_tar(
    store: Store, shard: ShardPlan, path: Path, samples: Iterable[tuple[str, Members]]
) -> list[str]:
    keys: list[str] = []
    planned = iter(shard.keys)
    with (
        store.reporting_errors("write", shard.tar),
        path.open("wb") as stream,
        tar.tar_writer(stream) as out,
    ):
        for key, members in samples:
            if key not in planned:  # consumes the plan up to the key, so order counts as well
                raise DatasetError(f"shard {shard.name}: expected its planned keys in order, found {key}")
            sample.check_members(key, members)
            tar.write_sample(out, key, members)
            keys.append(key)
    return keys


def _fingerprint(clips: Sequence[ShardClip], config: ShardConfig) -> str:
    """Of all that decides on a shard's bytes: layout, encoder settings, clips and their contents."""
    content = {
        "layout": sample.VERSION,
        "crf": config.crf,
        "preset": config.preset,
        "clips": [[clip.clip_id, clip.content_hash] for clip in clips],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fingerprint_with(fingerprint: str, kept: Sequence[str]) -> str:
    """The fingerprint of a shard that holds samples of an earlier one: that of no plan."""
    return hashlib.sha256("\0".join([fingerprint, *kept]).encode()).hexdigest() if kept else fingerprint


def _pack(clips: Iterable[ShardClip], config: ShardConfig) -> Iterator[list[ShardClip]]:
    held: list[ShardClip] = []
    held_bytes = 0
    for clip in sorted(clips, key=lambda clip: _order(clip.clip_id, config.seed)):
        num_bytes = estimate_bytes(clip, config)
        full = len(held) >= config.max_samples or held_bytes + num_bytes > config.target_mb * 1e6
        if held and full:
            yield held
            held, held_bytes = [], 0
        held.append(clip)
        held_bytes += num_bytes
    if held:
        yield held


def _order(clip_id: str, seed: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{clip_id}".encode()).digest(), clip_id
