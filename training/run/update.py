"""The train state: model, optimizer and EMA, and one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from talkforge.schemas.errors import CommandError, RunError
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch
from talkforge.training.objective.losses import Loss
from talkforge.training.objective.step import training_step
from talkforge.training.run import parallel
from talkforge.training.run.checkpoint import DEEPSPEED, Checkpoint
from talkforge.training.run.fit import fit, strategy_of
from talkforge.training.run.optim import EMA, learning_rate, make_optimizer, set_learning_rate
from talkforge.training.run.tensor_files import Deferred
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan


class TrainState:
    """Model, optimizer and EMA of a run.

    Attributes:
        model: the unwrapped model. Its weights are sharded where the kind of parallelism shards them.
        encoders: of frames, prompts and reference images.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: TalkingWan,
        encoders: Encoders,
        config: TrainConfig,
        resumed: Checkpoint | None = None,
    ) -> None:
        """Fits the model to its devices, hands it over to Accelerate, and loads the optimizer's state.

        Args:
            accelerator: of this process.
            model: the model, with its trained weights.
            encoders: of frames, prompts and reference images.
            config: of the run.
            resumed: checkpoint from which optimizer and EMA are loaded, or None.

        Raises:
            ModelError, CommandError: the checkpoint does not fit, or a setting does not fit the devices.
        """
        if config.optim.eight_bit and strategy_of(accelerator) != "DDP":
            raise CommandError(
                f"optim.eight_bit: not with {strategy_of(accelerator)}, which shards the moments"
            )
        self._accelerator, self._config, self.encoders = accelerator, config, encoders
        fit(model, config, accelerator)
        self._prepared, optimizer = accelerator.prepare(model, make_optimizer(model, config.optim))
        self._optimizer: torch.optim.Optimizer = optimizer
        self.model: TalkingWan = accelerator.unwrap_model(self._prepared)
        self._ema = EMA(self.model, config.optim.ema)
        if resumed is not None:
            self._resume(resumed)

    def _resume(self, resumed: Checkpoint) -> None:
        if parallel.is_deepspeed(self._accelerator):
            parallel.load_deepspeed(self._prepared, resumed.folder / DEEPSPEED)
            return
        parallel.load_optimizer_state(self.model, self._optimizer, resumed.optimizer())
        if ema := resumed.ema_file():
            self._ema.load(ema)

    def step(self, step: int, fetch: Callable[[], Batch]) -> tuple[list[Loss], float]:
        """One optimizer step: the losses of its batches on this process, and the gradient's norm.

        Everything random is a function of (seed, step, number of the batch over all processes).

        Args:
            step: number of the step, from 1.
            fetch: gives the next batch.

        Raises:
            RunError: a loss or the gradient is not finite on a process. Nothing is updated then.
        """
        optim, norm = self._config.optim, math.nan
        set_learning_rate(self._optimizer, learning_rate(step, self._config.run.steps, optim))
        losses: list[Loss] = []
        keys: list[str] = []
        for micro in range(optim.accumulate):
            batch = fetch().to(self._accelerator.device)
            keys += batch.keys
            with self._accelerator.accumulate(self._prepared):
                loss = self._loss(step, micro, batch)
                self._refuse_infinite(step, "loss", float(loss.total.detach()), list(batch.keys))
                self._accelerator.backward(loss.total)
                if self._accelerator.sync_gradients:
                    norm = self._clip()
                    if not parallel.is_deepspeed(self._accelerator):  # which has updated by now
                        self._refuse_infinite(step, "gradient", norm, keys)
                self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append(loss)
        self._ema.update(self.model)
        return losses, norm

    def _loss(self, step: int, micro: int, batch: Batch) -> Loss:
        """The loss of the micro-th batch of this process."""
        processes = self._accelerator.num_processes
        number = micro * processes + self._accelerator.process_index
        return training_step(
            self._prepared,
            self.encoders,
            batch,
            self._config,
            generator_of(self._config.run.seed, step, number),
            rank=number,
            world=self._config.optim.accumulate * processes,
        )

    def _clip(self) -> float:
        """Norm of the gradient of all processes, before it is clipped."""
        trained = list(parallel.trained_parameters(self.model).values())
        norm = self._accelerator.clip_grad_norm_(trained, self._config.optim.max_grad_norm)
        return float(parallel.whole(norm)) if isinstance(norm, Tensor) else float(norm or 0.0)

    def _refuse_infinite(self, step: int, what: str, value: float, keys: list[str]) -> None:
        message = "" if math.isfinite(value) else f"{value} for {', '.join(keys)}"
        if found := parallel.all_gather_messages(self._accelerator, message):
            raise RunError(f"step {step}: {what} is {'; '.join(found)}: stopped before the update")

    def states(self, folder: Path) -> Mapping[str, Any]:
        """Weights, optimizer and EMA for `checkpoint.save`, in the order in which it takes them.

        All processes have to call this, and to take part in what is `Deferred`.

        Args:
            folder: where DeepSpeed may leave its files, on the checkpoints' disk.
        """
        optimizer: Deferred | Path = folder
        if parallel.is_deepspeed(self._accelerator):
            parallel.save_deepspeed(self._accelerator, self._prepared, folder)
        else:
            optimizer = parallel.optimizer_state(self._accelerator, self.model, self._optimizer)
        ema = self._ema.state
        return {
            "trained": parallel.trained_state(self._accelerator, self.model),
            "optimizer": optimizer,
            "ema": None if ema is None else parallel.gathered(self._accelerator, ema),
        }


def generator_of(seed: int, step: int, batch: int) -> Generator:
    """Generator of all random numbers of one batch.

    Args:
        seed: of the run.
        step: number of the step.
        batch: number of the batch in the step, over all processes.
    """
    return Generator().manual_seed(((seed * 1_000_003 + step) * 1_000_003 + batch) % 2**63)
