"""Drawing of measurements: thumbnails for the report and overlays for `talkforge inspect`.

Coordinates are pixels of the frame that is drawn on, as in `schemas.arrays`. The same arguments give the same
bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from talkforge.curation.face.lips import rasterise
from talkforge.schemas.arrays import (
    INTERPOLATED,
    MEASURED,
    MISSING,
    NUM_LANDMARKS,
    Bytes,
    Floats,
    expect_shape,
)
from talkforge.schemas.units import samples_from_frames

BOX_RGB = (255, 196, 61)
MESH_RGB = (94, 226, 236)
LIPS_RGB = (255, 64, 129)
JOINTS_RGB = (120, 230, 90)
OPENING_RGB = (255, 120, 170)
LOUDNESS_RGB = (120, 190, 255)
PANEL_RGB = (18, 20, 26)
INK_RGB = (222, 226, 234)
VALIDITY_RGB = {MEASURED: (74, 190, 120), INTERPOLATED: (240, 180, 60), MISSING: (214, 80, 80)}
"""Colour of each validity code, RGB."""

TINT = 0.45
"""Weight of the lip colour inside the mask."""

LOUDNESS_FLOOR_DBFS = -60.0
"""Bottom of the loudness curve."""

INNER_UPPER, INNER_LOWER = 13, 14
EYE_OUTER_RIGHT, EYE_OUTER_LEFT = 33, 263
"""Indices of MediaPipe's face mesh: middle of the inner lips, outer corners of the eyes."""

JPEG_QUALITY = 80
"""Quality of thumbnails. They keep the full chroma resolution, because the marks are thin coloured lines."""

_SHIFT = 4  # cv2 takes sixteenths of a pixel, which keeps slow motion smooth


