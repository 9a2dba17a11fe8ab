"""What the committed parts say, as columns: one table of all clips, kept beside the parts.

`parts/` stays the one truth. `measured/` is made from it, and can be deleted at any time. When parts were
added, changed or taken away, only those are read again. A selection then reads a few large files instead of
tens of thousands of small ones, and no clip is a Python object.

    measured/clips-*.parquet     the columns of the ledger that were measured, and the part of each clip
    measured/faces-*.parquet     face embeddings, and voices-*.parquet those of voices
    measured/outcomes.parquet, failures.parquet
    measured/copies.parquet      pairs of clips that may show the same moment, see `near_duplicates.py`
    measured/people.parquet, groups.parquet   who is who, see `people.py`
    measured/state.json          which state of which part they hold; written last
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from talkforge.curation.credentials import UNREAD
from talkforge.curation.fingerprint import Fingerprint
from talkforge.curation.verdict import NOT_TRACED, Columns, Reasons, judge_columns
from talkforge.pipeline import attempts, near_duplicates, people, small_arrays, tables
from talkforge.pipeline.intake import IngestRow, Intake
from talkforge.pipeline.parts import MARKER
from talkforge.pipeline.store import Store
from talkforge.schemas.arrays import Floats
from talkforge.schemas.config import Thresholds
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Failure,
    LedgerRow,
    Outcome,
    PersonRow,
    Record,
    Video,
)

log = logging.getLogger(__name__)

FOLDER, STATE, VERSION = "measured", "measured/state.json", 1

TABLES, VECTORS = ("clips", "outcomes", "failures"), ("faces", "voices")
"""What is read whole, and what a file at a time."""

PIECE_ROWS = 1 << 16
"""Rows of one file: what is held twice while a table is written or read."""

T = TypeVar("T")


class _State(BaseModel):
    version: int
    parts: dict[str, str]
    """Name of each part -> mark of its `part.json`, see `Store.stamps`."""


@dataclass(frozen=True)
class Measured:
    """Everything that selection needs of the committed parts, and failures of windows that are put off.

    Attributes:
        clips: by clip id, each once: the columns of `LedgerRow` that were measured, `part`, and `failure`.
        outcomes: one for each window, in the order of time.
        failures: by input.
        parts: their names, sorted.
        read_faces: gives the clips with a face embedding, by id, and the embeddings [n, D].
        read_voices: gives the voice embeddings [D] by clip id, where there are any.
        read_copies: gives pairs of clips and how far they agree, see `near_duplicates.TABLE`.
        kept: where results that take long are kept, by what they depend on; None: nowhere.
        state: changes with the parts.
    """

    clips: pa.Table
    outcomes: Sequence[Outcome] = ()
    failures: list[Failure] = field(default_factory=list)
    parts: Sequence[str] = ()
    read_faces: Callable[[], tuple[list[str], Floats]] = lambda: ([], np.zeros((0, 0), np.float32))
    read_copies: Callable[[], pa.Table] = near_duplicates.empty
    read_voices: Callable[[], dict[str, Floats]] = dict
    kept: Kept | None = None
    state: str = ""

    def people(self, rows: pa.Table, same_person: float) -> dict[str, pa.Table]:
        """Who is who: `persons`, the person of each clip with a face embedding, and `people`, of `PersonRow`.

        Args:
            rows: ledger columns of the clips to tell apart, in the order of their ids.
            same_person: see `people.name_people`.
        """

        def make() -> dict[str, pa.Table]:
            clip_ids, vectors = self.read_faces()
            needed = rows.select(["clip_id", "video_id", "person", "start_s", "end_s"])
            known = needed.filter(pc.is_in(rows.column("clip_id"), value_set=pa.array(clip_ids, pa.string())))
            if len(known) < len(clip_ids):  # of files that have changed since
                left = set(known.column("clip_id").to_pylist())
                vectors = vectors[[key in left for key in clip_ids]]
            keys, videos, labels = _lists(known, "clip_id", "video_id", "person")
            starts_s, ends_s = (known.column(name).to_numpy() for name in ("start_s", "end_s"))
            faces = people.Faces(keys, videos, starts_s, ends_s, labels, vectors)
            persons = people.person_ids(faces, same_person)
            described = people.describe_people(faces, persons)
            columns = {"clip_id": faces.clip_ids, "person_id": persons}
            persons_table = pa.table({name: pa.array(c, pa.string()) for name, c in columns.items()})
            return {"persons": persons_table, "people": tables.to_table(PersonRow, described)}

        of = hashlib.sha256(f"{self.state} {same_person}".encode())
        for name in ("clip_id", "person"):
            of.update("\n".join(map(str, rows.column(name).to_pylist())).encode())
        return self.kept.table("people", of.hexdigest(), make) if self.kept else make()


@dataclass(frozen=True)
class Kept:
    """Tables that are kept in a data set with what they depend on.

    Attributes:
        store: the data set.
        writes: whether a new one is written.
    """

    store: Store
    writes: bool

    def table(self, name: str, of: str, make: Callable[[], Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
        """Tables by name, kept or made.

        Args:
            name: names the note of what they depend on.
            of: changes with all that they depend on.
            make: gives the tables.
        """
        note = f"{FOLDER}/{name}.json"
        try:
            if self.store.exists(note):
                known = json.loads(self.store.read(note))
                if known["of"] == of:
                    return {
                        table: _read_file(self.store, f"{FOLDER}/{table}.parquet")
                        for table in known["tables"]
                    }
        except (DatasetError, ValueError, KeyError, TypeError) as error:
            log.info("%s is made again: %s", note, error)
        made = dict(make())
        if self.writes:
            self.store.delete(note)
            for table, content in made.items():
                self.store.write(f"{FOLDER}/{table}.parquet", tables.to_bytes(content))
            self.store.write(note, json.dumps({"of": of, "tables": list(made)}).encode())
        return made


# ------------------------------------------------------------------------------ reading


def read_measured(store: Store, writes: bool = True) -> Measured:
    """What the committed parts of a data set say.

    Args:
        store: the data set.
        writes: whether `measured/` is brought up to date. A run that has no lock must not.

    Raises:
        DatasetError: a file of a part is missing or damaged; names it.
        RunError: the store cannot be read or written.
    """
    now = store.stamps("parts", MARKER)
    before = _read_state(store).parts
    known = {part for part, mark in now.items() if before.get(part) == mark}
    found = _kept_tables(store, known, len(known) < len(before)) if known else None
    if found is None:
        known, found = set(), {}
    new = [part for part in now if part not in known]
    changed = not known or before != now
    if changed and writes:
        store.delete(STATE)
        with (
            _Pieces(store, "faces", known, before) as faces,
            _Pieces(store, "voices", known, before) as voices,
        ):
            found = _joined(found, _read_parts(store, new, {"faces": faces, "voices": voices}))
        for name, table in found.items():
            with _Pieces(store, name, (), ()) as pieces:
                pieces.add(table)
        store.write(STATE, _State(version=VERSION, parts=now).model_dump_json().encode())
    elif changed:
        found = _joined(found, _read_parts(store, new, {}))
    state = hashlib.sha256(json.dumps(now).encode()).hexdigest()
    clips = _each_once(found["clips"]).combine_chunks()  # which a selection then need not do once more
    kept = Kept(store, writes)
    of_copies = f"{state} {near_duplicates.TABLE.names}"

    def vectors(name: str) -> Iterator[pa.Table]:
        if not changed or writes:
            return _pieces_of(store, name, None)
        return itertools.chain(_pieces_of(store, name, known), _embedded_in(store, new, name))

    return Measured(
        clips=clips,
        outcomes=_outcomes(found["outcomes"]),
        failures=_failures(store, found["failures"]),
        parts=tuple(now),
        read_voices=lambda: _voices(vectors("voices"), clips),
        read_faces=lambda: _faces(vectors("faces"), clips),
        read_copies=lambda: kept.table("copies", of_copies, lambda: {"copies": _copies(store, clips)})[
            "copies"
        ],
        kept=kept,
        state=state,
    )


def read_clips(store: Store, columns: list[str]) -> pa.Table:
    """Some columns of `Measured.clips`, which are all that is read where nothing has changed.

    Args:
        store: the data set.
        columns: their names, `clip_id` among them.

    Raises:
        DatasetError: as `read_measured`.
    """
    before = _read_state(store)
    if before.parts and before.parts == store.stamps("parts", MARKER):
        with suppress(DatasetError):  # damaged, and made again by the next run
            needed = {*columns, "clip_id", "part", "stopped_by"}  # to take each clip once
            return _each_once(_read_pieces(store, "clips", sorted(needed))).select(columns)
    return read_measured(store, writes=False).clips.select(columns)


def _read_state(store: Store) -> _State:
    nothing = _State(version=VERSION, parts={})
    if not store.exists(STATE):
        return nothing
    try:
        state = _State.model_validate_json(store.read(STATE))
    except ValidationError:
        return nothing
    return state if state.version == VERSION else nothing


def forget(store: Store) -> None:
    """Delete what is kept beside the parts; the next selection makes it again."""
    store.delete(STATE)
    store.delete_folder(FOLDER)


def _kept_tables(store: Store, known: Collection[str], fewer: bool) -> dict[str, pa.Table] | None:
    """The tables as they were written last, for the parts that are as they were; None: they are damaged.

    Embeddings are left where they are: they are large, and seldom needed.

    Args:
        store: the data set.
        known: the parts that are as they were.
        fewer: whether the tables hold other parts as well.
    """
    try:
        found = {name: _read_pieces(store, name) for name in TABLES}
        if found["clips"].schema.names != _clips_schema().names:
            return None  # of a version with other columns
        for name in VECTORS:  # an empty file is there, where there are none
            _read_file(store, _piece(name, 0), ["part"])
    except DatasetError as error:
        log.info("what is kept of the parts is made again: %s", error)
        return None
    return {name: _of_parts(table, known) for name, table in found.items()} if fewer else found


def _of_parts(table: pa.Table, parts: Collection[str]) -> pa.Table:
    return table.filter(pc.is_in(table.column("part"), value_set=pa.array(sorted(parts), pa.string())))


def _read_pieces(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    pieces = _names_of_pieces(store, name)
    if not pieces:
        raise DatasetError(f"{FOLDER}/{name}: expected a table, found none")
    return pa.concat_tables([_read_file(store, piece, columns) for piece in pieces])


def _pieces_of(store: Store, name: str, parts: Collection[str] | None) -> Iterator[pa.Table]:
    """One file after the other, rows of these parts; None: all rows."""
    for piece in _names_of_pieces(store, name) if parts is None or parts else ():
        table = _read_file(store, piece)
        yield table if parts is None else _of_parts(table, parts)


def _piece(name: str, number: int) -> str:
    return f"{FOLDER}/{name}-{number:04d}.parquet"


def _names_of_pieces(store: Store, name: str, first: int = 0) -> list[str]:
    return list(itertools.takewhile(store.exists, (_piece(name, n) for n in itertools.count(first))))


def _read_file(store: Store, file: str, columns: list[str] | None = None) -> pa.Table:
    return tables.from_bytes(store.read(file), file, columns)


class _Pieces:
    """Writes rows to the files of a table, `PIECE_ROWS` in each; the rest when it is left.

    Args:
        store: the data set.
        name: of the table.
        known: parts whose rows stay.
        before: parts whose rows are there.
    """

    def __init__(self, store: Store, name: str, known: Collection[str], before: Collection[str]) -> None:
        self._store, self._name, self._number = store, name, 0
        self._held: list[pa.Table] = []
        there = _names_of_pieces(store, name) if known else []
        if len(known) == len(before):  # only the last file is written again
            self._number = max(0, len(there) - 1)
        for piece in there[self._number :]:
            # As many files are read as are written: none is written over that is still to be read.
            self.add(_of_parts(_read_file(store, piece), known))

    def add(self, table: pa.Table) -> None:
        """Add some rows."""
        self._held.append(table)
        while sum(map(len, self._held)) >= PIECE_ROWS:
            rows = pa.concat_tables(self._held)
            self._write(rows.slice(0, PIECE_ROWS))
            self._held = [rows.slice(PIECE_ROWS)]

    def _write(self, rows: pa.Table) -> None:
        self._store.write(_piece(self._name, self._number), tables.to_bytes(rows))
        self._number += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            rows = pa.concat_tables([_schemas()[self._name].empty_table(), *self._held])
            if len(rows) or not self._number:
                self._write(rows)
            for left in _names_of_pieces(self._store, self._name, self._number):
                self._store.delete(left)


def _joined(before: Mapping[str, pa.Table], new: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Old and new rows; clips in the order of their ids, and of the parts where one lies in two."""
    found = {name: pa.concat_tables([before[name], new[name]]) if before else new[name] for name in TABLES}
    found["clips"] = found["clips"].sort_by([("clip_id", "ascending"), ("part", "ascending")])
    return found


