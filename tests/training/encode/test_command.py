"""`talkforge encode`: whole shards of latents, or none; done once, and again when something changes."""

from __future__ import annotations

import itertools
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from talkforge.pipeline import snapshots
from talkforge.pipeline.dataset import exclusive
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError, ModelError, RunError
from talkforge.training.config import TrainConfig
from talkforge.training.data.latent_cache import LatentsManifest, usable
from talkforge.training.data.loader import SpanLoader, probe
from talkforge.training.data.shards import shard_list
from talkforge.training.data.stream import SkippedSample
from talkforge.training.encode import command
from talkforge.training.encode.command import EncodeResult, encode_dataset, run_encode
from talkforge.training.wan.codec import WanCodec
from tests.command_line import run
from tests.training.shard_files import Shown, write_set
from tests.training.tiny_base import write_base

CLIPS = [[Shown(0), Shown(1)], [Shown(2, num_frames=5), Shown(3)]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", CLIPS)
    return tmp_path / "set"


def config(base: Path, text: str = "none", image: str = "none", **data: Any) -> TrainConfig:
    data = {"num_frames": 9, "sizes": [[32, 32]], "workers": 0, "cache_mb": 16} | data
    codec = {"text": text, "image": image}
    return TrainConfig.model_validate({"model": {"base": str(base)}, "codec": codec, "data": data})


def files(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((dataset / "latents").iterdir())}


def counts(result: EncodeResult) -> tuple[int, int, int, int]:
    return result.done, result.kept, result.clips, result.spans


def test_latents_lie_beside_the_shards(dataset: Path, base: Path) -> None:
    shown: list[str] = []
    settings = config(base)
    result = encode_dataset(
        str(dataset), settings, spans_per_clip=2, progress=lambda r: shown.append(r.line())
    )
    assert counts(result) == (2, 0, 3, 6) and result.shards == 2
    assert result.skipped == {"too_short": 1} and result.skipped_keys == {"clip02": "too_short"}
    assert shown[0].startswith("shards 0/2, clips 1, spans 2, left out: none, ")
    assert shown[-1].startswith("shards 2/2, clips 3, spans 6, left out: 1 too_short, ") and len(shown) == 6
    assert list(files(dataset)) == [
        "train-000000.json", "train-000000.tar", "train-000001.json", "train-000001.tar",
    ]  # fmt: skip
    _, (_, second) = shard_list(f"{dataset}/shards/train-{{000000..000001}}.tar")
    found = LatentsManifest.model_validate_json(files(dataset)["train-000001.json"])
    tar = dataset / "latents" / "train-000001.tar"
    assert found.model_dump() == {
        "version": 1, "name": "train-000001", "shard_sha256": second.sha256, "bytes": tar.stat().st_size,
        "sha256": Store(str(dataset)).sha256("latents/train-000001.tar"), "keys": ("clip03",), "lost": 0,
        "num_frames": 9, "shorter_spans": (), "sizes": ((32, 32),), "spans_per_clip": 2, "base": str(base),
        "codec": "wan",
        "codec_sha256": WanCodec.load(str(base)).sha256, "text": "none", "image": "none", "condition": True,
        "decoder": "pyav",
    }  # fmt: skip
    with tarfile.open(tar) as opened:
        (member,) = opened.getmembers()
    assert (member.name, member.mtime, member.mode, member.uname) == (
        "clip03.latents.npz",
        0,
        0o444,
        "talkforge",
    )


def test_training_reads_them(dataset: Path, base: Path) -> None:
    shards = f"{dataset}/shards/train-{{000000..000001}}.tar"
    settings = config(base, "umt5", "clip", shards=shards, batch_size=1)
    assert not usable(shard_list(shards), settings)
    encode_dataset(str(dataset), settings, spans_per_clip=2)
    assert usable(shard_list(shards), settings)
    loader = SpanLoader(settings.data, probe(shards), seed=0, cached=True)
    batches = iter(loader)
    keys = set()
    for _ in range(40):
        batch = next(batches)
        assert batch.cached is not None and batch.cached.latents_BCTHW.shape == (1, 16, 3, 4, 4)
        assert batch.cached.text_BSD is not None and batch.cached.image_BKD is not None
        assert batch.cached.image_BKD.shape == (1, 5, 8)
        keys |= set(batch.keys)
    assert keys == {f"clip0{k}+{first}" for k in (0, 1, 3) for first in (5, 16)}
    assert loader.skipped == {"too_short": 1}


def test_shorter_clips_have_latents_of_their_length(dataset: Path, base: Path) -> None:
    shards = f"{dataset}/shards/train-{{000000..000001}}.tar"
    encode_dataset(str(dataset), config(base))
    settings = config(base, shards=shards, batch_size=1, shorter_spans=[5])
    assert not usable(shard_list(shards), settings)  # clip02 is missing there
    result = encode_dataset(str(dataset), settings)
    assert counts(result) == (2, 0, 4, 4) and not result.skipped
    assert usable(shard_list(shards), settings)
    seen: dict[str, tuple[int, ...]] = {}
    for batch in itertools.islice(SpanLoader(settings.data, probe(shards), seed=0, cached=True), 40):
        assert batch.cached is not None
        assert batch.cached.condition_BCTHW.shape[2:] == batch.cached.latents_BCTHW.shape[2:]
        seen[batch.keys[0]] = (batch.num_frames, *batch.cached.latents_BCTHW.shape[1:])
    nine, five = (9, 16, 3, 4, 4), (5, 16, 2, 4, 4)
    assert seen == {"clip00+11": nine, "clip01+11": nine, "clip02+0": five, "clip03+11": nine}


def test_the_same_again_is_nothing_to_do(dataset: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_dataset(str(dataset), config(base))
    before = files(dataset)
    times = [path.stat().st_mtime_ns for path in (dataset / "latents").iterdir()]
    again = encode_dataset(str(dataset), config(base))
    assert counts(again) == (2, 2, 0, 0) and again.line().startswith("shards 2/2 (2 were there), clips 0")
    assert [path.stat().st_mtime_ns for path in (dataset / "latents").iterdir()] == times
    monkeypatch.setattr(command, "load_encoders", lambda *_, **__: pytest.fail("loaded for nothing"))
    encode_dataset(str(dataset), config(base))
    monkeypatch.undo()
    for path in (dataset / "latents").iterdir():
        path.unlink()
    encode_dataset(str(dataset), config(base), devices=("cpu", "cpu"))  # by two encoders
    assert files(dataset) == before


def manifest_changed(dataset: Path, **changes: Any) -> None:
    path = dataset / "latents" / "train-000000.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize(
    "damage", ("no manifest", "no tar", "short tar", "manifest", "shard", "codec", "lost")
)
def test_what_is_not_as_it_would_be_made_is_made_again(dataset: Path, base: Path, damage: str) -> None:
    encode_dataset(str(dataset), config(base))
    before = files(dataset)
    tar, manifest = (dataset / "latents" / f"train-000000.{kind}" for kind in ("tar", "json"))
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "no tar":
        tar.unlink()
    elif damage == "short tar":
        tar.write_bytes(tar.read_bytes()[:-1])
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "shard":
        manifest_changed(dataset, shard_sha256="00")
    elif damage == "codec":
        manifest_changed(dataset, codec_sha256="00")
    else:
        manifest_changed(dataset, lost=1)
    assert counts(encode_dataset(str(dataset), config(base))) == (2, 1, 2, 2)
    assert files(dataset) == before


def test_another_configuration_makes_all_again(dataset: Path, base: Path) -> None:
    encode_dataset(str(dataset), config(base))
    assert counts(encode_dataset(str(dataset), config(base, num_frames=5))) == (2, 0, 4, 4)
    assert counts(encode_dataset(str(dataset), config(base, num_frames=5), spans_per_clip=3)) == (2, 0, 4, 10)
    assert counts(encode_dataset(str(dataset), config(base, "umt5", num_frames=5), spans_per_clip=3))[1] == 0


def test_a_run_that_is_stopped_goes_on_with_the_next_shard(dataset: Path, base: Path) -> None:
    def stop(result: EncodeResult) -> None:
        if result.clips == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(str(dataset), config(base), progress=stop)
    assert list(files(dataset)) == ["train-000000.json", "train-000000.tar"]
    assert counts(encode_dataset(str(dataset), config(base))) == (2, 1, 1, 1)


def test_latents_that_are_being_made_again_are_not_there(dataset: Path, base: Path) -> None:
    encode_dataset(str(dataset), config(base))
    seen: list[list[str]] = []

    def look(_: EncodeResult) -> None:
        seen.append(sorted(path.name for path in (dataset / "latents").glob("*.json")))

    encode_dataset(str(dataset), config(base, num_frames=5), progress=look)
    both = ["train-000000.json", "train-000001.json"]
    assert seen == [both[1:], both[1:], both, both[:1], both[:1], both]


def test_damaged_samples_are_counted_and_named(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path, [[Shown(0), Shown(1), Shown(2)], [Shown(3)]], {"clip01": {"mp4": b"x"}})
    result = encode_dataset(str(tmp_path), config(base))
    assert counts(result) == (2, 0, 3, 3)
    assert result.skipped_keys == {"clip01": "unreadable"} and "left out: clip01: mp4: " in caplog.messages[0]
    tar = tmp_path / "shards" / "train-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: whole.index(b"clip01.")])
    for _ in range(2):  # the shard may be mended: never taken as done
        (tmp_path / "latents" / "train-000000.json").unlink()
        result = encode_dataset(str(tmp_path), config(base))
        assert counts(result) == (2, 1, 1, 1)
        assert result.skipped == {"lost": 2} and result.skipped_keys == {"train-000000": "lost"}
        encoded = LatentsManifest.model_validate_json(files(tmp_path)["train-000000.json"])
        assert encoded.keys == ("clip00",) and encoded.lost == 2
    tar.write_bytes(whole)
    assert counts(encode_dataset(str(tmp_path), config(base))) == (2, 1, 2, 2)


def test_latents_of_shards_that_are_gone_are_removed(dataset: Path, base: Path) -> None:
    encode_dataset(str(dataset), config(base))
    for kind in ("json", "tar"):
        (dataset / "shards" / f"train-000001.{kind}").unlink()
    encode_dataset(str(dataset), config(base))
    assert list(files(dataset)) == ["train-000000.json", "train-000000.tar"]


def test_a_data_set_may_be_remote(dataset: Path, base: Path) -> None:
    encode_dataset(str(dataset), config(base))
    for path in (dataset / "shards").iterdir():
        with fsspec.open(f"memory://encode/shards/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    assert counts(encode_dataset("memory://encode", config(base))) == (2, 0, 3, 3)
    for name, data in files(dataset).items():
        with fsspec.open(f"memory://encode/latents/{name}", "rb") as file:
            assert file.read() == data


def test_the_error_that_ended_the_work_is_the_one_that_is_raised(
    dataset: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(WanCodec, "encode", large)
    with pytest.raises(RunError, match=r"^cpu: not enough memory to encode 9 frames"):
        encode_dataset(str(dataset), config(base), devices=("cpu", "cpu"))
    assert files(dataset) == {}


class Patient:
    """Encodes one sample after the other, for as long as anybody waits."""

    def shard(self, _: str) -> Iterator[SkippedSample]:
        for number in range(2000):
            time.sleep(0.005)
            yield SkippedSample(f"{number}", "slow", "")
        pytest.fail("it was not stopped")


class Broken(Patient):
    """Fails when the other one is at work."""

    def shard(self, _: str) -> Iterator[SkippedSample]:
        time.sleep(0.1)
        raise RunError("broken")
        yield


def test_encoders_that_are_stopped_do_not_complain(dataset: Path, base: Path) -> None:
    store = Store(str(dataset))
    shards = [manifest for _, manifest in shard_list(f"{dataset}/shards/train-{{000000..000001}}.tar")]
    for encoders in ((Patient(), Broken()), (Broken(), Patient())):
        snapshot = snapshots.current(store)
        work = command._Work(store, snapshot, config(base), 1, "", True, shards, lambda _: None, False)
        with pytest.raises(RunError, match=r"^broken$"):
            work.run(encoders)  # type: ignore[arg-type]
        assert files(dataset) == {}


def test_machines_share_the_shards(dataset: Path, base: Path) -> None:
    """Each encodes its own, while the others are at work, and together they leave what one leaves."""
    settings = config(base)
    second: list[EncodeResult] = []

    def meanwhile(result: EncodeResult) -> None:
        if not second:
            second.append(result)
            second.append(encode_dataset(str(dataset), settings, part=command.parsed_part("2/2")))

    first = encode_dataset(str(dataset), settings, part=command.parsed_part("1/2"), progress=meanwhile)
    assert counts(first) == (1, 0, 2, 2) and counts(second[1]) == (1, 0, 1, 1)
    shared = files(dataset)
    assert counts(encode_dataset(str(dataset), settings)) == (2, 2, 0, 0)
    shutil.rmtree(dataset / "latents")
    encode_dataset(str(dataset), settings)
    assert files(dataset) == shared


def test_a_machine_leaves_no_latents_of_a_snapshot_that_is_gone(
    dataset: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = snapshots.current(Store(str(dataset)))
    numbers = iter((now.number, now.number + 1))
    monkeypatch.setattr(snapshots, "current", lambda _: now.model_copy(update={"number": next(numbers)}))
    with pytest.raises(RunError, match=r"got another snapshot meanwhile; run the same command again$"):
        encode_dataset(str(dataset), config(base), part=(1, 2))
    assert files(dataset) == {}


def test_a_base_without_picture_input_has_no_condition(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(base, blind)
    described = blind / "transformer" / "config.json"
    described.write_text(json.dumps(json.loads(described.read_bytes()) | {"in_channels": 16}))
    with monkeypatch.context() as patched:
        patched.setattr(WanCodec, "condition", lambda *_: pytest.fail("encoded for nothing"))
        encode_dataset(str(dataset), config(blind))
    found = LatentsManifest.model_validate_json(files(dataset)["train-000000.json"])
    assert found.condition is False
    shards = f"{dataset}/shards/train-{{000000..000001}}.tar"
    settings = config(blind, shards=shards, batch_size=1)
    listed = shard_list(shards)
    assert usable(listed, settings, condition=False) and not usable(listed, settings, condition=True)
    batch = next(iter(SpanLoader(settings.data, probe(shards), seed=0, cached=True)))
    assert batch.cached is not None and batch.cached.condition_BCTHW.shape == (1, 20, 3, 4, 4)
    assert not batch.cached.condition_BCTHW.any()
    # A cache that has one for a base that takes none is current.
    for path in (dataset / "latents").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"condition": True}))
    assert counts(encode_dataset(str(dataset), config(blind))) == (2, 2, 0, 0)


# --------------------------------------------------------------------------- what cannot be done


def test_the_command_takes_a_configuration(dataset: Path, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{base: {base}}}\ncodec: {{text: none, image: none}}\ndata: {{num_frames: 9}}\n")
    shown: list[int] = []
    result = run_encode(str(dataset), path, ["data.sizes=[[32, 32]]"], 1, lambda r: shown.append(r.done))
    assert counts(result) == (2, 0, 3, 3) and shown[-1] == 2
    with pytest.raises(CommandError, match=r"data\.size"):
        run_encode(str(dataset), path, ["data.size=1"], 1, lambda _: None)
    shutil.rmtree(dataset / "latents")
    code, out, err = run("encode", dataset, "--config", path, "--set", "data.sizes=[[32, 32]]")
    assert code == 0 and out.startswith("shards 2/2, clips 3, spans 3, left out: 1 too_short, ")
    *progress, left_out = err.splitlines()
    assert left_out == "left out: clip02: too_short" and " encoding: shards " in progress[0]


def test_what_is_refused(dataset: Path, base: Path, tmp_path: Path) -> None:
    linear = TrainConfig.model_validate({"codec": {"kind": "linear"}})
    with pytest.raises(CommandError, match=r"codec.kind linear: needs no cache"):
        encode_dataset(str(dataset), linear)
    for text in ("0", "-1", "all", ""):
        with pytest.raises(CommandError, match=f"^--spans: expected 1 or more, or cover, found {text}$"):
            command.parsed_spans(text)
    for text in ("0/2", "3/2", "1", "1/0", "a/b"):
        with pytest.raises(CommandError, match=f"^--shards: expected i/n with i from 1 to n.* found {text}$"):
            command.parsed_part(text)
    with pytest.raises(CommandError, match=f"{tmp_path}/none: no shards here"):
        encode_dataset(str(tmp_path / "none"), config(base))
    shutil.copytree(base / "transformer", tmp_path / "bare" / "transformer")
    with pytest.raises(ModelError, match="no usable Wan VAE") as caught:
        encode_dataset(str(dataset), config(tmp_path / "bare"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="nothing usable in its folder transformer") as caught:
        encode_dataset(str(dataset), config(tmp_path, "umt5"))
    assert "\n" not in str(caught.value)
    with exclusive(Store(str(dataset))), pytest.raises(CommandError, match="another run is at work"):
        encode_dataset(str(dataset), config(base))
    assert not (dataset / "latents").exists()


def test_shards_that_are_not_what_they_promise(dataset: Path, base: Path) -> None:
    manifest = dataset / "shards" / "train-000001.json"
    (dataset / "shards" / "train-000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"train-000001.tar: .*No such file"):
        encode_dataset(str(dataset), config(base))
    manifest.write_text("{")
    with pytest.raises(DatasetError, match=r"train-000001.json: expected a shard manifest"):
        encode_dataset(str(dataset), config(base))


def test_every_gpu_takes_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command._devices() == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert command._devices() == ["cpu"]
