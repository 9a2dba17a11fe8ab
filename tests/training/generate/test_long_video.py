"""Windows, their weights, and latents of long videos by models whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from talkforge.training.data.batch import Conditions
from talkforge.training.generate.long_video import (
    LongVideo,
    Standing,
    Window,
    following,
    noise,
    overlapping,
    weights,
)
from talkforge.training.objective.sampling import Guidance, GuidancePass, sigmas
from tests.training.models import conditions

GRID = (2, 2)


def test_windows_that_overlap_cover_a_video_from_its_first_latent_frame() -> None:
    assert overlapping(4, 6, 2) == [(0, 1, 2, 3)]
    assert overlapping(6, 6, 2) == [(0, 1, 2, 3, 4, 5)]
    assert overlapping(9, 6, 2) == [(0, 1, 2, 3, 4, 5), (0, 4, 5, 6, 7, 8)]
    # The last one ends with the video, and shares more.
    assert overlapping(10, 6, 2)[1:] == [(0, 4, 5, 6, 7, 8), (0, 5, 6, 7, 8, 9)]
    assert overlapping(11, 6, 0) == [(0, 1, 2, 3, 4, 5), (0, 6, 7, 8, 9, 10)]
    for latents in range(7, 40):
        for overlap in range(5):
            windows = overlapping(latents, 6, overlap)
            assert {k for window in windows for k in window} == set(range(latents))
            assert {len(window) for window in windows} == {6}


def test_windows_that_go_on_share_their_context() -> None:
    assert following(4, 6, 2) == [(0, 1, 2, 3)]
    assert following(12, 6, 2) == [(0, 1, 2, 3, 4, 5), (0, 4, 5, 6, 7, 8), (0, 7, 8, 9, 10, 11)]
    assert following(7, 6, 2)[1] == (0, 4, 5, 6)


def test_weights_rise_and_fall_where_windows_overlap() -> None:
    first, second, third = weights([(0, 1, 2, 3, 4, 5), (0, 4, 5, 6, 7, 8), (0, 7, 8, 9, 10, 11)])
    assert first.tolist() == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    assert second.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    assert third.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    assert [one.tolist() for one in weights([(0, 1, 2), (0, 3, 4)])] == [[1, 1, 1], [0, 1, 1]]


def test_a_longer_video_begins_with_the_same_noise() -> None:
    assert torch.equal(noise(3, GRID, 7), noise(9, GRID, 7)[:, :, :3])
    assert not torch.equal(noise(3, GRID, 7), noise(3, GRID, 8))
    assert float(noise(99, (8, 8), 0).std()) == pytest.approx(1, abs=0.02)


class Towards:
    """A model whose flow leads each latent frame to a value that its audio names. It sees windows alone.

    `self.seen` has the latent frames, the given ones and the noisy latents of each call.
    """

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        frames = given.speech_BLD[0, :, 0]  # a feature for each latent frame of the window: its number
        self.seen.append((frames, given.condition_BCTHW[0, 0, :, 0, 0], x[0, 0, :, 0, 0]))
        target = frames + self.shift * len(self.seen)
        return (x - target[:, None, None]) / (timestep_B[0] / 1000)


def a_video(windows: Sequence[Window], model: Towards, steps: int = 3) -> LongVideo:
    def passes(window: Window, given: Tensor | None) -> list[GuidancePass]:
        condition = torch.zeros(1, 20, len(window), *GRID)
        if given is not None:
            condition[:, :, : given.shape[2]] = 1
        base = conditions("frame", 1)
        speech = torch.tensor(window).float().view(1, -1, 1)
        return [GuidancePass(1.0, replace(base, condition_BCTHW=condition, speech_BLD=speech))]

    return LongVideo(
        windows, passes, Guidance(model), sigmas(steps, 3.0).tolist(), "euler", GRID, 5, torch.device("cpu")
    )


def test_overlapping_windows_make_one_video() -> None:
    """The flow of every window leads to the same values, and so does their average, whatever the weights."""
    model = Towards()
    found = a_video(overlapping(23, 6, 2), model).together(lambda _: None)
    expected = torch.arange(23.0)[None, None, :, None, None].expand(1, 16, 23, *GRID)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert all(len(frames) == 6 and frames[0] == 0 for frames, _, _ in model.seen)  # memory of one window
    # In each step the windows see one and the same state of what they share.
    first, second = model.seen[0], model.seen[1]
    assert torch.equal(first[2][4:], second[2][1:3]) and torch.equal(first[2][0], second[2][0])


def test_where_windows_differ_the_video_is_their_weighted_average() -> None:
    """One step. Calls 1 and 2 lead to values that are 10 and 20 too high."""
    model = Towards(10.0)
    found = a_video([(0, 1, 2, 3), (0, 2, 3, 4)], model, steps=1).together(lambda _: None)
    values = (found[0, 0, :, 0, 0] - torch.arange(5.0)).tolist()
    assert values == pytest.approx([10, 10, 10 + 10 / 3, 10 + 20 / 3, 20], abs=1e-4)


def test_a_window_goes_on_from_the_last_ones_latents() -> None:
    model = Towards()
    found = a_video(following(12, 6, 2), model).one_by_one(lambda _: None)
    expected = torch.arange(12.0)[None, None, :, None, None].expand(1, 16, 12, *GRID)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert [frames.tolist() for frames, _, _ in model.seen[::3]] == [
        [0, 1, 2, 3, 4, 5],
        [0, 4, 5, 6, 7, 8],
        [0, 7, 8, 9, 10, 11],
    ]
    assert [given.tolist() for _, given, _ in model.seen[::3]] == [[0] * 6, *[[1, 1, 1, 0, 0, 0]] * 2]
    for _, given, x in model.seen[3:]:  # in every step they are clean: portrait and context
        assert x[given == 1].tolist() in ([0, 4, 5], [0, 7, 8]) or torch.allclose(
            x[given == 1], x[given == 1].round(), atol=1e-4
        )


@pytest.mark.parametrize("way", ("together", "one_by_one"))
def test_a_video_goes_on_from_any_step(way: str) -> None:
    windows = overlapping(14, 6, 2) if way == "together" else following(14, 6, 2)
    states: list[Standing] = []
    found = getattr(a_video(windows, Towards()), way)(states.append)
    assert len(states) == (3 if way == "together" else 3 * len(windows))
    for state in states:
        model = Towards()
        assert torch.equal(getattr(a_video(windows, model), way)(lambda _: None, state), found)
        assert len(model.seen) < 3 * len(windows)
