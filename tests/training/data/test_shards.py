"""What is there: listing shards, and what a model must know of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from talkforge.pipeline import snapshots
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.training.config import DataConfig
from talkforge.training.data.shards import MAX_PROBED, dataset_info, pin, probe, shard_list, snapshot_notes
from tests.training.shard_files import IDENTITY_DIM, SPEECH_DIM, Shown, publish, write_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), [[Shown(0), Shown(1)], [Shown(2)]])


def test_shards_are_listed_with_their_manifests(shards: str) -> None:
    found = shard_list(shards)
    assert [Path(url).name for url, _ in found] == ["train-000000.tar", "train-000001.tar"]
    assert [manifest.keys for _, manifest in found] == [("clip00", "clip01"), ("clip02",)]
    assert shard_list(found[1][0]) == found[1:]


def test_paths_may_be_relative_to_here_or_home(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shards).parents[1]
    monkeypatch.chdir(folder / "shards")
    assert shard_list("train-000000.tar") == shard_list(shards)[:1]
    monkeypatch.setenv("HOME", str(folder))
    assert shard_list("~/shards/train-{000000..000001}.tar") == shard_list(shards)


def test_info(shards: str) -> None:
    info = probe(shards)
    assert (info.fps, info.speech_dim, info.speech_model) == (25.0, SPEECH_DIM, "logmel-80")
    assert (info.identity_dim, info.identity_model) == (IDENTITY_DIM, "unit")
    assert (info.num_shards, info.num_samples) == (2, 3)
    tars = [Path(url).read_bytes() for url, _ in shard_list(shards)]
    together = "".join(hashlib.sha256(data).hexdigest() for data in tars)
    assert info.fingerprint == hashlib.sha256(together.encode()).hexdigest()


def test_shards_may_be_remote(shards: str) -> None:
    for path in Path(shards).parents[1].rglob("*.*"):
        with fsspec.open(f"memory://inventory/{path.relative_to(Path(shards).parents[1])}", "wb") as file:
            file.write(path.read_bytes())
    pattern = "memory://inventory/shards/train-{000000..000001}.tar"
    assert [manifest for _, manifest in shard_list(pattern)] == [m for _, m in shard_list(shards)]
    assert probe(pattern) == probe(shards)
    with pytest.raises(CommandError, match=r"no shard memory://inventory/shards/train-000002.tar"):
        shard_list("memory://inventory/shards/train-{000000..000002}.tar")


def test_an_identity_may_be_missing_from_the_first_clips(tmp_path: Path) -> None:
    no_identity = Shown(0, identity=False)
    late = write_set(tmp_path / "late", [[no_identity, replace(no_identity, number=1), Shown(2)]])
    assert (probe(late).identity_dim, probe(late).identity_model) == (IDENTITY_DIM, "unit")
    none = write_set(tmp_path / "none", [[no_identity, replace(no_identity, number=1)]])
    assert (probe(none).identity_dim, probe(none).identity_model) == (0, "")
    assert MAX_PROBED == 64


@pytest.mark.parametrize(
    ("described", "why"),
    (
        (b"{}", "dataset.json: expected schema version 1, found None"),
        (b"[1]", "dataset.json: expected a JSON object, found list"),
        (b"{", "dataset.json: expected JSON, found Expecting property name"),
        (None, "dataset.json is not there"),
    ),
)
def test_a_data_set_that_does_not_describe_itself_names_no_speech_model(
    tmp_path: Path, described: bytes | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    path = tmp_path / "dataset.json"
    path.write_bytes(described) if described is not None else path.unlink()
    assert probe(shards).speech_model == ""
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"which speech encoder the data set used is not known ({tmp_path}/{why}")


def test_a_description_that_cannot_be_reached_is_not_taken_for_none(tmp_path: Path) -> None:
    """Else a run would not be resumed where the network failed for a moment."""
    shards = write_set(tmp_path, [[Shown(0)]])
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(DatasetError, match=r"dataset.json: cannot be read \(Is a directory\)"):
        probe(shards)


@pytest.mark.parametrize(
    ("other", "words"),
    (
        (lambda folder: write_set(folder, [[Shown(0, fps=30.0)]]), "fps: expected one value, found 25.0 in"),
        (lambda folder: write_set(folder, [[Shown(0)]], embedding="wav2vec2"), "speech_model: .*wav2vec2 in"),
    ),
)
def test_data_sets_that_differ_are_not_mixed(
    shards: str, tmp_path: Path, other: Callable[[Path], str], words: str
) -> None:
    first, second = shard_list(shards)[0][0], shard_list(other(tmp_path / "other"))[0][0]
    with pytest.raises(DatasetError, match=words) as caught:
        probe(f"{{{first},{second}}}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known", (True, False))
def test_data_sets_that_agree_may_be_mixed(shards: str, tmp_path: Path, known: bool) -> None:
    """Also where one of them has no identities."""
    first = shard_list(shards)[0][0]
    second = shard_list(write_set(tmp_path, [[Shown(7, identity=known)]]))[0][0]
    for pattern in (f"{{{first},{second}}}", f"{{{second},{first}}}"):
        info = probe(pattern)
        assert (info.num_samples, info.num_shards) == (3, 2)
        assert (info.identity_dim, info.identity_model) == (IDENTITY_DIM, "unit")


def test_no_pattern() -> None:
    with pytest.raises(CommandError, match=r"data.shards: expected DATASET/shards/.*, found nothing"):
        shard_list("")


def test_a_shard_that_is_not_there(shards: str) -> None:
    pattern = shards.replace("000001", "000003")
    with pytest.raises(CommandError, match=r"no shard .*train-000002.tar \(its manifest .*train-000002.json"):
        shard_list(pattern)


@pytest.mark.parametrize(
    ("data", "words"),
    (
        (b'{"version": 2}', "expected a shard manifest, found version: Input should be 1"),
        (b"{", "expected a shard manifest, found the document: Invalid JSON"),
        (b"[]", "expected a shard manifest, found the document: Input should be an object"),
        (b'{"version": 1, "name": "x"}', "expected a shard manifest, found sha256: Field required"),
    ),
)
def test_a_manifest_that_is_none(tmp_path: Path, data: bytes, words: str) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    (tmp_path / "shards" / "train-000000.json").write_bytes(data)
    with pytest.raises(DatasetError, match=words) as caught:
        shard_list(shards)
    assert "train-000000.json" in str(caught.value) and "\n" not in str(caught.value)


def test_shards_without_samples(tmp_path: Path) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    path = tmp_path / "shards" / "train-000000.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"count": 0, "keys": []}))
    with pytest.raises(DatasetError, match="expected samples, found 1 empty shards"):
        probe(shards)


@pytest.mark.parametrize("data", (None, b"", b"x" * 5000, bytes(10240)))
def test_shards_that_cannot_be_read(tmp_path: Path, data: bytes | None) -> None:
    shards = write_set(tmp_path, [[Shown(0)]])
    tar = tmp_path / "shards" / "train-000000.tar"
    tar.unlink() if data is None else tar.write_bytes(data)
    with pytest.raises((CommandError, DatasetError), match=r"train-000000.tar") as caught:
        probe(shards)
    assert "\n" not in str(caught.value)


def test_the_first_sample_that_can_be_read_speaks_for_all(tmp_path: Path) -> None:
    damage: dict[str, dict[str, bytes | None]] = {"clip00": {"speech.npy": b"x"}, "clip01": {"json": None}}
    shards = write_set(tmp_path, [[Shown(0), Shown(1)], [Shown(2, identity=False), Shown(3)]], damage)
    assert (probe(shards).speech_dim, probe(shards).identity_dim) == (SPEECH_DIM, IDENTITY_DIM)
    with pytest.raises(
        DatasetError, match=r"train-000000.tar: expected samples, .*, found none \(.*clip00: speech.npy"
    ):
        probe(shard_list(shards)[0][0])
    tar = tmp_path / "shards" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert probe(shards).speech_dim == SPEECH_DIM


def two_snapshots(folder: Path) -> str:
    shards = write_set(folder, [[Shown(0)], [Shown(1)]])
    publish(folder)
    write_set(folder, [[Shown(2)]])
    for suffix in ("tar", "json"):
        (folder / "shards" / f"train-000001.{suffix}").unlink()
    assert publish(folder).number == 2
    return shards


def test_shards_are_those_of_a_snapshot(tmp_path: Path) -> None:
    both = two_snapshots(tmp_path)
    one = both.replace("{000000..000001}", "000000")
    assert [manifest.keys for _, manifest in shard_list(one)] == [("clip02",)]
    found = shard_list(both, "1")
    assert [manifest.keys for _, manifest in found] == [("clip00",), ("clip01",)]
    assert [url for url, _ in found] == [
        f"{tmp_path}/snapshots/000001/train-00000{number}.tar" for number in (0, 1)
    ]
    assert shard_list(found[1][0]) == found[1:]  # the file itself may be named, too
    assert dataset_info(found, both).speech_model == "logmel-80"
    with pytest.raises(CommandError, match=r"no shard .*/shards/train-000001.tar in snapshot 2$"):
        shard_list(both)
    with pytest.raises(CommandError, match=r"no snapshot 3; there are: 1, 2$"):
        shard_list(one, "3")


def test_a_configuration_is_pinned_to_the_snapshots_that_it_reads(tmp_path: Path) -> None:
    one = two_snapshots(tmp_path / "one").replace("{000000..000001}", "000000")
    snapshots.tag(Store(str(tmp_path / "one")), 1, "paper")
    config = DataConfig(shards=one)
    assert pin(config).snapshot == pin(pin(config)).snapshot == "2"
    assert pin(config.model_copy(update={"snapshot": "paper"})).snapshot == "1"
    (note,) = snapshot_notes(pin(config))
    described = (tmp_path / "one" / "snapshots" / "000002" / "snapshot.json").read_bytes()
    assert note == {
        "dataset": str(tmp_path / "one"), "number": 2, "sha256": hashlib.sha256(described).hexdigest(),
    }  # fmt: skip

    other = write_set(tmp_path / "other", [[Shown(5)]]).replace("{000000..000000}", "000000")
    assert pin(DataConfig(shards=other)).snapshot == "" and snapshot_notes(DataConfig(shards=other)) == []
    both = DataConfig(shards=one, validation_shards=other)
    assert json.loads(pin(both).snapshot) == {str(tmp_path / "one"): 2}
    publish(tmp_path / "other")
    pinned = pin(both)
    assert json.loads(pinned.snapshot) == {str(tmp_path / "one"): 2, str(tmp_path / "other"): 1}
    assert shard_list(other, pinned.snapshot) == shard_list(other)
    with pytest.raises(CommandError, match=r"^data.snapshot: expected a JSON object, found "):
        shard_list(other, "{")
