"""Lists of inputs: .txt, .csv, .tsv and .parquet files that name videos, with what is known of each."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from talkforge.pipeline.tables import Rows
from talkforge.schemas.errors import CommandError, one_line
from talkforge.schemas.records import Input, ListedColumn


class RowError(ValueError):
    """What is wrong with one row of a list."""


_Row = tuple[int, Mapping[Any, Any] | RowError]
"""Number of a row, and its values or what is wrong with it."""

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet"})

KNOWN_COLUMNS = ("uri", "source", "licence", "consent", "person", "start_s", "end_s", "audio_track")
"""Columns that mean something here. Every other one passes through to ledger and samples."""

ALIASES = {"license": "licence"}

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks and the encodings they stand for; UTF-32's begin as UTF-16's do, and come first."""


def read_list(path: Path, refusal: Callable[[str], str] = lambda _: "") -> Rows[Input]:
    """Inputs of a list: Parquet, CSV or TSV with a `uri` column, or text with one name a line.

    Names that are not absolute are relative to the list's folder. Texts are UTF-8, or UTF-16 with a
    byte-order mark. A row that does not fit is an input that is named after the row and has a `problem`.

    Args:
        path: the list.
        refusal: says why a URI must not be used; empty where it may.

    Raises:
        CommandError: the list cannot be read, has no `uri` column or one twice, is empty, or not one of its
            rows fits.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows: Iterable[_Row] = enumerate(_table_rows(path), 1)
        else:
            rows = _text_rows(_text(path.read_bytes()), path.suffix.lower())
        inputs = Rows.of(Input, (_checked(row, number, path, refusal) for number, row in rows))
    except MemoryError:
        raise
    except Exception as error:  # damaged Parquet makes pyarrow raise almost anything
        raise CommandError(f"list {path}: {one_line(error)}") from None
    if not len(inputs):
        raise CommandError(f"list {path}: names no videos")
    if all(inputs.column("problem").to_pylist()):
        number = inputs[0].uri.rpartition(": ")[2]
        others = f" (and {len(inputs) - 1} more rows, none can be used)" if len(inputs) > 1 else ""
        raise CommandError(f"list {path}: {number}: {inputs[0].problem}{others}")
    return inputs


def _table_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(Rows.AT_ONCE):
            yield from batch.to_pylist()


def _text(data: bytes) -> str:
    """The text; bytes that are not UTF-8 become surrogates, and cost the row that they are in."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8-sig", "surrogateescape")


def _checked(
    row: Mapping[Any, Any] | RowError, number: int, path: Path, refusal: Callable[[str], str]
) -> Input:
    """The input of a row, or one that says what is wrong with the row."""
    try:
        if isinstance(row, RowError):
            raise row
        given = _input_of(_named(row), path.parent)
        if problem := refusal(given.uri) if "://" in given.uri else "":
            raise RowError(problem)
        return given
    except RowError as error:
        return Input(uri=f"{os.path.abspath(path)}: row {number}", problem=one_line(error))  # noqa: PTH100


def _text_rows(text: str, suffix: str) -> Iterator[_Row]:
    """Line number and values of every row."""
    if suffix == ".txt":
        yield from ((n, {"uri": line.strip()}) for n, line in enumerate(text.splitlines(), 1) if line.strip())
        return
    head = text.partition("\n")[0]
    semicolons = ";" in head and "," not in head  # what spreadsheets write where the comma is decimal
    delimiter = "\t" if suffix == ".tsv" else ";" if semicolons else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = next(reader, [])
    if len({*names}) < len(names):
        raise ValueError(f"expected every column once, found {', '.join(names)}")
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # nobody knows which rows the quote swallows
                raise ValueError(f"row {begin}: a quote is not closed before the end of the list") from None
            yield reader.line_num, RowError(one_line(error))
            continue
        if values is None:
            return
        if len(values) not in (0, len(names)):
            yield reader.line_num, RowError(f"expected {len(names)} values, found {len(values)}")
        elif values:
            yield reader.line_num, dict(zip(names, values, strict=True))


def _named(row: Mapping[Any, Any]) -> dict[str, str]:
    """Values as texts under the names that are known here, in any case; empty ones are left out."""
    named: dict[str, str] = {}
    for key, value in row.items():
        name = str(key).strip()
        known = ALIASES.get(name.lower(), name.lower())
        name = known if known in KNOWN_COLUMNS else name
        text = "" if value is None else str(value).strip() if name in KNOWN_COLUMNS else str(value)
        if named.get(name) and text and named[name] != text:
            raise RowError(f"column {name} is there twice, with {named[name]!r} and {text!r}")
        named[name] = named.get(name) or text
    if "uri" not in named:
        raise ValueError(f"expected a column uri; found {', '.join(map(str, row))}")
    return named


def _input_of(row: dict[str, str], folder: Path) -> Input:
    uri = row["uri"]
    if not uri:
        raise RowError("has no uri")
    for name, value in row.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(value).decode("utf-8", "backslashreplace")
            raise RowError(f"{name}: expected UTF-8, found {shown!r}") from None
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise RowError(f"expected end_s after start_s, found {start_s or 0:g} and {end_s:g}")
    return Input(
        uri=uri if "://" in uri else os.path.abspath(folder / uri),  # noqa: PTH100 (resolve follows links)
        source=row.get("source", ""),
        licence=row.get("licence", ""),
        consent=row.get("consent", ""),
        person=row.get("person", ""),
        start_s=start_s,
        end_s=end_s,
        audio_track=_track(row),
        columns=tuple(
            ListedColumn(name=name, value=value) for name, value in row.items() if name not in KNOWN_COLUMNS
        ),
    )


def _track(row: dict[str, str]) -> int | None:
    text = row.get("audio_track", "")
    if text and not (text.isdecimal() and len(text) < 6):
        raise RowError(f"audio_track: expected a number from 0, found {text!r}")
    return int(text) if text else None


def _seconds(row: dict[str, str], name: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise RowError(f"{name}: expected seconds, found {text!r}")
    return value