def _each_once(clips: pa.Table) -> pa.Table:
    """The clips, each once: a window whose part was cut up anew, or a clip that was traced after its part."""
    keys = clips.column("clip_id")
    if len(clips) < 2:
        return clips
    if pc.any(pc.equal(keys[1:], keys[:-1])).as_py():  # the first part that holds it, and has traced it
        waits = pc.fill_null(pc.equal(clips.column("stopped_by"), NOT_TRACED.code), False)
        order = [("clip_id", "ascending"), ("waits", "ascending"), ("part", "ascending")]
        clips = clips.append_column("waits", waits).sort_by(order).drop_columns(["waits"])
        keys = clips.column("clip_id")
    is_new = pc.not_equal(keys[1:], keys[:-1])
    if pc.all(is_new).as_py():
        return clips
    return clips.filter(pa.concat_arrays([pa.array([True]), is_new.combine_chunks()]))


def _outcomes(table: pa.Table) -> tables.Rows[Outcome]:
    """Of every window one, in the order of time: which part was committed first must not show."""
    span = ["video_id", "start_s", "end_s"]
    numbered = table.append_column("number", pa.array(np.arange(len(table))))
    rows = numbered.sort_by([(name, "ascending") for name in [*span, "number"]])
    differs = [pc.not_equal(rows.column(name)[1:], rows.column(name)[:-1]).to_numpy() for name in span]
    is_last = np.append(np.any(differs, axis=0), True)[: len(rows)]
    return tables.Rows(Outcome, rows.drop_columns(["part", "number"])).where(is_last)


