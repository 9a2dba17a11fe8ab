"""Files from the web, in pieces where the line breaks: resumed, limited, and told as they come.

What has arrived lies beside a note of the server's own version of the file (its ETag or date). A
download goes on from there if the server says that it still has that version and can send the
rest; otherwise it starts over. Nothing here decides whether the content is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

TRIES = 4
"""Times an address is tried before it is given up; the pauses between double, from `PAUSE_S`."""

PAUSE_S = 1.0
"""First pause before trying again, seconds."""

SILENCE_S = 30.0
"""Longest silence of a server, seconds."""

_CHUNK_BYTES = 1 << 16

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others a moment later. Source: RFC 9110, section 15; RFC 6585 (429)."""


@dataclass(frozen=True)
class FetchProgress:
    """How far fetching is: `what` for people, bytes so far, bytes in all where that is known."""

    what: str
    done_bytes: int
    total_bytes: int | None


ProgressCallback = Callable[[FetchProgress], None]


def no_progress(_: FetchProgress) -> None:
    """Takes every step without a word."""


class BrokenError(Exception):
    """The line broke; what has arrived is kept, to go on from."""


class RefusedError(Exception):
    """The server has no such file, or sends another one; what has arrived is gone."""


def download(url: str, part: Path, limit_bytes: int, on_progress: ProgressCallback = no_progress) -> None:
    """Bring what `url` holds into the file `part`, going on with what is there of an earlier try.

    Args:
        limit_bytes: more than this is never written.

    Raises:
        BrokenError: not all of it came in `TRIES` tries. RefusedError: it is not to be had, or too large.
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
    """Remove what has arrived."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _try(url: str, part: Path, limit_bytes: int, on_progress: ProgressCallback) -> None:
    headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes would be of no use
    here_bytes = part.stat().st_size if part.is_file() and _note(part).is_file() else 0
    if here_bytes:
        headers |= {"Range": f"bytes={here_bytes}-", "If-Range": _note(part).read_text(encoding="utf-8")}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=SILENCE_S) as answer:
            if here_bytes and answer.status_code == 416:  # there is no such rest: another file by now
                discard(part)
                raise BrokenError("the file changed on the server")
            _check(answer)
            goes_on = answer.status_code == 206
            if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {here_bytes}-"):
                discard(part)
                raise BrokenError("the server sent another range than was asked for")
            _receive(answer, part, here_bytes if goes_on else 0, limit_bytes, on_progress)
    except requests.Timeout:
        raise BrokenError(f"no answer in {SILENCE_S:g} s") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        if _nobody(error):
            raise RefusedError("this machine cannot find the server; is it offline?") from None
        here = f" after {part.stat().st_size} bytes" if part.is_file() else ""
        raise BrokenError(f"the connection broke{here}") from None
    except requests.RequestException as error:
        raise RefusedError(" ".join(str(error).split())) from None


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
    """Write the body after the first `here_bytes`, which are here already."""
    length = answer.headers.get("Content-Length", "")
    total_bytes = here_bytes + int(length) if length.isdecimal() else None
    if total_bytes is not None and total_bytes > limit_bytes:
        raise RefusedError(f"expected at most {limit_bytes} bytes, found {total_bytes}")
    version = answer.headers.get("ETag", "")
    if version.startswith("W/") or not version:  # a weak tag names no bytes
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


def _nobody(error: BaseException | None) -> bool:
    """Whether a connection failed because its name means nothing here: trying again would not help."""
    text = str(error)
    return "NameResolutionError" in text or "Name or service not known" in text
