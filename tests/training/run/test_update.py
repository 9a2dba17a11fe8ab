"""One step: what stops it before it changes anything, and what it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from talkforge.schemas.errors import RunError
from talkforge.training.run import checkpoint, update
from talkforge.training.run.update import TrainState, generator_of
from talkforge.training.train import train
from tests.training.runs import four_clips, small


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def counted_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every update."""
    updates: list[int] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        updates.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return updates


def test_a_loss_that_is_no_number_stops_before_the_update(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = counted_updates(monkeypatch)
    config = small(shards, tmp_path, optim__lr=1e30, run__save_every=1)
    with pytest.raises(
        RunError,
        match=r"^step 2: loss is (nan|inf) for clip0\d\+\d+, clip0\d\+\d+: stopped before the update$",
    ):
        train(config)
    assert updates == [1]
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [1]


def test_a_gradient_that_is_no_number_stops_before_the_update(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = counted_updates(monkeypatch)
    monkeypatch.setattr(TrainState, "_clip", lambda _: float("inf"))
    with pytest.raises(RunError, match=r"^step 1: gradient is inf for clip0\d\+\d+, clip0\d\+\d+: stopped"):
        train(small(shards, tmp_path))
    assert updates == []


def test_every_batch_of_a_step_has_randomness_and_a_stratum_of_its_own(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int, float]] = []
    real = update.training_step

    def step(*arguments: Any, rank: int, world: int) -> Any:
        drawn.append((rank, world, float(torch.rand(1, generator=arguments[4].clone_state()))))
        return real(*arguments, rank=rank, world=world)

    monkeypatch.setattr(update, "training_step", step)
    train(small(shards, tmp_path, optim__accumulate=3, run__steps=2, run__seed=5))
    assert [(rank, world) for rank, world, _ in drawn] == [(0, 3), (1, 3), (2, 3)] * 2
    expected = [
        torch.rand(1, generator=generator_of(5, step, batch)) for step in (1, 2) for batch in range(3)
    ]
    assert [value for *_, value in drawn] == [float(value) for value in expected]
    assert len(set(drawn)) == 6


def test_seeds_do_not_collide() -> None:
    """The generator looks at 32 bits of its seed."""
    seeds = {
        generator_of(seed, step, batch).initial_seed() % 2**32
        for seed in (0, 1)
        for step in range(1, 2001)
        for batch in range(16)
    }
    assert len(seeds) == 2 * 2000 * 16