def _failures(store: Store, table: pa.Table) -> list[Failure]:
    rows = [Failure.model_validate(row) for row in table.drop_columns(["part"]).to_pylist()]
    rows += attempts.waiting(store).values()
    return sorted(rows, key=lambda failure: (failure.uri, failure.key))


def _faces(pieces: Iterable[pa.Table], clips: pa.Table) -> tuple[list[str], Floats]:
    """Clips with a face embedding, by id, and the embeddings at unit length; read a file at a time.

    Raises:
        DatasetError: embeddings differ in length.
    """
    names, parts = _lists(clips, "clip_id", "part")
    row_of = {key: row for row, key in enumerate(names)}
    lengths = np.zeros(len(names), np.int64)
    vectors = np.zeros((0, 1), np.float32)
    for piece in pieces:
        faces = piece.column("face").combine_chunks()
        edges, values = faces.offsets.to_numpy(), faces.values.to_numpy()
        keys = zip(*_lists(piece, "clip_id", "part"), strict=True)
        own = [n for n, (key, part) in enumerate(keys) if key in row_of and parts[row_of[key]] == part]
        rows = np.array(
            [row_of[key] for key in piece.column("clip_id").take(pa.array(own, pa.int64())).to_pylist()],
            np.int64,
        )
        lengths[rows] = np.diff(edges)[own]
        if not vectors.size and lengths.any():
            # Memory of rows that are never written is never taken.
            vectors = np.zeros((len(names), int(lengths[lengths > 0][0])), np.float32)
        equal = np.flatnonzero(lengths[rows] == vectors.shape[1])
        for start in range(0, len(equal), 4096):
            some = equal[start : start + 4096]
            starts = edges[np.array(own, np.int64)[some]]
            block = values[starts[:, None] + np.arange(vectors.shape[1])].astype(np.float64)
            vectors[rows[some]] = people.normalised(block)
    known = np.flatnonzero(lengths)
    for row in known[lengths[known] != lengths[known[:1]]].tolist():
        raise DatasetError(
            f"clip {names[row]}: expected a face embedding of {lengths[known[0]]} numbers as in clip "
            f"{names[known[0]]}, found {lengths[row]}"
        )
    for start in range(0, len(known), 4096):  # moved forwards: of a million there is room for no second copy
        some = known[start : start + 4096]
        vectors[start : start + len(some)] = vectors[some]
    vectors.resize((len(known), vectors.shape[1]), refcheck=False)
    return [names[row] for row in known.tolist()], vectors


