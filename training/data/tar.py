"""Bytes out of shards, local or behind any fsspec URI: small files beside them, and their samples."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import fsspec
from fsspec.core import url_to_fs
from webdataset import tariterators

from talkforge.schemas.errors import DatasetError

Members = dict[str, bytes]
"""Member name -> bytes."""

Sample = tuple[str, Members]
"""Key and members."""


class BrokenShardError(DatasetError):
    """A tar file that cannot be read to its end; the samples before have been read."""


def beside(shard: str, name: str) -> str:
    """A file in the folder that holds the shard's folder: DATASET/shards/x.tar -> DATASET/`name`."""
    folder, _, _ = shard.rpartition("/")
    parent, slash, _ = folder.rpartition("/")
    return f"{parent}{slash}{name}" if folder else f"../{name}"


def read_files(names: Sequence[str]) -> list[bytes | Exception]:
    """Contents of small files, or why there are none; remote ones are fetched at the same time."""
    found: list[bytes | Exception] = []
    for protocol, group in itertools.groupby(names, key=lambda name: name.rpartition("://")[0]):
        together = list(group)
        found += _fetched(together) if protocol else [_read(name) for name in together]
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
    """Every sample of a shard with those of its members that are `wanted`, as webdataset groups them.

    Raises:
        BrokenShardError: the file is not a tar file, or breaks off. A sample that it breaks off in comes
            without the members that are lost.
        OSError: it is not there, or the network fails.
    """
    broken: list[Exception] = []

    def stop(error: Exception) -> bool:
        if isinstance(error, OSError):
            raise error
        broken.append(error)
        return False

    with fsspec.open(url, "rb") as stream:
        files = tariterators.tar_file_expander(
            [{"url": url, "stream": stream}],
            handler=stop,
            select_files=lambda name: name.rpartition("/")[2].partition(".")[2] in wanted,
        )
        for sample in tariterators.group_by_keys(files, lcase=False, handler=stop):
            yield sample["__key__"], {name: sample[name] for name in wanted if name in sample}
    if broken:
        raise BrokenShardError(f"{url}: {str(broken[0].args[0]).partition(' @ ')[0]}")


def read_joined(url: str, wanted: Collection[str], latents_url: str) -> Iterator[Sample]:
    """As `read_samples`, with the member `latents.npz` out of another shard where the key is there too.

    That shard has the keys of this one in the same order, and may lack some.
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
    except BrokenShardError:  # what is missing is counted, sample by sample
        return None
