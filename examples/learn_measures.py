"""What a generated video shows, in pixels: how far the mouth is open, and how much moves around it.

A landmarker finds few of the faces at 64 px, so the mouth is read by a linear map from the brightness
of a box around it to its opening. The map is fitted to videos whose openings are known, seen through the
codec as generated ones are, and is checked on videos that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from examples.portraits import Face
from talkforge.schemas.arrays import Bytes, Floats

BOX_PX = (16, 24)
"""Height and width of the box that is read, after scaling the mouth to `MOUTH_PX`."""

MOUTH_PX = 16.0
"""Width of the closed mouth in the box."""

BELOW = 0.15
"""The box's middle lies this far below the closed lips, in mouth widths: a mouth opens downwards."""

RIDGE = 0.3
"""Weight of the penalty on the map, relative to the brightness's variance."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Mouth:
    """Where the closed mouth of a portrait lies in its generated frame, px."""

    middle: tuple[float, float]
    width_px: float

    @classmethod
    def of(cls, face: Face, scale: float) -> Mouth:
        """Of a face, in frames `scale` times as large as its own."""
        x, y = face.outer.mean(axis=0) * scale
        return cls((float(x), float(y)), float(np.ptp(face.outer[:, 0]) * scale))


def luma(rgb: Bytes) -> Floats:
    """Brightness 0..255 of frames [..., 3]. Source: ITU-R BT.601."""
    brightness: Floats = rgb.astype(np.float32) @ _LUMA
    return brightness


def boxes(rgb: Bytes, portrait: Bytes, mouth: Mouth) -> Floats:
    """Change of brightness around the mouth against the portrait, [F, pixels of the box].

    `rgb` uint8 [F, H, W, 3], `portrait` uint8 [H, W, 3].
    """
    scale = MOUTH_PX / mouth.width_px
    height_px, width_px = BOX_PX
    x, y = mouth.middle[0], mouth.middle[1] + BELOW * mouth.width_px
    matrix = np.array(
        [[scale, 0, (width_px - 1) / 2 - scale * x], [0, scale, (height_px - 1) / 2 - scale * y]], np.float32
    )
    frames = [cv2.warpAffine(one, matrix, (width_px, height_px)) for one in luma(rgb)]
    closed = cv2.warpAffine(luma(portrait), matrix, (width_px, height_px))
    return np.stack([one - closed for one in frames]).reshape(len(frames), -1)


class MouthReader:
    """A linear map from `boxes` to openings in mouth widths; the portrait itself reads as closed."""

    def __init__(self, weights: Floats) -> None:
        self._weights = weights

    @classmethod
    def fit(cls, found: Sequence[Floats], openings: Sequence[Floats]) -> MouthReader:
        """By ridge regression, from boxes [F, P] and openings [F] of some videos."""
        x, y = np.concatenate(found).astype(np.float64), np.concatenate(openings).astype(np.float64)
        penalty = RIDGE * len(x) * x.var() * np.eye(x.shape[1])
        return cls(np.linalg.solve(x.T @ x + penalty, x.T @ y).astype(np.float32))

    def read(self, rgb: Bytes, portrait: Bytes, mouth: Mouth) -> Floats:
        """Opening of the mouth in every frame [F], in mouth widths; arguments as of `boxes`."""
        opening: Floats = boxes(rgb, portrait, mouth) @ self._weights
        return opening


def correlation(one: Floats, other: Floats) -> float:
    """Pearson's r; 0 where either does not change at all."""
    if not (one.std() > 1e-6 and other.std() > 1e-6):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def motion_around(rgb: Bytes, mouth: Mouth) -> float:
    """How much moves beside the mouth in `rgb` [F, H, W, 3], in grey levels.

    Deviation over time of a pixel's brightness; mean over the pixels outside a square of 1.8 mouth
    widths around the mouth.
    """
    deviation = luma(rgb).std(axis=0, dtype=np.float64)
    rows, columns = np.indices(deviation.shape)
    reach = 0.9 * mouth.width_px
    x, y = mouth.middle
    around = (np.abs(columns - x) > reach) | (np.abs(rows - y) > reach)
    return float(deviation[around].mean())
