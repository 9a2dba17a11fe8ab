"""Things painted over a mouth, or beside it: what the classifier of covered mouths is fitted and measured on.

A cover is drawn into a picture at a place and a size given in units of the mouth's width, so it can be drawn
into whole frames and into small crops alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from talkforge.schemas.arrays import Bytes, Doubles, Floats


class Mouth(NamedTuple):
    """Where the mouth is in a picture.

    Attributes:
        x: centre of the lips, pixels.
        y: likewise.
        width: width of the mouth, or 0.55 of the distance of the eyes where that is more, pixels.
        lips: outline of the outer lips [20, 2], pixels.
    """

    x: float
    y: float
    width: float
    lips: Floats


class Cover(NamedTuple):
    """A picture with something in it.

    Attributes:
        rgb: the picture, uint8 [H, W, 3].
        hidden: fraction of the lips' area that is hidden, 0..1.
    """

    rgb: Bytes
    hidden: float


Rng = np.random.Generator
Painter = Callable[[Bytes, Mouth, Rng, float, float], tuple[Bytes, Floats]]
"""Paints something whose middle lies dx and dy, units of the mouth's width, from the middle of the lips.
Returns the paint, uint8 [H, W, 3], and its opacity, float32 [H, W] in 0..1."""


def _canvas(rgb: Bytes) -> Bytes:
    return np.zeros(rgb.shape[:2], np.uint8)


def _grain(shape: tuple[int, ...], rng: Rng, size_px: float) -> Floats:
    """Smooth noise of unit deviation [H, W]."""
    noise = rng.standard_normal(shape[:2]).astype(np.float32)
    if size_px > 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), size_px)
    return np.asarray(noise / (noise.std() + 1e-6), np.float32)


def _tinted(rgb: Bytes, colour: Floats, rng: Rng, grain: float, size_px: float) -> Bytes:
    """A surface of one colour, lighter to one side, with grain."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = rng.normal(0, 25, 2)
    light = (
        slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5) + grain * _grain(rgb.shape, rng, size_px)
    )
    return np.asarray(np.clip(colour[None, None] + light[..., None], 0, 255), np.uint8)


def _skin(rgb: Bytes, mouth: Mouth) -> Floats:
    """Median colour [3] of the skin beside the mouth."""
    x, y, reach = int(mouth.x), int(mouth.y), max(2, int(0.75 * mouth.width))
    rows = slice(max(y - 2, 0), y + 3)
    left, right = rgb[rows, max(x - reach, 0) : max(x - reach, 0) + 4], rgb[rows, x + reach - 4 : x + reach]
    beside = np.concatenate([left.reshape(-1, 3), right.reshape(-1, 3)])
    return np.asarray(np.median(beside, axis=0) if len(beside) else [150, 110, 90], np.float32)


