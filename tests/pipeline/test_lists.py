"""Lists of inputs: what their columns mean, which encodings are read, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talkforge.pipeline.lists import read_list
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import Input, ListedColumn

TEXT = "uri,source,License,person,start_s,end_s,Show,take\nü.mp4,news,CC BY 4.0,Ann,1.5,3,Tonight,\n"


def expected(folder: Path) -> Input:
    return Input(
        uri=str(folder / "ü.mp4"),
        source="news",
        licence="CC BY 4.0",
        person="Ann",
        start_s=1.5,
        end_s=3.0,
        columns=(ListedColumn(name="Show", value="Tonight"), ListedColumn(name="take", value="")),
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str, newline: str) -> None:
    for name, text in (
        ("a.csv", TEXT),
        ("a.tsv", TEXT.replace(",", "\t")),
        ("b.csv", TEXT.replace(",", ";")),
    ):
        (tmp_path / name).write_bytes(text.replace("\n", newline).encode(encoding))
        assert read_list(tmp_path / name) == [expected(tmp_path)]
    (tmp_path / "a.txt").write_bytes(f"ü.mp4{newline}{newline}b.mp4{newline}".encode(encoding))
    assert [given.uri for given in read_list(tmp_path / "a.txt")] == [
        str(tmp_path / "ü.mp4"),
        str(tmp_path / "b.mp4"),
    ]


def test_parquet_values_of_other_types_are_texts(tmp_path: Path) -> None:
    row = {"uri": "a.mp4", "start_s": 1, "end_s": 2.5, "licence": None, "take": 3, "good": True, "note": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (given,) = read_list(tmp_path / "a.parquet")
    assert (given.start_s, given.end_s, given.licence) == (1.0, 2.5, "")
    found = {column.name: column.value for column in given.columns}
    assert found == {"take": "3", "good": "True", "note": ""}


def test_one_file_may_come_with_several_spans(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uri,start_s,end_s\na.mp4,0,5\na.mp4,5,\na.mp4,,\ns3://b/c.mp4,,7\n")
    found = [(Path(given.uri).name, given.start_s, given.end_s) for given in read_list(tmp_path / "a.csv")]
    assert found == [("a.mp4", 0.0, 5.0), ("a.mp4", 5.0, None), ("a.mp4", None, None), ("c.mp4", None, 7.0)]


def test_quoted_values_may_hold_what_separates(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('uri,note\n"a, b.mp4","two\nlines; ""quoted"""\n')
    (given,) = read_list(tmp_path / "a.csv")
    assert (given.uri, given.columns[0].value) == (str(tmp_path / "a, b.mp4"), 'two\nlines; "quoted"')


def test_both_spellings_of_licence_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uri,license,licence\na.mp4,CC0,\nb.mp4,,MIT\nc.mp4,CC0,CC0\n")
    assert [given.licence for given in read_list(tmp_path / "a.csv")] == ["CC0", "MIT", "CC0"]


ROWS: dict[str, tuple[bytes, str]] = {
    "no uri": (b",CC0,", "has no uri"),
    "no time": (b"b.mp4,CC0,soon", "start_s: expected seconds, found 'soon'"),
    "values are missing": (b"b.mp4", "expected 3 values, found 1"),
    "a quote in the middle": (b'"b"c.mp4,CC0,1', "',' expected after '\"'"),
    "another encoding": (b"caf\xe9.mp4,CC0,", "uri: expected UTF-8, found 'caf\\\\xe9.mp4'"),
    "another encoding elsewhere": (b"b.mp4,\xa9,", "licence: expected UTF-8, found '\\\\xa9'"),
    "refused": (b"dir:///etc,,", "not that"),
}
"""Rows of a list of three columns, and what is wrong with them."""


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_costs_one_row(tmp_path: Path, name: str) -> None:
    row, problem = ROWS[name]
    (tmp_path / "a.csv").write_bytes(b"uri,licence,start_s\na.mp4,CC0,0\n" + row + b"\nz.mp4,CC0,2\n")
    first, bad, last = read_list(tmp_path / "a.csv", lambda uri: "not that" if uri[:3] == "dir" else "")
    assert (first.uri, first.problem, last.uri) == (str(tmp_path / "a.mp4"), "", str(tmp_path / "z.mp4"))
    assert bad == Input(uri=f"{tmp_path}/a.csv: row 3", problem=problem)


def test_bad_rows_of_parquet_cost_one_row_each(tmp_path: Path) -> None:
    rows = [{"uri": "a.mp4", "start_s": 0.0}, {"uri": None, "start_s": 1.0}, {"uri": "b", "start_s": -1.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_list(tmp_path / "a.parquet")
    assert [given.problem for given in found] == [
        "", "has no uri", "start_s: expected seconds, found '-1.0'",
    ]  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_list_is_rows_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".txt", ".csv", ".tsv", ".parquet"]))
    noise = st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
    lines = st.lists(noise | st.sampled_from([b"a.mp4,1", b'"a', b"s3://b/c,", b"b,2"]), max_size=6)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(
        data.draw(st.sampled_from([b"uri,start_s\n", b"uri\n", b""])) + b"\n".join(data.draw(lines))
    )
    try:
        found = read_list(path)
    except CommandError as error:
        assert str(error).startswith(f"list {path}: ") and "\n" not in str(error)
        return
    assert found
    for one in found:
        one.uri.encode()
        assert "\n" not in one.problem


BAD: dict[str, tuple[str, Any, str]] = {
    "no uri column": ("a.csv", "path\nb.mp4\n", "expected a column uri; found path"),
    "empty uri": ("a.csv", "uri,licence\n,CC0\n", "row 2: has no uri"),
    "no rows": ("a.csv", "uri\n", "names no videos"),
    "empty": ("a.csv", "", "names no videos"),
    "blank text": ("a.txt", "\n\n", "names no videos"),
    "a column twice": ("a.csv", "uri,a,a\nb,1,2\n", "expected every column once, found uri, a, a"),
    "two licences": (
        "a.csv", "uri,license,licence\nb,CC0,MIT\n", "column licence is there twice, with 'CC0' and 'MIT'",
    ),
    "too many values": ("a.csv", "uri,a\nb,1,2\n", "row 2: expected 2 values, found 3"),
    "every row": ("a.csv", "uri,a\nb,1,2\nc\n", "row 2: expected 2 values, found 3 (and 1 more rows, none"),
    "an open quote": ("a.csv", 'uri,a\nb,1\n"c,1\nd,1\n', "row 3: a quote is not closed before the end"),
    "no time": ("a.csv", "uri,start_s\nb,soon\n", "row 2: start_s: expected seconds, found 'soon'"),
    "NaN": ("a.csv", "uri,start_s\nb,nan\n", "row 2: start_s: expected seconds, found 'nan'"),
    "before the start": ("a.csv", "uri,start_s\nb,-1\n", "row 2: start_s: expected seconds, found '-1'"),
    "backwards": (
        "a.csv", "uri,start_s,end_s\nb,3,3\n", "row 2: expected end_s after start_s, found 3 and 3",
    ),
    "another encoding": ("a.csv", b"uri\n\xfc.mp4\n", "row 2: uri: expected UTF-8, found '\\\\xfc.mp4'"),
    "another encoding after a mark": ("a.csv", b"\xff\xfeu\0r\0i\0\n\0x", "codec can't decode byte"),
    "no parquet": ("a.parquet", "this is no parquet", "Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_list_is_a_bad_command_in_one_line(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CommandError) as caught:
        read_list(tmp_path / file)
    assert str(caught.value).startswith(f"list {tmp_path / file}: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)
