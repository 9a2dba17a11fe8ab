"""Writes the tables of docs/training.md that plan memory: `python -m docs.make_memory_plan`.

Nothing here is measured. Bytes of a GPU for Wan2.1-I2V-14B with our adapters at 81 frames of 512 x 512.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from talkforge.schemas.units import latent_frames
from talkforge.training.wan.memory import GB, USABLE, MemoryOptions, Sizes, cheapest, plan

BEGIN, END = "<!-- memory plan: written by docs/make_memory_plan.py -->\n", "<!-- end of memory plan -->\n"

BASE = 16_394_878_784
"""Parameters of the transformer; a test counts them."""

ADAPTERS = 1_219_880_960
"""Parameters of audio, face and motion: 840 million of audio, the rest nearly all of the face."""

BLOCKS, BLOCK, BLOCK_ADAPTERS = 40, 432_674_304, 28_835_840
"""Transformer blocks, parameters of one with its adapters, and those of its adapters."""

WIDTH, FFN = 5120, 13_824

CARDS_GB = (24, 40, 48, 80)

FROZEN = Sizes(BASE, ADAPTERS, BLOCKS, BLOCK - BLOCK_ADAPTERS, BLOCK_ADAPTERS, WIDTH, FFN)
FULL = Sizes(0, BASE + ADAPTERS, BLOCKS, 0, BLOCK, WIDTH, FFN)


def tokens(frames: int) -> int:
    """Video tokens of a sample of 512 x 512: latent frames of 64 x 64, in patches of 2 x 2."""
    return latent_frames(frames) * 32 * 32


def tables() -> str:
    """The tables' text."""
    return _by_strategy() + "\n" + _by_card()


def _by_strategy() -> str:
    lines = [
        "| trained | GPUs | strategy | weights | gradients | optimizer | working | sum | of 80 GB |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
    ]
    rows: list[tuple[str, int, str]] = [("adapters", 1, "DDP")]
    rows += itertools.product(("adapters", "full"), (8, 64), ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2"))
    for trainable, gpus, strategy in rows:
        found = plan(strategy, FULL if trainable == "full" else FROZEN, gpus, tokens(81))
        parts = (found.weights, found.gradients, found.optimizer, found.working, found.total)
        figures = " | ".join(f"{part / GB:.1f}" for part in parts)
        name = "one process" if gpus == 1 else strategy
        fits = "fits" if found.total < USABLE * 80 * GB else "too much"
        lines.append(f"| {trainable} | {gpus} | {name} | {figures} | {fits} |\n")
    return "".join(lines)


def _by_card() -> str:
    lines = ["| GPU | frames | what it takes | sum |\n", "|---|---|---|---|\n"]
    for card_gb, frames in itertools.product(CARDS_GB, (81, 49, 21)):
        saving = cheapest(FROZEN, tokens(frames), card_gb * GB)
        if saving is None:
            lines.append(f"| {card_gb} GB | {frames} | does not fit | |\n")
            continue
        total = plan("DDP", FROZEN, 1, tokens(frames), saving).total
        lines.append(f"| {card_gb} GB | {frames} | {_said(saving)} | {total / GB:.1f} |\n")
    return "".join(lines)


def _said(saving: MemoryOptions) -> str:
    settings = ["`model.gradient_checkpointing`"]
    settings += ["`optim.eight_bit`"] if saving.eight_bit else []
    settings += ["`model.fp8`"] if saving.fp8 else []
    settings += ["`model.offload_activations`"] if saving.offload else []
    settings += [f"`model.swap_blocks={saving.swapped_blocks}`"] if saving.swapped_blocks else []
    return ", ".join(settings)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


if __name__ == "__main__":
    path = Path(__file__).with_name("training.md")
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
