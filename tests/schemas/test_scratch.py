"""What a dead process left is removed, and what is in use, or of somebody else, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from talkforge.schemas import scratch
from talkforge.schemas.errors import CommandError, RunError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nothing is too young to be removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "MIN_AGE_S", -1.0)
    return tmp_path


def test_files_and_folders_are_there_in_the_block_and_gone_after_it(temporary: Path) -> None:
    with scratch.folder() as folder, scratch.file(".mp4") as file:
        assert folder.is_dir() and file.read_bytes() == b"" and file.suffix == ".mp4"
        assert {folder.parent, file.parent} == {temporary}
        (folder / "x").touch()
    assert list(temporary.iterdir()) == []


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    scratch.write_text(path, "before")
    with pytest.raises(ZeroDivisionError), scratch.replacing(path) as part:
        part.write_text("half")
        assert part.suffix == ".csv" and path.read_text() == "before"
        raise ZeroDivisionError
    with pytest.raises(RunError, match=r"table\.csv: cannot be written: disk full$"), scratch.replacing(path):
        raise OSError("disk full")
    with pytest.raises(RunError, match="safetensors"), scratch.replacing(path, (ValueError,)):
        raise ValueError("safetensors")
    assert [found.name for found in tmp_path.iterdir()] == ["table.csv"] and path.read_text() == "before"
    scratch.write_text(path, "after")
    assert path.read_text() == "after"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    scratch.make_out(tmp_path / "a" / "b", "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"^--out .*/file/x: cannot be written to \("):
        scratch.make_out(tmp_path / "file" / "x", "c")


def test_what_is_in_use_stays_and_what_was_left_is_removed(temporary: Path) -> None:
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from talkforge.schemas import scratch\n"
        "with scratch.folder() as folder, scratch.file() as file:\n"
        "    (folder / 'x').touch()\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    with scratch.folder() as ours, scratch.file() as file:
        assert scratch.sweep() == []
        child.kill()
        child.wait()
        assert len(scratch.sweep()) == 2
        assert sorted(temporary.iterdir()) == sorted([ours, file])


def test_only_what_is_named_as_ours_is_removed(temporary: Path) -> None:
    (temporary / "elsewhere").mkdir()
    names = [
        ".talkforge-mine",
        ".talkforge-set",
        "talkforge-abcdefgh",
        ".talkforge-ABCDEFGH",
        ".tmp-abcdefgh",
    ]
    for name in names:
        (temporary / name).mkdir()
    (temporary / ".talkforge-abcdefg1").symlink_to(temporary / "elsewhere")
    (temporary / ".talkforge-abcdefgh").mkdir()
    assert scratch.sweep() == [temporary / ".talkforge-abcdefgh"]
    assert len(list(temporary.iterdir())) == len(names) + 2


def test_what_is_young_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / ".talkforge-abcdefgh").mkdir()
    monkeypatch.setattr(scratch, "MIN_AGE_S", 3600.0)
    assert scratch.sweep() == []


def test_processes_of_a_folder_that_was_left_end(temporary: Path) -> None:
    left = temporary / ".talkforge-abcdefgh"
    left.mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    theirs = subprocess.Popen(sleep, env=os.environ | {scratch.OWNER: str(left)})
    other = subprocess.Popen(sleep, env=os.environ | {scratch.OWNER: f"{left}2"})
    try:
        mark = f"{scratch.OWNER}={left}".encode()
        while mark not in Path(f"/proc/{theirs.pid}/environ").read_bytes():  # before exec it is ours
            time.sleep(0.01)
        assert scratch.sweep() == [left]
        assert theirs.wait(timeout=600) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        theirs.kill()
        other.kill()
        other.wait()
