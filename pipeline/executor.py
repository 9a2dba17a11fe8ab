"""Executors: run the parts in this process, or as chains of Ray tasks. Both give the same bytes.

A part is the chain `commit(embed(measure(part)))`. With Ray as many parts run at a time as there are
workers, so that one part is embedded while another is measured. Only rows, face crops and 16 kHz
audio travel between tasks; frames never do.

A part past its deadline is cancelled by force. A part whose worker dies is tried once more. If that
does not help, the part is split until the offending window stands alone: that window gets a failure
row, and the rest go on.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from talkforge.pipeline import stages
from talkforge.pipeline.heartbeat import Heartbeat, Heartbeats, OnRunning
from talkforge.pipeline.ingest import IngestRow, failed, ingest, stamp_of
from talkforge.pipeline.parts import Part, is_committed
from talkforge.pipeline.store import DEFAULT_LIMITS, FetchLimits, Store, at_base
from talkforge.schemas import telemetry
from talkforge.schemas.config import Config
from talkforge.schemas.errors import RunError, TalkforgeError, kind_of, one_line
from talkforge.schemas.records import Failure, Input

log = logging.getLogger(__name__)

T = TypeVar("T")


class Piece(Protocol):
    """Work that can be divided."""

    @property
    def name(self) -> str:
        """What it is called; no two pieces of one run have the same name."""

    @property
    def duration_s(self) -> float:
        """Seconds of footage, which decide on the deadline."""

    def halves(self) -> tuple[Any, ...]:
        """The work in two pieces of the same type; empty where it cannot be divided."""


P = TypeVar("P", bound=Piece)

TRIES = 2
"""Times a part (or an input) is tried before it is split (or given up)."""

PROBE_DEADLINE_S = 600.0
"""Longest time for hashing and probing one input, s."""


@dataclass(frozen=True)
class Done:
    """A part that was tried, and how long that took, wall seconds.

    `put_off` are failures of windows that were not committed, because infrastructure failed them.
    """

    part: Part
    wall_s: float
    put_off: tuple[Failure, ...] = ()

    @property
    def measured_s(self) -> float:
        """Footage that was committed, s."""
        left = {failure.key for failure in self.put_off}
        return sum(window.duration_s for window in self.part.windows if window.key not in left)


class InlineExecutor:
    """Everything in this process, one after another: for debugging. Deadlines are not enforced."""

    def ingest(
        self, inputs: Iterable[Input], base: str = "", limits: FetchLimits = DEFAULT_LIMITS
    ) -> Iterator[IngestRow]:
        """Hash and probe every input."""
        yield from (ingest(given, base, limits) for given in inputs)

    def run(
        self, parts: Iterable[Part], config: Config, store: Store, on_running: OnRunning | None = None
    ) -> Iterator[Done]:
        """Measure and commit the parts.

        Args:
            parts: what to measure.
            config: the whole configuration.
            store: the data set.
            on_running: called with the seconds of footage that each running part is through.
        """
        for part in parts:
            begin_s = time.monotonic()
            measured = stages.measure(part, config.measure, store, *_heartbeat(part.name, on_running))
            put_off = stages.commit(stages.embed(measured, config.measure, store), store)
            yield Done(part, time.monotonic() - begin_s, put_off)

    def map(
        self,
        function: Callable[..., T],
        calls: Iterable[tuple[Any, ...]],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(*call)` for every call, in order.

        Args:
            function: takes a callback as a last argument where `on_running` is given.
            calls: arguments of each call.
            on_running: called with what each running call told its callback, by the number of the call.
        """
        for number, call in enumerate(calls):
            yield function(*call, *_heartbeat(str(number), on_running))

    def isolate(
        self,
        function: Callable[..., T],
        pieces: Iterable[P],
        _give_up: Callable[[P, BaseException], T],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(piece)` for every piece, in order; one that hangs or crashes takes this process along."""
        for piece in pieces:
            yield function(piece, *_heartbeat(piece.name, on_running))

    def close(self) -> None:
        """Nothing to let go of."""


def _heartbeat(key: str, on_running: OnRunning | None) -> tuple[Heartbeat, ...]:
    """The last argument of a task in this process, where somebody wants to know how far it is."""
    return (Heartbeat(key, lambda key, done: on_running({key: done})),) if on_running else ()


@dataclass
class _Task:
    """One item (part, input or call) that was submitted to Ray and is not collected yet."""

    key: str
    item: Any
    refs: list[Any]
    tries: int
    begin_s: float
    deadline_s: float


class RayExecutor:
    """Chains of Ray tasks on this machine, or on the cluster at `address`."""

    def __init__(self, config: Config, address: str | None = None) -> None:
        # Ray reads it when it is imported: deaths of workers are told by us, in one line.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # its advice on start-up is not for our users
        env = worker_environment()
        os.environ.update(env)  # a Ray that starts here hands its environment on
        if address:
            where: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": env}}
        else:
            where = {"num_cpus": config.run.workers or os.cpu_count()}
        try:
            with uninterrupted():
                ray.init(
                    ignore_reinit_error=True,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                    **where,
                )
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except Exception as error:
            raise RunError(f"Ray does not start: {one_line(error)}") from None
        self._ray = ray
        self._config = config
        self._gpu_share = config.run.gpu_share if ray.cluster_resources().get("GPU") else 0.0
        self._heartbeats: Any = None
        self._asked: Any = None

    def close(self) -> None:
        """Stop the Ray that was started here, or leave the cluster."""
        self._ray.shutdown()

    def ingest(
        self, inputs: Iterable[Input], base: str = "", limits: FetchLimits = DEFAULT_LIMITS
    ) -> Iterator[IngestRow]:
        """Hash and probe every input, in any order; one that hangs or kills its worker fails."""
        remote = self._ray.remote(max_retries=0)(ingest)

        def submit(given: Input) -> tuple[list[Any], float]:
            return [remote.remote(given, base, limits)], PROBE_DEADLINE_S

        for task, result in self._run(deque(inputs), submit):
            if isinstance(result, BaseException):
                yield failed(task.item, stamp_of(at_base(task.item.uri, base)), "probe", result, base)
            else:
                yield result

    def run(
        self, parts: Iterable[Part], config: Config, store: Store, on_running: OnRunning | None = None
    ) -> Iterator[Done]:
        """Measure and commit the parts, in any order; see `InlineExecutor.run`."""
        remote = self._ray.remote
        measure = remote(max_retries=0, num_cpus=1)(stages.measure)
        embed = remote(max_retries=0, num_cpus=1, num_gpus=self._gpu_share)(stages.embed)
        commit = remote(max_retries=0, num_cpus=0)(stages.commit)
        settings = config.run

        def submit(part: Part) -> tuple[list[Any], float]:
            measured = measure.remote(part, config.measure, store, *self._heartbeat(part.name, on_running))
            embedded = embed.remote(measured, config.measure, store)
            deadline_s = max(settings.deadline_min_s, settings.deadline_factor * part.duration_s)
            return [commit.remote(embedded, store), embedded, measured], deadline_s

        queue = deque(parts)
        for task, result in self._run(queue, submit, on_running, key_of=lambda part: part.name):
            part: Part = task.item
            # A part that was cancelled while it was being committed may be there all the same.
            if isinstance(result, BaseException) and not is_committed(part, store):
                log.warning("part %s: %s", part.name, result)
                if len(part.windows) > 1:
                    queue.extend(piece for piece in part.halves() if not is_committed(piece, store))
                    continue
                result = stages.give_up(part, result, store, kind_of(result))
            put_off = result if isinstance(result, tuple) else ()
            yield Done(part, time.monotonic() - task.begin_s, put_off)

    def map(
        self,
        function: Callable[..., T],
        calls: Iterable[tuple[Any, ...]],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(*call)` for every call, in any order; see `InlineExecutor.map`.

        Raises:
            RunError: a call failed although it was tried again.
        """
        remote = self._ray.remote(max_retries=0)(function)

        def submit(item: tuple[int, tuple[Any, ...]]) -> tuple[list[Any], float]:
            number, call = item
            return [remote.remote(*call, *self._heartbeat(str(number), on_running))], float("inf")

        queue = deque(enumerate(calls))
        for _, result in self._run(queue, submit, on_running, key_of=lambda item: str(item[0])):
            if isinstance(result, BaseException):
                raise RunError(str(result))
            yield result

    def isolate(
        self,
        function: Callable[..., T],
        pieces: Iterable[P],
        give_up: Callable[[P, BaseException], T],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(piece)` for every piece, in any order; a piece that hangs or crashes is divided.

        Args:
            function: what to do; takes a callback as a last argument where `on_running` is given.
            pieces: what to do it with.
            give_up: result of a piece that cannot be divided, from the piece and its error.
            on_running: called with what each running piece told its callback, by the name of the piece.
        """
        remote = self._ray.remote(max_retries=0, num_cpus=1)(function)
        settings = self._config.run

        def submit(piece: P) -> tuple[list[Any], float]:
            deadline_s = max(settings.deadline_min_s, settings.deadline_factor * piece.duration_s)
            return [remote.remote(piece, *self._heartbeat(piece.name, on_running))], deadline_s

        queue = deque(pieces)
        for task, result in self._run(queue, submit, on_running, key_of=lambda piece: piece.name):
            if not isinstance(result, BaseException):
                yield result
            elif halves := task.item.halves():
                log.warning("%s: %s", task.item.name, result)
                queue.extend(halves)
            else:
                yield give_up(task.item, result)

    def _run(
        self,
        queue: deque[Any],
        submit: Callable[[Any], tuple[list[Any], float]],
        on_running: OnRunning | None = None,
        key_of: Callable[[Any], str] = str,
    ) -> Iterator[tuple[_Task, Any]]:
        """Keep a bounded number of items running; yield each with its result or its last error.

        `queue` may grow while this runs.
        """
        running: list[_Task] = []
        retries: deque[_Task] = deque()
        try:
            while queue or running or retries:
                while (queue or retries) and len(running) < self._limit():
                    old = retries.popleft() if retries else None
                    item = old.item if old else queue.popleft()
                    refs, deadline_s = submit(item)
                    tries = old.tries + 1 if old else 1
                    running.append(_Task(key_of(item), item, refs, tries, time.monotonic(), deadline_s))
                yield from self._collect(running, retries)
                if on_running is not None:
                    self._listen({task.key for task in running}, on_running)
        finally:
            for task in running:
                self._cancel(task)

    def _collect(self, running: list[_Task], retries: deque[_Task]) -> Iterator[tuple[_Task, Any]]:
        ready, _ = self._ray.wait([task.refs[0] for task in running], timeout=0.5)
        for task in list(running):
            overdue = time.monotonic() - task.begin_s > task.deadline_s
            if task.refs[0] not in ready and not overdue:
                continue
            running.remove(task)
            if task.refs[0] in ready:
                result = self._get(task.refs[0])
            else:
                self._cancel(task)
                result = TimeoutError(f"cancelled at its deadline of {task.deadline_s:.0f} s")
            died = isinstance(result, BaseException) and not isinstance(result, TimeoutError)
            if died and task.tries < TRIES:
                retries.append(task)
            else:
                yield task, result

    def _get(self, ref: Any) -> Any:
        """The result, or the error that stands for it; what concerns the whole run is raised."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            # What the task raised, or what an earlier task of the chain raised or died of.
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, TalkforgeError):
                raise cause from None
            if isinstance(cause, Exception) and not isinstance(cause, self._ray.exceptions.RayError):
                return cause
            return RunError(f"the worker died ({type(cause).__name__})")

    def _heartbeat(self, key: str, on_running: OnRunning | None) -> tuple[Heartbeat, ...]:
        """The last argument of a task, where somebody wants to know how far it is."""
        if on_running is None:
            return ()
        if self._heartbeats is None:
            self._heartbeats = self._ray.remote(num_cpus=0)(Heartbeats).remote()
        report = self._heartbeats.report
        return (Heartbeat(key, lambda key, done: report.remote(key, done)),)

    def _listen(self, running: set[str], on_running: OnRunning) -> None:
        """Hand on what running tasks have reported; never waits for it."""
        if self._asked is None:
            self._asked = self._heartbeats.read.remote()
        if not self._ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        with suppress(self._ray.exceptions.RayError):  # without it the work goes on all the same
            on_running({key: done for key, done in self._ray.get(asked).items() if key in running})

    def _cancel(self, task: _Task) -> None:
        for ref in task.refs:
            self._ray.cancel(ref, force=True)

    def _limit(self) -> int:
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        return max(1, self._config.run.workers or cpus)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off until the block is over: a Ray that is half started leaves processes behind.

    A second Ctrl-C gets through at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []

    def remember(number: int, _: object) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def worker_environment() -> dict[str, str]:
    """Environment of workers: one thread each, so that they neither wait for one another nor
    give other bytes than a single process; the folders of weights, which may be relative; and the
    switches of telemetry."""
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env |= telemetry.as_set()
    folders = {name: os.environ.get(name) for name in ("TALKFORGE_MODELS", "TALKFORGE_CACHE")}
    return env | {name: str(Path(folder).absolute()) for name, folder in folders.items() if folder}


Executor = InlineExecutor | RayExecutor


def make_executor(name: str, config: Config, address: str | None = None) -> Executor:
    """The executor named `ray` or `inline`."""
    return InlineExecutor() if name == "inline" else RayExecutor(config, address)
