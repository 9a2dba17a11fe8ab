"""Flow matching and the lip-weighted loss, against loops and known distributions."""

from __future__ import annotations

import math

import pytest
import torch

from talkforge.training.config import FlowConfig, LossConfig
from talkforge.training.objective.losses import (
    draw_masked,
    draw_sigmas,
    flow_loss,
    noised,
    shifted,
    timestep_weight,
    velocity,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shift_moves_the_middle_and_keeps_the_ends() -> None:
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 5.0).tolist() == pytest.approx([0.0, 5 / 6, 1.0])
    assert shifted(torch.tensor([0.3]), 1.0).tolist() == pytest.approx([0.3])


def test_uniform_sigmas_are_uniform_before_the_shift() -> None:
    sigma = draw_sigmas(20_000, FlowConfig(timesteps="uniform", shift=3.0), seeded())
    unshifted = sigma / (3 - 2 * sigma)  # the inverse of the shift
    assert sigma.min() > 0 and sigma.max() <= 1
    quantiles = torch.quantile(unshifted, torch.tensor([0.1, 0.5, 0.9]))
    assert quantiles.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.01)


def test_logit_normal_sigmas_are_normal_in_logits() -> None:
    sigma = draw_sigmas(20_000, FlowConfig(timesteps="logit_normal", shift=1.0), seeded())
    logits = torch.logit(sigma)
    assert float(logits.mean()) == pytest.approx(0, abs=0.02)
    assert float(logits.std()) == pytest.approx(1, abs=0.02)


def test_stratified_sigmas_fill_every_piece_once_over_all_ranks() -> None:
    config = FlowConfig(timesteps="stratified", shift=1.0)
    drawn = [draw_sigmas(4, config, seeded(rank), rank=rank, world=3) for rank in range(3)]
    pieces = sorted(math.ceil(float(s) * 12) - 1 for s in torch.cat(drawn))
    assert pieces == list(range(12))
    assert float(drawn[0].max() - drawn[0].min()) > 0.5  # a rank sees the whole range


def test_the_bell_has_mean_one_and_ends_at_nothing() -> None:
    config = FlowConfig(timesteps="uniform", shift=5.0, weighting="bell")
    sigma = shifted((torch.arange(100_000) + 0.5) / 100_000, 5.0)
    weight = timestep_weight(sigma, config)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-3)
    assert timestep_weight(torch.tensor([0.0, 1.0]), config).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert float(timestep_weight(torch.tensor([0.5]), config)) == float(weight.max())
    assert timestep_weight(torch.tensor([0.1, 0.9]), FlowConfig()).tolist() == [1.0, 1.0]


def test_noise_and_velocity_meet_the_definition() -> None:
    z, e = torch.full((2, 1, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1, 1), -1.0)
    x = noised(z, e, torch.tensor([0.0, 0.25]))
    assert x.flatten().tolist() == [3.0, 2.0]
    assert velocity(z, e).flatten().tolist() == [-4.0, -4.0]
    assert (x + (1 - torch.tensor([0.0, 0.25]).view(2, 1, 1, 1, 1)) * velocity(z, e)).tolist() == e.tolist()


def test_eta_is_the_share_without_the_mask() -> None:
    masked = draw_masked(20_000, LossConfig(eta=0.2), "frame", seeded())
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert draw_masked(50, LossConfig(eta=0.0), "frame", seeded()).all()
    assert not draw_masked(50, LossConfig(eta=1.0), "frame", seeded()).any()


def test_stage_one_is_never_masked_and_draws_as_much() -> None:
    first, second = seeded(), seeded()
    assert not draw_masked(50, LossConfig(eta=0.0), "clip", first).any()
    draw_masked(50, LossConfig(eta=0.0), "frame", second)
    assert torch.rand(1, generator=first) == torch.rand(1, generator=second)


