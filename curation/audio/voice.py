"""Voice embedding: Resemblyzer's speaker encoder, three layers of LSTM over mel bands, run in torch.

Source: Wan et al., Generalized End-to-End Loss for Speaker Verification (ICASSP 2018); weights and
preprocessing of Resemblyzer 0.1.4. Silence is left out by the voice activity detector of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from talkforge.curation.audio.mel import mel_filters, slaney_corners_hz
from talkforge.curation.weights.torch import inference, load_weights, read_torch_file
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

NAME = "resemblyzer"

EMBEDDING_DIM = 256
BANDS, WINDOW_SAMPLES, HOP_SAMPLES, PIECE_FRAMES = 40, 400, 160, 160
"""Mel bands, window and hop of the spectrogram, and its frames in a piece of 1.6 s."""

HOP_FRAMES = 77
"""Frames between the starts of two pieces: 1.3 pieces a second."""

LEAST_DBFS = -30.0
"""Quieter audio is amplified to this RMS level."""

MIN_COVERAGE = 0.75
"""A last piece of which less than this is there is left out."""

MIN_SPEECH_S = 1.5
"""Least speech that is embedded. Source: ours, about one piece."""


class VoiceEncoder:
    """The network.

    Raises:
        ModelError: the file does not hold its weights.
    """

    def __init__(self, path: Path) -> None:
        import torch

        label = f"{NAME}: {path}"
        state = read_torch_file(path, label).get("model_state")
        if not isinstance(state, dict):
            raise ModelError(f"{label}: expected a checkpoint with model_state, found other keys")
        # The other two weights are those of the loss.
        kept = {key: value for key, value in state.items() if not key.startswith("similarity_")}
        layers = {
            "lstm": torch.nn.LSTM(BANDS, EMBEDDING_DIM, 3, batch_first=True),
            "linear": torch.nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM),
        }
        self._network = torch.nn.ModuleDict(layers).eval()
        load_weights(self._network, kept, label)

    def embed(self, samples: Floats) -> Floats | None:
        """Voice embedding float32 [256] of unit length, all numbers at least 0.

        Args:
            samples: speech without pauses, [N] at 16 kHz.

        Returns:
            None with less than `MIN_SPEECH_S` of speech, or in digital silence.
        """
        import torch

        if len(samples) < MIN_SPEECH_S * AUDIO_HZ or not samples.any():
            return None
        mels = torch.from_numpy(pieces(samples))
        with inference():
            _, (hidden, _) = self._network["lstm"](mels)
            found = torch.relu(self._network["linear"](hidden[-1]))
            found = torch.nn.functional.normalize(found, dim=1).mean(0)
            return np.asarray(torch.nn.functional.normalize(found, dim=0).numpy(), np.float32)


def pieces(samples: Floats) -> Floats:
    """Mel spectrograms of pieces of 1.6 s that overlap, float32 [n, 160, 40].

    Args:
        samples: [N] at 16 kHz. Silence is appended where the last piece reaches beyond them.
    """
    level = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    louder = samples * max(1.0, 10 ** (LEAST_DBFS / 20) / level)
    frames = -(-(len(samples) + 1) // HOP_SAMPLES)
    starts = list(range(0, max(1, frames - PIECE_FRAMES + HOP_FRAMES + 1), HOP_FRAMES))
    there = len(samples) / HOP_SAMPLES - starts[-1]
    if there < MIN_COVERAGE * PIECE_FRAMES and len(starts) > 1:
        starts.pop()
    missing = max((starts[-1] + PIECE_FRAMES) * HOP_SAMPLES - len(louder), 0)
    mels = spectrogram(np.pad(louder, (0, missing)))
    return np.stack([mels[start : start + PIECE_FRAMES] for start in starts])


def spectrogram(samples: np.ndarray) -> Floats:
    """Mel power, float32 [1 + N // 160, 40], of windows that are centred every 10 ms; filters of equal area.

    Args:
        samples: [N] at 16 kHz.

    Source: librosa.feature.melspectrogram.
    """
    padded = np.pad(samples.astype(np.float64), WINDOW_SAMPLES // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    hann = np.hanning(WINDOW_SAMPLES + 1)[:-1]
    corners_hz = slaney_corners_hz(BANDS)
    area_hz = (corners_hz[2:] - corners_hz[:-2])[:, None] / 2
    filters = mel_filters(BANDS, WINDOW_SAMPLES, scale="slaney") / area_hz
    return np.asarray(np.abs(np.fft.rfft(windows * hann)) ** 2 @ filters.T, np.float32)


def speech_of(samples: Floats, segments: Sequence[tuple[float, float]], start_s: float) -> Floats:
    """The speech of a clip without its pauses, [n].

    Args:
        samples: [N] at 16 kHz.
        segments: speech, (start_s, end_s), in the source.
        start_s: start of the clip, in the source.
    """
    edges = [(round((a - start_s) * AUDIO_HZ), round((b - start_s) * AUDIO_HZ)) for a, b in segments]
    found = [samples[max(a, 0) : b] for a, b in edges if b > 0 and a < len(samples)]
    return np.concatenate(found) if found else samples[:0]
