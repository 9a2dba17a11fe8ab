"""Damage of every kind at once, repaired by one command and the next run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from talkforge.pipeline import jobs, snapshots
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.repair import repair
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import load_config
from talkforge.schemas.records import Failure
from tests.conftest import ROOT, SETTINGS, Curated


def damaged(store: Store, name: str) -> str:
    """Flips a byte in a file, of a table in its first page; returns the file's name."""
    data = bytearray(store.read(name))
    data[40 if name.endswith(".parquet") else len(data) // 2] ^= 0xFF
    store.write(name, bytes(data))
    return name


def test_what_is_damaged_is_named_and_made_again(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    golden = {name: store.read(name) for name in store.list("shards")}
    part = next(name for name in store.list("parts") if name.endswith("clips.parquet"))
    names = [
        *("intake.parquet", "plan.parquet", "sources.parquet", "ledger.parquet"),
        *(part, store.list("timelines")[0]),
        *(name for name in golden if name.endswith("000000.tar")),
    ]
    for name in names:
        damaged(store, name)
    cut_short = ("people.parquet", "report/statistics.json")
    for name in cut_short:
        store.write(name, store.read(name)[:-20])
    problems = verify(store)
    assert {problem.path for problem in problems} >= {*names, *cut_short}
    assert {*names, *cut_short} - {part} <= set(repair(store, problems))
    jobs.curate(
        [str(curated.videos)], store, load_config(ROOT / "configs" / "offline.yaml", SETTINGS), InlineExecutor
    )
    assert verify(store) == []
    assert {name: store.read(name) for name in store.list("shards")} == golden


def test_notes_of_what_was_put_off_are_verified_and_go_with_the_plan(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    failure = Failure(
        stage="measure", key="k", video_id="v", uri="a.mp4", error="E", message="503", kind="network"
    )
    store.write("attempts/000000-11111111.json", failure.model_dump_json().encode())
    assert verify(store) == []
    store.write("attempts/000000-22222222.json", b'{"stage": "measure"}')
    (problem,) = verify(store)
    assert str(problem) == "attempts/000000-22222222.json: expected a failure, found key: Field required"
    assert repair(store, [problem]) == ["attempts/000000-22222222.json"]
    assert verify(store) == []
    damaged(store, "plan.parquet")
    assert "plan.parquet" in repair(store, verify(store))
    assert store.list("attempts") == []


def recut(store: Store) -> None:
    """Both clips in one shard, where they were in two."""
    old = load_dataset(store)
    config = old.config.model_copy(update={"shards": old.config.shards.model_copy(update={"max_samples": 2})})
    ingested = load_ingested(store)
    selection = jobs.select(store, old.model_copy(update={"config": config}), ingested)
    jobs.shard(store, load_dataset(store), selection, ingested)


@pytest.fixture(scope="module")
def twice(measured: Curated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with two snapshots."""
    folder = tmp_path_factory.mktemp("twice") / "set"
    shutil.copytree(measured.dataset, folder)
    store = Store(str(folder))
    recut(store)
    assert [info.snapshot.number for info in snapshots.describe(store)] == [1, 2]
    assert verify(store) == []
    return folder


NAMES = (
    "snapshots/index.json",
    "snapshots/000001/snapshot.json",
    "snapshots/000001/ledger.parquet",
    "snapshots/000001/train-000001.tar",
    "snapshots/000002/snapshot.json",
    "snapshots/000002/ledger.parquet",
    "snapshots/000002/train-000000.tar",
    "shards/train-000000.tar",
)


@pytest.mark.parametrize(
    ("name", "gone"),
    [*((name, False) for name in NAMES), *((name, True) for name in (NAMES[0], NAMES[6]))],
)
def test_damage_of_snapshots_is_named_and_the_current_one_made_again(
    twice: Path, tmp_path: Path, name: str, gone: bool
) -> None:
    subprocess.run(["cp", "-a", str(twice), str(tmp_path / "set")], check=True)  # links stay links
    store = Store(str(tmp_path / "set"))
    golden = {path: store.read(path) for path in store.list("shards")}
    data = store.read(name)
    store.delete(name)  # not in place: the file may have a second name
    if not gone:
        store.write(name, bytes([data[0] ^ 0xFF, *data[1:]]))
    problems = verify(store)
    assert name in {problem.path for problem in problems}
    repair(store, problems)
    recut(store)
    assert verify(store) == []
    assert {path: store.read(path) for path in store.list("shards")} == golden
    kept = [info.snapshot.number for info in snapshots.describe(store)]
    if name.startswith("snapshots/000001"):
        assert kept == [2]
    elif name.endswith(".tar") or (name == snapshots.INDEX and not gone):
        assert kept == [1, 2]
