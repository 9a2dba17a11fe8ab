"""Writes WebDataset's tar files, the same bytes for the same samples."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import IO

OWNER = "talkforge"
MODE = 0o444


def tar_writer(stream: IO[bytes]) -> tarfile.TarFile:
    """A tar file that is written from front to end; a context manager, which leaves `stream` open."""
    return tarfile.open(fileobj=stream, mode="w|")


def write_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Append one sample: its members in the order of their names, with fixed time, owner and mode.

    Args:
        tar: what `tar_writer` gave.
        key: name of the sample; no dot is in it.
        members: extension -> content.
    """
    for name in sorted(members):
        entry = tarfile.TarInfo(f"{key}.{name}")
        entry.size = len(members[name])
        entry.mtime, entry.mode = 0, MODE
        entry.uname = entry.gname = OWNER
        tar.addfile(entry, io.BytesIO(members[name]))
