"""A network's say in where scenes end: transitions that take several frames, and cuts nobody else saw.

The network is a second finder beside `curation.shots.jumps`, which misses fewer cuts; it adds dissolves
and fades. The comparison is in docs/scenes.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from talkforge.curation.shots.jumps import Cut
from talkforge.schemas.arrays import Bytes, Floats

HEIGHT_PX, WIDTH_PX = 27, 48
"""Size of the frames it sees. Source: the published weights and code."""

THRESHOLD = 0.5
"""Probability from which a frame belongs to a transition. Source: the published code's default; some
pipelines take 0.4. See docs/scenes.md for what either finds."""

SAME_FRAMES = 12
"""A cut of the network is one already found, if there is one within so many frames. Source: ours; half
a second, in which two cuts make no clip."""


class ShotNetwork(Protocol):
    """What is asked of a network."""

    def boundaries(self, frames: Bytes) -> Floats:
        """Probability [N] float32 that a shot ends with this frame, for uint8 RGB [N, 27, 48, 3]."""
        ...


@dataclass(frozen=True)
class Transition:
    """The old shot ends with frame `last`, the new one begins with `first`.

    `first` is `last + 1` in a cut; between the two of a dissolve or a fade lie frames of neither.
    """

    last: int
    first: int


def transitions(probabilities: Floats, threshold: float = THRESHOLD) -> tuple[Transition, ...]:
    """Runs of frames above `threshold` in the probabilities [N]; one that reaches the end opens
    no shot, and is left out."""
    above = np.concatenate([[False], probabilities > threshold, [False]])
    starts, ends = np.flatnonzero(above[1:] & ~above[:-1]), np.flatnonzero(above[:-1] & ~above[1:])
    return tuple(
        Transition(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b < len(probabilities)
    )


def network_frame(rgb: Bytes) -> Bytes:
    """A frame [H, W, 3] as the network takes it: [27, 48, 3], whatever its aspect ratio."""
    return np.asarray(cv2.resize(rgb, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA))


class TransitionDetector:
    """Takes every frame of a video in order; holds 4 kB of each."""

    def __init__(self, network: ShotNetwork) -> None:
        self._network = network
        self._frames: list[Bytes] = []
        self._times_s: list[float] = []

    def push(self, time_s: float, rgb: Bytes) -> None:
        """The next frame: its instant in source seconds, and RGB uint8 [H, W, 3] of any size."""
        self._frames.append(network_frame(rgb))
        self._times_s.append(time_s)

    def finish(self, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
        """The cuts found elsewhere, and those that the network adds, in order, after the last frame.

        A dissolve is cut at both ends: what lies between is a scene by itself, too short for a clip.
        """
        frames = np.stack(self._frames) if self._frames else np.zeros((0, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
        known = {cut.frame for cut in cuts}
        added: set[int] = set()
        for found in transitions(self._network.boundaries(frames)):
            if found.first > found.last + 1:
                added |= {found.last + 1, found.first} - known
            elif all(abs(found.first - frame) > SAME_FRAMES for frame in known):
                added.add(found.first)
        more = [Cut(frame, self._times_s[frame], "transnet") for frame in added]
        return tuple(sorted([*cuts, *more], key=lambda cut: cut.frame))
