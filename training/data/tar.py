"""Shards by their path or fsspec URI: their samples, and small files beside them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import fsspec
from fsspec.core import url_to_fs

from talkforge.schemas import tar
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.tar import Sample


class BrokenShardError(DatasetError):
    """A tar file that cannot be read to its end. The samples before the damage have been read."""


def beside(shard: str, name: str) -> str:
    """A file of the shard's data set.

    DATASET/shards/x.tar and DATASET/snapshots/000001/x.tar -> DATASET/`name`.

    Args:
        shard: path or URI of a tar file.
        name: path of the file, relative to the data set.
    """
    folder, _, _ = shard.rpartition("/")
    parent, slash, _ = folder.rpartition("/")
    above, slash_above, snapshots = parent.rpartition("/")
    if snapshots == "snapshots":
        parent, slash = above, slash_above
    return f"{parent}{slash}{name}" if folder else f"../{name}"


def read_files(names: Sequence[str]) -> list[bytes | Exception]:
    """Contents of small files, or the error of each that cannot be read. Remote ones come in parallel.

    Args:
        names: paths or URIs.
    """
    found: list[bytes | Exception] = []
    for protocol, group in itertools.groupby(names, key=lambda name: name.rpartition("://")[0]):
        batch = list(group)
        found += _fetched(batch) if protocol else [_read(name) for name in batch]
    return found


def _read(name: str) -> bytes | Exception:
    try:
        with fsspec.open(name, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        return error


def _fetched(names: list[str]) -> list[bytes | Exception]:
    try:
        filesystem, _ = url_to_fs(names[0])
        paths = [filesystem._strip_protocol(name) for name in names]
        contents = filesystem.cat(paths, on_error="return")
        return [contents[path] for path in paths]
    except Exception as error:  # a cloud library is not installed, or raises its own
        return [error] * len(names)


def read_samples(url: str, wanted: Collection[str]) -> Iterator[Sample]:
    """Every sample of a shard in order, with those of its members that are wanted.

    Args:
        url: path or URI of the tar file.
        wanted: names of the members that are read.

    Raises:
        BrokenShardError: the file is not a tar file of samples, or breaks off. A sample in which it breaks
            off is dropped, or lacks the members that are lost.
        OSError: it is not there, or the network fails.
    """
    with fsspec.open(url, "rb") as stream:
        try:
            yield from tar.read_samples(stream, wanted)
        except DatasetError as error:
            raise BrokenShardError(f"{url}: {error}") from None


def read_joined(url: str, wanted: Collection[str], latents_url: str) -> Iterator[Sample]:
    """As `read_samples`, with the member `latents.npz` of another shard where the key is there too.

    Args:
        url: path or URI of the shard.
        wanted: names of the members that are read of it.
        latents_url: path or URI of the shard of latents. It has the same keys in the same order, but for
            some that may be missing.
    """
    latents = read_samples(latents_url, ("latents.npz",))
    waiting = _next(latents)
    for key, members in read_samples(url, wanted):
        if waiting is not None and waiting[0] == key:
            yield key, members | waiting[1]
            waiting = _next(latents)
        else:
            yield key, members


def _next(samples: Iterator[Sample]) -> Sample | None:
    try:
        return next(samples, None)
    except BrokenShardError:  # samples without latents are counted one by one
        return None
