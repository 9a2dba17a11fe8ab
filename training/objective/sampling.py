"""Sampling: Euler steps from noise to latents with classifier-free guidance by prompt and audio."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Generator, Tensor

from talkforge.schemas.units import LATENT_CHANNELS
from talkforge.training.config import AdapterConfig, SampleConfig
from talkforge.training.data.batch import Batch
from talkforge.training.objective import losses
from talkforge.training.objective.step import EncodedBatch, KeepMask, Model, conditions


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
    """Latents of a video, [B, 16, T, H/8, W/8].

    v = v(no text, no audio) + s_text (v(text, no audio) - v(no text, no audio))
                             + s_audio (v(text, audio) - v(text, no audio))

    where "no" is a dropped condition, as `training.objective.step` defines it. The image is always kept. A
    pass whose weight is zero is not computed.

    Source: published inference code of FantasyTalking.

    Args:
        model: predicts the velocity.
        batch: speech, identity and motion intensities. Its frames are not used.
        encoded: reference image and prompt. Its latents are not used.
        adapters: scales of the added attentions.
        stage: 'clip' or 'frame'.
        config: Euler steps and guidance weights.
        shift: of the noise levels, see `losses.shifted`.
        generator: on the CPU, so that a seed gives the same video on every device.
    """
    weights = {  # of (text, audio)
        (False, False): 1 - config.text_cfg,
        (True, False): config.text_cfg - config.audio_cfg,
        (True, True): config.audio_cfg,
    }
    keep = KeepMask.all(batch.size)
    passes = {
        (text, audio): conditions(
            batch,
            encoded,
            replace(keep, text_B=keep.text_B & text, audio_B=keep.audio_B & audio),
            adapters,
            stage,
        )
        for (text, audio), weight in weights.items()
        if weight
    }
    grid = encoded.condition_BCTHW.shape[2:]
    x = torch.randn(batch.size, LATENT_CHANNELS, *grid, generator=generator).to(
        encoded.condition_BCTHW.device
    )
    with torch.no_grad():
        for now, then in itertools.pairwise(sigmas(config.steps, shift).tolist()):
            timestep_B = torch.full((batch.size,), losses.TIMESTEPS * now, device=x.device)
            velocity = sum(weights[which] * model(x, timestep_B, passes[which]) for which in passes)
            x = x + (then - now) * velocity
    return x
