"""Snapshots: numbered, immutable states of the shards and of the tables that describe them.

    snapshots/index.json            which snapshot is the current one, and names of others; written whole
    snapshots/000001/snapshot.json  manifests of the shards, sha256 and place of every file
    snapshots/000001/*.tar, *.json  shards that were new in this snapshot; later ones name them here
    snapshots/000001/*.parquet      ledger, people, sources, failures; dataset.json with the configuration
    shards/                         the current snapshot under plain names

A snapshot is published by writing `index.json`, in one write on a disk and in an object store alike. Its
files never change afterwards, so that whoever reads them never sees half of a new state. They are removed
when no snapshot that is kept names them. `shards/` and the tables at the top of the data set follow after
the write: links on a disk, copies in an object store. A run that is killed in between leaves `shown` behind
`current`, and the next run that locks the data set makes them equal.

A data set without `index.json` was made by an earlier version: its `shards/` are read as they are, as the
snapshot with the number 0.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.errors import CommandError, DatasetError, first_invalid
from talkforge.schemas.records import Record
from talkforge.schemas.sample import ShardManifest

FOLDER = "snapshots"

INDEX = f"{FOLDER}/index.json"

SHARDS = "shards"
"""Folder of the current snapshot's shards under plain names."""

NEXT = "shards.next"
"""Folder of shards that are written, but belong to no snapshot yet."""

TABLES = ("dataset.json", "failures.parquet", "ledger.parquet", "people.parquet", "sources.parquet")
"""Files at the top of a data set that a snapshot holds."""

TELLING = ("ledger.parquet", "people.parquet", "sources.parquet")
"""Tables that make a new snapshot when they change. The others also change with the number of attempts and of
worker processes."""

SHARD_FILE = re.compile(r"(train|validation)-\d{6}\.(tar|json)")

INDEX_FILE = re.compile(
    r"\.nv-meta/(\.info|split|dataset)\.yaml|(train|validation)-\d{6}\.tar\.idx|wids-(train|validation)\.json"
)
"""Files in `SHARDS` by which other tools find samples in the shards, see `exports.shard_indexes`."""

_PLACE = re.compile(r"(snapshots/\d{6,}|shards)/[\w-]+\.(tar|parquet|json)")

_TAG = re.compile(r"[A-Za-z][\w.-]{0,63}")


class Index(Record):
    """`snapshots/index.json`: what publishes a snapshot.

    Attributes:
        history: numbers of the snapshots that are kept, in the order in which they became the current one,
            which is the last. 0 stands for `shards/` as it is.
        shown: number of the snapshot that `shards/` and the tables at the top show.
        last: the highest number that any snapshot has had; none is given twice.
        tags: name -> number.
        plain: whether `shards/` is kept at all.
    """

    version: Literal[1] = 1
    history: tuple[int, ...] = Field(min_length=1)
    shown: int
    last: int
    tags: dict[str, int] = Field(default_factory=dict)
    plain: bool = True

    @property
    def current(self) -> int:
        return self.history[-1]


class Snapshot(Record):
    """`snapshots/<number>/snapshot.json`.

    Attributes:
        number: 0 where it is what `shards/` of a data set without snapshots holds.
        made_at: time of publication, UTC, ISO 8601.
        tool_version: of Talkforge.
        shards: manifests, in the order of their names.
        tables: name -> sha256, of each of `TABLES`.
        files: sha256 -> file of the data set, of every shard and table.
    """

    version: Literal[1] = 1
    number: int
    made_at: str = ""
    tool_version: str = ""
    shards: tuple[ShardManifest, ...]
    tables: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        if wrong := [path for path in files.values() if not _PLACE.fullmatch(path)]:
            raise ValueError(f"expected files of a snapshot, found {wrong[0]!r}")
        return files

    @field_validator("shards")
    @classmethod
    def _named(cls, shards: tuple[ShardManifest, ...]) -> tuple[ShardManifest, ...]:
        if wrong := [shard.name for shard in shards if not SHARD_FILE.fullmatch(f"{shard.name}.tar")]:
            raise ValueError(f"expected names of shards, found {wrong[0]!r}")
        return shards

    def tar(self, shard: ShardManifest) -> str:
        """File of the data set that holds a shard of this snapshot."""
        return self.files[shard.sha256]

    def table(self, name: str) -> str:
        """File of the data set that holds a table of this snapshot; of number 0 the one at the top."""
        return self.files[self.tables[name]] if name in self.tables else name

    @property
    def num_bytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def manifest_file(self) -> str:
        """Its own file."""
        return manifest_file(self.number)


