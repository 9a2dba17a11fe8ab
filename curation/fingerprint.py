"""What is kept of a clip to find it again: hashes of its pictures, and landmarks of its sound.

* Pictures: 64-bit DCT hashes of sampled frames, by OpenCV. Source: Zauner, Implementation and
  benchmarking of perceptual image hash functions (2010).
* Sound: landmarks, pairs of spectral peaks, by the package audfprint2. Source: Wang, An
  industrial-strength audio search algorithm (ISMIR 2003); Ellis's audfprint.

Two clips are compared in `curation.duplicates`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, Floats, expect_shape
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

HASHED_FRAMES_HZ = 2.0
"""Frames hashed per second."""

HASHED_PX = 32
"""A picture is made this small before it is hashed, each pixel the mean of what it covers: so the hash
depends neither on the size of the picture nor on its noise."""

HOP_SAMPLES = 64
"""Unit of a landmark's time: 4 ms at 16 kHz. Source: ours; with 16 ms, two thirds to nine
tenths of the landmarks are lost where a copy begins half a unit later."""

WINDOW_SAMPLES = 512
"""Length of the windows whose spectra have the peaks."""

HASH_BITS = 20
"""Of a landmark, lowest first: 6 of time between the peaks, 6 of their difference in frequency, 8
of the frequency of the first. Its time is in the bits above."""

DENSITY = 100.0
"""Density that audfprint aims at. Source: ours; its default of 20 leaves few landmarks in speech."""

_PACKAGE = "audfprint2==0.1.2"


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a clip to find it again; some 1.2 kB for each second.

    Attributes:
        duration_s: of the clip.
        frame_hashes: uint8 [K, 8], the 64 bits of the frame at k / HASHED_FRAMES_HZ seconds.
        face_boxes: float32 [K, 4], box of the clip's face there, x0, y0, x1, y1 as shares of the picture's
            width and height; NaN where there was no picture to hash.
        audio_hashes: uint64 [L], landmarks in order: time in units of `HOP_SAMPLES` above `HASH_BITS` bits.
    """

    duration_s: float
    frame_hashes: Bytes
    face_boxes: Floats
    audio_hashes: NDArray[np.uint64]

    def __post_init__(self) -> None:
        expect_shape("frame_hashes", self.frame_hashes, (None, 8))
        expect_shape("face_boxes", self.face_boxes, (len(self.frame_hashes), 4))
        expect_shape("audio_hashes", self.audio_hashes, (None,))


class FrameHasher:
    """Hashes the frames of one clip at `HASHED_FRAMES_HZ`."""

    def __init__(self, num_frames: int, fps: float) -> None:
        times_s = np.arange(int(num_frames / fps * HASHED_FRAMES_HZ) + 1) / HASHED_FRAMES_HZ
        frames = np.floor(times_s * fps + 0.5).astype(int)
        self._frames = frames[frames < num_frames]
        self.hashes: Bytes = np.zeros((len(self._frames), 8), np.uint8)
        self.face_boxes: Floats = np.full((len(self._frames), 4), np.nan, np.float32)

    def push(self, shown: range, rgb: Bytes, face_box: Floats) -> None:
        """Hash a picture [H, W, 3] if a frame of `shown` is wanted; `face_box` [4] is in its pixels."""
        first, last = np.searchsorted(self._frames, (shown.start, shown.stop))
        if first < last:
            height_px, width_px = rgb.shape[:2]
            self.hashes[first:last] = hash_frame(rgb)
            self.face_boxes[first:last] = face_box / np.array([width_px, height_px] * 2, np.float32)


def hash_frame(rgb: Bytes) -> Bytes:
    """64 bits [8] uint8 of a picture [H, W, 3]: the signs of its lowest frequencies."""
    small = cv2.resize(rgb, (HASHED_PX, HASHED_PX), interpolation=cv2.INTER_AREA)
    found: Bytes = cv2.img_hash.pHash(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))[0]
    return found


def hash_audio(samples: Floats) -> NDArray[np.uint64]:
    """Landmarks [L] of audio [N] at 16 kHz, as in `Fingerprint.audio_hashes`; none in silence.

    Raises:
        ModelError: the package audfprint2 is not installed.
    """
    expect_shape("samples", samples, (None,))
    if len(samples) < AUDIO_HZ // 2 or not np.any(samples):
        return np.zeros(0, np.uint64)
    analysis = _analysis()
    analyzer = analysis.Analyzer(density=DENSITY)
    analyzer.n_fft, analyzer.n_hop, analyzer.target_sr = WINDOW_SAMPLES, HOP_SAMPLES, AUDIO_HZ
    peaks = analyzer.find_peaks(samples, AUDIO_HZ)
    found = np.asarray(analysis.landmarks2hashes(analyzer.peaks2landmarks(peaks)), np.int64)
    return np.unique((found[:, 0] << HASH_BITS) | found[:, 1]).astype(np.uint64)


def check_installed() -> None:
    """See that both libraries are whole.

    Raises:
        ModelError: audfprint2 is not installed, or another build of OpenCV lies over the one with
            `img_hash`.
    """
    _analysis()
    if not hasattr(cv2, "img_hash"):
        raise ModelError(
            "duplicates: cv2.img_hash is missing: opencv-python lies over opencv-contrib-python; "
            "put the latter in again, as the Makefile does"
        )


@functools.lru_cache(maxsize=1)
def _analysis() -> Any:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        return importlib.import_module("audfprint2.core.analyzer")
    except ImportError as error:
        raise ModelError(f"duplicates: the package {_PACKAGE} is not installed: {error}") from None
    finally:  # the import makes every library's small talk appear on stderr
        root.setLevel(level)
        root.handlers[:] = handlers
