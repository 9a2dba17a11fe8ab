"""Exceptions of the project, and the one line in which any exception is reported.

Messages name the record, what was expected and what was found.
"""

from __future__ import annotations

from pydantic import ValidationError


class TalkforgeError(Exception):
    """Anything the user can be told in one line."""


class CommandError(TalkforgeError):
    """A bad option, path or configuration: exit code 2."""


class MediaError(TalkforgeError):
    """A video or audio file cannot be read; becomes a failure row."""


class ModelError(TalkforgeError):
    """Weights are missing, altered or of the wrong kind."""


class MissingExtraError(TalkforgeError):
    """A package is not installed that an extra of Talkforge brings."""


class DatasetError(TalkforgeError):
    """A data set on disk is not what its marker files promise."""


class RunError(TalkforgeError):
    """The run itself cannot go on (full disk, cluster gone): exit code 1."""


def one_line(error: BaseException, longest: int | None = None) -> str:
    """The message of an error in one line, never empty; of an OSError without its number and path.

    Args:
        error: any exception.
        longest: most characters; None means any number.
    """
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return " ".join(str(text).split())[:longest] or type(error).__name__


def class_and_message(error: BaseException) -> str:
    """`<class>: <message>` in one line, as tables state a failure."""
    return f"{type(error).__name__}: {one_line(error)}"


def first_invalid(error: ValidationError, root: str = "the document") -> str:
    """`<field>: <what is wrong>` of the first field that pydantic refused.

    Args:
        error: what pydantic raised.
        root: name of the record itself, where the record and none of its fields is refused.
    """
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or root
    return f"{where}: {first['msg']}"
