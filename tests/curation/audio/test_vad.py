"""Voice activity against real clips; log-mel features against tones and silence."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.audio import speech_encoders, vad
from talkforge.curation.media import probe
from talkforge.schemas.config import SpeechConfig
from talkforge.schemas.records import Input
from talkforge.schemas.units import AUDIO_HZ
from tests.conftest import RealClip

RNG = np.random.default_rng(7)


def noise(num_samples: int, level: float = 0.1) -> vad.Floats:
    return (level * RNG.standard_normal(num_samples)).astype(np.float32)


def mono(path: Path) -> vad.Floats:
    """The clip's audio at 16 kHz, from the start of its picture to the end."""
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    return media.read_audio(path, video, video.start_s, video.end_s)


# --------------------------------------------------------------------------- voice activity


def chunks(*runs: tuple[float, int]) -> np.ndarray:
    """Probabilities: (value, how many chunks) one after the other."""
    return np.concatenate([np.full(count, value) for value, count in runs])


def spans(probabilities: np.ndarray) -> list[tuple[int, int]]:
    return vad._spans(probabilities, 512, len(probabilities) * 512)


def test_a_segment_opens_at_the_threshold_and_closes_where_it_fell() -> None:
    assert spans(chunks((0.1, 5), (0.5, 10), (0.1, 10))) == [(5 * 512, 15 * 512)]
    assert spans(chunks((0.1, 5), (0.49, 10), (0.1, 10))) == []


def test_between_the_thresholds_a_segment_stays_open() -> None:
    assert spans(chunks((0.9, 10), (0.4, 20), (0.9, 10), (0.1, 5))) == [(0, 40 * 512)]


def test_a_gap_shorter_than_the_least_silence_does_not_split() -> None:
    assert spans(chunks((0.9, 10), (0.1, 3), (0.9, 10))) == [(0, 23 * 512)]
    assert spans(chunks((0.9, 10), (0.1, 5), (0.9, 10))) == [(0, 10 * 512), (15 * 512, 25 * 512)]


def test_a_segment_of_a_quarter_second_or_less_is_dropped() -> None:
    assert spans(chunks((0.9, 7), (0.1, 9))) == []  # 224 ms
    assert spans(chunks((0.9, 8), (0.1, 9))) == [(0, 8 * 512)]  # 256 ms


def test_padding_stays_inside_and_shares_a_short_gap() -> None:
    assert vad._pad([(100, 8000), (8400, 16000)], 16100) == [(0, 8200), (8200, 16100)]
    assert vad._pad([(4000, 8000), (12000, 16000)], 20000) == [(3520, 8480), (11520, 16480)]
    assert vad._pad([], 100) == []


def test_silence_and_nothing_hold_no_speech() -> None:
    assert vad.segments(np.zeros(3 * AUDIO_HZ, np.float32), 5.0) == []
    assert vad.segments(np.zeros(0, np.float32), 5.0) == []
    assert vad.segments(noise(3 * AUDIO_HZ), 0.0) == []


def test_segments_lie_on_the_source_clock_and_leave_no_state_behind(real_clip: RealClip) -> None:
    samples = mono(real_clip("grid_brbk7n.mpg"))
    first = vad.segments(samples, 0.0)
    vad.segments(mono(real_clip("grid_lrwp9a.mpg")), 0.0)
    assert vad.segments(samples, 0.0) == first
    later = vad.segments(samples, 100.0)
    np.testing.assert_allclose(later, np.add(first, 100.0))
    assert all(0.0 <= a < b <= len(samples) / AUDIO_HZ for a, b in first)
    assert all(b < c for (_, b), (c, _) in pairwise(first))


def test_speech_moves_with_the_silence_before_it(real_clip: RealClip) -> None:
    samples = mono(real_clip("grid_id2_swwp2s.mpg"))
    lead = np.zeros(62 * 512, np.float32)
    plain, moved = vad.segments(samples, 0.0), vad.segments(np.concatenate([lead, samples]), 0.0)
    shift_s = len(lead) / AUDIO_HZ
    assert len(plain) == len(moved)
    assert moved[-1][1] - shift_s == pytest.approx(plain[-1][1], abs=0.1)


@pytest.mark.parametrize(
    ("clip", "spans"),
    [
        ("grid_brbk7n.mpg", [(8224, 34784)]),
        ("st_katie.mp4", [(1056, 19424), (21024, 76256), (83488, 128000)]),
        ("lp_s18.mp4", []),  # music
    ],
)
def test_segments_are_those_of_the_network_for_single_chunks(
    real_clip: RealClip, clip: str, spans: list[tuple[int, int]]
) -> None:
    """Samples, from silero-vad 6.2.3's `silero_vad_16k_op15.onnx`, one chunk of 512 a call."""
    found = vad.segments(mono(real_clip(clip)), 0.0)
    assert [(round(a * AUDIO_HZ), round(b * AUDIO_HZ)) for a, b in found] == spans


