"""Ingest: find the inputs, hash and probe each; every input becomes one row, planned, duplicate or failed.

Input files are the user's: nothing here opens one for writing.
"""

from __future__ import annotations

import csv
import glob
import io
import mimetypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
import pyarrow.parquet as pq
from pydantic import model_validator

from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline.store import local_copy
from talkforge.schemas.errors import CommandError, MediaError, RunError, one_line
from talkforge.schemas.records import Failure, Input, Record, Video

EXTRA_SUFFIXES = frozenset(
    {".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".mov", ".avi", ".flv", ".wmv", ".m4v"}
    | {".mxf", ".ogv", ".3gp", ".vob", ".mp4"}
)
"""Video files that `mimetypes` may not know; folders are searched for these and for video/*."""

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet"})

LIST_COLUMNS = frozenset({"uri", "source", "licence", "consent"})


class IngestRow(Record):
    """One input after it was hashed and probed: a row of `intake.parquet`."""

    input: Input
    stamp: str
    """Size and time of change of the file; where it differs, the file is hashed again."""
    status: Literal["planned", "duplicate", "failed"]
    video: Video | None = None
    failure: Failure | None = None
    first_uri: str = ""
    """Input of the same content that is measured in a duplicate's place; empty for other rows."""

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, row: Any) -> Any:
        """Accept rows of data sets made before `input` was called so: there it is `source`."""
        if isinstance(row, dict) and "source" in row:
            row = {"input" if key == "source" else key: value for key, value in row.items()}
        return row


def find_inputs(inputs: Iterable[str], limit: int | None = None) -> list[Input]:
    """Inputs named by files, folders, globs, lists and URIs; each once, sorted by name.

    Raises:
        CommandError: an input does not exist, a list cannot be read, or nothing is found.
    """
    inputs = list(inputs)
    found: dict[str, Input] = {}
    for text in inputs:
        for given in _expand(text):
            found.setdefault(given.uri, given)
    if not found:
        raise CommandError(f"no videos in {', '.join(map(repr, inputs))}")
    return [found[uri] for uri in sorted(found)][:limit]


def _expand(text: str) -> Iterator[Input]:
    if "://" in text:
        yield from _expand_uri(text)
        return
    path = Path(text)
    if path.is_dir():
        names = sorted(_below(path))
        if not names:
            raise CommandError(f"no videos in folder {text!r}")
        yield from (Input(uri=_absolute(name)) for name in names)
    elif path.suffix.lower() in LIST_SUFFIXES and path.exists():
        yield from read_list(path)
    elif path.exists() or path.is_symlink():
        yield Input(uri=_absolute(path))
    elif glob.has_magic(text):
        names = [name for name in sorted(glob.glob(text, recursive=True)) if not Path(name).is_dir()]  # noqa: PTH207
        if not names:
            raise CommandError(f"nothing matches {text!r}")
        yield from (Input(uri=_absolute(name)) for name in names)
    else:
        raise CommandError(f"no such file, folder or list: {text!r}")


def _below(folder: Path) -> Iterator[str]:
    """Videos below a folder, and folders that cannot be read: they become rows that say so.

    Links to folders are followed; a folder that is reached twice is entered once.
    """
    unreadable: list[str] = []
    entered: set[str] = set()
    for root, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: unreadable.append(str(error.filename))
    ):
        here = os.path.realpath(root)
        if here in entered:
            folders.clear()
            continue
        entered.add(here)
        folders.sort()
        yield from (os.path.join(root, name) for name in files if is_video_name(name))  # noqa: PTH118
    yield from unreadable


def _absolute(path: str | Path) -> str:
    """A name that means the same to a worker in another folder; links are left as they are."""
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links)


def _expand_uri(text: str) -> Iterator[Input]:
    try:
        filesystem, path = fsspec.url_to_fs(text)
        if glob.has_magic(text):
            names = filesystem.glob(path)
        elif filesystem.isdir(path):
            names = [name for name in filesystem.find(path) if is_video_name(name)]
        else:
            names = [path] if filesystem.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(f"{text}: {error}") from None
    if not names:
        raise CommandError(f"no videos at {text!r}")
    yield from (Input(uri=filesystem.unstrip_protocol(name)) for name in sorted(names))