def rectangle(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """A plain bar or card, mostly dark, turned a little."""
    size = (mouth.width * rng.uniform(0.9, 2.2), mouth.width * rng.uniform(0.5, 1.3))
    corners = cv2.boxPoints(
        ((mouth.x + dx * mouth.width, mouth.y + dy * mouth.width), size, float(rng.normal(0, 12)))
    )
    mask = _canvas(rgb)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    colour = rng.uniform(0, 60, 3) if rng.random() < 0.5 else rng.uniform(0, 255, 3)
    paint = _tinted(rgb, colour.astype(np.float32), rng, rng.uniform(0, 8), rng.uniform(0, 3))
    return paint, mask.astype(np.float32) * np.float32(rng.uniform(0.9, 1.0))


def mosaic(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """Large square pixels, or a strong blur, in a rectangle or an ellipse."""
    cells = rng.uniform(2.5, 7)
    block = max(2, round(mouth.width / cells))
    height, width = rgb.shape[:2]
    small = cv2.resize(rgb, (max(1, width // block), max(1, height // block)), interpolation=cv2.INTER_AREA)
    how = cv2.INTER_NEAREST if rng.random() < 0.75 else cv2.INTER_CUBIC
    paint = cv2.resize(small, (width, height), interpolation=how)
    mask, centre = _canvas(rgb), (round(mouth.x + dx * mouth.width), round(mouth.y + dy * mouth.width))
    half = (round(mouth.width * rng.uniform(0.6, 1.1)), round(mouth.width * rng.uniform(0.4, 0.8)))
    if rng.random() < 0.5:
        cv2.ellipse(mask, centre, half, 0, 0, 360, 1, -1)
    else:
        cv2.rectangle(
            mask,
            (centre[0] - half[0], centre[1] - half[1]),
            (centre[0] + half[0], centre[1] + half[1]),
            1,
            -1,
        )
    return np.asarray(paint, np.uint8), mask.astype(np.float32)


def surgical_mask(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """Cloth from the nose to below the chin, with pleats, a seam and shading."""
    w = mouth.width
    top, bottom, side = rng.uniform(0.45, 0.95), rng.uniform(0.7, 1.7), rng.uniform(1.0, 1.9)
    shape = np.array(
        [(-side, -top * rng.uniform(0.4, 1)), (-0.3, -top), (0, -top * rng.uniform(0.95, 1.15)), (0.3, -top),
         (side, -top * rng.uniform(0.4, 1)), (0.9 * side, 0.4), (0.5, bottom), (0, bottom * 1.05),
         (-0.5, bottom), (-0.9 * side, 0.4)]
    )  # fmt: skip
    corners = shape * w + [mouth.x + dx * w, mouth.y + dy * w]
    mask = _canvas(rgb)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    colours = [
        (225, 230, 235),
        (120, 180, 215),
        (150, 205, 200),
        (25, 25, 30),
        (200, 170, 170),
        (90, 95, 110),
    ]
    colour = np.array(colours[rng.integers(len(colours))], np.float32) + rng.normal(0, 20, 3)
    colour = colour * rng.uniform(0.5, 1.05)
    paint = _tinted(rgb, colour.astype(np.float32), rng, rng.uniform(0, 6), rng.uniform(0, 2))
    for _ in range(rng.integers(0, 4)):
        y = round(mouth.y + (dy + rng.uniform(-0.5, 0.6)) * w)
        bend = rng.uniform(-0.1, 0.2) * w
        line = np.array(
            [(mouth.x + k * w, y + bend * (1 - k * k)) for k in np.linspace(-1.5, 1.5, 9)], np.int32
        )
        shade = tuple(float(c) for c in np.clip(colour + rng.choice([-40, -25, 20]), 0, 255))
        cv2.polylines(paint, [line], False, shade, max(1, round(0.03 * w)), cv2.LINE_AA)
    return paint, mask.astype(np.float32)


def fingers(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """One to four fingers in about the colour of the skin, round and with dark gaps."""
    w, mask, count = mouth.width, _canvas(rgb), int(rng.integers(1, 5))
    skin = _skin(rgb, mouth) * rng.uniform(0.7, 1.2) + rng.normal(0, 8, 3)
    paint = _tinted(rgb, skin.astype(np.float32), rng, rng.uniform(1, 5), 1.5)
    thick = w * rng.uniform(0.26, 0.42)
    angle = rng.uniform(0, np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle = np.array([mouth.x + dx * w, mouth.y + dy * w])
    for k in range(count):
        centre = middle + across * (k - (count - 1) / 2) * thick * 1.02
        tip = centre + along * w * rng.uniform(0.5, 0.9)
        root = centre - along * w * 3
        for step in np.linspace(1, 0.3, 6):  # lighter along the middle, as a round thing is
            shade = tuple(float(c) for c in np.clip(skin * (1.18 - 0.38 * step), 0, 255))
            cv2.line(paint, _point(root), _point(tip), shade, max(1, round(thick * step)), cv2.LINE_AA)
        cv2.line(mask, _point(root), _point(tip), 1, max(1, round(thick)))
    return paint, mask.astype(np.float32)


def _point(at: Doubles) -> tuple[int, int]:
    return round(float(at[0])), round(float(at[1]))


def microphone(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """A round or long head of foam or wire, with its handle."""
    w, mask = mouth.width, _canvas(rgb)
    colour = rng.uniform(10, 90) + rng.normal(0, 5, 3) if rng.random() < 0.7 else rng.uniform(20, 220, 3)
    paint = _tinted(rgb, colour.astype(np.float32), rng, rng.uniform(3, 25), rng.uniform(0.4, 1.5))
    centre = (round(mouth.x + dx * w), round(mouth.y + dy * w))
    axes = (round(w * rng.uniform(0.4, 0.75)), round(w * rng.uniform(0.4, 0.95)))
    turn = rng.uniform(-60, 60)
    cv2.ellipse(mask, centre, axes, turn, 0, 360, 1, -1)
    end = (round(centre[0] - np.sin(np.radians(turn)) * 4 * w), round(centre[1] + 4 * w))
    cv2.line(mask, centre, end, 1, max(1, round(w * rng.uniform(0.2, 0.5))))
    return paint, mask.astype(np.float32)


def thing(rgb: Bytes, mouth: Mouth, rng: Rng, dx: float, dy: float) -> tuple[Bytes, Floats]:
    """A blob of many colours: a cup, food, a phone, paper, somebody's shoulder."""
    w, mask = mouth.width, _canvas(rgb)
    turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    radius = w * rng.uniform(0.55, 1.0) * (1 + 0.25 * rng.standard_normal(14))
    outline = np.stack([np.cos(turns), np.sin(turns) * rng.uniform(0.7, 1.3)], 1) * radius[:, None]
    outline += np.array([mouth.x + dx * w, mouth.y + dy * w])
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    paint = _tinted(rgb, rng.uniform(0, 255, 3).astype(np.float32), rng, 5, 1).astype(np.float32)
    for _ in range(rng.integers(1, 4)):
        edge = _grain(rgb.shape, rng, rng.uniform(0.1, 0.4) * w) > rng.normal(0, 0.5)
        paint[edge] = 0.5 * paint[edge] + 0.5 * rng.uniform(0, 255, 3)
    return np.asarray(np.clip(paint, 0, 255), np.uint8), mask.astype(np.float32)


PAINTERS: dict[str, Painter] = {
    "rectangle": rectangle,
    "mosaic": mosaic,
    "surgical mask": surgical_mask,
    "fingers": fingers,
    "microphone": microphone,
    "thing": thing,
}


def cover(rgb: Bytes, mouth: Mouth, kind: str, rng: Rng, dx: float, dy: float) -> Cover:
    """The picture with one cover.

    Args:
        rgb: the picture, uint8 [H, W, 3].
        mouth: where the mouth is in it.
        kind: one of `PAINTERS`.
        rng: draws size, colour and shape.
        dx: from the middle of the lips to that of the cover, to the right, units of the mouth's width.
        dy: likewise, downwards.
    """
    paint, opacity = PAINTERS[kind](rgb, mouth, rng, dx, dy)
    soft = max(0.3, 0.02 * mouth.width)
    alpha = cv2.GaussianBlur(opacity, (0, 0), soft)[..., None]
    lips = _canvas(rgb)
    cv2.fillPoly(lips, [np.round(mouth.lips).astype(np.int32)], 1)
    inside = lips.astype(bool)
    hidden = float((opacity[inside] > 0.5).mean()) if inside.any() else 0.0
    mixed = alpha * paint + (1 - alpha) * rgb
    return Cover(np.asarray(np.clip(np.round(mixed), 0, 255), np.uint8), hidden)


def beard(rgb: Bytes, mouth: Mouth, rng: Rng) -> Bytes:
    """The picture with hair around the lips, and a moustache that may hang over the upper one."""
    w, mask = mouth.width, _canvas(rgb)
    centre = (round(mouth.x), round(mouth.y + w * rng.uniform(0.25, 0.5)))
    half = (round(w * rng.uniform(0.6, 1.2)), round(w * rng.uniform(0.7, 1.1)))
    cv2.ellipse(mask, centre, half, 0, 0, 360, 1, -1)
    lips = mouth.lips.copy()
    lips[:, 1] += rng.uniform(0, 0.08) * w
    cv2.fillPoly(mask, [np.round(lips).astype(np.int32)], 0)
    hair = rng.uniform(15, 110) * np.array([1.0, rng.uniform(0.75, 1), rng.uniform(0.6, 1)])
    strands = cv2.GaussianBlur(rng.standard_normal(rgb.shape[:2]).astype(np.float32), (0, 0), 0.5, sigmaY=1.5)
    paint = hair + rng.uniform(10, 40) * (strands / (strands.std() + 1e-6))[..., None]
    density = np.clip(0.75 + 0.3 * _grain(rgb.shape, rng, 0.08 * w), 0, 1) * rng.uniform(0.5, 1)
    alpha = (cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.05 * w) * density)[..., None]
    return np.asarray(np.clip(alpha * paint + (1 - alpha) * rgb, 0, 255), np.uint8)
