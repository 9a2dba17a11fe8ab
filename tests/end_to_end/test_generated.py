"""The main job on generated videos whose truth is known, through both executors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from benchmarks import executors
from examples import demo_videos

Row = dict[str, Any]

TALKFORGE = Path(sys.executable).with_name("talkforge")
CONFIG = Path(__file__).parents[2] / "configs" / "offline.yaml"
SMALL_PARTS = ("--set", "run.part_s=12", "--set", "run.trace=all", "--config", str(CONFIG))

FEW = ("speaker_one.mp4", "the same again.mp4", "no_audio.mp4", "broken.mp4", *demo_videos.real())
"""Files of the demo that runs which are disturbed measure; with --full they measure all."""
FEW_PARTS = ("--set", "run.part_s=5", "--config", str(CONFIG))


def run(*arguments: object, timeout_s: float = 6000) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TALKFORGE, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def digest(folder: Path, *patterns: str) -> dict[str, str]:
    """sha256 of the files that must not depend on how the work was done."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


RESULTS = (
    *("shards/*", "ledger.parquet", "sources.parquet", "failures.parquet", "dataset.json"),
    *("parts/*/*.npz", "parts/*/*.parquet", "report/*"),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    demo_videos.make(folder)
    return folder


@pytest.fixture(scope="module")
def few(videos: Path, full: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if full:
        return videos
    folder = tmp_path_factory.mktemp("few videos")
    for name in FEW:
        shutil.copy(videos / name, folder)
    return folder


@pytest.fixture(scope="module")
def golden(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The few videos, curated in one process without any trouble."""
    out = tmp_path_factory.mktemp("inline") / "set"
    done = run("curate", few, "--out", out, "--executor", "inline", *FEW_PARTS)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("parts/*"))) >= 4
    return out


@pytest.fixture(scope="module")
def dataset(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos, curated through Ray without any trouble."""
    out = tmp_path_factory.mktemp("ray") / "set"
    done = run("curate", videos, "--out", out, *SMALL_PARTS)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return out


def ledger(dataset: Path) -> list[Row]:
    return pq.read_table(dataset / "ledger.parquet").to_pylist()


def test_every_file_gets_the_verdict_it_was_made_for(videos: Path, dataset: Path) -> None:
    truth = json.loads((videos / "truth.json").read_text())
    statuses = {Path(row["uri"]).name: row for row in pq.read_table(dataset / "sources.parquet").to_pylist()}
    reasons: dict[str, list[list[str]]] = {name: [] for name in truth}
    for row in ledger(dataset):
        reasons[Path(str(row["uri"])).name].append(row["reasons"])
    assert {name: row["status"] for name, row in statuses.items()} == {
        name: row["status"] for name, row in truth.items()
    }
    assert reasons == {name: row["expected"] for name, row in truth.items()}


def test_cuts_are_found_frame_exactly(videos: Path, dataset: Path) -> None:
    truth = json.loads((videos / "truth.json").read_text())["cut.mp4"]
    scenes = pq.read_table(sorted(dataset.glob("parts/*/scenes.parquet"))).to_pylist()
    (video,) = {row["video_id"] for row in ledger(dataset) if str(row["uri"]).endswith("/cut.mp4")}
    starts = sorted(row["start_s"] for row in scenes if row["video_id"] == video)
    assert [round(start * truth["fps"]) for start in starts] == [0, *truth["cuts"]]


def test_offsets_are_within_two_frames_where_scored(videos: Path, dataset: Path) -> None:
    truth = json.loads((videos / "truth.json").read_text())
    scored = 0
    for row in ledger(dataset):
        film = truth[Path(str(row["uri"])).name]
        if "sync_offset_frames" not in film:  # of real clips nobody knows it
            continue
        if row["sync_offset_frames"] is not None and row["active_speaker"] is not False:
            assert abs(row["sync_offset_frames"] - film["sync_offset_frames"]) <= 2, row["uri"]
            scored += 1
    assert scored >= 4


def test_the_speaker_of_two_is_named(videos: Path, dataset: Path) -> None:
    faces = json.loads((videos / "truth.json").read_text())["two_people.mp4"]["faces"]
    rows = [row for row in ledger(dataset) if str(row["uri"]).endswith("/two_people.mp4")]
    expected = [face["speaks"] for face in sorted(faces, key=lambda face: face["box"][0])]
    assert [row["active_speaker"] for row in sorted(rows, key=lambda row: row["track"])] == expected


def test_plain_webdataset_reads_the_shards(dataset: Path) -> None:
    urls = [str(path) for path in sorted(dataset.glob("shards/*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert {sample["__key__"] for sample in samples} == {
        row["clip_id"] for row in ledger(dataset) if row["accepted"]
    }
    for sample in samples:
        assert {
            "motion.npz",
            "mp4",
            "flac",
            "json",
            "txt",
            "lips.npz",
            "landmarks.npz",
            "joints.npz",
            "blendshapes.npy",
            "face.jpg",
            "face.npz",
            "speech.npy",
        } <= set(sample)
        clip = json.loads(sample["json"])["measures"]["clip"]
        with np.load(io.BytesIO(sample["lips.npz"])) as lips:
            masks = np.unpackbits(lips["mask"], axis=1)
        share = masks.mean(axis=1)
        assert len(masks) == clip["num_frames"]
        # Never all ones, never one mask for the whole clip.
        assert 0 < share.min() < share.max() < 0.1
        assert len({mask.tobytes() for mask in masks}) > clip["num_frames"] / 2


def test_verify_finds_nothing_wrong(dataset: Path) -> None:
    done = run("verify", dataset)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_command_again_changes_nothing(videos: Path, dataset: Path) -> None:
    before = digest(dataset, "**/*")
    done = run("curate", videos, "--out", dataset, "--executor", "inline", *SMALL_PARTS)
    assert done.returncode == 0, done.stderr
    assert digest(dataset, "**/*") == before


@pytest.fixture(scope="module")
def two_raylets() -> Iterator[str]:
    """Address of a cluster of two nodes on this machine, each with one core."""
    with executors.two_raylets() as address:
        yield address


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_kill_at_any_moment_leaves_no_trace(
    victim: str, few: Path, golden: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Through Ray, killed and gone on with, a run gives the bytes of one process that nobody disturbed.

    The driver dies at a random moment, a worker while parts are measured on both nodes of a cluster.
    """
    out, chance = tmp_path / "set", random.Random(victim)
    where = ("--address", request.getfixturevalue("two_raylets")) if victim == "worker" else ()
    command = [str(TALKFORGE), "curate", str(few), "--out", str(out), *where, *FEW_PARTS]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[int, int] = {}

    def both_measure() -> bool:
        assert driver.poll() is None, "it ended before anything was killed"
        found.clear()
        found.update(measuring(os.getpid()))
        return len(set(found.values())) == 2

    if victim == "worker":
        wait_for(both_measure)
        os.kill(min(found), signal.SIGKILL)
    else:
        # The moment is counted in parts, of which two are measured at a time, whatever the machine's speed.
        before = chance.randrange(len(list(golden.glob("parts/*"))) - 2)
        wait_for(lambda: len(list(out.glob("parts/*/part.json"))) >= before)
        time.sleep(chance.uniform(0, 1))
        driver.kill()
    assert driver.wait(timeout=1800) == (-signal.SIGKILL if victim == "driver" else 0)
    done = run(*command[1:])
    assert done.returncode == 0, done.stderr
    assert digest(out, *RESULTS) == digest(golden, *RESULTS)


def wait_for(happened: Callable[[], bool], timeout_s: float = 600) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.05)


def measuring(ancestor: int) -> dict[int, int]:
    """Process ids of Ray workers below a process that are measuring a part, each with that of its raylet."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")

    def below(pid: int) -> bool:
        return pid == ancestor or (pid in parents and below(parents[pid]))

    return {
        pid: parents[pid] for pid, title in titles.items() if title.startswith("ray::measure") and below(pid)
    }
