"""Shot boundary detection by a network: dissolves, fades, and cuts that nothing else found.

The network is a second detector beside `curation.shots.jumps`, which misses fewer hard cuts. The comparison
is in docs/scenes.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from talkforge.curation.shots.jumps import Cut
from talkforge.schemas.arrays import Bytes, Floats

FRAME_HEIGHT_PX, FRAME_WIDTH_PX = 27, 48
"""Size of the network's input. Source: the published weights and code."""

THRESHOLD = 0.5
"""Probability above which a frame belongs to a transition. Source: the published code's default. Some
pipelines use 0.4. docs/scenes.md compares both."""

SAME_FRAMES = 12
"""A cut of the network is the same as a known one within this many frames. Source: ours. It is half a second,
and two cuts that close leave no clip between them."""


class ShotNetwork(Protocol):
    """A network that detects shot boundaries."""

    def boundaries(self, frames: Bytes) -> Floats:
        """Probability float32 [N] that a shot ends with the frame, for frames uint8 RGB [N, 27, 48, 3]."""
        ...


@dataclass(frozen=True)
class Transition:
    """The passage from one shot to the next.

    Attributes:
        last: the last frame of the old shot.
        first: the first frame of the new shot. It is `last + 1` in a cut. In a dissolve or a fade, frames
            that belong to neither shot lie between the two.
    """

    last: int
    first: int


def transitions(probabilities: Floats, threshold: float = THRESHOLD) -> tuple[Transition, ...]:
    """The runs of frames whose probability is above the threshold.

    A run that reaches the end of the video opens no shot and is left out.

    Args:
        probabilities: [N], see `ShotNetwork`.
        threshold: probability, 0..1.
    """
    above = np.concatenate([[False], probabilities > threshold, [False]])
    starts, ends = np.flatnonzero(above[1:] & ~above[:-1]), np.flatnonzero(above[:-1] & ~above[1:])
    return tuple(
        Transition(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b < len(probabilities)
    )


def network_frame(rgb: Bytes) -> Bytes:
    """A frame [H, W, 3] as the network's input [27, 48, 3], whatever its aspect ratio."""
    return np.asarray(cv2.resize(rgb, (FRAME_WIDTH_PX, FRAME_HEIGHT_PX), interpolation=cv2.INTER_AREA))


class TransitionDetector:
    """Adds the network's transitions to known cuts. It takes every frame in order and holds 4 kB of each."""

    def __init__(self, network: ShotNetwork) -> None:
        self._network = network
        self._frames: list[Bytes] = []
        self._times_s: list[float] = []

    def push(self, time_s: float, rgb: Bytes) -> None:
        """The next frame: its instant in source seconds, and RGB uint8 [H, W, 3] of any size."""
        self._frames.append(network_frame(rgb))
        self._times_s.append(time_s)

    def finish(self, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
        """The known cuts and those that the network adds, in order. Call it after the last frame.

        A dissolve is cut at both ends, so that the frames between become a scene that is too short for a
        clip.
        """
        none = np.zeros((0, FRAME_HEIGHT_PX, FRAME_WIDTH_PX, 3), np.uint8)
        frames = np.stack(self._frames) if self._frames else none
        known = {cut.frame for cut in cuts}
        added: set[int] = set()
        for found in transitions(self._network.boundaries(frames)):
            if found.first > found.last + 1:
                added |= {found.last + 1, found.first} - known
            elif all(abs(found.first - frame) > SAME_FRAMES for frame in known):
                added.add(found.first)
        more = [Cut(frame, self._times_s[frame], "transnet") for frame in added]
        return tuple(sorted([*cuts, *more], key=lambda cut: cut.frame))