def _voices(pieces: Iterable[pa.Table], clips: pa.Table) -> dict[str, Floats]:
    """Voice embeddings by clip id."""
    table = pa.concat_tables([_schemas()["voices"].empty_table(), *pieces])
    if not len(table):
        return {}
    part_of = dict(zip(*_lists(clips, "clip_id", "part"), strict=True))
    rows = zip(*_lists(table, "clip_id", "face", "part"), strict=True)
    return {key: np.array(vector, np.float32) for key, vector, part in rows if part_of.get(key) == part}


def _copies(store: Store, clips: pa.Table) -> pa.Table:
    """Pairs of clips that may be near duplicates, see `near_duplicates.alike`."""
    ids, parts = _best_first(clips)
    number_of = {key: number for number, key in enumerate(ids)}
    by_part: dict[str, dict[str, int]] = {}
    for key, part in zip(ids, parts, strict=True):
        by_part.setdefault(part, {})[key] = number_of[key]

    def arrays(part: str, names: Collection[str], wanted: Collection[str]) -> dict[str, dict[str, Any]]:
        return small_arrays.read(store, f"parts/{part}", names, wanted)

    def hashes() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        for part, found in in_order(by_part, lambda part: arrays(part, ("sound",), by_part[part])):
            own = [(by_part[part][key], one["sound"]) for key, one in found.items()]
            if own:
                numbers = np.repeat([number for number, _ in own], [len(sound) for _, sound in own])
                yield numbers, np.concatenate([sound for _, sound in own])

    known = {row.pop("clip_id"): row for row in clips.select(["clip_id", "duration_s", "fps"]).to_pylist()}
    names = ("sound", "pictures", "faces", small_arrays.OPENING)

    def read(numbers: NDArray[np.int64]) -> dict[int, Fingerprint]:
        wanted: dict[str, set[str]] = {}
        for number in numbers.tolist():
            wanted.setdefault(parts[number], set()).add(ids[number])
        return {
            number_of[key]: near_duplicates.fingerprint(known[key], one)
            for part, found in in_order(wanted, lambda part: arrays(part, names, wanted[part]))
            for key, one in found.items()
        }

    return near_duplicates.alike(ids, hashes(), read)


