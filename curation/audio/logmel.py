"""Log-mel features at 50 Hz of audio at 16 kHz: the speech encoder that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from talkforge.curation.audio.mel import mel_filters
from talkforge.schemas.arrays import Floats
from talkforge.schemas.units import AUDIO_HZ, SPEECH_HZ

Features = NDArray[np.float16]


class LogMelEncoder:
    """Logarithm of 80 mel bands from 0 to 8 kHz, in 25 ms Hann windows every 20 ms.

    Window j begins at sample 320 j and is 400 samples long, which is the receptive field of wav2vec2.
    A value is (ln(max(band power, 1e-10)) + 9) / 4 for samples in [-1, 1]. Speech then lies around 0 with a
    standard deviation of about 1, and digital silence is -3.5. The values are centred because the audio
    projection of FantasyTalking has no bias and ends in a LayerNorm, which would remove the loudness from
    vectors that all point one way.

    These are plain features. They do not replace a learned speech representation.

    Source: mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987) with triangular filters as in HTK.
    """

    name = "logmel-80"
    dim = 80
    sha256 = ""

    _WINDOW_SAMPLES = 400
    _FFT_SAMPLES = 1024
    """Windows are padded to this, so that the narrowest band still spans several bins."""
    _FLOOR = 1e-10
    _CENTRE, _SCALE = -9.0, 4.0
    """Subtracted from the logarithm, and divisor. Source: ours; mean and standard deviation are -6.7 and 2.8
    to -10.2 and 3.9 on real speech."""

    def __init__(self) -> None:
        self._window = np.hanning(self._WINDOW_SAMPLES + 1)[:-1]
        # Sparse, because its product adds up in one order, whatever the number of threads.
        self._bands = scipy.sparse.csr_array(mel_filters(self.dim, self._FFT_SAMPLES))

    def encode(self, clips: Sequence[Floats], num_features: Sequence[int]) -> list[Features]:
        """See `SpeechEncoder.encode`."""
        return [self._encode(clip, count) for clip, count in zip(clips, num_features, strict=True)]

    def _encode(self, samples: Floats, num_features: int) -> Features:
        if num_features == 0:
            return np.zeros((0, self.dim), np.float16)
        hop = AUDIO_HZ // SPEECH_HZ
        fitted = fit(samples, (num_features - 1) * hop + self._WINDOW_SAMPLES)
        windows = np.lib.stride_tricks.sliding_window_view(fitted, self._WINDOW_SAMPLES)[::hop]
        spectrum = np.fft.rfft(windows * self._window, self._FFT_SAMPLES)
        power = (spectrum.real**2 + spectrum.imag**2) / np.sum(self._window**2)
        energies = (self._bands @ power.T).T
        levels = np.log(np.maximum(energies, self._FLOOR))
        features: Features = ((levels - self._CENTRE) / self._SCALE).astype(np.float16)
        return features


def fit(samples: Floats, num_samples: int) -> Floats:
    """Cut samples [N] to float32 [num_samples], or append silence."""
    kept = np.asarray(samples[:num_samples], np.float32)
    return np.pad(kept, (0, num_samples - len(kept)))
