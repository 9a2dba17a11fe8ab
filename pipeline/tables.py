"""Records as Parquet tables: the Arrow schema follows from the record's fields and their descriptions."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from talkforge.pipeline.store import Store
from talkforge.schemas.columns import columns
from talkforge.schemas.errors import DatasetError, first_invalid, one_line
from talkforge.schemas.records import Record

R = TypeVar("R", bound=Record)

CHECKSUM = "talkforge.sha256"
"""Key in a Parquet file's metadata under which it holds its own checksum."""

OLD_KEYS = frozenset({"ARROW:schema", "pandas"})
"""Keys in the metadata of a file without a checksum."""

_MARK = b"sha256 of this file with zeros here: "
_ZEROS = b"0" * 64
_SHA256 = re.compile(rb"[0-9a-f]{64}")

_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
}  # fmt: skip


def arrow_type(annotation: Any) -> pa.DataType:
    """Arrow type of a record field: scalars, literals, optionals, nested records, tuples of one type.

    Raises:
        TypeError: the annotation has no Arrow counterpart.
    """
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return arrow_type(inner)
    if origin is typing.Literal:
        return pa.string()
    if origin is tuple:
        # Parquet's name of a list's items: a table that was read has the schema that it was written with.
        return pa.list_(pa.field("element", arrow_type(arguments[0])))
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return pa.struct(list(arrow_schema(annotation)))
    raise TypeError(f"no Arrow type for {annotation}")


@functools.cache
def arrow_schema(model: type[Record]) -> pa.Schema:
    """Arrow schema of a record: one field for each of its own, in order.

    A field carries its description and its unit as metadata, where it has them.
    """
    described = columns(model)
    fields = []
    for name, field in model.model_fields.items():
        if field.exclude:  # not stored
            continue
        metadata = {key: text for key, text in described[name]._asdict().items() if text}
        fields.append(pa.field(name, arrow_type(field.annotation), metadata=metadata or None))
    return pa.schema(fields)


def to_table(model: type[R], records: Iterable[R]) -> pa.Table:
    """Table of the records, with every column even where there are no records."""
    return pa.Table.from_pylist([record.model_dump() for record in records], schema=arrow_schema(model))


def from_table(model: type[R], table: pa.Table) -> list[R]:
    """Records of a table; columns with a dot in their name (`source.show`) are the user's, and left out."""
    ours = table.select([name for name in table.column_names if "." not in name])
    return [model.model_validate(row) for row in ours.to_pylist()]


