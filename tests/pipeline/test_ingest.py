"""Every input is one row, whatever it is; a bad command is one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline.ingest import IngestRow, find_inputs, ingest, mark_duplicates, stamp_of
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import Input
from tests.records import video


def names(inputs: list[str], limit: int | None = None) -> list[str]:
    return [Path(source.uri).name for source in find_inputs(inputs, limit)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in (
        "b.mp4",
        "a.MKV",
        "notes.md",
        "deep/er/c.mpg",
        "with space.webm",
        "new\nline.mov",
        "ü.v2.avi",
    ):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_gives_its_videos_recursively_and_nothing_else(folder: Path) -> None:
    assert sorted(names([str(folder)])) == sorted(
        ["b.mp4", "a.MKV", "c.mpg", "with space.webm", "new\nline.mov", "ü.v2.avi"]
    )


def test_inputs_are_named_once_and_sorted_and_limited(folder: Path) -> None:
    twice = [str(folder / "b.mp4"), str(folder / "*.mp4"), str(folder)]
    uris = [source.uri for source in find_inputs(twice)]
    assert uris == sorted(set(uris))
    assert len(uris) == 6
    assert names(twice, limit=2) == [Path(uri).name for uri in uris[:2]]


def test_a_relative_name_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [source.uri for source in find_inputs(["b.mp4"])] == [str(folder / "b.mp4")]


def test_a_named_file_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert names([str(folder / "notes.md")]) == ["notes.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "no such file, folder or list"),
        ("deep/*.mp4", "nothing matches"),
        ("empty", "no videos in folder"),
        ("s3-like://nowhere/x.mp4", "s3-like"),
    ],
)
def test_what_cannot_be_found_is_a_bad_command(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(CommandError, match=message):
        find_inputs([name if "://" in name else str(folder / name)])


def test_a_text_list_is_relative_to_its_folder(folder: Path) -> None:
    (folder / "list.txt").write_text("b.mp4\n\ndeep/er/c.mpg\n")
    assert [source.uri for source in find_inputs([str(folder / "list.txt")])] == [
        str(folder / "b.mp4"),
        str(folder / "deep/er/c.mpg"),
    ]


def test_lists_carry_source_licence_and_consent(folder: Path) -> None:
    expected = Input(uri=str(folder / "b.mp4"), source="news", licence="CC BY 4.0", consent="signed")
    (folder / "list.csv").write_text("uri,source,licence,consent\nb.mp4,news,CC BY 4.0,signed\n")
    row = {"uri": "b.mp4", "source": "news", "licence": "CC BY 4.0", "consent": "signed"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "list.parquet")
    assert find_inputs([str(folder / "list.csv")]) == [expected]
    assert find_inputs([str(folder / "list.parquet")]) == [expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "path\nb.mp4\n", "expected the columns uri and, if you like"),
        ("b.csv", "uri,colour\nb.mp4,red\n", "found uri, colour"),
        ("c.csv", "uri,licence\n,CC0\n", "a row has no uri"),
        ("d.txt", "\n\n", "names no videos"),
        ("e.parquet", "this is no parquet", "list .*e.parquet"),
    ],
)
def test_a_bad_list_is_a_bad_command(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CommandError, match=message):
        find_inputs([str(folder / name)])


def test_uris_are_listed_through_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/intake/a.mp4", b"x")
    memory.pipe_file("/intake/readme.txt", b"x")
    assert [source.uri for source in find_inputs(["memory://intake"])] == ["memory:///intake/a.mp4"]
    with pytest.raises(CommandError, match="no videos at"):
        find_inputs(["memory://intake/none"])


@pytest.mark.parametrize(("content", "part"), [(b"", "empty"), (b"just some text\n" * 50, "")])
def test_an_unreadable_input_is_a_failed_row_in_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    row = ingest(Input(uri=str(path)))
    assert row.status == "failed"
    assert row.failure is not None
    assert (row.failure.stage, row.failure.error, row.failure.uri) == ("probe", "MediaError", str(path))
    assert part in row.failure.message
    assert "\n" not in row.failure.message
    assert path.read_bytes() == content


def test_a_dangling_link_and_a_folder_are_failed_rows(tmp_path: Path) -> None:
    link = tmp_path / "gone.mp4"
    link.symlink_to(tmp_path / "nothing.mp4")
    for uri in (str(link), str(tmp_path)):
        row = ingest(Input(uri=uri))
        assert row.status == "failed"
        assert row.failure is not None
        assert row.failure.message


def test_a_name_that_is_not_utf8_is_a_failed_row(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(name).write_bytes(b"x")
    (source,) = find_inputs([str(tmp_path)])
    row = ingest(source)
    assert row.input.uri == str(tmp_path / "caf\\udce9.mp4")
    assert row.failure is not None
    assert row.failure.message == "the name is not UTF-8 and cannot be recorded; rename the file"


def ingested(uri: str, content: int) -> IngestRow:
    return IngestRow(input=Input(uri=uri), stamp="1", status="planned", video=video(content, uri=uri))


def test_of_equal_files_the_first_by_name_is_measured() -> None:
    rows = mark_duplicates([ingested("c", 1), ingested("a", 1), ingested("b", 2)])
    assert [(row.input.uri, row.status, row.first_uri) for row in rows] == [
        ("a", "planned", ""),
        ("b", "planned", ""),
        ("c", "duplicate", "a"),
    ]


def test_a_file_measured_before_stays_the_first() -> None:
    (row,) = mark_duplicates([ingested("a", 1)], known=[ingested("z", 1)])
    assert (row.status, row.first_uri) == ("duplicate", "z")


def test_the_stamp_follows_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"12")
    os.utime(path, ns=(0, 5))
    assert stamp_of(str(path)) == "2-5"
    assert stamp_of(str(tmp_path / "none.mp4")) == ""
