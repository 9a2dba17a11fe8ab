"""The training loop: checkpoint intervals, reports and validation samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from talkforge.schemas.errors import DatasetError, RunError, TalkforgeError
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.data.loader import SpanLoader
from talkforge.training.objective.losses import Loss
from talkforge.training.run import checkpoint, parallel
from talkforge.training.run.buckets import BucketQueue
from talkforge.training.run.checkpoint import FOLDER, TrainProgress
from talkforge.training.run.held_out import LEVELS, HeldOut
from talkforge.training.run.optim import learning_rate
from talkforge.training.run.progress import Clock, Report, Validation
from talkforge.training.run.tensor_files import Deferred
from talkforge.training.run.update import TrainState
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)

_STOP = "stop"

T = TypeVar("T")

Preview = Callable[[TalkingWan, Encoders, TrainConfig, DatasetInfo, Path, Accelerator], Validation]
"""Writes validation samples of a model into a folder, and measures them. All processes take part."""

VALIDATION = "validation.csv"
"""File of a run with the measures of its validation samples, one row for each step."""


@dataclass
class Result:
    """Result of a run.

    Attributes:
        step: optimizer steps done, over all starts.
        finished: whether these are all steps of the run.
        checkpoint: folder of the last checkpoint, or None where there is none yet.
        skipped: samples that this process's loader skipped since this start, by reason.
        history: reports of this start.
    """

    step: int
    finished: bool = False
    checkpoint: Path | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    history: list[Report] = field(default_factory=list)


class _StopRun(Exception):  # noqa: N818 (not an error)
    """A process was told to stop."""


class Loop:
    """Steps, reports, checkpoints and validation samples of one start of a run."""

    def __init__(
        self,
        accelerator: Accelerator,
        state: TrainState,
        loader: SpanLoader,
        config: TrainConfig,
        progress: TrainProgress,
        result: Result,
        stop: Callable[[], bool],
        show: Callable[[Report], None],
        preview: Preview,
    ) -> None:
        self._accelerator, self._state, self._loader, self._config = accelerator, state, loader, config
        self._out, self._progress, self._result = Path(config.run.out), progress, result
        self._stop, self._show, self._preview = stop, show, preview
        self._samples: HeldOut | None = None
        several = len(config.data.sizes) * len(config.data.lengths) > 1
        self._choose = several and accelerator.num_processes > 1

    def run(self) -> None:
        """Train until the last step, or until a process is told to stop. Updates the result."""
        try:
            while self._progress.step < self._config.run.steps:
                self._interval()
            self._result.finished = True
        except _StopRun:
            if self._result.step < self._progress.step:
                self._save()

    # ----------------------------------------------------------------------- steps

    def _interval(self) -> None:
        """Steps to the next checkpoint."""
        run, begun = self._config.run, self._progress
        clock = Clock(begun.step)
        queue = self._queue(clock)
        end = min(run.steps, (begun.step // run.save_every + 1) * run.save_every)
        for step in range(begun.step + 1, end + 1):
            losses, grad_norm = self._state.step(step, lambda: self._fetch(queue, clock))
            used = self._progress.consumed + self._config.optim.accumulate
            self._progress = replace(self._progress, step=step, consumed=used)
            if step % run.log_every == 0 or step == run.steps:
                self._report(losses, grad_norm, clock)
            if step % run.save_every == 0:
                self._progress = replace(self._progress, interval=step, consumed=0)
            if step == end:
                self._save()
            if run.validate_every and step % run.validate_every == 0:
                self._validate(step)

    def _queue(self, clock: Clock) -> BucketQueue:
        """Batches from where the run stands in its interval.

        Where processes choose together, a resumed one has to choose again what was used.
        """
        progress = self._progress
        if not self._choose:
            return BucketQueue(self._loader.batches(progress.interval, progress.consumed))
        queue = BucketQueue(self._loader.batches(progress.interval))
        for _ in range(progress.consumed):
            self._fetch(queue, clock)
        return queue

    def _fetch(self, queue: BucketQueue, clock: Clock) -> Batch:
        """The next batch of this process, unless a process stops or has none.

        Where there are several buckets, each process in turn says which one all use.
        """
        own = self._together(queue.oldest, clock)
        if not self._choose:
            return queue.take(own)
        speaker = queue.turn % self._accelerator.num_processes
        said = torch.tensor(own, device=self._accelerator.device)
        frames, height_px, width_px = broadcast(said, from_process=speaker).tolist()
        return self._together(lambda: queue.take((frames, height_px, width_px)), clock)

    def _together(self, read: Callable[[], T], clock: Clock) -> T:
        """What this process reads, unless a process stops or fails."""
        found: list[T] = []
        failed, status = None, _STOP if self._stop() else ""
        if not status:
            try:
                with clock.waiting():
                    found.append(read())
            except TalkforgeError as error:
                # A signal to the whole group ends the loader's processes, too.
                failed, status = error, _STOP if self._stop() else str(error)
        self._result.skipped = Counter(self._loader.skipped)
        statuses = parallel.all_gather_messages(self._accelerator, status)
        if errors := sorted({found for found in statuses if found != _STOP}):
            raise failed or DatasetError("; ".join(errors))
        if statuses:
            raise _StopRun
        return found[0]

    # ----------------------------------------------------------------------- reports and checkpoints

    def _report(self, losses: list[Loss], grad_norm: float, clock: Clock) -> None:
        """Gather a step's figures from all processes. The main one shows and tracks them."""
        wait_fraction, steps_per_s = clock.read(self._progress.step)
        parts_KP = torch.stack([_parts(loss) for loss in losses])
        own_2 = torch.tensor([wait_fraction, self._result.skipped.total()], device=self._accelerator.device)
        parts_KP = self._accelerator.gather(parts_KP).cpu()
        everyone_N2 = self._accelerator.gather(own_2[None]).cpu()
        loss, unmasked, _, masked_fraction = parts_KP.mean(dim=0).tolist()
        run, samples = self._config.run, self._config.data.batch_size * self._config.optim.accumulate
        report = Report(
            step=self._progress.step,
            steps=run.steps,
            loss=loss,
            unmasked=unmasked,
            lips=float(parts_KP[:, 2].nanmean()),
            masked_fraction=masked_fraction,
            grad_norm=grad_norm,
            lr=learning_rate(self._progress.step, run.steps, self._config.optim),
            samples_per_s=samples * len(everyone_N2) * steps_per_s,
            samples_per_s_rank=samples * steps_per_s,
            wait_fraction=float(everyone_N2[:, 0].max()),
            skipped_samples=round(float(everyone_N2[:, 1].sum())),
            left_s=(run.steps - self._progress.step) / steps_per_s,
        )
        self._result.history.append(report)
        self._accelerator.log(report.tracked(), step=report.step)
        if self._accelerator.is_main_process:
            self._show(report)

    def _save(self) -> None:
        """Write a checkpoint. Every process has to take part.

        Raises:
            RunError: it cannot be written, on every process.
        """
        states = self._state.states(self._out / FOLDER / ".deepspeed")
        codec = self._state.encoders.codec
        with parallel.error_barrier(self._accelerator):
            try:
                if self._accelerator.is_main_process:
                    checkpoint.save(
                        self._out,
                        self._progress,
                        self._config,
                        codec=codec if isinstance(codec, LinearCodec) else None,
                        keep=self._config.run.keep,
                        **states,
                    )
            finally:  # tensors are gathered as they are written, also those of a checkpoint that fails
                for state in states.values():
                    if isinstance(state, Deferred):
                        state.rest()
        self._result.step = self._progress.step
        self._result.checkpoint = checkpoint.folder_of(self._out, self._progress.step)

    def _validate(self, step: int) -> None:
        """Held-out loss and validation samples of this step. Every process takes part."""
        samples = self._out / "samples" / f"step-{step:08d}"
        state, info = self._state, self._progress.info
        losses = self._held_out(step)
        found = self._preview(state.model, state.encoders, self._config, info, samples, self._accelerator)
        found.measures.update(losses)
        if self._accelerator.is_main_process and found.measures:
            self._keep_validation(found, step)
            self._accelerator.log(found.tracked(), step=step)
            if self._config.run.validation_measures:
                log.info("step %d: %s", step, found.line())

    def _held_out(self, step: int) -> dict[str, float]:
        """Losses on held-out samples, where there are any. Every process takes part."""
        if not self._config.data.validation_shards:
            return {}
        if self._samples is None:
            with parallel.error_barrier(self._accelerator):
                self._samples = HeldOut(self._config, self._progress.info, self._accelerator)
        assert self._samples is not None, "the barrier raises where it could not be made"
        found = self._samples.measure(self._state.model, self._state.encoders)
        shown = ", ".join(f"{found[f'held_out_{level}']:.4f} at {level}" for level in LEVELS)
        if self._accelerator.is_main_process:
            log.info("step %d: held-out loss %s", step, shown)
        return found

    def _keep_validation(self, found: Validation, step: int) -> None:
        """Write a row of the curve. Where that fails the run goes on, and the log says so."""
        try:
            found.append(self._out / VALIDATION, step)
        except RunError as error:
            log.warning("%s", error)


def _parts(loss: Loss) -> Tensor:
    return torch.stack([loss.total.detach(), loss.unmasked, loss.lips, loss.masked_fraction]).float()
