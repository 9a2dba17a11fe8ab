"""Indexes of the shards: read by the readers themselves, gone when shards change."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from talkforge.pipeline import snapshots
from talkforge.pipeline.export import Options, export
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.sample import decode
from tests.pipeline.exports.published_set import CLIPS, members, publish
from tests.pipeline.exports.test_trainers import check_sums
from tests.training.shard_files import Shown


def damage(store: Store) -> list[str]:
    """What `verify` finds in the shards."""
    return [str(problem) for problem in verify(store) if problem.path.startswith("shards/")]


@pytest.mark.parametrize("beside", [True, False])
def test_energon_reads_every_sample(tmp_path: Path, beside: bool) -> None:
    energon: Any = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(dict, has_subflavors={"talkforge": "talking_head"}),)
        encode_sample = batch = encode_batch = staticmethod(lambda found: found)

    store = publish(tmp_path / "set")
    export(store, "energon", Options(None if beside else tmp_path / "out"))
    root = tmp_path / "set" / "shards" if beside else tmp_path / "out"
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for part, shards in (("train", CLIPS["train"]), ("val", CLIPS["validation"])):
        data = energon.get_val_dataset(
            root, split_part=part, worker_config=config, batch_size=1, task_encoder=Encoder()
        )
        found = {crude["__key__"].rpartition("/")[2]: crude for (crude,) in energon.get_loader(data)}
        clips = [clip for of_shard in shards for clip in of_shard]
        assert sorted(found) == [clip.key for clip in clips]
        for clip in clips:
            crude = {name: data for name, data in found[clip.key].items() if not name.startswith("__")}
            assert crude == members(clip)
            sample = decode(clip.key, crude)
            assert np.array_equal(sample.masks(), clip.lips())
    if not beside:
        assert check_sums(root) == 2 * len([*root.rglob("*.tar")]) + 4


def test_offsets_lead_to_the_samples(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    done = export(store, "energon", Options())
    assert (done.export.clips, done.place) == ({"train": 3, "validation": 1}, f"{tmp_path}/set/shards")
    tar = tmp_path / "set" / "shards" / "train-000000.tar"
    numbers = struct.unpack("3Q", tar.with_suffix(".tar.idx").read_bytes())
    with tar.open("rb") as stream:
        for clip, begin, end in zip(CLIPS["train"][0], numbers[:-1], numbers[1:], strict=True):
            stream.seek(begin)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                entry = archive.next()
                assert entry is not None and entry.name == f"{clip.key}.{min(members(clip))}"
            assert begin < end <= tar.stat().st_size
    info = yaml.safe_load((tar.parent / ".nv-meta" / ".info.yaml").read_text())
    assert info == {
        "shard_counts": {"train-000000.tar": 2, "train-000001.tar": 1, "validation-000000.tar": 1}
    }


def test_indexes_beside_the_shards_go_when_shards_change(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    before = damage(store)  # the clips have no audio track
    export(store, "energon", Options())
    export(store, "wids", Options())
    held = {path for path in store.list("shards") if not path.endswith((".tar", "0.json", "1.json"))}
    assert held == {
        *(f"shards/{name}.tar.idx" for name in ("train-000000", "train-000001", "validation-000000")),
        *(f"shards/.nv-meta/{name}.yaml" for name in (".info", "split", "dataset")),
        "shards/wids-train.json", "shards/wids-validation.json",
    }  # fmt: skip
    assert damage(store) == before
    publish(tmp_path / "set")  # nothing new
    assert held < set(store.list("shards"))
    store.write("shards/mine.txt", b"x")
    publish(tmp_path / "set", {"train": [[Shown(0)]]})
    assert set(store.list("shards")) == {
        "shards/train-000000.tar",
        "shards/train-000000.json",
        "shards/mine.txt",
    }


def test_an_index_does_not_hide_shards_of_a_set_without_snapshots(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    export(store, "wids", Options())
    store.delete_folder("snapshots")
    assert [shard.name for shard in snapshots.current(store).shards] == [
        "train-000000", "train-000001", "validation-000000",
    ]  # fmt: skip


def test_shards_are_linked_into_a_folder_of_their_own(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    done = export(store, "wids", Options(tmp_path / "out", split="train"))
    assert done.export.clips == {"train": 3}
    for name in ("train-000000.tar", "train-000001.tar"):
        held = next((tmp_path / "set" / "snapshots").rglob(name))
        assert (tmp_path / "out" / name).samefile(held)
    assert json.loads((tmp_path / "out" / "wids-train.json").read_text()) == {
        "wids_version": 1, "name": "talkforge-train",
        "shardlist": [
            {"url": name, "nsamples": count, "filesize": (tmp_path / "out" / name).stat().st_size}
            for name, count in (("train-000000.tar", 2), ("train-000001.tar", 1))
        ],
    }  # fmt: skip
    assert check_sums(tmp_path / "out") == 4


def test_wids_reads_every_sample(tmp_path: Path) -> None:
    wids = pytest.importorskip("wids", reason="wids is not installed")
    export(publish(tmp_path / "set"), "wids", Options())
    index = f"{tmp_path}/set/shards/wids-train.json"
    dataset = wids.ShardListDataset(index, transformations=[], localname=str)
    clips = [clip for of_shard in CLIPS["train"] for clip in of_shard]
    assert len(dataset) == 3
    for number, clip in enumerate(clips):
        assert dataset[number]["__key__"].endswith(clip.key)
        assert dataset[number][".txt"].read() == members(clip)["txt"]


def test_what_cannot_be_indexed_is_said(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    with pytest.raises(CommandError, match="--snapshot, --split: go with --out DIR"):
        export(store, "energon", Options(split="train"))
    tar = tmp_path / "set" / "shards" / "train-000001.tar"
    tar.unlink()
    with pytest.raises(CommandError, match=r"train-000001\.tar is not here .*give --out DIR"):
        export(store, "energon", Options())
    held = next((tmp_path / "set" / "snapshots").rglob("train-000000.tar"))
    held.unlink()
    held.write_bytes(b"x" * 4096)
    with pytest.raises(DatasetError, match=r"^shard train-000000: "):
        export(store, "energon", Options(tmp_path / "out"))
