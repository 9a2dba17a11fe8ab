"""Both executors: what is in flight, what dies, what hangs, what is left to do.

Faults are functions of this file that stand in for stages; Ray takes them along by value.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from threadpoolctl import threadpool_info, threadpool_limits

from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import attempts, heartbeat, jobs, stages, tables
from talkforge.pipeline import executor as executor_module
from talkforge.pipeline.executor import Done, InlineExecutor, RayExecutor, make_executor
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.needs import Gathered
from talkforge.pipeline.parts import Part, Window, committed_parts, is_committed, remaining
from talkforge.pipeline.results import PartResult
from talkforge.pipeline.store import Store
from talkforge.schemas import telemetry
from talkforge.schemas.config import Config, MeasureConfig, load_config
from talkforge.schemas.errors import RunError
from talkforge.schemas.records import Failure, Input, Video
from tests.media_files import Pictures, steady, write_media

CONFIG = Config.model_validate({"run": {"workers": 2}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayExecutor]:
    """One Ray with two workers for all tests here, and with a GPU, or so it is told."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
        executor = RayExecutor(CONFIG)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    """Four silent videos: nothing needs to be measured of them."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_media(folder / f"{n}.mp4", Pictures(steady(5), first_number=9 * n)) for n in range(4)]
    return [probe(path, Input(uri=str(path)), content_hash(path)) for path in paths]


def part_of(name: str, videos: Sequence[Video]) -> Part:
    return Part(name=name, windows=tuple(Window(video=v, start_s=v.start_s, end_s=v.end_s) for v in videos))


def results(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.list() if not name.endswith("part.json")}


# ----------------------------------------------------------------------------- faults


def die(_: Window) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(_: Window) -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # Ray's handler writes a report first
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(_: Window) -> None:
    os._exit(7)


def die_once(mark: str, _: Window) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def disk_full(_: Window) -> None:
    raise RunError("cannot write x: No space left on device")


Fault = Callable[[Window], None]


def faulty(bad: str, fault: Fault, measure: Callable[..., Any]) -> Callable[..., Any]:
    """A stage of measuring, with a fault in the window of one video."""

    def measure_or_fail(part: Part, config: MeasureConfig, store: Store) -> Any:
        for window in part.windows:
            if window.video.video_id == bad:
                fault(window)
        return measure(part, config, store)

    return measure_or_fail


def _measure(part: Part, _config: MeasureConfig, _store: Store) -> Part:
    return part


def _embed(part: Part, _config: MeasureConfig, _store: Store) -> Part:
    return part


real_commit = stages.commit


def _commit(part: Part | PartResult, store: Store) -> Any:
    if isinstance(part, PartResult):  # of a part that was given up
        return real_commit(part, store)
    tables.write(store, f"parts/{part.name}/windows.parquet", Window, part.windows)
    store.write(f"parts/{part.name}/part.json", b"{}")
    return part.duration_s


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages without models, so that a fresh worker is ready in a second or two."""
    for name, stage in (("measure", _measure), ("embed", _embed), ("commit", _commit)):
        monkeypatch.setattr(stages, name, stage)


# -------------------------------------------------------------------- deaths and delays


