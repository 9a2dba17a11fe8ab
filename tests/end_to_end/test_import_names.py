"""A user's own packages in the current folder, named as Talkforge's folders, are neither run nor touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("configs", "curation", "pipeline", "schemas", "training")
"""Talkforge's folders at the top of the repository."""

MARKER = "imported.txt"
OWN = f"""\
import pathlib

pathlib.Path(__file__).parents[1].joinpath({MARKER!r}).write_text(__name__)
raise RuntimeError("the user's own package was imported")
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with packages of a user: each leaves a marker and raises when it is imported."""
    folder = tmp_path / "theirs"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for module in ("__init__.py", "train.py", "cli.py", "config.py"):
            (folder / name / module).write_text(OWN)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(theirs: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command in the user's folder, which must leave that folder as it was; Talkforge is as installed."""
    before = contents(theirs)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=theirs, env=environment, capture_output=True, text=True, check=False
    )
    assert contents(theirs) == before, done.stdout + done.stderr
    return done


def test_the_packages_are_traps(theirs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training"], cwd=theirs, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "the user's own package was imported" in done.stderr
    assert (theirs / MARKER).read_text() == "training"


def test_the_trainer_is_ours(theirs: Path) -> None:
    done = run(theirs, sys.executable, "-m", "talkforge.training.train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: talkforge.training.train ")


def test_the_command_line_is_ours(theirs: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "talkforge"
    done = run(theirs, script, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "talkforge"), done.stderr
    none = tmp_path / "none"
    done = run(theirs, sys.executable, "-m", "talkforge", "status", none)
    assert done.stderr == f"talkforge: {none}: no data set here (dataset.json is missing)\n"
    assert done.returncode == 2


def test_a_launched_run_is_ours(theirs: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from tests.training.runs import four_clips

    shards, out = four_clips(tmp_path / "set"), tmp_path / "run"
    settings = ["model.shape.num_layers=1", "data.num_frames=9", "data.sizes=[[32,32]]", "data.batch_size=2"]
    settings += [f"data.shards={shards}", f"run.out={out}", "run.steps=1", "run.threads=1", "run.trackers=[]"]
    settings += ["codec.fit_steps=1"]
    done = run(
        theirs, sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1,
        "--cpu", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "talkforge.training.train",
        "--config", "tiny-stage1", *(word for setting in settings for word in ("--set", setting)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "checkpoints" / "step-00000001" / "trained.safetensors").is_file()
