"""A run's folder: the record of each start, and whether the run may be resumed.

RUN/config.yaml        the whole configuration, as `--config` takes it
RUN/run.json           one entry for each start: program, machine, data
RUN/logs/              of the trackers
RUN/checkpoints/       see `training.run.checkpoint`
RUN/samples/           validation samples, a folder for each step
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from talkforge.schemas.config import differences
from talkforge.schemas.errors import CommandError, one_line
from talkforge.training.config import TrainConfig
from talkforge.training.data.shards import pin, snapshot_notes
from talkforge.training.run import checkpoint
from talkforge.training.run.checkpoint import Checkpoint, TrainProgress

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "data.cache_mb",
    "data.latents",  # whether cached latents were read is compared below
    "data.shards",  # compared by fingerprint, because they may have moved
    "data.snapshot",  # likewise
    "data.validation_shards",
    "model.attention",
    "model.compile",
    "model.gradient_checkpointing",
    "model.keep",
    "model.offload_activations",
    "model.swap_blocks",
    "run.keep",
    "run.log_every",
    "run.out",
    "run.save_every",
    "run.steps",
    "run.threads",
    "run.trackers",
    "run.validate_every",
    "run.validation_measures",
    "run.validation_samples",
    "sample.",
)
"""Settings, or the beginnings of their names, that a run may be resumed with."""

_LIBRARIES = ("talkforge", "torch", "diffusers", "accelerate")


def resumable(out: Path, config: TrainConfig, fresh: TrainProgress) -> Checkpoint | None:
    """The last checkpoint in the run's folder, or None where there is none.

    Args:
        out: the run's folder.
        config: of the run that is starting.
        fresh: progress at the beginning of that run, with its data and number of processes.

    Raises:
        CommandError: the run in the folder had other settings or data. The message names them.
    """
    if not checkpoint.steps(out):
        return None
    found = checkpoint.read(checkpoint.find(out))
    before = found.progress
    changed = [x for x in differences(found.config, config) if not x.startswith(MAY_CHANGE)]
    if changed:
        raise CommandError(
            f"run.out {out}: holds a run with other settings: {'; '.join(changed)}: use those again, "
            "or another run.out"
        )
    if before.info != fresh.info:
        raise CommandError(f"run.out {out}: was trained on other shards than {config.data.shards}")
    if before.cached != fresh.cached:
        kinds = {True: "cached latents", False: "frames"}
        raise CommandError(
            f"run.out {out}: was trained on {kinds[before.cached]}, found {kinds[fresh.cached]}: "
            "set data.latents to what it was, or use another run.out"
        )
    return found


def pinned(out: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with the numbers of the snapshots that the run reads.

    A run that goes on reads those that it began with, whatever was published since, unless `data.snapshot`
    names others.

    Args:
        out: the run's folder.
        config: as the user gives it.

    Raises:
        CommandError: a snapshot is not there any more. DatasetError: it is damaged.
    """
    had = ""
    if not config.data.snapshot and checkpoint.steps(out):
        had = checkpoint.read(checkpoint.find(out)).config.data.snapshot
    data = config.data.model_copy(update={"snapshot": config.data.snapshot or had})
    try:
        return config.model_copy(update={"data": pin(data)})
    except CommandError as error:
        if not had:
            raise
        raise CommandError(
            f"run.out {out}: was trained on a snapshot that is gone: {error}; a tag keeps one"
        ) from None


def regrouped(progress: TrainProgress, world: int) -> TrainProgress:
    """Progress of a run that is resumed. With another number of processes it begins a new interval.

    Args:
        progress: of the checkpoint.
        world: processes now.
    """
    if progress.world == world:
        return progress
    log.warning(
        "%d processes where there were %d: the order of the samples changes from here on",
        world,
        progress.world,
    )
    return replace(progress, world=world, interval=progress.step, consumed=0)


def describe(out: Path, config: TrainConfig, progress: TrainProgress) -> None:
    """Write `config.yaml`, and an entry of this start into `run.json`.

    Args:
        out: the run's folder.
        config: of the run.
        progress: at this start.

    Raises:
        CommandError: the folder cannot be written to.
    """
    start = {
        "step": progress.step,
        "git_sha": git_sha(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "processes": progress.world,
        "cached_latents": progress.cached,
        "data": asdict(progress.info),
        "snapshots": snapshot_notes(config.data),
    }
    path = out / "run.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"starts": [*_starts(path), start]}, indent=1), encoding="utf-8")
        (out / "config.yaml").write_text(checkpoint.to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"run.out {out}: cannot be written to ({one_line(error)})") from None


def _starts(path: Path) -> list[Any]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    return []


def _version(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def git_sha() -> str:
    """Commit of the program where it runs from a checkout, else empty."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""
