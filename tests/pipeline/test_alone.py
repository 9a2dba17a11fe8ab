"""A call in a process of its own: its result, its error, and how it died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from talkforge.pipeline import alone
from talkforge.schemas.errors import MediaError, RunError


def test_it_returns_what_the_function_returns() -> None:
    pid, total = alone.call(cloudpickle.dumps((lambda a, b: (os.getpid(), a + b), 1, 2)))
    assert total == 3 and pid != os.getpid()


def test_it_raises_what_the_function_raises() -> None:
    def fail() -> None:
        raise MediaError("damaged")

    with pytest.raises(MediaError, match=r"^damaged$"):
        alone.call(cloudpickle.dumps((fail,)))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (-signal.SIGSEGV, "video", "the worker died (SIGSEGV), alone as well"),
        (-signal.SIGABRT, "video", "the worker died (SIGABRT), alone as well"),
        (1, "video", "the worker died (exit code 1), alone as well"),
        (0, "video", "the worker died (exit code 0), alone as well"),
        (-signal.SIGKILL, "worker", "the worker died (SIGKILL), alone as well"),
        (-signal.SIGTERM, "worker", "the worker died (SIGTERM), alone as well"),
    ],
)
def test_a_crash_is_the_videos_fault_and_a_kill_is_not(code: int, kind: str, message: str) -> None:
    error = alone.died(code)
    assert (error.kind, str(error)) == (kind, message)


def test_a_process_that_crashes_is_an_error() -> None:
    with pytest.raises(RunError, match="SIGABRT") as caught:
        alone.call(cloudpickle.dumps((os.abort,)))
    assert caught.value.kind == "video"


def test_it_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    """A worker that is cancelled at its deadline leaves nothing behind that goes on hanging."""
    code = (
        "import os, sys, time\nfrom ray import cloudpickle\nfrom talkforge.pipeline import alone\n"
        "def hang(path):\n    open(path, 'w').write(str(os.getpid())); time.sleep(600)\n"
        "alone.call(cloudpickle.dumps((hang, sys.argv[1])))"
    )
    waits = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert waits.poll() is None
    child = int((tmp_path / "pid").read_text())
    waits.kill()
    waits.wait()
    while Path(f"/proc/{child}").exists() and ") Z " not in Path(f"/proc/{child}/stat").read_text():
        pass
