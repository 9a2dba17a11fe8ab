"""How good is the sound: noise, bandwidth, how people would rate it, and whether there is music.

Sound is mono at 16 kHz, as everywhere: what lies above 8 kHz is not heard here. Level and clipping
are in `curation.audio.vad`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.signal

from talkforge.curation.audio.music import MusicDetector
from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.config import AudioQualityConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import AudioQuality
from talkforge.schemas.units import AUDIO_HZ

FRAME_S = 0.02
"""Length of the frames whose power is compared, seconds."""

GUARD_S = 0.1
"""Sound this near to speech is neither speech nor pause: breath, and the tail of a room, seconds."""

MIN_PAUSE_S = 0.2
"""With less of a pause than this, all in all, the noise is unknown, seconds."""

SNR_RANGE_DB = (-20.0, 100.0)
"""Ratios beyond these are given as these: digital silence between words has no noise at all."""

BANDWIDTH_DROP_DB = 60.0
"""Below the loudest band by this much there is nothing. Source: ours; the loud moments of real speech
recorded at 16 kHz or more stay above this up to 8 kHz, behind a telephone's filter up to 5 kHz."""

DNSMOS_SAMPLES = 144_160
"""Samples that DNSMOS sees at a time: 9.01 s. Shorter sound is repeated. Source: Reddy et al.,
DNSMOS P.835 (ICASSP 2022), and its published evaluation."""

DNSMOS_HOP_S = 3.0
"""Time between the beginnings of two such windows, seconds. Source: ours; the published script has
1 s, at three times the cost, which moves the scores of real speech by up to 0.05."""

_DNSMOS_FIT = (
    np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
    np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
    np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
)
"""From the network's output to opinion scores: signal, background, overall. Source: as above."""


class AudioScorer:
    """Measures the sound of clips; loads its model once.

    Raises:
        ModelError: a model that is asked for cannot be had; one line.
    """

    def __init__(self, config: AudioQualityConfig) -> None:
        self._dnsmos = _session(registry.weights("dnsmos")) if config.dnsmos else None
        self._music = MusicDetector() if config.music else None

    def measure(self, samples: Floats, spans: Sequence[tuple[float, float]], start_s: float) -> AudioQuality:
        """What the sound of a clip is like.

        Args:
            samples: float32 [N], the clip's audio at 16 kHz.
            spans: speech as `speech.segments` gives it; those outside the clip are left out.
            start_s: the clip's start in the same clock, seconds.
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
    """Power of the speech over that of the pauses, dB, limited to `SNR_RANGE_DB`.

    The noise is the median power of the frames in pauses, which a cough does not move; it is
    taken off the mean power of the frames with speech. None: no speech, or hardly a pause.
    """
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
    noise = float(np.median(powers[~near]))
    speech = float(powers[speaking].mean()) - noise
    low, high = SNR_RANGE_DB
    if speech <= 0:
        return low
    ratio = 10 * np.log10(speech) - 10 * np.log10(max(noise, 1e-30))
    return round(float(np.clip(ratio, low, high)), 2)


def bandwidth_hz(samples: Floats) -> float | None:
    """Highest frequency within `BANDWIDTH_DROP_DB` of the loudest, 0 to 8000; None in silence.

    Of each frequency its loud moments count (the 95th percentile over 32 ms windows): consonants
    that hiss are what reaches high, and there are few of them.
    """
    window = 512
    if len(samples) < window or not np.any(samples):
        return None
    hz, _, power = scipy.signal.spectrogram(
        samples.astype(np.float64), AUDIO_HZ, "hann", window, window // 2, detrend=False
    )
    loud = np.percentile(power, 95, axis=1)
    # Over 280 Hz, so that a single whistle is no band.
    typical = scipy.signal.medfilt(loud, 9)
    present = typical >= typical.max() * 10 ** (-BANDWIDTH_DROP_DB / 10)
    return float(hz[np.flatnonzero(present)[-1]])


# --- model -------------------------------------------------------------------------------------------


def _session(path: Path) -> onnxruntime.InferenceSession:
    session = open_onnx(path, f"dnsmos: {path}")
    shapes = [list(i.shape)[1:] for i in session.get_inputs()]
    if shapes != [[DNSMOS_SAMPLES]]:
        raise ModelError(f"dnsmos: {path}: expected input [any, {DNSMOS_SAMPLES}], found {shapes}")
    return session


def _opinions(session: onnxruntime.InferenceSession, samples: Floats) -> tuple[float, float, float]:
    """Signal, background, overall: means over windows that begin `DNSMOS_HOP_S` apart."""
    doublings = max(0, int(np.ceil(np.log2(DNSMOS_SAMPLES / len(samples)))))
    repeated = np.tile(samples, 2**doublings)
    starts = range(0, len(repeated) - DNSMOS_SAMPLES + 1, round(DNSMOS_HOP_S * AUDIO_HZ))
    name = session.get_inputs()[0].name
    raw = np.stack([session.run(None, {name: repeated[None, s : s + DNSMOS_SAMPLES]})[0][0] for s in starts])
    scores = [float(np.mean(fit(raw[:, k]))) for k, fit in enumerate(_DNSMOS_FIT)]
    return round(scores[0], 3), round(scores[1], 3), round(scores[2], 3)
