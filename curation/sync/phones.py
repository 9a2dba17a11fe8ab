"""Phones of the audio at each frame of a clip: log probabilities by the recogniser of the package hama.

It is a small CTC network, which runs on the CPU in the package's own engine. The package holds its weights
(4.7 MB, Apache-2.0). It has heard far more voices than there are in the footage that sync may be fitted on.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

import numpy as np

from talkforge.schemas.arrays import Doubles, Floats, Halves
from talkforge.schemas.units import AUDIO_HZ

NAME = "hama_asr"
"""Name of the recogniser in a data set's list of models."""

LICENCE = "Apache-2.0 (in the package hama); training data not told"
"""Licence of the recogniser's weights."""

PHONES = (
    "a", "aɪ", "aʊ", "b", "d", "d͡ʒ", "e", "eɪ", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "oʊ", "p",
    "s", "t", "t͡ʃ", "u", "v", "w", "z", "æ", "ð", "ŋ", "ɑ", "ɔ", "ɔɪ", "ə", "ɛ", "ɝ", "ɡ", "ɪ", "ɹ", "ʃ", "ʊ",
    "ʌ", "θ", "<wb>",
)  # fmt: skip
"""Symbols of the recogniser that it gives to English speech, and the one between words. What it gives to the
sounds of other languages besides is left out."""

NUM_PHONES = len(PHONES) + 1
"""Columns: the phones and CTC's blank."""

FLOOR = -8.0
"""Least log probability that is told apart."""

CHUNK_S, CONTEXT_S = 8.0, 0.5
"""Audio that the recogniser is given at once, and what of that on either side only serves as context. Its
attention costs the square of the length."""

_HOP = 320
"""Samples between the frames of the recogniser (50 Hz)."""

_LEAST = 1600
"""Least samples that the recogniser is given; shorter audio is padded with silence."""


class PhoneRecogniser:
    """The recogniser, loaded once."""

    def __init__(self) -> None:
        from hama.asr import ASRModel  # reads its weights

        model = ASRModel()
        self._session = model.session
        self._columns = [model.decoder_tokens.index(token) for token in PHONES]
        self._blank = model.blank_id

    def measure(self, samples: Floats, num_frames: int, fps: float) -> Halves:
        """Log probability of each phone at the time of each frame.

        Those of the phones are given that it is no blank: CTC gives most frames to the blank, and which phone
        is nearest shows only beside it.

        Args:
            samples: float32 [N] in [-1, 1] at 16 kHz; sample 0 belongs to frame 0.
            num_frames: frames of the clip, F.
            fps: frame rate of the clip.

        Returns:
            float16 [F, NUM_PHONES], at least `FLOOR`; the last column is that of the blank.
        """
        if not num_frames:
            return np.zeros((0, NUM_PHONES), np.float16)
        found = self._log_probabilities(samples)
        phones = found[:, self._columns]
        phones = phones - np.logaddexp.reduce(phones, axis=1, keepdims=True)
        columns = np.maximum(np.concatenate([phones, found[:, [self._blank]]], axis=1), FLOOR)
        # Frame j of the recogniser is centred on sample (j + 1/2) * hop.
        wanted = np.clip(np.arange(num_frames) / fps * AUDIO_HZ / _HOP - 0.5, 0, len(columns) - 1)
        before = np.floor(wanted).astype(np.int64)
        weight = (wanted - before)[:, None]
        after = columns[np.minimum(before + 1, len(columns) - 1)]
        return np.asarray(columns[before] * (1 - weight) + after * weight, np.float16)

    def _log_probabilities(self, samples: Floats) -> Doubles:
        """[T, tokens] at 50 Hz of the whole audio, chunk by chunk."""
        chunk, context = round(CHUNK_S * AUDIO_HZ / _HOP), round(CONTEXT_S * AUDIO_HZ / _HOP)
        total, kept = max(len(samples) // _HOP, 1), []
        for begin in range(0, total, chunk):
            first = max(begin - context, 0)
            part = samples[first * _HOP : (begin + chunk + context) * _HOP].astype(np.float32)
            part = np.pad(part, (0, max(_LEAST - len(part), 0)))
            feeds = {"waveform": part[None], "waveform_lengths": np.array([len(part)], np.int64)}
            values, lengths = self._session.run(["log_probs", "out_lengths"], feeds)
            values = np.asarray(values[0][: int(lengths[0])], np.float64)
            kept.append(values[begin - first : min(begin + chunk, total) - first])
        return np.concatenate(kept)


@functools.lru_cache(maxsize=1)
def weights_sha256() -> str:
    """sha256 of the recogniser's weights, as the installed package holds them."""
    return hashlib.sha256((resources.files("hama.assets") / "asr_waveform.hama").read_bytes()).hexdigest()
