"""Latents of a video of any length, by a model of short windows.

Every window begins with the video's first latent frame, which holds the portrait. So a window is what the
model was trained on: one frame, then groups of four. Its other latent frames follow each other and may lie
anywhere in the video. Audio windows are those of the whole video.

    overlap    all windows take each step together. Where they overlap, their velocities are averaged.
    continue   one window after the other. The last latent frames of a window are given clean to the next one.

Source: MultiDiffusion (arXiv 2302.08113) for the average. Suffixes as in `training.data.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from talkforge.schemas.units import LATENT_CHANNELS
from talkforge.training.objective.sampling import Guidance, GuidancePass, SolverState, solve

Window = tuple[int, ...]
"""Numbers of the latent frames of a window in the video, ascending. The first is 0."""

Passes = Callable[[Window, Tensor | None], Sequence[GuidancePass]]
"""The passes of guidance of a window. The second argument are latents [1, 16, t, h, w] that are given clean
at its beginning, or None."""


@dataclass(frozen=True)
class Standing:
    """How far the latents of a video are.

    Attributes:
        window: number of the window that is being computed. With overlapping windows it is 0.
        solver: where its solver stands.
        done: latents of the windows before, [1, 16, t, h, w]. t may be 0.
    """

    window: int
    solver: SolverState
    done: Tensor


Watch = Callable[[Standing], None]
"""Called after each step of the solver."""


def overlapping(latents: int, window: int, overlap: int) -> list[Window]:
    """Windows that cover a video. Neighbours share at least `overlap` latent frames beside the first one.

    Args:
        latents: latent frames of the video.
        window: latent frames of a window, at least 2 where the video has more.
        overlap: from 0 to `window` - 2.
    """
    if latents <= window:
        return [tuple(range(latents))]
    size = window - 1
    last = latents - size
    starts = [*range(1, last, size - overlap), last]
    return [(0, *range(start, start + size)) for start in starts]


def following(latents: int, window: int, context: int) -> list[Window]:
    """Windows one after the other. Each shares `context` latent frames with the one before.

    Args:
        latents: latent frames of the video.
        window: latent frames of a window, more than `context` + 1.
        context: latent frames that are given to the next window, at least 1.
    """
    found = [tuple(range(min(latents, window)))]
    while found[-1][-1] + 1 < latents:
        first = found[-1][-1] + 1
        end = min(first + window - 1 - context, latents)
        found.append((0, *range(first - context, end)))
    return found


def weights(windows: Sequence[Window]) -> list[Tensor]:
    """Weight of every latent frame of every window, [T] each.

    It rises and falls in a straight line where a window overlaps its neighbours. The first latent frame of
    the video counts in the first window alone.
    """
    found = []
    for number, window in enumerate(windows):
        own = window[1:] if number else window
        ones = torch.ones(len(own))
        if number:
            shared = windows[number - 1][-1] - own[0] + 1
            ramp = torch.arange(1, shared + 1) / (shared + 1)
            ones[:shared] = torch.minimum(ones[:shared], ramp)
        if number + 1 < len(windows):
            shared = own[-1] - windows[number + 1][1] + 1
            if shared:  # [-0:] would be all of them
                ramp = torch.arange(shared, 0, -1) / (shared + 1)
                ones[-shared:] = torch.minimum(ones[-shared:], ramp)
        found.append(torch.cat([torch.zeros(1), ones]) if number else ones)
    return found


def noise(latents: int, grid_HW: tuple[int, int], seed: int) -> Tensor:
    """Noise of a video, [1, 16, T, h, w]. A longer video of the same seed begins with the same noise.

    Args:
        latents: latent frames of the video.
        grid_HW: height and width of the latent grid.
        seed: on the CPU, so that it is the same for every device.
    """
    generator = Generator().manual_seed(seed)
    frames = [torch.randn(1, LATENT_CHANNELS, 1, *grid_HW, generator=generator) for _ in range(latents)]
    return torch.cat(frames, dim=2)


@dataclass(frozen=True)
class LongVideo:
    """One video that is to be computed.

    Attributes:
        windows: see `overlapping` and `following`.
        passes: of guidance, for each window.
        guidance: computes them.
        levels: noise levels from 1 to 0.
        solver: name of the solver.
        grid_HW: height and width of the latent grid.
        seed: of the noise.
        device: of the model. The latents of the video stay on the CPU.
        after_window: called with the numbers of step and window after each call of the model.
    """

    windows: Sequence[Window]
    passes: Passes
    guidance: Guidance
    levels: Sequence[float]
    solver: str
    grid_HW: tuple[int, int]
    seed: int
    device: torch.device
    after_window: Callable[[int, int], None] = lambda _step, _window: None

    @property
    def latents(self) -> int:
        """Latent frames of the video."""
        return self.windows[-1][-1] + 1

    def together(self, watch: Watch, begin: Standing | None = None) -> Tensor:
        """Latents [1, 16, T, h, w] of windows that overlap.

        Args:
            watch: see `Watch`.
            begin: where an earlier process stopped.
        """
        shares = weights(self.windows)
        total = torch.zeros(self.latents)
        for window, share in zip(self.windows, shares, strict=True):
            total[list(window)] += share

        def velocity(x: Tensor, sigma: float) -> Tensor:
            found = torch.zeros_like(x)
            for number, (window, share) in enumerate(zip(self.windows, shares, strict=True)):
                one = self._velocity(x[:, :, list(window)], sigma, number, self.passes(window, None))
                found[:, :, list(window)] += one * (share / total[list(window)])[:, None, None]
                self.after_window(self.levels.index(sigma), number)
            return found

        state = begin.solver if begin else SolverState(0, noise(self.latents, self.grid_HW, self.seed))
        nothing = state.x[:, :, :0]
        return solve(state, self.levels, velocity, self.solver, lambda now: watch(Standing(0, now, nothing)))

    def one_by_one(self, watch: Watch, begin: Standing | None = None) -> Tensor:
        """Latents [1, 16, T, h, w] of windows that go on from one another.

        Args:
            watch: see `Watch`.
            begin: where an earlier process stopped.
        """
        drawn = noise(self.latents, self.grid_HW, self.seed)
        done = begin.done if begin else drawn[:, :, :0]
        for number, window in enumerate(self.windows):
            if begin and number < begin.window:
                continue
            state = SolverState(0, drawn[:, :, done.shape[2] : window[-1] + 1])
            if begin and number == begin.window:
                state = begin.solver
            done = torch.cat([done, self._continued(number, window, state, done, watch)], dim=2)
        return done

    def _continued(
        self, number: int, window: Window, state: SolverState, done: Tensor, watch: Watch
    ) -> Tensor:
        """The new latents of a window."""
        given = done[:, :, [k for k in window if k < done.shape[2]]]
        passes = self.passes(window, given if given.shape[2] else None)

        def velocity(x: Tensor, sigma: float) -> Tensor:
            found = self._velocity(torch.cat([given, x], dim=2), sigma, number, passes)
            self.after_window(self.levels.index(sigma), number)
            return found[:, :, given.shape[2] :]

        return solve(
            state, self.levels, velocity, self.solver, lambda now: watch(Standing(number, now, done))
        )

    def _velocity(self, x: Tensor, sigma: float, number: int, passes: Sequence[GuidancePass]) -> Tensor:
        return self.guidance.velocity(x.to(self.device), sigma, passes, f"window {number}").to(x.device)
