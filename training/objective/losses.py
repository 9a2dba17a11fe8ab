"""Flow matching, and the lip-weighted loss of stage 2.

    x = (1 - sigma) z + sigma e,   target e - z,   timestep 1000 sigma

z clean latents, e noise, sigma 0 (clean) to 1 (noise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from talkforge.training.config import FlowConfig, LossConfig

TIMESTEPS = 1000
"""The timestep of the transformer is `TIMESTEPS * sigma`. Source: Wan."""


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Sigmas moved towards noise: k s / (1 + (k - 1) s). Source: Wan's scheduler, after SD3 (Esser 2024).

    Args:
        sigma: noise levels, 0..1, of any shape.
        shift: k. 1 changes nothing.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_sigmas(
    batch: int, config: FlowConfig, generator: Generator, *, rank: int = 0, world: int = 1
) -> Tensor:
    """Noise levels of a batch, float32 [B] in (0, 1], shifted.

    'stratified' divides (0, 1] into an equal interval for each of the `world * batch` samples of a step.
    Those of one rank are spread over the whole range.

    Args:
        batch: samples of this rank.
        config: the distribution and its shift.
        generator: on the CPU.
        rank: number of this process among those of the step.
        world: how many there are.
    """
    if config.timesteps == "logit_normal":
        sigma_B = torch.sigmoid(torch.randn(batch, generator=generator))
    else:
        sigma_B = 1 - torch.rand(batch, generator=generator)
        if config.timesteps == "stratified":
            sigma_B = (torch.arange(batch) * world + rank + sigma_B) / (batch * world)
    return shifted(sigma_B, config.shift)


def timestep_weight(sigma_B: Tensor, config: FlowConfig) -> Tensor:
    """Weight of each sample in the loss, float32 [B].

    'bell': exp(-2 (s - 1/2)^2) minus its value at 0 and 1, divided by its mean on uniform, shifted timesteps.
    Source: ours. Open trainers of Wan use a bell of this shape.

    Args:
        sigma_B: noise levels.
        config: the weighting and the shift.
    """
    if config.weighting == "none":
        return torch.ones_like(sigma_B)
    grid = shifted((torch.arange(TIMESTEPS, device=sigma_B.device) + 0.5) / TIMESTEPS, config.shift)
    return _bell(sigma_B) / _bell(grid).mean()


def _bell(sigma: Tensor) -> Tensor:
    ends = torch.exp(torch.tensor(-0.5, device=sigma.device))
    return torch.exp(-2 * (sigma - 0.5) ** 2) - ends


def noised(latents_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Latents at noise level sigma, [B, C, T, H, W]."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * latents_BCTHW + sigma * noise_BCTHW


def velocity(latents_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
    """The target of the transformer, [B, C, T, H, W]."""
    return noise_BCTHW - latents_BCTHW


def draw_masked(batch: int, config: LossConfig, stage: str, generator: Generator) -> Tensor:
    """Which samples are weighted by their lips, bool [B]: with p = 1 - eta in stage 'frame', else none.

    Each sample is drawn by itself. Source: FantasyTalking §3.2, Eq. 3.

    Args:
        batch: samples.
        config: `eta`, the fraction without the mask.
        stage: 'clip' or 'frame'.
        generator: on the CPU.
    """
    drawn_B = torch.rand(batch, generator=generator)  # in either stage, so that both draw alike
    return drawn_B >= config.eta if stage == "frame" else torch.zeros(batch, dtype=torch.bool)


@dataclass(frozen=True)
class Loss:
    """The loss of a batch and its parts.

    Attributes:
        total: scalar with gradient, which is minimised.
        unmasked: scalar, mean squared error over everything, detached.
        lips: scalar, mean squared error weighted by the lip mask over the samples that have one, detached.
            NaN where none has.
        masked_fraction: scalar, fraction of the samples that were weighted by their lips, detached.
    """

    total: Tensor
    unmasked: Tensor
    lips: Tensor
    masked_fraction: Tensor


def flow_loss(
    predicted_BCTHW: Tensor,
    target_BCTHW: Tensor,
    mask_B1THW: Tensor,
    masked_B: Tensor,
    weight_B: Tensor,
    config: LossConfig,
    face_B1THW: Tensor | None = None,
    counted_BT: Tensor | None = None,
) -> Loss:
    """Mean squared error of the velocity, weighted by the lip mask for the samples in `masked_B`.

    The masked error is a mean over the mask ('mask_sum') or over all cells ('pixels'), plus
    `config.unmasked_weight` times the unmasked one. A sample without lips in any frame counts unmasked.
    To either, `config.face_weight` times the mean error over the mask of the face is added.

    Source: FantasyTalking §3.2, Eq. 2-3. The paper does not say what the masked error is divided by.

    Args:
        predicted_BCTHW: velocity that the transformer predicts.
        target_BCTHW: velocity that it should predict.
        mask_B1THW: lip mask on the latent grid, 0..1.
        masked_B: bool, samples that are weighted by their lips.
        weight_B: weight of each sample's timestep.
        config: how the masked error is divided, and what is added to it.
        face_B1THW: mask of the face on the latent grid, 0..1. None adds nothing.
        counted_BT: bool, latent frames that are to be predicted, at least one of each sample. None means all.
    """
    error_BTHW = (predicted_BCTHW.float() - target_BCTHW.float()).square().mean(dim=1)
    mask_BTHW = mask_B1THW[:, 0].float()
    face_BTHW = None if face_B1THW is None else face_B1THW[:, 0].float()
    if counted_BT is None:
        unmasked_B = error_BTHW.mean(dim=(1, 2, 3))
    else:
        mask_BTHW = mask_BTHW * counted_BT[:, :, None, None]
        face_BTHW = None if face_BTHW is None else face_BTHW * counted_BT[:, :, None, None]
        error_BT = error_BTHW.mean(dim=(2, 3))
        unmasked_B = (error_BT * counted_BT).sum(dim=1) / counted_BT.sum(dim=1)
    sum_B = mask_BTHW.sum(dim=(1, 2, 3))
    has_lips_B = sum_B > 0
    under_B = (error_BTHW * mask_BTHW).sum(dim=(1, 2, 3))
    lips_B = under_B / sum_B.clamp(min=torch.finfo(torch.float32).tiny)
    weighted_B = lips_B if config.normalise == "mask_sum" else under_B / mask_BTHW[0].numel()
    weighted_B = weighted_B + config.unmasked_weight * unmasked_B
    chosen_B = masked_B & has_lips_B
    total_B = torch.where(chosen_B, weighted_B, unmasked_B)
    if face_BTHW is not None and config.face_weight:
        face_sum_B = face_BTHW.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
        total_B = total_B + config.face_weight * (error_BTHW * face_BTHW).sum(dim=(1, 2, 3)) / face_sum_B
    total = (weight_B * total_B).mean()
    return Loss(
        total=total,
        unmasked=unmasked_B.detach().mean(),
        lips=lips_B.detach()[has_lips_B].mean(),
        masked_fraction=chosen_B.float().mean(),
    )