@pytest.mark.parametrize("normalise", ("mask_sum", "pixels"))
@pytest.mark.parametrize("unmasked_weight", (0.0, 0.5))
def test_loss_against_loops(normalise: str, unmasked_weight: float) -> None:
    generator = seeded(1)
    shape = (3, 2, 2, 3, 4)
    predicted = torch.randn(shape, generator=generator, requires_grad=True)
    target = torch.randn(shape, generator=generator)
    mask = torch.rand(3, 1, 2, 3, 4, generator=generator)
    mask[2] = 0  # a sample without lips
    masked = torch.tensor([True, False, True])
    weight = torch.tensor([1.0, 2.0, 0.5])
    config = LossConfig.model_validate({"normalise": normalise, "unmasked_weight": unmasked_weight})
    loss = flow_loss(predicted, target, mask, masked, weight, config)

    error = (predicted.detach() - target).square().mean(1)
    terms, plains, lips = [], [], []
    for b in range(3):
        plain = under = total = 0.0
        for t in range(2):
            for y in range(3):
                for x in range(4):
                    cell = float(error[b, t, y, x])
                    plain += cell / 24
                    under += cell * float(mask[b, 0, t, y, x])
                    total += float(mask[b, 0, t, y, x])
        plains.append(plain)
        if total:
            lips.append(under / total)
        chosen = under / total if normalise == "mask_sum" and total else under / 24
        terms.append(chosen + unmasked_weight * plain if b == 0 else plain)
    expected = sum(w * t for w, t in zip((1.0, 2.0, 0.5), terms, strict=True)) / 3
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert float(loss.unmasked) == pytest.approx(sum(plains) / 3, rel=1e-5)
    assert float(loss.lips) == pytest.approx(sum(lips) / 2, rel=1e-5)
    assert float(loss.masked_fraction) == pytest.approx(1 / 3)
    assert loss.total.requires_grad and not loss.unmasked.requires_grad and not loss.lips.requires_grad


def test_only_lips_are_learnt_from_where_the_mask_decides() -> None:
    predicted = torch.zeros(1, 1, 1, 2, 2, requires_grad=True)
    mask = torch.tensor([[[[[1.0, 0.0], [0.0, 0.0]]]]])
    loss = flow_loss(
        predicted, torch.ones(1, 1, 1, 2, 2), mask, torch.tensor([True]), torch.ones(1), LossConfig()
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert predicted.grad.flatten().tolist() == [-2.0, 0.0, 0.0, 0.0]


def test_a_batch_without_lips_has_a_finite_loss_and_gradient() -> None:
    predicted = torch.zeros(2, 1, 1, 2, 2, requires_grad=True)
    loss = flow_loss(
        predicted,
        torch.ones(2, 1, 1, 2, 2),
        torch.zeros(2, 1, 1, 2, 2),
        torch.tensor([True, True]),
        torch.ones(2),
        LossConfig(),
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert float(loss.total) == 1.0
    assert math.isnan(float(loss.lips))
    assert predicted.grad is not None and bool(torch.isfinite(predicted.grad).all())


def test_the_face_is_added_to_every_sample_that_has_one() -> None:
    """One cell each: face with error 4, lips with 1, background with 9; the second sample has no face."""
    predicted = torch.tensor([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0]]).view(2, 1, 1, 1, 3)
    face = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).view(2, 1, 1, 1, 3)
    lips = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).view(2, 1, 1, 1, 3)
    target, weight = torch.zeros_like(predicted), torch.tensor([1.0, 3.0])
    for masked, base in ((torch.tensor([True, True]), 1.0), (torch.tensor([False, False]), 14 / 3)):
        loss = flow_loss(predicted, target, lips, masked, weight, LossConfig(face_weight=0.5), face)
        assert float(loss.total) == pytest.approx((1 * (base + 0.5 * 2.5) + 3 * base) / 2)
        off = flow_loss(predicted, target, lips, masked, weight, LossConfig(), face)
        without = flow_loss(predicted, target, lips, masked, weight, LossConfig(face_weight=0.5))
        assert float(off.total) == float(without.total) == pytest.approx((1 * base + 3 * base) / 2)
