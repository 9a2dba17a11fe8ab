"""AdamW, its schedule, and EMA of the weights."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from talkforge.schemas import extras
from talkforge.training.config import OptimConfig
from talkforge.training.run.parallel import part_of, trained_parameters
from talkforge.training.run.tensor_files import TensorFile, check_names
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters


def make_optimizer(model: TalkingWan, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the trained parameters. Adapters have a learning rate of their own, see `set_learning_rate`.

    Args:
        model: its trained parameters.
        config: learning rates, moments, weight decay, and whether moments have 8 bits.

    Raises:
        MissingExtraError: 8 bits need torchao.
    """
    adapters = {name for name, _ in adapter_parameters(model)}
    trained = trained_parameters(model)
    if config.eight_bit:
        extras.require("train-8bit", "optim.eight_bit")
        from torchao.optim import AdamW8bit

        kind: Any = AdamW8bit
    else:
        kind = functools.partial(torch.optim.AdamW, fused=True)
    groups = [
        {"params": [p for name, p in trained.items() if (name in adapters) == added], "scale": scale}
        for added, scale in ((True, config.adapter_lr_scale), (False, 1.0))
    ]
    optimizer: torch.optim.Optimizer = kind(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    return optimizer


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of a step, before a group's scale.

    It rises linearly to `config.lr` at the last step of the warm-up. Then it is constant, or half a cosine
    that would reach zero one step after the last.

    Args:
        step: number of the step, 1..`steps`.
        steps: optimizer steps of the run.
        config: learning rate, warm-up and schedule.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    fraction = (step - 1 - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * fraction))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: `rate` times the scale of the group."""
    for group in optimizer.param_groups:
        own = group["scale"] * rate
        if isinstance(
            group["lr"], Tensor
        ):  # torchao's step is compiled, and takes a new number for a new program
            group["lr"].fill_(own)
        else:
            group["lr"] = own


class EMA:
    """Exponential moving average of the trained weights, float32, sharded as the weights are.

    Attributes:
        state: the average by parameter name, or None where `decay` is None.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        """Starts at the model's weights.

        Args:
            model: its trained parameters are averaged.
            decay: of the average. None means no average.
        """
        self._decay = decay
        self.state: dict[str, Tensor] | None = None
        if decay is not None:
            trained = trained_parameters(model)
            self.state = {name: p.detach().to(torch.float32, copy=True) for name, p in trained.items()}

    def load(self, file: TensorFile) -> None:
        """Continue a saved average. Each process reads its part.

        Args:
            file: the average, whole.

        Raises:
            ModelError: it is of other parameters.
        """
        if self.state is not None:
            saved = {name: torch.empty(file.shape(name), device="meta") for name in file.names}
            check_names(self.state, saved, str(file.path))
            self.state = {key: part_of(file, key, value) for key, value in self.state.items()}

    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after a step."""
        if self.state is None or self._decay is None:
            return
        for name, parameter in trained_parameters(model).items():
            self.state[name].lerp_(parameter.detach().float(), 1 - self._decay)