def to_bytes(table: pa.Table) -> bytes:
    """Parquet file of a table; the same table gives the same bytes.

    Parquet has checksums of its pages, and none of its footer. The footer's metadata therefore hold the
    sha256 of the whole file, taken with zeros in its own place.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM: (_MARK + _ZEROS).decode()})
    data = sink.getvalue()
    at = data.rindex(_MARK) + len(_MARK)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + len(_ZEROS) :]


def read_columns(store: Store, name: str, columns: list[str]) -> pa.Table:
    """Some columns of the Parquet file `name` of a data set, in this order.

    Raises:
        DatasetError: it is missing, not Parquet, or lacks a column; names the file.
    """
    table = from_bytes(store.read(name), name, columns)
    if missing := [column for column in columns if column not in table.column_names]:
        raise DatasetError(f"{name}: expected a column {missing[0]!r}, found none")
    return table.select(columns)


def from_bytes(data: bytes, name: str, columns: list[str] | None = None) -> pa.Table:
    """Table of a Parquet file.

    Args:
        data: content of the file.
        name: what messages call it.
        columns: those that are wanted, as far as they are there; None: all.

    Raises:
        DatasetError: the bytes are not Parquet, or do not have their checksum; names the file.
    """
    checked = _check_sha256(data, name)
    try:
        file = pq.ParquetFile(pa.BufferReader(_native(data)), page_checksum_verification=True)
        keys = {key.decode("utf-8", "replace") for key in file.metadata.metadata or {}}
        if not checked and keys - OLD_KEYS:
            raise ValueError("a checksum that cannot be read")
        table = file.read(columns)  # pq.read_table would import pandas
        # A table that is written again has the bytes that it had, and one checksum.
        metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k.decode() != CHECKSUM}
        return table.replace_schema_metadata(metadata or None)
    except MemoryError:
        raise
    except Exception as error:  # a damaged footer makes pyarrow raise almost anything
        raise DatasetError(f"{name}: not a readable Parquet file ({one_line(error)})") from None


def _native(data: bytes) -> pa.Buffer:
    """A copy in Arrow's own memory, which no Python object owns.

    Threads of Arrow's pool may let go of a file after its table was returned. Where Python owned the memory
    and shut down meanwhile, that ended the process with SIGABRT (9 of 120 `status` on a busy machine).
    """
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return buffer


def _check_sha256(data: bytes, name: str) -> bool:
    """Whether the file holds its own sha256, which then is right; earlier versions wrote none.

    Raises:
        DatasetError: it is not right; names the file.
    """
    at = data.rfind(_MARK) + len(_MARK)  # values that look like it come before the metadata
    found = data[at : at + len(_ZEROS)]
    if at < len(_MARK) or not _SHA256.fullmatch(found):
        return False
    digest, view = hashlib.sha256(), memoryview(data)
    for piece in (view[:at], _ZEROS, view[at + len(_ZEROS) :]):  # a file may be large: no copy of it
        digest.update(piece)
    if digest.hexdigest().encode() != found:
        raise DatasetError(f"{name}: not the bytes that were written (they do not have their checksum)")
    return True


def read(store: Store, name: str, model: type[R]) -> list[R]:
    """Records in the Parquet file `name` of a data set.

    Raises:
        DatasetError: it is missing, not Parquet, or holds other records; names the file.
    """
    return _records(name, model, from_bytes(store.read(name), name))


def _records(name: str, model: type[R], table: pa.Table) -> list[R]:
    try:
        return from_table(model, table)
    except ValidationError as error:
        raise DatasetError(f"{name}: expected {model.__name__} rows, found {first_invalid(error)}") from None


class Rows(Sequence[R]):
    """Records of a table. Each becomes an object when it is asked for, and is not kept.

    Attributes:
        model: of the records.
        table: one column for each field of the model.
    """

    AT_ONCE = 256
    """Records that are objects at a time while all are gone through."""

    def __init__(self, model: type[R], table: pa.Table, name: str = "table") -> None:
        """Rows of a table.

        Args:
            model: of the records.
            table: with the columns of `arrow_schema(model)`.
            name: what messages call it.
        """
        self.model, self.table, self._name = model, table, name

    @classmethod
    def of(cls, model: type[R], records: Iterable[R]) -> Rows[R]:
        """The records as rows; what is rows already stays as it is."""
        if isinstance(records, cls):
            return records
        made = (to_table(model, batch) for batch in batches(records, cls.AT_ONCE))
        return cls(model, _put_together([arrow_schema(model).empty_table(), *made]))

    @classmethod
    def joined(cls, pieces: Sequence[Rows[R]]) -> Rows[R]:
        """The rows of all pieces, of which there is one at least."""
        first = pieces[0]
        return cls(first.model, pa.concat_tables([piece.table for piece in pieces]), first._name)

    def column(self, path: str) -> pa.ChunkedArray:
        """A column, or by `video.sha256` a field of a record; null where the record is."""
        first, *inner = path.split(".")
        found = self.table.column(first)
        for name in inner:
            found = pc.struct_field(found, name)
        return found

    def where(self, mask: Any) -> Self:
        """Those rows of which a bool [n] says so; the same where it says so of all."""
        if np.all(mask):
            return self
        return type(self)(self.model, self.table.filter(_bits(mask)), self._name)

    def take(self, numbers: Any) -> Self:
        """The rows with these numbers, int [n]."""
        return type(self)(self.model, self.table.take(pa.array(numbers, pa.int64())), self._name)

    def replaced(self, numbers: Any, records: Iterable[R]) -> Rows[R]:
        """The rows with other records in the place of those with these numbers, int [k]."""
        others = Rows.of(self.model, records)
        if not len(others):
            return self
        index = np.arange(len(self))
        index[numbers] = len(self) + np.arange(len(others))
        return (self + others).take(index)

    def __add__(self, other: Rows[R]) -> Rows[R]:
        return self.joined((self, other))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, number: int) -> R: ...
    @overload
    def __getitem__(self, number: slice) -> Rows[R]: ...
    def __getitem__(self, number: int | slice) -> R | Rows[R]:
        if isinstance(number, slice):
            start, stop, step = number.indices(len(self))
            if step != 1:
                raise ValueError(f"expected a step of 1, found {step}")
            return type(self)(self.model, self.table.slice(start, max(0, stop - start)), self._name)
        at = range(len(self))[number]
        return _records(self._name, self.model, self.table.slice(at, 1))[0]

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), self.AT_ONCE):
            yield from _records(self._name, self.model, self.table.slice(start, self.AT_ONCE))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _put_together(pieces: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(pieces).combine_chunks()


def batches(records: Iterable[R], size: int) -> Iterator[list[R]]:
    """The records as lists of so many; the last one may be shorter."""
    records = iter(records)
    while batch := list(itertools.islice(records, size)):
        yield batch


def _bits(mask: Any) -> pa.Array:
    """Bools as an Arrow array; `pa.array` would import pandas."""
    bits = np.packbits(np.asarray(mask, bool), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, pa.py_buffer(bits)])


class Lookup(Generic[R]):
    """Records of a large table by clip id, of which only those that are asked for become objects."""

    def __init__(self, store: Store, names: Sequence[str], model: type[R]) -> None:
        """Read the table.

        Args:
            store: the data set.
            names: Parquet files; of several rows of a clip the last one counts.
            model: of the rows.

        Raises:
            DatasetError: a file is not readable; names it.
        """
        self._tables = [Rows(model, from_bytes(store.read(name), name), name) for name in names]
        self._at: dict[str, tuple[int, int]] = {}
        for number, (name, rows) in enumerate(zip(names, self._tables, strict=True)):
            if "clip_id" not in rows.table.column_names:
                raise DatasetError(f"{name}: expected a column 'clip_id', found none")
            self._at |= {key: (number, row) for row, key in enumerate(rows.column("clip_id").to_pylist())}

    def of(self, keys: Iterable[str]) -> dict[str, R]:
        """The records of some clips, by id; of those that have one.

        Raises:
            DatasetError: the rows are of another model; names the file.
        """
        found = sorted((self._at[key], key) for key in keys if key in self._at)
        records: dict[str, R] = {}
        for number, rows in enumerate(self._tables):
            here = [(row, key) for (of_table, row), key in found if of_table == number]
            records |= zip((key for _, key in here), rows.take([row for row, _ in here]), strict=True)
        return records


def rows(store: Store, name: str, model: type[R]) -> Rows[R]:
    """The records in the Parquet file `name` of a data set, of which none is an object yet.

    Raises:
        DatasetError: it is missing, not Parquet, or has other columns; names the file.
    """
    table, schema = from_bytes(store.read(name), name), arrow_schema(model)
    if not table.schema.equals(schema):  # of an earlier version, whose columns only records can read
        parts = (table.slice(start, Rows.AT_ONCE) for start in range(0, len(table), Rows.AT_ONCE))
        read = (to_table(model, _records(name, model, part)) for part in parts)
        return Rows(model, _put_together([schema.empty_table(), *read]), name)
    return Rows(model, table, name)


def write(store: Store, name: str, model: type[R], records: Iterable[R]) -> str:
    """Write records as the Parquet file `name` of a data set; the sha256 (hex) of its bytes."""
    return store.write(name, to_bytes(Rows.of(model, records).table.combine_chunks()))
