"""What is kept, recomputed and compiled changes no gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode

from talkforge.training.config import ModelConfig
from talkforge.training.wan.blocks import compile_blocks, is_kept, keep_blocks
from talkforge.training.wan.talking_wan import TalkingWan, cast, set_trainable
from tests.training.models import awake, conditions, latents

BLOCKS = 2


def model(trainable: str = "adapters") -> TalkingWan:
    found = awake("image")
    set_trainable(found, ModelConfig(trainable=trainable, lora_rank=2))
    torch.manual_seed(0)
    for name, parameter in found.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    cast(found, torch.float32)
    return found


class Attentions(TorchDispatchMode):
    """Counts attentions with as many keys as queries that are computed, forward."""

    def __init__(self) -> None:
        super().__init__()
        self.to_itself = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if "scaled_dot_product" in name and "backward" not in name:
            self.to_itself += args[0].shape == args[1].shape
        return func(*args, **(kwargs or {}))


def gradients(
    one: TalkingWan,
    stage: str = "frame",
    watched: AbstractContextManager[object] = nullcontext(),  # noqa: B008
) -> dict[str, Tensor]:
    """Gradients, of a backward pass that is watched."""
    one.zero_grad()
    loss = one(*latents(), conditions(stage)).square().mean()
    with watched:
        loss.backward()
    return {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("keep_attention", "kept", "offload", "repeated"),
    [
        (False, 0, False, BLOCKS),
        (True, 0, False, 0),
        (True, 0, True, 0),
        (False, 1, False, 1),
    ],
)
def test_what_is_kept_is_not_computed_again(
    keep_attention: bool, kept: int, offload: bool, repeated: int
) -> None:
    """Gradients have the same bits, whatever is kept, and where it lies."""
    one = model()
    none, again = Attentions(), Attentions()
    expected = gradients(one, watched=none)
    assert none.to_itself == 0 and len(expected) > 10
    one.enable_gradient_checkpointing()
    one.context.keep_attention, one.context.offload = keep_attention, offload
    keep_blocks(one.transformer.blocks, kept)
    assert [is_kept(block) for block in one.transformer.blocks] == [n >= BLOCKS - kept for n in range(BLOCKS)]
    found = gradients(one, watched=again)
    assert again.to_itself == repeated
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


class Counting:
    """Compiles as AOTAutograd does, without making code, and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0
        self.backend: Any = aot_autograd(
            fw_compiler=self._forward,
            bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
            partition_fn=min_cut_rematerialization_partition,
        )

    def _forward(self, graph: Any, _: Any) -> Any:
        self.graphs += 1
        return make_boxed_func(graph.forward)


@pytest.mark.parametrize(
    ("trainable", "stage", "recompute", "keep_attention", "graphs"),
    [
        ("full", "frame", True, True, 1),
        ("lora", "clip", True, False, 2),  # the first block's input needs no gradient there
    ],
)
def test_blocks_compile_whole_and_share_a_graph(
    trainable: str, stage: str, recompute: bool, keep_attention: bool, graphs: int
) -> None:
    torch._dynamo.reset()
    one, seen = model(trainable), Counting()
    expected = gradients(one, stage)
    compile_blocks(
        one.transformer.blocks, recompute=recompute, keep_attention=keep_attention, backend=seen.backend
    )
    for _ in range(2):
        found = gradients(one, stage)
        assert seen.graphs == graphs
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5, msg=name)
