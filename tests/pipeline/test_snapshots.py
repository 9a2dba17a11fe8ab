"""Snapshots: published at once, shared where equal, and gone when nothing names them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkforge.pipeline import snapshots
from talkforge.pipeline.dataset import exclusive
from talkforge.pipeline.shards import ShardPlan, read_samples, write_shard
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.sample import MEMBERS, ShardManifest
from tests.conftest import kill_at

State = dict[str, str]
"""Shard -> text that its samples hold."""


def members(key: str, text: str) -> dict[str, bytes]:
    """Not a true sample: nothing here looks inside."""
    return {name: f"{key} {name} {text}".encode() for name in MEMBERS if name != "latents.npz"}


def write(store: Store, name: str, text: str, folder: str = snapshots.NEXT) -> ShardManifest:
    keys = (f"{name}-a", f"{name}-b")
    plan = ShardPlan(name, keys, f"fingerprint of {text}", folder)
    manifest = write_shard(store, plan, [(key, members(key, text)) for key in keys])
    assert manifest is not None
    return manifest


def tables(state: State) -> dict[str, bytes]:
    return {name: f"{name} of {sorted(state.items())}".encode() for name in snapshots.TABLES}


def publish(store: Store, state: State, keep: int = 9, plain: bool = True) -> Snapshot:
    """Writes and publishes shards, those that a snapshot holds already too."""
    manifests = [write(store, name, text) for name, text in state.items()]
    return snapshots.publish(store, manifests, tables(state), "1.0", keep, plain)


def shown(store: Store) -> State:
    """What `shards/` holds."""
    names = [path for path in store.list("shards") if path.endswith(".tar")]
    return {Path(name).stem: text_of(store, name) for name in names}


def held(store: Store, snapshot: Snapshot) -> State:
    """What a snapshot holds; its files have the sums that it names."""
    for digest, path in snapshot.files.items():
        assert store.sha256(path) == digest
    return {shard.name: text_of(store, snapshot.tar(shard)) for shard in snapshot.shards}


def text_of(store: Store, tar: str) -> str:
    (text,) = {found["txt"].decode().split(" ", 2)[2] for _, found in read_samples(store, tar)}
    return text


@pytest.fixture(params=["disk", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "disk":
        yield Store(str(tmp_path / "set"))
        return
    remote = Store(f"memory://snapshots-{tmp_path.name}")
    yield remote
    for path in remote.list():
        remote.delete(path)


ONE, TWO = "train-000000", "train-000001"


def test_shards_and_tables_are_published_together_and_shared_where_equal(store: Store) -> None:
    first = publish(store, {ONE: "old", TWO: "same"})
    second = publish(store, {ONE: "new", TWO: "same"})
    assert (first.number, second.number) == (1, 2)
    assert held(store, snapshots.read(store, 1)) == {ONE: "old", TWO: "same"}
    assert held(store, snapshots.current(store)) == shown(store) == {ONE: "new", TWO: "same"}
    assert [store.read(name) for name in snapshots.TABLES] == list(tables(shown(store)).values())
    assert [path for path in store.list("snapshots") if path.endswith(".tar")] == [
        f"snapshots/000001/{ONE}.tar", f"snapshots/000001/{TWO}.tar", f"snapshots/000002/{ONE}.tar",
    ]  # fmt: skip
    assert not store.list(snapshots.NEXT)
    infos = snapshots.describe(store)
    assert [(i.snapshot.number, i.is_current, i.own_bytes) for i in infos] == [
        (1, False, first.shards[0].bytes),
        (2, True, second.shards[0].bytes),
    ]


def test_on_a_disk_a_shard_is_stored_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, {ONE: "a"})
    publish(store, {ONE: "a", TWO: "b"})
    by_number = {path.stat().st_ino: path.name for path in tmp_path.rglob("*.tar")}
    assert sorted(by_number.values()) == [f"{ONE}.tar", f"{TWO}.tar"]


def test_what_has_not_changed_makes_no_snapshot(store: Store) -> None:
    publish(store, {ONE: "a"})
    before = {path: store.read(path) for path in store.list("snapshots")}
    manifest = write(store, ONE, "a")
    changed = {**tables({ONE: "a"}), "failures.parquet": b"one attempt more"}
    assert snapshots.publish(store, [manifest], changed, "1.1", 9).number == 1
    assert {path: store.read(path) for path in store.list("snapshots")} == before
    assert store.read("failures.parquet") == b"one attempt more"
    changed["ledger.parquet"] = b"another verdict"
    assert snapshots.publish(store, [write(store, ONE, "a")], changed, "1.1", 9).number == 2


def test_a_shard_under_another_name_keeps_its_new_name(store: Store) -> None:
    """Latents are found by the name of a shard's file."""
    publish(store, {ONE: "a"})
    moved = write(store, ONE, "a").model_copy(update={"name": TWO})
    for suffix in ("tar", "json"):
        store.delete(f"{snapshots.NEXT}/{ONE}.{suffix}")
    found = snapshots.publish(store, [moved], tables({TWO: "a"}), "1.0", 9)
    assert found.tar(moved) == f"snapshots/000002/{TWO}.tar"
    assert held(store, found) == shown(store) == {TWO: "a"}


