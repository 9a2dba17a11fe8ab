"""Temporary files and folders that do not outlive their process by long, and files that are written whole.

Temporary ones are locked by the process that made them, for as long as it lives. The kernel drops the lock
when the process dies, in whatever way, and the next run on this machine removes what nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from talkforge.schemas.errors import CommandError, RunError, one_line

PREFIX = ".talkforge-"
"""How the names of all temporary files and folders begin; eight random characters follow."""

_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}(\..*)?")
"""What a name must match to be removed: nothing that a user would call a file."""

OWNER = "TALKFORGE_SCRATCH"
"""Environment variable of processes that must not outlive a folder: its path."""

MIN_AGE_S = 2.0
"""What is younger is never removed: its maker may not have locked it yet."""


@contextmanager
def folder(parent: str | None = None) -> Iterator[Path]:
    """A temporary folder, removed at the end of the block.

    Args:
        parent: folder to make it in; None: where temporary files go.

    Raises:
        OSError: it cannot be made.
    """
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = _lock(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def file(suffix: str = "") -> Iterator[Path]:
    """An empty temporary file, removed at the end of the block.

    Args:
        suffix: how its name ends.

    Raises:
        OSError: it cannot be made.
    """
    number, name = tempfile.mkstemp(prefix=PREFIX, suffix=suffix)
    os.close(number)
    path = Path(name)
    lock = _lock(path)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()
        if lock is not None:
            os.close(lock)


@contextmanager
def replacing(path: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """A name beside `path` to write to. At the end of the block what was written takes the place of `path`.

    Where the block fails nothing of it stays, and `path` is as it was.

    Args:
        path: of the file. The other name ends like it.
        errors: what says that it cannot be written.

    Raises:
        RunError: it cannot be written.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    except errors as error:
        raise RunError(f"{path}: cannot be written: {one_line(error)}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all.

    Args:
        path: of the file.
        text: its content.

    Raises:
        RunError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def make_out(out: Path, *inside: str) -> None:
    """Make the folder that a command's `--out` names, and folders in it.

    Args:
        out: the folder.
        inside: names of folders in it.

    Raises:
        CommandError: they cannot be made.
    """
    try:
        for folder in (out, *(out / name for name in inside)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written to ({one_line(error)})") from None


def sweep(*parents: str) -> list[Path]:
    """Remove what processes that are dead have left, and end processes that should have ended with them.

    Args:
        parents: folders to look in, besides the one where temporary files go.

    Returns:
        What was removed.
    """
    removed = []
    for parent in dict.fromkeys((tempfile.gettempdir(), *parents)):
        for path in sorted(Path(parent).glob(f"{PREFIX}*")):
            if not _NAME.fullmatch(path.name) or not _is_left_over(path):
                continue
            end_processes(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
            removed.append(path)
    return removed


def end_processes(path: Path) -> None:
    """Kill the processes whose environment says that they belong to a folder, but for this one.

    Args:
        path: the folder.
    """
    mark = f"{OWNER}={path}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # of another user, or gone by now
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def _lock(path: Path) -> int | None:
    """Descriptor that holds the lock; None where it cannot be had (some network file systems)."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def _is_left_over(path: Path) -> bool:
    """Whether it is ours, of the user who asks, old enough, and locked by nobody."""
    try:
        facts = path.lstat()
        if facts.st_uid != os.getuid() or path.is_symlink() or time.time() - facts.st_mtime < MIN_AGE_S:
            return False
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(number)
    return True
