"""Temporary files and folders that do not outlive their process by long.

Each is locked by the process that made it, for as long as it lives. The kernel drops the lock when the
process dies, in whatever way, and the next run on this machine removes what nobody holds.
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
