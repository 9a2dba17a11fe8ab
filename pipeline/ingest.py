"""Ingest: find the inputs, hash and probe each; every input becomes one row, planned, duplicate or failed.

Input files are the user's: nothing here opens one for writing.
"""

from __future__ import annotations

import fnmatch
import glob
import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import fsspec

from talkforge.curation import credentials
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline.intake import IngestRow, each_once
from talkforge.pipeline.lists import LIST_SUFFIXES, read_list
from talkforge.pipeline.store import DEFAULT_LIMITS, FetchLimits, at_base, local_copy, without_base
from talkforge.pipeline.tables import Rows
from talkforge.schemas import extras
from talkforge.schemas.config import Config, ExecutionConfig
from talkforge.schemas.errors import CommandError, MediaError, ModelError, RunError, kind_of, one_line
from talkforge.schemas.records import Failure, Input, Video

log = logging.getLogger(__name__)

EXTRA_SUFFIXES = frozenset(
    {".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".ts", ".mts", ".m2t", ".m2ts", ".tod"}
    | {".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".flv", ".f4v", ".wmv", ".asf", ".wtv", ".rm", ".rmvb"}
    | {".mxf", ".ogv", ".ogm", ".3gp", ".3g2", ".vob", ".mod", ".dv", ".y4m", ".nut", ".amv"}
)
"""Video files that `mimetypes` may not know; folders are searched for these and for video/*."""


def find_inputs(
    inputs: Iterable[str],
    limit: int | None = None,
    exclude: Sequence[str] = (),
    base: str = "",
    tell: Callable[[str], object] = log.warning,
    protocols: Collection[str] = ExecutionConfig().protocols,
) -> Rows[Input]:
    """Inputs named by files, folders, globs, lists and URIs; each once, sorted by name and time.

    Args:
        inputs: files, folders, globs, lists and URIs.
        limit: most inputs that are taken; None takes all.
        exclude: globs; one without `/` is compared with the name of a file and of every folder below the
            input, one with `/` with the whole path below it.
        base: of the `Store`; the inputs' names are made relative to it.
        tell: called with a line for each folder in which files were passed over, because their names do not
            promise a video.
        protocols: that URIs may have. A row of a list with another one is an input with a `problem`.

    Raises:
        CommandError: an input does not exist, is not below the base or has another protocol, a list cannot be
            read, or nothing is found.
        MissingExtraError: a driver for object stores is not installed.
    """
    inputs = list(inputs)
    num_excluded = 0

    def kept() -> Iterator[Input]:
        nonlocal num_excluded
        for text in inputs:
            for given, below in _expand(text, tell, protocols):
                if any(_matches(below, pattern) for pattern in exclude):
                    num_excluded += 1
                else:
                    yield given if _is_utf8(given.uri) else _escaped(given)

    found = each_once(Rows.of(Input, kept()))[:limit]
    if not len(found):
        left_out = f" ({num_excluded} left out by --exclude)" if num_excluded else ""
        raise CommandError(f"no videos in {', '.join(map(repr, inputs))}{left_out}")
    return Rows.of(Input, (_relative(given, base) for given in found)) if base else found


def _escaped(given: Input) -> Input:
    name = given.uri.encode("utf-8", "backslashreplace").decode()
    return given.model_copy(update={"uri": name, "problem": NOT_UTF8})


NOT_UTF8 = "the name is not UTF-8 and cannot be recorded; rename the file"
"""Problem of an input that was found and has such a name."""


def _relative(given: Input, base: str) -> Input:
    if given.problem and not given.uri.startswith(f"{base}/"):  # a list may lie anywhere
        return given.model_copy(update={"uri": Path(given.uri).name})
    if not given.uri.startswith(f"{base}/"):
        raise CommandError(f"{given.uri!r}: expected an input below --base {base}")
    return given.model_copy(update={"uri": given.uri.removeprefix(f"{base}/")})


def _matches(below: str, pattern: str) -> bool:
    if "/" in pattern:
        return fnmatch.fnmatchcase(below, pattern.strip("/"))
    return any(fnmatch.fnmatchcase(name, pattern) for name in below.split("/"))


Found = tuple[Input, str]
"""An input, and its path below the folder that was searched, with `/`."""


def _expand(text: str, tell: Callable[[str], object], protocols: Collection[str]) -> Iterator[Found]:
    if "://" in text:
        if problem := refusal(text, protocols):
            raise CommandError(f"{text}: {problem}")
        yield from _expand_uri(text, tell)
        return
    path = Path(text)
    if path.is_dir():
        is_empty = True
        for name in _below(path, tell):
            is_empty = False
            yield _found(name, path)
        if is_empty:
            raise CommandError(f"no videos in folder {text!r}")
    elif path.suffix.lower() in LIST_SUFFIXES and path.exists():
        folder = _absolute(path.parent).rstrip("/") + "/"
        for given in read_list(path, lambda uri: refusal(uri, protocols)):
            extras.require_driver(given.uri)
            yield given, given.uri.removeprefix(folder)
    elif path.exists() or path.is_symlink():
        yield _found(path, path.parent)
    elif glob.has_magic(text):
        names = [name for name in sorted(glob.glob(text, recursive=True)) if not Path(name).is_dir()]  # noqa: PTH207
        if not names:
            raise CommandError(f"nothing matches {text!r}")
        root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        yield from (_found(name, root) for name in names)
    else:
        raise CommandError(f"no such file, folder or list: {text!r}")


def _found(name: str | Path, root: Path) -> Found:
    return Input(uri=_absolute(name)), os.path.relpath(name, root).replace(os.sep, "/")


def _below(folder: Path, tell: Callable[[str], object]) -> Iterator[str]:
    """Videos below a folder, and folders that cannot be read: they become rows that say so.

    Links to folders are followed; a folder that is reached twice is entered once.
    """
    unreadable: list[str] = []
    entered: set[str] = set()
    others: Counter[str] = Counter()
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
        others.update(map(_ending, (name for name in files if not is_video_name(name))))
    yield from unreadable
    _tell_others(str(folder), others, tell)


def _ending(name: str) -> str:
    return Path(name).suffix.lower() or "without ending"


def _tell_others(folder: str, endings: Counter[str], tell: Callable[[str], object]) -> None:
    """One line on the files of a folder that were passed over, of which there are so many of each ending."""
    if not endings:
        return
    counts = endings.most_common()
    listed = ", ".join(f"{count} {ending}" for ending, count in counts[:8])
    more = f" and {len(counts) - 8} other endings" if len(counts) > 8 else ""
    tell(f"{folder}: passed over what is no video by its name: {listed}{more}")


def _absolute(path: str | Path) -> str:
    """A name that means the same to a worker in another folder; links are left as they are."""
    return os.path.abspath(path)  # noqa: PTH100 (Path.resolve would follow links)


def _expand_uri(text: str, tell: Callable[[str], object]) -> Iterator[Found]:
    extras.require_driver(text)
    root = text
    try:
        filesystem, path = fsspec.url_to_fs(text)
        root = str(path).rstrip("/")
        if glob.has_magic(text):
            names = filesystem.glob(path)
            root = next(str(p) for p in PurePosixPath(root).parents if not glob.has_magic(str(p)))
        elif filesystem.isdir(path):
            names = []
            others: list[str] = []
            for name in filesystem.find(path):
                (names if is_video_name(name) else others).append(name)
            _tell_others(text, Counter(map(_ending, others)), tell)
        else:
            names, root = [path] if filesystem.exists(path) else [], root.rpartition("/")[0]
    except Exception as error:  # cloud libraries raise their own
        raise CommandError(f"{text}: {one_line(error)}") from None
    if not names:
        raise CommandError(f"no videos at {text!r}")
    for name in sorted(names):
        yield Input(uri=filesystem.unstrip_protocol(name)), str(name).removeprefix(root.rstrip("/") + "/")


def refusal(uri: str, protocols: Collection[str]) -> str:
    """Why a URI must not be opened: it, or a link of a chain such as `zip://a.mp4::s3://...`, has a protocol
    that is not allowed. Empty where it may."""
    for link in uri.split("::"):
        protocol = link.partition("://")[0]
        if protocol.lower() not in protocols:
            return f"expected a protocol of run.protocols ({', '.join(protocols)}), found {protocol[:40]!r}"
    return ""


def is_video_name(name: str) -> bool:
    """Whether a file's name promises a video."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("video/") or Path(name).suffix.lower() in EXTRA_SUFFIXES


def stamp_of(uri: str) -> str:
    """Cheap mark of a file's state: size and time of change; empty where it is not known."""
    if "://" not in uri:
        try:
            facts = Path(uri).stat()
        except (OSError, ValueError):
            return ""
        return f"{facts.st_size}-{facts.st_mtime_ns}"
    try:
        filesystem, path = fsspec.url_to_fs(uri)
        info = filesystem.info(path)
    except Exception:  # cloud libraries raise their own
        return ""
    return "-".join(str(info.get(key, "")) for key in ("size", "ETag", "etag", "mtime", "updated"))


def stamps_of(uris: Sequence[str]) -> list[str]:
    """`stamp_of` of each of many files, several at a time: most of it is waiting for a disk or a store."""
    step = max(1, min(256, len(uris) // STAMPED_AT_ONCE))

    def some(start: int) -> list[str]:
        return [stamp_of(uri) for uri in uris[start : start + step]]

    with ThreadPoolExecutor(STAMPED_AT_ONCE) as pool:
        return [mark for marks in pool.map(some, range(0, len(uris), step)) for mark in marks]


STAMPED_AT_ONCE = 16
"""Files whose state is asked for at a time."""


def ingest(given: Input, base: str = "", limits: FetchLimits = DEFAULT_LIMITS) -> IngestRow:
    """Hash and probe one input; an unreadable one is a failed row.

    Args:
        given: the input.
        base: of the `Store`; what the input's name is relative to.
        limits: of the `Store`; bounds of a remote input.

    Raises:
        RunError: there is no room for a copy of a remote one.
        ModelError: the voice activity detector, which chooses the audio track, is missing.
    """
    if given.problem:
        stage = "probe" if given.problem == NOT_UTF8 else "list"
        return failed(given, "", stage, MediaError(given.problem))
    from talkforge.curation.audio.track import choose_audio  # its detector is not needed to read a plan

    uri = at_base(given.uri, base)
    stamp = stamp_of(uri)
    try:
        with local_copy(uri, limits) as path:
            video = choose_audio(path, probe(path, given, content_hash(path)), given.audio_track)
            said = None if extras.missing("c2pa") else credentials.training_mining(path)
        _check_span(given, video)
    except (RunError, ModelError):  # of this machine, not of the video
        raise
    except Exception as error:  # whatever a damaged file makes a library raise
        return failed(given, stamp, "probe", error, base)
    return IngestRow(input=given, stamp=stamp, status="planned", video=video, training_mining=said)


def _check_span(given: Input, video: Video) -> None:
    start_s, end_s = given.span_s
    if start_s >= video.end_s or end_s <= video.start_s:
        raise MediaError(
            f"{given.uri!r}: expected a span within {video.start_s:g}..{video.end_s:g} s, "
            f"found {max(start_s, 0):g}..{end_s:g} s"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def failed(given: Input, stamp: str, stage: str, error: BaseException, base: str = "") -> IngestRow:
    """Row of an input that cannot be used, with the reason in one line."""
    failure = Failure(
        stage=stage,
        key=given.uri,
        video_id="",
        uri=given.uri,
        error="MediaError" if isinstance(error, MediaError) else type(error).__name__,
        message=without_base(one_line(error), base),
        kind=kind_of(error),
    )
    return IngestRow(input=given, stamp=stamp, status="failed", failure=failure)


def is_due(row: IngestRow | None, stamp: str, config: Config) -> bool:
    """Whether an input is to be read: it is new, has changed, infrastructure kept it from being read, or a
    threshold asks for content credentials that were not read.

    Args:
        row: what an earlier run found; None where there was none.
        stamp: state of its file now, see `stamp_of`.
        config: `run.max_attempts` says after how many failures of infrastructure it is not tried any more.
    """
    if row is None or not row.stamp or row.stamp != stamp:
        return True
    if config.thresholds.respect_reservations and row.video is not None and row.training_mining is None:
        return True
    failure = row.failure
    return failure is not None and failure.kind != "video" and failure.attempts < config.run.max_attempts


def after(row: IngestRow, before: IngestRow | None) -> IngestRow:
    """The row of an input that was read again.

    An input that was measured stays what it was where its file cannot be reached now. One that fails again
    for reasons of infrastructure has one attempt more.
    """
    if row.failure is None or before is None:
        return row
    is_gone = row.failure.kind == "video" and not row.stamp
    if before.video is not None and (row.failure.kind != "video" or (is_gone and before.status == "planned")):
        log.warning(
            "%s: cannot be reached, what was measured of it stays (%s)", row.input.uri, row.failure.message
        )
        return before
    if row.failure.kind == "video" or before.failure is None or before.stamp != row.stamp:
        return row
    failure = row.failure.model_copy(update={"attempts": before.failure.attempts + 1})
    return row.model_copy(update={"failure": failure})


def without_erased(row: IngestRow, erased: Collection[str]) -> IngestRow:
    """The row; of a content that was erased nothing but where it was found.

    Args:
        row: of an input that was just read.
        erased: sha256 of the contents that were erased.
    """
    if row.video is None or row.video.sha256 not in erased:
        return row
    given = row.input
    bare = Input(uri=given.uri, start_s=given.start_s, end_s=given.end_s)
    return IngestRow(input=bare, stamp=row.stamp, status="erased")
