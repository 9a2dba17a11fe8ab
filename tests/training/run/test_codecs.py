"""The codec of a run: fitted once, kept in its folder, and handed on with what it started from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from talkforge.schemas.errors import ModelError
from talkforge.training.data.shards import dataset_info, shard_list
from talkforge.training.run.codecs import fitted, read_codec
from talkforge.training.run.tensor_files import read_tensors, write_tensors
from talkforge.training.train import train
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.learned_codec import LearnedCodec
from tests.training.runs import four_clips, last, small

LEARNED = {"codec__kind": "learned", "codec__fit_steps": 2, "codec__fit_batch": 2, "run__steps": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def codec_of(shards: str, out: Path, *, main: bool = True, **changes: Any) -> LinearCodec:
    config = small(shards, out, **{**LEARNED, **changes})
    info = dataset_info(shard_list(shards, ""), shards)
    return fitted(config, info, None, torch.device("cpu"), main=main)


def test_the_second_stage_has_the_codec_of_the_first(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(small(shards, tmp_path / "one", **LEARNED))
    said = [one.message for one in caplog.records if one.message.startswith("codec: ")]
    assert len(said) == 2 and said[0] == "codec: fitting the decoder, 2 steps" and "PSNR" in said[1]
    train(small(shards, tmp_path / "two", run__init_from=str(tmp_path / "one"), **LEARNED))
    first, second = (last(tmp_path / name).codec() for name in ("one", "two"))
    assert isinstance(first, LearnedCodec) and isinstance(second, LearnedCodec)
    assert first.sha256 == second.sha256
    (file,) = (tmp_path / "one").glob("codec-*.safetensors")
    assert read_codec(file).sha256 == first.sha256
    assert not [*(tmp_path / "two").glob("codec-*")], "it was not fitted again"


def test_a_decoder_is_fitted_once(shards: str, tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint finds it. Another seed or length has its own."""
    first = codec_of(shards, tmp_path)
    (file,) = tmp_path.glob("codec-*")
    written = file.stat().st_mtime_ns
    assert codec_of(shards, tmp_path).sha256 == first.sha256 and file.stat().st_mtime_ns == written
    others = [codec_of(shards, tmp_path, **change) for change in ({"run__seed": 1}, {"codec__fit_steps": 1})]
    assert len({first.sha256, *(other.sha256 for other in others)}) == 3
    assert len([*tmp_path.glob("codec-*")]) == 3
    state = read_tensors(file)
    write_tensors(file, {**state, "statistics.deviation": state["statistics.deviation"] * 2})
    with pytest.raises(ModelError, match=rf"^{file}: its tensors are not those that were written"):
        codec_of(shards, tmp_path)


def test_only_the_main_process_fits(shards: str, tmp_path: Path) -> None:
    other = codec_of(shards, tmp_path / "other", main=False)
    assert other.kind == "linear" and not (tmp_path / "other").exists()
    assert other.statistics.keys() == (main := codec_of(shards, tmp_path / "main")).statistics.keys()
    assert all(torch.equal(value, main.statistics[name]) for name, value in other.statistics.items())


def test_a_run_that_starts_from_another_kind_keeps_the_latents(shards: str, tmp_path: Path) -> None:
    train(small(shards, tmp_path / "linear", run__steps=1))
    train(small(shards, tmp_path / "learned", run__init_from=str(tmp_path / "linear"), **LEARNED))
    train(small(shards, tmp_path / "back", run__init_from=str(tmp_path / "learned"), run__steps=1))
    codecs = [last(tmp_path / name).codec() for name in ("linear", "learned", "back")]
    assert [codec.kind if codec else "" for codec in codecs] == ["linear", "learned", "linear"]
    statistics = [codec.statistics["mean_rest"] for codec in codecs if codec]
    assert torch.equal(statistics[0], statistics[1]) and torch.equal(statistics[0], statistics[2])
