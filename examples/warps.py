"""The displacement fields that move a portrait's lips, jaw, brows and head.

A field says for every point of the *new* image how far it was moved, so that an image is
rendered by looking up `point - displacement`. Fields are linear in a few coefficients: their
basis is computed once, and a frame costs one linear combination. The same functions, evaluated
at single points and inverted by iteration, say where a point of the portrait went: the truth.

The lips part: there is one field below the mouth's line and one above it. They agree beyond the
corners; between them lies the open mouth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from examples.portraits import Face
from talkforge.schemas.arrays import Floats

NUM_MOUTH = 5
"""Mouth coefficients: jaw, upper, width, round as in `examples.speech`, and rest (always 1),
which closes lips that are parted in the portrait."""

NUM_POSE = 5
"""Head coefficients: shift right, shift down, roll, turn right, nod down; 1 is about a tenth of
the face's height, or a tenth of a radian."""

_JAW, _UPPER, _WIDTH, _ROUND = 0.75, 0.2, 0.19, 0.22  # largest displacement, half mouth widths
_OPENS = 0.83  # share of the mouth's width that opens: drawn-in corners still close it
_ITERATIONS = 25
_CORNER_DROP = 0.2  # of the jaw's drop
_MEET = 0.4  # parted lips meet at this share of the gap, from the upper lip down


def _smoothstep(x: Floats) -> Floats:
    x = np.clip(x, 0, 1)
    step: Floats = x * x * (3 - 2 * x)
    return step


def _bump(x: Floats) -> Floats:
    """1 at 0, 0 from |x| = 1 on, smooth."""
    bump: Floats = np.maximum(0, 1 - x * x) ** 1.5
    return bump


def _arch(x: Floats) -> Floats:
    """Course of an open lip between the corners at |x| = 1."""
    arch: Floats = np.maximum(0, 1 - x * x) ** 1.1
    return arch


