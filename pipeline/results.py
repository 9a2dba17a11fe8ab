"""The result of measuring a part, as it travels from task to task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from talkforge.pipeline.parts import Part
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.records import ClipMeasures, Failure, Outcome, Scene, Track


@dataclass(frozen=True)
class MeasuredClip:
    """A clip between `measure` and `commit`.

    Attributes:
        measures: everything measured of it so far.
        thumbnail: JPEG bytes for the contact sheet; face: of the aligned face, empty where there is none.
        samples: its 16 kHz audio [N]; None where it was stopped at a gate, or failed.
        crops: aligned faces [n, 112, 112, 3]; likewise.
        features: small arrays that selection needs: mouth [F, M], bands [F, B], phones [F, P], identity
            [D], and frame hashes, faces and audio hashes of its `Fingerprint`.
    """

    measures: ClipMeasures
    thumbnail: bytes
    face: bytes = b""
    samples: Floats | None = None
    crops: Bytes | None = None
    features: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass
class PartResult:
    """Rows, small arrays, and the sha256 of every file written so far."""

    part: Part
    outcomes: list[Outcome] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    clips: list[MeasuredClip] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    put_off: dict[str, Failure] = field(default_factory=dict)
    """Windows that could not be measured for want of infrastructure, by their key."""
    files: dict[str, str] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    _counted_s: float = 0.0

    def add(self, window: PartResult) -> None:
        """Add what was measured of one window."""
        self.outcomes += window.outcomes
        self.scenes += window.scenes
        self.tracks += window.tracks
        self.clips += window.clips
        self.failures += window.failures
        self.files |= window.files
        for stage, spent_s in window.cpu_s.items():
            self.cpu_s[stage] = self.cpu_s.get(stage, 0.0) + spent_s

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Adds the process's CPU seconds spent inside to a stage, but for those of a clock within."""
        begin_s, before_s = time.process_time(), self._counted_s
        try:
            yield
        finally:
            spent_s = time.process_time() - begin_s
            own_s = spent_s - (self._counted_s - before_s)
            self.cpu_s[stage] = self.cpu_s.get(stage, 0.0) + own_s
            self._counted_s = before_s + spent_s
