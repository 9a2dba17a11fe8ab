"""Euler and guidance against flows whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from talkforge.training.config import AdapterConfig, SampleConfig
from talkforge.training.data.batch import Conditions
from talkforge.training.objective.sampling import sample, sigmas
from talkforge.training.objective.step import Model, encode
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, NoText
from tests.training.batches import a_batch

CPU = torch.device("cpu")


def test_sigmas_go_from_noise_to_nothing() -> None:
    assert sigmas(4, 1.0).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert sigmas(2, 3.0).tolist() == pytest.approx([1, 0.75, 0])


def generated(model: Model, seed: int = 0, **settings: float) -> Tensor:
    batch = a_batch(2, texts=("words", "words"))
    encoders = Encoders(LinearCodec(), Words(), None)
    encoded = encode(batch, encoders, None)
    config = SampleConfig.model_validate({"steps": 3} | settings)
    generator = torch.Generator().manual_seed(seed)
    return sample(model, batch, encoded, AdapterConfig(), "frame", config, 5.0, generator)


class Words(NoText):
    """A prompt is ones, none is zeros."""

    def __init__(self) -> None:
        super().__init__(2, 3, CPU)

    def encode(self, texts: object) -> Tensor:
        assert isinstance(texts, list)
        return torch.stack([torch.full((2, 3), float(bool(text))) for text in texts])


@pytest.mark.parametrize("steps", (1, 3, 8))
def test_a_straight_flow_arrives_in_any_number_of_steps(steps: int) -> None:
    """The true velocity towards one video z is (x - z) / sigma: Euler lands on z exactly."""
    z = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(9))

    def flow(x: Tensor, timestep: Tensor, _conditions: Conditions) -> Tensor:
        return (x - z) / (timestep / 1000).view(-1, 1, 1, 1, 1)

    found = generated(flow, steps=steps, text_cfg=1, audio_cfg=1)
    torch.testing.assert_close(found, z, atol=1e-4, rtol=0)


def test_guidance_is_the_published_sum() -> None:
    """One step of constant velocities: x1 = x0 - v."""
    calls = []

    def constant(x: Tensor, _timestep: Tensor, conditions: Conditions) -> Tensor:
        text, audio = bool(conditions.text_BSD.any()), bool(conditions.audio_scale_B.any())
        calls.append((text, audio))
        return torch.full_like(
            x, {(False, False): 1.0, (True, False): 10.0, (True, True): 100.0}[text, audio]
        )

    noise = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = generated(constant, steps=1, text_cfg=2, audio_cfg=3)
    expected = 1 + 2 * (10 - 1) + 3 * (100 - 10)
    torch.testing.assert_close(found, noise - expected, atol=1e-3, rtol=0)
    assert sorted(calls) == [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("text_cfg", "audio_cfg", "passes"),
    ((1, 1, [(True, True)]), (1, 4.5, [(True, False), (True, True)]), (5, 5, [(False, False), (True, True)])),
)
def test_passes_without_weight_are_not_computed(
    text_cfg: float, audio_cfg: float, passes: list[tuple[bool, bool]]
) -> None:
    calls = []

    def recording(x: Tensor, _timestep: Tensor, conditions: Conditions) -> Tensor:
        calls.append((bool(conditions.text_BSD.any()), bool(conditions.audio_scale_B.any())))
        assert conditions.condition_BCTHW.any()  # the image stays on
        return x

    generated(recording, steps=1, text_cfg=text_cfg, audio_cfg=audio_cfg)
    assert sorted(calls) == passes


def test_a_seed_is_a_video() -> None:
    def half(x: Tensor, _timestep: Tensor, _conditions: Conditions) -> Tensor:
        return 0.5 * x

    assert torch.equal(generated(half, 1), generated(half, 1))
    assert not torch.equal(generated(half, 1), generated(half, 2))
