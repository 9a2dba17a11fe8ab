"""The application: options that all commands share, where their output goes, and exit codes.

Exit codes: 0 finished (failures are rows), 1 the run itself could not finish, 2 a bad command,
130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from talkforge.schemas.errors import CommandError, TalkforgeError

log = logging.getLogger(__name__)

BUILD, LOOK, ADD, TRAIN, SETUP = "Build a data set", "Look at it", "Add text", "Train", "Set up"
"""Groups of commands in the help."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Of the lines in `--log-file`."""

app = typer.Typer(
    name="talkforge",
    help="Raw talking-head footage in, training data for audio-driven portrait video out; trains on it.",
    epilog="Exit codes: 0 finished, 1 could not finish, 2 bad command, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(width=None if sys.stdout.isatty() else 200)
"""Results."""
err = Console(stderr=True)
"""Progress, notes and errors."""
notes = Console(stderr=True)
"""Progress and notes: what --quiet leaves out."""

Function = TypeVar("Function", bound=Callable[..., None])

QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes: only results and errors.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step to stderr.")]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="Append a detailed log to this file.")
]

SHARED = (
    inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption),
    inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VerboseOption),
    inspect.Parameter("log_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=LogFileOption),
)
"""Options that every command has."""


def command(
    panel: str, *examples: str, group: typer.Typer = app, name: str | None = None
) -> Callable[[Function], Function]:
    """Make a function a command that also has the options of `SHARED`.

    Args:
        panel: group of commands in the help. examples: command lines, shown below the help.
        group: where the command is added. name: of the command; None: that of the function.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def run(*args: Any, quiet: bool, verbose: bool, log_file: Path | None, **kwargs: Any) -> None:
            set_up_output(quiet, verbose, log_file)
            function(*args, **kwargs)

        parameters = [*signature.parameters.values(), *SHARED]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        shown = "\n\n".join(f"[dim]$[/] {example}" for example in examples)
        group.command(name, rich_help_panel=panel, epilog=shown or None)(run)
        run.examples = examples  # type: ignore[attr-defined]
        return function

    return decorate


def set_up_output(quiet: bool, verbose: bool, log_file: Path | None) -> None:
    """Obey `--quiet`, `--verbose` and `--log-file`.

    Raises:
        CommandError: the log file cannot be written.
    """
    notes.quiet = quiet
    if verbose:
        logging.getLogger("talkforge").setLevel(logging.INFO)
    if log_file is None:
        return
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--log-file {log_file}: cannot be written ({error.strerror})") from None
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root, ours = logging.getLogger(), logging.getLogger("talkforge")
    for other in root.handlers:  # what the terminal shows does not grow by the file
        other.setLevel(ours.getEffectiveLevel())
    ours.setLevel(logging.DEBUG)
    ours.addHandler(handler)
    log.info("command: %s", " ".join(sys.argv))


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    out.file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
