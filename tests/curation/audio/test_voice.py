"""The voice encoder: its spectrogram against a published one, its pieces, and which voices it tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import audio_utils

from talkforge.curation.audio import vad, voice
from talkforge.curation.media import read_audio
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(16_000 * seconds)).astype(np.float32)


def toy(path: Path, **changes: object) -> Path:
    """A checkpoint as Resemblyzer stores it, with small random weights."""
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    state = {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    state |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    state |= {"similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)}
    torch.save({"step": 1, "model_state": state, "optimizer_state": {}} | changes, path)
    return path


def test_the_spectrogram_is_that_of_librosa() -> None:
    """transformers has librosa's filters, norm and windows."""
    samples = noise(0.5)
    filters = audio_utils.mel_filter_bank(201, 40, 0, 8000, 16_000, norm="slaney", mel_scale="slaney")
    window = audio_utils.window_function(400, "hann")
    wanted = audio_utils.spectrogram(
        samples, window, 400, 160, fft_length=400, power=2.0, pad_mode="constant", mel_filters=filters
    )
    np.testing.assert_allclose(voice.spectrogram(samples), wanted.T, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("seconds", "count"), [(1.0, 1), (1.6, 1), (1.9, 1), (2.0, 2), (4.0, 4)])
def test_pieces_begin_every_770_ms_and_three_quarters_of_each_are_there(seconds: float, count: int) -> None:
    samples = noise(seconds)
    found = voice.pieces(samples)
    assert found.shape == (count, 160, 40)
    whole = voice.spectrogram(np.pad(samples, (0, 40_000)))
    for k, piece in enumerate(found):
        np.testing.assert_allclose(piece[:70], whole[77 * k : 77 * k + 70], rtol=1e-4)


def test_quiet_speech_is_amplified_and_loud_speech_is_left_alone() -> None:
    loud, quiet = noise(2.0, 0.2), noise(2.0, 0.2) / 1000
    np.testing.assert_allclose(voice.pieces(quiet), voice.pieces(loud) * (10**-1.5 / 0.2) ** 2, rtol=0.02)
    np.testing.assert_array_equal(voice.pieces(loud)[0], voice.spectrogram(loud)[:160])


def test_pauses_are_left_out() -> None:
    samples = np.arange(16_000, dtype=np.float32)
    found = voice.speech_of(samples, [(8.0, 10.1), (10.5, 10.6), (10.95, 12.0), (13.0, 14.0)], 10.0)
    expected = np.concatenate([samples[:1600], samples[8000:9600], samples[15_200:]])
    assert found.tolist() == expected.tolist()
    assert len(voice.speech_of(samples, [], 10.0)) == 0


def test_embeddings_have_unit_length_and_come_again(tmp_path: Path) -> None:
    encoder = voice.VoiceEncoder(toy(tmp_path / "toy.pt"))
    first, again = encoder.embed(noise(3.0)), encoder.embed(noise(3.0))
    assert first is not None and again is not None
    assert (first.shape, first.dtype) == ((256,), np.float32)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5) and first.min() >= 0
    assert np.array_equal(first, again)
    assert encoder.embed(noise(1.4)) is None
    assert encoder.embed(np.zeros(48_000, np.float32)) is None


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a checkpoint with model_state, found other keys"):
        voice.VoiceEncoder(toy(tmp_path / "other.pt", model_state=None))
    with pytest.raises(ModelError, match=r"is not this model's state dict: missing: linear\.weight, lstm"):
        voice.VoiceEncoder(toy(tmp_path / "empty.pt", model_state={"linear.bias": torch.zeros(256)}))


def test_half_a_sentence_is_nearer_to_its_other_half_than_to_other_people(real_clip: RealClip) -> None:
    try:
        encoder = voice.VoiceEncoder(registry.weights(voice.NAME))
    except ModelError as error:
        pytest.skip(str(error))
    halves = []
    for name in ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg"):
        path = Path(real_clip(name))
        video = probe(path, Input(uri=str(path)), content_hash(path))
        samples = read_audio(path, video, video.start_s, video.end_s)
        speech = voice.speech_of(samples, vad.segments(samples, 0.0), 0.0)
        # A sentence of GRID has less speech than is asked for: each half is heard twice.
        middle = len(speech) // 2
        halves.append([encoder.embed(np.tile(half, 3)) for half in (speech[:middle], speech[middle:])])
    one, other = (np.stack([pair[k] for pair in halves]) for k in (0, 1))
    cosines = one @ other.T
    assert (np.diag(cosines)[:, None] > cosines + 0.05 - np.eye(4)).all()