@pytest.mark.parametrize(
    ("fault", "kind", "message", "path", "others"),
    [
        (crash, "video", "the worker died (SIGSEGV), alone as well", "10", ("0", "11")),
        (leave, "video", "the worker died (exit code 7), alone as well", "1", ("0",)),
        (die, "worker", "the worker died (SIGKILL), alone as well", "1", ("0",)),
    ],
)
@pytest.mark.usefixtures("light")
def test_a_window_that_kills_its_worker_fails_alone(
    cluster: RayExecutor,
    videos: list[Video],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    kind: str,
    message: str,
    path: str,
    others: tuple[str, ...],
) -> None:
    """A crash is committed as the window's failure; what somebody else killed is put off.

    `path` leads to the window with the fault, see `piece_of`, which is divided from `others`.
    """
    store, whole = Store(str(tmp_path)), part_of("000000", videos if len(path) == 2 else videos[:2])
    (window,) = piece_of(whole, path).windows
    bad = window.video
    monkeypatch.setattr(stages, "measure", faulty(bad.video_id, fault, _measure))
    done = {item.part.name: item.put_off for item in cluster.run([whole], CONFIG, store)}
    assert set(done) == named(whole, path, *others)
    put_off = [failure for failures in done.values() for failure in failures]
    assert set(committed_parts(store)) == named(whole, *others, *([] if put_off else [path]))
    bad_part = piece_of(whole, path).name
    (failure,) = put_off or tables.read(store, f"parts/{bad_part}/failures.parquet", Failure)
    assert bool(put_off) == (kind != "video") == bool(attempts.waiting(store, [whole]))
    assert (failure.stage, failure.video_id, failure.uri) == ("measure", bad.video_id, bad.uri)
    assert failure.key == f"{bad.video_id} [0.0, 0.2) s"
    assert (failure.error, failure.kind, failure.message) == ("RunError", kind, message)
    assert {piece.name for piece in remaining([whole], store)} == (named(whole, path) if put_off else set())


class HangClock:
    """A clock that moves only while what hangs is all that is left to wait for.

    Args:
        cluster: the executor.
        hanging: folder with a file for each task that began to hang.
        finished: what has been finished.
        before: how many are finished before the first one is cancelled.
    """

    def __init__(
        self, cluster: RayExecutor, hanging: Path, finished: Sequence[object], before: int = 0
    ) -> None:
        self._now_s, self._num_cancelled, self._before = 0.0, 0, before
        self._hanging, self._finished, self._cancel = hanging, finished, cluster._cancel

    def cancel(self, task: Any) -> None:
        self._num_cancelled += 1
        self._cancel(task)

    def monotonic(self) -> float:
        begun = len(list(self._hanging.iterdir())) > self._num_cancelled
        if begun and len(self._finished) >= self._num_cancelled + self._before:
            self._now_s += 4
        return self._now_s


