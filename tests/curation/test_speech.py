"""Voice activity against real clips; encoders against tones, silence and a small wav2vec2."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

from curation import media, probe, speech, speech_features
from schemas.config import SpeechConfig
from schemas.errors import ModelError
from schemas.records import Source
from schemas.units import AUDIO_HZ

RNG = np.random.default_rng(7)


def noise(num_samples: int, level: float = 0.1) -> speech.Floats:
    return (level * RNG.standard_normal(num_samples)).astype(np.float32)


def mono(path: Path) -> speech.Floats:
    """The clip's audio at 16 kHz, from the start of its picture to the end."""
    video = probe.probe(path, Source(uri=path.name), probe.content_hash(path))
    return media.read_audio(path, video, video.start_s, video.end_s)


# --------------------------------------------------------------------------- voice activity


def chunks(*runs: tuple[float, int]) -> np.ndarray:
    """Probabilities: (value, how many chunks) one after the other."""
    return np.concatenate([np.full(count, value) for value, count in runs])


def spans(probabilities: np.ndarray) -> list[tuple[int, int]]:
    return speech._spans(probabilities, 512, len(probabilities) * 512)


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
    assert speech._pad([(100, 8000), (8400, 16000)], 16100) == [(0, 8200), (8200, 16100)]
    assert speech._pad([(4000, 8000), (12000, 16000)], 20000) == [(3520, 8480), (11520, 16480)]
    assert speech._pad([], 100) == []


def test_silence_and_nothing_hold_no_speech() -> None:
    assert speech.segments(np.zeros(3 * AUDIO_HZ, np.float32), 5.0) == []
    assert speech.segments(np.zeros(0, np.float32), 5.0) == []
    assert speech.segments(noise(3 * AUDIO_HZ), 0.0) == []


def test_segments_lie_on_the_source_clock_and_leave_no_state_behind(clips_dir: Path) -> None:
    samples = mono(clips_dir / "grid_brbk7n.mpg")
    first = speech.segments(samples, 0.0)
    speech.segments(mono(clips_dir / "vr_1.mp4"), 0.0)
    assert speech.segments(samples, 0.0) == first
    later = speech.segments(samples, 100.0)
    np.testing.assert_allclose(later, np.add(first, 100.0))
    assert all(0.0 <= a < b <= len(samples) / AUDIO_HZ for a, b in first)
    assert all(b < c for (_, b), (c, _) in pairwise(first))


def test_speech_moves_with_the_silence_before_it(clips_dir: Path) -> None:
    samples = mono(clips_dir / "grid_id2_swwp2s.mpg")
    lead = np.zeros(62 * 512, np.float32)
    plain, moved = speech.segments(samples, 0.0), speech.segments(np.concatenate([lead, samples]), 0.0)
    shift_s = len(lead) / AUDIO_HZ
    assert len(plain) == len(moved)
    assert moved[-1][1] - shift_s == pytest.approx(plain[-1][1], abs=0.1)


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
def test_speech_fraction_of_real_clips(clips_dir: Path, clip: str, least: float, most: float) -> None:
    samples = mono(clips_dir / clip)
    end_s = len(samples) / AUDIO_HZ
    fraction = speech.measure(samples, speech.segments(samples, 0.0), 0.0, end_s).speech_fraction
    assert least <= fraction <= most


# --------------------------------------------------------------------------- measures


def test_measure_counts_only_what_lies_in_the_clip() -> None:
    samples = np.zeros(4 * AUDIO_HZ, np.float32)
    heard = speech.measure(samples, [(0.0, 11.0), (12.0, 12.5), (13.5, 99.0)], 10.0, 14.0)
    assert heard.speech_fraction == 0.5
    assert speech.measure(samples, [], 10.0, 14.0).speech_fraction == 0.0


def test_loudness_of_known_signals() -> None:
    square = np.tile(np.float32([0.5, -0.5]), AUDIO_HZ)
    assert speech.measure(square, [], 0.0, 2.0).loudness_dbfs == -6.02
    assert speech.measure(np.zeros(16000, np.float32), [], 0.0, 1.0).loudness_dbfs == -120.0
    assert speech.measure(np.zeros(0, np.float32), [], 0.0, 1.0).loudness_dbfs == -120.0


def test_clipped_fraction() -> None:
    samples = np.zeros(1000, np.float32)
    samples[:10], samples[10:30], samples[30:40] = 1.0, -0.9991, 0.998
    assert speech.measure(samples, [], 0.0, 1.0).clipped_fraction == 0.03


# --------------------------------------------------------------------------- log-mel


def test_logmel_has_exact_length_and_type() -> None:
    encoder = speech.load_encoder(SpeechConfig())
    assert (encoder.name, encoder.dim, encoder.sha256) == ("logmel-80", 80, "")
    clips, lengths = [noise(48_000), noise(100), noise(0), noise(16_000)], [150, 3, 2, 0]
    encoded = encoder.encode(clips, lengths)
    assert [matrix.shape for matrix in encoded] == [(150, 80), (3, 80), (2, 80), (0, 80)]
    assert all(matrix.dtype == np.float16 and np.isfinite(matrix).all() for matrix in encoded)


def test_logmel_of_silence_is_the_floor() -> None:
    (matrix,) = speech.load_encoder(SpeechConfig()).encode([np.zeros(32_000, np.float32)], [100])
    assert (matrix == np.float16(np.log(1e-10))).all()


