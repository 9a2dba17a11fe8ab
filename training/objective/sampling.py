"""Sampling: a solver from noise to latents, with classifier-free guidance by prompt and audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor

from talkforge.schemas.units import LATENT_CHANNELS
from talkforge.training.config import AdapterConfig, SampleConfig
from talkforge.training.data.batch import Batch, Conditions
from talkforge.training.objective import losses
from talkforge.training.objective.step import EncodedBatch, KeepMask, Model, conditions

Velocity = Callable[[Tensor, float], Tensor]
"""Noisy latents and noise level to the velocity."""


def sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels from 1 to 0, [steps + 1], evenly spaced before the shift."""
    return losses.shifted(torch.linspace(1, 0, steps + 1), shift)


def sample(
    model: Model,
    batch: Batch,
    encoded: EncodedBatch,
    adapters: AdapterConfig,
    stage: str,
    config: SampleConfig,
    shift: float,
    generator: Generator,
) -> Tensor:
    """Latents of a video of one window, [B, 16, T, H/8, W/8].

    Args:
        model: predicts the velocity.
        batch: speech, identity and motion intensities. Its frames are not used.
        encoded: reference image and prompt. Its latents are not used.
        adapters: scales of the added attentions.
        stage: 'clip' or 'frame'.
        config: steps, solver and guidance weights.
        shift: of the noise levels, see `losses.shifted`.
        generator: on the CPU, so that a seed gives the same video on every device.
    """
    grid, device = encoded.condition_BCTHW.shape[2:], encoded.condition_BCTHW.device
    x = torch.randn(batch.size, LATENT_CHANNELS, *grid, generator=generator).to(device)
    passes = guidance_passes(batch, encoded, adapters, stage, config)
    guided = Guidance(model, together=config.passes_together)
    with torch.no_grad():
        return solve(
            SolverState(0, x),
            sigmas(config.steps, shift).tolist(),
            lambda noisy, sigma: guided.velocity(noisy, sigma, passes),
            config.solver,
        )


# --------------------------------------------------------------------------- guidance


@dataclass(frozen=True)
class GuidancePass:
    """One forward pass of the model, and its weight in the guided velocity."""

    weight: float
    conditions: Conditions


def guidance_passes(
    batch: Batch, encoded: EncodedBatch, adapters: AdapterConfig, stage: str, config: SampleConfig
) -> tuple[GuidancePass, ...]:
    """The passes of which the guided velocity is the weighted sum.

    v = v(no text, no audio) + s_text (v(text, no audio) - v(no text, no audio))
                             + s_audio (v(text, audio) - v(text, no audio))

    where "no" is a dropped condition, as `training.objective.step` defines it. The image is always kept.
    Passes with the same conditions are one: those with and without text where the prompt is the negative
    prompt, and those with and without audio where the audio attention is off. A pass whose weight is zero is
    left out.

    Source: published inference code of FantasyTalking.

    Args:
        batch: speech, identity and motion intensities.
        encoded: reference image and prompt. Its empty text is that of the negative prompt, if there is one.
        adapters: scales of the added attentions.
        stage: 'clip' or 'frame'.
        config: guidance weights.
    """
    with_text = not torch.equal(encoded.text_BSD, encoded.empty_text_SD.expand_as(encoded.text_BSD))
    with_audio = adapters.audio_scale != 0
    weights: dict[tuple[bool, bool], float] = {}
    for text, audio, weight in (
        (False, False, 1 - config.text_cfg),
        (True, False, config.text_cfg - config.audio_cfg),
        (True, True, config.audio_cfg),
    ):
        kept = text and with_text, audio and with_audio
        weights[kept] = weights.get(kept, 0.0) + weight
    keep = KeepMask.all(batch.size)
    return tuple(
        GuidancePass(
            weight,
            conditions(
                batch,
                encoded,
                replace(keep, text_B=keep.text_B & text, audio_B=keep.audio_B & audio),
                adapters,
                stage,
            ),
        )
        for (text, audio), weight in weights.items()
        if abs(weight) > 1e-9  # sums of weights that cancel are not exactly zero
    )


