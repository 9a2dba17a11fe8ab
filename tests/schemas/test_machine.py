"""A folder for temporary files that is too long for sockets is refused; no loader process hangs in it."""

from __future__ import annotations

import multiprocessing.connection
import tempfile
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import talkforge
from talkforge.schemas.errors import RunError
from talkforge.schemas.machine import MAX_FOLDER_BYTES, check_sockets
from tests.conftest import Curated

SOCKET = "pymp-01234567/listener-01234567"
"""Where `multiprocessing` opens a socket below the folder for temporary files."""


def folder_of(num_bytes: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with a path of so many bytes."""
    folder = Path("/tmp") / root.name.ljust(num_bytes, "x")[: num_bytes - len("/tmp/")]
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert len(tempfile.gettempdir()) == num_bytes
    return folder


@pytest.mark.parametrize(("num_bytes", "fits"), [(MAX_FOLDER_BYTES, True), (MAX_FOLDER_BYTES + 1, False)])
def test_the_longest_folder_is_that_in_which_a_socket_can_be_opened(
    num_bytes: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(folder_of(num_bytes, tmp_path, monkeypatch) / SOCKET)
    # The folder does not exist, so none is opened: where the path fits, that is what is missing.
    with pytest.raises(OSError, match="No such file" if fits else "AF_UNIX path too long"):
        multiprocessing.connection.Listener(address, "AF_UNIX")
    if fits:
        check_sockets()
    else:
        with pytest.raises(RunError, match=f"at most {MAX_FOLDER_BYTES} bytes, found {num_bytes}: "):
            check_sockets()


def test_a_loader_process_of_clips_says_so_instead_of_waiting(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(MAX_FOLDER_BYTES + 1, tmp_path, monkeypatch)
    clips = talkforge.open(str(measured.dataset)).torch(split=None)
    with pytest.raises(RunError, match="expected a path of at most"):
        next(iter(DataLoader(clips, batch_size=None, num_workers=1)))