def is_video_name(name: str) -> bool:
    """Whether a file's name promises a video."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("video/") or Path(name).suffix.lower() in EXTRA_SUFFIXES


def read_list(path: Path) -> list[Input]:
    """Inputs of a list: Parquet, CSV or TSV with a `uri` column, or text with one name a line.

    Names that are not absolute are relative to the list's folder.

    Raises:
        CommandError: the list cannot be read, has no `uri` column or an unknown one, or is empty.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            rows = _text_rows(path.read_text(encoding="utf-8"), path.suffix.lower())
    except (OSError, ValueError, csv.Error) as error:
        raise CommandError(f"list {path}: {one_line(error)}") from None
    if not rows:
        raise CommandError(f"list {path}: names no videos")
    unknown = sorted(set(rows[0]) - LIST_COLUMNS, key=str)
    if "uri" not in rows[0] or unknown:
        raise CommandError(
            f"list {path}: expected the columns uri and, if you like, source, licence, consent; "
            f"found {', '.join(map(str, rows[0]))}"
        )
    return [_input_of(row, path) for row in rows]


def _text_rows(text: str, suffix: str) -> list[dict[str, str]]:
    if suffix == ".txt":
        return [{"uri": line.strip()} for line in text.splitlines() if line.strip()]
    return list(csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ","))


def _input_of(row: dict[str, str | None], path: Path) -> Input:
    wrong = [value for value in row.values() if not isinstance(value, str | None)]
    if wrong:
        raise CommandError(f"list {path}: expected texts, found {wrong[0]!r}")
    uri = row.get("uri") or ""
    if not uri:
        raise CommandError(f"list {path}: a row has no uri")
    if "://" not in uri:
        uri = _absolute(path.parent / uri)
    return Input(
        uri=uri,
        source=row.get("source") or "",
        licence=row.get("licence") or "",
        consent=row.get("consent") or "",
    )


def stamp_of(uri: str) -> str:
    """Cheap mark of a file's state: size and time of change; empty where it cannot be had."""
    if "://" not in uri:
        try:
            facts = Path(uri).stat()
        except (OSError, ValueError):
            return ""
        return f"{facts.st_size}-{facts.st_mtime_ns}"
    try:
        filesystem, path = fsspec.url_to_fs(uri)
        info = filesystem.info(path)
    except (OSError, ValueError, ImportError):
        return ""
    return "-".join(str(info.get(key, "")) for key in ("size", "ETag", "etag", "mtime", "updated"))


def ingest(given: Input) -> IngestRow:
    """Hash and probe one input; an unreadable one is a failed row.

    Raises:
        RunError: there is no room for a copy of a remote one.
    """
    if not _is_utf8(given.uri):
        name = given.uri.encode("utf-8", "backslashreplace").decode()
        error = MediaError("the name is not UTF-8 and cannot be recorded; rename the file")
        return failed(given.model_copy(update={"uri": name}), "", "probe", error)
    stamp = stamp_of(given.uri)
    try:
        with local_copy(given.uri) as path:
            video = probe(path, given, content_hash(path))
    except RunError:
        raise
    except Exception as error:  # whatever a damaged file makes a library raise
        return failed(given, stamp, "probe", error)
    return IngestRow(input=given, stamp=stamp, status="planned", video=video)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def failed(given: Input, stamp: str, stage: str, error: BaseException) -> IngestRow:
    """Row of an input that cannot be used, with the reason in one line."""
    failure = Failure(
        stage=stage,
        key=given.uri,
        video_id="",
        uri=given.uri,
        error="MediaError" if isinstance(error, MediaError) else type(error).__name__,
        message=one_line(error),
    )
    return IngestRow(input=given, stamp=stamp, status="failed", failure=failure)


def mark_duplicates(rows: Iterable[IngestRow], known: Iterable[IngestRow] = ()) -> list[IngestRow]:
    """Of several inputs with the same bytes the first by name is measured, the rest point to it.

    `known` rows of an earlier run come before all new ones.
    """
    first: dict[str, str] = {
        row.video.sha256: row.input.uri for row in known if row.video and row.status == "planned"
    }
    marked = []
    for row in sorted(rows, key=lambda row: row.input.uri):
        if row.video is not None:
            uri = first.setdefault(row.video.sha256, row.input.uri)
            first_uri = "" if uri == row.input.uri else uri
            status = "duplicate" if first_uri else "planned"
            row = row.model_copy(update={"status": status, "first_uri": first_uri})
        marked.append(row)
    return marked