@pytest.mark.parametrize("tone_hz", [100.0, 440.0, 1000.0, 5000.0])
def test_logmel_puts_a_tone_into_its_band(tone_hz: float) -> None:
    times_s = np.arange(AUDIO_HZ) / AUDIO_HZ
    tone = (0.5 * np.sin(2 * np.pi * tone_hz * times_s)).astype(np.float32)
    (matrix,) = speech.load_encoder(SpeechConfig()).encode([tone], [49])
    mel = 2595.0 * np.log10(1.0 + tone_hz / 700.0)
    expected = mel / (2595.0 * np.log10(1.0 + 8000.0 / 700.0)) * 81 - 1
    assert np.abs(matrix.argmax(axis=1) - expected).max() <= 1.0


def test_logmel_frame_j_sees_samples_320j_to_320j_plus_400() -> None:
    samples = np.zeros(32_000, np.float32)
    samples[320 * 30 + 200] = 1.0
    (matrix,) = speech.load_encoder(SpeechConfig()).encode([samples], [100])
    heard = (matrix > np.float16(-20.0)).any(axis=1)
    assert np.flatnonzero(heard).tolist() == [30]


def test_every_mel_band_has_weight() -> None:
    bands = speech_features.mel_bands(80, 1024)
    assert bands.shape == (80, 513)
    assert (bands.max(axis=1) > 0.4).all()
    assert bands.min() >= 0.0
    assert bands.max() <= 1.0


# --------------------------------------------------------------------------- wav2vec2


TINY = Wav2Vec2Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    vocab_size=8,
)


def save(folder: Path, config: Wav2Vec2Config = TINY, hz: int = AUDIO_HZ) -> Path:
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=hz, do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("encoders") / "tiny-wav2vec2")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        pytest.fail("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_wav2vec2_equals_the_model_itself(tiny: Path) -> None:
    encoder = speech.load_encoder(SpeechConfig(embedding=str(tiny), device="cpu"))
    assert (encoder.name, encoder.dim) == ("tiny-wav2vec2", 24)
    assert len(encoder.sha256) == 64
    samples = noise(320 * 50 + 80)
    (encoded,) = encoder.encode([samples], [50])
    scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        expected = Wav2Vec2Model.from_pretrained(tiny).eval()(torch.from_numpy(scaled)[None])
    assert encoded.dtype == np.float16
    np.testing.assert_allclose(encoded, expected.last_hidden_state[0].numpy(), atol=2e-3)


@pytest.mark.usefixtures("no_network")
def test_wav2vec2_features_do_not_depend_on_the_batch(tiny: Path) -> None:
    encoder = speech.load_encoder(SpeechConfig(embedding=str(tiny), device="cpu"))
    clips: Sequence[np.ndarray] = [noise(48_000), noise(16_000), noise(90), noise(0)]
    lengths = [150, 51, 1, 2]
    together = encoder.encode(clips, lengths)
    assert [matrix.shape for matrix in together] == [(150, 24), (51, 24), (1, 24), (2, 24)]
    for clip, count, matrix in zip(clips, lengths, together, strict=True):
        assert encoder.encode([clip], [count])[0].tobytes() == matrix.tobytes()


def test_encoding_leaves_the_number_of_threads_as_it_was(tiny: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        speech.load_encoder(SpeechConfig(embedding=str(tiny), device="cpu")).encode([noise(800)], [2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_loading_writes_nothing_to_the_terminal(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    speech.load_encoder(SpeechConfig(embedding=str(tiny), device="cpu"))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("name", ["logmel", "./absent", "/absent/folder", "~/absent", "a/b/c"])
@pytest.mark.usefixtures("no_network")
def test_a_name_that_is_no_folder_and_no_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"expected 'logmel-80', a folder that exists, or a hub name"):
        speech.load_encoder(SpeechConfig(embedding=name))


@pytest.mark.usefixtures("no_network")
def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    torch.save(Wav2Vec2Model.from_pretrained(tiny).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*model\.safetensors") as caught:
        speech.load_encoder(SpeechConfig(embedding=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_weights_of_another_shape_or_cut_short_are_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        speech.load_encoder(SpeechConfig(embedding=str(tmp_path)))
    Wav2Vec2ForCTC(Wav2Vec2Config(**{**TINY.to_dict(), "num_hidden_layers": 1})).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"its weights lack \d+ tensors"):
        speech.load_encoder(SpeechConfig(embedding=str(tmp_path)))


def test_other_rates_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "slow", hz=8000)
    with pytest.raises(
        ModelError, match=r"expected 16000 Hz and 320 samples a feature, found 8000 Hz and 320"
    ):
        speech.load_encoder(SpeechConfig(embedding=str(tmp_path / "slow"), device="cpu"))
    config = Wav2Vec2Config(**{**TINY.to_dict(), "conv_stride": (5, 2, 2, 2, 2, 2, 1)})
    save(tmp_path / "dense", config)
    with pytest.raises(ModelError, match="found 16000 Hz and 160"):
        speech.load_encoder(SpeechConfig(embedding=str(tmp_path / "dense"), device="cpu"))


def test_a_device_that_is_not_there_is_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"speech\.device warp: is no torch device"):
        speech.load_encoder(SpeechConfig(embedding=str(tiny), device="warp"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="torch sees no CUDA device"):
            speech.load_encoder(SpeechConfig(embedding=str(tiny), device="cuda"))