# ------------------------------------------------------------------------------ reading


def read_index(store: Store) -> Index | None:
    """The index; None in a data set without snapshots.

    Raises:
        DatasetError: it is damaged.
    """
    return Index.from_json(store.read(INDEX), INDEX) if store.exists(INDEX) else None


def read(store: Store, number: int) -> Snapshot:
    """The snapshot with a number; 0 is `shards/` as it is.

    Raises:
        DatasetError: it is missing or damaged.
    """
    if number == 0:
        return _unnumbered(store)
    name = manifest_file(number)
    return Snapshot.from_json(store.read(name), name)


def current(store: Store) -> Snapshot:
    """The snapshot that readers get; see `read`."""
    index = read_index(store)
    while True:
        try:
            return read(store, index.current if index else 0)
        except DatasetError:
            again = read_index(store)
            if again == index:
                raise
            index = again  # it was replaced, and removed, since the index was read


def find(store: Store, which: int | str | None = None) -> Snapshot:
    """A snapshot by its number or tag; None gives the current one.

    Raises:
        CommandError: there is none; names those that there are.
        DatasetError: it is damaged.
    """
    if which is None:
        return current(store)
    index = read_index(store)
    tags = index.tags if index else {}
    numbers = kept(index) if index else ()
    number = int(which) if str(which).isdecimal() else tags.get(str(which))
    if number not in numbers or number is None:
        there = ", ".join([*map(str, numbers), *sorted(tags)]) or "none"
        raise CommandError(f"{store.root}: no snapshot {which}; there are: {there}")
    return read(store, number)


def kept(index: Index) -> tuple[int, ...]:
    """Numbers of all snapshots that are kept, ascending."""
    return tuple(sorted({*index.history, *index.tags.values()} - {0}))


def manifest_sha256(store: Store, snapshot: Snapshot) -> str:
    """sha256 (hex) of a snapshot's manifest, which names it for good; empty for number 0."""
    return hashlib.sha256(store.read(snapshot.manifest_file)).hexdigest() if snapshot.number else ""


def current_table(store: Store, name: str) -> str:
    """File that holds one of `TABLES` as it is now.

    That is the one at the top of the data set, unless a run is just publishing or was killed at it.
    """
    try:
        index = read_index(store)
        behind = index is not None and index.shown != index.current
        return current(store).table(name) if behind else name
    except DatasetError:  # `verify` says what is damaged
        return name


def _unnumbered(store: Store) -> Snapshot:
    indexes = (f"{SHARDS}/wids-train.json", f"{SHARDS}/wids-validation.json")
    paths = [path for path in store.list(SHARDS) if path.endswith(".json") and path not in indexes]
    shards = tuple(sample.read_manifest(store.read(path), path) for path in paths)
    files = {shard.sha256: f"{SHARDS}/{shard.name}.tar" for shard in shards}
    try:
        return Snapshot(number=0, shards=shards, files=files)
    except ValidationError as error:
        raise DatasetError(f"{SHARDS}: {first_invalid(error)}") from None


def manifest_file(number: int) -> str:
    """The file that describes the snapshot with a number."""
    return f"{_folder(number)}/snapshot.json"


def numbers(store: Store) -> set[int]:
    """Numbers of all snapshots that have such a file, whether the index knows them or not."""
    return {number for path in store.list(FOLDER) if (number := number_of(path))}


def number_of(name: str) -> int | None:
    """Number of the snapshot that a file describes; None where it is another file."""
    match = re.fullmatch(rf"{FOLDER}/(\d+)/snapshot.json", name)
    return int(match[1]) if match else None


def _folder(number: int) -> str:
    return f"{FOLDER}/{number:06d}"


# ------------------------------------------------------------------------------ publishing


def known_shards(store: Store) -> dict[tuple[str, str], ShardManifest]:
    """Shards that some snapshot holds whole: (name, fingerprint) -> manifest."""
    index = read_index(store)
    numbers = kept(index) if index else (0,)
    found = {}
    for number in (*numbers, index.current if index else 0):  # the current one last: it is preferred
        snapshot = read(store, number)
        for shard in snapshot.shards:
            if _is_whole(store, snapshot.tar(shard), shard):
                found[shard.name, shard.fingerprint] = shard
    return found


