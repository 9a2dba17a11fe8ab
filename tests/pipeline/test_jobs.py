"""`curate` as a whole: inputs are read in steps, nothing of them is read twice, parts are listed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talkforge.pipeline import dataset, jobs
from talkforge.pipeline.executor import Done, InlineExecutor
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.needs import gather
from talkforge.pipeline.store import Store
from talkforge.schemas.config import MeasureConfig, apply_settings, load_config
from talkforge.schemas.errors import RunError
from talkforge.schemas.records import Input
from tests.media_files import Pictures, steady, write_media

NUM_INPUTS = 5
CONFIG = load_config("offline")


class Recording(InlineExecutor):
    """Notes what is read and measured; stops like a run that is killed before the input `killed_at`."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.steps: list[str] = []
        self._killed_at = killed_at

    def ingest(self, inputs: Iterable[Input], *arguments: Any) -> Iterator[IngestRow]:
        for row in super().ingest(inputs, *arguments):
            if len(self.steps) == self._killed_at:
                raise KeyboardInterrupt
            self.steps.append(f"read {Path(row.input.uri).stem}")
            yield row

    def run(self, parts: Any, *arguments: Any) -> Iterator[Done]:
        for done in super().run(parts, *arguments):
            self.steps += [f"measured {Path(window.video.uri).stem}" for window in done.part.windows]
            yield done


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Silent videos: nothing needs to be measured of them. The last one has the bytes of the first."""
    folder = tmp_path_factory.mktemp("videos")
    for n in range(NUM_INPUTS - 1):
        write_media(folder / f"{n}.mp4", Pictures(steady(5), first_number=9 * n))
    (folder / f"{NUM_INPUTS - 1}.mp4").write_bytes((folder / "0.mp4").read_bytes())
    return folder


def curate(videos: Path, out: Path, executor: InlineExecutor) -> Store:
    store = Store(str(out))
    jobs.curate([str(videos)], store, CONFIG, lambda: executor)
    return store


def tables(store: Store) -> dict[str, bytes]:
    names = ("sources.parquet", "ledger.parquet", "failures.parquet", "intake.parquet")
    return {name: store.read(name) for name in names}


@pytest.fixture(scope="module")
def at_once(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tables(curate(videos, tmp_path_factory.mktemp("once") / "set", InlineExecutor()))


def test_measuring_begins_while_inputs_are_still_read(
    videos: Path, tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FIRST_INPUTS", 1)
    executor = Recording()
    store = curate(videos, tmp_path / "set", executor)
    read, measured = [f"read {n}" for n in range(5)], [f"measured {n}" for n in range(4)]
    # As many as before: one, one, two, and the rest, which is a copy.
    assert executor.steps == [read[0], measured[0], read[1], measured[1], *read[2:4], *measured[2:], read[4]]
    assert tables(store) == at_once


def test_workers_load_models_before_inputs_are_read_and_are_let_go_before_the_report(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noting(Recording):
        def warm_up(self, config: MeasureConfig, most: int) -> None:
            assert config == gather(CONFIG.measure).config
            self.steps.append(f"warm up {most}")

        def release(self) -> None:
            self.steps.append("release")

        def close(self) -> None:
            self.steps.append("close")

    executor = Noting()
    monkeypatch.setattr(jobs, "report", lambda *_: executor.steps.append("report"))
    curate(videos, tmp_path / "set", executor)
    assert executor.steps[0] == f"warm up {NUM_INPUTS}" and executor.steps[1].startswith("read ")
    assert executor.steps[-4].startswith("measured ")
    assert executor.steps[-3:] == ["release", "report", "close"]
    executor.steps.clear()
    curate(videos, tmp_path / "set", executor)  # nothing is due
    assert executor.steps == ["release", "report", "close"]


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_what_a_killed_run_has_read_is_not_read_again(
    videos: Path, tmp_path: Path, at_once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(dataset, "ARRIVED_ROWS", rows)
    with pytest.raises(KeyboardInterrupt):
        curate(videos, tmp_path / "set", Recording(killed_at=4))
    store = Store(str(tmp_path / "set"))
    assert len(list(dataset.read_arrived(store))) == 4
    again = Recording()
    curate(videos, tmp_path / "set", again)
    assert again.steps == ["read 4", *(f"measured {n}" for n in range(4))]
    assert tables(store) == at_once
    assert store.list(dataset.ARRIVED) == []


def test_a_file_that_changed_after_a_killed_run_is_read_again(videos: Path, tmp_path: Path) -> None:
    own = tmp_path / "videos"
    own.mkdir()
    for n in range(3):
        (own / f"{n}.mp4").write_bytes((videos / f"{n}.mp4").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        curate(own, tmp_path / "set", Recording(killed_at=2))
    (own / "1.mp4").write_bytes((videos / "3.mp4").read_bytes())
    again = Recording()
    curate(own, tmp_path / "set", again)
    assert again.steps[:2] == ["read 1", "read 2"]


def test_a_run_that_goes_on_lists_the_parts_once_and_asks_for_none_of_them(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(videos, tmp_path / "set", InlineExecutor())
    asked: list[str] = []
    for name in ("stamps", "list", "exists"):
        told = getattr(Store, name)

        def ask(store: Store, *names: str, told: Any = told, name: str = name) -> Any:
            asked.append(f"{name} {' '.join(names)}")
            return told(store, *names)

        monkeypatch.setattr(Store, name, ask)
    again = Recording()
    curate(videos, tmp_path / "set", again)
    assert again.steps == []
    assert [one for one in asked if "parts" in one] == ["stamps parts part.json"]


def test_a_cluster_that_cannot_be_reached_leaves_no_data_set_behind(videos: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "set"))

    def unreachable() -> InlineExecutor:
        raise RunError("no Ray here")

    with pytest.raises(RunError, match="no Ray here"):
        jobs.curate([str(videos)], store, CONFIG, unreachable)
    assert set(store.list()) <= {dataset.LOCK}
    other = apply_settings({}, ["scan.sample_s=1.0"])
    assert dataset.check_target(store, other) is None, (
        "and none that only the same configuration may go on with"
    )
