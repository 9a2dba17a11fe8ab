"""Executors: run the parts in this process, or as chains of Ray tasks. Both give the same bytes.

A part is the chain `commit(embed(measure(part)))`. With Ray as many parts run at a time as there are
workers, so that one part is embedded while another is measured. Only rows, face crops and 16 kHz
audio travel between tasks; frames never do.

A part that works for longer than its deadline is cancelled by force. A part whose worker dies is tried once
more. If that does not help, the part is split until the offending window stands alone. Where a window alone
kills its worker as well, it is tried in a process whose end can be seen (`alone.py`). A crash is the window's
fault and committed as its failure. Everything else that goes wrong outside the footage (a worker that is
killed, a node that is removed, memory, a deadline) has a kind, and is put off.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from talkforge.pipeline import alone, stages
from talkforge.pipeline.cluster import Cluster, error_of
from talkforge.pipeline.heartbeat import Heartbeat, Heartbeats, OnRunning, State
from talkforge.pipeline.ingest import failed, ingest, stamp_of
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.parts import Part, is_committed
from talkforge.pipeline.store import DEFAULT_LIMITS, FetchLimits, Store, at_base
from talkforge.schemas.config import Config, ExecutionConfig, MeasureConfig
from talkforge.schemas.errors import RunError, TalkforgeError, kind_of, one_line
from talkforge.schemas.records import Failure, Input

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")


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
"""Times an item (part, input, call) whose worker dies is tried before it is split, or tried alone."""

LOST_TRIES = 5
"""Times an item is tried whose node or whose data the cluster lost, before it is put off."""

PROBE_DEADLINE_S = 600.0
"""Longest time for hashing and probing one input, and for loading models ahead, s."""

IDLE_S = 10.0
"""Longest time between two looks at a running task that counts towards its deadline, s. While the driver
itself stands still (stopped, busy), nobody sees whether a task is at work."""

DEMAND_PER_CORE, LEAST_DEMAND = 2, 8
"""Tasks for each core of a cluster, and in all where it has few or none. Source: ours."""

AT_HAND = 1024
"""Items that are taken ahead of their turn, so that the longest of them begin first. Source: ours, 1,024
parts of ten minutes keep 64 cores busy for hours."""

PATIENCE_S = 60.0
"""A run says so when nothing could be started for this long, s."""


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


@dataclass(frozen=True)
class _Step:
    """A function of a chain: it takes the item, or what the step before returned, and its arguments.

    Attributes:
        cpus: cores that it takes.
        gpus: fraction of a GPU that it takes.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class _Work(Generic[Item, T]):
    """What is done with every item of a kind, and what becomes of one with which it cannot be done.

    Attributes:
        steps: the chain.
        give_up: result of an item that cannot be divided, from the item and its error.
        key: name of an item.
        deadline_s: how long it may work.
        duration_s: seconds of footage; longer items begin first.
        halves: the item in two; empty where it cannot be divided.
        is_done: whether it is done although its task failed: it may have been killed right after.
        takes_callback: whether the first step takes a callback for its progress as its last argument.
    """

    steps: Sequence[_Step]
    give_up: Callable[[Item, BaseException], T]
    key: Callable[[Item], str] = str
    deadline_s: Callable[[Item], float] = lambda _: float("inf")
    duration_s: Callable[[Item], float] = lambda _: 0.0
    halves: Callable[[Item], Sequence[Item]] = lambda _: ()
    is_done: Callable[[Item], bool] = lambda _: False
    takes_callback: bool = False

    def call(self, item: Item, *callback: Callable[[float], None]) -> T:
        """The whole chain in this process."""
        result: Any = item
        for number, step in enumerate(self.steps):
            extra = () if number else callback
            result = step.function(result, *step.arguments, *extra)
        return result  # type: ignore[no-any-return]

    def call_alone(self, item: Item) -> T:
        """The whole chain in a process whose progress nobody sees."""
        return self.call(item, *((_unseen,) if self.takes_callback else ()))


def _unseen(_: float) -> None:
    """Progress of what runs alone."""


