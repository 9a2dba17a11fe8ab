"""Ray for one run: its own or a cluster that is joined, whether it answers, and what its errors mean."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from talkforge.schemas import scratch, telemetry
from talkforge.schemas.errors import FailureKind, RunError, TalkforgeError, one_line

log = logging.getLogger(__name__)

_Job = TypeVar("_Job")

MAX_SOCKET_PATH = 107
"""Longest path of a Unix socket, bytes. Source: unix(7)."""

SOCKET_PATH_IN_FOLDER = len(
    "/.talkforge-12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
)
"""How much of it Ray's longest socket path takes up below the folder of temporary files."""

GRACE_S = 5.0
"""Ray is lost when it does not answer for so long, s."""

SAY_S = 20.0
"""A loss that the run has not come across by then is told all the same, s. Ray ends the process at 60."""

_KINDS: dict[str, FailureKind] = {
    "WorkerCrashedError": "worker",
    "OutOfMemoryError": "memory",
    "ObjectStoreFullError": "memory",
    "OutOfDiskError": "storage",
}
"""What Ray's errors are the fault of; all others are the cluster's (node removed, object lost, ...)."""


class Cluster:
    """A Ray that this process is connected to.

    Args:
        workers: processes of a Ray that is started here.
        address: of the cluster to join, such as `auto`; None starts one that nobody else sees.

    Attributes:
        ray: the module.
        where: what the run runs on, in words.
        grows: whether nodes may be added while it runs: it is a cluster that was joined.

    Raises:
        RunError: Ray does not start, or there is no cluster.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        # Ray reads it when it is imported: deaths of workers are told by us, in one line.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # its advice on start-up is not for our users
        self.ray = ray
        self.where = ""
        self.ours = not ray.is_initialized()
        self.grows = address is not None
        self._exit = ExitStack()
        self._closed = threading.Event()
        self._lost_since_s: float | None = None
        self._told = False
        self._leaving: Future[None] | None = None
        env = worker_environment()
        os.environ.update(env)  # a Ray that starts here hands its environment on
        try:
            with uninterrupted():
                if not self.ours:
                    self.where = "the Ray that this process is connected to"
                elif address:
                    _check_answers(address)
                    self._init(address=address, runtime_env={"env_vars": env})
                    self.where = self._joined()
                else:
                    self._init(address="local", num_cpus=workers, _temp_dir=str(self._folder()))
                    self.where = f"a Ray of its own with {workers} workers"
        except BaseException as error:
            self.close()
            if isinstance(error, TalkforgeError) or not isinstance(error, Exception):
                raise
            what = f"no Ray cluster at {address}" if address else "Ray does not start"
            raise RunError(f"{what}: {one_line(error)}", "cluster") from None
        log.info("runs on %s", self.where)
        if not address and os.environ.get("RAY_ADDRESS"):
            log.warning("RAY_ADDRESS is not used without --address auto; this runs on %s", self.where)
        # Its own thread: the run may be busy with something else when Ray is lost.
        threading.Thread(target=self._watch, name="talkforge-ray", daemon=True).start()

    def check(self) -> None:
        """Raise RunError where Ray is lost; to be called often, and before Ray is asked for anything."""
        if self._lost():
            self._told = True
            raise RunError(self._loss(), "cluster")

    @property
    def lost(self) -> bool:
        """Whether `check` has found Ray lost."""
        return self._told

    def num_cpus(self) -> int:
        """Cores of the cluster as it is now."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def num_gpus(self) -> int:
        """GPUs of the cluster as it is now."""
        return int(self.ray.cluster_resources().get("GPU", 0))

    def share(
        self,
        jobs: Iterable[_Job],
        count: int,
        start: Callable[[], Any],
        ask: Callable[[Any, _Job], Any],
    ) -> Iterator[tuple[_Job, Any]]:
        """Share jobs among some workers, each of which gets the next one when it has answered.

        Args:
            jobs: begun in this order.
            count: most workers.
            start: starts a worker: an actor, or whatever `ask` needs.
            ask: gives a worker a job. Returns Ray's reference of the answer.

        Yields:
            Each job with its answer as they come, or with the error where there is none, see `error_of`.
            A new worker takes the place of one that has failed.

        Raises:
            RunError: Ray is lost.
        """
        waiting = iter(jobs)
        running: dict[Any, tuple[Any, _Job]] = {}

        def give(worker: Any) -> None:
            for job in itertools.islice(waiting, 1):
                worker = start() if worker is None else worker
                running[ask(worker, job)] = (worker, job)

        for _ in range(count):
            give(None)
        while running:
            self.check()
            ready, _ = self.ray.wait(list(running), timeout=1.0)
            for reference in ready:
                worker, job = running.pop(reference)
                answer: Any
                try:
                    answer = self.ray.get(reference)
                except self.ray.exceptions.RayError as error:
                    answer, worker = error_of(error), None
                yield job, answer
                give(worker)

    def leave(self) -> None:
        """Begin to close, in a thread: Ray waits for its processes one after the other."""
        if self._leaving is None:
            self._closed.set()
            if self.ours:
                os.environ.pop(scratch.OWNER, None)  # what starts from here on does not end with Ray
            thread = ThreadPoolExecutor(1, "talkforge-leave")
            self._leaving = thread.submit(self._leave)
            thread.shutdown(wait=False)

    def close(self) -> None:
        """Stop the Ray that was started here, or leave the cluster."""
        with uninterrupted():
            self.leave()
            if self._leaving is not None:
                self._leaving.result()

    def _leave(self) -> None:
        with self._exit:
            if self.ours:
                self.ray.shutdown()

    def _init(self, **how: Any) -> None:
        handlers, terminated = _handlers(), False
        try:
            self.ray.init(
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
                **how,
            )
        except SystemExit:  # what Ray makes of SIGTERM while it starts; later on it aborts
            terminated = True
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if terminated:
            signal.raise_signal(signal.SIGTERM)

    def _joined(self) -> str:
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        address = self.ray.get_runtime_context().gcs_address
        return f"the Ray cluster at {address}: {len(nodes)} nodes, {self.num_cpus()} cores"

    def _folder(self) -> Path:
        """A folder for Ray's sockets and logs, removed with all that is in it when the run ends."""
        usual = tempfile.gettempdir()
        longest = MAX_SOCKET_PATH - SOCKET_PATH_IN_FOLDER
        fitting = [path for path in (usual, "/tmp") if len(os.fsencode(path)) <= longest]
        parent = next((path for path in fitting if os.access(path, os.W_OK)), None)
        if parent is None:
            raise RunError(
                f"Ray does not start: its sockets need a TMPDIR of at most {longest} characters, "
                f"found {usual!r}, and /tmp cannot be written to"
            )
        scratch.sweep(parent)
        folder = self._exit.enter_context(scratch.folder(parent))
        self._exit.callback(scratch.end_processes, folder)
        os.environ[scratch.OWNER] = str(folder)
        self._exit.callback(os.environ.pop, scratch.OWNER, None)
        return folder

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            if self._lost(SAY_S) and not self._told:
                log.error("%s", self._loss())
                return

    def _lost(self, grace_s: float = GRACE_S) -> bool:
        """Whether Ray has not been there for so long, by all that was asked so far."""
        if self._missing() is None:
            self._lost_since_s = None
            return False
        now_s = time.monotonic()
        self._lost_since_s = self._lost_since_s or now_s
        return now_s - self._lost_since_s >= grace_s

    def _loss(self) -> str:
        return f"Ray is lost: {self._missing() or 'it did not answer'}; the same command goes on from here"

    def _missing(self) -> str | None:
        """The process of Ray that is not there; None where all is well.

        Neither Ray's `wait` nor its `get` say so: without a raylet they wait for ever, and without its
        control store (GCS) they end the process after a minute.
        """
        node = self.ray._private.worker._global_node  # no public way says where they are
        if node is None:  # through a client, which raises errors of its own
            return None
        raylet = str(node.raylet_socket_name)
        with suppress(OSError):
            if raylet not in Path("/proc/net/unix").read_text():
                return "its raylet on this machine has died"
        host, _, port = str(node.gcs_address).rpartition(":")
        try:
            _connect(host, port)
        except OSError as error:
            return f"its control store (GCS) at {node.gcs_address} does not answer ({one_line(error)})"
        return None


