"""How much real detail a face has: the height in pixels at which it would lose nothing.

A face that was enlarged has no more detail than before: its spectrum ends early, and abruptly where a small
picture was scaled up; where pixels were repeated, steps come at their old distance. Blur and strong
compression end it early as well. Noise and the blocks of a codec lie far below the detail of a face and do
not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from talkforge.schemas.arrays import Bytes, Doubles, Floats

MARGIN = 0.05
"""Margin around the landmarks, as fraction of their extent: the crop is as tall as the detector's box."""

EDGES = 2 ** np.arange(2, 8.01, 0.25)
"""Edges of the frequency bands, a quarter of an octave each, in cycles over the height of the face."""

_MIDDLES = np.sqrt(EDGES[:-1] * EDGES[1:])

REFERENCE = (_MIDDLES > 4) & (_MIDDLES < 12)
"""The bands of eyes, nose and mouth, which any face has that can be recognised."""

LEAST_ENERGY = 0.02
"""There is detail up to the last band whose energy is at least this fraction of the reference. Source: ours;
with it, sharp faces that were scaled down to 64 px and up again are measured as 73 px (docs/judgement.md)."""

CLIFF_BANDS, CLIFF_DECADES, CLIFF_FROM = 3, 0.9, 12.0
"""Where the energy falls by a factor of 10 ** `CLIFF_DECADES` over this many bands, above `CLIFF_FROM`
cycles, a small picture was scaled up, and detail ends at the first of them. Source: ours. Of faces that
were scaled up from 64 px 98 in 100 have such a cliff, of those that were filmed so one in ten."""

REPEATED, REPEATED_FROM, REPEATED_LEAST_PX = 0.2, 1 / 9, 60
"""Pixels were repeated where the steps between lines beat with at least this amplitude at one frequency, the
same for rows and columns, in cycles per pixel from `REPEATED_FROM`; looked for in faces of so many pixels.
Source: ours. Of 44 speakers' faces that were filmed so none is taken for repeated (docs/judgement.md)."""

_BEAT_BINS = 1024

MIN_SAMPLES = 4
"""Least number of Fourier coefficients in a band that counts."""


def face_crop(rgb: Bytes, points: Floats) -> Bytes:
    """The face in the pixels of its frame, uint8 [h, w, 3], cut off at the frame's edge.

    Args:
        rgb: frame, uint8 [H, W, 3].
        points: landmarks of the face [478, 3] in pixels of `rgb`.
    """
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    margin = MARGIN * (high - low)
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int)
    x1, y1 = np.maximum(np.ceil(high + margin) + 1, 0).astype(int)
    return rgb[y0:y1, x0:x1].copy()


def detail_px(faces: Sequence[Bytes]) -> float | None:
    """Height in pixels at which a face has all the detail that it has at its own size.

    It is at most the face's own height and about a third more, because a square of pixels resolves more
    along its diagonals.

    Args:
        faces: crops of one face, uint8 [h, w, 3], as `face_crop` gives them.

    Returns:
        The height; None without a crop of 16 px and more, or where there is nothing to be seen in it.
    """
    spectra = [_octave_energies(face) for face in faces if min(face.shape[:2]) >= 16]
    if not spectra:
        return None
    counts = np.isfinite(spectra).sum(axis=0)
    energies = np.full(len(_MIDDLES), np.nan)
    for band in np.flatnonzero(counts):
        energies[band] = np.nanmedian([spectrum[band] for spectrum in spectra])
    known = energies[REFERENCE & np.isfinite(energies)]
    reference = float(np.median(known)) if len(known) else 0.0
    if not reference > 1e-9:
        return None
    relative = energies / reference
    return round(min(_end(relative), _cliff(relative), _repeated(faces)), 1)


def _octave_energies(face: Bytes) -> Doubles:
    """Energy for each octave in each band, of the largest square in the middle; NaN beyond its resolution.

    The energy per octave is about constant in pictures of nature, whose power falls with the square of the
    frequency. Source: Field, Relations between the statistics of natural images and the response properties
    of cortical cells (JOSA A 1987).
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float64)
    height, width = grey.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    grey = grey[top : top + side, left : left + side]
    window = np.outer(np.hanning(side), np.hanning(side))
    power = np.abs(np.fft.fft2((grey - (grey * window).sum() / window.sum()) * window)) ** 2 / side**4
    cycles = np.fft.fftfreq(side) * side
    radius = np.hypot(cycles[None], cycles[:, None])
    inside = radius <= side / 2
    band = np.digitize(radius[inside] * height / side, EDGES) - 1
    valid = (band >= 0) & (band < len(_MIDDLES))
    counts = np.bincount(band[valid], minlength=len(_MIDDLES))
    sums = np.bincount(band[valid], power[inside][valid], minlength=len(_MIDDLES))
    means = np.where(counts >= MIN_SAMPLES, sums / np.maximum(counts, 1), np.nan)
    return np.asarray(means * EDGES[:-1] * EDGES[1:])


def _end(relative: Doubles) -> float:
    """Pixels up to which the energy is at least `LEAST_ENERGY`, interpolated between two bands."""
    enough = np.flatnonzero(np.isfinite(relative) & (relative >= LEAST_ENERGY))
    last = int(enough[-1])
    after = relative[last + 1] if last + 1 < len(relative) else np.nan
    if not np.isfinite(after) or after <= 0:
        return float(2 * EDGES[last + 1])
    above, below = np.log(relative[last] / LEAST_ENERGY), np.log(LEAST_ENERGY / after)
    return float(2 * _MIDDLES[last] * (_MIDDLES[last + 1] / _MIDDLES[last]) ** (above / (above + below)))


def _cliff(relative: Doubles) -> float:
    """Pixels at which the energy falls abruptly; infinite where it does not."""
    levels = np.log10(np.maximum(relative, 1e-4))
    falls = levels[:-CLIFF_BANDS] - levels[CLIFF_BANDS:]
    falls[(_MIDDLES[:-CLIFF_BANDS] < CLIFF_FROM) | ~np.isfinite(falls)] = 0
    steepest = int(np.argmax(falls))
    return float(2 * _MIDDLES[steepest + 1]) if falls[steepest] >= CLIFF_DECADES else np.inf


def _repeated(faces: Sequence[Bytes]) -> float:
    """Pixels that a face had before each was repeated; infinite where none was.

    Between repeated pixels there are no steps, so the steps come as often as there were pixels. Enlarged by
    less than two they beat at half of that.
    """
    faces = [face for face in faces if min(face.shape[:2]) >= REPEATED_LEAST_PX]
    if not faces:
        return np.inf
    beats = np.mean([_beat(face) for face in faces], axis=0)
    cycles = np.arange(len(beats)) / _BEAT_BINS
    beats[cycles < REPEATED_FROM] = 0
    strongest = int(np.argmax(beats))
    height = float(np.median([face.shape[0] for face in faces]))
    return height * float(cycles[strongest]) if beats[strongest] >= REPEATED else np.inf


def _beat(face: Bytes) -> Doubles:
    """Amplitude of the steps between neighbouring lines at each frequency, the lesser of rows and columns."""
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float64)
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)
        steps *= np.hanning(len(steps))
        found.append(np.abs(np.fft.rfft(steps, _BEAT_BINS)) / max(steps.sum(), 1e-6))
    return np.asarray(np.minimum(*found))
