"""Commands that run in the background of a terminal: nothing they start may read it.

The system stops a background job that reads its terminal, and it waits for ever. PySceneDetect's import
runs `ffmpeg`, which does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

IN_BACKGROUND = """
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid:  # the terminal's user, who types nothing and reads what is printed
    try:
        while text := os.read(terminal, 4096):
            sys.stdout.write(text.decode())
    except OSError:  # the terminal is closed
        pass
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.signal(signal.SIGTTIN, signal.SIG_DFL)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
try:
    os.setpgid(job, job)
except PermissionError:  # it has done so itself
    pass
_, status = os.waitpid(job, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.killpg(job, signal.SIGKILL)
    print("stopped by", signal.Signals(os.WSTOPSIG(status)).name, flush=True)
    os._exit(3)
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.fixture
def with_ffmpeg(tmp_path: Path) -> dict[str, str]:
    """Environment in which `ffmpeg` is a program that reads its terminal."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nread answer\n")
    program.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def in_background(environment: dict[str, str], *command: object) -> tuple[int, str]:
    """Exit code and output of a command; 3 where the system stopped it."""
    done = subprocess.run(
        [sys.executable, "-c", IN_BACKGROUND, *map(str, command)],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_program_that_reads_the_terminal_is_stopped(with_ffmpeg: dict[str, str]) -> None:
    code = "import subprocess; subprocess.call(['ffmpeg', '-v', 'quiet'])"
    assert in_background(with_ffmpeg, sys.executable, "-c", code) == (3, "stopped by SIGTTIN\n")


def test_pyscenedetect_starts_no_program(with_ffmpeg: dict[str, str]) -> None:
    code = "from talkforge.curation.shots.jumps import pyscenedetect; print(pyscenedetect().SceneDetector)"
    found, printed = in_background(with_ffmpeg, sys.executable, "-c", code)
    assert (found, "SceneDetector" in printed) == (0, True), printed


@pytest.mark.parametrize("command", ["status", "verify"])
def test_commands_end(command: str, with_ffmpeg: dict[str, str], curated: Any) -> None:
    talkforge = Path(sys.executable).with_name("talkforge")
    found, printed = in_background(with_ffmpeg, talkforge, command, curated.dataset)
    assert found == 0, printed
