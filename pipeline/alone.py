"""A call in a process of its own, to see how that process dies: of a crash, or killed by somebody else.

Ray says of a worker only that it died. A decoder that crashes (SIGSEGV, SIGABRT, an exit) is the fault of the
video that it reads. A process that is killed (SIGKILL: out of memory, a machine that is taken away) is not.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from talkforge.schemas import scratch
from talkforge.schemas.errors import RunError, class_and_message

CRASHES = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
"""Signals that a process gets for what it does itself."""

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""


def call(pickled: bytes) -> Any:
    """Call a function in a process of its own, which ends with this one.

    Args:
        pickled: the function and its arguments, a tuple, by cloudpickle.

    Returns:
        What the function returned.

    Raises:
        RunError: the process died; of kind `video` where it crashed, and `worker` where it was killed.
        Exception: what the function raised.
    """
    with scratch.folder() as folder:
        (folder / "call").write_bytes(pickled)
        # Modules that the pickle names are found where this process finds them.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", "from talkforge.pipeline import alone; alone.main()"]
        code = subprocess.run([*command, str(folder), str(os.getpid())], env=env, check=False).returncode
        answer = folder / "answer"
        if not answer.exists():
            raise died(code)
        result, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return result


def died(code: int) -> RunError:
    """The error that stands for a process that ended without an answer.

    Args:
        code: as of `subprocess`: below zero the signal that ended it.
    """
    if code >= 0:
        return RunError(f"the worker died (exit code {code}), alone as well", "video")
    name = signal.Signals(-code).name
    return RunError(f"the worker died ({name}), alone as well", "video" if -code in CRASHES else "worker")


def main() -> None:
    """In the process of its own: make the call, and leave the answer in the folder."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    from ray import cloudpickle  # not before: it reads its environment when it is imported

    answer: tuple[Any, BaseException | None]
    try:
        function, *arguments = pickle.loads((folder / "call").read_bytes())
        answer = function(*arguments), None
    except Exception as error:
        answer = None, error
    try:
        content = cloudpickle.dumps(answer)
    except Exception:  # an error that holds something that does not travel
        content = cloudpickle.dumps((None, RunError(class_and_message(answer[1] or RunError("no answer")))))
    (folder / "unfinished").write_bytes(content)
    (folder / "unfinished").rename(folder / "answer")
