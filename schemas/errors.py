"""Exceptions of the project, and the one line in which any exception is reported.

Messages name the record, what was expected and what was found.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Literal

from pydantic import ValidationError

FailureKind = Literal["video", "storage", "network", "memory", "worker", "cluster", "deadline"]
"""What a failure is the fault of. `video` is the input itself, every other kind is infrastructure."""

_NETWORK = frozenset(
    {errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EPIPE}
    | {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN}
)
_STORAGE = frozenset(
    {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENODEV}
    | {errno.ENXIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EBUSY, errno.EMFILE, errno.ENFILE}
)
_OUT_OF_MEMORY = ("insufficient memory", "failed to allocate memory", "bad_alloc")
"""What OpenCV, ONNX Runtime and C++ say, in lower case."""


class TalkforgeError(Exception):
    """Anything that can be reported to the user in one line."""


class CommandError(TalkforgeError):
    """A bad option, path or configuration: exit code 2."""


class MediaError(TalkforgeError):
    """A video or audio file cannot be read; becomes a failure row."""


class FetchError(MediaError):
    """A remote file is not available now: no such object, no permission, no answer."""


class ModelError(TalkforgeError):
    """Weights are missing, altered or of the wrong kind."""


class MissingExtraError(TalkforgeError):
    """A package is not installed that an extra of Talkforge brings."""


class DatasetError(TalkforgeError):
    """A data set on disk is not what its marker files promise."""


class RunError(TalkforgeError):
    """The run itself cannot go on (full disk, cluster gone): exit code 1.

    In a failure row it stands for a process that died without an error of its own.

    Args:
        message: one line.
        kind: what it is the fault of, where that is known.
    """

    def __init__(self, message: str, kind: FailureKind | None = None) -> None:
        super().__init__(message)
        self.kind = kind


def one_line(error: BaseException, longest: int | None = None, *, with_path: bool = False) -> str:
    """The message of an error in one line, never empty.

    Args:
        error: any exception.
        longest: most characters; None means any number.
        with_path: keep the number and the path that an error of the system or of FFmpeg names: for messages
            that do not name the file themselves.
    """
    words = None if with_path else getattr(error, "strerror", None)
    text = words or str(error)
    return " ".join(str(text).split())[:longest] or type(error).__name__


def class_and_message(error: BaseException) -> str:
    """`<class>: <message>` in one line, as tables state a failure."""
    return f"{type(error).__name__}: {one_line(error)}"


def kind_of(error: BaseException) -> FailureKind:
    """What an error is the fault of, by the error itself and by what caused it."""
    for cause in _causes(error):
        if isinstance(cause, RunError) and cause.kind is not None:
            return cause.kind
        if isinstance(cause, FetchError | ConnectionError):
            return "network"
        if isinstance(cause, MemoryError) or any(text in str(cause).lower() for text in _OUT_OF_MEMORY):
            return "memory"
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.ENOMEM:
            return "memory"
        if number in _NETWORK:
            return "network"
        if number in _STORAGE:
            return "storage"
        if isinstance(cause, TimeoutError):
            return "deadline"
    return "video"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def first_invalid(error: ValidationError, root: str = "the document") -> str:
    """`<field>: <what is wrong>` of the first field that pydantic refused.

    Args:
        error: what pydantic raised.
        root: name of the record itself, where the record and none of its fields is refused.
    """
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or root
    return f"{where}: {first['msg']}"