class Executor(ABC):
    """Runs work on many items.

    Attributes:
        where: what it runs on, in words.
    """

    where = "this process"

    @property
    def num_workers(self) -> int:
        """Items that are worked on at a time."""
        return 1

    def ingest(
        self, inputs: Iterable[Input], base: str = "", limits: FetchLimits = DEFAULT_LIMITS
    ) -> Iterator[IngestRow]:
        """Hash and probe every input, in any order; one that hangs or kills its worker fails.

        Args:
            inputs: what to read.
            base: of the `Store`.
            limits: on what is fetched.
        """

        def give_up(given: Input, error: BaseException) -> IngestRow:
            return failed(given, stamp_of(at_base(given.uri, base)), "probe", error, base)

        work = _Work(
            [_Step(ingest, (base, limits))], give_up, lambda given: given.uri, lambda _: PROBE_DEADLINE_S
        )
        yield from (row for _, row, _ in self._each(work, inputs))

    def run(
        self, parts: Iterable[Part], config: Config, store: Store, on_running: OnRunning | None = None
    ) -> Iterator[Done]:
        """Measure and commit the parts, in any order.

        Args:
            parts: what to measure.
            config: the whole configuration.
            store: the data set.
            on_running: called with the seconds of footage that each running part is through.
        """

        def give_up(part: Part, error: BaseException) -> tuple[Failure, ...]:
            return () if is_committed(part, store) else stages.give_up(part, error, store, kind_of(error))

        def halves(part: Part) -> Sequence[Part]:
            pieces = part.halves() if len(part.windows) > 1 else ()
            return [piece for piece in pieces if not is_committed(piece, store)]

        share = config.run.gpu_share
        to_measure = 0 if config.measure.device == "cpu" else share
        steps = [
            _Step(stages.measure, (config.measure, store), gpus=to_measure),
            _Step(stages.embed, (config.measure, store), gpus=share),
            _Step(stages.commit, (store,), cpus=0),
        ]
        work = _Work(
            steps,
            give_up,
            lambda part: part.name,
            _deadline(config.run),
            lambda part: part.duration_s,
            halves,
            is_done=lambda part: is_committed(part, store),
            takes_callback=on_running is not None,
        )
        for part, result, wall_s in self._each(work, parts, on_running):
            yield Done(part, wall_s, result if isinstance(result, tuple) else ())

    def map(
        self,
        function: Callable[..., T],
        calls: Iterable[tuple[Any, ...]],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(*call)` for every call; Ray answers in any order.

        Args:
            function: takes a callback as a last argument where `on_running` is given.
            calls: arguments of each call.
            on_running: called with what each running call told its callback, by the number of the call.

        Raises:
            RunError: a call failed although it was tried again.
        """

        def give_up(_: tuple[int, tuple[Any, ...]], error: BaseException) -> T:
            raise RunError(one_line(error)) from error

        def called(numbered: tuple[int, tuple[Any, ...]], *callback: Any) -> T:
            return function(*numbered[1], *callback)

        work: _Work[tuple[int, tuple[Any, ...]], T] = _Work(
            [_Step(called)], give_up, lambda numbered: str(numbered[0]), takes_callback=on_running is not None
        )
        yield from (result for _, result, _ in self._each(work, enumerate(calls), on_running))

    def isolate(
        self,
        function: Callable[..., T],
        pieces: Iterable[P],
        give_up: Callable[[P, BaseException], T],
        on_running: OnRunning | None = None,
    ) -> Iterator[T]:
        """`function(piece)` for every piece, in any order; a piece that hangs or crashes is divided.

        In this process nothing can be cancelled, and a crash takes the process along.

        Args:
            function: what to do; takes a callback as a last argument where `on_running` is given.
            pieces: what to do it with.
            give_up: result of a piece that cannot be divided, from the piece and its error.
            on_running: called with what each running piece told its callback, by the name of the piece.
        """
        work: _Work[P, T] = _Work(
            [_Step(function)],
            give_up,
            lambda piece: piece.name,
            _deadline(self._settings),
            lambda piece: piece.duration_s,
            lambda piece: piece.halves(),
            takes_callback=on_running is not None,
        )
        yield from (result for _, result, _ in self._each(work, pieces, on_running))

    _settings = ExecutionConfig()

    @abstractmethod
    def _each(
        self, work: _Work[Item, T], items: Iterable[Item], on_running: OnRunning | None = None
    ) -> Iterator[tuple[Item, T, float]]:
        """Do the work with every item; items, results, and the wall seconds of each."""

    @abstractmethod
    def warm_up(self, config: MeasureConfig, most: int) -> None:
        """Have workers load what measuring needs, beside what comes first. Nothing waits for it.

        Args:
            config: what will be measured.
            most: workers that load.
        """

    @abstractmethod
    def release(self) -> None:
        """Begin to let go of what it holds, beside what follows: no more work comes. `close` waits for it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""


def _deadline(settings: ExecutionConfig) -> Callable[[Piece], float]:
    """How long a piece may work, s."""
    return lambda piece: max(settings.deadline_min_s, settings.deadline_factor * piece.duration_s)


class InlineExecutor(Executor):
    """Everything in this process, one after another: for debugging. Deadlines are not enforced."""

    def _each(
        self, work: _Work[Item, T], items: Iterable[Item], on_running: OnRunning | None = None
    ) -> Iterator[tuple[Item, T, float]]:
        for given in items:
            queue = deque([given])
            while queue:
                item, begin_s = queue.popleft(), time.monotonic()
                try:
                    with threadpool_limits(1, "blas"):  # as workers: the products are small, and threads spin
                        result = work.call(item, *_callback(work.key(item), on_running))
                except TalkforgeError:
                    raise
                except Exception as error:
                    log.debug("%s", work.key(item), exc_info=True)
                    if halves := work.halves(item):
                        queue.extendleft(reversed(halves))
                        continue
                    result = work.give_up(item, error)
                yield item, result, time.monotonic() - begin_s

    def warm_up(self, config: MeasureConfig, most: int) -> None:
        """Nothing: this process loads when it measures."""

    def release(self) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to let go of."""


def _callback(key: str, on_running: OnRunning | None) -> tuple[Heartbeat, ...]:
    """The last argument of a task in this process, where somebody wants to know how far it is."""
    return (Heartbeat(0, lambda _what, _number, done: on_running({key: done})),) if on_running else ()


@dataclass(eq=False)
class _Task(Generic[Item]):
    """One item on its way through Ray.

    Attributes:
        item: the part, input or call.
        number: of its last submission.
        refs: of its steps, the last one first.
        tries: how often its worker died, or it raised an error.
        lost: how often the cluster lost it.
        alone: whether it runs in a process of its own.
        begin_s: when it was submitted last.
        working: whether one of its steps is at work.
        worked_s: for how long.
        deadline_s: how long it may.
    """

    item: Item
    number: int = 0
    refs: list[Any] = field(default_factory=list)
    tries: int = 0
    lost: int = 0
    alone: bool = False
    begin_s: float = 0.0
    working: bool = False
    worked_s: float = 0.0
    deadline_s: float = float("inf")


class _Waiting(Generic[Item]):
    """Tasks that are still to be submitted, the longest of those at hand first.

    A long part that begins last leaves all other cores idle until it ends. Items are taken as they are
    needed, `AT_HAND` of them ahead, so that a list without an end needs no memory.

    Args:
        work: says how long an item is.
        items: what is to be done, taken in this order. Of items of one length the first comes first.
    """

    def __init__(self, work: _Work[Item, Any], items: Iterable[Item]) -> None:
        self._work, self._items = work, iter(items)
        self._numbers = itertools.count()
        self._at_hand: list[tuple[float, int, _Task[Item]]] = []

    def push(self, tasks: Iterable[_Task[Item]]) -> None:
        """Take these as well."""
        for task in tasks:
            heapq.heappush(self._at_hand, (-self._work.duration_s(task.item), next(self._numbers), task))

    def pop(self) -> _Task[Item] | None:
        """The next one; None where nothing is left."""
        self.push(_Task(item) for item in itertools.islice(self._items, max(0, AT_HAND - len(self._at_hand))))
        return heapq.heappop(self._at_hand)[2] if self._at_hand else None


def most_at_once(workers: int, num_cpus: int, grows: bool) -> int:
    """Most items that are submitted to Ray at a time.

    An autoscaler adds nodes for tasks that find no core. A cluster that may have one therefore gets
    `DEMAND_PER_CORE` tasks for each core, and `LEAST_DEMAND` while it has none. So it can double with each
    step, and what waits stays bounded.

    Args:
        workers: `run.workers`; 0 leaves it to the cluster.
        num_cpus: cores that the cluster has now.
        grows: whether nodes may be added to it.
    """
    if workers:
        return workers
    return max(LEAST_DEMAND, DEMAND_PER_CORE * num_cpus) if grows else max(1, num_cpus)


class RayExecutor(Executor):
    """Chains of Ray tasks on this machine, or on the cluster at `address`."""

    def __init__(self, config: Config, address: str | None = None) -> None:
        self._settings = config.run
        self._cluster = Cluster(config.run.workers or os.cpu_count() or 1, address)
        self.where = self._cluster.where
        self._ray = self._cluster.ray
        self._has_gpu = bool(self._ray.cluster_resources().get("GPU"))
        self._step = self._ray.remote(max_retries=0)(_do_step)
        # With the first task, not before: it would take the first process that Ray starts, which may load.
        self._heartbeats: Any = None
        self._asked: Any = None
        self._looked_s = 0.0
        self._idle_since_s: float | None = None
        self._num_submitted = 0
        self._warming: list[Any] = []
        self._warm_from_s = 0.0

    @property
    def num_workers(self) -> int:
        """Items that are worked on at a time; a cluster may grow."""
        return max(1, self._settings.workers or self._cluster.num_cpus())

    def warm_up(self, config: MeasureConfig, most: int) -> None:
        """A task for each core that is there, or as many as are wanted, loads the models into its process.

        Not where there are GPUs: what a task asked for decides which of them its process sees.
        """
        if self._has_gpu:
            return
        load = self._ray.remote(max_retries=0, num_cpus=1)(stages.load)
        self._warm_from_s = time.monotonic()
        self._warming = [load.remote(config.model_dump_json()) for _ in range(min(most, self.num_workers))]

    def release(self) -> None:
        """Begin to stop the Ray that was started here, or to leave the cluster."""
        self._cluster.leave()

    def close(self) -> None:
        """Stop the Ray that was started here, or leave the cluster."""
        self._cluster.close()

    def _each(
        self, work: _Work[Item, T], items: Iterable[Item], on_running: OnRunning | None = None
    ) -> Iterator[tuple[Item, T, float]]:
        """Keep a bounded number of items running."""
        waiting = _Waiting(work, items)
        running: list[_Task[Item]] = []
        self._looked_s = time.monotonic()
        try:
            while True:
                self._cluster.check()
                workers = self._settings.workers
                num_cpus = 0 if workers else self._cluster.num_cpus()  # a call that waits where Ray is lost
                most = most_at_once(workers, num_cpus, self._cluster.grows)
                while len(running) < most and (task := waiting.pop()) is not None:
                    running.append(self._submit(work, task))
                if not running:
                    return
                for task, result in self._collect(running):
                    if isinstance(result, BaseException):
                        follows = () if work.is_done(task.item) else self._follows(work, task, result)
                        level = logging.INFO if task in follows else logging.WARNING
                        log.log(level, "%s: %s", work.key(task.item), one_line(result))
                        if follows:
                            waiting.push(follows)
                            continue
                        result = work.give_up(task.item, result)
                    yield task.item, result, time.monotonic() - task.begin_s
                self._look(work, running, on_running)
        finally:
            # What runs on a Ray that ends with this executor ends with it, and must not be cancelled: Ray
            # 2.60 aborts this process where a task is cancelled as it begins ("Tried to complete task that
            # was not pending"), and the reason why the run has ended is never told.
            if not self._cluster.ours and not self._cluster.lost:
                for task in running:
                    if task.working:
                        self._cancel(task)

    def _submit(self, work: _Work[Item, T], task: _Task[Item]) -> _Task[Item]:
        self._num_submitted += 1
        task.number, task.begin_s = self._num_submitted, time.monotonic()
        task.working, task.worked_s, task.deadline_s = False, 0.0, work.deadline_s(task.item)
        if self._heartbeats is None:
            self._heartbeats = self._start_heartbeats()
        report = self._heartbeats
        heartbeat = Heartbeat(task.number, lambda what, *values: getattr(report, what).remote(*values))
        steps = [(step.function, step.arguments, step) for step in work.steps]
        first: Any = task.item
        if task.alone:
            first = self._ray.cloudpickle.dumps((work.call_alone, task.item))
            steps = [(alone.call, (), max(work.steps, key=lambda step: step.gpus))]
        task.refs = []
        for function, arguments, step in steps:
            own = (heartbeat,) if work.takes_callback and not task.refs and not task.alone else ()
            remote = self._step.options(
                name=getattr(function, "__name__", "call"),
                num_cpus=1 if task.alone else step.cpus,
                num_gpus=step.gpus if self._has_gpu else 0,
            )
            first = remote.remote(function, heartbeat, first, *arguments, *own)
            task.refs.insert(0, first)
        return task

    def _collect(self, running: list[_Task[Item]]) -> Iterator[tuple[_Task[Item], Any]]:
        """Tasks that are through, with their result or error; they are not running any more."""
        ready, _ = self._ray.wait([task.refs[0] for task in running], timeout=0.5)
        for task in list(running):
            if task.refs[0] in ready:
                result = self._get(task.refs[0])
            elif task.worked_s > task.deadline_s:
                self._cancel(task)
                result = TimeoutError(f"cancelled at its deadline of {task.deadline_s:.0f} s")
            else:
                continue
            running.remove(task)
            yield task, result

    def _get(self, ref: Any) -> Any:
        """The result, or the error that stands for it; what concerns the whole run is raised."""
        try:
            return self._ray.get(ref, timeout=60)
        except self._ray.exceptions.RayError as error:
            self._cluster.check()
            cause = error_of(error)
            if isinstance(cause, TalkforgeError) and not (isinstance(cause, RunError) and cause.kind):
                raise cause from None
            return cause

    def _follows(
        self, work: _Work[Item, T], task: _Task[Item], error: BaseException
    ) -> Sequence[_Task[Item]]:
        """What is tried after an error: the item again, its halves, it alone; nothing if that was all."""
        kind = kind_of(error)
        if kind == "cluster":
            task.lost += 1
            return [task] if task.lost < LOST_TRIES else []
        task.tries += 1
        if task.alone:
            return []
        if kind != "deadline" and task.tries < TRIES:
            return [task]
        if halves := work.halves(task.item):
            return [_Task(half) for half in halves]
        task.alone = kind == "worker"
        return [task] if task.alone else []

    def _look(
        self, work: _Work[Item, T], running: Sequence[_Task[Item]], on_running: OnRunning | None
    ) -> None:
        """Hear which tasks are at work and how far they are; never waits for it."""
        now_s = time.monotonic()
        for task in running:
            if task.working:
                task.worked_s += min(now_s - self._looked_s, IDLE_S)
        self._looked_s = now_s
        self._say_if_idle(running, now_s)
        self._look_at_warming(now_s)
        if self._asked is None:
            self._asked = self._heartbeats.read.remote([task.number for task in running])
        if not self._ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        states: dict[int, State] = {}
        try:
            states = self._ray.get(asked, timeout=60)
        except self._ray.exceptions.RayError:
            # What they have said is lost. Work that hangs must still be found, so all are taken to work.
            self._heartbeats = self._start_heartbeats()
            for task in running:
                task.working = True
        done = {}
        for task in running:
            if (state := states.get(task.number)) is not None:
                task.working = state.running
                if state.done is not None:
                    done[work.key(task.item)] = state.done
        if on_running is not None:
            on_running(done)

    def _look_at_warming(self, now_s: float) -> None:
        """Forget workers that have loaded, and end those that take for ever: each of them has a core."""
        if not self._warming:
            return
        ended, self._warming = self._ray.wait(self._warming, num_returns=len(self._warming), timeout=0)
        for ref in ended:
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError as error:  # who measures comes across it, and says so
                log.debug("models were not loaded ahead: %s", one_line(error_of(error)))
        if now_s - self._warm_from_s > PROBE_DEADLINE_S:
            for ref in self._warming:
                self._ray.cancel(ref, force=True)

    def _say_if_idle(self, running: Sequence[_Task[Item]], now_s: float) -> None:
        """One line when nothing could be started for long: a cluster whose nodes are still to come."""
        if not running or any(task.working or task.worked_s for task in running):
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s > PATIENCE_S:
            self._idle_since_s = float("inf")  # once
            log.warning(
                "nothing could be started for %.0f s: the cluster has %d cores; waiting for more",
                PATIENCE_S,
                self._cluster.num_cpus(),
            )

    def _start_heartbeats(self) -> Any:
        """The actor, on this machine: where it is lost with its node, so is the run."""
        here = self._ray.get_runtime_context().get_node_id()
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        return self._ray.remote(num_cpus=0, scheduling_strategy=strategy)(Heartbeats).remote()

    def _cancel(self, task: _Task[Item]) -> None:
        """End the step that is at work. Those after it fail for want of its result."""
        done, _ = self._ray.wait(task.refs, num_returns=len(task.refs), timeout=0)
        for ref in reversed(task.refs):
            if ref not in done:
                self._ray.cancel(ref, force=True)
                return


def _do_step(function: Callable[..., Any], heartbeat: Heartbeat, *arguments: Any) -> Any:
    """A step in a worker: says when it begins and ends."""
    with heartbeat:
        return function(*arguments)


def make_executor(name: str, config: Config, address: str | None = None) -> Executor:
    """The executor named `ray` or `inline`."""
    return InlineExecutor() if name == "inline" else RayExecutor(config, address)