def test_a_missing_shard_is_not_published(store: Store) -> None:
    manifest = write(store, ONE, "a")
    store.delete_folder(snapshots.NEXT)
    with pytest.raises(DatasetError, match=rf"^shard {ONE}: expected its tar file in shards.next or snap"):
        snapshots.publish(store, [manifest], tables({ONE: "a"}), "1.0", 9)
    assert snapshots.read_index(store) is None and not store.exists("ledger.parquet")


def test_a_publication_that_is_killed_anywhere_shows_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = {ONE: "old", TWO: "same"}, {ONE: "new", TWO: "same", "train-000002": "more"}
    results, seen = [], []
    for last in itertools.count():
        store = Store(str(tmp_path / str(last)))
        publish(store, old)
        manifests = [write(store, name, text) for name, text in new.items()]
        left = kill_at(monkeypatch, last)
        with contextlib.suppress(KeyboardInterrupt):
            snapshots.publish(store, manifests, tables(new), "1.0", 1)
        finished = left[0] > 0
        monkeypatch.undo()
        found = held(store, snapshots.current(store))
        assert found in (old, new)
        ledger = store.read(snapshots.current_table(store, "ledger.parquet"))
        assert ledger == tables(found)["ledger.parquet"]
        seen.append(found == new)
        with exclusive(store):  # the next run, whatever it is
            assert shown(store) == found
            assert store.read("ledger.parquet") == ledger
            manifests = [write(store, name, text) for name, text in new.items()]
            snapshots.publish(store, manifests, tables(new), "1.0", 1)
        results.append(
            {
                path: store.read(path)
                for path in store.list()
                if not path.endswith(("index.json", "snapshot.json"))
            }
        )
        if finished:
            break
    assert len(results) > 20
    assert all(result == results[-1] for result in results)
    assert seen == sorted(seen) and not seen[0]  # the old state up to one change, the new one from there
    assert shown(store) == held(store, snapshots.current(store)) == new


def test_a_snapshot_that_is_being_read_is_not_touched(store: Store) -> None:
    publish(store, {ONE: "old", TWO: "old"})
    reader = snapshots.current(store)
    samples = itertools.chain.from_iterable(read_samples(store, reader.tar(s)) for s in reader.shards)
    first = next(samples)
    publish(store, {ONE: "new"})
    assert {found["txt"].split()[-1] for _, found in (first, *samples)} == {b"old"}


# ------------------------------------------------------------------------------ earlier data sets


