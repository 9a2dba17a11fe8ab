"""The command line: `app.py` has what all commands share, the other files have the commands."""

from talkforge.cli import (  # noqa: F401 (each adds its commands)
    configs,
    datasets,
    erasing,
    evaluating,
    exporting,
    reviewing,
    text,
    training,
    video,
    weights,
)
from talkforge.cli.app import app, main

__all__ = ["app", "main"]
