"""Groups, schedule and moving average, against their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from talkforge.schemas.errors import ModelError
from talkforge.training.config import ModelConfig, OptimConfig
from talkforge.training.run.optim import EMA, learning_rate, make_optimizer, set_learning_rate
from talkforge.training.run.tensor_files import TensorFile, write_tensors
from talkforge.training.wan.talking_wan import adapter_parameters, set_trainable
from tests.training.models import awake


def test_adapters_have_a_learning_rate_of_their_own() -> None:
    model = awake()
    set_trainable(model, ModelConfig(trainable="full"))
    optimizer = make_optimizer(
        model, OptimConfig(lr=0.5, adapter_lr_scale=5, betas=(0.8, 0.7), weight_decay=0.25)
    )
    set_learning_rate(optimizer, 0.1)
    added, rest = optimizer.param_groups
    adapters = {id(p) for _, p in adapter_parameters(model)}
    assert {id(p) for p in added["params"]} == adapters
    assert len(added["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert (added["lr"], rest["lr"]) == (0.5, 0.1)
    assert {(g["betas"], g["weight_decay"]) for g in optimizer.param_groups} == {((0.8, 0.7), 0.25)}


def test_what_is_frozen_has_no_group() -> None:
    model = awake()
    set_trainable(model, ModelConfig(trainable="adapters"))
    (group,) = make_optimizer(model, OptimConfig()).param_groups
    assert len(group["params"]) == len(list(adapter_parameters(model)))


def test_the_schedule() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 10, config) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    config = OptimConfig(lr=2.0, warmup_steps=2, schedule="cosine")
    found = [learning_rate(step, 6, config) for step in range(1, 7)]
    falling = [1 + math.cos(math.pi * k / 4) for k in range(4)]
    assert found == pytest.approx([1.0, 2.0, *falling])
    assert learning_rate(1, 1, OptimConfig(lr=3.0)) == 3.0


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    model = awake()
    set_trainable(model, ModelConfig(trainable="adapters"))
    average = EMA(model, 0.75)
    name, parameter = next(adapter_parameters(model))
    start, expected = parameter.detach().clone(), parameter.detach().clone()
    for k in range(1, 4):
        with torch.no_grad():
            parameter.fill_(float(k))
        average.update(model)
        expected = 0.75 * expected + 0.25 * k
    assert average.state is not None and average.state.keys() == dict(adapter_parameters(model)).keys()
    torch.testing.assert_close(average.state[name], expected)
    assert not torch.equal(start, expected)
    other = EMA(model, 0.75)
    write_tensors(tmp_path / "ema", average.state)
    other.load(TensorFile(tmp_path / "ema"))
    assert other.state is not None and torch.equal(other.state[name], average.state[name])
    del average.state[name]
    write_tensors(tmp_path / "ema", average.state)
    with pytest.raises(ModelError, match=f"^{tmp_path}/ema: does not fit the model: missing {name}$"):
        other.load(TensorFile(tmp_path / "ema"))


def test_no_average_is_no_work() -> None:
    model = awake()
    average = EMA(model, None)
    average.update(model)
    assert average.state is None
