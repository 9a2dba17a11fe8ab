"""The exception tree, and what an exception says.

Messages name the record, what was expected and what was found.
"""

from __future__ import annotations


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
    """What an error says, in one line and without numbers that mean nothing to the reader.

    Args:
        longest: characters at most; None: any number.
    """
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return " ".join(str(text).split())[:longest] or type(error).__name__
