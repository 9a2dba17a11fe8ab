"""Fingerprint of a clip: perceptual hashes of its frames and landmark hashes of its audio.

* Frames: 64-bit DCT hashes of sampled frames, by OpenCV. Source: Zauner, Implementation and
  benchmarking of perceptual image hash functions (2010).
* Audio: hashes of pairs of spectral peaks. Source: Wang, An industrial-strength audio search algorithm
  (ISMIR 2003). The peaks are picked as in Ellis, Robust landmark-based audio fingerprinting (2009), with
  the constants of his audfprint.

`curation.duplicates` compares fingerprints.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import Bytes, Doubles, Floats, expect_shape
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

AudioHashes = NDArray[np.uint64]

HASHED_FRAMES_HZ = 2.0
"""Frames hashed per second."""

HASHED_PX = 32
"""Edge to which a frame is scaled before it is hashed. Each pixel is then the mean of what it covers, so
that the hash depends neither on the frame's size nor on its noise."""

MOUTH_HZ = 25.0
"""Rate of `Fingerprint.mouth`."""

HOP_SAMPLES = 64
"""Hop between spectra, and unit of a hash's time: 4 ms at 16 kHz. Source: ours; with 16 ms, two thirds to
nine tenths of the hashes are lost where a copy begins half a hop later."""

HASH_BITS = 20
"""Bits of an audio hash without its time. From the lowest: 6 of the hops between both peaks, 6 of the
difference of their bins (two's complement), 8 of the first peak's bin. The bits above are its time."""

MIN_AUDIO_SAMPLES = AUDIO_HZ // 2
"""Shorter audio has no hashes."""

_FFT_SAMPLES, _NUM_BINS = 512, 256
_FLOOR = 1e-6
"""Magnitudes below this fraction of the largest count as this."""

_HIGH_PASS_POLE = 0.98
"""Of the filter over time that emphasises onsets in every bin."""

_MASK_BINS = 30.0
"""Standard deviation of the Gaussian with which a peak masks the bins beside it."""

_MASK_DECAY = 1 - 0.01 * 100 * np.sqrt(HOP_SAMPLES / 352.8) / 35
"""Factor by which masking fades with every hop. Source: audfprint, for a density of 100 where its default
is 20, which leaves few hashes in speech."""

_FRAME_PEAKS, _PAIRS = 5, 3
"""Most peaks of one spectrum, and most pairs that begin with one peak."""

_MIN_HOPS, _MAX_HOPS, _MAX_BINS = 2, 62, 30
"""Distance of the peaks of a pair."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a clip to recognise it: about 1.2 kB per second.

    Attributes:
        duration_s: length of the clip, seconds.
        frame_hashes: uint8 [K, 8], the 64 bits of the frame at k / HASHED_FRAMES_HZ seconds.
        face_boxes: float32 [K, 4], box of the clip's face there: x0, y0, x1, y1 as fractions of the
            frame's width and height. NaN where there was no frame to hash.
        audio_hashes: uint64 [L], ascending: time in hops of `HOP_SAMPLES` above `HASH_BITS` bits.
        mouth: [F] opening between the lips at `MOUTH_HZ`, distances of the eyes; NaN where no face was found.
            Empty where it is not known.
    """

    duration_s: float
    frame_hashes: Bytes
    face_boxes: Floats
    audio_hashes: AudioHashes
    mouth: Doubles = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        expect_shape("frame_hashes", self.frame_hashes, (None, 8))
        expect_shape("face_boxes", self.face_boxes, (len(self.frame_hashes), 4))
        expect_shape("audio_hashes", self.audio_hashes, (None,))
        expect_shape("mouth", self.mouth, (None,))


class FrameHasher:
    """Hashes the frames of one clip at `HASHED_FRAMES_HZ`.

    Args:
        num_frames: frames of the clip.
        fps: its frame rate.

    Attributes:
        hashes: uint8 [K, 8], as `Fingerprint.frame_hashes`.
        face_boxes: float32 [K, 4], as `Fingerprint.face_boxes`.
    """

    def __init__(self, num_frames: int, fps: float) -> None:
        times_s = np.arange(int(num_frames / fps * HASHED_FRAMES_HZ) + 1) / HASHED_FRAMES_HZ
        frames = np.floor(times_s * fps + 0.5).astype(int)
        self._frames = frames[frames < num_frames]
        self.hashes: Bytes = np.zeros((len(self._frames), 8), np.uint8)
        self.face_boxes: Floats = np.full((len(self._frames), 4), np.nan, np.float32)

    def is_due(self, shown: range) -> bool:
        """Whether one of these frames of the clip is sampled."""
        first, last = np.searchsorted(self._frames, (shown.start, shown.stop))
        return bool(first < last)

    def push(self, shown: range, rgb: Bytes, face_box: Floats) -> None:
        """Hash a frame if one of those that show it is sampled.

        Args:
            shown: numbers of the clip's frames that show it.
            rgb: uint8 [H, W, 3].
            face_box: float [4], x0, y0, x1, y1 in its pixels.
        """
        first, last = np.searchsorted(self._frames, (shown.start, shown.stop))
        if first < last:
            height_px, width_px = rgb.shape[:2]
            self.hashes[first:last] = hash_frame(rgb)
            self.face_boxes[first:last] = face_box / np.array([width_px, height_px] * 2, np.float32)


