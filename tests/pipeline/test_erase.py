"""Erasing people and videos: nothing of them is left, everything of others is, and they do not come back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkforge.pipeline import erase, jobs, proof, review, snapshots, tables
from talkforge.pipeline.annotate import CAPTIONS, TRANSCRIPTS
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.pipeline.tombstones import JOURNAL, TOMBSTONES, read_tombstones
from talkforge.pipeline.verify import verify
from talkforge.schemas import tar
from talkforge.schemas.config import load_config
from talkforge.schemas.errors import CommandError
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import CaptionRow, Failure, ReviewRow, TranscriptRow
from tests.command_line import run
from tests.conftest import CLIPS, ROOT, kill_at

PEOPLE = {
    "grid_bbaf2n.mpg": "anna", "grid_lrwp9a.mpg": "anna",
    "grid_brbk7n.mpg": "bob", "grid_id2_swwp2s.mpg": "carl",
}  # fmt: skip
"""Who is labelled as whom; the two of anna are two people in truth, which no label knows."""


@dataclass(frozen=True)
class Footage:
    """A data set of real clips, the folder of the clips, and the list that names them."""

    dataset: Path
    videos: Path
    list: Path

    @property
    def store(self) -> Store:
        return Store(str(self.dataset))

    def uri(self, name: str) -> str:
        return str(self.videos / name)

    def curate(self) -> jobs.Selection:
        """The same command again."""
        return jobs.curate([str(self.list)], self.store, load_dataset(self.store).config, InlineExecutor)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """With everything that a data set can hold: embeddings, texts, latents, notes of attempts."""
    pytest.importorskip("dlib")
    folder = tmp_path_factory.mktemp("erase")
    videos = folder / "videos"
    videos.mkdir()
    for name in PEOPLE:
        shutil.copy(CLIPS / name, videos / name)
    rows = "".join(f"{videos / name},{person}\n" for name, person in PEOPLE.items())
    (folder / "list.csv").write_text(f"uri,person\n{rows}")
    config = load_config(ROOT / "configs" / "offline.yaml", ("motion.body=none", "identity.model=dlib"))
    found = Footage(folder / "set", videos, folder / "list.csv")
    jobs.curate([str(found.list)], found.store, config, InlineExecutor)
    annotate(found.store)
    return found


def annotate(store: Store) -> None:
    """What other commands add to a data set."""
    keys = [row["clip_id"] for row in rows(store, "ledger.parquet")]
    about: dict[str, Any] = {
        "text": "Set white now.", "model": "m", "model_sha256": "", "fingerprint": "f", "failure": None,
    }  # fmt: skip
    said = [
        TranscriptRow(
            clip_id=key, **about, transcript=None, words=(), word_times=None, turns=None, transcriber="t",
            version="1",
        )
        for key in keys
    ]  # fmt: skip
    tables.write(store, f"{TRANSCRIPTS.name}.parquet", TranscriptRow, said)
    seen = [CaptionRow(clip_id=key, **about, prompt="What?", num_pictures=1) for key in keys]
    tables.write(store, f"{CAPTIONS.name}.parquet", CaptionRow, seen[:2])
    tables.write(store, f"{CAPTIONS.name}/{keys[2]}.parquet", CaptionRow, seen[2:])
    reviews = [ReviewRow(clip_id=key, label="good", note=f"clip {key}") for key in sorted(keys)]
    tables.write(store, review.TABLE, ReviewRow, reviews)
    snapshot = snapshots.current(store)
    (shard,) = snapshot.shards
    latents = f"latents/{shard.name}.tar"
    with store.writing(latents) as path, path.open("wb") as file, tar.tar_writer(file) as out:
        for key in shard.keys:
            tar.write_sample(out, key, {"latents.npz": npz_bytes(first_frame=np.array([len(key)]))})
    described = {"name": shard.name, "shard_sha256": shard.sha256, "keys": shard.keys, "lost": 0}
    described |= {"sha256": store.sha256(latents), "bytes": store.size(latents)}
    store.write(f"latents/{shard.name}.json", json.dumps(described).encode())
    for row in load_ingested(store):
        assert row.video is not None
        failure = Failure(
            stage="measure", key="", video_id=row.video.video_id, uri=row.input.uri, error="E", message="m"
        )
        store.write(f"attempts/{row.video.video_id}.json", failure.model_dump_json().encode())


@pytest.fixture
def footage(made: Footage, tmp_path: Path) -> Footage:
    subprocess.run(["cp", "-a", str(made.dataset), str(tmp_path / "set")], check=True)  # links stay links
    return Footage(tmp_path / "set", made.videos, made.list)


def rows(store: Store, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables.from_bytes(store.read(name), name).to_pylist()
    return found


def samples(store: Store) -> dict[str, dict[str, bytes]]:
    snapshot = snapshots.current(store)
    return {
        key: members for shard in snapshot.shards for key, members in read_samples(store, snapshot.tar(shard))
    }


def everything(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of a data set as text, by means other than those of the proof."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        text = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            text += str(tables.from_bytes(path.read_bytes(), path.name).to_pylist())
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                text += " ".join(arrays.files)
        yield str(path.relative_to(folder)), f"{path.name} {text}"


def test_a_person_in_two_sources_is_gone_and_does_not_come_back(footage: Footage) -> None:
    store = footage.store
    before = samples(store)
    ids = {row.input.uri: row.video.video_id for row in load_ingested(store) if row.video}
    gone = {ids[footage.uri(name)] for name, person in PEOPLE.items() if person == "anna"}
    parts = {name: store.read(name) for name in store.list("parts") if Path(name).name[:12] in ids.values()}
    snapshots.tag(store, 1, "paper")

    done = erase.erase(store, erase.plan(store, people=["anna"]))

    assert (len(done.plan.sha256), done.plan.num_clips, done.plan.num_samples) == (2, 2, 2)
    assert (done.plan.snapshots, done.plan.tags) == ({1}, {"paper"})
    assert done.proof.findings == () and done.proof.num_files > 20
    assert [info.snapshot.number for info in snapshots.describe(store)] == [2]
    kept = {key: members for key, members in before.items() if key[:12] not in gone}
    assert samples(store) == kept and len(kept) == 2
    for name, data in parts.items():
        assert store.exists(name) == (Path(name).name[:12] not in gone)
        assert not store.exists(name) or store.read(name) == data
    for name, text in everything(footage.dataset):
        if name != TOMBSTONES:
            left = [what for what in (*gone, "grid_bbaf2n", "grid_lrwp9a", "anna") if what in text]
            assert left == [], name
    (shard,) = snapshots.current(store).shards
    latents = json.loads(store.read(f"latents/{shard.name}.json"))
    assert (latents["keys"], latents["shard_sha256"]) == (list(shard.keys), shard.sha256)
    assert {row["person"] for row in rows(store, "sources.parquet")} == {"bob", "carl"}
    assert len(rows(store, "transcripts.parquet")) == len(store.list("attempts")) == 2
    assert [row["clip_id"] for row in rows(store, "review.parquet")] == sorted(kept)
    assert verify(store) == []
    assert read_tombstones(store).held_by == tuple(done.plan.held_by)
    assert {digest[:12] for digest in read_tombstones(store).sha256} == gone

    shutil.copy(footage.uri("grid_bbaf2n.mpg"), footage.dataset.parent / "another name.mpg")
    (footage.dataset.parent / "more.txt").write_text(f"{footage.dataset.parent / 'another name.mpg'}\n")
    inputs = [str(footage.list), str(footage.dataset.parent / "more.txt")]
    jobs.curate(inputs, store, load_dataset(store).config, InlineExecutor)
    found = {Path(row["uri"]).name: row for row in rows(store, "sources.parquet")}
    back = ("grid_bbaf2n.mpg", "grid_lrwp9a.mpg", "another name.mpg")
    assert [(found[name]["status"], found[name]["reason"]) for name in back] == [
        ("no_candidates", "erased")
    ] * 3
    assert [(found[name]["video_id"], found[name]["person"]) for name in back] == [(None, "")] * 3
    assert set(samples(store)) == set(kept)
    assert not any(row["video_id"] in gone for row in rows(store, "ledger.parquet"))


def test_the_proof_finds_what_is_there(footage: Footage) -> None:
    """It is not empty because it looks at nothing."""
    store = footage.store
    wanted = erase.plan(store, people=["anna"])
    found = proof.scan(store, wanted.needles)
    paths = {finding.path.partition(":")[0] for finding in found.findings}
    part = next(name for name in store.list("parts") if name.endswith("part.json"))
    folder = part.rpartition("/")[0]
    assert paths >= {
        *("intake.parquet", "plan.parquet", "ledger.parquet", "sources.parquet", "transcripts.parquet"),
        *("captions.parquet", "report/index.html", "snapshots/000001/snapshot.json"),
        *("snapshots/000001/train-000000.tar", "snapshots/000001/ledger.parquet", "shards/train-000000.json"),
        *("latents/train-000000.tar", "latents/train-000000.json"),
        *(
            f"{folder}/{name}"
            for name in ("clips.parquet", "windows.parquet", "features.parquet", "part.json")
        ),
        *(f"timelines/{video_id}.npz" for video_id in wanted.needles.video_ids),
        *(f"attempts/{video_id}.json" for video_id in wanted.needles.video_ids),
    }
    sums_only = wanted.needles.model_copy(
        update={name: frozenset() for name in ("video_ids", "names", "people")}
    )
    where = {finding.path for finding in proof.scan(store, sums_only).findings}
    (key, *_) = sorted(key for key in samples(store) if key[:12] in wanted.needles.video_ids)
    expected = {f"{folder}/features.parquet: identity", f"{folder}/thumbnails.npz: {key}"}
    expected |= {f"snapshots/000001/train-000000.tar: {key}.{member}" for member in erase.MEDIA}
    assert where >= {*expected, "report/index.html"}
    nobody = proof.Needles(names=frozenset({"id_bbaf2n.mpg", "/videos"}), people=frozenset({"ann"}))
    assert proof.scan(store, nobody).findings == ()


@pytest.mark.parametrize("last", [1, 3, 8, 14, 20, 27, 34, 41])
def test_an_erasure_that_is_killed_goes_on(
    footage: Footage, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = footage.store
    wanted = erase.plan(store, sources=[footage.uri("grid_brbk7n.mpg")])
    kill_at(monkeypatch, last)
    with pytest.raises(KeyboardInterrupt):
        erase.erase(store, wanted)
    monkeypatch.undo()
    if store.exists(JOURNAL):
        code, _, err = run("select", footage.dataset)
        assert (code, err) == (
            2,
            f"talkforge: {store.root}: an erasure was not finished; `talkforge erase {store.root}` "
            "goes on with it\n",
        )
        done = erase.erase(store)
    else:  # nothing but the tombstone was written
        done = erase.erase(store, wanted)
    assert done.proof.findings == ()
    assert verify(store) == []
    assert {row["person"] for row in rows(store, "ledger.parquet")} == {"anna", "carl"}
    assert len(samples(store)) == 3
    assert not store.exists(JOURNAL)


def test_damage_that_stops_an_erasure_is_repaired_and_it_goes_on(footage: Footage) -> None:
    store = footage.store
    name = next(name for name in store.list("parts") if name.endswith("/windows.parquet"))
    store.write(name, store.read(name)[:-20])
    command = ("erase", store.root, "--source", footage.uri("grid_bbaf2n.mpg"))
    code, _, err = run(*command)
    assert (code, name in err, erase.is_begun(store)) == (1, True, True)
    code, out, _ = run("verify", store.root, "--repair")
    assert (code, name in out, store.exists(name.replace("windows.parquet", "part.json"))) == (3, True, False)
    code, out, _ = run("erase", store.root)
    assert (code, "nothing found" in out.splitlines()[-1], erase.is_begun(store)) == (0, True, False)


def test_a_list_by_command_and_then_everybody(footage: Footage, tmp_path: Path) -> None:
    store = footage.store
    names = tmp_path / "withdrawn.txt"
    names.write_text(f"{footage.uri('grid_bbaf2n.mpg')}\n{footage.uri('grid_brbk7n.mpg')}\n")
    runs = tmp_path / "runs"
    snapshot = snapshots.describe(store)[0]
    for name, noted in (("read", snapshot.sha256), ("other", "0" * 64)):
        (runs / name).mkdir(parents=True)
        start = {"snapshots": [{"dataset": store.root, "number": 1, "sha256": noted}]}
        (runs / name / "run.json").write_text(json.dumps({"starts": [start]}))
    (runs / "old").mkdir()
    (runs / "old" / "run.json").write_text(json.dumps({"starts": [{"step": 0}]}))
    (runs / "plain").mkdir()  # it began before the data set had snapshots, and went on with one
    other = {"snapshots": [{"dataset": store.root, "number": 2, "sha256": "0" * 64}]}
    (runs / "plain" / "run.json").write_text(json.dumps({"starts": [{"snapshots": []}, other]}))
    for name in ("old", "other", "plain"):
        (runs / name / "config.yaml").write_text(f"data: {{shards: {store.root}/shards/train-000000.tar}}")
    command = ("erase", store.root, "--list", names, "--runs", runs, "--json")
    before = {name: store.read(name) for name in store.list()}

    code, out, _ = run(*command, "--dry-run")
    dry = json.loads(out)
    assert (code, dry["dry_run"], dry["proof"], dry["clips"], dry["samples"]) == (0, True, None, 2, 2)
    assert dry["inputs"] == sorted(names.read_text().split())
    assert dry["runs"] == [
        {"folder": str(runs / "old"), "snapshots": [], "kind": "training run"},
        {"folder": str(runs / "plain"), "snapshots": [], "kind": "training run"},
        {"folder": str(runs / "read"), "snapshots": [1], "kind": "training run"},
    ]
    assert {name: store.read(name) for name in store.list()} == before

    code, out, _ = run(*command)
    document = json.loads(out)
    assert (code, document["proof"]["found"], document["runs"]) == (0, [], dry["runs"])
    assert {row["person"] for row in rows(store, "ledger.parquet")} == {"anna", "carl"}
    code, out, err = run(*command)
    assert (code, err.count("no input")) == (2, 2)
    code, out, err = run("erase", store.root)
    assert (code, err.endswith("nothing to erase; name it by --source, --person or --list\n")) == (2, True)
    code, out, _ = run("erase", store.root, "--runs", runs)
    assert (code, out.splitlines()[-1]) == (0, f"training run {runs / 'read'}: read snapshot 1")

    everybody = [arg for row in load_ingested(store) for arg in ("--source", row.input.uri)]
    code, out, _ = run("erase", store.root, "-q", *everybody)
    assert code == 0 and "nothing found" in out.splitlines()[-1]
    assert (rows(store, "ledger.parquet"), samples(store), store.list("shards")) == ([], {}, [])
    assert verify(store) == []


def test_a_row_of_a_list_that_cannot_be_used_is_named(footage: Footage, tmp_path: Path) -> None:
    """Leaving it out could leave somebody in."""
    uri = load_ingested(footage.store)[0].input.uri
    (tmp_path / "withdrawn.csv").write_text(f"uri,start_s\n{uri},\n{uri},soon\n")
    with pytest.raises(CommandError, match=r"withdrawn.csv: row 3: start_s: expected seconds, found 'soon'$"):
        erase.plan(footage.store, lists=[tmp_path / "withdrawn.csv"])


def test_what_is_not_there_is_named(footage: Footage) -> None:
    with pytest.raises(CommandError, match=r"no input 'x.mp4'; no person 'dora'$"):
        erase.plan(footage.store, ["x.mp4"], ["dora", "anna"])
    ahead = erase.plan(footage.store, ["a" * 64])
    assert (ahead.sha256, ahead.num_clips, ahead.snapshots) == ({"a" * 64}, 0, frozenset())
    person = rows(footage.store, "people.parquet")[0]["person_id"]
    assert len(erase.plan(footage.store, people=[person]).sha256) == 1
