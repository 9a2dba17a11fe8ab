"""Files of a data set, on a local disk or in any fsspec store, written whole or not at all.

On a local disk a file is written under a temporary name in its own folder (`.tmp-` and 32 hex
digits), flushed to the disk and then renamed; a writer that is killed leaves at most such a file,
which no reader sees and `Store.sweep` removes. Object stores publish an object when its upload is
complete, which is the same promise. What belongs together is committed by a marker file that is
written last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import queue
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from talkforge.schemas import extras, scratch
from talkforge.schemas.errors import (
    CommandError,
    DatasetError,
    FetchError,
    MediaError,
    RunError,
    TalkforgeError,
    one_line,
)
from talkforge.schemas.records import Failure

TEMPORARY = ".tmp-"
"""Names of files that are still being written begin with this."""

PROBE = ".writable"
"""File that is written and removed to see whether that is possible. A run that fails may leave it."""

CHUNK_BYTES = 8 << 20

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
"""What disks without hard links answer."""

Names = list[str]


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of a remote input.

    Attributes:
        max_bytes: one that is larger is not fetched.
        timeout_s: seconds without data after which fetching fails.
    """

    max_bytes: float = 200e9
    timeout_s: float = 300.0


DEFAULT_LIMITS = FetchLimits()


@dataclass(frozen=True)
class Store:
    """A data set's folder. Names are relative to it and use '/'.

    Attributes:
        root: local path or fsspec URI such as `s3://bucket/dataset`.
        base: folder or URI that the names of the inputs are relative to, so that nobody's own folders are in
            the data set; empty: they are absolute. It is in no file, and is given again in each run.
        limits: bounds of remote inputs.

    Every method raises RunError when the disk or the network fails, DatasetError when a file
    that is needed is not there, and CommandError when a name or the root is not usable: one
    line each, naming the file.
    """

    root: str
    base: str = ""
    limits: FetchLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        root = str(self.root)
        if not root or "\0" in root:
            raise CommandError(f"data set {root!r}: expected a path or a URI")
        if "://" not in root:  # absolute, so that it is the same place in every worker
            root = str(Path(root).absolute())
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "base", str(self.base) and base_of(str(self.base)))

    def named(self, failure: Failure) -> Failure:
        """The failure with a message that names files relative to the base, where there is one."""
        return failure.model_copy(update={"message": without_base(failure.message, self.base)})

    def input_uri(self, uri: str) -> str:
        """Where the input that a row names lies.

        Raises:
            CommandError: its name is relative, and no base was given.
        """
        if self.base or not is_relative(uri):
            return at_base(uri, self.base)
        raise CommandError(
            f"{self.root}: names its inputs relative to a folder, such as {uri!r}; give it as --base"
        )

    @cached_property
    def _location(self) -> tuple[Any, str]:
        if "://" not in self.root:
            return LocalFileSystem(), self.root.rstrip("/")
        extras.require_driver(self.root)
        try:
            filesystem, path = url_to_fs(self.root)
        except (ImportError, ValueError, OSError) as error:
            raise CommandError(f"data set {self.root}: {one_line(error)}") from None
        return filesystem, str(path).rstrip("/")

    @property
    def local_root(self) -> Path | None:
        """The folder on this machine's disk; None for a remote store."""
        filesystem, path = self._location
        return Path(path) if isinstance(filesystem, LocalFileSystem) else None

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        filesystem, path = self._at(name)
        with self.reporting_errors("read", name):
            return bytes(filesystem.cat_file(path))

    def read_span(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file; of a remote one nothing else is fetched."""
        filesystem, path = self._at(name)
        with self.reporting_errors("read", name):
            return bytes(filesystem.cat_file(path, start=begin, end=end))

    def open(self, name: str) -> BinaryIO:
        """A file for reading; seekable, fetched in blocks where it is remote."""
        filesystem, path = self._at(name)
        with self.reporting_errors("read", name):
            return cast(BinaryIO, filesystem.open(path, "rb"))

    def write(self, name: str, data: bytes) -> str:
        """Write a file whole and return the sha256 (hex) of its bytes."""
        filesystem, path = self._at(name)
        if self.local_root is None:
            with self.reporting_errors("write", name):
                filesystem.pipe_file(path, data)
        else:
            with self.writing(name) as temporary, self.reporting_errors("write", name):
                temporary.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none of this name; whether it was written.

        Of several processes that try, one succeeds. Object stores do so by a conditional write, where they
        have it.
        """
        filesystem, path = self._at(name)
        with self.reporting_errors("write", name):
            try:
                if self.local_root is None:
                    filesystem.pipe_file(path, data, mode="create")
                    return True
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with Path(path).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        return True

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write a large file to; it becomes `name` when the block ends well.

        When the block raises, nothing is left behind.
        """
        filesystem, path = self._at(name)
        if self.local_root is None:
            with ExitStack() as stack:
                with self.reporting_errors("write", name):
                    folder = stack.enter_context(scratch.folder())
                temporary = folder / posixpath.basename(name)
                yield temporary
                with self.reporting_errors("write", name):
                    filesystem.put_file(str(temporary), path)
            return
        target = Path(path)
        temporary = target.with_name(TEMPORARY + uuid.uuid4().hex)
        with self.reporting_errors("write", name):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with self.reporting_errors("write", name):
                _publish(temporary, target)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        filesystem, path = self._at(name)
        with self.reporting_errors("look for", name):
            try:
                if self.local_root is not None:
                    return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (Path.is_file hides errors)
                filesystem.invalidate_cache()
                return bool(filesystem.info(path)["type"] == "file")  # isfile takes any error for "no"
            except (FileNotFoundError, NotADirectoryError):
                return False

    def size(self, name: str) -> int:
        """Bytes of a file."""
        filesystem, path = self._at(name)
        with self.reporting_errors("read", name):
            filesystem.invalidate_cache()
            return int(filesystem.size(path))

    def list(self, folder: str = "") -> Names:
        """Names of all files below a folder, sorted; empty where there is no such folder."""
        return [name for name in self._find(folder) if not _is_temporary(name)]

    def stamps(self, folder: str, file: str) -> dict[str, str]:
        """Folders directly below a folder that hold a file of this name, by name, sorted.

        On a local disk only these files are looked at, and no other file of the folders; an object store is
        listed once.

        Args:
            folder: such as `parts`.
            file: such as `part.json`.

        Returns:
            Name of the folder -> mark of the file's state, which changes when the file is written again.
        """
        _, path = self._at(folder)
        found = {}
        with self.reporting_errors("list", folder):
            if self.local_root is not None:
                with suppress(FileNotFoundError), os.scandir(path) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError, NotADirectoryError):
                            facts = os.stat(f"{entry.path}/{file}")  # noqa: PTH116 (Path is slow here)
                            if stat.S_ISREG(facts.st_mode):
                                found[entry.name] = f"{facts.st_size}-{facts.st_mtime_ns}"
            else:
                for name, info in self._listed(path).items():
                    parent, _, own = name[len(path) + 1 :].rpartition("/")
                    if own == file and "/" not in parent:
                        found[parent] = stamp(info)
        return dict(sorted(found.items()))

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        filesystem, path = self._at(name)
        with self.reporting_errors("delete", name), suppress(FileNotFoundError):
            filesystem.rm_file(path)

    def move(self, old: str, new: str) -> None:
        """Give a file another name, in place of a file that has it.

        On a local disk this happens at once; in an object store the file is copied, and then removed under
        its old name, so that a move that was broken off can be done again.
        """
        filesystem, source = self._at(old)
        _, target = self._at(new)
        with self.reporting_errors("move", old):
            if self.local_root is None:
                filesystem.cp_file(source, target)
                filesystem.rm_file(source)
            else:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                _rename(Path(source), Path(target))

    def link(self, old: str, new: str) -> None:
        """Give the content of a file a second name, in place of a file that has it.

        On a local disk that is a hard link, which takes no room; where the disk has none, and in an object
        store, it is a copy.
        """
        filesystem, source = self._at(old)
        _, target = self._at(new)
        with self.reporting_errors("link", old):
            if self.local_root is None:
                filesystem.cp_file(source, target)
                return
        with self.writing(new) as temporary, self.reporting_errors("link", old):
            try:
                os.link(source, temporary)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(source, temporary)

    def is_same(self, one: str, other: str) -> bool:
        """Whether two names are of one file, as after `link` on a local disk."""
        root = self.local_root
        with self.reporting_errors("read", other):
            return root is not None and (root / one).samefile(root / other)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; nothing happens where there is none."""
        filesystem, path = self._at(folder)
        names = self._find(folder)
        with self.reporting_errors("delete", folder):
            if self.local_root is not None:
                with suppress(FileNotFoundError):
                    shutil.rmtree(path)
                return
            for name in names:  # filesystem.exists takes any error for "no"
                with suppress(FileNotFoundError):
                    filesystem.rm_file(f"{self._location[1]}/{name}")

    def sha256(self, name: str) -> str:
        """sha256 (hex) of a file's bytes, read in blocks."""
        digest = hashlib.sha256()
        with self.open(name) as file, self.reporting_errors("read", name):
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def sweep(self) -> Names:
        """Remove what killed writers left; returns the names.

        To be called before a run writes anything: a writer that is still alive would lose its file.
        """
        filesystem, root = self._location
        left = [name for name in self._find("") if _is_temporary(name)]
        for name in left:
            with self.reporting_errors("delete", name), suppress(FileNotFoundError):
                filesystem.rm_file(f"{root}/{name}")
        return left

    def check_writable(self) -> None:
        """Raise CommandError unless files can be written below the root, which is made if need be."""
        try:
            self.write(PROBE, b"")
            self.delete(PROBE)
        except RunError as error:
            raise CommandError(f"data set {self.root}: cannot be written to ({error})") from None

    @contextmanager
    def reporting_errors(self, action: str, name: str) -> Iterator[None]:
        """Turns what a disk, a network or a cloud library raises into one line about `name`."""
        try:
            yield
        except TalkforgeError:
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and action == "read":
                raise DatasetError(f"{self.root}: expected {name}, found no such file") from None
            raise RunError(f"cannot {action} {name} in {self.root}: {one_line(error)}") from None
        except Exception as error:
            if self.local_root is not None:
                raise
            raise RunError(f"cannot {action} {name} in {self.root}: {one_line(error)}") from None

    def _at(self, name: str) -> tuple[Any, str]:
        _check_name(name)
        filesystem, root = self._location
        return filesystem, f"{root}/{name}"

    def _find(self, folder: str) -> Names:
        _, root = self._location
        if folder:
            _check_name(folder)
        path = f"{root}/{folder}" if folder else root
        with self.reporting_errors("list", folder or "the files"):
            found = self._listed(path) if self.local_root is None else _files_below(path)
            return sorted(str(name)[len(root) + 1 :] for name in found)

    def _listed(self, path: str) -> dict[str, Mapping[str, Any]]:
        """What a remote store says of every file below a folder, by path."""
        filesystem, _ = self._location
        filesystem.invalidate_cache()
        # What walks through folders leaves out those that it cannot read, unless told otherwise.
        walks = type(filesystem).find is AbstractFileSystem.find
        how = {"on_error": "raise"} if walks else {}
        try:
            return {str(name): info for name, info in filesystem.find(path, detail=True, **how).items()}
        except FileNotFoundError:
            return {}


def _files_below(folder: str) -> Iterator[str]:
    """Paths of all files below a local folder; none where there is no such folder."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for root, _, files in os.walk(folder, onerror=refuse):
        yield from (f"{root}/{name}" for name in files)


def stamp(info: Mapping[str, Any]) -> str:
    """Mark of the state of a file in an fsspec store: size, tag, time of change, as far as it says so."""
    keys = ("size", "ETag", "etag", "mtime", "updated", "LastModified", "created")
    return "-".join(str(info.get(key, "")) for key in keys)


def is_relative(uri: str) -> bool:
    """Whether an input's name is relative to a base."""
    return "://" not in uri and not Path(uri).is_absolute()


def base_of(base: str) -> str:
    """A base as the names of the inputs below it begin: absolute path or URI, without a `/` at its end.

    Raises:
        CommandError: it is no folder, or no file system that is known.
    """
    if "://" not in base:
        if not Path(base).is_dir():
            raise CommandError(f"--base {base}: no such folder")
        return os.path.abspath(base).rstrip("/")  # noqa: PTH100 (Path.resolve would follow links)
    try:
        filesystem, path = url_to_fs(base)
    except (ImportError, ValueError, OSError) as error:
        raise CommandError(f"--base {base}: {one_line(error)}") from None
    return str(filesystem.unstrip_protocol(path)).rstrip("/")


def at_base(uri: str, base: str) -> str:
    """An input's absolute path or URI."""
    return f"{base}/{uri}" if base and is_relative(uri) else uri


def without_base(text: str, base: str) -> str:
    """A message that names files below the base relative to it."""
    return text.replace(f"{base}/", "") if base else text


@contextmanager
def local_copy(uri: str, limits: FetchLimits = DEFAULT_LIMITS) -> Iterator[Path]:
    """A local path for an input: the file itself, or a copy of a remote one that is then removed.

    Args:
        uri: absolute path or URI.
        limits: bounds of a remote file.

    Raises:
        FetchError: a remote file is not there or cannot be fetched, or its server falls silent.
        MediaError: its URI is not usable, or it is too large.
        RunError: there is no room for the copy.
    """
    if "://" not in uri:
        yield Path(uri)
        return
    try:
        filesystem, path = url_to_fs(uri)
    except Exception as error:  # drivers raise their own
        raise MediaError(f"{uri}: {one_line(error)}") from None
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    suffix = Path(path).suffix[:16]
    with scratch.file(suffix) as copy:
        with copy.open("wb") as file:
            _fetch(uri, file, limits)
        yield copy


def file_size(uri: str) -> int | None:
    """Bytes of an input's file, without reading it; None where that is not known."""
    try:
        if "://" not in uri:
            return Path(uri).stat().st_size
        filesystem, path = url_to_fs(uri)
        size = filesystem.info(path).get("size")
    except Exception:  # cloud libraries raise their own
        return None
    return None if size is None else int(size)


def _fetch(uri: str, copy: IO[bytes], limits: FetchLimits) -> None:
    num_bytes = 0
    for block in _blocks(uri, limits):
        num_bytes += len(block)
        if num_bytes > limits.max_bytes:
            raise _too_large(uri, limits, f"more than {num_bytes / 1e9:.3g}")
        _append(copy, block)


def _blocks(uri: str, limits: FetchLimits) -> Iterator[bytes]:
    """The bytes of a remote file. They are read by a thread, because a driver may wait for ever."""
    blocks: queue.Queue[bytes | BaseException] = queue.Queue(maxsize=2)
    given_up = threading.Event()

    def put(item: bytes | BaseException) -> None:
        while not given_up.is_set():
            try:
                blocks.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            filesystem, path = url_to_fs(uri)
            if (size := filesystem.info(path).get("size") or 0) > limits.max_bytes:
                raise _too_large(uri, limits, f"{size / 1e9:.3g}")
            with filesystem.open(path, "rb", block_size=CHUNK_BYTES) as source:
                while (block := source.read(CHUNK_BYTES)) and not given_up.is_set():
                    put(block)
            put(b"")
        except BaseException as error:
            put(error)

    threading.Thread(target=read, name=f"fetch {uri}", daemon=True).start()
    try:
        while item := blocks.get(timeout=limits.timeout_s):
            if isinstance(item, TalkforgeError | MemoryError):
                raise item
            if isinstance(item, FileNotFoundError):
                raise FetchError(f"{uri}: no such file")
            if isinstance(item, BaseException):  # cloud libraries raise their own
                raise FetchError(f"{uri}: cannot be fetched: {one_line(item)}")
            yield item
    except queue.Empty:
        silent = f"no data for {limits.timeout_s:g} s (run.fetch_timeout_s)"
        raise FetchError(f"{uri}: cannot be fetched: {silent}") from None
    finally:
        given_up.set()


def _too_large(uri: str, limits: FetchLimits, found_gb: str) -> MediaError:
    most = f"at most {limits.max_bytes / 1e9:g} GB (run.max_input_gb)"
    return MediaError(f"{uri}: expected {most}, found {found_gb} GB")


def _append(copy: IO[bytes], block: bytes) -> None:
    try:
        copy.write(block)
        copy.flush()
    except OSError as error:
        raise RunError(f"cannot copy to {tempfile.gettempdir()}: {one_line(error)}") from None


def _publish(temporary: Path, target: Path) -> None:
    """Flush to the disk, rename, and flush the folder that now holds the name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _rename(temporary, target)


def _rename(old: Path, new: Path) -> None:
    """Rename, and flush the folder that now holds the name."""
    old.replace(new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_temporary(name: str) -> bool:
    return posixpath.basename(name).startswith(TEMPORARY)


def _check_name(name: str) -> None:
    pieces = name.split("/")
    bad = "\0" in name or "\\" in name or any(piece in ("", ".", "..") for piece in pieces)
    if bad or _is_temporary(name):
        raise CommandError(f"file name {name!r}: expected a plain name below the data set's folder")
