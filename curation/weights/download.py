"""Download of one file over HTTP: resumed after a broken connection, limited in size, with progress.

Beside an unfinished file lies a note with the server's version of it (ETag or Last-Modified). A later
download continues it if the server still has that version and can send the rest. Otherwise it starts over.
The caller checks whether the content is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from talkforge.schemas.errors import one_line

TRIES = 4
"""Attempts before an address is given up. The pause between them doubles, beginning with `PAUSE_S`."""

PAUSE_S = 1.0
"""Pause after the first attempt, seconds."""

SILENCE_S = 30.0
"""Longest wait for the next bytes, seconds."""

_CHUNK_BYTES = 1 << 16

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status codes that are worth another attempt. Source: RFC 9110, section 15; RFC 6585 (429)."""


@dataclass(frozen=True)
class FetchProgress:
    """How far fetching a file is.

    Attributes:
        what: name of what is fetched, for the display.
        done_bytes: bytes so far.
        total_bytes: bytes in all; None if unknown.
    """

    what: str
    done_bytes: int
    total_bytes: int | None


ProgressCallback = Callable[[FetchProgress], None]


def no_progress(_: FetchProgress) -> None:
    """Progress callback that does nothing."""


class BrokenError(Exception):
    """The connection broke. What has arrived is kept, so that a later download continues it."""


class RefusedError(Exception):
    """The server has no such file, or sends another one. What had arrived is removed."""


def download(url: str, part: Path, limit_bytes: int, on_progress: ProgressCallback = no_progress) -> None:
    """Download a URL into a file, continuing what an earlier attempt has left there.

    Args:
        url: address of the file.
        part: file to write.
        limit_bytes: largest size; no more is ever written.
        on_progress: called after each chunk.

    Raises:
        BrokenError: it did not arrive whole in `TRIES` attempts.
        RefusedError: it is not available, or too large.
    """
    for number in range(TRIES):
        try:
            _try(url, part, limit_bytes, on_progress)
        except BrokenError:
            if number + 1 == TRIES:
                raise
            time.sleep(PAUSE_S * 2**number)
        except RefusedError:
            discard(part)
            raise
        else:
            _note(part).unlink(missing_ok=True)
            return


def discard(part: Path) -> None:
    """Remove an unfinished download and its note."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _try(url: str, part: Path, limit_bytes: int, on_progress: ProgressCallback) -> None:
    headers = {"Accept-Encoding": "identity"}  # ranges must count the bytes of the file
    here_bytes = part.stat().st_size if part.is_file() and _note(part).is_file() else 0
    if here_bytes:
        headers |= {"Range": f"bytes={here_bytes}-", "If-Range": _note(part).read_text(encoding="utf-8")}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=SILENCE_S) as answer:
            if (
                here_bytes and answer.status_code == 416
            ):  # the range does not exist: the file is another one now
                discard(part)
                raise BrokenError("the file changed on the server")
            _check(answer)
            goes_on = answer.status_code == 206
            if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {here_bytes}-"):
                discard(part)
                raise BrokenError("the server sent another range than the requested one")
            _receive(answer, part, here_bytes if goes_on else 0, limit_bytes, on_progress)
    except requests.Timeout:
        raise BrokenError(f"no answer in {SILENCE_S:g} s") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        if _is_unresolved(error):
            raise RefusedError("this machine cannot find the server; is it offline?") from None
        here = f" after {part.stat().st_size} bytes" if part.is_file() else ""
        raise BrokenError(f"the connection broke{here}") from None
    except requests.RequestException as error:
        raise RefusedError(one_line(error)) from None


def _check(answer: requests.Response) -> None:
    if answer.status_code in _BUSY:
        raise BrokenError(f"the server answers {answer.status_code} {answer.reason}")
    if answer.status_code not in (200, 206):
        raise RefusedError(f"the server answers {answer.status_code} {answer.reason}")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise RefusedError("expected a file of weights, found an HTML page")


def _receive(
    answer: requests.Response, part: Path, here_bytes: int, limit_bytes: int, on_progress: ProgressCallback
) -> None:
    """Append the body to the `here_bytes` that are there already."""
    length = answer.headers.get("Content-Length", "")
    total_bytes = here_bytes + int(length) if length.isdecimal() else None
    if total_bytes is not None and total_bytes > limit_bytes:
        raise RefusedError(f"expected at most {limit_bytes} bytes, found {total_bytes}")
    version = answer.headers.get("ETag", "")
    if version.startswith("W/") or not version:  # a weak tag does not identify the bytes
        version = answer.headers.get("Last-Modified", "")
    if version:
        _note(part).write_text(version, encoding="utf-8")
    else:
        _note(part).unlink(missing_ok=True)
    with part.open("ab" if here_bytes else "wb") as file:
        for chunk in answer.iter_content(_CHUNK_BYTES):
            here_bytes += len(chunk)
            if here_bytes > limit_bytes:
                raise RefusedError(f"expected at most {limit_bytes} bytes, found more")
            file.write(chunk)
            on_progress(FetchProgress(answer.url.partition("?")[0], here_bytes, total_bytes))
        file.flush()


def _is_unresolved(error: BaseException | None) -> bool:
    """Whether a connection failed because the host's name cannot be resolved; another attempt is useless."""
    text = str(error)
    return "NameResolutionError" in text or "Name or service not known" in text
