"""Every input is one row, whatever it is; a bad command is one clear line."""

from __future__ import annotations

import math
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline.ingest import after, find_inputs, ingest, stamp_of
from talkforge.pipeline.intake import IngestRow, mark_duplicates
from talkforge.schemas.errors import CommandError, FailureKind
from talkforge.schemas.records import Failure, Input
from tests.media_files import Pictures, steady, write_media
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


def test_what_a_folder_search_passes_over_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.srt", "deep/b.SRT", "README"):
        (folder / name).write_bytes(b"x")
    find_inputs([str(folder)])
    told = "passed over what is no video by its name: 2 .srt, 1 .md, 1 without ending"
    assert sorted(caplog.messages[0].rpartition(": ")[2].split(", ")) == [
        "1 .md",
        "1 without ending",
        "2 .srt",
    ]
    assert caplog.messages[0].startswith(f"{folder}: {told.rpartition(': ')[0]}: 2 .srt, ")
    caplog.clear()
    find_inputs([str(folder / "b.mp4"), str(folder / "*.mp4")])
    assert caplog.messages == []


def test_endings_of_video_files_are_known(tmp_path: Path) -> None:
    endings = (
        "asf",
        "f4v",
        "m2t",
        "ogm",
        "mxf",
        "mpg",
        "vob",
        "3gp",
        "mkv",
        "ts",
        "MOV",
        "webm",
        "rmvb",
        "dv",
    )
    for ending in endings:
        (tmp_path / f"a.{ending}").write_bytes(b"x")
    assert sorted(names([str(tmp_path)])) == sorted(f"a.{ending}" for ending in endings)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.mkv"], ["a.MKV", "b.mp4", "c.mpg", "ü.v2.avi"]),
        (["*.MKV", "b.*"], ["c.mpg", "ü.v2.avi"]),
        (["deep"], ["a.MKV", "b.mp4", "ü.v2.avi"]),
        (["deep/*"], ["a.MKV", "b.mp4", "ü.v2.avi"]),
        (["er/*"], ["a.MKV", "b.mp4", "c.mpg", "ü.v2.avi"]),
        (["deep/*/c.mpg"], ["a.MKV", "b.mp4", "ü.v2.avi"]),
    ],
)
def test_excluded_inputs_are_left_out(folder: Path, patterns: list[str], left: list[str]) -> None:
    exclude = [*patterns, "with space.webm", "new*"]
    found = [Path(given.uri).name for given in find_inputs([str(folder)], exclude=exclude)]
    assert sorted(found) == left


def test_a_pattern_is_not_compared_with_folders_above_the_input(folder: Path) -> None:
    assert len(find_inputs([str(folder)], exclude=[folder.name, folder.parent.name])) == 6
    (folder / "list.txt").write_text("b.mp4\ndeep/er/c.mpg\n")
    excluded = find_inputs([str(folder / "list.txt")], exclude=["deep", folder.name])
    assert [Path(given.uri).name for given in excluded] == ["b.mp4"]
    assert names([str(folder / "deep" / "*" / "*.mpg")]) == ["c.mpg"]
    with pytest.raises(CommandError, match=r"^no videos in '.*' \(1 left out by --exclude\)$"):
        find_inputs([str(folder / "deep" / "*" / "*.mpg")], exclude=["er"])


def test_uris_are_excluded_and_passed_over_alike(caplog: pytest.LogCaptureFixture) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("/takes/a.mp4", "/takes/raw/b.mp4", "/takes/notes.md"):
        memory.pipe_file(name, b"x")
    found = find_inputs(["memory://takes"], exclude=["raw"])
    assert [given.uri for given in found] == ["memory:///takes/a.mp4"]
    assert caplog.messages == ["memory://takes: passed over what is no video by its name: 1 .md"]
    found = find_inputs(["memory://takes/*.mp4", "memory://takes/raw/b.mp4"], exclude=["a.*"])
    assert [given.uri for given in found] == ["memory:///takes/raw/b.mp4"]


def test_a_span_beyond_the_end_of_the_file_is_a_failed_row(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(25)))
    row = ingest(Input(uri=str(path), start_s=5.0, end_s=8.0))
    assert row.failure is not None
    assert row.failure.message == f"{str(path)!r}: expected a span within 0..1 s, found 5..8 s"
    row = ingest(Input(uri=str(path), start_s=0.5, end_s=8.0))
    assert row.span is not None
    assert (row.span.start_s, row.span.end_s) == (0.5, 1.0)


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


