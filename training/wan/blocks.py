"""How the transformer's blocks run in training: what is recomputed, what is kept, and what is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_FORWARD = WanTransformerBlock.forward

_KEPT_WHOLE = "keeps_activations"
"""Attribute of a block of which nothing is recomputed."""

_ATTENTIONS = ("attention", "flash_attn")
"""Parts of the names of all operators that attend: torch's own and those of the flash packages."""


def keep_blocks(blocks: nn.ModuleList, count: int) -> None:
    """Let the last blocks keep all their activations, though the others are recomputed.

    Args:
        blocks: of the transformer.
        count: how many.
    """
    for number, block in enumerate(blocks):
        setattr(block, _KEPT_WHOLE, number >= len(blocks) - count)


def is_kept(block: nn.Module) -> bool:
    """Whether nothing of a block is recomputed."""
    return bool(getattr(block, _KEPT_WHOLE, False))


def recomputed(
    run: Callable[..., Any],
    *args: Any,
    keep_attention: bool = False,
    offload: bool = False,
    again: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Any:
    """Run something whose activations are computed again in the backward pass. Nothing in it may be random.

    Args:
        run: a block, or its forward pass.
        args: its arguments.
        keep_attention: keep what self-attention gives. It is two fifths of a block's work at 21,504 tokens,
            and one of about forty tensors of its width.
        offload: keep the arguments in main memory.
        again: gives what is entered when it is computed again.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        saving, reading = (nullcontext(), nullcontext())
        if keep_attention:
            saving, reading = create_selective_checkpoint_contexts(_keep_self_attention)
        return saving, _both(reading, again())

    with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


def _keep_self_attention(_context: Any, operator: Any, *args: Any, **_options: Any) -> CheckpointPolicy:
    """Keep the outputs of attentions with as many keys as queries. All other operators are repeated."""
    attends = any(part in str(operator) for part in _ATTENTIONS) and len(args) > 1
    if (
        attends
        and isinstance(args[0], Tensor)
        and isinstance(args[1], Tensor)
        and args[0].shape == args[1].shape
    ):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(
    blocks: nn.ModuleList,
    *,
    recompute: bool,
    keep_attention: bool,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile the forward pass of each block as one graph, which equal blocks share.

    What is recomputed is part of the graph. FSDP's hooks stay outside.

    Args:
        blocks: of the transformer.
        recompute: recompute the blocks that are not kept whole, see `keep_blocks`. The caller does not.
        keep_attention: see `recomputed`.
        backend: of torch.compile.
    """
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep_self_attention)
    options: dict[str, Any] = {"context_fn": contexts} if keep_attention else {}

    def repeated(block: nn.Module, *args: Any) -> Any:
        return checkpoint(_FORWARD, block, *args, use_reentrant=False, preserve_rng_state=False, **options)

    # The block is an argument, so that its weights are inputs of the graph and all blocks share one.
    once, twice = (torch.compile(run, fullgraph=True, backend=backend) for run in (_FORWARD, repeated))
    for block in blocks:
        run = twice if recompute and not is_kept(block) else once
        block.forward = functools.partial(run, block)