@dataclass(frozen=True)
class Marks:
    """What is drawn on one frame. None is not drawn.

    Attributes:
        box: [4] x0, y0, x1, y1 of the face.
        landmarks: [478, 3].
        contour: [P, 2], outline of the lips.
        joints: [J, 3] x, y and score.
        valid: validity code of the contour (0 missing, 1 interpolated, 2 measured).
    """

    box: Floats | None = None
    landmarks: Floats | None = None
    contour: Floats | None = None
    joints: Floats | None = None
    valid: int = MEASURED

    def __post_init__(self) -> None:
        shapes = {"box": (4,), "landmarks": (NUM_LANDMARKS, 3), "contour": (None, 2), "joints": (None, 3)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None:
                expect_shape(name, array, shape)
        if self.valid not in VALIDITY_RGB:
            raise ValueError(f"valid: expected a code of {sorted(VALIDITY_RGB)}, found {self.valid}")


def mouth_opening(landmarks: Floats) -> Floats:
    """[F]: gap between the inner lips over the distance of the outer eye corners, NaN where not seen.

    Args:
        landmarks: [F, 478, 3] in clip pixels.
    """
    plane = landmarks[:, :, :2]
    gap = np.linalg.norm(plane[:, INNER_UPPER] - plane[:, INNER_LOWER], axis=1)
    eyes = np.linalg.norm(plane[:, EYE_OUTER_RIGHT] - plane[:, EYE_OUTER_LEFT], axis=1)
    return np.asarray(gap / np.where(eyes > 0, eyes, np.nan), np.float32)


def loudness_dbfs(
    samples: Floats, num_frames: int, fps: float, floor_dbfs: float = LOUDNESS_FLOOR_DBFS
) -> Floats:
    """[num_frames]: RMS level under each frame in dB relative to full scale.

    Args:
        samples: [N] mono at 16 kHz; missing samples count as silence.
        num_frames: frames of the clip.
        fps: frame rate of the clip.
        floor_dbfs: the least level that is told.
    """
    edges = [samples_from_frames(frame, fps) for frame in range(num_frames + 1)]
    power = np.zeros(edges[-1], np.float64)
    count = min(len(samples), edges[-1])
    power[:count] = np.square(samples[:count], dtype=np.float64)
    mean = np.add.reduceat(power, edges[:-1]) / np.diff(edges)
    return np.asarray(10 * np.log10(np.maximum(mean, 10 ** (floor_dbfs / 10))), np.float32)


@dataclass(frozen=True)
class Curves:
    """The curves in the strip below the frame, with one value for each frame of the clip.

    Attributes:
        opening: [F] mouth opening in any unit, NaN where the face was not seen.
        loudness_dbfs: [F] level of each frame's audio, dB relative to full scale.
        valid: [F] validity codes of the lip contour.
        fps: frames per second of the clip.
    """

    opening: Floats
    loudness_dbfs: Floats
    valid: Bytes
    fps: float

    def __post_init__(self) -> None:
        frames = len(self.opening)
        expect_shape("opening", self.opening, (None,))
        expect_shape("loudness_dbfs", self.loudness_dbfs, (frames,))
        expect_shape("valid", self.valid, (frames,))


def thumbnail(
    rgb: Bytes,
    box: Floats | None = None,
    landmarks: Floats | None = None,
    contour: Floats | None = None,
    longest_edge_px: int = 320,
) -> bytes:
    """JPEG of a frame with its face box, landmarks and lip mask drawn in.

    Args:
        rgb: uint8 [H, W, 3].
        box: [4] x0, y0, x1, y1 in pixels of `rgb`. NaN or None is not drawn, here and below.
        landmarks: [478, 3] in pixels of `rgb`.
        contour: [P, 2] in pixels of `rgb`.
        longest_edge_px: the image is scaled down to this, never up.

    Raises:
        ValueError: an array has another shape.
    """
    expect_shape("rgb", rgb, (None, None, 3))
    height, width = rgb.shape[:2]
    scale = min(1.0, longest_edge_px / max(height, width))
    small = rgb
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    marks = Marks(_scaled(box, scale), _scaled(landmarks, scale), _scaled(contour, scale))
    buffer = io.BytesIO()
    Image.fromarray(draw_marks(small, marks)).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def overlay(rgb: Bytes, marks: Marks, curves: Curves, frame: int) -> Bytes:
    """A frame with its marks, and below it the curves with a cursor at `frame`.

    Args:
        rgb: uint8 [H, W, 3].
        marks: what is drawn on the frame.
        curves: what is drawn below it.
        frame: index in 0..F-1.

    Returns:
        uint8 [H', W', 3]. Both sizes are even, because video codecs need that: an odd edge is repeated once.

    Raises:
        ValueError: a shape does not fit, or `frame` lies outside the curves.
    """
    expect_shape("rgb", rgb, (None, None, 3))
    if not 0 <= frame < len(curves.opening):
        raise ValueError(f"frame: expected 0..{len(curves.opening) - 1}, found {frame}")
    image = np.concatenate([draw_marks(rgb, marks), _strip(rgb.shape[1], rgb.shape[0], curves, frame)])
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def draw_marks(rgb: Bytes, marks: Marks) -> Bytes:
    """A copy of `rgb` [H, W, 3] with `marks` drawn in. Points that are NaN are left out."""
    image = np.ascontiguousarray(rgb).copy()
    line_px = max(1, round(max(rgb.shape[:2]) / 400))
    if marks.landmarks is not None:
        for x, y in _sixteenths(marks.landmarks[np.isfinite(marks.landmarks).all(axis=1), :2]):
            cv2.circle(image, (x, y), (line_px << _SHIFT) // 2, MESH_RGB, -1, cv2.LINE_AA, _SHIFT)
    if marks.contour is not None and marks.valid != MISSING and np.isfinite(marks.contour).all():
        _draw_lips(image, marks.contour, marks.valid, line_px)
    if marks.joints is not None:
        seen = np.isfinite(marks.joints).all(axis=1)
        for x, y in _sixteenths(marks.joints[seen, :2]):
            cv2.circle(image, (x, y), (3 * line_px) << _SHIFT, JOINTS_RGB, line_px, cv2.LINE_AA, _SHIFT)
    if marks.box is not None and np.isfinite(marks.box).all():
        (x0, y0), (x1, y1) = _sixteenths(marks.box.reshape(2, 2))
        cv2.rectangle(image, (x0, y0), (x1, y1), BOX_RGB, line_px, cv2.LINE_AA, _SHIFT)
    return image


def _draw_lips(image: Bytes, contour: Floats, valid: int, line_px: int) -> None:
    inside = rasterise(contour, *image.shape[:2])
    image[inside] = (image[inside] * (1 - TINT) + np.array(LIPS_RGB) * TINT + 0.5).astype(np.uint8)
    polygon = np.array(_sixteenths(contour), np.int32)
    edge = LIPS_RGB if valid == MEASURED else VALIDITY_RGB[INTERPOLATED]
    cv2.polylines(image, [polygon], True, edge, line_px, cv2.LINE_AA, _SHIFT)


def _scaled(points: Floats | None, scale: float) -> Floats | None:
    """Coordinates after scaling. Pixel centres are whole numbers, so the frame's edge lies at -0.5."""
    if points is None:
        return None
    moved = points.astype(np.float32)
    plane = moved if points.ndim == 1 else moved[:, :2]  # a box has only x and y, landmarks also have z
    plane[...] = (plane + 0.5) * scale - 0.5
    return moved


def _sixteenths(points: NDArray[np.floating]) -> list[tuple[int, int]]:
    # Coordinates far outside of the frame are clipped, because cv2's integers would overflow.
    rounded = np.rint(np.clip(points, -8192, 16384) * (1 << _SHIFT)).astype(int)
    return [(int(x), int(y)) for x, y in rounded]


def _strip(width_px: int, height_px: int, curves: Curves, frame: int) -> Bytes:
    """The strip [height, width_px, 3]: opening, loudness below it, validity as a ribbon, and the cursor."""
    strip_px = max(72, round(height_px * 0.16))
    strip = np.full((strip_px, width_px, 3), PANEL_RGB, np.uint8)
    label_px, ribbon_px = 14, 4
    lane_px = (strip_px - label_px - ribbon_px) / 2
    opening = _unit(curves.opening)
    loudness = np.clip(1 - curves.loudness_dbfs / LOUDNESS_FLOOR_DBFS, 0, 1)
    _curve(strip, opening, label_px, lane_px, OPENING_RGB, frame)
    _curve(strip, loudness, label_px + lane_px, lane_px, LOUDNESS_RGB, frame)
    xs = _columns(len(opening), width_px)
    nearest = np.rint(np.linspace(0, len(xs) - 1, width_px)).astype(int)
    palette = np.array([VALIDITY_RGB[code] for code in sorted(VALIDITY_RGB)], np.uint8)
    strip[-ribbon_px:] = palette[curves.valid[nearest]]
    x = round(float(xs[frame]))
    cv2.line(strip, (x, label_px - 2), (x, strip_px - 1), INK_RGB, 1)
    text = f"{frame / curves.fps:6.2f} s  frame {frame}"
    for words, colour, at in (
        ("mouth", OPENING_RGB, 4),
        ("loudness", LOUDNESS_RGB, 48),
        (text, INK_RGB, 116),
    ):
        cv2.putText(strip, words, (at, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.34, colour, 1, cv2.LINE_AA)
    return strip


def _unit(values: Floats) -> Floats:
    """Values scaled to 0..1 between the least and the largest finite one. Constant curves lie at 0."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return values
    spread = np.ptp(finite) or 1.0
    return np.asarray((values - finite.min()) / spread, np.float32)


def _columns(frames: int, width_px: int) -> NDArray[np.float64]:
    return np.linspace(2, max(2, width_px - 3), frames)


def _curve(
    strip: Bytes, unit: Floats, top_px: float, lane_px: float, colour: tuple[int, int, int], frame: int
) -> None:
    """Draw one curve, bright up to `frame` and dim after it. NaN interrupts the line."""
    xs, ys = _columns(len(unit), strip.shape[1]), top_px + 2 + (lane_px - 4) * (1 - unit)
    dim = tuple((2 * dark + light) // 3 for dark, light in zip(PANEL_RGB, colour, strict=True))
    # The dim part is drawn first, so that the bright end lies on top at the cursor.
    for first, last, shade in ((frame, len(unit), dim), (0, frame + 1, colour)):
        span = np.arange(first, last)
        known = np.isfinite(ys[span])
        for run in np.split(span, np.flatnonzero(~known)):
            points = np.array(_sixteenths(np.stack([xs, ys], 1)[run[np.isfinite(ys[run])]]), np.int32)
            if len(points):
                cv2.polylines(strip, [points.reshape(-1, 1, 2)], False, shade, 1, cv2.LINE_AA, _SHIFT)
