"""What a generated video shows: opening of the mouth, motion of head and brows, and whose face it is.

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
from examples.warps import NUM_POSE, BrowWarp, HeadWarp
from talkforge.curation.face.identity import Embedder, align
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


class MotionReader:
    """Reads how far head and brows have moved since a portrait, by the least squared difference of pixels.

    A frame is taken for the portrait, moved by `HeadWarp` and `BrowWarp` of its face with coefficients c, and
    with another mean brightness. Gauss-Newton finds c: each turn linearises around the last one. The mouth,
    which moves by itself, is left out.
    """

    _TURNS = 6
    _PRIOR = 2.0
    """Weight of the coefficients' squares against grey levels squared: 0 where pixels say nothing."""

    def __init__(self, portrait: Bytes, face: Face) -> None:
        """For one portrait, uint8 [H, W, 3], whose `face` is in its own pixels."""
        self._luma = luma(portrait).astype(np.float32)
        height_px, width_px = self._luma.shape
        x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
        self._grid = np.stack([x, y], -1)
        brows = BrowWarp(face).field(self._grid)[None]
        self._fields = np.concatenate([HeadWarp(face).field(self._grid), brows])
        mouth = Mouth.of(face, 1.0)
        beside = np.abs(x - mouth.middle[0]) / mouth.width_px
        below = (y - mouth.middle[1]) / mouth.width_px
        self._seen = ((beside > 0.9) | (below < -0.35) | (below > 1.3)).ravel()

    def read(self, rgb: Bytes) -> Floats:
        """Coefficients of every frame [F, 6], of the head as `warps.NUM_POSE`, then of the brows."""
        found, current = [], np.zeros(NUM_POSE + 1)
        for frame in luma(rgb):
            for _ in range(self._TURNS):
                current = current + self._step(frame, current)
            found.append(current)
        return np.array(found, np.float32)

    def _step(self, frame: Floats, current: np.ndarray) -> np.ndarray:
        lookup = self._grid - np.tensordot(current.astype(np.float32), self._fields, 1)
        moved = cv2.remap(self._luma, lookup, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        slope = np.stack([cv2.Sobel(moved, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1))], -1)
        columns = -(self._fields * slope).sum(-1).reshape(NUM_POSE + 1, -1)[:, self._seen].astype(np.float64)
        columns = np.concatenate([columns, np.ones((1, columns.shape[1]))])
        wanted = (frame - moved).ravel()[self._seen].astype(np.float64)
        prior = self._PRIOR * len(wanted) * np.diag([1.0] * (NUM_POSE + 1) + [0.0])
        pull = prior @ np.append(current, 0.0)
        solved: np.ndarray = np.linalg.solve(columns @ columns.T + prior, columns @ wanted - pull)[:-1]
        return solved


def motion(coefficients: Floats) -> tuple[float, float]:
    """How much brows and head move: standard deviations over time of `MotionReader.read`, the head's as one.

    Those of the five coefficients of the head are summed in squares.
    """
    deviations = coefficients.std(axis=0, dtype=np.float64)
    return float(deviations[NUM_POSE]), float(np.sqrt(np.square(deviations[:NUM_POSE]).sum()))


def embedding(embedder: Embedder, rgb: Bytes, five: Floats) -> Floats:
    """Identity [D] of the face in a frame, uint8 [H, W, 3], whose points lie at `five`, see `Face.five`."""
    found: Floats = embedder.embed(align(rgb, five)[None])[0]
    return found


@dataclass(frozen=True)
class Likeness:
    """How well faces are those that were asked for.

    Attributes:
        margin: cosine similarity to the identity that was asked for, minus that to the others, mean.
        rank: fraction of the others that a face is less similar to than to the one that was asked for, mean:
            1 if it is always the nearest, 0.5 by chance.
    """

    margin: float
    rank: float

    @classmethod
    def of(cls, faces: Floats, identities: Floats) -> Likeness:
        """Of embeddings [N, D] and what was asked for in each, [N, D], all of unit length."""
        similar = faces @ identities.T
        own = np.diag(similar)[:, None]
        others = ~np.eye(len(faces), dtype=bool)
        return cls(float((own - similar)[others].mean()), float((own > similar)[others].mean()))


def psnr(found: Bytes, true: Bytes, weights: Floats | None = None) -> float:
    """Peak signal-to-noise ratio of frames [F, H, W, 3], dB; of the pixels with `weights` [F, H, W] alone."""
    errors = np.square(found.astype(np.float64) - true).mean(-1)
    return float(10 * np.log10(255**2 / np.average(errors, weights=weights)))
