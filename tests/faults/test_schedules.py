"""Seeded schedules of kills, hangs and errors, after each of which the same command gives the golden bytes.

`make faults SEEDS=50` runs as many as one likes; the suite runs a few. Measuring is stood in for, see
`stand_in.py`. A checker reads what was acknowledged: no window is measured twice, and nothing gets lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from talkforge.pipeline import tables
from talkforge.pipeline.dataset import load_plan
from talkforge.pipeline.parts import Window, committed_parts
from talkforge.pipeline.store import Store
from tests.conftest import ROOT
from tests.faults.stand_in import SLOW_S, settings
from tests.media_files import Pictures, Sounds, steady, write_media

SEEDS = int(os.environ.get("SEEDS", "5"))
"""Schedules to run."""

VIDEOS = ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4")

KILLS = ("driver", "worker", "raylet", "gcs", "node", "SIGTERM")
"""What is killed while the first run is at work; each seed has the next."""

RETURN_CODES = {0, 1, 143, -signal.SIGKILL}
"""Of runs that are disturbed; 2 is that of a second driver."""


@dataclass(frozen=True)
class Schedule:
    """What happens to a data set.

    Attributes:
        kill: what is killed during the first run.
        after_s: how long after measuring began.
        first: faults of the first run, on Ray: stage and name -> what happens.
        second: of the second run, in one process.
        source: what happens to the source `b.mp4` during the second run: replaced, removed, or nothing.
        two_drivers: whether a second command is started beside the first.
    """

    kill: str
    after_s: float
    first: dict[str, str] = field(default_factory=dict)
    second: dict[str, str] = field(default_factory=dict)
    source: str = ""
    two_drivers: bool = False

    @staticmethod
    def drawn(seed: int) -> Schedule:
        """The schedule of a seed."""
        draw = random.Random(seed)
        errors = ("EIO", "403 Forbidden", "500 Internal Server Error", "503 Slow Down", "memory")
        first = {}
        for name in draw.sample(VIDEOS, 2):
            stage = draw.choice(("open", "measure", "embed", "cut"))
            first[f"{stage} {name}"] = (
                draw.choice(("hang", "kill")) if stage != "open" else draw.choice(errors)
            )
        if draw.random() < 0.3:
            first["write part.json"] = draw.choice(("hang", "kill", "ENOSPC"))
        second = {f"open {draw.choice(VIDEOS)}": draw.choice(errors)}
        if draw.random() < 0.5:
            names = ("part.json", "plan.parquet", "ledger.parquet", "clips.parquet", "features.parquet")
            second[f"write {draw.choice(names)}"] = draw.choice(("EIO", "ENOSPC", "kill"))
        return Schedule(
            kill=KILLS[seed % len(KILLS)],
            after_s=draw.uniform(0, 3),
            first=first,
            second=second,
            source=draw.choice(("", "replaced", "removed")),
            two_drivers=draw.random() < 0.3,
        )


@dataclass(frozen=True)
class Golden:
    """The videos, and what an undisturbed run makes of them."""

    videos: Path
    files: dict[str, bytes]


def command(videos: Path, dataset: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.faults.stand_in", "curate", str(videos), "--out", str(dataset)),
        *("--base", str(videos), *settings(), *more),
    ]


def environment(slow_s: float = 0.0) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), SLOW_S: str(slow_s)}


def run_undisturbed(videos: Path, dataset: Path) -> None:
    done = subprocess.run(
        command(videos, dataset, "--executor", "inline"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def results(dataset: Path) -> dict[str, bytes]:
    """Tables and shards; where a row was measured, and how often it was tried, is not in them."""
    names = ["ledger.parquet", "sources.parquet", "failures.parquet", "people.parquet"]
    paths = [*(dataset / name for name in names), *sorted((dataset / "shards").iterdir())]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("golden")
    (folder / "videos").mkdir()
    for number, name in enumerate(VIDEOS):
        sound = Sounds([(0, 1.2)], clicks_s=[0.2 + 0.1 * number], codec="aac")
        write_media(folder / "videos" / name, Pictures(steady(30), first_number=100 * number), sound)
    run_undisturbed(folder / "videos", folder / "set")
    return Golden(folder / "videos", results(folder / "set"))


def plan_faults(dataset: Path, faults: dict[str, str]) -> None:
    folder = Path(f"{dataset}.faults")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, what in faults.items():
        (folder / name).write_text(what)


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until something has happened; False where the process ended before."""
    while not happened():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def below(pid: int) -> dict[int, str]:
    """Processes that descend from one, with their command lines."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")

    def descends(child: int) -> bool:
        return child in parents and (parents[child] == pid or descends(parents[child]))

    return {child: title for child, title in titles.items() if descends(child)}


@dataclass
class Nodes:
    """A cluster of a head without cores and a node that may be exchanged."""

    cluster: Any
    node: Any = None

    def exchange(self) -> None:
        """Remove the node as by a power cut, and add another."""
        if self.node is not None:
            self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = self.cluster.add_node(num_cpus=2)


@contextmanager
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(0.5).items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


def disturb(schedule: Schedule, driver: subprocess.Popen[str], dataset: Path, cluster: Nodes | None) -> None:
    """Wait for measuring, and kill."""
    if cluster is not None:
        cluster.exchange()  # until then the run waits for a node
    if not until((dataset / "plan.parquet").exists, driver):
        return
    time.sleep(schedule.after_s)
    if cluster is not None:
        cluster.exchange()
    elif schedule.kill in ("driver", "SIGTERM"):
        driver.send_signal(signal.SIGKILL if schedule.kill == "driver" else signal.SIGTERM)
    else:
        wanted = {"worker": "ray::", "raylet": "raylet/raylet", "gcs": "gcs_server"}[schedule.kill]
        found = [pid for pid, title in below(driver.pid).items() if wanted in title and "IDLE" not in title]
        for pid in found[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run_disturbed(schedule: Schedule, videos: Path, dataset: Path) -> None:
    """The first run: on Ray, with faults, and something is killed."""
    plan_faults(dataset, schedule.first)
    hasty = ("--set", "run.deadline_min_s=6", "--set", "run.deadline_factor=0.01", "--workers", "2")
    with ExitStack() as stack:
        cluster = stack.enter_context(nodes()) if schedule.kill == "node" else None
        where = ("--address", cluster.cluster.address) if cluster else ()
        line = command(videos, dataset, *hasty, *where)
        pipe: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        driver = subprocess.Popen(line, cwd=ROOT, env=environment(0.5), **pipe)
        try:
            if schedule.two_drivers and until((dataset / "dataset.json").exists, driver):
                line = command(videos, dataset, "--executor", "inline")
                beside = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
                assert beside.returncode == 2 or driver.poll() is not None
                if beside.returncode == 2:
                    assert "another run is at work on this data set" in beside.stderr
            disturb(schedule, driver, dataset, cluster)
            _, said = driver.communicate(timeout=300)
        finally:
            driver.kill()
            driver.wait()
    check_end(driver.returncode, said)
    assert not [title for title in below(driver.pid).values() if "ray" in title]


def check_end(code: int, said: str) -> None:
    """A disturbed run ends in a way that is documented, with one line that says why."""
    assert code in RETURN_CODES, said
    assert "Traceback" not in said
    last = (said.strip().splitlines() or [""])[-1]
    if code == 1:
        assert last.startswith("talkforge: ") and "unexpected" not in last, said
    elif code == 143:
        assert last == "terminated; the same command goes on from here"


def run_faulty(schedule: Schedule, videos: Path, dataset: Path) -> None:
    """The second run: in one process, with faults, and perhaps on another source."""
    plan_faults(dataset, schedule.second)
    source, aside = videos / "b.mp4", videos.parent / "aside"
    source.rename(aside)
    if schedule.source == "replaced":
        write_media(source, Pictures(steady(35), first_number=900), Sounds([(0, 1.4)], codec="aac"))
    elif not schedule.source:
        aside.rename(source)
    done = subprocess.run(
        command(videos, dataset, "--executor", "inline"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if aside.exists():
        aside.replace(source)
    check_end(done.returncode, done.stderr)


def history(dataset: Path) -> list[dict[str, Any]]:
    path = Path(f"{dataset}.history")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_history(dataset: Path, schedule: Schedule) -> None:
    """No window is measured twice, none is lost, and every acknowledged part and shard is there."""
    store = Store(str(dataset))
    there = {
        name: {window.key for window in tables.read(store, f"parts/{name}/windows.parquet", Window)}
        for name in committed_parts(store)
    }
    planned = {window.key for part in load_plan(store) for window in part.windows}
    held = Counter(key for keys in there.values() for key in keys)
    assert planned <= set(held), "a window is lost"
    twice = {key for key in planned if held[key] > 1}
    acknowledged = Counter(key for line in history(dataset) for key in line.get("windows", ()))
    again = {key for key, count in acknowledged.items() if count > 1}
    if schedule.source != "replaced":  # else what was measured of the source before is measured anew
        assert not twice and not again, "a window was measured twice"
    for line in history(dataset):
        if "part" in line:
            assert set(line["windows"]) <= there.get(line["part"], set()), "an acknowledged part is missing"
    last = [line["shards"] for line in history(dataset) if "shards" in line][-1]
    assert {name: store.sha256(name) for name in store.list("shards")} == last


@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_schedule_the_same_command_gives_the_golden_bytes(
    golden: Golden, tmp_path: Path, seed: int
) -> None:
    schedule = Schedule.drawn(seed)
    survive(schedule, golden, tmp_path)


def survive(schedule: Schedule, golden: Golden, folder: Path) -> None:
    """Run a schedule, then the same command undisturbed, and compare."""
    videos, dataset = folder / "videos", folder / "set"
    shutil.copytree(golden.videos, videos)
    run_disturbed(schedule, videos, dataset)
    run_faulty(schedule, videos, dataset)
    plan_faults(dataset, {})
    run_undisturbed(videos, dataset)
    found = results(dataset)
    assert sorted(found) == sorted(golden.files)
    check_history(dataset, schedule)
    assert [name for name in found if found[name] != golden.files[name]] == []
