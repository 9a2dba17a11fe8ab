"""Splits, plans and tar files: exact, deterministic, and readable without our code."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from talkforge.pipeline import shards
from talkforge.pipeline.people import FaceClip
from talkforge.pipeline.shards import ShardClip, ShardPlan, assign_splits, plan, split_groups, write_shard
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.config import ShardConfig
from talkforge.schemas.errors import DatasetError, RunError

CONFIG = ShardConfig()


def clip(number: int, split: str = "train", content: str = "", frames: int = 100) -> ShardClip:
    return ShardClip(
        clip_id=f"{number:012x}_00000000_00004000_t0",
        split=split,
        num_frames=frames,
        fps=25.0,
        width_px=640,
        height_px=480,
        content_hash=content,
    )


def members(key: str) -> dict[str, bytes]:
    """Not a true sample: the writer does not look inside."""
    return {
        name: f"{key} {name}".encode() * 100 for name in reversed(sample.MEMBERS) if name != "latents.npz"
    }


def samples(shard: ShardPlan) -> Iterator[tuple[str, dict[str, bytes]]]:
    return ((key, members(key)) for key in shard.keys)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


# ------------------------------------------------------------------------------ splits


def row(clip_id: str, video_id: str, *face: float) -> FaceClip:
    return FaceClip(clip_id, video_id, 0.0, 4.0, np.array(face, np.float32) if face else None)


def person_id(first_clip: str) -> str:
    return "p" + hashlib.sha256(first_clip.encode()).hexdigest()[:12]


def test_people_and_groups() -> None:
    rows = [
        row("c5", "v3", 0, 1, 0),
        row("c1", "v1", 1, 0, 0),
        row("c2", "v1", 0, 1, 0),  # two people in one video tie their videos together
        row("c3", "v2", 1, 0.2, 0),
        row("c4", "v2"),
        row("c6", "v4"),
        row("c7", "v5", 0, 0, 1),
    ]
    groups = split_groups(rows, 0.5)
    assert groups == {
        "c1": (person_id("c1"), "v1"),
        "c2": (person_id("c2"), "v1"),
        "c3": (person_id("c1"), "v1"),
        "c4": (None, "v1"),
        "c5": (person_id("c2"), "v1"),
        "c6": (None, "v4"),
        "c7": (person_id("c7"), "v5"),
    }
    for order in itertools.islice(itertools.permutations(rows), 0, 5040, 97):
        assert split_groups(order, 0.5) == groups


def test_groups_without_faces_are_the_videos() -> None:
    rows = [row("c1", "v1"), row("c2", "v1")._replace(face=np.zeros(0, np.float32)), row("c3", "v2")]
    assert split_groups(rows, 0.5) == {"c1": (None, "v1"), "c2": (None, "v1"), "c3": (None, "v2")}
    assert split_groups([], 0.5) == {}


def test_splits_are_stable_and_near_the_fraction() -> None:
    config = ShardConfig(validation_fraction=0.1)
    groups = {f"c{i}": f"v{i // 3}" for i in range(30_000)}
    splits = assign_splits(groups, config)
    held_out = {groups[key] for key, split in splits.items() if split == "validation"}
    assert 900 < len(held_out) < 1100
    assert {groups[key] for key, split in splits.items() if split == "train"}.isdisjoint(held_out)
    fewer = {key: groups[key] for key in list(groups)[::7]}
    assert assign_splits(fewer, config) == {key: splits[key] for key in fewer}
    assert assign_splits(groups, ShardConfig(validation_fraction=0.1, seed="other")) != splits
    wider = assign_splits(groups, ShardConfig(validation_fraction=0.2))
    assert all(wider[key] == "validation" for key, split in splits.items() if split == "validation")
    assert set(assign_splits(groups, ShardConfig(validation_fraction=0.0)).values()) == {"train"}


# ------------------------------------------------------------------------------ plan


def test_plan_is_deterministic_and_complete() -> None:
    clips = [clip(i, "validation" if i % 10 == 0 else "train") for i in range(100)]
    config = ShardConfig(max_samples=25)
    found = plan(clips, config)
    assert [(shard.name, len(shard.keys)) for shard in found] == [
        ("train-000000", 25),
        ("train-000001", 25),
        ("train-000002", 25),
        ("train-000003", 15),
        ("validation-000000", 10),
    ]
    assert plan(reversed(clips), config) == found
    for split in ("train", "validation"):
        keys = [key for shard in found if shard.name.startswith(split) for key in shard.keys]
        assert sorted(keys) == [c.clip_id for c in clips if c.split == split]
        by_hash = sorted(keys, key=lambda key: hashlib.sha256(f"talkforge\0{key}".encode()).digest())
        assert keys == by_hash
    assert found[0].tar == "shards/train-000000.tar" and found[0].manifest == "shards/train-000000.json"
    assert plan([], config) == []


def test_shards_are_closed_before_they_exceed_the_target() -> None:
    config = ShardConfig(target_mb=10)
    clips = [clip(i, frames=50 + 37 * (i % 5)) for i in range(40)]
    size = {c.clip_id: shards.estimate_bytes(c, config) for c in clips}
    found = plan(clips, config)
    totals = [sum(size[key] for key in shard.keys) for shard in found]
    assert len(found) > 3 and all(total <= 10e6 for total in totals)
    for i in range(len(found) - 1):
        assert totals[i] + size[found[i + 1].keys[0]] > 10e6
    alone = plan([clip(1, frames=500), clip(2, frames=500)], ShardConfig(target_mb=0.001))
    assert [len(shard.keys) for shard in alone] == [1, 1]


def test_estimate() -> None:
    found = shards.estimate_bytes(clip(0, frames=125), ShardConfig(crf=18))
    assert found == 125 * 640 * 480 * 0.15 / 8 + 125 * 4000 + 5 * 100_000 + 15_000
    picture = 125 * 640 * 480 * 0.15 / 8
    assert shards.estimate_bytes(clip(0, frames=125), ShardConfig(crf=23)) == found - picture / 2


def test_the_fingerprint_follows_what_the_bytes_depend_on() -> None:
    clips = [clip(1), clip(2)]
    (base,) = plan(clips, CONFIG)
    same = ShardConfig(target_mb=99, max_samples=7, validation_fraction=0.5)
    assert plan(clips, same)[0].fingerprint == base.fingerprint
    others = [
        plan(clips, ShardConfig(crf=19))[0],
        plan(clips, ShardConfig(preset="slow"))[0],
        plan([clip(1), clip(2, content="new")], CONFIG)[0],
        plan(clips[:1], CONFIG)[0],
    ]
    assert len({base.fingerprint, *(shard.fingerprint for shard in others)}) == 5


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([clip(1), clip(1)], "expected once among the accepted, found twice"),
        ([clip(1, "test")], "expected split train or validation, found 'test'"),
        ([ShardClip("a.b", "train", 1, 25.0, 2, 2, "")], "expected a key of 1 to 80 letters"),
    ],
)
def test_bad_rows_are_refused(clips: list[ShardClip], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        plan(clips, CONFIG)


# ------------------------------------------------------------------------------ writing


def test_plain_webdataset_reads_a_shard(store: Store, tmp_path: Path) -> None:
    (shard,) = plan([clip(i) for i in range(5)], CONFIG)
    manifest = write_shard(store, shard, samples(shard))
    assert manifest is not None and manifest.keys == shard.keys and manifest.count == 5
    url = str(tmp_path / shard.tar)
    found = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [item["__key__"] for item in found] == list(shard.keys)
    for item in found:
        assert {k: v for k, v in item.items() if not k.startswith("__")} == members(item["__key__"])


def test_the_tar_is_the_same_bytes_each_time_and_as_the_manifest_says(store: Store, tmp_path: Path) -> None:
    (shard,) = plan([clip(i) for i in range(3)], CONFIG)
    manifest = write_shard(store, shard, samples(shard))
    first = (tmp_path / shard.tar).read_bytes()
    first_manifest = (tmp_path / shard.manifest).read_bytes()
    write_shard(store, shard, samples(shard))
    assert (tmp_path / shard.tar).read_bytes() == first
    assert (tmp_path / shard.manifest).read_bytes() == first_manifest
    assert json.loads(first_manifest) == {
        "version": 1,
        "name": "train-000000",
        "sha256": hashlib.sha256(first).hexdigest(),
        "bytes": len(first),
        "count": 3,
        "keys": list(shard.keys),
        "fingerprint": shard.fingerprint,
    }
    assert sample.read_manifest(first_manifest, shard.manifest) == manifest
    with tarfile.open(tmp_path / shard.tar) as archive:
        entries = archive.getmembers()
    names = [name for name in sample.MEMBERS if name != "latents.npz"]
    assert [e.name for e in entries] == [f"{key}.{name}" for key in shard.keys for name in names]
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {
        (0, 0, 0, "talkforge", "talkforge", 0o444)
    }


def test_the_same_bytes_in_an_object_store(store: Store) -> None:
    (shard,) = plan([clip(i) for i in range(3)], CONFIG)
    remote = Store("memory://shards-test")
    assert write_shard(remote, shard, samples(shard)) == write_shard(store, shard, samples(shard))
    assert remote.read(shard.tar) == store.read(shard.tar)
    assert shards.current(remote, shard) is not None
    remote.delete_folder("shards")


def test_an_unchanged_shard_is_current(store: Store, tmp_path: Path) -> None:
    (shard,) = plan([clip(1), clip(2)], CONFIG)
    assert shards.current(store, shard) is None
    manifest = write_shard(store, shard, samples(shard))
    assert shards.current(store, shard) == manifest
    (changed,) = plan([clip(1), clip(2, content="new")], CONFIG)
    assert changed.name == shard.name and shards.current(store, changed) is None
    with (tmp_path / shard.tar).open("ab") as file:
        file.write(b"\0")
    assert shards.current(store, shard) is None
    (tmp_path / shard.tar).unlink()
    assert shards.current(store, shard) is None
    (tmp_path / shard.manifest).write_text("{}")
    assert shards.current(store, shard) is None


def test_a_kill_before_the_manifest_leaves_no_shard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = plan([clip(1), clip(2)], CONFIG)
    write_shard(store, old, samples(old))
    (new,) = plan([clip(1), clip(2), clip(3)], CONFIG)

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", killed)  # the manifest: the tar goes through `writing`
    with pytest.raises(KeyboardInterrupt):
        write_shard(store, new, samples(new))
    monkeypatch.undo()
    assert store.list() == [new.tar]  # a whole tar file, but no shard: neither the old nor the new
    assert shards.current(store, old) is None and shards.current(store, new) is None
    assert write_shard(store, new, samples(new)) == shards.current(store, new)


def test_a_kill_within_the_tar_leaves_nothing(store: Store) -> None:
    (shard,) = plan([clip(1), clip(2)], CONFIG)

    def dying() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield shard.keys[0], members(shard.keys[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(store, shard, dying())
    assert store.list() == [] and store.sweep() == []


def test_a_sample_that_could_not_be_cut_is_left_out_and_tried_again(store: Store) -> None:
    (shard,) = plan([clip(i) for i in range(4)], CONFIG)
    manifest = write_shard(store, shard, itertools.islice(samples(shard), 1, 3))
    assert manifest is not None
    assert (manifest.count, manifest.keys) == (2, shard.keys[1:3])
    assert shards.current(store, shard) is None
    assert write_shard(store, shard, []) is None
    assert store.list() == []


def test_a_full_disk_ends_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = plan([clip(1), clip(2)], CONFIG)
    opened = Path.open

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    def full_disk(self: Path, mode: str = "r", **options: Any) -> Any:
        return Full() if mode == "wb" else opened(self, mode, **options)

    monkeypatch.setattr(Path, "open", full_disk)
    with pytest.raises(
        RunError, match=r"^cannot write shards/train-000000.tar in .*: No space left on device$"
    ):
        write_shard(store, shard, samples(shard))
    assert store.list() == [] and store.sweep() == []


def test_keys_must_come_in_the_order_of_the_plan(store: Store) -> None:
    (shard,) = plan([clip(i) for i in range(3)], CONFIG)
    a, b, _ = shard.keys
    for keys in ([b, a], [a, a], [a, "other"]):
        with pytest.raises(
            DatasetError, match=r"^shard train-000000: expected its planned keys in order, found "
        ):
            write_shard(store, shard, [(key, members(key)) for key in keys])
    with pytest.raises(DatasetError, match=rf"^sample {a}: expected its members, found no flac, no json$"):
        write_shard(store, shard, [(a, {k: v for k, v in members(a).items() if k not in ("flac", "json")})])
    assert store.list() == []


def test_a_shard_with_samples_of_an_earlier_one_is_not_as_planned(store: Store) -> None:
    (shard,) = plan([clip(0), clip(1)], CONFIG)
    write_shard(store, shard, samples(shard), kept=shard.keys[:1])
    assert shards.current(store, shard) is None
    write_shard(store, shard, samples(shard))
    assert shards.current(store, shard) is not None
