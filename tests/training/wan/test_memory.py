"""The plan of a GPU's memory: its counts, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from docs.make_memory_plan import ADAPTERS, BASE, FROZEN, FULL, tokens
from talkforge.training.config import ModelConfig
from talkforge.training.wan.memory import GB, USABLE, MemoryOptions, activations, cheapest, kept, plan
from talkforge.training.wan.talking_wan import cast, set_trainable
from tests.training.models import adapters_with, awake, conditions, latents


@pytest.mark.parametrize(("trainable", "wide", "ffn"), [("adapters", 28, 1), ("full", 38, 2)])
def test_tensors_that_a_block_keeps(trainable: str, wide: int, ffn: int) -> None:
    """Counted in bf16 over everything that has as many rows as there are video tokens."""
    model = awake("image", adapters_with(window_positions=True))
    set_trainable(model, ModelConfig(trainable=trainable))
    cast(model, torch.bfloat16)
    block, config = model.transformer.blocks[1], model.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def forward(*args: object) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found: Tensor = real(*args)
        return found

    real, block.forward = block.forward, forward
    x, timestep = latents(3)  # no weight has as many rows
    model(x, timestep, conditions("frame", 3))
    rows = x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4] // 4
    wide_bytes = ffn_bytes = 0
    for tensor in storages.values():
        size = tensor.untyped_storage().nbytes()
        if config.ffn_dim in tensor.shape and tensor.numel() == rows * config.ffn_dim:
            ffn_bytes += size
        elif tensor.numel() == rows * width:
            wide_bytes += size
    assert round(wide_bytes / (2 * rows * width)) == wide
    assert round(ffn_bytes / (2 * rows * config.ffn_dim)) == ffn


def test_what_is_sharded_is_divided() -> None:
    one, eight = (plan("FSDP2", FULL, gpus, tokens(81)) for gpus in (1, 8))
    assert one.weights == 8 * eight.weights and one.optimizer == 8 * eight.optimizer
    assert one.working == eight.working
    whole = plan("DDP", FROZEN, 8, tokens(81))
    assert whole == plan("DDP", FROZEN, 64, tokens(81))
    assert whole.weights == 2 * BASE + 4 * ADAPTERS and whole.optimizer == 8 * ADAPTERS
    assert activations(FROZEN, 2 * tokens(81)) == 2 * activations(FROZEN, tokens(81))


def test_each_saving_takes_away_what_it_says() -> None:
    full = plan("DDP", FROZEN, 1, tokens(81))

    def less(**changes: object) -> float:
        return full.total - plan("DDP", FROZEN, 1, tokens(81), replace(MemoryOptions(), **changes)).total  # type: ignore[arg-type]

    one = FROZEN.block_frozen
    assert less(eight_bit=True) == 6 * ADAPTERS
    assert less(fp8=True) == 40 * one - 2 * one  # of which one block has a copy
    assert less(swapped_blocks=10) == 10 * 2 * one - 2 * one
    assert less(offload=True) == 2 * tokens(81) * 5120 * 38
    assert less(keep_attention=True) == -2 * tokens(81) * 5120 * 40
    whole = 2 * tokens(81) * (28 * 5120 + 13_824) + 2 * FROZEN.block_trained
    assert less(kept_blocks=1) == -(whole - 2 * tokens(81) * 5120)


def test_more_is_kept_where_there_is_more_memory() -> None:
    least = plan("DDP", FROZEN, 1, tokens(81)).total / USABLE
    none = kept("DDP", FROZEN, 1, tokens(81), least + 1, MemoryOptions())
    assert (none.keep_attention, none.kept_blocks) == (False, 0)
    attention = plan("DDP", FROZEN, 1, tokens(81), MemoryOptions(keep_attention=True)).total / USABLE
    some = kept("DDP", FROZEN, 1, tokens(81), attention + 1, MemoryOptions())
    assert (some.keep_attention, some.kept_blocks) == (True, 0)
    most = kept("FSDP2", FROZEN, 8, tokens(21), 1e15, MemoryOptions())
    assert (most.keep_attention, most.kept_blocks) == (True, 40)
    # On 64 GPUs of 80 GB, FSDP2 leaves room for this.
    found = kept("FSDP2", FROZEN, 64, tokens(81), 80 * GB, MemoryOptions())
    assert found.keep_attention and 5 <= found.kept_blocks <= 8
    assert plan("FSDP2", FROZEN, 64, tokens(81), found).total <= USABLE * 80 * GB


def test_the_cheapest_way_to_fit() -> None:
    assert cheapest(FROZEN, tokens(81), 80 * GB) == MemoryOptions()
    assert cheapest(FROZEN, tokens(49), 48 * GB) == MemoryOptions(eight_bit=True, fp8=True)
    assert cheapest(FROZEN, tokens(81), 10 * GB) is None
    found = cheapest(FROZEN, tokens(81), 40 * GB)
    assert found is not None and found.swapped_blocks > 0
    fewer = replace(found, swapped_blocks=found.swapped_blocks - 1)
    assert plan("DDP", FROZEN, 1, tokens(81), found).total <= USABLE * 40 * GB
    assert plan("DDP", FROZEN, 1, tokens(81), fewer).total > USABLE * 40 * GB
