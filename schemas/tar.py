"""WebDataset shards as tar files: samples written with the same bytes each time, and read back in order."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from talkforge.schemas.errors import DatasetError

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


def read_samples(stream: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, member name -> content) of every sample in order, members in the order of the tar file.

    Args:
        stream: the tar file, read from front to end.

    Raises:
        DatasetError: the tar file is damaged or holds something else than samples. What was read of the
            sample in which it breaks off is dropped.
    """
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                found, _, member = entry.name.partition(".")
                if not entry.isfile() or "/" in entry.name or not member:
                    raise DatasetError(f"expected files named <key>.<member> only, found {entry.name!r}")
                if members and found != key:
                    yield key, members
                    members = {}
                key = found
                if member in members:
                    raise DatasetError(f"sample {key}: expected {member} once, found it twice")
                content = archive.extractfile(entry)
                members[member] = content.read() if content else b""
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"expected a whole tar file, found a damaged one ({error})") from None
    if members:
        yield key, members
