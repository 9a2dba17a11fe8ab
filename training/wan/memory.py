"""What a training step takes of a GPU's memory, computed from sizes. Nothing here is measured on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

GB = 1e9

USABLE = 0.95
"""Fraction of a GPU's memory that a plan may fill (ours). CUDA's context and fragmentation take the rest."""

_KEPT = {False: (28, 1), True: (38, 2)}
"""Tensors that a block's forward pass keeps, of the model's width and of the feed-forward width, 2 bytes a
number: where its weights are frozen, and trained. Counted on a CPU, `tests/training/wan/test_memory.py`."""

_IN_FLIGHT = (10, 3)
"""Likewise gradients and intermediate results of a block's backward pass (an estimate)."""


@dataclass(frozen=True)
class Sizes:
    """Of a model.

    Attributes:
        frozen: parameters that are not trained.
        trained: parameters that are.
        blocks: transformer blocks.
        block_frozen: frozen parameters of a block.
        block_trained: trained ones.
        width: of the model.
        ffn: width of the feed-forward layers.
    """

    frozen: int
    trained: int
    blocks: int
    block_frozen: int
    block_trained: int
    width: int
    ffn: int

    @property
    def full(self) -> bool:
        """Whether everything is trained."""
        return self.frozen == 0


@dataclass(frozen=True)
class MemoryOptions:
    """What is done to need less memory, and what is kept because there is enough.

    Attributes:
        recompute: blocks are recomputed in the backward pass.
        keep_attention: but for what self-attention gives.
        kept_blocks: blocks of which nothing is recomputed.
        fp8: frozen weights of the blocks take one byte.
        swapped_blocks: blocks whose frozen weights lie in main memory.
        offload: inputs of the blocks lie in main memory.
        eight_bit: AdamW's moments take one byte each.
    """

    recompute: bool = True
    keep_attention: bool = False
    kept_blocks: int = 0
    fp8: bool = False
    swapped_blocks: int = 0
    offload: bool = False
    eight_bit: bool = False


@dataclass(frozen=True)
class Plan:
    """Bytes on each GPU."""

    weights: float
    gradients: float
    optimizer: float
    working: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.working


def activations(sizes: Sizes, tokens: int, saving: MemoryOptions = MemoryOptions()) -> float:
    """Bytes of activations on the GPU.

    Where blocks are recomputed, each keeps its input, and one at a time what it needs to go backward.
    Attention keeps nothing that grows with the square of the tokens.

    Args:
        sizes: of the model.
        tokens: video tokens of all samples on this GPU.
        saving: what is recomputed, kept and offloaded.
    """
    wide, ffn = _KEPT[sizes.full]
    block = 2 * tokens * (wide * sizes.width + ffn * sizes.ffn)
    in_flight = 2 * tokens * (_IN_FLIGHT[0] * sizes.width + _IN_FLIGHT[1] * sizes.ffn)
    whole = saving.kept_blocks if saving.recompute else sizes.blocks
    inputs = 2 * tokens * sizes.width * (2 if saving.offload else sizes.blocks - whole)
    attention = 2 * tokens * sizes.width * (sizes.blocks - whole) if saving.keep_attention else 0
    at_work = block if whole < sizes.blocks else 0
    return whole * block + at_work + in_flight + inputs + attention


def plan(
    strategy: str, sizes: Sizes, gpus: int, tokens: int, saving: MemoryOptions = MemoryOptions()
) -> Plan:
    """Bytes on each GPU in bf16, with cached latents and no moving average.

    Frozen weights take 2 bytes, trained ones 4, their gradients 4, AdamW's moments 8. DeepSpeed holds trained
    weights in 2 bytes beside a float32 copy, and gradients in 2.

    Args:
        strategy: 'DDP' (also for one process), 'FSDP2', 'ZeRO-2' or 'ZeRO-3'.
        sizes: of the model.
        gpus: how many.
        tokens: video tokens of all samples on each GPU.
        saving: what is done to need less.
    """
    frozen, trained = sizes.frozen, sizes.trained
    outside = 2 * (frozen + trained - sizes.blocks * (sizes.block_frozen + sizes.block_trained))
    # Weights of one block in the type in which it computes, where they are stored in another or elsewhere.
    copies = 2 * sizes.block_trained
    if saving.fp8 or saving.swapped_blocks:
        copies += 2 * sizes.block_frozen
    copies *= 1 + saving.kept_blocks
    gathered = 0
    if strategy in ("FSDP2", "ZeRO-3"):
        # One block in use, the next one coming, and what belongs to no block.
        gathered = 2 * (2 * sizes.block_frozen + (2 if sizes.full else 4) * sizes.block_trained) + outside
    working = activations(sizes, tokens, saving) + copies + gathered
    stored = 2 * frozen
    if saving.fp8:
        stored -= sizes.blocks * sizes.block_frozen
    stored -= saving.swapped_blocks * sizes.block_frozen * (1 if saving.fp8 else 2)
    if strategy.startswith("ZeRO"):
        whole = 1 if strategy == "ZeRO-2" else gpus
        return Plan(2 * (frozen + trained) / whole, 2 * trained / gpus, 12 * trained / gpus, working)
    parts = gpus if strategy == "FSDP2" else 1
    moments = 2 if saving.eight_bit else 8
    return Plan((stored + 4 * trained) / parts, 4 * trained / parts, moments * trained / parts, working)


def kept(
    strategy: str, sizes: Sizes, gpus: int, tokens: int, memory: float, saving: MemoryOptions
) -> MemoryOptions:
    """What is kept instead of recomputed, as much as the memory allows.

    First what self-attention gives, which saves two fifths of the repetition for a fortieth of a block's
    activations. Then whole blocks.

    Args:
        strategy: see `plan`.
        sizes: of the model.
        gpus: how many.
        tokens: video tokens of all samples on each GPU.
        memory: bytes of a GPU.
        saving: what is done otherwise.
    """
    found = replace(saving, keep_attention=False, kept_blocks=0)
    for more in (replace(found, keep_attention=True, kept_blocks=count) for count in range(sizes.blocks + 1)):
        if plan(strategy, sizes, gpus, tokens, more).total > USABLE * memory:
            break
        found = more
    return found


def cheapest(sizes: Sizes, tokens: int, memory: float) -> MemoryOptions | None:
    """What one GPU of so much memory needs to train adapters, in the order of what costs the least time.

    Args:
        sizes: of the model.
        tokens: video tokens of all samples.
        memory: bytes of the GPU.

    Returns:
        The savings, or None where nothing suffices.
    """
    for saving in _in_order(sizes.blocks):
        if plan("DDP", sizes, 1, tokens, saving).total <= USABLE * memory:
            return saving
    return None


def _in_order(blocks: int) -> Iterator[MemoryOptions]:
    saving = MemoryOptions()
    yield saving
    saving = replace(saving, eight_bit=True)
    yield saving
    saving = replace(saving, fp8=True)
    yield saving
    saving = replace(saving, offload=True)
    yield saving
    for count in range(1, blocks + 1):
        yield replace(saving, swapped_blocks=count)
