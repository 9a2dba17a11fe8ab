"""Infrastructure that fails for a while: nothing is booked on a video, and the same command makes up for it.

Every schedule is followed by the same command without faults, which must give the bytes of a data set
that nothing happened to.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from talkforge.pipeline import attempts, ingest, jobs, stages
from talkforge.pipeline.dataset import load_dataset, load_ingested, load_plan
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.ledger import Selection
from talkforge.pipeline.parts import remaining
from talkforge.pipeline.standing import standing
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, load_config
from talkforge.schemas.errors import FetchError, MediaError, RunError
from talkforge.schemas.records import Failure, Video
from tests.conftest import ROOT, SETTINGS, Curated

CONFIG = load_config(ROOT / "configs" / "offline.yaml", SETTINGS)

FAULTS: dict[str, Callable[[str], Exception]] = {
    "storage": lambda uri: OSError(errno.EIO, "Input/output error", uri),
    "network": lambda uri: FetchError(f"{uri}: cannot be fetched: 503 Slow Down"),
    "memory": lambda _: MemoryError("std::bad_alloc"),
}
"""What one try to open a video may meet, by kind."""


def curate(videos: Path, store: Store, config: Config = CONFIG) -> Selection:
    return jobs.curate([str(videos)], store, config, InlineExecutor)


def golden(store: Store) -> dict[str, bytes]:
    """Tables and shards; where a row was measured, and how often it was tried, is not in them."""
    names = ["ledger.parquet", "sources.parquet", "failures.parquet", "people.parquet"]
    return {name: store.read(name) for name in [*names, *store.list("shards")]}


@contextmanager
def failing(
    patch: pytest.MonkeyPatch, module: Any, name: str, fails: Callable[[str], Exception | None]
) -> Iterator[None]:
    """Until the block ends, opening a video raises what `fails` gives for its URI."""
    opened = getattr(module, name)

    def opening(*arguments: Any) -> Any:
        uri = next(getattr(one, "uri", one) for one in arguments if isinstance(one, str | Video))
        error = fails(uri)
        if error is not None:
            raise error
        return opened(*arguments)

    with patch.context() as inner:
        inner.setattr(module, name, opening)
        yield


@pytest.mark.parametrize("seed", range(3))
def test_windows_that_infrastructure_failed_are_measured_by_the_next_run(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    store = Store(str(tmp_path / "set"))
    kinds: dict[str, str] = {"a.mp4": draw.choice(sorted(FAULTS))}  # one at least

    def fails(uri: str) -> Exception | None:
        kind = kinds.setdefault(Path(uri).name, draw.choice([*sorted(FAULTS), ""]))
        return FAULTS[kind](uri) if kind else None

    with failing(monkeypatch, stages, "local_video", fails):
        selection = curate(measured.videos, store)
    failed = {name: kind for name, kind in kinds.items() if kind}
    found = {Path(failure.uri).name: failure for failure in selection.failures}
    assert {name: failure.kind for name, failure in found.items()} == failed
    assert {failure.attempts for failure in found.values()} == {1}
    states = {Path(row.uri).name: (row.status, row.reason) for row in selection.sources}
    for name, failure in found.items():
        assert states[name] == ("pending", f"{failure.kind} failed, attempt 1: {failure.message}")
    assert len(remaining(load_plan(store), store)) == len(failed)
    assert curate(measured.videos, store).failures == ()
    assert golden(store) == golden(Store(str(measured.dataset)))


def test_one_window_of_a_part_is_put_off_and_the_others_are_committed(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "set"))
    with failing(monkeypatch, stages, "local_video", lambda _: FAULTS["storage"]("x")):
        curate(measured.videos, store)
    windows = tuple(window for part in load_plan(store) for window in part.windows)
    packed = load_plan(store)[0].model_copy(update={"name": "000007", "windows": windows})
    whole = Store(str(tmp_path / "other"))

    def first_fails(uri: str) -> Exception | None:
        return FAULTS["storage"](uri) if uri.endswith("a.mp4") else None

    with failing(monkeypatch, stages, "local_video", first_fails):
        (done,) = InlineExecutor().run([packed], CONFIG, whole)
    assert done.measured_s == sum(window.duration_s for window in windows[1:])
    assert [failure.key for failure in done.put_off] == [windows[0].key]
    (left,) = remaining([packed], whole)
    assert left.windows == windows[:1]
    (again,) = InlineExecutor().run([left], CONFIG, whole)
    assert again.put_off == ()
    assert remaining([packed], whole) == []


def test_attempts_are_bounded_and_retry_begins_anew(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tries = Store(str(tmp_path / "set")), []

    def broken(uri: str) -> Exception | None:
        if uri.endswith("b.mp4"):
            tries.append(uri)
            return FAULTS["network"](uri)
        return None

    with failing(monkeypatch, stages, "local_video", broken):
        for _ in range(CONFIG.run.max_attempts + 2):
            curate(measured.videos, store)
    assert len(tries) == CONFIG.run.max_attempts
    (failure,) = attempts.waiting(store, load_plan(store)).values()
    assert (failure.kind, failure.attempts) == ("network", CONFIG.run.max_attempts)
    assert standing(store, load_dataset(store)).totals.inputs["pending"] == 1
    assert jobs.retry(store, ["storage"], lambda _: InlineExecutor())[0] == 0
    assert jobs.retry(store, ["network"], lambda _: InlineExecutor())[0] == 1
    assert golden(store) == golden(Store(str(measured.dataset)))


def test_an_input_that_could_not_be_fetched_is_read_again(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "set"))

    def forbidden(uri: str) -> Exception | None:
        return FetchError(f"{uri}: cannot be fetched: 403 Forbidden") if uri.endswith("a.mp4") else None

    for attempt in (1, 2):
        with failing(monkeypatch, ingest, "local_copy", forbidden):
            (failure,) = curate(measured.videos, store).failures
        assert (failure.stage, failure.kind, failure.attempts) == ("probe", "network", attempt)
    assert curate(measured.videos, store).failures == ()
    assert golden(store) == golden(Store(str(measured.dataset)))


def test_an_input_that_cannot_be_read_any_more_keeps_what_was_measured_of_it(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    before = golden(store)
    monkeypatch.setattr(jobs, "stamps_of", lambda uris: [""] * len(uris))  # the server does not answer
    with failing(monkeypatch, ingest, "local_copy", lambda uri: FAULTS["network"](uri)):
        curate(curated.videos, store)
    assert golden(store) == before
    assert {row.status for row in load_ingested(store)} == {"planned"}


def test_what_a_video_is_to_blame_for_is_committed_and_not_tried_again_until_the_user_says_so(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tries = Store(str(tmp_path / "set")), []

    def broken(uri: str) -> Exception | None:
        if uri.endswith("b.mp4"):
            tries.append(uri)
            return MediaError(f"{uri!r}: damaged")
        return None

    with failing(monkeypatch, stages, "local_video", broken):
        for _ in range(2):
            (failure,) = curate(measured.videos, store).failures
            assert (failure.kind, failure.stage) == ("video", "measure")
    assert len(tries) == 1
    assert jobs.retry(store, ["video"], lambda _: InlineExecutor())[0] == 1
    assert golden(store) == golden(Store(str(measured.dataset)))


def test_a_run_stops_when_one_reason_fails_more_than_its_share() -> None:
    tripwire = attempts.Tripwire(0.5)
    failures = [
        Failure(
            stage="probe", key=f"{n}", video_id="", uri=f"{n}.mp4", error="E", message="503", kind="network"
        )
        for n in range(12)
    ]
    tripwire.note(13, failures[:3])
    tripwire.note(7, failures[:7])  # ten of twenty is half, not more
    with pytest.raises(RunError, match=r"^11 of 21 inputs failed for one reason, network; the last: '9.mp4'"):
        tripwire.note(1, failures[9:10])
    calm = attempts.Tripwire(0.5)
    calm.note(9, failures[:9])  # all of them, but few
    calm.note(11, [failure.model_copy(update={"kind": "video"}) for failure in failures])
