"""The trainer: `accelerate launch -m training.train --config configs/train/tiny-stage1.yaml`.

Both stages are this one loop; what differs is in the configuration. Everything random is a function of
(seed, step, rank), and a checkpoint opens a new chapter of the data, so that a run that was stopped goes
on as if it had not been.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Generator, Tensor

from schemas.config import differences
from schemas.errors import CommandError, RunError
from training import checkpoint, data
from training.batch import Batch, Facts
from training.cache import usable
from training.checkpoint import Checkpoint, Progress
from training.codec import LinearCodec
from training.config import TrainConfig
from training.encoders import Encoders, load_encoders
from training.losses import Loss
from training.model import TalkingWan, build
from training.optim import Average, learning_rate, optimizer
from training.progress import Clock, Report
from training.step import training_step

log = logging.getLogger(__name__)

FIT_BATCHES = 16
"""Batches that the linear codec's statistics are taken from."""

MAY_CHANGE = (
    "run.steps",
    "run.log_every",
    "run.save_every",
    "run.keep",
    "run.validate_every",
    "run.trackers",
)
"""Settings that a run may be resumed with."""


@dataclass
class Result:
    """How a run ended."""

    step: int
    finished: bool
    checkpoint: Path | None
    bad: Counter[str] = field(default_factory=Counter)
    history: list[Report] = field(default_factory=list)


