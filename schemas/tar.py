"""WebDataset shards as tar files: samples written with the same bytes each time, and read back in order."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterator, Mapping
from typing import IO

from talkforge.schemas.errors import DatasetError, one_line

OWNER = "talkforge"
MODE = 0o444

MAX_SAMPLE_BYTES = 4 << 30
"""Most bytes in one sample, which is held in memory. Source: ours; a clip of 20 s has about 10 MB."""

BUFFER_BYTES = 1 << 16
"""Bytes of a tar file that are read at a time: with the 10 KiB of `tarfile` the members that training reads
cost 1.4 times the CPU time. It copies what is left of a block with every read, so 1 MiB cost 1.8 times."""

Sample = tuple[str, dict[str, bytes]]
"""Key, and member name -> content."""


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


def read_samples(stream: IO[bytes], wanted: Collection[str] | None = None) -> Iterator[Sample]:
    """(key, member name -> content) of every sample in order, members in the order of the tar file.

    Args:
        stream: the tar file, read from front to end.
        wanted: names of the members that are read; the others are passed over. None means all.

    Raises:
        DatasetError: the tar file is damaged, holds something else than samples, or a sample of more than
            `MAX_SAMPLE_BYTES`. A sample is dropped where it breaks off inside a member that is wanted, and
            may lack members where it breaks off elsewhere.
        OSError: the stream fails.
    """
    key, names, members = "", set[str](), dict[str, bytes]()
    try:
        for found, member, content in _files(stream, wanted):
            if names and found != key:
                yield key, members
                names, members = set(), {}
            key = found
            if member in names:
                raise DatasetError(f"sample {key}: expected {member} once, found it twice")
            names.add(member)
            if content is None:
                continue
            members[member] = content
            if (num_bytes := sum(map(len, members.values()))) > MAX_SAMPLE_BYTES:
                most = f"expected at most {MAX_SAMPLE_BYTES} bytes"
                raise DatasetError(f"sample {key}: {most}, found {num_bytes}")
    except _DamageError as error:
        if members and error.inside != key:
            yield key, members
        raise
    if names:
        yield key, members


class _DamageError(DatasetError):
    """A tar file is damaged inside a member of the sample with this key, or between two where it is empty."""

    def __init__(self, message: str, inside: str = "") -> None:
        super().__init__(message)
        self.inside = inside


def _files(stream: IO[bytes], wanted: Collection[str] | None) -> Iterator[tuple[str, str, bytes | None]]:
    """(key, member name, content) of every file in the tar file; no content where it is not wanted.

    Whatever tarfile makes of damaged headers is damage. Errors of the stream itself pass.
    """
    inside = ""
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER_BYTES) as archive:
            for entry in archive:
                key, _, member = entry.name.partition(".")
                # A sparse file is made of holes: its size is no matter of how much was written.
                if not entry.isfile() or entry.issparse() or "/" in entry.name or not member:
                    raise _DamageError(f"expected files named <key>.<member> only, found {entry.name!r}")
                if entry.size > MAX_SAMPLE_BYTES:
                    raise _DamageError(
                        f"sample {key}: expected at most {MAX_SAMPLE_BYTES} bytes, found {entry.size}", key
                    )
                content: bytes | None = None
                if wanted is None or member in wanted:
                    inside, file = key, archive.extractfile(entry)
                    content = file.read() if file else b""
                    inside = ""
                yield key, member, content
    except (tarfile.TarError, EOFError, ValueError, RecursionError, LookupError) as error:
        why = f"expected a whole tar file, found a damaged one ({one_line(error)})"
        raise _DamageError(why, inside) from None
