"""What a machine must offer before work is handed to other processes."""

from __future__ import annotations

import tempfile

from talkforge.schemas.errors import RunError

MAX_FOLDER_BYTES = 75
"""Longest path of a folder for temporary files in which `multiprocessing` can open its sockets. Source: 107
bytes of a socket's path on Linux (unix(7)), minus `/pymp-xxxxxxxx/listener-xxxxxxxx`."""


def check_sockets() -> None:
    """Refuse a folder for temporary files in which processes cannot open sockets to each other.

    Tensors travel from PyTorch's loader processes through such sockets. Where one cannot be opened, the
    loader waits for ever.

    Raises:
        RunError: the path of the folder is too long.
    """
    folder = tempfile.gettempdir()
    if (length := len(folder.encode())) > MAX_FOLDER_BYTES:
        raise RunError(
            f"TMPDIR {folder}: expected a path of at most {MAX_FOLDER_BYTES} bytes, found {length}: "
            "the processes that load data open sockets in it"
        )
