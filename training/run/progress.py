"""Reports of a run, for the console and the trackers."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from talkforge.schemas import scratch
from talkforge.schemas.progress import Progress

TRACKER_KEYS = {
    "unmasked": "plain",
    "masked_fraction": "masked_share",
    "skipped_samples": "bad_samples",
}
"""Names in the trackers that differ from a report's own, so that a resumed run continues its curves."""


@dataclass(frozen=True)
class Report:
    """The state of a run after a step.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the run.
        loss: the loss that is minimised. It and its parts are means over the ranks and the accumulated
            batches of this step.
        unmasked: mean squared error over everything, see `losses.Loss`.
        lips: mean squared error under the lip mask, NaN where no sample had lips.
        masked_fraction: fraction of the samples that were weighted by their lips.
        grad_norm: norm of the gradient before it was clipped.
        lr: learning rate of this step.
        samples_per_s: samples per second of all ranks.
        samples_per_s_rank: samples per second of this rank.
        wait_fraction: fraction of the time since the last report that the slowest rank waited for data.
        skipped_samples: samples skipped since this start, over all ranks.
        left_s: estimated time to the last step, s.
    """

    step: int
    steps: int
    loss: float
    unmasked: float
    lips: float
    masked_fraction: float
    grad_norm: float
    lr: float
    samples_per_s: float
    samples_per_s_rank: float
    wait_fraction: float
    skipped_samples: int
    left_s: float

    def tracked(self) -> dict[str, float]:
        """Values for the trackers, by their names there."""
        values = {key: value for key, value in asdict(self).items() if key not in ("step", "steps")}
        return {TRACKER_KEYS.get(key, key): value for key, value in values.items()}

    def line(self) -> str:
        """All of it in one line, as the console shows it."""
        minutes, seconds = divmod(round(self.left_s), 60)
        hours, minutes = divmod(minutes, 60)
        speed = f"{self.samples_per_s:.1f} samples/s"
        if round(self.samples_per_s, 3) != round(self.samples_per_s_rank, 3):
            speed += f" ({self.samples_per_s_rank:.1f} a rank)"
        skipped = f"  skipped samples {self.skipped_samples}" if self.skipped_samples else ""
        return (
            f"step {self.step}/{self.steps}  loss {self.loss:.4f}  unmasked {self.unmasked:.4f}"
            f"  lips {self.lips:.4f}  grad {self.grad_norm:.2f}  lr {self.lr:.1e}  {speed}"
            f"  data wait {self.wait_fraction:.0%}{skipped}  left {hours}:{minutes:02d}:{seconds:02d}"
        )

    def progress(self) -> Progress:
        """The state for the display of all commands."""
        return Progress("training", self.step, self.steps, self.line())


@dataclass(frozen=True)
class Validation:
    """Validation samples of one step.

    Attributes:
        files: the videos.
        measures: mean over the samples of each measure that could be taken, by its name; those of the true
            videos begin with `true_`. Empty where nothing was measured.
    """

    files: list[Path]
    measures: dict[str, float]

    def tracked(self) -> dict[str, float]:
        """Values for the trackers, by their names there."""
        return {f"validation/{name}": value for name, value in self.measures.items()}

    def line(self) -> str:
        """The measures that follow the audio, in one line."""
        names = ("sync_probability", "lip_aperture_r", "identity_similarity", "jitter")
        shown = [f"{name} {self.measures[name]:.3f}" for name in names if name in self.measures]
        return f"validation of {len(self.files)}: {', '.join(shown) or 'no face could be compared'}"

    def append(self, path: Path, step: int) -> None:
        """Write the measures as a row of a CSV file. Rows of this step and of later ones are replaced.

        Args:
            path: the file; columns are `step`, `videos`, and the names of the measures.
            step: optimizer steps done.

        Raises:
            RunError: it cannot be written.
        """
        rows: list[dict[str, str]] = []
        with suppress(OSError), path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
        rows = [row for row in rows if int(row["step"]) < step]
        new = {"step": str(step), "videos": str(len(self.files))}
        rows.append(new | {name: f"{value:.6g}" for name, value in self.measures.items()})
        with scratch.replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), restval="")
            writer.writeheader()
            writer.writerows(rows)


class Clock:
    """Measures steps per second, and the fraction of the time that is spent waiting for data."""

    def __init__(self, step: int) -> None:
        self._step, self._begin_s, self._wait_s = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside counts as waiting."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self._wait_s += time.monotonic() - begin_s

    def read(self, step: int) -> tuple[float, float]:
        """Fraction of the time spent waiting, and steps per second, since the last reading.

        Args:
            step: optimizer steps done.
        """
        now_s = time.monotonic()
        spent_s = max(now_s - self._begin_s, 1e-9)
        found = self._wait_s / spent_s, (step - self._step) / spent_s
        self._step, self._begin_s, self._wait_s = step, now_s, 0.0
        return found
