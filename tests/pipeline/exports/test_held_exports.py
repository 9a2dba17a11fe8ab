"""Exports that hold what was erased are found by the snapshot that they were made of."""

from __future__ import annotations

from pathlib import Path

from talkforge.pipeline import snapshots
from talkforge.pipeline.erase import HeldRun, runs
from talkforge.pipeline.export import Options, export
from talkforge.pipeline.tombstones import HeldBy
from tests.pipeline.exports.published_set import publish
from tests.training.shard_files import Shown


def test_only_exports_of_the_snapshot_are_listed(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    export(store, "videox", Options(tmp_path / "exports" / "old"))
    held = snapshots.current(store)
    publish(tmp_path / "set", {"train": [[Shown(0)]]})
    export(store, "videox", Options(tmp_path / "exports" / "new"))
    (tmp_path / "exports" / "other").mkdir()
    (tmp_path / "exports" / "other" / "export.json").write_text('{"of": "another tool"}')
    by = HeldBy(number=1, sha256=snapshots.manifest_sha256(store, held))
    assert runs(store, [tmp_path / "exports"], [by]) == [HeldRun(f"{tmp_path}/exports/old", (1,), "export")]
    store.delete_folder("snapshots")  # as in a data set of an earlier version
    export(store, "videox", Options(tmp_path / "exports" / "silent"))
    found = runs(store, [tmp_path / "exports"], [by])
    assert found[1:] == [HeldRun(f"{tmp_path}/exports/silent", (), "export")]
