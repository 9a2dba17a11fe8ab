"""Ray for a run: its errors, its folder, signals while it starts, and a run that loses it."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from talkforge.pipeline import cluster
from talkforge.pipeline.cluster import Cluster, error_of, uninterrupted
from talkforge.schemas import scratch
from talkforge.schemas.errors import FailureKind, RunError, kind_of


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ray.exceptions.WorkerCrashedError(), "worker", "the worker died (WorkerCrashedError)"),
        (ray.exceptions.OutOfMemoryError("x"), "memory", "the worker was out of memory (OutOfMemoryError)"),
        (ray.exceptions.NodeDiedError("x"), "cluster", "Ray failed (NodeDiedError)"),
        (ray.exceptions.ObjectLostError("a", None, ""), "cluster", "Ray failed (ObjectLostError)"),
        (ray.exceptions.RaySystemError(ValueError("x")), "cluster", "Ray failed (RaySystemError)"),
        (ray.exceptions.OutOfDiskError("x"), "storage", "Ray failed (OutOfDiskError)"),
        (ray.exceptions.GetTimeoutError("x"), "cluster", "Ray failed (GetTimeoutError)"),
    ],
)
def test_what_ray_fails_is_never_the_fault_of_a_video(
    error: Exception, kind: FailureKind, message: str
) -> None:
    found = error_of(error)
    assert isinstance(found, RunError)
    assert (kind_of(found), str(found)) == (kind, message)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (MemoryError("x"), "memory"),
        (ValueError("x"), "video"),
        (ray.exceptions.WorkerCrashedError(), "worker"),
    ],
)
def test_the_error_of_an_earlier_task_of_a_chain_is_found(cause: Exception, kind: FailureKind) -> None:
    first = ray.exceptions.RayTaskError("measure", "trace", cause)
    second = ray.exceptions.RayTaskError("embed", "trace", first.as_instanceof_cause())
    assert kind_of(error_of(second.as_instanceof_cause())) == kind


class Unstarted(Cluster):
    """A cluster of which nothing was started."""

    def __init__(self) -> None:
        self._exit = ExitStack()


def test_sockets_lie_in_a_short_folder_however_long_tmpdir_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    unstarted = Unstarted()
    folder = unstarted._folder()
    assert folder.parent == Path("/tmp")
    assert len(f"{folder}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") <= 107
    assert os.environ[scratch.OWNER] == str(folder)
    unstarted._exit.close()
    assert not folder.exists() and scratch.OWNER not in os.environ
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunError, match=r"^Ray does not start: its sockets need a TMPDIR of at most \d\d "):
        Unstarted()._folder()


def test_ray_is_lost_when_it_does_not_answer_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s, missing = [100.0], ["its raylet on this machine has died"]
    lost = Unstarted()
    lost._lost_since_s, lost._told = None, False
    monkeypatch.setattr(lost, "_missing", lambda: missing[0])
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now_s[0])
    lost.check()
    now_s[0] += cluster.GRACE_S - 0.1
    lost.check()
    assert not lost.lost
    now_s[0] += 0.1
    line = "Ray is lost: its raylet on this machine has died; the same command goes on from here"
    with pytest.raises(RunError, match=f"^{line}$") as caught:
        lost.check()
    assert lost.lost and caught.value.kind == "cluster"
    missing[0] = None  # type: ignore[call-overload]
    lost.check()  # a control store that is back in time
    missing[0], lost._told = "its raylet on this machine has died", False
    lost.check()
    now_s[0] += cluster.SAY_S

    class Soon:
        def wait(self, _: float) -> bool:
            return False

    lost._closed = Soon()  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        lost._watch()  # the run is busy elsewhere: it is told all the same
    assert caplog.messages == [line]


def test_a_ray_that_runs_already_is_not_joined_without_an_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    own = Cluster(workers=1)
    try:
        assert own.where == "a Ray of its own with 1 workers"
        assert own.num_cpus() == 1
        assert caplog.messages == [
            "RAY_ADDRESS is not used without --address auto; this runs on a Ray of its own with 1 workers"
        ]
        own.check()
        inner = Cluster(workers=1)  # in a process that is connected already
        assert inner.where == "the Ray that this process is connected to"
        inner.close()
        own.check()
        folder = Path(os.environ[scratch.OWNER])
        assert folder.is_dir()
    finally:
        own.close()
    assert not folder.exists() and not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RunError, match=r"^no Ray cluster at 127\.0\.0\.1:1: Connection refused$"):
        Cluster(workers=1, address="127.0.0.1:1")
    assert scratch.OWNER not in os.environ


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_must_not_be_left_half_done(number: int) -> None:
    steps: list[str] = []
    ours = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            steps.append("finished")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, ours)
    assert steps == ["finished"]


def test_ctrl_c_twice_waits_for_nothing() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        steps.append("finished")
    assert steps == []


def test_leaving_goes_on_beside_what_follows_and_closing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(scratch.OWNER, "/nowhere")
    may_end, steps = threading.Event(), []

    class Slow:
        def shutdown(self) -> None:
            assert may_end.wait(300)
            steps.append("shut down")

    slow = Unstarted()
    slow.ray, slow.ours, slow._closed, slow._leaving = Slow(), True, threading.Event(), None
    slow._exit.callback(steps.append, "folder removed")
    slow.leave()
    slow.leave()  # once is enough
    assert steps == [] and scratch.OWNER not in os.environ  # else what is started now would be killed
    may_end.set()
    slow.close()
    assert steps == ["shut down", "folder removed"]
    slow.close()
    assert steps == ["shut down", "folder removed"]


def test_a_ray_that_does_not_end_is_told_by_closing() -> None:
    class Broken:
        def shutdown(self) -> None:
            raise OSError("no more processes")

    broken = Unstarted()
    broken.ray, broken.ours, broken._closed, broken._leaving = Broken(), True, threading.Event(), None
    steps: list[str] = []
    broken._exit.callback(steps.append, "folder removed")
    broken.leave()
    with pytest.raises(OSError, match=r"^no more processes$"):
        broken.close()
    assert steps == ["folder removed"]


class Answers:
    """A Ray whose workers answer at once; job 'x' ends its worker."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.most = 0

    def wait(self, references: list[tuple[int, str]], timeout: float) -> tuple[list[tuple[int, str]], object]:
        assert timeout > 0
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    def get(self, reference: tuple[int, str]) -> str:
        worker, job = reference
        if job == "x":
            raise ray.exceptions.WorkerCrashedError
        return f"{job} by {worker}"


class Answering(Unstarted):
    """A cluster that is never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.ray = Answers()

    def check(self) -> None:
        pass


def test_jobs_are_shared_and_a_worker_that_dies_is_replaced_while_there_are_jobs() -> None:
    one, numbers = Answering(), itertools.count(1)
    found = dict(one.share("axbcx", 2, lambda: next(numbers), lambda worker, job: (worker, job)))
    assert [found[job] for job in "abc"] == ["a by 1", "b by 1", "c by 3"]
    assert str(found["x"]) == "the worker died (WorkerCrashedError)"
    assert (one.ray.most, next(numbers)) == (2, 4)  # nobody took the place of the last one that died
    assert list(one.share("", 2, lambda: next(numbers), lambda worker, job: (worker, job))) == []
    assert next(numbers) == 5  # without jobs no worker is started
