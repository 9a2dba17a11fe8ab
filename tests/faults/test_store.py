"""Every operation of the store fails once, at every place where a run does it: the same command mends it.

As SQLite is tested: a run in which the n-th operation fails, for every n until there are no more. It may end
with one line, or go on without what it could not read. The same command without a fault must then give the
bytes of a run that nothing happened to.

Measuring and cutting are played back from a data set that was really measured; planning, committing,
selecting, packing and every read and write are real. `--full` tries every n, and so does `make faults`;
the suite tries every `LOCAL_STEP`-th and `S3_STEP`-th before its effect, and after it those half way between.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkforge.pipeline import cut, jobs, report, small_arrays, stages, tables
from talkforge.pipeline.dataset import load_ingested, load_plan
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.needs import gather
from talkforge.pipeline.parts import Part
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import load_config
from talkforge.schemas.errors import TalkforgeError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import ClipMeasures, Failure, Outcome, Record, Scene, Track
from talkforge.schemas.sample import Members
from tests.conftest import ROOT, SETTINGS, Curated

CONFIG = load_config(ROOT / "configs" / "offline.yaml", SETTINGS)

LOCAL_STEP, S3_STEP = 29, 53
"""Every so many operations fail in the suite. Primes, so that they do not always meet the same kind."""

ERRORS = (
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
)


# ------------------------------------------------------------------------------ play back


@dataclass(frozen=True)
class Played:
    """A data set that was measured, to be made again without decoding."""

    videos: Path
    rows: dict[str, IngestRow]
    results: dict[str, PartResult]
    """By the name of the part."""
    arrays: dict[str, bytes]
    """Files of the parts with the arrays of a clip, by their name."""
    samples: dict[str, Members]
    models: Any

    def measure(self, part: Part, _config: Any, store: Store, *_: Any) -> PartResult:
        """Stands in for `stages.measure`."""
        known = self.results[part.name]
        names = [name for name in known.files if not name.endswith(".speech.npz")]
        return PartResult(
            part, [*known.outcomes], [*known.scenes], [*known.tracks], [*known.clips], [*known.failures],
            files=self._write(part, names, store),
        )  # fmt: skip

    def embed(self, result: PartResult, _config: Any, store: Store) -> PartResult:
        """Stands in for `stages.embed`."""
        names = [n for n in self.results[result.part.name].files if n.endswith(".speech.npz")]
        result.files |= self._write(result.part, names, store)
        return result

    def _write(self, part: Part, names: Iterable[str], store: Store) -> dict[str, str]:
        paths = {name: f"parts/{part.name}/{name}" for name in names}
        return {name: store.write(path, self.arrays[path]) for name, path in paths.items()}

    def executor(self) -> InlineExecutor:
        """Stands in for the executor: it reads no input."""
        rows = self.rows

        class Executor(InlineExecutor):
            def ingest(self, inputs: Iterable[Any], *_: Any) -> Iterator[IngestRow]:
                yield from (rows[given.uri] for given in inputs)

        return Executor()

    def curate(self, root: str) -> None:
        """The command."""
        jobs.curate([str(self.videos)], Store(root), CONFIG, self.executor)


@pytest.fixture(scope="module")
def played(measured: Curated) -> Iterator[Played]:
    with playing_back(measured) as playing:
        yield playing


@contextmanager
def playing_back(measured: Curated) -> Iterator[Played]:
    """Until the block ends, measuring and cutting are played back from a data set."""
    store = Store(str(measured.dataset))
    results, arrays = {}, {}
    for part in load_plan(store):
        folder = f"parts/{part.name}"

        def read(name: str, model: type[Record], folder: str = folder) -> list[Any]:
            return tables.read(store, f"{folder}/{name}.parquet", model)

        features = small_arrays.read(store, folder)
        images = read_npz(store.read(f"{folder}/thumbnails.npz"), "thumbnails.npz")
        clips = []
        for measures in read("clips", ClipMeasures):
            key = measures.clip.clip_id
            face = images.get(f"{key}/face", np.zeros(0, np.uint8)).tobytes()
            clips.append(MeasuredClip(measures, images[key].tobytes(), face, features=features.get(key, {})))
        names = [n for n in store.list(folder) if n.endswith(".npz") and n.rpartition("/")[2][0].isdigit()]
        arrays |= {name: store.read(name) for name in names}
        files = {name.rpartition("/")[2]: "" for name in names}
        results[part.name] = PartResult(
            part, read("outcomes", Outcome), read("scenes", Scene), read("tracks", Track), clips,
            read("failures", Failure), files=files,
        )  # fmt: skip
    shards = [name for name in store.list("shards") if name.endswith(".tar")]
    playing = Played(
        videos=measured.videos,
        rows={row.input.uri: row for row in load_ingested(store)},
        results=results,
        arrays=arrays,
        samples={key: members for name in shards for key, members in read_samples(store, name)},
        models=gather(CONFIG.measure),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "measure", playing.measure)
        patch.setattr(stages, "embed", playing.embed)
        patch.setattr(cut, "cut", lambda _store, order, *_: playing.samples[order.key])
        patch.setattr(jobs, "gather", lambda *_: playing.models)
        patch.setattr(report, "write_report", write_report)
        yield playing


def write_report(store: Store, **_: Any) -> None:
    """Stands in for the report: the same files, without the figures."""
    store.write("report/statistics.json", b"{}")
    store.write("report/index.html", b"<html></html>")


def content(root: str) -> dict[str, bytes]:
    """Every file of a data set, but for the seconds of CPU and the times of day that some tell."""
    store, hold_times = Store(root), ("part.json", "state.json", "copies.json", "people.json", ".lock")
    names = [name for name in store.list() if Path(name).name not in hold_times]
    return {name: _without_time(name, store.read(name)) for name in names}


def _without_time(name: str, data: bytes) -> bytes:
    if not name.endswith("/snapshot.json"):
        return data
    return json.dumps({**json.loads(data), "made_at": ""}).encode()


# ------------------------------------------------------------------------------ faults


@dataclass
class Fault:
    """Fails the n-th operation on files below a root, before or after it had its effect."""

    root: str
    n: int
    after: bool = False
    count: int = 0
    hit: str = ""

    def due(self, what: str, name: object) -> bool:
        """Counts an operation; whether it is the one that fails."""
        text = os.fspath(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
        if self.root not in (text if isinstance(text, str) else os.fsdecode(text)):
            return False
        self.count += 1
        if self.count != self.n:
            return False
        self.hit = f"{what} {text}"
        return True

    def error(self) -> OSError:
        """What the operation ends with."""
        return ERRORS[self.n % len(ERRORS)]


class FaultyFile:
    """A file that is written, of which a write may break off in the middle."""

    def __init__(self, file: Any, fault: Fault, name: object) -> None:
        self._file, self._fault, self._name = file, fault, name

    def write(self, data: Any) -> int:
        if self._fault.due("write", self._name):
            self._file.write(bytes(data)[: len(data) // 2])
            raise self._fault.error()
        return int(self._file.write(data))

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing_disk(fault: Fault) -> Iterator[None]:
    """Until the block ends, system calls on files below the root may fail."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "replace", "unlink", "remove", "mkdir", "rmdir", "scandir", "stat", "fsync"):
            patch.setattr(os, name, _failing_call(name, getattr(os, name), fault))
        opened = io.open

        def open_file(name: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if isinstance(name, int):
                return opened(name, mode, *rest, **options)
            if fault.due("open", name):
                raise fault.error()
            file = opened(name, mode, *rest, **options)
            ours = fault.root in os.fsdecode(os.fspath(name))
            return FaultyFile(file, fault, name) if ours and set(mode) & set("wxa") else file

        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)
        yield


