"""The application: options that all commands share, where their output goes, and exit codes.

Exit codes: 0 finished (failures are rows), 1 the run itself could not finish, 2 a bad command, 3 damage
found by `verify`, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from talkforge.display import plain_console
from talkforge.schemas.errors import CommandError, TalkforgeError, one_line

log = logging.getLogger(__name__)

BUILD, LOOK, ADD = "Build a data set", "Look at it", "Add text"
HAND_ON, TRAIN, SETUP = "Hand it on", "Train", "Set up"
"""Groups of commands in the help."""

TERMINAL = "terminal"
"""Name of the log handler that writes to stderr."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Of the lines in `--log-file`."""

app = typer.Typer(
    name="talkforge",
    help="Raw talking-head footage in, training data for audio-driven portrait video out; trains on it.",
    epilog="Exit codes: 0 finished, 1 could not finish, 2 bad command, 3 damage found, 130 interrupted, "
    "143 terminated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = plain_console(width=None if sys.stdout.isatty() else 200)
"""Results."""
err = plain_console(stderr=True)
"""Progress, notes and errors."""
notes = plain_console(stderr=True)
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
        panel: group of commands in the help.
        *examples: command lines, shown below the help.
        group: where the command is added.
        name: of the command. None means the name of the function.
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
    ours = logging.getLogger("talkforge")
    if verbose and ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
        for handler in logging.getLogger().handlers:
            if handler.name == TERMINAL:
                handler.setLevel(logging.INFO)
    if log_file is None:
        return
    try:
        file = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--log-file {log_file}: cannot be written ({one_line(error)})") from None
    file.setFormatter(logging.Formatter(LOG_FORMAT))
    ours.addHandler(file)
    ours.setLevel(logging.DEBUG)
    log.info("talkforge %s", " ".join(sys.argv[1:]))


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    out.file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def all_of(*checks: Callable[[], Any]) -> list[Any]:
    """The result of every check. The mistakes that all of them find are reported at once.

    Raises:
        CommandError: at least one check refused.
    """
    results, problems = [], []
    for check in checks:
        try:
            results.append(check())
        except CommandError as error:
            problems.append(str(error))
    if problems:
        raise CommandError("; ".join(problems))
    return results


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"talkforge {version('talkforge')}", highlight=False)
        raise typer.Exit


@app.callback()
def talkforge(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Raw talking-head footage in, training data for audio-driven portrait video out; trains on it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: every error becomes one line and an exit code."""
    is_program = arguments is None and sys.stderr is sys.__stderr__
    if sys.stderr is sys.__stderr__ and os.environ.get("TALKFORGE_LOG", "").upper() != "DEBUG":
        _hush_libraries()
    with _logging(), _interrupted_by_sigterm() as terminated:
        code = _run(arguments)
        if code == 130:
            err.print(f"{'terminated' if terminated else 'interrupted'}; the same command goes on from here")
    code = 143 if terminated and code == 130 else code
    if is_program:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter down.

    Threads of native libraries (pyarrow's pool) may still let go of Python objects. Python ends a thread that
    does so while it shuts down, which C++ answers with abort: one `verify` in five ended with `Aborted` and
    exit code 134 after its last line, with everything done.
    """
    # As an exit does. First idle workers of thread pools are told to end and all threads are waited for, then
    # come temporary files, logs and child processes.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[list[int]]:
    """SIGTERM interrupts as Ctrl-C does, so that nothing is left running. Lists the signals that came."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield came
        return

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:  # what follows would interrupt the cleaning up
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str] | None) -> int:
    """Exit code of a command, after its error is on stderr."""
    try:
        code = int(app(arguments, prog_name="talkforge", standalone_mode=False) or 0)
    except typer.Exit as request:
        code = request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except TalkforgeError as error:
        log.debug("refused" if isinstance(error, CommandError) else "failed", exc_info=True)
        say_error(str(error))
        code = 2 if isinstance(error, CommandError) else 1
    except Exception as error:
        code = _click_or_bug(error)
    return code  # typer makes 130 of a KeyboardInterrupt as well


def say_error(text: str) -> None:
    """One line on stderr, marked as ours."""
    err.print(f"talkforge: {text}", soft_wrap=True, markup=False, highlight=False)


def _click_or_bug(error: Exception) -> int:
    """Exit code of an error of the command line's own library (2), or of one of ours (1)."""
    describe = getattr(error, "format_message", None)
    if callable(describe):
        if text := describe().strip():  # nothing where no command was given: help was shown
            say_error(f"{text} (see --help)")
        return int(getattr(error, "exit_code", 2))
    log.debug("unexpected", exc_info=True)
    text = one_line(error, with_path=True)
    say_error(f"unexpected {type(error).__name__}: {text} (TALKFORGE_LOG=DEBUG shows where)")
    return 1


@contextmanager
def _logging() -> Iterator[None]:
    """Log warnings to stderr, or more with TALKFORGE_LOG. Handlers of a command are removed afterwards."""
    level = os.environ.get("TALKFORGE_LOG", "WARNING").upper()
    root, ours = logging.getLogger(), logging.getLogger("talkforge")
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    terminal.name = TERMINAL
    before = root.level
    try:
        root.setLevel(level)
        terminal.setLevel(level)
    except ValueError:
        terminal.setLevel(logging.WARNING)
    root.addHandler(terminal)
    try:
        yield
    finally:
        root.removeHandler(terminal)
        root.setLevel(before)
        for handler in list(ours.handlers):
            ours.removeHandler(handler)
            handler.close()
        ours.setLevel(logging.NOTSET)


def _hush_libraries() -> None:
    """Discard what MediaPipe and TFLite write to descriptor 2, which no setting of theirs prevents.

    Messages of ours go to a copy of the descriptor.
    """
    sys.stderr.flush()
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(ours, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
