"""The command line: `app.py` has what all commands share, the other files have the commands."""

from talkforge.cli import configs, datasets, erasing, text, training, weights  # noqa: F401 (each adds its commands)
from talkforge.cli.app import app, main

__all__ = ["app", "main"]
