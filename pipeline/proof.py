"""Proof of an erasure: every file of a data set is opened and searched for what must not be there.

Files are taken apart down to what they hold: tables to their texts, npz files to their arrays, tar files to
their members. Each piece is searched for ids, names and labels, and its sha256 is compared with those of
erased clips, faces and embeddings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from talkforge.pipeline import tables
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import read_npy, read_npz
from talkforge.schemas.records import Record

ID_LENGTH = 12
"""Characters of a video's id, which begin the sha256 of its content and the ids of its clips."""

_HEX = re.compile(rb"(?<![0-9a-f])[0-9a-f]{12,64}(?![0-9a-f])")

_PERSON_ID = re.compile(r"p[0-9a-f]{12}")

_EMBEDDED = re.compile(rb"data:image/jpeg;base64,([A-Za-z0-9+/=]+)")
"""An image in a page."""

_INSIDE = r"[\w./-]"
"""Characters on either side of a name that make it part of another name."""


class Needles(Record):
    """What is searched for.

    Attributes:
        video_ids: first 12 hex digits of the sha256 of erased contents: found in ids of clips and in sums.
        names: paths and URIs of the inputs, as the data set has them.
        people: ids and labels of people, found where a text is nothing but one of them.
        sha256: of the bytes of clips, face images and embeddings.
    """

    video_ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finding:
    """Something that should not be there.

    Attributes:
        path: file of the data set, and what in it.
        what: what was found.
    """

    path: str
    what: str


@dataclass(frozen=True)
class Proof:
    """What a scan looked at, and what it found.

    Attributes:
        num_files: files that were opened.
        num_bytes: bytes in them.
        findings: empty where nothing was found.
    """

    num_files: int
    num_bytes: int
    findings: tuple[Finding, ...]


def scan(store: Store, needles: Needles, skip: Collection[str] = ()) -> Proof:
    """Search every file of a data set.

    Args:
        store: the data set.
        needles: what to search for.
        skip: files that are left out.

    Raises:
        RunError: the store cannot be read.
    """
    search = _Search(needles)
    found: list[Finding] = []
    num_files = num_bytes = 0
    for name in store.list():
        if name in skip:
            continue
        found += search.text(name, name.encode(), "name of the file")
        num_files, num_bytes = num_files + 1, num_bytes + store.size(name)
        if name.endswith(".tar"):
            with store.open(name) as stream:
                found += search.tar(name, stream)
        else:
            found += search.file(name, store.read(name))
    return Proof(num_files, num_bytes, tuple(dict.fromkeys(found)))


def digest_of(data: bytes) -> str:
    """sha256 (hex) of some bytes."""
    return hashlib.sha256(data).hexdigest()


class _Search:
    def __init__(self, needles: Needles) -> None:
        self._ids = {text.encode() for text in needles.video_ids}
        self._people, self._sums = needles.people, needles.sha256
        named = {*needles.names, *filter(_PERSON_ID.fullmatch, needles.people)}
        names = "|".join(re.escape(name) for name in sorted(named, key=len, reverse=True))
        self._names = re.compile(f"(?<!{_INSIDE})(?:{names})(?!{_INSIDE})".encode()) if names else None

    def file(self, path: str, data: bytes) -> Iterator[Finding]:
        """What is in a file, or in a member of a tar file."""
        if digest_of(data) in self._sums:
            yield Finding(path, "bytes of an erased clip, face or embedding")
        yield from self.text(path, data, "text")
        for match in _EMBEDDED.finditer(data):
            if digest_of(base64.b64decode(match[1])) in self._sums:
                yield Finding(path, "bytes of an erased clip, face or embedding")
        try:
            if path.endswith(".npz"):
                for name, array in read_npz(data, path).items():
                    yield from self.text(f"{path}: {name}", name.encode(), "name of an array")
                    yield from self._array(f"{path}: {name}", array)
            elif path.endswith(".npy"):
                yield from self._array(path, read_npy(data, path))
            elif path.endswith(".parquet"):
                yield from self._table(path, tables.from_bytes(data, path))
            elif path.endswith("json") and self._people.intersection(_texts(json.loads(data))):
                yield Finding(path, "id or label of an erased person")
        except (DatasetError, ValueError) as error:
            yield Finding(path, f"cannot be searched: {error}")

    def tar(self, path: str, stream: Any) -> Iterator[Finding]:
        """What is in the members of a tar file, one after the other."""
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for entry in archive:
                    content = archive.extractfile(entry)
                    yield from self.text(f"{path}: {entry.name}", entry.name.encode(), "name of a member")
                    yield from self.file(f"{path}: {entry.name}", content.read() if content else b"")
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Finding(path, f"cannot be searched: {error}")

    def text(self, path: str, data: bytes, where: str) -> Iterator[Finding]:
        """Ids and names in some bytes."""
        if any(match[0][:ID_LENGTH] in self._ids for match in _HEX.finditer(data)):
            yield Finding(path, f"id of an erased video ({where})")
        if self._names and self._names.search(data):
            yield Finding(path, f"name of an erased input ({where})")

    def _array(self, path: str, array: np.ndarray) -> Iterator[Finding]:
        rows = list(array) if array.ndim == 2 else []
        if any(digest_of(np.ascontiguousarray(one).tobytes()) in self._sums for one in (array, *rows)):
            yield Finding(path, "bytes of an erased clip, face or embedding")
        if array.dtype.kind in "SU":
            yield from self.text(path, "\n".join(map(str, array.ravel())).encode(), "text")

    def _table(self, path: str, table: pa.Table) -> Iterator[Finding]:
        for name in table.column_names:
            for text in _texts(table.column(name).to_pylist()):
                if isinstance(text, bytes):
                    yield from self.file(f"{path}: {name}", text)
                    continue
                yield from self.text(f"{path}: {name}", text.encode(), "text")
                if text in self._people:
                    yield Finding(f"{path}: {name}", "id or label of an erased person")


def _texts(value: Any) -> Iterator[str | bytes]:
    """Texts and bytes in a value of a table, however deep."""
    if isinstance(value, str | bytes):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