def publish(
    store: Store,
    shards: Iterable[ShardManifest],
    tables: Mapping[str, bytes],
    tool_version: str,
    keep: int,
    plain: bool = True,
) -> Snapshot:
    """Make these shards and tables the current snapshot.

    Where shards and tables are those of the current one, its damaged or missing files are put in place
    again, and no new one is made.

    Args:
        store: a data set on which no other run is at work.
        shards: each lies in `NEXT` or in a snapshot that is kept.
        tables: content of each of `TABLES`.
        tool_version: of Talkforge.
        keep: number of snapshots to keep beside those with a tag.
        plain: whether `shards/` is kept.

    Returns:
        The snapshot that is now the current one.

    Raises:
        DatasetError: a shard is nowhere. RunError: the store cannot be written.
    """
    shards = tuple(sorted(shards, key=lambda shard: shard.name))
    index = _index_for_writing(store)
    last = current(store)
    _sweep(store, kept(index) if index else ())
    known = _places(store, index)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in tables.items()}
    if index and last.shards == shards and all(last.tables.get(name) == sums[name] for name in TELLING):
        made = last
    else:
        number = index.last + 1 if index else 1
        made = Snapshot(
            number=number,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            tool_version=tool_version,
            shards=shards,
            tables=sums,
            files=_assigned(shards, sums, known, _folder(number)),
        )
    for shard in shards:
        _put(store, shard, made.tar(shard), known.get(shard.sha256))
    for name, digest in sums.items():
        if made.tables[name] == digest and not store.exists(made.table(name)):
            store.write(made.table(name), tables[name])
    if made is not last:
        store.write(made.manifest_file, made.model_dump_json(indent=1).encode())
    published = Index(
        history=(*(n for n in (index.history if index else ()) if n not in (0, made.number)), made.number),
        shown=index.shown if index else 0,
        last=max(made.number, index.last if index else 0),
        tags=index.tags if index else {},
        plain=plain,
    )
    _write_index(store, published)
    for name, data in tables.items():  # as they were chosen now, also where that makes no new snapshot
        store.write(name, data)
    _show(store, made, plain)
    _write_index(store, published.model_copy(update={"shown": made.number}))
    store.delete_folder(NEXT)
    prune(store, keep)
    return made


def _assigned(
    shards: Iterable[ShardManifest], sums: Mapping[str, str], known: Mapping[str, str], folder: str
) -> dict[str, str]:
    """sha256 -> file of a new snapshot: what another one holds by the same name is shared with it."""
    names = {**{f"{shard.name}.tar": shard.sha256 for shard in shards}, **sums}
    return {
        digest: known[digest] if PurePosixPath(known.get(digest, "")).name == name else f"{folder}/{name}"
        for name, digest in names.items()
    }


def _put(store: Store, shard: ShardManifest, target: str, known: str | None) -> None:
    """See that a shard's tar file is at its place in a snapshot; `known` is its place in another one."""
    if _is_whole(store, target, shard):
        if not store.exists(beside(target)):
            store.write(beside(target), manifest_bytes(shard))
        return
    for place in (f"{NEXT}/{shard.name}.tar", f"{SHARDS}/{shard.name}.tar"):
        manifest = beside(place)
        described = store.exists(manifest) and sample.read_manifest(store.read(manifest), manifest)
        if described and described.sha256 == shard.sha256 and _is_whole(store, place, shard):
            known = place
            break
    if known is None or not _is_whole(store, known, shard):
        raise DatasetError(f"shard {shard.name}: expected its tar file in {NEXT} or {target}, found none")
    store.link(known, target)
    store.write(beside(target), manifest_bytes(shard))


def _is_whole(store: Store, file: str, shard: ShardManifest) -> bool:
    return store.exists(file) and store.size(file) == shard.bytes


def _places(store: Store, index: Index | None) -> dict[str, str]:
    """sha256 -> file, of everything that a snapshot holds which is kept."""
    snapshots = [read(store, number) for number in kept(index)] if index else []
    return {digest: path for snapshot in snapshots for digest, path in snapshot.files.items()}


def _index_for_writing(store: Store) -> Index | None:
    """The index, made anew where it is lost: without it, all snapshots would be removed as left behind."""
    if not store.exists(INDEX) and numbers(store):
        rebuild_index(store)
    return read_index(store)


