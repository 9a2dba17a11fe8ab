"""Solvers and guidance against flows whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from talkforge.training.config import AdapterConfig, SampleConfig
from talkforge.training.data.batch import Conditions
from talkforge.training.objective.sampling import SolverState, guidance_passes, sample, sigmas, solve
from talkforge.training.objective.step import Model, encode
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, NoText
from tests.training.batches import a_batch

CPU = torch.device("cpu")


def test_sigmas_go_from_noise_to_nothing() -> None:
    assert sigmas(4, 1.0).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert sigmas(2, 3.0).tolist() == pytest.approx([1, 0.75, 0])


def generated(
    model: Model, seed: int = 0, texts: tuple[str, str] = ("words", "words"), **settings: float
) -> Tensor:
    batch = a_batch(2, texts=texts)
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


class Recording:
    """A model with a constant velocity for each kind of pass. It keeps what each call was asked for."""

    def __init__(self, most: int = 9, values: dict[tuple[bool, bool], float] | None = None) -> None:
        self.most, self.calls = most, list[list[tuple[bool, bool]]]()
        self._values = values or {}

    def __call__(self, x: Tensor, timestep_B: Tensor, conditions: Conditions) -> Tensor:
        assert len(x) == len(timestep_B) == len(conditions.condition_BCTHW)
        assert conditions.condition_BCTHW.flatten(1).any(dim=1).all()  # the image stays on
        if len(x) > 2 * self.most:  # samples of a batch of two
            raise torch.OutOfMemoryError("no more")
        kinds = [
            (bool(text.any()), bool(audio.any()))
            for text, audio in zip(conditions.text_BSD, conditions.audio_scale_B, strict=True)
        ]
        self.calls.append(kinds[::2])
        return torch.stack([torch.full(x.shape[1:], self._values.get(kind, 0.0)) for kind in kinds])


PUBLISHED = {(False, False): 1.0, (True, False): 10.0, (True, True): 100.0}


@pytest.mark.parametrize(
    ("most", "together", "sizes"), ((9, True, [3]), (2, True, [1, 1, 1]), (9, False, [1, 1, 1]))
)
def test_guidance_is_the_published_sum(most: int, together: bool, sizes: list[int]) -> None:
    """One step of constant velocities: x1 = x0 - v. Passes that do not fit into memory go one by one."""
    model = Recording(most, PUBLISHED)
    noise = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = generated(model, steps=1, text_cfg=2, audio_cfg=3, passes_together=together)
    expected = 1 + 2 * (10 - 1) + 3 * (100 - 10)
    torch.testing.assert_close(found, noise - expected, atol=1e-3, rtol=0)
    assert [len(call) for call in model.calls] == sizes
    assert [kind for call in model.calls for kind in call] == list(PUBLISHED)


def test_memory_that_does_not_suffice_for_one_pass_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        generated(Recording(0), steps=1, text_cfg=2, audio_cfg=3)


@pytest.mark.parametrize(
    ("text_cfg", "audio_cfg", "passes"),
    (
        (1, 1, [(True, True)]),
        (1, 4.5, [(True, False), (True, True)]),
        (5, 5, [(False, False), (True, True)]),
        (5.1, 0, [(False, False), (True, False)]),
    ),
)
def test_passes_without_weight_are_not_computed(
    text_cfg: float, audio_cfg: float, passes: list[tuple[bool, bool]]
) -> None:
    model = Recording()
    generated(model, steps=1, text_cfg=text_cfg, audio_cfg=audio_cfg)
    assert model.calls == [passes]


@pytest.mark.parametrize(
    ("audio_cfg", "passes"), ((4.5, [(False, False), (False, True)]), (1, [(False, True)]))
)
def test_passes_with_the_same_conditions_are_one(audio_cfg: float, passes: list[tuple[bool, bool]]) -> None:
    """Without a prompt the first two are the same, and v = v(no audio) + s (v(audio) - v(no audio))."""
    model = Recording(values={(False, False): 10.0, (False, True): 100.0})
    found = generated(model, texts=("", ""), steps=1, text_cfg=5.1, audio_cfg=audio_cfg)
    noise = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise - found, torch.full_like(noise, 10 + audio_cfg * 90), atol=1e-3, rtol=0)
    assert model.calls == [passes]


def test_without_audio_attention_there_is_one_pass_of_audio() -> None:
    batch = a_batch(2, texts=("words", "words"))
    encoded = encode(batch, Encoders(LinearCodec(), Words(), None), None)
    config = SampleConfig(text_cfg=5, audio_cfg=4.5)
    found = guidance_passes(batch, encoded, AdapterConfig(audio_scale=0), "frame", config)
    assert [one.weight for one in found] == [-4, 5]
    assert not any(one.conditions.audio_scale_B.any() for one in found)


def test_a_second_order_step_is_that_of_diffusers() -> None:
    """DPM-Solver++(2M) of diffusers at the same noise levels, on a flow that bends."""
    from diffusers import DPMSolverMultistepScheduler

    levels = sigmas(6, 3.0).tolist()
    x = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def flow(noisy: Tensor, sigma: float) -> Tensor:
        return torch.sin(3 * noisy) + sigma * noisy

    found = solve(SolverState(0, x), levels, flow, "dpm++2m")
    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, lower_order_final=True
    )
    theirs.set_timesteps(6)
    theirs.sigmas = torch.tensor(levels, dtype=torch.float64)
    y = x
    for step, timestep in enumerate(theirs.timesteps):
        y = theirs.step(flow(y, levels[step]), timestep, y).prev_sample
    torch.testing.assert_close(found, y, atol=1e-5, rtol=0)


def test_the_second_order_solver_errs_less() -> None:
    """Towards one video under noise of its own: v = x / (sigma^2 + (1 - sigma)^2) (2 sigma - 1)."""
    x = torch.linspace(-2, 2, 32, dtype=torch.float64)

    def flow(noisy: Tensor, sigma: float) -> Tensor:
        return noisy * (2 * sigma - 1) / (sigma**2 + (1 - sigma) ** 2)

    def error(solver: str, steps: int) -> float:
        found = solve(SolverState(0, x), sigmas(steps, 1.0).tolist(), flow, solver)
        return float((found - x).abs().max())  # of a normal distribution into one of the same width

    assert error("dpm++2m", 16) < 0.35 * error("euler", 16)


@pytest.mark.parametrize("solver", ("euler", "dpm++2m"))
def test_a_solver_goes_on_from_any_step(solver: str) -> None:
    states: list[SolverState] = []
    x = torch.linspace(-2, 2, 8)

    def flow(noisy: Tensor, sigma: float) -> Tensor:
        return torch.cos(noisy) + sigma

    levels = sigmas(5, 3.0).tolist()
    found = solve(SolverState(0, x), levels, flow, solver, states.append)
    assert [state.step for state in states] == [1, 2, 3, 4, 5]
    assert all(torch.equal(solve(state, levels, flow, solver), found) for state in states)


def test_a_seed_is_a_video() -> None:
    def half(x: Tensor, _timestep: Tensor, _conditions: Conditions) -> Tensor:
        return 0.5 * x

    assert torch.equal(generated(half, 1), generated(half, 1))
    assert not torch.equal(generated(half, 1), generated(half, 2))