def _best_first(clips: pa.Table) -> tuple[list[str], list[str]]:
    """Ids and parts of the clips, those first that are kept rather than copies, as far as that depends on no
    threshold."""
    columns = ("duration_s", "face_px", "sync_confidence", "sync_probability")
    numbers = {name: clips.column(name).to_numpy() for name in columns}
    doubtful = ~(numbers["sync_probability"] >= near_duplicates.SURELY_IN_SYNC)
    octaves = np.floor(np.log2(np.maximum(numbers["duration_s"], 1e-3)))
    keys = (-np.nan_to_num(numbers["sync_confidence"], nan=-np.inf), -numbers["face_px"], -octaves, doubtful)
    ordered = clips.select(["clip_id", "part"]).take(pa.array(np.lexsort(keys)))
    return ordered.column("clip_id").to_pylist(), ordered.column("part").to_pylist()


def in_order(keys: Iterable[str], read: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    """Keys and what is read of each, several read at a time, and few held."""
    with ThreadPoolExecutor(_threads()) as pool:
        ordered, most = sorted(keys), 8 * _threads()
        for start in range(0, len(ordered), most):
            block = ordered[start : start + most]
            yield from zip(block, pool.map(read, block), strict=True)


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))


# ------------------------------------------------------------------------------ parts


