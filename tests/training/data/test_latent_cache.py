"""Whether a run may use the latents that lie beside its shards."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from talkforge.schemas.errors import DatasetError
from talkforge.training.config import TrainConfig
from talkforge.training.data.latent_cache import LatentsManifest, path_of, read_manifests, usable
from talkforge.training.data.shards import Shard, shard_list
from tests.training.shard_files import Shown, write_set


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    return shard_list(write_set(tmp_path, [[Shown(0)], [Shown(1)]]))


def config(latents: str = "auto") -> TrainConfig:
    return TrainConfig.model_validate({"data": {"latents": latents, "num_frames": 9, "sizes": [[32, 32]]}})


def write(shard: Shard, **changes: Any) -> LatentsManifest:
    """A manifest of latents that fit `config`, but for `changes`."""
    url, manifest = shard
    info = {
        "name": manifest.name, "shard_sha256": manifest.sha256, "sha256": "", "bytes": 0,
        "keys": manifest.keys, "lost": 0, "num_frames": 9, "sizes": ((32, 32),), "spans_per_clip": 1,
        "base": "random", "codec": "wan", "codec_sha256": "", "text": "umt5", "image": "clip",
    }  # fmt: skip
    found = LatentsManifest.model_validate(info | changes)
    path = Path(path_of(url)).with_suffix(".json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(found.model_dump_json())
    return found


def test_they_lie_beside_the_shards(tmp_path: Path) -> None:
    assert path_of("s3://b/set/shards/train-000000.tar") == "s3://b/set/latents/train-000000.tar"
    assert path_of(f"{tmp_path}/shards/x.tar") == f"{tmp_path}/latents/x.tar"


def test_all_shards_must_have_them(shards: list[Shard], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert not usable(shards, config())
    assert caplog.messages == []  # nothing was encoded, so nothing is logged
    written = [write(shards[0])]
    assert not usable(shards, config())
    assert len(caplog.messages) == 1
    assert "train-000001.tar: none are there: run `talkforge encode` again" in caplog.messages[0]
    written.append(write(shards[1]))
    assert usable(shards, config()) and usable(shards, config("require"))
    assert read_manifests([url for url, _ in shards]) == written
    assert not usable(shards, config("ignore"))


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"shard_sha256": "00"}, "shard: expected [0-9a-f]{64}, found 00"),
        ({"num_frames": 81}, "data.num_frames: expected 9, found 81"),
        ({"shorter_spans": (5,)}, r"data.shorter_spans: expected \(\), found \(5,\)"),
        ({"sizes": ((64, 64),)}, r"data.sizes: expected \(\(32, 32\),\), found \(\(64, 64\),\)"),
        ({"base": "other"}, "model.base: expected random, found other"),
        ({"text": "none", "image": "none"}, "codec.text: expected umt5, found none; codec.image: expected"),
    ),
)
def test_what_does_not_fit_is_not_used(
    shards: list[Shard], caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    write(shards[0])
    write(shards[1], **changes)
    assert not usable(shards, config())
    with pytest.raises(DatasetError, match=f"latents of .*train-000001.tar: {words}") as caught:
        usable(shards, config("require"))
    assert str(caught.value).endswith("run `talkforge encode` again") and "\n" not in str(caught.value)
    assert str(caught.value) in caplog.messages[0]


def test_latents_of_several_spans_serve_as_well(shards: list[Shard]) -> None:
    for shard in shards:
        write(shard, spans_per_clip=5, keys=())
    assert usable(shards, config())


@pytest.mark.parametrize("data", (b"{", b"{}", b'{"version": 2}'))
def test_a_manifest_that_is_none(shards: list[Shard], data: bytes) -> None:
    write(shards[0])
    path = Path(path_of(shards[0][0])).with_suffix(".json")
    path.write_bytes(data)
    with pytest.raises(
        DatasetError, match=r"train-000000.json: expected a manifest of latents, found"
    ) as caught:
        usable(shards, config())
    assert "\n" not in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(DatasetError, match=r"train-000000.json: "):
        usable(shards, config())
