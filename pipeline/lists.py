"""Lists of inputs: .txt, .csv, .tsv and .parquet files that name videos, with what is known of each."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from talkforge.schemas.errors import CommandError, one_line
from talkforge.schemas.records import Input, ListedColumn

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


def read_list(path: Path) -> list[Input]:
    """Inputs of a list: Parquet, CSV or TSV with a `uri` column, or text with one name a line.

    Names that are not absolute are relative to the list's folder. Texts are UTF-8, or UTF-16 with a
    byte-order mark.

    Raises:
        CommandError: the list cannot be read, has no `uri` column or one twice, a row does not fit, or it is
            empty.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows = [(number, row) for number, row in enumerate(pq.read_table(path).to_pylist(), 1)]
        else:
            rows = list(_text_rows(_text(path.read_bytes()), path.suffix.lower()))
        inputs = [_input_of(_named(row), f"row {number}", path.parent) for number, row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise CommandError(f"list {path}: {one_line(error)}") from None
    if not inputs:
        raise CommandError(f"list {path}: names no videos")
    return inputs


def _text(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8-sig")


def _text_rows(text: str, suffix: str) -> Iterator[tuple[int, dict[str, str]]]:
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
    for values in reader:
        if not values:
            continue
        if len(values) != len(names):
            raise ValueError(f"row {reader.line_num}: expected {len(names)} values, found {len(values)}")
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
            raise ValueError(f"column {name} is there twice, with {named[name]!r} and {text!r}")
        named[name] = named.get(name) or text
    if "uri" not in named:
        raise ValueError(f"expected a column uri; found {', '.join(map(str, row))}")
    return named


def _input_of(row: dict[str, str], where: str, folder: Path) -> Input:
    uri = row["uri"]
    if not uri:
        raise ValueError(f"{where}: has no uri")
    start_s, end_s = _seconds(row, "start_s", where), _seconds(row, "end_s", where)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ValueError(f"{where}: expected end_s after start_s, found {start_s or 0:g} and {end_s:g}")
    return Input(
        uri=uri if "://" in uri else os.path.abspath(folder / uri),  # noqa: PTH100 (resolve follows links)
        source=row.get("source", ""),
        licence=row.get("licence", ""),
        consent=row.get("consent", ""),
        person=row.get("person", ""),
        start_s=start_s,
        end_s=end_s,
        audio_track=_track(row, where),
        columns=tuple(
            ListedColumn(name=name, value=value) for name, value in row.items() if name not in KNOWN_COLUMNS
        ),
    )


def _track(row: dict[str, str], where: str) -> int | None:
    text = row.get("audio_track", "")
    if text and not text.isdecimal():
        raise ValueError(f"{where}: audio_track: expected a number from 0, found {text!r}")
    return int(text) if text else None


def _seconds(row: dict[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{where}: {name}: expected seconds, found {text!r}")
    return value
