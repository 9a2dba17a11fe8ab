"""Audio quality: signal-to-noise ratio, bandwidth, DNSMOS opinion scores, and music.

Audio is mono at 16 kHz, as everywhere, so what lies above 8 kHz is not measured. Level and clipping are
in `curation.audio.vad`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from talkforge.curation.audio.music import MusicDetector
from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Doubles, Floats, expect_shape
from talkforge.schemas.config import AudioQualityConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import AudioQuality
from talkforge.schemas.units import AUDIO_HZ

FRAME_S = 0.02
"""Length of the frames whose power is compared, seconds."""

GUARD_S = 0.1
"""Audio this near to speech counts neither as speech nor as pause, for breath and reverberation, seconds."""

MIN_PAUSE_S = 0.2
"""Least total length of the pauses from which the noise is measured, seconds."""

MIN_SPEECH_S = 1.0
"""Least total length of the speech from whose spectral floor the noise is measured, seconds."""

FLOOR_QUANTILE = 0.1
"""The noise in a frequency band is this quantile of its power during speech, scaled to a mean. Speech leaves
every band now and then, so the quantile is of noise alone. Source: Stahl et al., Quantile based noise
estimation for spectral subtraction and Wiener filtering (ICASSP 2000), who take the median of speech with
pauses; 0.1 is ours, for speech without."""

SNR_RANGE_DB = (-20.0, 100.0)
"""Range to which the ratio is clipped, because digital silence between words has no noise at all, dB."""

_WINDOW_SAMPLES, _HOP_SAMPLES = 512, 256

BANDWIDTH_DROP_DB = 60.0
"""Level below the loudest frequency at which the band ends, dB. Source: ours; the peaks of real speech
recorded at 16 kHz or more stay above this up to 8 kHz, those behind a telephone's filter up to 5 kHz."""

DNSMOS_SAMPLES = 144_160
"""Samples that DNSMOS takes at a time: 9.01 s. Shorter audio is repeated. Source: Reddy et al.,
DNSMOS P.835 (ICASSP 2022), and its published evaluation."""

DNSMOS_HOP_S = 3.0
"""Time between the beginnings of two such windows, seconds. Source: ours; the published script has 1 s, at
three times the cost, which moves the scores of real speech by up to 0.05."""

_DNSMOS_FIT = (
    np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
    np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
    np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
)
"""Polynomials from the network's output to opinion scores: signal, background, overall. Source: as above."""


class AudioScorer:
    """Measures the audio quality of clips. Models are loaded once.

    Args:
        config: which models are enabled.

    Raises:
        ModelError: an enabled model is not available; one line.
    """

    def __init__(self, config: AudioQualityConfig) -> None:
        self._dnsmos = _session(registry.weights("dnsmos")) if config.dnsmos else None
        self._music = MusicDetector() if config.music else None

    def measure(self, samples: Floats, spans: Sequence[tuple[float, float]], start_s: float) -> AudioQuality:
        """Measure the audio of a clip.

        Args:
            samples: float32 [N] in [-1, 1], the clip's audio at 16 kHz.
            spans: speech as `vad.segments` returns it. Spans outside the clip are ignored.
            start_s: start of the clip on the same clock, seconds.
        """
        expect_shape("samples", samples, (None,))
        voice = background = overall = None
        if self._dnsmos is not None and np.any(samples):
            voice, background, overall = _opinions(self._dnsmos, samples)
        return AudioQuality(
            snr_db=snr_db(samples, spans, start_s),
            bandwidth_hz=bandwidth_hz(samples),
            dnsmos_signal=voice,
            dnsmos_background=background,
            dnsmos_overall=overall,
            music_fraction=None if self._music is None else self._music.fraction(samples),
        )


def snr_db(samples: Floats, spans: Sequence[tuple[float, float]], start_s: float) -> float | None:
    """Signal-to-noise ratio: power of the speech over power of the noise, in `SNR_RANGE_DB`.

    The noise is measured in the pauses and in the floor of the spectrum during speech, and the higher ratio
    counts. Both take speech for noise where they err: the first where speech in a pause was not detected, the
    second where a sound is held, which limits it to about 30 dB.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz.
        spans: speech, (start_s, end_s).
        start_s: time of the first sample on the same clock, seconds.

    Returns:
        The ratio in dB; None without speech, or with less than `MIN_PAUSE_S` of pauses and less than
        `MIN_SPEECH_S` of speech.
    """
    ratios = (_snr_by_pauses_db(samples, spans, start_s), _snr_by_floor_db(samples, spans, start_s))
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _snr_by_pauses_db(samples: Floats, spans: Sequence[tuple[float, float]], start_s: float) -> float | None:
    """The noise is the median power of the frames in pauses, which a cough does not move."""
    length = round(FRAME_S * AUDIO_HZ)
    count = len(samples) // length
    frames = samples[: count * length].reshape(count, length).astype(np.float64)
    powers = np.square(frames).mean(axis=1)
    starts = start_s + np.arange(count) * FRAME_S
    speaking, near = np.zeros(count, bool), np.zeros(count, bool)
    for a, b in spans:
        speaking |= (starts >= a) & (starts + FRAME_S <= b)
        near |= (starts + FRAME_S > a - GUARD_S) & (starts < b + GUARD_S)
    if not speaking.any() or np.count_nonzero(~near) * FRAME_S < MIN_PAUSE_S:
        return None
    return _ratio_db(float(powers[speaking].mean()), float(np.median(powers[~near])))


