"""Records as Parquet tables: the Arrow schema follows from the record's fields and their descriptions."""

from __future__ import annotations

import functools
import io
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from talkforge.pipeline.store import Store
from talkforge.schemas.columns import columns
from talkforge.schemas.errors import DatasetError, first_invalid
from talkforge.schemas.records import Record

R = TypeVar("R", bound=Record)

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
        return pa.list_(arrow_type(arguments[0]))
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
    """Parquet file of a table; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_bytes(data: bytes, name: str) -> pa.Table:
    """Table of a Parquet file.

    Raises:
        DatasetError: the bytes are not Parquet, or a page does not have its checksum; names the file.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        return file.read()  # pq.read_table would import pandas
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{name}: not a readable Parquet file ({error})") from None


def read(store: Store, name: str, model: type[R]) -> list[R]:
    """Records in the Parquet file `name` of a data set.

    Raises:
        DatasetError: it is missing, not Parquet, or holds other records; names the file.
    """
    table = from_bytes(store.read(name), name)
    try:
        return from_table(model, table)
    except ValidationError as error:
        raise DatasetError(f"{name}: expected {model.__name__} rows, found {first_invalid(error)}") from None


def write(store: Store, name: str, model: type[R], records: Iterable[R]) -> str:
    """Write records as the Parquet file `name` of a data set; the sha256 (hex) of its bytes."""
    return store.write(name, to_bytes(to_table(model, records)))
