"""What is written about a run, and what a run may be resumed with."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from talkforge.schemas.errors import CommandError
from talkforge.training.config import TrainConfig
from talkforge.training.run import checkpoint, folder
from talkforge.training.run.checkpoint import TrainProgress
from talkforge.training.run.folder import describe, git_sha, regrouped, resumable
from tests.training.batches import some_info

PROGRESS = TrainProgress(5, 4, 2, 2, False, some_info())


def config(**changes: dict[str, object]) -> TrainConfig:
    return TrainConfig.model_validate(changes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoint.save(
        tmp_path, PROGRESS, config(), trained={"a": torch.zeros(1)}, optimizer={}, ema=None, codec=None,
        keep=1,
    )  # fmt: skip
    return tmp_path


def test_the_same_run_goes_on(run: Path) -> None:
    found = resumable(run, config(), PROGRESS)
    assert found is not None and found.progress == PROGRESS
    assert resumable(run / "none", config(), PROGRESS) is None


@pytest.mark.parametrize(
    "changes",
    (
        {"run": {"steps": 9, "out": "elsewhere", "keep": 3, "threads": 2}},
        {"data": {"shards": "moved-{000000..000001}.tar", "cache_mb": 9}},
        {"sample": {"steps": 3}},
        {"model": {"gradient_checkpointing": True}},
        {"run": {"validate_every": 5, "validation_samples": 3, "validation_measures": False}},
    ),
)
def test_what_may_change(run: Path, changes: dict[str, dict[str, object]]) -> None:
    assert resumable(run, config(**changes), PROGRESS) is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    (
        ({"optim": {"lr": 0.5}}, r"optim\.lr: 0\.0001 -> 0\.5"),
        ({"data": {"workers": 7}}, r"data\.workers: 2 -> 7"),
        ({"run": {"seed": 1}}, r"run\.seed: 0 -> 1"),
        ({"run": {"stage": "frame"}}, r"run\.stage: clip -> frame"),
    ),
)
def test_what_may_not(run: Path, changes: dict[str, dict[str, object]], named: str) -> None:
    with pytest.raises(CommandError, match=f"holds a run with other settings: {named}: use those again"):
        resumable(run, config(**changes), PROGRESS)


def test_other_data_are_refused(run: Path) -> None:
    other = replace(PROGRESS, info=replace(PROGRESS.info, fingerprint="1" * 64))
    with pytest.raises(CommandError, match="was trained on other shards"):
        resumable(run, config(), other)
    with pytest.raises(CommandError, match=r"on frames, found cached latents: set data\.latents"):
        resumable(run, config(), replace(PROGRESS, cached=True))


def test_other_processes_begin_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    assert regrouped(PROGRESS, 2) is PROGRESS and not caplog.text
    assert regrouped(PROGRESS, 8) == replace(PROGRESS, world=8, interval=5, consumed=0)
    assert "8 processes where there were 2" in caplog.text


def test_every_start_is_told(tmp_path: Path) -> None:
    describe(tmp_path, config(), PROGRESS)
    describe(tmp_path, config(run={"steps": 7}), replace(PROGRESS, step=6))
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [5, 6]
    assert starts[0]["data"] == {**PROGRESS.info.__dict__} and starts[0]["cached_latents"] is False
    assert starts[0]["torch"] == torch.__version__
    (tmp_path / "run.json").write_text("broken")
    describe(tmp_path, config(), PROGRESS)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert git_sha() == done.stdout.strip()
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "run_folder.py"))
    assert git_sha() == ""
    monkeypatch.setenv("PATH", "")
    assert git_sha() == ""