def _read_parts(store: Store, parts: Sequence[str], vectors: Mapping[str, _Pieces]) -> dict[str, pa.Table]:
    """Tables of some parts, read several at a time: most of the time goes to waiting for files.

    Args:
        store: the data set.
        parts: their names.
        vectors: where embeddings are written, by the name of their table; those that are not named are not
            read.
    """
    found: dict[str, list[pa.Table]] = {name: [_schemas()[name].empty_table()] for name in TABLES}
    for _, one in in_order(parts, lambda part: _read_part(store, part, bool(vectors))):
        for name, pieces in vectors.items():
            pieces.add(one[name])
        for name, held in found.items():
            held.append(one[name])
            if len(held) > MANY_PIECES:  # a small table is mostly what describes it
                held[:] = [pa.concat_tables(held).combine_chunks()]
    return {name: pa.concat_tables(held).combine_chunks() for name, held in found.items()}


MANY_PIECES = 256
"""Tables of parts that are held before they are put together."""


def _embedded_in(store: Store, parts: Sequence[str], table: str) -> Iterator[pa.Table]:
    """Embeddings in some parts, as `faces` or `voices` have them."""
    name = {"faces": "identity", "voices": "voice"}[table]
    for part, arrays in in_order(parts, lambda part: small_arrays.read(store, f"parts/{part}", (name,))):
        yield _in_part(_embedded(arrays, name), part, table)


@functools.cache
def _leaves() -> dict[str, tuple[str, pa.DataType]]:
    """Measured column of the ledger -> record of `ClipMeasures` that holds it, and its type."""
    types = {field.name: field.type for field in tables.arrow_schema(LedgerRow)}
    found = {}
    for record in tables.arrow_schema(ClipMeasures):
        if pa.types.is_struct(record.type) and record.name != "transcript":  # a part has none
            for leaf in record.type:
                found[leaf.name] = (record.name, types[leaf.name])
    return found


@functools.cache
def _clips_schema() -> pa.Schema:
    columns = [(name, kind) for name, (_, kind) in _leaves().items()]
    columns += [("duration_s", pa.float64()), ("stopped_by", pa.string())]
    return pa.schema([*columns, ("failure", pa.string()), ("part", pa.string())])


@functools.cache
def _schemas() -> dict[str, pa.Schema]:
    part = pa.field("part", pa.string())
    return {
        "clips": _clips_schema(),
        "outcomes": _plain(Outcome).append(part),
        "failures": _plain(Failure).append(part),
        "faces": _embeddings().append(part),
        "voices": _embeddings().append(part),
    }


def _embeddings() -> pa.Schema:
    return pa.schema([("clip_id", pa.string()), ("face", pa.large_list(pa.float32()))])


def _plain(model: type[Record]) -> pa.Schema:
    return pa.schema([(field.name, field.type) for field in tables.arrow_schema(model)])


def _read_part(store: Store, part: str, with_vectors: bool) -> dict[str, pa.Table]:
    folder = f"parts/{part}"
    failures = _table(store, f"{folder}/failures.parquet", Failure)
    found = {
        "clips": _part_clips(store, part, failures),
        "outcomes": _table(store, f"{folder}/outcomes.parquet", Outcome),
        "failures": failures,
    }
    if with_vectors:
        arrays = small_arrays.read(store, folder, ("identity", "voice"))
        found |= {"faces": _embedded(arrays, "identity"), "voices": _embedded(arrays, "voice")}
    return {name: _in_part(table, part, name) for name, table in found.items()}


def _in_part(table: pa.Table, part: str, name: str) -> pa.Table:
    return table.append_column("part", pa.array([part] * len(table), pa.string())).cast(_schemas()[name])


def _embedded(arrays: Mapping[str, Mapping[str, NDArray[Any]]], name: str) -> pa.Table:
    found = {key: own[name] for key, own in arrays.items() if name in own}
    columns = [pa.array([*found], pa.string()), pa.array([*found.values()], pa.large_list(pa.float32()))]
    return pa.table(columns, schema=_embeddings())