def _connect(host: str, port: str) -> None:
    """Raise OSError where nobody listens."""
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _check_answers(address: str) -> None:
    """Raise OSError where an address of a host and port does not answer: Ray would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        _connect(host, port)


def error_of(error: Exception) -> Exception:
    """The error that a Ray error stands for.

    Args:
        error: what `ray.get` raised.

    Returns:
        What the task raised, or an earlier task of its chain; a RunError with a kind where Ray itself or one
        of its processes failed.
    """
    import ray

    cause: Exception = error
    while isinstance(found := getattr(cause, "cause", None), Exception):
        cause = found
    if not isinstance(cause, ray.exceptions.RayError):
        return cause
    name = type(cause).__name__
    kind = _KINDS.get(name, "cluster")
    what = {"worker": "the worker died", "memory": "the worker was out of memory"}.get(kind, "Ray failed")
    return RunError(f"{what} ({name})", kind)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C and SIGTERM off until the block is over: a half started Ray leaves processes behind.

    A second signal gets through at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            pass_on(number, frame)

    def pass_on(number: int, frame: Any) -> None:
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = _handlers()
    for number in before:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if len(came) == 1:
        pass_on(came[0], None)


def _handlers() -> dict[int, Any]:
    """What Ctrl-C and SIGTERM do now, by number, where that was set from Python."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def worker_environment() -> dict[str, str]:
    """Environment of workers: threads, the folders of weights, and the switches of telemetry.

    Each has one thread, so that they neither wait for one another nor give other bytes than a single process.
    The folders may be relative here, and are made absolute.
    """
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env |= telemetry.as_set()
    folders = {name: os.environ.get(name) for name in ("TALKFORGE_MODELS", "TALKFORGE_CACHE")}
    return env | {name: str(Path(folder).absolute()) for name, folder in folders.items() if folder}
