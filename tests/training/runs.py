"""Small runs, for the trainer's tests: a few steps take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from talkforge.training.config import TrainConfig
from talkforge.training.run.checkpoint import Checkpoint, find, read
from tests.training.shard_files import Shown, write_set

SMALL: dict[str, dict[str, Any]] = {
    "model": {
        "shape": {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "ffn_dim": 32,
            "text_dim": 8,
            "freq_dim": 16,
        },
        "text_tokens": 1,
        "trainable": "full",
    },
    "adapters": {
        "audio_dim": 12,
        "window_positions": True,
        "face_tokens": 4,
        "face_depth": 1,
        "face_dim": 8,
        "face_heads": 2,
        "motion_dim": 8,
    },
    "codec": {"kind": "linear", "text": "none", "image": "none"},
    "data": {"num_frames": 9, "sizes": [[32, 32]], "batch_size": 2, "workers": 0, "shuffle": 2},
    "optim": {"lr": 1e-2},
    "sample": {"steps": 1, "text_cfg": 1.0, "audio_cfg": 1.0},
    "run": {"steps": 6, "log_every": 1, "save_every": 4, "threads": 1, "trackers": []},
}


def four_clips(folder: Path, **changes: Any) -> str:
    """Two shards of two clips; returns the pattern that names them."""
    return write_set(folder, [[Shown(1), Shown(2)], [Shown(3), Shown(4)]], **changes)


def small(shards: str, out: Path, **changes: Any) -> TrainConfig:
    """A run's configuration; `section__key=value` changes it."""
    sections = {name: dict(values) for name, values in SMALL.items()}
    sections["data"]["shards"], sections["run"]["out"] = shards, str(out)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    return TrainConfig.model_validate(sections)


class Stop:
    """Stops a run after so many batches."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


def last(run: Path) -> Checkpoint:
    """The last checkpoint of a run."""
    return read(find(run))


def moments(found: Checkpoint) -> dict[str, Tensor]:
    """All moments of the optimizer in a checkpoint."""
    file = found.optimizer()
    return {name: file.whole(name) for name in file.names}


def tensors(run: Path) -> dict[str, Tensor]:
    """Everything in its last checkpoint."""
    found = last(run)
    parts = {"trained": found.trained(), "ema": found.ema() or {}, "optimizer": moments(found)}
    return {f"{part} {name}": tensor for part, state in parts.items() for name, tensor in state.items()}
