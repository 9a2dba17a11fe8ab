"""Types of what is computed. CUDA's autocast is emulated, because the CPU's treats RMSNorm otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.overrides import TorchFunctionMode

from talkforge.training.config import ModelConfig
from talkforge.training.run.parallel import make_accelerator
from talkforge.training.run.update import TrainState
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, NoText
from talkforge.training.wan.precision import compute_in_type_of_input
from talkforge.training.wan.talking_wan import build, cast, set_trainable
from tests.training.batches import a_batch, some_info
from tests.training.models import awake, conditions, latents
from tests.training.runs import small

BLOCKS = 2


class CudaAutocast(TorchFunctionMode):
    """Where autocast is on, RMSNorm computes in float32, as on CUDA. Records types of attention and products.

    Source: torch's list of operators that CUDA's autocast computes in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attended: list[set[torch.dtype]] = []
        self.multiplied: set[tuple[torch.dtype, ...]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.rms_norm and torch.is_autocast_enabled("cpu"):
            args = tuple(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args)
        if func is nn.functional.scaled_dot_product_attention:
            given = [*args, *kwargs.values()]
            self.attended.append(
                {one.dtype for one in given if isinstance(one, torch.Tensor) and one.dtype != torch.bool}
            )
        if func is nn.functional.linear:
            self.multiplied.add((args[0].dtype, args[1].dtype))
        return func(*args, **kwargs)


def step(config: Any, folder: Path) -> tuple[CudaAutocast, TrainState, float]:
    """One step of a run, as the trainer does it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    model = build(config, some_info(), dtype=dtype)
    encoders = Encoders(LinearCodec(), NoText(1, 8, torch.device("cpu")), None)
    state = TrainState(make_accelerator(config, folder), model, encoders, config)
    with CudaAutocast() as seen:
        losses, norm = state.step(1, lambda: a_batch())
    assert torch.isfinite(losses[0].total)
    return seen, state, norm


@pytest.mark.parametrize("trainable", ["adapters", "lora", "full"])
def test_in_bf16_every_attention_of_the_transformer_gets_bf16(tmp_path: Path, trainable: str) -> None:
    config = small(
        "",
        tmp_path,
        run__precision="bf16",
        run__stage="frame",
        model__trainable=trainable,
        model__lora_rank=2 if trainable == "lora" else 64,
    )
    seen, state, norm = step(config, tmp_path)
    # Of each block: to itself, the prompt, the audio and the face.
    assert seen.attended == [{torch.bfloat16}] * (BLOCKS * 4)
    assert seen.multiplied == {(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)}
    trained = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert norm > 0


def test_in_float32_nothing_is_computed_in_another_type(tmp_path: Path) -> None:
    seen, _, _ = step(small("", tmp_path, run__stage="frame"), tmp_path)
    assert seen.attended == [{torch.float32}] * (BLOCKS * 4)
    assert seen.multiplied == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("trainable", ["adapters", "lora", "full"])
def test_layers_that_follow_their_input_compute_as_before_in_float32(trainable: str) -> None:
    """The same bits, forward and backward, as torch's and peft's own layers."""

    def outputs(typed: bool) -> list[torch.Tensor]:
        model = awake("image")
        set_trainable(model, ModelConfig(trainable=trainable, lora_rank=2))
        if typed:
            compute_in_type_of_input(model.transformer)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                nn.init.normal_(parameter)
        found = model(*latents(), conditions("frame"))
        found.square().mean().backward()
        return [found, *(p.grad for p in model.parameters() if p.grad is not None)]

    before, now = outputs(typed=False), outputs(typed=True)
    assert len(before) == len(now) > 10
    assert all(torch.equal(one, other) for one, other in zip(before, now, strict=True))


def test_bf16_is_near_float32() -> None:
    """The velocity is off by less than 3 % of its norm: bf16 keeps 8 bits, and rounds in every layer."""
    precise, coarse = awake("image"), awake("image")
    for model, dtype in ((precise, torch.float32), (coarse, torch.bfloat16)):
        set_trainable(model, ModelConfig())
        cast(model, dtype)
    with torch.no_grad():
        expected, found = (model(*latents(), conditions("frame")) for model in (precise, coarse))
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.03