def part_clips(store: Store, part: str) -> pa.Table:
    """Measured columns of the ledger of the clips of a part, and `failure`.

    Raises:
        DatasetError: a file of the part is missing, damaged, or holds something else.
    """
    return _part_clips(store, part, _table(store, f"parts/{part}/failures.parquet", Failure))


def _part_clips(store: Store, part: str, failures: pa.Table) -> pa.Table:
    name = f"parts/{part}/clips.parquet"
    clips = flat_clips(_table(store, name, ClipMeasures), name)
    keys, errors, messages = _lists(failures, "key", "error", "message")
    by_key = {k: f"{e}: {m}" for k, e, m in zip(keys, errors, messages, strict=True)}
    broken = pa.array([by_key.get(key) for key in clips.column("clip_id").to_pylist()], pa.string())
    return clips.append_column("failure", broken)


def _lists(table: pa.Table, *names: str) -> Iterator[list[Any]]:
    return (table.column(name).to_pylist() for name in names)


def _table(store: Store, name: str, model: type[Record]) -> pa.Table:
    """A table of a part without what its fields say of themselves, and with columns that came later.

    Raises:
        DatasetError: it holds something else.
    """
    table = tables.from_bytes(store.read(name), name)
    if model is ClipMeasures:
        return table
    known = set(table.column_names)
    columns = {
        field.name: table.column(field.name)
        if field.name in known
        else pa.array([_default(model, field.name)] * len(table), field.type)
        for field in _plain(model)
    }
    return pa.table(columns)


def _default(model: type[Record], name: str) -> Any:
    field = model.model_fields[name]
    if field.is_required():
        raise DatasetError(f"expected {model.__name__} rows, found none with {name}")
    return field.default


def flat_clips(table: pa.Table, file: str) -> pa.Table:
    """Measured columns of the ledger from the rows of a part's `clips.parquet`, null where not measured.

    Args:
        table: rows of `ClipMeasures`, also of earlier versions.
        file: what messages call it.

    Raises:
        DatasetError: it holds something else.
    """
    columns: dict[str, Any] = {}
    for name, (record, kind) in _leaves().items():
        known = record in table.column_names
        struct = table.schema.field(record).type if known else None
        if struct is not None and pa.types.is_struct(struct) and struct.get_field_index(name) >= 0:
            columns[name] = pc.struct_field(table.column(record), name).cast(kind)
        else:
            columns[name] = pa.nulls(len(table), kind)
    if "stopped_by" not in table.column_names or columns["clip_id"].null_count:
        raise DatasetError(f"{file}: expected ClipMeasures rows, found {', '.join(table.column_names[:4])}")
    frames = pc.cast(columns["num_frames"], pa.float64())
    columns["duration_s"] = pc.divide(frames, columns["fps"])
    columns["stopped_by"] = table.column("stopped_by")
    return pa.table(columns)


# ------------------------------------------------------------------------------ rows


