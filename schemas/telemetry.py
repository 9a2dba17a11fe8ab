"""What libraries are told before they are imported: no usage reports, no warnings in vain."""

from __future__ import annotations

import logging
import os

SWITCHES = {
    # Without it the import alone writes a device id and queues an event that names CPU and interpreter.
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of huggingface_hub, and so of transformers, diffusers, accelerate and peft.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Of pyannote, which WhisperX runs for speaker turns.
    "PYANNOTE_METRICS_ENABLED": "0",
    # Asked by several of the above, and by what they may bring along: https://donottrack.sh
    "DO_NOT_TRACK": "1",
}
"""Variable and value. Libraries read them when they are imported, so they are set before any is."""


def switch_off() -> None:
    """Set every switch that the user has not set, for this process and for those that it starts."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


WARN_IN_VAIN = ("huggingface_hub", "transformers", "torchao", "torch.utils._pytree")
"""Loggers of libraries that warn of what no user can change. What matters of theirs arrives as an error."""


def hush_warnings() -> None:
    """Let these loggers pass errors only, where the program has not set a level of its own."""
    for name in WARN_IN_VAIN:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it sets its logger's level when it is imported


def as_set() -> dict[str, str]:
    """The switches as they stand in this process: what a worker on another machine is given."""
    return {name: os.environ.get(name, value) for name, value in SWITCHES.items()}
