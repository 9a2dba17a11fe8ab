"""AdamW for what is trained, its schedule, and a moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.model import TalkingWan, adapter_parameters


def optimizer(model: TalkingWan, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; adapters have a learning rate of their own, in `group["scale"]`."""
    adapters = {name for name, _ in adapter_parameters(model)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if (name in adapters) == added], "scale": scale}
        for added, scale in ((True, config.adapter_lr_scale), (False, 1.0))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 1..`steps`, before a group's scale: linear warm-up, then constant or half a
    cosine down to zero after the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    share = (step - 1 - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


class Average:
    """Exponential moving average of what is trained, in float32.

    Attributes:
        state: the average by parameter name; None where none is kept.
    """

    def __init__(self, model: nn.Module, decay: float | None, state: dict[str, Tensor] | None = None) -> None:
        """Starts at `state`, or at the model's weights."""
        self._decay = decay
        self.state: dict[str, Tensor] | None = None
        if decay is not None:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            start = state or trained
            self.state = {
                name: start[name].detach().to(p.device, torch.float32, copy=True)
                for name, p in trained.items()
            }

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        if self.state is None or self._decay is None:
            return
        for name, parameter in model.named_parameters():
            if name in self.state:
                average = self.state[name].to(parameter.device)
                self.state[name] = average.lerp_(parameter.detach().float(), 1 - self._decay)