def _failing_call(name: str, call: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    def failing(path: Any, *rest: Any, **options: Any) -> Any:
        where = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path
        if not fault.due(name, where):
            return call(path, *rest, **options)
        if fault.after and name in ("replace", "unlink", "remove", "mkdir", "rmdir"):
            call(path, *rest, **options)
        raise fault.error()

    return failing


@contextmanager
def failing_s3(fault: Fault) -> Iterator[None]:
    """Until the block ends, requests of the S3 client may fail."""
    from aiobotocore.client import AioBaseClient

    call = AioBaseClient._make_api_call

    async def failing(self: Any, operation: str, params: dict[str, Any]) -> Any:
        where = f"s3://{params.get('Bucket')}/{params.get('Key', '')}"
        if not fault.due(operation, where):
            return await call(self, operation, params)
        if fault.after and not operation.startswith(("Get", "List", "Head")):
            await call(self, operation, params)
        raise fault.error()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AioBaseClient, "_make_api_call", failing)
        yield


def survive(
    played: Played, root: str, golden: dict[str, bytes], fault: Fault, failing: Callable[[Fault], Any]
) -> str:
    """One run with the fault and one without, on a new data set; what is wrong then, or nothing."""
    told = "it went on"
    with failing(fault):
        try:
            played.curate(root)
        except TalkforgeError as error:
            told = str(error)
        except Exception as error:
            return f"{fault.n}: {fault.hit}: no clear line: {error!r}"
    if "\n" in told:
        return f"{fault.n}: {fault.hit}: more than a line: {told}"
    if fault.hit:
        try:
            played.curate(root)
        except TalkforgeError as error:
            return f"{fault.n}: {fault.hit}: {told}; the next run: {error}"
    found = content(root)
    differ = sorted(name for name in {*found, *golden} if found.get(name) != golden.get(name))
    return f"{fault.n}: {fault.hit}: {told}; other bytes than without a fault: {differ}" if differ else ""


