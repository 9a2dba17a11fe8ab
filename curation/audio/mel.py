"""Mel filter bank: triangular filters that turn a power spectrum at 16 kHz into mel bands."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from talkforge.schemas.units import AUDIO_HZ


@functools.cache
def mel_filters(
    num_bands: int,
    fft_samples: int,
    *,
    low_hz: float = 0.0,
    high_hz: float = AUDIO_HZ / 2,
    linear_in: Literal["hz", "bins", "mel"] = "hz",
    scale: Literal["htk", "slaney"] = "htk",
) -> NDArray[np.float64]:
    """Triangular filters with a peak of 1, whose corners are evenly spaced on the mel scale.

    Filter b rises from corner b to corner b + 1 and falls to corner b + 2. Its sides are straight lines
    over `linear_in`, which is what the published filter banks differ in.

    Args:
        num_bands: number of filters, B.
        fft_samples: length N of the FFT of audio at 16 kHz.
        low_hz: first corner, Hz.
        high_hz: last corner, Hz, at most 8000.
        linear_in: "hz": over frequency, as in HTK. "bins": over FFT bins, with each corner rounded down
            to a bin, as in python_speech_features. "mel": over the mel scale, as in Kaldi.
        scale: the mel scale on which corners are evenly spaced: HTK's, or Slaney's from 0 to 8000 Hz with
            `linear_in` "hz", as in librosa.

    Returns:
        float64 [B, N // 2 + 1], the weight of each FFT bin in each band, 0 to 1. Read-only, because
        equal calls share it.

    Source: HTK book 5.4; Lyons et al., python_speech_features 0.6, `get_filterbanks`; Kaldi,
    `compute-fbank-feats`.
    """
    bins_hz = np.asarray(np.fft.rfftfreq(fft_samples, 1.0 / AUDIO_HZ), np.float64)
    if scale == "slaney":
        return _triangles(slaney_corners_hz(num_bands), bins_hz)
    if linear_in == "mel":
        corners = np.linspace(_kaldi_mel(low_hz), _kaldi_mel(high_hz), num_bands + 2)
        return _triangles(corners, _kaldi_mel(bins_hz))
    low_mel, high_mel = 2595.0 * np.log10(1.0 + np.array([low_hz, high_hz]) / 700.0)
    corners_hz = 700.0 * (10.0 ** (np.linspace(low_mel, high_mel, num_bands + 2) / 2595.0) - 1.0)
    if linear_in == "hz":
        return _triangles(corners_hz, bins_hz)
    corners = np.floor((fft_samples + 1) * corners_hz / AUDIO_HZ)
    return _triangles(corners, np.arange(len(bins_hz), dtype=np.float64))


def slaney_corners_hz(num_bands: int) -> NDArray[np.float64]:
    """Corners of `num_bands` filters, evenly spaced on Slaney's mel scale from 0 to 8000 Hz: [num_bands + 2].

    The scale is linear up to 1000 Hz and logarithmic from there on. Source: Slaney, Auditory Toolbox (1998).
    """
    step_hz, knee_hz, octave = 200 / 3, 1000.0, np.log(6.4) / 27
    knee = knee_hz / step_hz
    mels = np.linspace(0, knee + np.log(AUDIO_HZ / 2 / knee_hz) / octave, num_bands + 2)
    return np.asarray(np.where(mels < knee, mels * step_hz, knee_hz * np.exp((mels - knee) * octave)))


def _triangles(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heights [B, P] at P points of the B triangles between B + 2 ascending corners."""
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    # Left of the peak the rising line is the lower of the two, right of it the falling one.
    rising, falling = (points - low) / (peak - low), (high - points) / (high - peak)
    heights: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    heights.setflags(write=False)
    return heights


def _kaldi_mel(hz: ArrayLike) -> NDArray[np.float64]:
    """The mel scale as Kaldi writes it: 1127 ln(1 + f / 700), which is 2595 log10(1 + f / 700) but for
    the rounding of its constant."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0))
