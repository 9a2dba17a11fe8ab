"""Writes the tables of docs/training.md that plan memory: `python docs/make_memory_plan.py`.

Nothing here is measured. Bytes of a GPU for Wan2.1-I2V-14B with our adapters at 81 frames of 512 x 512.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- memory plan: written by docs/make_memory_plan.py -->\n", "<!-- end of memory plan -->\n"

BASE = 16_394_878_784
"""Parameters of the transformer; a test counts them."""

ADAPTERS = 1_219_880_960
"""Parameters of audio, face and motion: 840 million of audio, the rest nearly all of the face."""

BLOCKS, BLOCK = 40, 432_674_304
"""Transformer blocks, and parameters of one with its adapters."""

WIDTH, FFN = 5120, 13_824

TOKENS = 21 * 32 * 32
"""Video tokens of a sample: 21 latent frames of 64 x 64, in patches of 2 x 2."""

GB = 1e9


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


def activations(samples: int = 1) -> float:
    """Bytes: the input of every block, and what is in use while one block is recomputed.

    A block keeps about 30 tensors of the model's width and 4 of its feed-forward layer, 2 bytes each (an
    estimate); attention keeps nothing that grows with the square of the tokens.
    """
    return samples * TOKENS * 2 * (BLOCKS * WIDTH + 30 * WIDTH + 4 * FFN)


def plan(strategy: str, trainable: str, gpus: int, samples: int = 1) -> Plan:
    """Bytes on each of `gpus`, in bf16 with recomputed blocks; latents are cached, no moving average.

    Frozen weights take 2 bytes; trained ones 4, their gradients 4, AdamW's moments 8. DeepSpeed holds
    trained weights in 2 bytes beside a float32 copy, and gradients in 2.
    """
    frozen, trained = (BASE, ADAPTERS) if trainable == "adapters" else (0, BASE + ADAPTERS)
    per_block_bytes = BLOCK * 2 + (ADAPTERS / BLOCKS * 2 if trainable == "adapters" else 0)
    copies = 2 * trained if strategy == "DDP" or (strategy == "FSDP2" and trainable == "adapters") else 0
    outside = 2 * (BASE + ADAPTERS - BLOCKS * BLOCK)
    # One block in use, the next one coming, and what belongs to no block.
    gathered = 2 * per_block_bytes + outside if strategy in ("FSDP2", "ZeRO-3") else 0
    working = activations(samples) + copies + gathered
    if strategy == "DDP":
        return Plan(2 * frozen + 4 * trained, 4 * trained, 8 * trained, working)
    if strategy == "FSDP2":
        return Plan((2 * frozen + 4 * trained) / gpus, 4 * trained / gpus, 8 * trained / gpus, working)
    whole = 1 if strategy == "ZeRO-2" else gpus
    return Plan(2 * (frozen + trained) / whole, 2 * trained / gpus, 12 * trained / gpus, working)


def tables() -> str:
    """The tables' text."""
    lines = [
        "| trained | GPUs | strategy | weights | gradients | optimizer | working | sum | of 80 GB |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
    ]
    rows: list[tuple[str, int, str]] = [("adapters", 1, "DDP")]
    rows += itertools.product(("adapters", "full"), (8, 64), ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2"))
    for trainable, gpus, strategy in rows:
        found = plan(strategy, trainable, gpus)
        parts = (found.weights, found.gradients, found.optimizer, found.working, found.total)
        figures = " | ".join(f"{part / GB:.1f}" for part in parts)
        name = "one process" if gpus == 1 else strategy
        fits = "fits" if found.total < 76 * GB else "too much"
        lines.append(f"| {trainable} | {gpus} | {name} | {figures} | {fits} |\n")
    return "".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


if __name__ == "__main__":
    path = Path(__file__).with_name("training.md")
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