def _snr_by_floor_db(samples: Floats, spans: Sequence[tuple[float, float]], start_s: float) -> float | None:
    """The noise is the sum over all frequencies of a low quantile of the power during speech.

    The power of stationary noise in a band is distributed exponentially: its quantile q is -ln(1 - q) times
    its mean.
    """
    times_s, _, power = _spectrogram(samples)
    speaking = np.zeros(len(times_s), bool)
    for a, b in spans:
        speaking |= (start_s + times_s >= a) & (start_s + times_s <= b)
    speaking &= power.any(axis=0)  # where the audio drops out there is no noise either
    if np.count_nonzero(speaking) * _HOP_SAMPLES / AUDIO_HZ < MIN_SPEECH_S:
        return None
    of_speech = power[:, speaking]
    floor = np.quantile(of_speech, FLOOR_QUANTILE, axis=1) / -np.log1p(-FLOOR_QUANTILE)
    return _ratio_db(float(of_speech.mean(axis=1).sum()), float(floor.sum()))


def _ratio_db(both: float, noise: float) -> float:
    """Ratio of speech to noise from the power of both together and that of the noise."""
    low, high = SNR_RANGE_DB
    if both <= noise:
        return low
    ratio = 10 * np.log10(both - noise) - 10 * np.log10(max(noise, 1e-30))
    return round(float(np.clip(ratio, low, high)), 2)


def bandwidth_hz(samples: Floats) -> float | None:
    """Highest frequency within `BANDWIDTH_DROP_DB` of the loudest.

    The loudest moments of each frequency count (95th percentile over windows of 32 ms), because hissing
    consonants reach highest and are rare.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz.

    Returns:
        Frequency in Hz, 0 to 8000; None in silence, or in less than one window.
    """
    import scipy.signal  # takes 0.3 s, because it imports scipy.stats

    if len(samples) < _WINDOW_SAMPLES or not np.any(samples):
        return None
    _, hz, power = _spectrogram(samples)
    peaks = np.percentile(power, 95, axis=1)
    # Median over 9 bins (280 Hz), so that a single whistle does not count.
    typical = scipy.signal.medfilt(peaks, 9)
    present = typical >= typical.max() * 10 ** (-BANDWIDTH_DROP_DB / 10)
    return float(hz[np.flatnonzero(present)[-1]])


def _spectrogram(samples: Floats) -> tuple[Doubles, Doubles, Doubles]:
    """Middles of the windows in seconds [T], frequencies in Hz [257], and power [257, T].

    T is 0 below one window.
    """
    import scipy.signal

    if len(samples) < _WINDOW_SAMPLES:
        return np.zeros(0), np.zeros(0), np.zeros((0, 0))
    overlap = _WINDOW_SAMPLES - _HOP_SAMPLES
    hz, times_s, power = scipy.signal.spectrogram(
        samples.astype(np.float64), AUDIO_HZ, "hann", _WINDOW_SAMPLES, overlap, detrend=False
    )
    return times_s, hz, power


# --- model -------------------------------------------------------------------------------------------


def _session(path: Path) -> onnxruntime.InferenceSession:
    session = open_onnx(path, f"dnsmos: {path}")
    shapes = [list(i.shape)[1:] for i in session.get_inputs()]
    if shapes != [[DNSMOS_SAMPLES]]:
        raise ModelError(f"dnsmos: {path}: expected input [any, {DNSMOS_SAMPLES}], found {shapes}")
    return session


def _opinions(session: onnxruntime.InferenceSession, samples: Floats) -> tuple[float, float, float]:
    """Opinion scores, 1 to 5, of signal, background and overall: means over windows `DNSMOS_HOP_S` apart."""
    doublings = max(0, int(np.ceil(np.log2(DNSMOS_SAMPLES / len(samples)))))
    repeated = np.tile(samples, 2**doublings)
    starts = range(0, len(repeated) - DNSMOS_SAMPLES + 1, round(DNSMOS_HOP_S * AUDIO_HZ))
    name = session.get_inputs()[0].name
    raw = np.stack([session.run(None, {name: repeated[None, s : s + DNSMOS_SAMPLES]})[0][0] for s in starts])
    scores = [float(np.mean(fit(raw[:, k]))) for k, fit in enumerate(_DNSMOS_FIT)]
    return round(scores[0], 3), round(scores[1], 3), round(scores[2], 3)