def test_shards_of_an_earlier_version_are_read_and_become_the_first_snapshot(store: Store) -> None:
    manifests = [write(store, name, "made before", "shards") for name in (ONE, TWO)]
    store.write("shards/notes.txt", b"of the user")
    found = snapshots.current(store)
    assert (found.number, found.shards) == (0, tuple(manifests))
    assert held(store, found) == {ONE: "made before", TWO: "made before"}
    assert snapshots.known_shards(store) == {(shard.name, shard.fingerprint): shard for shard in manifests}
    assert snapshots.describe(store) == []
    with pytest.raises(CommandError, match=r"no snapshot 1; there are: none$"):
        snapshots.find(store, 1)

    new = [manifests[0], write(store, TWO, "made now")]
    made = snapshots.publish(store, new, tables({}), "1.0", 9)
    assert made.number == 1
    assert held(store, made) == shown(store) == {ONE: "made before", TWO: "made now"}
    assert store.read("shards/notes.txt") == b"of the user"


def test_an_empty_data_set_has_an_empty_snapshot(store: Store) -> None:
    assert snapshots.current(store).shards == ()
    assert publish(store, {}).number == 1
    assert shown(store) == {}


# ------------------------------------------------------------------------------ retention, rollback, tags


def numbers(store: Store) -> list[int]:
    return [info.snapshot.number for info in snapshots.describe(store)]


def test_the_last_ones_and_those_with_a_tag_are_kept(store: Store) -> None:
    publish(store, {ONE: "a", TWO: "same"})
    snapshots.tag(store, 1, "paper")
    publish(store, {ONE: "b", TWO: "same"}, keep=2)
    publish(store, {ONE: "c", TWO: "same"}, keep=2)
    publish(store, {ONE: "d", TWO: "same"}, keep=2)
    assert numbers(store) == [1, 3, 4]
    assert held(store, snapshots.find(store, "paper")) == {ONE: "a", TWO: "same"}
    snapshots.untag(store, "paper")
    assert numbers(store) == [3, 4]
    assert snapshots.prune(store, 1) == [3]
    assert held(store, snapshots.current(store)) == {ONE: "d", TWO: "same"}
    assert [path for path in store.list("snapshots") if path.endswith(".tar")] == [
        f"snapshots/000001/{TWO}.tar", f"snapshots/000004/{ONE}.tar",
    ]  # fmt: skip


def test_rollback_brings_back_shards_and_tables_and_no_number_is_given_twice(store: Store) -> None:
    publish(store, {ONE: "a"})
    publish(store, {ONE: "b", TWO: "b"})
    store.write("ledger.parquet", b"selected since")
    assert snapshots.roll_back(store, "1").number == 1
    assert shown(store) == held(store, snapshots.current(store)) == {ONE: "a"}
    assert store.read("ledger.parquet") == tables({ONE: "a"})["ledger.parquet"]
    assert numbers(store) == [1, 2]
    assert snapshots.prune(store, 1) == [2]
    assert publish(store, {ONE: "c"}).number == 3


def test_a_killed_rollback_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    publish(store, {ONE: "a"})
    publish(store, {ONE: "b"})
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        snapshots.roll_back(store, 1)
    monkeypatch.undo()
    with exclusive(store):
        assert shown(store) == {ONE: "a"}
        assert [store.read(name) for name in snapshots.TABLES] == list(tables({ONE: "a"}).values())


def test_a_snapshot_with_a_file_missing_is_not_rolled_back_to(store: Store) -> None:
    lost = publish(store, {ONE: "a"})
    publish(store, {ONE: "b"})
    store.delete(lost.tar(lost.shards[0]))
    with pytest.raises(DatasetError, match=rf"^snapshot 1: expected snapshots/000001/{ONE}.tar, found no"):
        snapshots.roll_back(store, 1)
    assert shown(store) == {ONE: "b"}


