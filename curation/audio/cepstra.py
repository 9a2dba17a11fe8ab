"""Mel-frequency cepstral coefficients (MFCC) as audio-visual networks take them, 100 per second."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from talkforge.curation.audio.mel import mel_filters
from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.units import AUDIO_HZ

WINDOW_SAMPLES, HOP_SAMPLES = AUDIO_HZ * 25 // 1000, AUDIO_HZ // 100
_FFT_SAMPLES, _NUM_BANDS, _PREEMPHASIS, _LIFTER = 512, 26, 0.97, 22
NUM_CEPSTRA = 13


def mfcc(samples: Floats) -> NDArray[np.float64]:
    """Mel-frequency cepstral coefficients of audio.

    The samples are rounded to 16 bits first, as in the audio files that such networks were trained on. Then:

    1. pre-emphasis: x'[n] = x[n] - 0.97 x[n - 1];
    2. rectangular windows of 25 ms every 10 ms, the last one padded with zeros;
    3. power |FFT_512|^2 / 512;
    4. 26 triangular mel bands, logarithm, orthonormal DCT-II, of which 13 coefficients are kept;
    5. coefficient n times 1 + 11 sin(pi n / 22);
    6. coefficient 0 becomes the log of the window's energy.

    Before a logarithm, 0 is replaced by 2.2e-16.

    Args:
        samples: float [N] in [-1, 1] at 16 kHz.

    Returns:
        float64 [T, 13] at 100 Hz, T = 1 + ceil((N - 400) / 160) and at least 1.

    Source: Lyons et al., python_speech_features 0.6, `mfcc` with its defaults
    (https://doi.org/10.5281/zenodo.3607820).
    """
    expect_shape("samples", samples, (None,))
    signal = np.clip(np.rint(np.asarray(samples, np.float64) * 32768), -32768, 32767)
    count = 1 + max(0, -(-(len(signal) - WINDOW_SAMPLES) // HOP_SAMPLES))
    signal[1:] -= _PREEMPHASIS * signal[:-1].copy()
    padded = np.pad(signal, (0, (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES - len(signal)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    spectrum = np.fft.rfft(windows, _FFT_SAMPLES)
    power = (spectrum.real**2 + spectrum.imag**2) / _FFT_SAMPLES
    filters = mel_filters(_NUM_BANDS, _FFT_SAMPLES, linear_in="bins")
    # einsum sums in one order whatever the number of threads.
    energies = np.einsum("tf,bf->tb", power, filters)
    cepstra = scipy.fft.dct(_log(energies), type=2, axis=1, norm="ortho")[:, :NUM_CEPSTRA]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(NUM_CEPSTRA) / _LIFTER)
    cepstra[:, 0] = _log(power.sum(axis=1))
    return np.asarray(cepstra)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.where(values == 0, np.finfo(np.float64).eps, values)))