def _write_index(store: Store, index: Index) -> None:
    store.write(INDEX, index.model_dump_json(indent=1).encode())


def settle(store: Store) -> None:
    """Finish what a killed run left: `shards/` and the tables at the top show the current snapshot.

    Args:
        store: a data set on which no other run is at work.
    """
    index = read_index(store)
    if index is None or index.current in (0, index.shown):
        return
    snapshot = read(store, index.current)
    for name in snapshot.tables:
        store.write(name, store.read(snapshot.table(name)))
    _show(store, snapshot, index.plain)
    _write_index(store, index.model_copy(update={"shown": snapshot.number}))


def _show(store: Store, snapshot: Snapshot, plain: bool) -> None:
    """Make `shards/` hold what a snapshot names, and none of the earlier shards.

    Files that are not named like a shard are the user's and stay. A manifest goes before its tar file does,
    and comes after it. Indexes of other tools go first where any shard changes, as they would point astray.
    """
    wanted = {shard.name: shard for shard in snapshot.shards} if plain else {}
    present = [path for path in store.list(SHARDS) if SHARD_FILE.fullmatch(path.removeprefix(f"{SHARDS}/"))]
    stale = [path for path in present if PurePosixPath(path).stem not in wanted]
    new = [name for name, shard in wanted.items() if not _is_shown(store, snapshot, shard, present)]
    if stale or new:
        for path in store.list(SHARDS):
            if INDEX_FILE.fullmatch(path.removeprefix(f"{SHARDS}/")):
                store.delete(path)
    for path in sorted(stale, key=lambda path: (path.endswith(".tar"), path)):
        store.delete(path)
    for name in new:
        tar, manifest = f"{SHARDS}/{name}.tar", f"{SHARDS}/{name}.json"
        store.delete(manifest)
        store.link(snapshot.tar(wanted[name]), tar)
        store.write(manifest, manifest_bytes(wanted[name]))


def _is_shown(store: Store, snapshot: Snapshot, shard: ShardManifest, present: Sequence[str]) -> bool:
    """Whether a shard of the snapshot lies in `shards/`, whole and with its manifest."""
    tar, manifest = f"{SHARDS}/{shard.name}.tar", f"{SHARDS}/{shard.name}.json"
    if not (manifest in present and tar in present and store.read(manifest) == manifest_bytes(shard)):
        return False
    return store.is_same(snapshot.tar(shard), tar) or _is_whole(store, tar, shard)


def beside(tar: str) -> str:
    """The file that describes a shard, from its tar file."""
    return tar.removesuffix(".tar") + ".json"


def manifest_bytes(shard: ShardManifest) -> bytes:
    """The file that describes a shard beside its tar file."""
    return json.dumps(shard.model_dump(), indent=1).encode()


# ------------------------------------------------------------------------------ choosing among them


def roll_back(store: Store, which: int | str) -> Snapshot:
    """Make an earlier snapshot the current one, with its tables and its configuration.

    What was measured stays. The snapshot that was current until now is kept.

    Args:
        store: a data set on which no other run is at work.
        which: number or tag.

    Raises:
        CommandError: there is no such snapshot.
        DatasetError: one of its files is missing.
    """
    snapshot = find(store, which)
    if missing := [path for path in snapshot.files.values() if not store.exists(path)]:
        raise DatasetError(f"snapshot {snapshot.number}: expected {missing[0]}, found no such file")
    index = read_index(store)
    if index and index.current != snapshot.number:
        history = (*(n for n in index.history if n != snapshot.number), snapshot.number)
        _write_index(store, index.model_copy(update={"history": history}))
        settle(store)
    return snapshot


def tag(store: Store, which: int | str, name: str) -> Snapshot:
    """Give a snapshot a name, which keeps it; a name that another one has moves to this one.

    Args:
        store: a data set on which no other run is at work.
        which: number or tag.
        name: 1 to 64 letters, digits, `.`, `_` and `-`; a letter first.

    Raises:
        CommandError: there is no such snapshot, or the name is none.
    """
    if not _TAG.fullmatch(name):
        raise CommandError(
            f"tag {name!r}: expected 1 to 64 letters, digits, '.', '_' and '-', a letter first"
        )
    snapshot = find(store, which)
    if index := read_index(store):
        _write_index(store, index.model_copy(update={"tags": {**index.tags, name: snapshot.number}}))
    return snapshot