@dataclass(frozen=True)
class MouthWarp:
    """Mouth of one face. Points are pixels; inside, half mouth widths about the mouth's centre."""

    face: Face

    @property
    def half_width_px(self) -> float:
        return float(self.face.outer[10, 0] - self.face.outer[0, 0]) / 2

    @property
    def centre(self) -> Floats:
        middle: Floats = (self.face.outer[0] + self.face.outer[10]) / 2
        return middle

    @cached_property
    def _lips_at_rest(self) -> tuple[Floats, Floats, Floats]:
        """Grid [41] across the mouth, the gap between the parted lips there, and coefficients of
        the line on which they meet when closed: even powers up to four keep it smooth."""
        upper = (self.face.inner_upper - self.centre) / self.half_width_px
        lower = (self.face.inner_lower - self.centre) / self.half_width_px
        grid = np.linspace(-1, 1, 41, dtype=np.float32)
        top = np.interp(grid, upper[:, 0], upper[:, 1])
        bottom = np.interp(grid, lower[:, 0], lower[:, 1])
        powers = np.stack([grid**0, grid, grid**2, grid**4], 1)
        line = np.linalg.lstsq(powers, (1 - _MEET) * top + _MEET * bottom, rcond=None)[0]
        return grid, (bottom - top).astype(np.float32), line.astype(np.float32)

    def _rest(self, u: Floats) -> tuple[Floats, Floats]:
        """Line on which the closed lips meet, level beyond the corners, and their gap at `u`."""
        grid, gap, line = self._lips_at_rest
        inside = np.clip(u, -1, 1)
        level = line[0] + line[1] * inside + line[2] * inside**2 + line[3] * inside**4
        return level.astype(np.float32), np.interp(u, grid, gap).astype(np.float32)

    def field(self, points: Floats, lower: bool) -> Floats:
        """Displacements [NUM_MOUTH, ..., 2] in pixels at `points` [..., 2] of the new image."""
        local = (points - self.centre) / self.half_width_px
        u, chin = local[..., 0], float(self.face.chin[1] - self.centre[1]) / self.half_width_px
        line, gap = self._rest(u)
        v = local[..., 1] - line
        side, zero = _bump(u / 2.3), np.zeros_like(u)
        if lower:
            v = np.maximum(v, 0)
            fade = 1 - _smoothstep((v - chin - 0.3) / 1.9)
            lips = _arch(u / (_OPENS + 0.95 * _smoothstep((v - 0.35) / chin)))
            jaw = (_CORNER_DROP * side + (1 - _CORNER_DROP) * lips) * fade
            upper = zero
            rest = (_MEET - 1) * gap * (1 - _smoothstep((v - 0.3) / chin))
        else:
            v = np.minimum(v, 0)
            lips = _arch(u / _OPENS)
            fade = 1 - _smoothstep((-v - 0.05) / 0.85)
            jaw = _CORNER_DROP * side * (1 - lips) * fade
            upper = -lips * fade
            rest = _MEET * gap * fade
        near = np.exp(-((v / 1.2) ** 2)) * side
        down = [_JAW * jaw, _UPPER * upper, zero, _ROUND * v * np.exp(-((v / 0.5) ** 2)) * _bump(u), rest]
        across = [zero, zero, _WIDTH * u * near, zero, zero]
        field = np.stack([np.stack(across), np.stack(down)], -1) * self.half_width_px
        return field.astype(np.float32)

    def reach(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1: the rectangle outside of which no point is moved by much."""
        half, (x, y) = self.half_width_px, self.centre
        chin = float(self.face.chin[1] - y) / half
        x0, x1 = x - 2.35 * half, x + 2.35 * half
        return int(x0), int(y - 1.25 * half), int(x1), int(y + (chin + 2.4) * half)


@dataclass(frozen=True)
class HeadWarp:
    """Moves a head as a whole, and leaves the background where it is."""

    face: Face

    def field(self, points: Floats) -> Floats:
        """Displacements [NUM_POSE, ..., 2] in pixels at `points` [..., 2] of the new image."""
        size = 0.1 * self.face.height_px
        local = (points - self.face.box.mean(0)) / self.face.height_px
        x, y = local[..., 0], local[..., 1]
        inside = 1 - _smoothstep((np.hypot(x / 0.72, y / 0.82) - 0.75) / 0.75)
        # The middle of a face is nearest to the camera: it goes farthest when the head turns.
        near = inside * (0.35 + 0.65 * _bump(np.hypot(x / 0.6, y / 0.75)))
        zero = np.zeros_like(x)
        roll = np.stack([-(y - 0.6), x], -1) * inside[..., None]
        moves = [(inside, zero), (zero, inside), (near, zero), (zero, near)]
        shift_x, shift_y, turn, nod = (np.stack(move, -1) for move in moves)
        field: Floats = (np.stack([shift_x, shift_y, roll, turn, nod]) * size).astype(np.float32)
        return field


@dataclass(frozen=True)
class BrowWarp:
    """Raises both brows, with the skin above the eyes, and leaves the eyes where they are."""

    face: Face

    def field(self, points: Floats) -> Floats:
        """Displacements [..., 2] in pixels at `points` [..., 2] of the new image, for brows raised by 1."""
        height = self.face.height_px
        up = np.zeros(points.shape[:-1], np.float32)
        for eye in self.face.eyes:
            local = (points - eye.reshape(-1, 2).mean(0)) / height
            up = np.maximum(up, _bump(np.hypot(local[..., 0] / 0.24, (local[..., 1] + 0.18) / 0.14)))
        field: Floats = np.stack([np.zeros_like(up), -0.05 * height * up], -1).astype(np.float32)
        return field


def carried(points: Floats, field: Callable[[Floats], Floats], weights: Floats) -> Floats:
    """Where `points` [P, 2], or [F, P, 2], of the old image lie in the new ones: [F, P, 2].

    Solves p = point + displacement(p) for every frame by iteration.

    Args:
        points: pixels of the old image.
        field: displacement basis [K, ..., 2] at points [..., 2] of the new image.
        weights: coefficients [F, K] of the field.
    """
    moved = np.broadcast_to(points, (len(weights), *points.shape[-2:])).astype(np.float32)
    for _ in range(_ITERATIONS):
        moved = points + np.einsum("fk,kfpc->fpc", weights, field(moved))
    return moved
