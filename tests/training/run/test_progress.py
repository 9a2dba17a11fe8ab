"""What a person sees of a run."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from talkforge.display import Display
from talkforge.schemas.progress import Progress
from talkforge.training.run import progress
from talkforge.training.run.progress import Clock, Report


def report(step: int = 5, **changes: object) -> Report:
    values: dict[str, object] = {
        "step": step, "steps": 200, "loss": 0.5, "unmasked": 0.25, "lips": 0.125, "masked_fraction": 0.8,
        "grad_norm": 1.5, "lr": 1e-4, "samples_per_s": 12.0, "samples_per_s_rank": 3.0,
        "wait_fraction": 0.07, "skipped_samples": 0, "left_s": 3723.4,
    } | changes  # fmt: skip
    return Report(**values)  # type: ignore[arg-type]


def test_the_line_says_all_of_it() -> None:
    assert report().line() == (
        "step 5/200  loss 0.5000  unmasked 0.2500  lips 0.1250  grad 1.50  lr 1.0e-04"
        "  12.0 samples/s (3.0 a rank)  data wait 7%  left 1:02:03"
    )
    alone = report(samples_per_s_rank=12.0, skipped_samples=3, lips=math.nan, left_s=0.0).line()
    assert (
        "12.0 samples/s  data" in alone and "skipped samples 3  left 0:00:00" in alone and "lips nan" in alone
    )


def test_the_clock_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = Clock(10)
    with clock.waiting():
        now += 1
    now += 3
    with clock.waiting():
        now += 1
    assert clock.read(20) == (0.4, 2.0)
    now += 4
    assert clock.read(21) == (0.0, 0.25)


def test_the_display_of_all_commands_shows_it() -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=40)) as display:
        display.show(Progress("preparing"))
        for step in (1, 2, 199, 200):
            display.show(report(step).progress())
    lines = [line.partition("] ")[2].partition("  ")[0] for line in text.getvalue().splitlines()]
    assert lines == ["preparing", "training: step 1/200", "training: step 200/200"]
