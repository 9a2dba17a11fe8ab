"""Voice activity detection (Silero VAD), and level and clipping of the audio."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.records import Speech
from talkforge.schemas.units import samples_from_seconds, seconds_from_samples

CHUNK_SAMPLES, CONTEXT_SAMPLES = 512, 64
"""Samples that get one probability, and samples before them that the network sees too. Source: Silero VAD."""

BLOCK_CHUNKS = 512
"""Chunks in one detector call: 16 s of audio, so that memory does not grow with the length of the audio."""

SPEECH_THRESHOLD = 0.5
"""Probability from which a chunk opens a segment. Source, like the next four: Silero VAD's own
defaults, `get_speech_timestamps` in silero-vad 6."""

SILENCE_THRESHOLD = 0.35
"""Probability below which a chunk may close an open segment. It is lower than the other, for hysteresis."""

MIN_SPEECH_S = 0.25
"""Shorter segments are not speech, seconds."""

MIN_SILENCE_S = 0.1
"""Shorter gaps do not close a segment, seconds."""

SPEECH_PAD_S = 0.03
"""Length by which segments grow at either end, or half of the gap between two if that is less, seconds."""

CLIPPED_LEVEL = 0.999
"""Magnitude from which a sample counts as clipped; full scale is 1."""

SILENCE_DBFS = -120.0
"""Lowest loudness, which digital silence has, dB relative to full scale."""

# --------------------------------------------------------------------------- voice activity


@functools.lru_cache(maxsize=1)
def _detector() -> onnxruntime.InferenceSession:
    path = registry.weights("silero_vad")
    return open_onnx(path, f"silero_vad: {path.name}")


def speech_probabilities(samples: Floats) -> NDArray[np.float64]:
    """Silero's probability of speech in each chunk of 32 ms.

    This export of the network takes many chunks in a call. Its results equal those of the export for single
    chunks.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz.

    Returns:
        float64 [ceil(N / 512)], 0 to 1.
    """
    expect_shape("samples", samples, (None,))
    if not len(samples):
        return np.zeros(0)
    padded = np.pad(np.asarray(samples, np.float32), (CONTEXT_SAMPLES, -len(samples) % CHUNK_SAMPLES))
    chunks = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT_SAMPLES + CHUNK_SAMPLES)
    chunks = chunks[::CHUNK_SAMPLES]
    state, cell = np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
    found = []
    for first in range(0, len(chunks), BLOCK_CHUNKS):
        block = np.ascontiguousarray(chunks[first : first + BLOCK_CHUNKS])
        probabilities, state, cell = _detector().run(None, {"input": block, "h": state, "c": cell})
        found.append(probabilities)
    return np.concatenate(found).astype(np.float64)


def segments(samples: Floats, start_s: float) -> list[tuple[float, float]]:
    """Spans of speech in audio.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz.
        start_s: time of the first sample, seconds.

    Returns:
        Half-open (start_s, end_s) on the same clock, in order, disjoint, within the samples.
    """
    probabilities = speech_probabilities(samples)
    spans = _spans(probabilities, CHUNK_SAMPLES, len(samples))
    padded = _pad(spans, len(samples))
    return [(start_s + seconds_from_samples(a), start_s + seconds_from_samples(b)) for a, b in padded]


def joined(*spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of several lists of spans, in order and disjoint."""
    found: list[tuple[float, float]] = []
    for a, b in sorted(span for own in spans for span in own):
        if found and a <= found[-1][1]:
            found[-1] = (found[-1][0], max(b, found[-1][1]))
        else:
            found.append((a, b))
    return found


def _spans(probabilities: NDArray[np.float64], chunk_samples: int, num_samples: int) -> list[tuple[int, int]]:
    """Runs of speech in samples, with hysteresis. Source: silero-vad, `get_speech_timestamps`."""
    min_speech, min_silence = samples_from_seconds(MIN_SPEECH_S), samples_from_seconds(MIN_SILENCE_S)
    spans: list[tuple[int, int]] = []
    opened: int | None = None
    fell: int | None = None
    for index, probability in enumerate(probabilities):
        here = index * chunk_samples
        if probability >= SPEECH_THRESHOLD:
            fell = None
            opened = here if opened is None else opened
        elif opened is not None and probability < SILENCE_THRESHOLD:
            fell = here if fell is None else fell
            if here - fell >= min_silence:
                spans.append((opened, fell))
                opened = fell = None
    if opened is not None:
        spans.append((opened, num_samples))
    return [(a, b) for a, b in spans if b - a > min_speech]


def _pad(spans: list[tuple[int, int]], num_samples: int) -> list[tuple[int, int]]:
    """Spans extended by `SPEECH_PAD_S` at either end; two that would meet divide the gap between them."""
    pad = samples_from_seconds(SPEECH_PAD_S)
    ends = [0, *(b for _, b in spans)]
    starts = [*(a for a, _ in spans[1:]), num_samples]
    padded = []
    for index, ((a, b), before, after) in enumerate(zip(spans, ends, starts, strict=False)):
        room_before = a - before if index == 0 else (a - before) // 2
        room_after = after - b if index == len(spans) - 1 else (after - b) // 2
        padded.append((a - min(pad, room_before), b + min(pad, room_after)))
    return padded


def speech_s(spans: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    """Seconds of [start_s, end_s) that lie in `spans`, which must not overlap each other."""
    return sum(max(0.0, min(b, end_s) - max(a, start_s)) for a, b in spans)


def measure(samples: Floats, spans: Sequence[tuple[float, float]], start_s: float, end_s: float) -> Speech:
    """Fraction of speech, loudness and clipping of a clip.

    Args:
        samples: float32 [N] in [-1, 1], the clip's audio at 16 kHz.
        spans: speech as `segments` returns it, on the clock of `start_s` and `end_s`.
        start_s: start of the clip, seconds.
        end_s: end of the clip, seconds.
    """
    expect_shape("samples", samples, (None,))
    length_s = end_s - start_s
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    floor = 10.0 ** (SILENCE_DBFS / 10.0)
    clipped = float(np.mean(np.abs(samples) >= CLIPPED_LEVEL)) if len(samples) else 0.0
    return Speech(
        speech_fraction=round(min(1.0, speech_s(spans, start_s, end_s) / length_s), 4)
        if length_s > 0
        else 0.0,
        loudness_dbfs=round(10.0 * float(np.log10(max(power, floor))), 2),
        clipped_fraction=round(clipped, 6),
    )