class ClipRows(Columns):
    """Columns of the ledger while they are decided on.

    Args:
        clips: what was measured, see `Measured.clips`.
    """

    def __init__(self, clips: pa.Table) -> None:
        super().__init__(len(clips), lambda name: self.table.column(name).to_pylist())
        self.table = clips

    def __len__(self) -> int:
        return len(self.table)

    def __setitem__(self, name: str, column: pa.Array) -> None:
        if name in self.table.column_names:
            self.table = self.table.set_column(self.table.column_names.index(name), name, column)
        else:
            self.table = self.table.append_column(name, column)
        self.forget(name)

    def _find_distinct(self, name: str) -> tuple[list[Any], NDArray[np.int64]]:
        if name not in self.table.column_names:
            return [], np.full(len(self), -1)
        encoded = self.table.column(name).combine_chunks().dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy().astype(np.int64)

    def floats(self, name: str) -> NDArray[np.float64]:
        if name not in self.table.column_names:
            return np.full(len(self), np.nan)
        column = self.table.column(name).cast(pa.float64())
        return np.asarray(column.to_numpy(), np.float64)

    def set_reasons(self, reasons: Reasons) -> None:
        """Set `reasons`, `reason_details`, and `accepted` where there is neither a reason nor a failure."""
        counts = np.bincount(reasons.rows, minlength=len(self))
        offsets = pa.array(np.append(0, np.cumsum(counts)), pa.int32())
        for name, texts in (("reasons", reasons.codes), ("reason_details", reasons.details)):
            self[name] = pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string()))
        self["accepted"] = pc.and_(pa.array(counts == 0), self.table.column("failure").is_null())

    def judge(self, thresholds: Thresholds) -> None:
        """Set these columns by the rules alone."""
        self.set_reasons(judge_columns(self, thresholds))

    def rows(self, numbers: Iterable[int], names: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some columns of some rows, by number."""
        wanted = np.fromiter(numbers, np.int64)
        known = [name for name in names if name in self.table.column_names]
        yield from zip(wanted.tolist(), self.table.select(known).take(wanted).to_pylist(), strict=True)


TERMS = ("source", "licence", "consent", "person")
"""Ledger columns of what the list says of an input."""


def face_clip_px(face_px: float, clip: Clip, video: Video) -> float:
    """Height of a face in the clip, which parts of earlier versions do not hold."""
    from talkforge.curation.media import height_scale  # loads PyAV, which a part of today does not need

    return round(face_px * height_scale(clip, video), 2)


def rows_of_inputs(
    clips: pa.Table, intake: Intake, thresholds: Thresholds
) -> tuple[ClipRows, NDArray[np.int64]]:
    """The clips with what is known of their inputs, and the number of each one's input in `intake.planned`.

    What was measured of a file that has changed since is no longer part of the data set.

    Args:
        clips: see `Measured.clips`.
        intake: the inputs.
        thresholds: limits of the rules. Where they ask for content credentials, clips of files that nobody
            has read them of are `unread`.
    """
    starts_s, ends_s = (clips.column(name).to_numpy() for name in ("start_s", "end_s"))
    inputs = intake.inputs_of(clips.column("video_id"), (starts_s + ends_s) / 2)
    if (inputs < 0).any():
        clips = clips.filter(pa.array(inputs >= 0))
    rows = ClipRows(clips.combine_chunks())
    _join_inputs(rows, intake.planned, inputs[inputs >= 0])
    if thresholds.respect_reservations:
        rows["training_mining"] = pc.fill_null(rows.table.column("training_mining"), UNREAD)
    return rows, inputs[inputs >= 0]


def kept_s(clips: pa.Table, intake: Intake, thresholds: Thresholds) -> float:
    """Seconds that the rules accept, of all clips, also of those whose input has changed since.

    Args:
        clips: see `Measured.clips`.
        intake: the inputs.
        thresholds: limits of the rules.
    """
    rows = ClipRows(clips)
    _fill_heights(rows, lambda _, video_id: intake.at(video_id, None))
    rows.judge(thresholds)
    return float(pc.sum(rows.table.column("duration_s").filter(rows.table.column("accepted"))).as_py() or 0.0)


def _join_inputs(found: ClipRows, planned: tables.Rows[IngestRow], inputs: NDArray[np.int64]) -> None:
    """Columns of what the lists say of each clip's input, and those that follow from its video."""
    for name in TERMS:
        found[name] = planned.column(f"input.{name}").take(pa.array(inputs))
    found["training_mining"] = planned.column("training_mining").take(pa.array(inputs))
    _fill_heights(found, lambda number, _: planned[inputs[number]])


def _fill_heights(found: ClipRows, input_of: Callable[[int, str], IngestRow | None]) -> None:
    """`face_clip_px` of parts of earlier versions, which do not hold it.

    Args:
        found: the clips.
        input_of: gives the input of a clip, from its number and the id of its video.
    """
    heights = found.floats("face_clip_px")
    late = np.flatnonzero(np.isnan(heights) & ~np.isnan(found.floats("face_px")))
    for number, row in found.rows(late, [*Clip.model_fields, "face_px"]):
        entry = input_of(number, row["video_id"])
        if entry is not None and entry.video is not None:
            heights[number] = face_clip_px(row.pop("face_px"), Clip.model_validate(row), entry.video)
    if len(late):
        found["face_clip_px"] = pa.array(heights, pa.float64(), from_pandas=True)