def train(
    config: TrainConfig,
    *,
    stop: Callable[[], bool] = lambda: False,
    show: Callable[[Report], None] = lambda _: None,
) -> Result:
    """Train until `config.run.steps`, or until `stop` says so; goes on where the run folder stands.

    Raises:
        CommandError: the configuration does not fit the data, the run folder or the machine.
        ModelError, DatasetError: weights or shards are not what they should be.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    if not config.run.out:
        raise CommandError("run.out: expected the folder of the run, found nothing")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    out = Path(config.run.out)
    accelerator = Accelerator(
        mixed_precision=config.run.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        log_with=list(config.run.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
    )
    return _Run(config, out, accelerator, stop, show).go()


class _Run:
    """One run, from its folder to its end."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        accelerator: Accelerator,
        stop: Callable[[], bool],
        show: Callable[[Report], None],
    ) -> None:
        self._config, self._out, self._accelerator = config, out, accelerator
        self._stop, self._show = stop, show
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        shards = data.shard_list(config.data.shards)
        self._facts = data.probe(config.data.shards)
        self._cached = usable(shards, config)
        if accelerator.is_main_process:
            log.info("reading %s", "cached latents" if self._cached else "pictures, encoded as they come")
        resumed = self._resumed()
        self._progress = resumed.progress if resumed else Progress(0, 0, 0, self._world, self._facts)
        model = build(config, self._facts, dtype=_dtype(config.run.precision))
        self._encoders = self._load(model, resumed)
        self._average = Average(model, config.optim.ema, resumed.averaged() if resumed else None)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        adamw = optimizer(model, config.optim)
        if resumed:
            adamw.load_state_dict(resumed.optimizer())
        self._model, self._optimizer = accelerator.prepare(model, adamw)
        self._result = Result(self._progress.step, False, resumed.folder if resumed else None)
        if accelerator.is_main_process:
            _describe(out, config, self._facts, self._world)
        if config.run.trackers:
            accelerator.init_trackers("talkforge")

    def go(self) -> Result:
        """Train; returns how it ended."""
        try:
            while self._progress.step < self._config.run.steps and not self._result.finished:
                if not self._chapter():
                    break
            self._result.finished = self._progress.step >= self._config.run.steps
        finally:
            self._accelerator.end_training()
        return self._result

    # ----------------------------------------------------------------------- chapters and steps

    def _chapter(self) -> bool:
        """Steps to the next checkpoint; whether the run goes on."""
        run, begun = self._config.run, self._progress
        loader = data.SpanLoader(
            self._config.data,
            self._facts,
            seed=run.seed,
            rank=self._rank,
            world=self._world,
            chapter=begun.chapter,
            skip=begun.consumed,
            cached=self._cached,
        )
        batches = iter(loader)
        clock = Clock(begun.step)
        bad_before = Counter(self._result.bad)
        end = min(run.steps, (begun.step // run.save_every + 1) * run.save_every)
        for step in range(begun.step + 1, end + 1):
            losses, grad_norm = self._step(step, batches, clock)
            self._result.bad = bad_before + loader.bad
            self._progress = Progress(
                step, begun.chapter, begun.consumed + (step - begun.step) * self._config.optim.accumulate,
                self._world, self._facts,
            )  # fmt: skip
            if step % run.log_every == 0 or step == run.steps:
                self._report(losses, grad_norm, clock)
            stopping = self._agreed(self._stop())
            if step == end and not stopping:
                self._progress = Progress(step, step, 0, self._world, self._facts)
            if step == end or stopping:
                self._save()
            if run.validate_every and step % run.validate_every == 0:
                self._validate(step)
            if stopping:
                return False
        return True

    def _step(self, step: int, batches: Iterator[Batch], clock: Clock) -> tuple[list[Loss], float]:
        """One optimizer step; the losses of its batches on this rank, and the gradient's norm."""
        losses, norm = [], torch.zeros(())
        for micro in range(self._config.optim.accumulate):
            with clock.waiting():
                batch = next(batches).to(self._accelerator.device)
            with self._accelerator.accumulate(self._model):
                generator = self._generator(step, micro)
                loss = training_step(
                    self._model, self._encoders, batch, self._config, generator,
                    rank=self._rank, world=self._world,
                )  # fmt: skip
                _refuse_infinite("loss", loss.total, step, batch)
                self._accelerator.backward(loss.total)
                if self._accelerator.sync_gradients:
                    norm = self._accelerator.clip_grad_norm_(
                        self._trainable, self._config.optim.max_grad_norm
                    )
                    if self._config.run.precision != "fp16":  # whose scaler passes such a step over
                        _refuse_infinite("gradient", norm, step, batch)
                    for group in self._optimizer.param_groups:
                        group["lr"] = group["scale"] * learning_rate(
                            step, self._config.run.steps, self._config.optim
                        )
                self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append(loss)
        self._average.update(self._accelerator.unwrap_model(self._model))
        return losses, float(norm)

    def _generator(self, step: int, micro: int) -> Generator:
        """Of everything drawn for one batch."""
        place = micro * self._world + self._rank
        seed = (self._config.run.seed * 1_000_003 + step) * 1_000_003 + place
        return Generator().manual_seed(seed % 2**63)

    def _agreed(self, stopping: bool) -> bool:
        """Whether any rank is told to stop; all must stop after the same step."""
        if self._world == 1:
            return stopping
        flag = torch.tensor(int(stopping), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, "sum"))

    def _report(self, losses: list[Loss], grad_norm: float, clock: Clock) -> None:
        parts = torch.stack(
            [torch.stack([x.total.detach(), x.plain, x.lips, x.masked_share]) for x in losses]
        )
        parts = self._accelerator.gather(parts.float())
        lips = parts[:, 2][~parts[:, 2].isnan()]
        samples = self._config.data.batch_size * self._config.optim.accumulate
        wait_fraction, steps_per_s = clock.read(self._progress.step)
        report = Report(
            step=self._progress.step,
            steps=self._config.run.steps,
            loss=float(parts[:, 0].mean()),
            plain=float(parts[:, 1].mean()),
            lips=float(lips.mean()),
            masked_share=float(parts[:, 3].mean()),
            grad_norm=grad_norm,
            lr=learning_rate(self._progress.step, self._config.run.steps, self._config.optim),
            samples_per_s=samples * self._world * steps_per_s,
            samples_per_s_rank=samples * steps_per_s,
            wait_fraction=wait_fraction,
            bad_samples=self._result.bad.total(),
            left_s=(self._config.run.steps - self._progress.step) / steps_per_s,
        )
        self._result.history.append(report)
        values = {key: value for key, value in asdict(report).items() if key not in ("step", "steps")}
        self._accelerator.log(values, step=report.step)
        if self._accelerator.is_main_process:
            self._show(report)

    # ----------------------------------------------------------------------- weights and files

    def _resumed(self) -> Checkpoint | None:
        """The last checkpoint in the run's folder, if it is of this very run."""
        if not checkpoint.steps(self._out):
            return None
        found = checkpoint.read(checkpoint.find(self._out))
        changed = [
            line
            for line in differences(found.config, self._config)
            if not line.startswith(tuple(f"{key}:" for key in MAY_CHANGE))
        ]
        if changed:
            raise CommandError(
                f"run.out {self._out}: holds a run with other settings: {'; '.join(changed)}. "
                "Use those again, or another run.out"
            )
        if found.progress.facts.fingerprint != self._facts.fingerprint:
            raise CommandError(
                f"run.out {self._out}: was trained on other shards than {self._config.data.shards}"
            )
        if found.progress.world != self._world:
            raise CommandError(
                f"run.out {self._out}: expected {found.progress.world} processes, as before, found {self._world}"
            )
        return found

    def _load(self, model: TalkingWan, resumed: Checkpoint | None) -> Encoders:
        """Weights into the model, and the encoders that go with them."""
        source = resumed
        if resumed:
            checkpoint.load_trained(model, resumed.trained(), str(resumed.folder))
        elif self._config.run.init_from:
            source = _initial(model, Path(self._config.run.init_from))
        text_dim = model.transformer.config.text_dim
        encoders = load_encoders(self._config, text_dim, self._accelerator.device)
        if encoders.codec.kind != "linear":
            return encoders
        codec = (source.codec() if source else None) or self._fitted()
        return Encoders(codec.to(self._accelerator.device), encoders.text, encoders.image)

    def _fitted(self) -> LinearCodec:
        """A linear codec for these shards: the same on every rank, for all read the same batches."""
        loader = data.SpanLoader(self._config.data, self._facts, seed=self._config.run.seed)
        batches = itertools.islice(loader, FIT_BATCHES)
        return LinearCodec.fit(batch.rgb_BFHWC for batch in batches if batch.rgb_BFHWC is not None)

    def _save(self) -> None:
        model = self._accelerator.unwrap_model(self._model)
        if self._accelerator.is_main_process:
            codec = self._encoders.codec
            self._result.checkpoint = checkpoint.save(
                self._out,
                self._progress,
                self._config,
                trained={name: p for name, p in model.named_parameters() if p.requires_grad},
                optimizer=self._optimizer.state_dict(),
                averaged=self._average.state,
                codec=codec if isinstance(codec, LinearCodec) else None,
                keep=self._config.run.keep,
            )
        self._accelerator.wait_for_everyone()
        self._result.step = self._progress.step

    def _validate(self, step: int) -> None:
        """Validation samples of this step, by the main process."""
        if not self._accelerator.is_main_process:
            return
        from training.generate import preview

        preview(
            self._accelerator.unwrap_model(self._model),
            self._encoders,
            self._config,
            self._facts,
            self._out / "samples" / f"step-{step:08d}",
        )


def _initial(model: TalkingWan, place: Path) -> Checkpoint | None:
    """Weights of another run, or of a published file, into a fresh model."""
    if place.is_file():
        checkpoint.load_published(model, place)
        return None
    found = checkpoint.read(checkpoint.find(place))
    checkpoint.load_trained(model, found.averaged() or found.trained(), str(found.folder))
    return found


def _dtype(precision: str) -> torch.dtype:
    """Of the weights that are not trained."""
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _refuse_infinite(what: str, value: Tensor, step: int, batch: Batch) -> None:
    if not math.isfinite(float(value)):
        raise RunError(
            f"step {step}: {what} is {float(value)}, nothing was updated; samples: {', '.join(batch.keys)}"
        )


def _describe(out: Path, config: TrainConfig, facts: Facts, world: int) -> None:
    """`config.yaml` and `run.json` in the run's folder."""
    described = {
        "talkforge": metadata.version("talkforge"),
        "git_sha": _git_sha(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "diffusers": metadata.version("diffusers"),
        "accelerate": metadata.version("accelerate"),
        "processes": world,
        "data": asdict(facts),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(checkpoint.to_yaml(config), encoding="utf-8")
        (out / "run.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"run.out {out}: cannot be written to ({error.strerror})") from None


def _git_sha() -> str:
    """Commit of the program, where it runs from a checkout; else empty."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""
