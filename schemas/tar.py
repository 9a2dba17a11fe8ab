"""WebDataset shards as tar files: samples written with the same bytes each time, and read back in order."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from talkforge.schemas.errors import DatasetError, one_line

OWNER = "talkforge"
MODE = 0o444

MAX_SAMPLE_BYTES = 4 << 30
"""Most bytes in one sample, which is held in memory. Source: ours; a clip of 20 s has about 10 MB."""


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
        DatasetError: the tar file is damaged, holds something else than samples, or a sample of more than
            `MAX_SAMPLE_BYTES`. What was read of the sample in which it breaks off is dropped.
    """
    key, members = "", dict[str, bytes]()
    for found, member, content in _files(stream):
        if members and found != key:
            yield key, members
            members = {}
        key = found
        if member in members:
            raise DatasetError(f"sample {key}: expected {member} once, found it twice")
        members[member] = content
        if (num_bytes := sum(map(len, members.values()))) > MAX_SAMPLE_BYTES:
            raise DatasetError(f"sample {key}: expected at most {MAX_SAMPLE_BYTES} bytes, found {num_bytes}")
    if members:
        yield key, members


def _files(stream: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """(key, member name, content) of every file in the tar file.

    Whatever tarfile makes of damaged headers is damage. Errors of the stream itself pass.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                key, _, member = entry.name.partition(".")
                # A sparse file is made of holes: its size is no matter of how much was written.
                if not entry.isfile() or entry.issparse() or "/" in entry.name or not member:
                    raise DatasetError(f"expected files named <key>.<member> only, found {entry.name!r}")
                if entry.size > MAX_SAMPLE_BYTES:
                    raise DatasetError(
                        f"sample {key}: expected at most {MAX_SAMPLE_BYTES} bytes, found {entry.size}"
                    )
                content = archive.extractfile(entry)
                yield key, member, content.read() if content else b""
    except (tarfile.TarError, EOFError, ValueError, RecursionError, LookupError) as error:
        raise DatasetError(f"expected a whole tar file, found a damaged one ({one_line(error)})") from None