def test_probabilities_do_not_depend_on_how_the_sound_is_divided(
    real_clip: RealClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = mono(real_clip("grid_lrwp9a.mpg"))
    whole = vad.speech_probabilities(samples)
    assert len(whole) == -(-len(samples) // 512)
    assert whole.min() >= 0 and whole.max() > 0.9
    monkeypatch.setattr(vad, "BLOCK_CHUNKS", 7)
    assert vad.speech_probabilities(samples).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("clip", "least", "most"),
    [
        ("lp_s18.mp4", 0.0, 0.0),
        ("grid_bbaf2n.mpg", 0.4, 0.8),
        ("grid_brbk7n.mpg", 0.5, 0.8),
        ("grid_id2_swwp2s.mpg", 0.5, 0.8),
        ("grid_lrwp9a.mpg", 0.5, 0.8),
        ("st_katie.mp4", 0.85, 1.0),
        ("ls_demo3.mp4", 0.85, 1.0),
    ],
)
def test_speech_fraction_of_real_clips(real_clip: RealClip, clip: str, least: float, most: float) -> None:
    samples = mono(real_clip(clip))
    end_s = len(samples) / AUDIO_HZ
    fraction = vad.measure(samples, vad.segments(samples, 0.0), 0.0, end_s).speech_fraction
    assert least <= fraction <= most


# --------------------------------------------------------------------------- measures


def test_measure_counts_only_what_lies_in_the_clip() -> None:
    samples = np.zeros(4 * AUDIO_HZ, np.float32)
    heard = vad.measure(samples, [(0.0, 11.0), (12.0, 12.5), (13.5, 99.0)], 10.0, 14.0)
    assert heard.speech_fraction == 0.5
    assert vad.measure(samples, [], 10.0, 14.0).speech_fraction == 0.0


def test_loudness_of_known_signals() -> None:
    square = np.tile(np.float32([0.5, -0.5]), AUDIO_HZ)
    assert vad.measure(square, [], 0.0, 2.0).loudness_dbfs == -6.02
    assert vad.measure(np.zeros(16000, np.float32), [], 0.0, 1.0).loudness_dbfs == -120.0
    assert vad.measure(np.zeros(0, np.float32), [], 0.0, 1.0).loudness_dbfs == -120.0


def test_clipped_fraction() -> None:
    samples = np.zeros(1000, np.float32)
    samples[:10], samples[10:30], samples[30:40] = 1.0, -0.9991, 0.998
    assert vad.measure(samples, [], 0.0, 1.0).clipped_fraction == 0.03


# --------------------------------------------------------------------------- log-mel


def test_logmel_has_exact_length_and_type() -> None:
    encoder = speech_encoders.load_speech_encoder(SpeechConfig())
    assert (encoder.name, encoder.dim, encoder.sha256) == ("logmel-80", 80, "")
    clips, lengths = [noise(48_000), noise(100), noise(0), noise(16_000)], [150, 3, 2, 0]
    encoded = encoder.encode(clips, lengths)
    assert [matrix.shape for matrix in encoded] == [(150, 80), (3, 80), (2, 80), (0, 80)]
    assert all(matrix.dtype == np.float16 and np.isfinite(matrix).all() for matrix in encoded)


def test_logmel_of_silence_is_the_floor() -> None:
    (matrix,) = speech_encoders.load_speech_encoder(SpeechConfig()).encode(
        [np.zeros(32_000, np.float32)], [100]
    )
    assert (matrix == np.float16((np.log(1e-10) + 9) / 4)).all()


@pytest.mark.parametrize("tone_hz", [100.0, 440.0, 1000.0, 5000.0])
def test_logmel_puts_a_tone_into_its_band(tone_hz: float) -> None:
    times_s = np.arange(AUDIO_HZ) / AUDIO_HZ
    tone = (0.5 * np.sin(2 * np.pi * tone_hz * times_s)).astype(np.float32)
    (matrix,) = speech_encoders.load_speech_encoder(SpeechConfig()).encode([tone], [49])
    mel = 2595.0 * np.log10(1.0 + tone_hz / 700.0)
    expected = mel / (2595.0 * np.log10(1.0 + 8000.0 / 700.0)) * 81 - 1
    assert np.abs(matrix.argmax(axis=1) - expected).max() <= 1.0


def test_logmel_frame_j_sees_samples_320j_to_320j_plus_400() -> None:
    samples = np.zeros(32_000, np.float32)
    samples[320 * 30 + 200] = 1.0
    (matrix,) = speech_encoders.load_speech_encoder(SpeechConfig()).encode([samples], [100])
    heard = (matrix > np.float16(-2.75)).any(axis=1)
    assert np.flatnonzero(heard).tolist() == [30]


def test_spans_are_joined_where_they_meet_or_overlap() -> None:
    assert vad.joined([(1.0, 2.0), (5.0, 6.0)], [(2.0, 3.0), (5.5, 5.8), (8.0, 9.0)], []) == [
        (1.0, 3.0),
        (5.0, 6.0),
        (8.0, 9.0),
    ]
    assert vad.joined() == []
