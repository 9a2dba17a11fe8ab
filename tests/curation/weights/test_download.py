"""Downloads from a server that breaks off, sends other things, or does not know of ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkforge.curation.weights import download
from talkforge.curation.weights.download import BrokenError, FetchProgress, RefusedError
from tests.curation.web_server import Server

CONTENT = bytes(range(251)) * 2000
"""More than the seven chunks that it comes in."""


def fetch(server: Server, part: Path, limit_bytes: int = len(CONTENT)) -> list[FetchProgress]:
    steps: list[FetchProgress] = []
    server.files.setdefault("/w", CONTENT)
    download.download(server.url("/w"), part, limit_bytes, steps.append)
    return steps


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / ".w.part"


def names(part: Path) -> list[str]:
    return [path.name for path in part.parent.iterdir()]


def test_progress_is_told_to_the_last_byte(server: Server, part: Path) -> None:
    steps = fetch(server, part)
    assert part.read_bytes() == CONTENT
    assert names(part) == [".w.part"]
    done = [step.done_bytes for step in steps]
    assert done == sorted(done) and len(done) > 5
    assert steps[-1] == FetchProgress(server.url("/w"), len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("ranges", "tag"), [(True, '"one"'), (False, '"one"'), (True, ""), (True, 'W/"one"')]
)
def test_a_broken_line_goes_on_where_the_server_can_and_starts_over_where_not(
    server: Server, part: Path, ranges: bool, tag: str
) -> None:
    server.ranges, server.tag, server.breaks = ranges, tag, [200_000]
    fetch(server, part)
    assert part.read_bytes() == CONTENT
    first, second = server.requests
    assert first == ""
    assert bool(second) == (tag == '"one"')
    if second:
        assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 200_000


def test_a_file_that_changed_on_the_server_starts_over(server: Server, part: Path) -> None:
    server.breaks = [200_000, 0, 0, 0]
    with pytest.raises(BrokenError, match="the connection broke after"):
        fetch(server, part)
    server.tag, server.files["/w"] = '"two"', CONTENT[::-1]
    fetch(server, part)
    assert part.read_bytes() == CONTENT[::-1]


def test_a_rest_that_is_not_there_starts_over(server: Server, part: Path) -> None:
    part.write_bytes(CONTENT + b"longer")
    part.with_name(".w.part.version").write_text('"one"')
    fetch(server, part)
    assert part.read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT) + 6}-", ""]


def test_what_nobody_vouches_for_is_not_gone_on_from(server: Server, part: Path) -> None:
    part.write_bytes(b"of a process that was killed before the server said a version")
    fetch(server, part)
    assert part.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_another_answer_is_final(server: Server, part: Path) -> None:
    server.answers = [503, 429]
    fetch(server, part)
    assert len(server.requests) == 3
    server.answers = [403]
    with pytest.raises(RefusedError, match="the server answers 403 Forbidden"):
        fetch(server, part)
    assert len(server.requests) == 4
    server.answers = [500] * download.TRIES
    with pytest.raises(BrokenError, match="the server answers 500"):
        fetch(server, part)


@pytest.mark.parametrize("length", [True, False])
def test_more_than_it_should_is_never_written(server: Server, part: Path, length: bool) -> None:
    server.length = length
    with pytest.raises(RefusedError, match="expected at most 100000 bytes, found"):
        fetch(server, part, 100_000)
    assert names(part) == []


def test_a_page_is_no_file_of_weights(server: Server, part: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(RefusedError, match="expected a file of weights, found an HTML page"):
        fetch(server, part)
    assert names(part) == []


def test_a_machine_without_a_network_is_told_at_once(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("it was tried again"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RefusedError, match="this machine cannot find the server; is it offline"):
        download.download("https://weights.invalid/w", part, 10)