def test_tags_and_numbers_that_are_none(store: Store) -> None:
    publish(store, {ONE: "a"})
    publish(store, {ONE: "b"})
    snapshots.tag(store, 1, "v1.0")
    snapshots.tag(store, "v1.0", "paper")
    snapshots.tag(store, 2, "paper")  # moves
    assert [info.tags for info in snapshots.describe(store)] == [("v1.0",), ("paper",)]
    for wrong in ("", "3", "-x", "a b", "a/b", "x" * 65):
        with pytest.raises(CommandError, match=r"expected 1 to 64 letters, digits"):
            snapshots.tag(store, 1, wrong)
    with pytest.raises(CommandError, match=r"no snapshot 7; there are: 1, 2, paper, v1.0$"):
        snapshots.find(store, "7")
    with pytest.raises(CommandError, match=r"no snapshot 0; there are: 1, 2"):
        snapshots.find(store, 0)
    with pytest.raises(CommandError, match=r"no snapshot has the tag 'x'$"):
        snapshots.untag(store, "x")


def test_without_plain_shards_nothing_is_stored_twice(store: Store) -> None:
    publish(store, {ONE: "a"})
    made = publish(store, {ONE: "b"}, plain=False)
    assert (shown(store), held(store, made)) == ({}, {ONE: "b"})
    publish(store, {ONE: "b"})
    assert shown(store) == {ONE: "b"}


# ------------------------------------------------------------------------------ damage


def test_a_manifest_that_names_files_elsewhere_is_refused(store: Store) -> None:
    made = publish(store, {ONE: "a"})
    good = json.loads(store.read(made.manifest_file))
    for path in ("../x.tar", "/etc/passwd", "snapshots/../../x.tar", "dataset.json", "s3://b/x.tar"):
        changed = {**good, "files": dict.fromkeys(good["files"], path)}
        store.write(made.manifest_file, json.dumps(changed).encode())
        with pytest.raises(DatasetError, match=r"^snapshots/000001/snapshot.json: files: .*files of a snap"):
            snapshots.current(store)
    shard = {**good["shards"][0], "name": "../../x"}
    store.write(made.manifest_file, json.dumps({**good, "shards": [shard]}).encode())
    with pytest.raises(DatasetError, match=r"expected names of shards, found '../../x'$"):
        snapshots.current(store)


def test_damaged_descriptions_are_named(store: Store) -> None:
    publish(store, {ONE: "a"})
    index = json.loads(store.read(snapshots.INDEX))
    for data in (b"", b"[]", b"{}", json.dumps({**index, "history": []}).encode()):
        store.write(snapshots.INDEX, data)
        with pytest.raises(DatasetError, match=r"^snapshots/index.json: "):
            snapshots.current(store)
    store.write(snapshots.INDEX, json.dumps({**index, "version": 2}).encode())
    with pytest.raises(DatasetError, match=r"^snapshots/index.json: version: Input should be 1$"):
        snapshots.current(store)


def test_the_index_is_made_anew_from_what_is_there(store: Store) -> None:
    publish(store, {ONE: "a"})
    publish(store, {ONE: "b"})
    snapshots.roll_back(store, 1)
    store.write(snapshots.INDEX, b"")
    snapshots.rebuild_index(store)
    assert (snapshots.current(store).number, numbers(store)) == (1, [1, 2])
    assert publish(store, {ONE: "c"}).number == 3


def test_a_current_snapshot_that_is_forgotten_leaves_its_shards(store: Store) -> None:
    first = publish(store, {ONE: "a"})
    publish(store, {ONE: "b"})
    snapshots.tag(store, 2, "gone")
    snapshots.forget(store, [2, 17])
    found = snapshots.current(store)
    assert (found.number, held(store, found)) == (0, {ONE: "b"})
    assert held(store, snapshots.find(store, 1)) == held(store, first)
    assert [info.tags for info in snapshots.describe(store)] == [()]
    made = snapshots.publish(store, found.shards, tables({ONE: "b"}), "1.0", 9)
    assert (made.number, held(store, made)) == (3, {ONE: "b"})