def untag(store: Store, name: str) -> None:
    """Take a name away; the snapshot goes with it where it is not among the last ones.

    Raises:
        CommandError: no snapshot has it.
    """
    index = read_index(store)
    if index is None or name not in index.tags:
        raise CommandError(f"{store.root}: no snapshot has the tag {name!r}")
    slim = index.model_copy(update={"tags": {key: n for key, n in index.tags.items() if key != name}})
    _write_index(store, slim)
    _sweep(store, kept(slim))


def prune(store: Store, keep: int) -> list[int]:
    """Remove all snapshots but those with a tag and the last ones to be current, and files that none names.

    Args:
        store: a data set on which no other run is at work.
        keep: number of the last ones, 1 or more.

    Returns:
        Numbers of the snapshots that were removed.
    """
    index = _index_for_writing(store)
    if index is None:
        return []
    slim = index.model_copy(update={"history": index.history[-keep:]})
    gone = sorted({*kept(index)} - {*kept(slim)})
    if slim != index:
        _write_index(store, slim)
    _sweep(store, kept(slim))
    return gone


def forget(store: Store, numbers: Iterable[int]) -> None:
    """Take snapshots out of the index, their tags too, and remove what no other one names.

    Where the current one is among them, `shards/` stands as it is until the next one is published.

    Args:
        store: a data set on which no other run is at work.
        numbers: of the snapshots; those that are not there are passed over.
    """
    gone = set(numbers)
    index = read_index(store)
    if index is None:
        return
    history = tuple(number for number in index.history if number not in gone)
    if index.current in gone:
        history = (*history, 0)
    tags = {name: number for name, number in index.tags.items() if number not in gone}
    shown = history[-1] if index.shown in gone else index.shown
    slim = index.model_copy(update={"history": history, "tags": tags, "shown": shown})
    _write_index(store, slim)
    _sweep(store, kept(slim))


def rebuild_index(store: Store) -> None:
    """Make the index anew where it is damaged; tags are lost.

    The current snapshot is the one that `shards/` shows, else the latest. What else is damaged is left out.

    Args:
        store: a data set on which no other run is at work.
    """
    readable: dict[int, Snapshot] = {}
    for number in sorted(numbers(store)):
        with suppress(DatasetError):
            readable[number] = read(store, number)
    if not readable:
        store.delete(INDEX)
        return
    plain = _unnumbered(store).shards
    shown = max((number for number, found in readable.items() if found.shards == plain), default=0)
    last = shown or max(readable)
    history = (*(number for number in readable if number != last), last)
    _write_index(store, Index(history=history, shown=shown, last=max(readable), plain=bool(plain)))


def _sweep(store: Store, keep: Sequence[int]) -> None:
    """Remove what is in `FOLDER` and belongs to none of these snapshots; manifests first."""
    snapshots = [read(store, number) for number in keep]
    files = [path for snapshot in snapshots for path in snapshot.files.values()]
    named = {INDEX, *(snapshot.manifest_file for snapshot in snapshots), *files, *map(beside, files)}
    stale = [path for path in store.list(FOLDER) if path not in named]
    for path in sorted(stale, key=lambda path: (not path.endswith("/snapshot.json"), path)):
        store.delete(path)


# ------------------------------------------------------------------------------ looking at them


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot as it is listed.

    Attributes:
        snapshot: its manifest.
        sha256: of the manifest.
        tags: its names.
        is_current: whether readers get it.
        own_bytes: bytes of shards that no other snapshot names: what its removal would free.
    """

    snapshot: Snapshot
    sha256: str
    tags: tuple[str, ...]
    is_current: bool
    own_bytes: int


def describe(store: Store) -> list[SnapshotInfo]:
    """All snapshots that are kept, by number; empty in a data set without."""
    index = read_index(store)
    if index is None:
        return []
    snapshots = [read(store, number) for number in kept(index)]
    named = Counter(path for snapshot in snapshots for path in set(snapshot.files.values()))
    return [
        SnapshotInfo(
            snapshot,
            manifest_sha256(store, snapshot),
            tuple(sorted(name for name, number in index.tags.items() if number == snapshot.number)),
            snapshot.number == index.current,
            sum(shard.bytes for shard in snapshot.shards if named[snapshot.tar(shard)] == 1),
        )
        for snapshot in snapshots
    ]