def hash_frame(rgb: Bytes) -> Bytes:
    """Perceptual hash uint8 [8] of a frame uint8 [H, W, 3]: the signs of its 64 lowest DCT frequencies."""
    small = cv2.resize(rgb, (HASHED_PX, HASHED_PX), interpolation=cv2.INTER_AREA)
    found: Bytes = cv2.img_hash.pHash(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))[0]
    return found


def hash_audio(samples: Floats) -> AudioHashes:
    """Landmark hashes uint64 [L] of audio [N] at 16 kHz, as `Fingerprint.audio_hashes`.

    There are none in silence, or in less than `MIN_AUDIO_SAMPLES`.
    """
    expect_shape("samples", samples, (None,))
    if len(samples) < MIN_AUDIO_SAMPLES or not np.any(samples):
        return np.zeros(0, np.uint64)
    hops, bins = np.nonzero(_peaks(_onsets(samples)))
    first, second = _pairs(hops, bins)
    difference = (bins[second] - bins[first]) & 63
    hashes = (bins[first] << 12) | (difference << 6) | (hops[second] - hops[first])
    return np.unique((hops[first] << HASH_BITS) | hashes).astype(np.uint64)


def _onsets(samples: Floats) -> NDArray[np.float64]:
    """Log spectrogram [T, 256] of samples [N], each bin high-passed over time; T = 1 + N // 64."""
    padded = np.pad(samples, _FFT_SAMPLES // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FFT_SAMPLES)[::HOP_SAMPLES]
    magnitudes = np.abs(np.fft.rfft(windows * np.hanning(_FFT_SAMPLES + 2)[1:-1]))
    levels = np.log(np.maximum(magnitudes, magnitudes.max() * _FLOOR))
    # Without their mean, so that the filter does not answer to the beginning of the clip.
    levels = (levels - levels.mean())[:, :_NUM_BINS]
    filtered: NDArray[np.float64] = levels.copy()
    for now in range(1, len(levels)):
        # y[t] = x[t] - x[t - 1] + 0.98 y[t - 1]
        filtered[now] += _HIGH_PASS_POLE * filtered[now - 1] - levels[now - 1]
    return filtered


def _peaks(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which bins of a spectrogram [T, 256] are peaks: local maxima over the bins that no other peak masks.

    A peak of level v masks what lies below v exp(-(distance in bins)^2 / (2 * 30^2)) * decay^hops. A pass
    forwards in time removes what an earlier peak masks, a pass backwards what a later one does.
    """
    maxima = _local_maxima(levels)
    begin = levels[:10].max(axis=0)
    peaks = np.zeros_like(maxima)
    mask = _masking(begin, _local_maxima(begin))
    for hop, (level, is_maximum) in enumerate(zip(levels, maxima, strict=True)):
        found = _by_level(level, is_maximum & (level > mask))[:_FRAME_PEAKS]
        peaks[hop, found] = True
        mask = np.maximum(mask, _masking(level, found)) * _MASK_DECAY
    mask = _masking(levels[-1], maxima[-1])
    for hop in reversed(range(len(levels))):
        level = levels[hop]
        for peak in _by_level(level, peaks[hop]):
            if level[peak] >= mask[peak]:
                mask = np.maximum(mask, level[peak] * _MASK[peak])
            else:
                peaks[hop, peak] = False
        mask = mask * _MASK_DECAY
    # Of a peak that goes on in the same bin only the first hop counts.
    peaks[1:] &= ~peaks[:-1]
    return peaks


_MASK = np.exp(-0.5 * (np.subtract.outer(np.arange(_NUM_BINS), np.arange(_NUM_BINS)) / _MASK_BINS) ** 2)
"""[256, 256]: how much of a peak's level masks each other bin."""


def _masking(level: NDArray[np.float64], peaks: NDArray[np.bool_] | NDArray[np.intp]) -> NDArray[np.float64]:
    """Level [256] below which these peaks of a spectrum [256] mask the others; at least 0."""
    return np.asarray((level[peaks, None] * _MASK[peaks]).max(axis=0, initial=0.0))


def _local_maxima(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which bins of [..., 256] are above the next one and not below the one before."""
    rises = np.diff(levels, prepend=-np.inf) >= 0
    falls = np.diff(levels, append=-np.inf) < 0
    return np.asarray(rises & falls)


def _by_level(level: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The chosen bins, the highest level first."""
    bins = np.flatnonzero(chosen)
    return bins[np.argsort(level[bins], kind="stable")[::-1]]


def _pairs(hops: NDArray[np.intp], bins: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of both peaks of every pair. Each peak is paired with the next ones in its reach.

    Args:
        hops: time [P] of the peaks, ascending.
        bins: their frequency [P].
    """
    begin = np.searchsorted(hops, hops + _MIN_HOPS)
    counts = np.searchsorted(hops, hops + _MAX_HOPS, "right") - begin
    first = np.repeat(np.arange(len(hops)), counts)
    # Entry n of a peak's run is the n-th peak in its reach: begin + n.
    runs = np.cumsum(counts) - counts
    second = np.arange(len(first)) + np.repeat(begin - runs, counts)
    near = np.abs(bins[second] - bins[first]) <= _MAX_BINS
    first, second = first[near], second[near]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    return first[rank < _PAIRS], second[rank < _PAIRS]


def check_installed() -> None:
    """Check that OpenCV has its module `img_hash`.

    Raises:
        ModelError: another build of OpenCV lies over the one with `img_hash`.
    """
    if not hasattr(cv2, "img_hash"):
        raise ModelError(
            "duplicates: cv2.img_hash is missing: opencv-python lies over opencv-contrib-python; "
            "put the latter in again, as the Makefile does"
        )