class Guidance:
    """Computes the guided velocity, as many passes in one call of the model as memory allows.

    Attributes:
        at_once: passes in one call. It is halved each time that the device runs out of memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        together: bool = True,
        in_context: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        """Guidance of a model.

        Args:
            model: predicts the velocity.
            together: begin with all passes in one call. Otherwise each has its own.
            in_context: entered around every call, with a name for window and passes, `WINDOW/FIRST+COUNT`.
                Step caching tells the results by this name.
        """
        self._model, self._in_context = model, in_context
        self.at_once = 3 if together else 1

    def velocity(self, x: Tensor, sigma: float, passes: Sequence[GuidancePass], name: str = "") -> Tensor:
        """The guided velocity, like `x`.

        Args:
            x: noisy latents, [B, 16, T, H, W].
            sigma: their noise level.
            passes: see `guidance_passes`.
            name: of the window.
        """
        while True:
            try:
                return self._velocity(x, sigma, passes, name)
            except torch.OutOfMemoryError:
                if self.at_once == 1 or len(passes) == 1:
                    raise
                self.at_once = min(self.at_once, len(passes)) // 2 or 1

    def _velocity(self, x: Tensor, sigma: float, passes: Sequence[GuidancePass], name: str) -> Tensor:
        found = torch.zeros_like(x)
        for first in range(0, len(passes), self.at_once):
            part = passes[first : first + self.at_once]
            timestep_B = torch.full((len(part) * len(x),), losses.TIMESTEPS * sigma, device=x.device)
            given = _stacked([one.conditions for one in part])
            with self._in_context(f"{name}/{first}+{len(part)}"):
                velocities = self._model(x.repeat(len(part), 1, 1, 1, 1), timestep_B, given)
            for one, velocity in zip(part, velocities.chunk(len(part)), strict=True):
                found = found + one.weight * velocity
        return found


def _stacked(given: Sequence[Conditions]) -> Conditions:
    """Conditions of several passes as one batch."""
    first = given[0]
    if len(given) == 1:
        return first
    tensors = {
        field.name: torch.cat([getattr(one, field.name) for one in given])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **tensors)


# --------------------------------------------------------------------------- solver


@dataclass(frozen=True)
class SolverState:
    """Where a solver stands.

    Attributes:
        step: steps done.
        x: latents at this step's noise level.
        clean: the last prediction of the clean latents, which a second-order step needs.
    """

    step: int
    x: Tensor
    clean: Tensor | None = None


def solve(
    state: SolverState,
    levels: Sequence[float],
    velocity: Velocity,
    solver: str,
    after_step: Callable[[SolverState], None] = lambda _: None,
) -> Tensor:
    """The latents at the last noise level.

    Euler's step is x + (sigma' - sigma) v. DPM-Solver++(2M) predicts the clean latents z = x - sigma v and
    extrapolates them from the last two predictions, in lambda = ln((1 - sigma) / sigma):

        r  = sigma' / sigma,   x' = r x + ((1 - sigma') - (1 - sigma) r) d
        d  = z + (z - z_last) (lambda' - lambda) / (2 (lambda - lambda_last))

    The first two steps and the last one, whose lambdas are infinite, take d = z, which is Euler's step.

    Source: Lu et al., "DPM-Solver++", arXiv 2211.01095, Algorithm 2, with alpha = 1 - sigma.

    Args:
        state: where to begin.
        levels: noise levels from 1 to 0.
        velocity: predicts the velocity.
        solver: 'euler' or 'dpm++2m'.
        after_step: called with each new state.
    """
    for step in range(state.step, len(levels) - 1):
        now, then = levels[step], levels[step + 1]
        found = velocity(state.x, now)
        if solver == "euler":
            state = SolverState(step + 1, state.x + (then - now) * found)
        else:
            clean = state.x - now * found
            direction = clean
            if state.clean is not None and then > 0 and levels[step - 1] < 1:
                ratio = (_lambda(then) - _lambda(now)) / (2 * (_lambda(now) - _lambda(levels[step - 1])))
                direction = clean + ratio * (clean - state.clean)
            kept = then / now
            x = kept * state.x + ((1 - then) - (1 - now) * kept) * direction
            state = SolverState(step + 1, x, clean)
        after_step(state)
    return state.x


def _lambda(sigma: float) -> float:
    """Half the logarithm of the signal-to-noise ratio."""
    return float(torch.logit(torch.tensor(1 - sigma, dtype=torch.float64)))
