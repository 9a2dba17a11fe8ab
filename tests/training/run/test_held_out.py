"""The loss on held-out samples is the same each time, and tells of the model alone."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from talkforge.training.data.loader import probe
from talkforge.training.run.held_out import LEVELS, SAMPLES, HeldOut
from talkforge.training.train import train
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, NoText
from talkforge.training.wan.talking_wan import build
from tests.training.runs import four_clips, small


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def process(rank: int, world: int) -> Any:
    """One of several processes, whose gathered tensor is its own."""
    return SimpleNamespace(
        num_processes=world, process_index=rank, device=torch.device("cpu"), gather=lambda tensor: tensor
    )


def test_processes_share_the_samples_and_the_mean_is_that_of_one(shards: str, tmp_path: Path) -> None:
    config = small(
        shards, tmp_path, data__validation_shards=shards, run__validate_every=1, run__stage="frame"
    )
    info = probe(shards)
    model = build(config, info)
    encoders = Encoders(LinearCodec(), NoText(1, 8, torch.device("cpu")), None)
    whole = HeldOut(config, info, process(0, 1)).measure(model, encoders)
    assert list(whole) == [
        name for level in LEVELS for name in (f"held_out_{level}", f"held_out_lips_{level}")
    ]
    parts = [HeldOut(config, info, process(rank, 2)) for rank in range(2)]
    assert [[number for number, _ in part._batches] for part in parts] == [
        list(range(rank, SAMPLES, 2)) for rank in range(2)
    ]
    halves = [part.measure(model, encoders) for part in parts]
    for name, value in whole.items():
        assert sum(half[name] for half in halves) / 2 == pytest.approx(value, rel=1e-5)
    assert model.training
    # A model that says nothing is off by the velocity's own size: of noise 1, and of the latents.
    nn.init.zeros_(model.transformer.proj_out.weight)
    nn.init.zeros_(model.transformer.proj_out.bias)
    silent = HeldOut(config, info, process(0, 1)).measure(model, encoders)
    assert (
        len({round(silent[f"held_out_{level}"], 5) for level in LEVELS}) == 1 and silent["held_out_0.5"] > 1
    )


def test_a_run_says_and_keeps_it(shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    straight = {"data__validation_shards": shards, "run__validate_every": 2, "run__validation_samples": 1}
    train(small(shards, tmp_path, run__steps=4, **straight))
    with (tmp_path / "validation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    curves = [[float(row[f"held_out_{level}"]) for row in rows] for level in LEVELS]
    assert all(after < before for before, after in curves)
    said = [message for message in caplog.messages if "held-out loss" in message]
    assert len(said) == 2 and said[0].startswith(f"step 2: held-out loss {curves[0][0]:.4f} at 0.1, ")