def survive_all(
    played: Played,
    golden: dict[str, bytes],
    failing: Callable[[Fault], Any],
    roots: Callable[[int], str],
    after: bool,
    step: int = 1,
) -> tuple[int, list[str]]:
    """Faults at every `step`-th operation; how many operations they span, and what is wrong after each."""
    wrong = []
    for number in itertools.count():
        root = roots(number)
        fault = Fault(root, 1 + number * step + (step // 2 if after else 0), after)
        wrong += filter(None, [survive(played, root, golden, fault, failing)])
        if not fault.hit:
            return number * step, wrong
    raise AssertionError("there is always an end")


@pytest.fixture(scope="module")
def golden(played: Played, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = str(tmp_path_factory.mktemp("golden") / "set")
    played.curate(root)
    assert verify(Store(root)) == []
    return content(root)


def test_what_is_played_back_is_what_was_measured(golden: dict[str, bytes], measured: Curated) -> None:
    real = content(str(measured.dataset))
    names = [name for name in real if name.endswith((".tar", ".npz", ".parquet"))]
    names = [name for name in names if not name.startswith("timelines/")]  # built when a clip is cut
    assert [name for name in names if golden.get(name) != real[name]] == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_operation_on_a_local_folder_fails_once(
    played: Played, golden: dict[str, bytes], tmp_path: Path, after: bool, full: bool
) -> None:
    reached, wrong = survive_all(
        played, golden, failing_disk, lambda n: str(tmp_path / f"set-{n}"), after, 1 if full else LOCAL_STEP
    )
    assert wrong == []
    assert reached > 520


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_request_to_an_object_store_fails_once(
    played: Played, golden: dict[str, bytes], s3_bucket: str, after: bool, full: bool
) -> None:
    reached, wrong = survive_all(
        played, golden, failing_s3, lambda n: f"{s3_bucket}/set-{n}", after, 1 if full else S3_STEP
    )
    assert wrong == []
    assert reached > 111