@pytest.mark.parametrize(
    ("uri", "protocol"),
    [
        ("dir:///etc", "dir"),
        ("http://169.254.169.254/latest", "http"),
        ("zip://a.mp4::memory://b.zip", "zip"),
        ("memory://a::simplecache", "simplecache"),
        ("memory://a::file:///etc/passwd::github://x:y@z", "github"),
        ("x" * 100 + "://a", "x" * 40),
    ],
)
def test_only_the_protocols_of_the_configuration_are_opened(folder: Path, uri: str, protocol: str) -> None:
    told = "expected a protocol of run.protocols (file, s3, s3a, gs, gcs, az, abfs, abfss, hdfs, memory), "
    with pytest.raises(CommandError) as caught:
        find_inputs([uri])
    assert str(caught.value) == f"{uri}: {told}found {protocol!r}"
    (folder / "list.txt").write_text(f"b.mp4\n{uri}\n")
    good, bad = find_inputs([str(folder / "list.txt")])
    assert (good.uri, good.problem) == (str(folder / "b.mp4"), "")
    row = ingest(bad)
    assert row.failure is not None
    assert (row.status, row.failure.stage, row.failure.kind) == ("failed", "list", "video")
    assert (row.failure.uri, row.failure.message) == (
        f"{folder}/list.txt: row 2",
        f"{told}found {protocol!r}",
    )


def test_a_protocol_that_the_user_adds_is_opened(folder: Path) -> None:
    (folder / "list.txt").write_text("http://127.0.0.1:9/a.mp4\n")
    (given,) = find_inputs([str(folder / "list.txt")], protocols=["http"])
    assert (given.uri, given.problem) == ("http://127.0.0.1:9/a.mp4", "")


def test_rows_that_do_not_fit_have_no_place_outside_the_base(folder: Path) -> None:
    for base, name in ((folder, "deep/list.csv: row 2"), (folder / "deep" / "er", "list.csv: row 2")):
        (folder / "deep" / "list.csv").write_text(
            f"uri,start_s\n{folder}/deep/er/c.mpg,soon\n{folder}/deep/er/c.mpg,1\n"
        )
        found = find_inputs([str(folder / "deep" / "list.csv")], base=str(base))
        assert [given.uri for given in found if given.problem] == [name]


@pytest.mark.parametrize("error", [TypeError("no fs"), LookupError("no credentials"), AttributeError("x")])
def test_whatever_a_driver_raises_costs_one_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", fail)
    assert stamp_of("memory://x/a.mp4") == ""
    row = ingest(Input(uri="memory://x/a.mp4"))
    assert row.failure is not None
    assert (row.failure.kind, row.failure.stage) == ("network", "probe")
    assert row.failure.message.startswith("memory://x/a.mp4: cannot be fetched: ")
    with pytest.raises(CommandError, match=r"^memory://x/a\.mp4: "):
        find_inputs(["memory://x/a.mp4"])


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


def test_spans_of_one_file_are_duplicates_only_where_they_overlap() -> None:
    def span(uri: str, start_s: float | None, end_s: float | None) -> IngestRow:
        row = ingested(uri, 1)
        return row.model_copy(
            update={"input": row.input.model_copy(update={"start_s": start_s, "end_s": end_s})}
        )

    rows = [span("a", 0.0, 5.0), span("a", 5.0, 9.0), span("a", 8.0, 12.0), span("b", 20.0, None)]
    rows += [span("b", 30.0, 31.0), span("c", None, None)]
    assert [(row.input.key, row.status, row.first_uri) for row in mark_duplicates(rows)] == [
        (("a", 0.0, 5.0), "planned", ""),
        (("a", 5.0, 9.0), "planned", ""),
        (("a", 8.0, 12.0), "duplicate", "a"),
        (("b", 20.0, math.inf), "planned", ""),
        (("b", 30.0, 31.0), "duplicate", "b"),
        (("c", -math.inf, math.inf), "duplicate", "a"),
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


def failing(kind: FailureKind, stamp: str, attempts: int = 1) -> IngestRow:
    failure = Failure(
        stage="probe", key="a", video_id="", uri="a", error="E", message="m", kind=kind, attempts=attempts
    )
    return IngestRow(input=Input(uri="a"), stamp=stamp, status="failed", failure=failure)


@pytest.mark.parametrize("status", ["planned", "duplicate"])
@pytest.mark.parametrize(
    ("kind", "stamp", "kept"),
    [
        ("network", "1-1", ("planned", "duplicate")),  # infrastructure fails
        ("storage", "", ("planned", "duplicate")),
        ("video", "", ("planned",)),  # the file is gone: nothing was measured of a duplicate
        ("video", "2-2", ()),  # another file, which is no video
    ],
)
def test_what_was_measured_stays_while_its_file_is_out_of_reach(
    kind: FailureKind, stamp: str, kept: tuple[str, ...], status: str
) -> None:
    before = IngestRow.model_validate(
        {"input": Input(uri="a"), "stamp": "1-1", "status": status, "video": video(1)}
    )
    now = failing(kind, stamp)
    assert after(now, before) == (before if status in kept else now)


@pytest.mark.parametrize(
    ("kind", "stamp", "attempts"), [("network", "1-1", 3), ("network", "2-2", 1), ("video", "1-1", 1)]
)
def test_attempts_count_while_infrastructure_fails_on_the_same_file(
    kind: FailureKind, stamp: str, attempts: int
) -> None:
    found = after(failing(kind, stamp), failing("network", "1-1", attempts=2))
    assert found == failing(kind, stamp, attempts)
    assert after(failing(kind, stamp), None) == failing(kind, stamp)