@pytest.mark.usefixtures("light")
def test_a_window_that_hangs_fails_alone_at_its_deadline(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bad = Store(str(tmp_path / "set")), videos[0]
    log = tmp_path / "log"
    log.mkdir()

    def measure(part: Part, _config: MeasureConfig, _store: Store) -> Part:
        if any(window.video.video_id == bad.video_id for window in part.windows):
            (log / part.name).touch()
            time.sleep(600)
        return part

    done: list[Done] = []
    clock = HangClock(cluster, log, done, before=1)
    monkeypatch.setattr(stages, "measure", measure)
    monkeypatch.setattr(cluster, "_cancel", clock.cancel)
    monkeypatch.setattr(executor_module, "time", clock)
    config = Config.model_validate({"run": {"workers": 2, "deadline_min_s": 10, "deadline_factor": 0.001}})
    first, second = part_of("000000", videos[:2]), part_of("000001", videos[2:])
    for item in cluster.run([first, second], config, store):
        done.append(item)
    assert {path.name for path in log.iterdir()} == named(first, "", "0")  # no third try
    assert {item.part.name for item in done} == named(first, "0", "1") | {"000001"}
    assert set(committed_parts(store)) == named(first, "1") | {"000001"}
    ((name, failure),) = attempts.waiting(store, [first, second]).items()
    assert {name} == named(first, "0")
    assert (failure.kind, failure.error) == ("deadline", "TimeoutError")
    assert failure.message == "cancelled at its deadline of 10 s"


def test_a_worker_that_is_killed_once_leaves_no_trace(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, killed = Store(str(tmp_path / "calm")), Store(str(tmp_path / "killed"))
    parts = [part_of("000000", videos[:2]), part_of("000001", videos[2:])]
    names = [item.part.name for item in InlineExecutor().run(parts, CONFIG, calm)]
    assert names == ["000000", "000001"]
    mark = tmp_path / "mark"
    once = functools.partial(die_once, str(mark))
    monkeypatch.setattr(stages, "measure", faulty(videos[1].video_id, once, stages.measure))
    done = list(cluster.run(parts, CONFIG, killed))
    assert mark.exists()
    assert sorted(item.part.name for item in done) == names
    assert results(killed) == results(calm)


def test_what_concerns_the_whole_run_ends_it(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "measure", faulty(videos[0].video_id, disk_full, stages.measure))
    for executor in (cluster, InlineExecutor()):
        store = Store(str(tmp_path / type(executor).__name__))
        with pytest.raises(RunError, match=r"^cannot write x: No space left on device$"):
            list(executor.run([part_of("000000", videos)], CONFIG, store))
        assert committed_parts(store) == []


def test_a_call_that_kills_its_worker_ends_the_run_after_three_tries(
    cluster: RayExecutor, tmp_path: Path
) -> None:
    def call(mark: Path) -> None:
        with mark.open("a") as file:
            file.write("x")
        os._exit(1)

    with pytest.raises(RunError, match="the worker died"):
        list(cluster.map(call, [(tmp_path / "mark",)]))
    assert (tmp_path / "mark").read_text() == "xxx"


def test_what_runs_when_a_run_is_given_up_ends_with_ray_and_is_not_cancelled(
    cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may abort this process where a task is cancelled as it begins."""
    cancelled: list[Any] = []
    monkeypatch.setattr(cluster._ray, "cancel", lambda ref, **_: cancelled.append(ref))
    ended = tmp_path / "ended"

    def call(number: int) -> int:
        while number and not ended.exists():
            time.sleep(0.05)
        return number

    results = cluster.map(call, [(0,), (1,)])
    assert next(results) == 0
    assert isinstance(results, Generator)
    results.close()
    ended.touch()
    assert cancelled == []


def test_of_a_part_that_hangs_only_the_step_at_work_is_cancelled(
    cluster: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[Any] = []
    monkeypatch.setattr(cluster._ray, "wait", lambda refs, **_: (refs[2:], refs[:2]))
    monkeypatch.setattr(cluster._ray, "cancel", lambda ref, **_: cancelled.append(ref))
    cluster._cancel(executor_module._Task(0, refs=["commit", "embed", "measure"]))
    assert cancelled == ["embed"]


@dataclass(frozen=True)
class Numbers:
    """Work that can be divided."""

    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        return "-".join(map(str, self.numbers))

    @property
    def duration_s(self) -> float:
        return 0.0

    def halves(self) -> tuple[Numbers, ...]:
        middle = len(self.numbers) // 2
        return (Numbers(self.numbers[:middle]), Numbers(self.numbers[middle:])) if middle else ()


def test_work_that_kills_its_worker_is_divided_until_it_stands_alone(cluster: RayExecutor) -> None:
    def add(piece: Numbers) -> tuple[int, ...]:
        if 3 in piece.numbers:
            os._exit(1)
        return piece.numbers

    lost: list[tuple[Numbers, BaseException]] = []

    def give_up(piece: Numbers, error: BaseException) -> tuple[int, ...]:
        lost.append((piece, error))
        return ()

    work = [Numbers((1, 2, 3, 4)), Numbers((5, 6))]
    assert sorted(cluster.isolate(add, work, give_up)) == [(), (1, 2), (4,), (5, 6)]
    ((piece, error),) = lost
    assert piece == Numbers((3,))
    assert str(error).startswith("the worker died (")
    assert list(InlineExecutor().isolate(add, work[1:], give_up)) == [(5, 6)]


def test_work_that_hangs_is_divided_at_its_deadline(
    cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hanging(piece: Numbers) -> tuple[Any, ...]:
        if 3 in piece.numbers:
            (tmp_path / piece.name).touch()
            time.sleep(600)
        return piece.numbers

    found: list[tuple[Any, ...]] = []

    config = Config.model_validate({"run": {"deadline_min_s": 10}})
    monkeypatch.setattr(cluster, "_settings", config.run)
    clock = HangClock(cluster, tmp_path, found)
    monkeypatch.setattr(cluster, "_cancel", clock.cancel)
    monkeypatch.setattr(executor_module, "time", clock)
    for result in cluster.isolate(hanging, [Numbers((3, 4))], lambda piece, error: (piece.name, str(error))):
        found.append(result)
    assert found == [(4,), ("3", "cancelled at its deadline of 10 s")]
    assert {path.name for path in tmp_path.iterdir()} == {"3-4", "3"}


def test_an_input_that_kills_its_worker_is_a_failed_row(
    cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ingest(source: Input, base: str, _: object) -> IngestRow:
        assert base == ""
        if source.uri.endswith("bad.mp4"):
            os._exit(1)
        return IngestRow(input=source, stamp="1", status="planned")

    monkeypatch.setattr(executor_module, "ingest", ingest)
    sources = [Input(uri=str(tmp_path / name)) for name in ("a.mp4", "bad.mp4", "c.mp4")]
    rows = {Path(row.input.uri).name: row for row in cluster.ingest(sources)}
    assert {name: row.status for name, row in rows.items()} == {
        "a.mp4": "planned",
        "bad.mp4": "failed",
        "c.mp4": "planned",
    }
    failure = rows["bad.mp4"].failure
    assert failure is not None
    assert (failure.stage, failure.uri) == ("probe", sources[1].uri)
    assert failure.message.startswith("the worker died (")


# -------------------------------------------------------------------- order and numbers


@pytest.mark.usefixtures("light")
def test_no_more_is_in_flight_than_there_are_workers(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.mkdir()

    def measure(part: Part, _config: MeasureConfig, _store: Store) -> Part:
        begin_s = time.time()
        time.sleep(0.2)
        (log / f"{begin_s:.6f} {time.time():.6f}").touch()
        return part

    monkeypatch.setattr(stages, "measure", measure)
    taken: list[str] = []
    done: list[str] = []
    ahead: list[int] = []

    def parts() -> Iterator[Part]:
        for number in range(6):
            taken.append(f"{number:06d}")
            yield part_of(taken[-1], videos[:1])

    store = Store(str(tmp_path / "set"))
    for item in cluster.run(parts(), CONFIG, store):
        done.append(item.part.name)
        ahead.append(len(list(log.iterdir())) - len(done))
    assert sorted(done) == taken
    spans = [tuple(map(float, path.name.split())) for path in log.iterdir()]
    assert len(spans) == 6
    assert max(sum(a <= begin_s < b for a, b in spans) for begin_s, _ in spans) <= 2
    assert max(ahead) <= 2


def test_the_longest_of_what_is_at_hand_begins_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "AT_HAND", 3)
    taken: list[str] = []

    def items() -> Iterator[str]:
        for item in ("b1", "f5", "c2", "g9", "d3", "a1"):
            taken.append(item)
            yield item

    work: Any = executor_module._Work([], lambda item, _: item, duration_s=lambda item: float(item[1]))
    waiting = executor_module._Waiting(work, items())
    begun = [task.item for task in itertools.islice(iter(waiting.pop, None), 2)]
    assert (begun, taken) == (["f5", "g9"], ["b1", "f5", "c2", "g9"])
    waiting.push([executor_module._Task("e4")])  # half of one that hung
    begun = [task.item for task in iter(waiting.pop, None)]
    assert begun == ["e4", "d3", "c2", "b1", "a1"]  # of one length the first is first
    assert waiting.pop() is None


def test_every_worker_loads_models_ahead_and_one_that_hangs_is_ended(
    cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.measure

    def load(config_json: str) -> None:
        assert config_json == config.model_dump_json()
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        if str(os.getpid()) == min(path.name for path in tmp_path.iterdir()):
            raise ValueError("weights are damaged")  # it is told by who measures
        time.sleep(600)

    monkeypatch.setattr(stages, "load", load)
    cluster.warm_up(config, 9)  # a GPU is there: who has asked for none of it may not load for it
    assert cluster._warming == []
    monkeypatch.setattr(cluster, "_has_gpu", False)
    cluster.warm_up(config, 9)
    assert len(cluster._warming) == 2
    deadline_s = time.monotonic() + 300
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline_s, "not both workers load"
        time.sleep(0.05)
    monkeypatch.setattr(executor_module, "PROBE_DEADLINE_S", 0.0)

    def both(number: int) -> int:
        """Ends when both calls are at work, so each of them needs a core."""
        (tmp_path / f"call {number}").touch()
        while len(list(tmp_path.glob("call *"))) < 2:
            time.sleep(0.05)
        return number

    assert sorted(cluster.map(both, [(1,), (2,)])) == [1, 2]
    while cluster._warming:
        assert time.monotonic() < deadline_s, "a worker that was ended is still waited for"
        cluster._look_at_warming(time.monotonic())
        time.sleep(0.05)
    gc.collect()
    monkeypatch.setattr(stages, "load", lambda _: None)
    cluster.warm_up(config, 1)  # one input needs one worker
    assert len(cluster._warming) == 1
    assert "damaged" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("light")
def test_embedding_takes_its_share_of_a_gpu_while_other_parts_are_measured(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.mkdir()

    def embed(part: Part, _config: MeasureConfig, _store: Store) -> Part:
        (log / f"embedded {ray.get_runtime_context().get_assigned_resources().get('GPU', 0.0)}").touch()
        return part

    def measure(part: Part, _config: MeasureConfig, _store: Store) -> Part:
        """The second part is measured until the first one is being embedded, or five minutes."""
        (log / f"measured {ray.get_runtime_context().get_assigned_resources().get('GPU', 0.0)}").touch()
        deadline_s = time.monotonic() + 300
        while part.name == "000001" and not list(log.glob("embedded*")):
            assert time.monotonic() < deadline_s, "nothing is embedded while this is measured"
            time.sleep(0.05)
        return part

    monkeypatch.setattr(stages, "measure", measure)
    monkeypatch.setattr(stages, "embed", embed)
    parts = [part_of(name, videos[:1]) for name in ("000000", "000001")]
    store = Store(str(tmp_path / "set"))
    assert sorted(done.part.name for done in cluster.run(parts, CONFIG, store)) == ["000000", "000001"]
    assert store.list("parts/000001") == ["parts/000001/part.json", "parts/000001/windows.parquet"]
    assert json.loads(store.read("parts/000001/part.json")) == {}  # committed, not given up
    assert {path.name for path in log.iterdir()} == {"measured 0.0", f"embedded {CONFIG.run.gpu_share}"}


def test_calls_come_back_in_order_inline_and_all_of_them_from_ray(cluster: RayExecutor) -> None:
    def slower_first(number: int) -> int:
        time.sleep(0.3 if number == 0 else 0)
        return number

    calls = [(number,) for number in range(5)]
    assert list(InlineExecutor().map(slower_first, calls)) == [0, 1, 2, 3, 4]
    assert sorted(cluster.map(slower_first, calls)) == [0, 1, 2, 3, 4]


def blas_threads(*_: object) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_process_computes_with_one_thread_as_a_worker_does(cluster: RayExecutor) -> None:
    with threadpool_limits(2, "blas"):
        assert list(InlineExecutor().map(blas_threads, [(0,)])) == [{1}]
        assert blas_threads() == {2}
    assert list(cluster.map(blas_threads, [(0,)])) == [{1}]


def test_executors_have_names() -> None:
    assert isinstance(make_executor("inline", CONFIG), InlineExecutor)


# ------------------------------------------------------------------------- what is left


def piece_of(part: Part, path: str) -> Part:
    """A piece of a part: "10" is the first half of its second half, "" the part itself."""
    for half in path:
        part = part.halves()[int(half)]
    return part


def named(part: Part, *paths: str) -> set[str]:
    """Names of pieces of a part."""
    return {piece_of(part, path).name for path in paths}


@pytest.mark.parametrize(
    ("committed", "left"),
    [
        ([], [""]),
        ([""], []),
        (["0"], ["1"]),
        (["1"], ["0"]),
        (["0", "1"], []),
        (["10"], ["0", "11"]),
        (["0", "10", "11"], []),
        (["00", "11"], ["01", "10"]),
    ],
)
def test_what_is_left_of_a_part_that_was_split(
    videos: list[Video], tmp_path: Path, committed: list[str], left: list[str]
) -> None:
    store, part = Store(str(tmp_path)), part_of("000000", videos)
    for piece in (part_of("000001", videos), *(piece_of(part, path) for path in committed)):
        _commit(piece, store)
    pieces = remaining([part], store)
    assert {piece.name for piece in pieces} == named(part, *left)
    assert len(pieces) == len(left)
    assert is_committed(part, store) == ("" in committed)
    if left == [""]:
        assert pieces == [part]


# ------------------------------------------------------------------------------- Ctrl-C


def test_an_interrupted_run_lets_go_of_its_executor(
    videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Interrupted(InlineExecutor):
        def run(self, *_: object) -> Iterator[Any]:
            raise KeyboardInterrupt
            yield

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(jobs, "gather", lambda config, _: Gathered(config, (), (), LogMelEncoder()))
    with pytest.raises(KeyboardInterrupt):
        jobs.curate([videos[0].uri], Store(str(tmp_path / "set")), CONFIG, Interrupted)
    assert closed == [True]
    # The lock is gone as well: the same command goes on from here.
    with pytest.raises(KeyboardInterrupt):
        jobs.curate([videos[0].uri], Store(str(tmp_path / "set")), CONFIG, Interrupted)


def switches(_: int) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in telemetry.SWITCHES}


def test_usage_reports_are_off_in_workers(cluster: RayExecutor) -> None:
    assert list(cluster.map(switches, [(0,)])) == [{name: os.environ[name] for name in telemetry.SWITCHES}]


# ------------------------------------------------------------------------------- heartbeats


def _measure_in_steps(
    part: Part, _config: MeasureConfig, _store: Store, on_progress: Callable[[float], None]
) -> Part:
    """Says every half second that it has done one more second, until somebody has heard it."""
    mark = Path(part.windows[0].video.uri).with_suffix(".heard")
    for done_s in range(1, 200):
        on_progress(done_s)
        if mark.exists():
            break
        time.sleep(0.5)
    return part


@pytest.mark.usefixtures("light")
def test_a_running_part_says_how_far_it_is(
    cluster: RayExecutor, videos: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "measure", _measure_in_steps)
    uri = str(tmp_path / "long.mp4")
    part = part_of("000000", [videos[0].model_copy(update={"uri": uri})])
    heard: list[dict[str, float]] = []

    def listen(running: Mapping[str, float]) -> None:
        heard.append(dict(running))
        if max(running.values(), default=0) > 2:
            Path(uri).with_suffix(".heard").touch()

    done = list(cluster.run([part], CONFIG, Store(str(tmp_path / "set")), listen))
    assert [item.part for item in done] == [part]
    told = [running["000000"] for running in heard if running]
    assert told == sorted(told) and told[-1] > 2


def _count_up(most: int, on_progress: Callable[[float], None]) -> int:
    for done in range(most):
        on_progress(done)
    return most


def test_calls_say_how_far_they_are() -> None:
    heard: list[Mapping[str, float]] = []
    assert list(InlineExecutor().map(_count_up, [(3,), (1,)], heard.append)) == [3, 1]
    assert heard[0] == {"0": 0} and {"1": 0} in heard  # at most one report a second


def test_measuring_says_how_far_in_a_part_it_is(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.0)
    heard: list[float] = []
    found = [
        probe(path, Input(uri=str(path)), content_hash(path))
        for path in (measured.videos / "a.mp4", measured.videos / "nobody.mp4")
    ]
    part = part_of("000000", found)
    settings = ["measure.motion.body=none"]
    done = InlineExecutor().run(
        [part],
        load_config("offline", settings),
        Store(str(tmp_path / "set")),
        lambda running: heard.append(running["000000"]),
    )
    assert len(list(done)) == 1
    assert heard == sorted(heard)
    assert 0 <= heard[0] < 0.1 and part.duration_s - 1 < heard[-1] <= part.duration_s
    assert len([done_s for done_s in heard if done_s < 3]) > 50  # frame by frame, in both passes
