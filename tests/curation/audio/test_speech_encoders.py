"""Encoders by folder: small random models of each family, against those models themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    SEWConfig,
    SEWModel,
    SpeechT5Config,
    SpeechT5Model,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from talkforge.curation.audio import speech_encoders
from talkforge.curation.audio.speech_encoders import FILES, TransformersEncoder
from talkforge.curation.weights import catalogue, registry
from talkforge.schemas.config import SpeechConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}
CONVOLUTIONS = {"conv_stride": (5, 2, 2, 2, 2, 2, 2), "conv_kernel": (10, 3, 3, 3, 3, 2, 2)}


def wav2vec2(**changes: Any) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL | changes))


FAMILIES: dict[str, Callable[[], Any]] = {
    "wav2vec2": wav2vec2,
    "wav2vec2-layer-norm": lambda: wav2vec2(feat_extract_norm="layer", do_stable_layer_norm=True),
    "hubert": lambda: HubertModel(HubertConfig(**SMALL)),
    "hubert-layer-norm": lambda: HubertModel(HubertConfig(**SMALL, feat_extract_norm="layer")),
    "wavlm": lambda: WavLMModel(WavLMConfig(**SMALL)),
    "data2vec-audio": lambda: Data2VecAudioModel(Data2VecAudioConfig(**SMALL, conv_pos_kernel_size=5)),
    "unispeech-sat": lambda: UniSpeechSatModel(UniSpeechSatConfig(**SMALL)),
    "sew": lambda: SEWModel(SEWConfig(**SMALL | CONVOLUTIONS)),
}


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def save(folder: Path, make: Callable[[], Any], hz: int = AUDIO_HZ) -> Path:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=hz, do_normalize=True).save_pretrained(folder)
    return folder


def load(folder: Path, **changes: Any) -> speech_encoders.SpeechEncoder:
    return speech_encoders.load_speech_encoder(SpeechConfig(embedding=str(folder), device="cpu", **changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's small model, made when it is first asked for."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(family: str) -> Path:
        path = root / f"tiny-{family}"
        return path if path.is_dir() else save(path, FAMILIES[family])

    return folder


@pytest.fixture
def tiny(saved: Callable[[str], Path]) -> Path:
    return saved("wav2vec2")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        pytest.fail("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- models that hear samples ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("no_network")
def test_features_are_the_last_hidden_state(saved: Callable[[str], Path], family: str) -> None:
    encoder = load(saved(family))
    assert (encoder.name, encoder.dim) == (f"tiny-{family}", 24)
    assert len(encoder.sha256) == 64
    samples = noise(320 * 50 + 80)
    (encoded,) = encoder.encode([samples], [50])
    scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(saved(family)).eval()(torch.from_numpy(scaled)[None])
    assert encoded.dtype == np.float16
    np.testing.assert_allclose(encoded, expected.last_hidden_state[0].numpy(), atol=4e-3)


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-layer-norm", "wavlm"])
def test_features_do_not_depend_on_the_clips_beside(saved: Callable[[str], Path], family: str) -> None:
    encoder = load(saved(family))
    clips = [noise(48_000), noise(16_000), noise(90), noise(0), noise(48_000, seed=1)]
    lengths = [150, 51, 1, 2, 150]
    together = encoder.encode(clips, lengths)
    assert [matrix.shape for matrix in together] == [(n, 24) for n in lengths]
    for clip, count, matrix in zip(clips, lengths, together, strict=True):
        assert encoder.encode([clip], [count])[0].tobytes() == matrix.tobytes()


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-layer-norm"])
def test_only_clips_of_one_length_share_a_call(
    saved: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [50, 30, 50, 0, 50, 30, 50]
    clips = [noise(320 * count + 80, seed) for seed, count in enumerate(counts)]
    alone = load(saved(family)).encode(clips, counts)
    encoder = load(saved(family), batch_clips=3)
    assert isinstance(encoder, TransformersEncoder)
    shapes, hidden = [], encoder._front.hidden

    def watched(values: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        return hidden(values)

    monkeypatch.setattr(encoder._front, "hidden", watched)
    together = encoder.encode(clips, counts)
    assert sorted(shapes) == [(1, 16_080), (2, 9_680), (3, 16_080)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=4e-3)


def test_encoding_leaves_the_number_of_threads_as_it_was(tiny: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load(tiny).encode([noise(800)], [2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_features_are_those_of_the_cpu_within_half_precision(tiny: Path) -> None:
    samples = noise(320 * 50 + 80)
    (cpu,) = load(tiny).encode([samples], [50])
    encoder = speech_encoders.load_speech_encoder(SpeechConfig(embedding=str(tiny), device="cuda"))
    np.testing.assert_allclose(encoder.encode([samples], [50])[0], cpu, atol=0.02)


# --- Whisper -----------------------------------------------------------------------------------------

WINDOW_S = 2
"""Whisper's own windows are 30 s; these keep the test small."""


def save_whisper(folder: Path, bands: int = 80, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = WhisperConfig(
        **{
            "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 64,
            "max_source_positions": 50 * WINDOW_S, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 3,
        } | changes
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=bands, chunk_length=WINDOW_S, dither=0.5).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("encoders") / "tiny-whisper")


@pytest.mark.usefixtures("no_network")
def test_whisper_features_are_its_encoders_windows_in_a_row(whisper: Path) -> None:
    encoder = load(whisper)
    assert (encoder.name, encoder.dim) == ("tiny-whisper", 16)
    samples = noise(AUDIO_HZ * 5)
    (encoded,) = encoder.encode([samples], [250])
    extractor = WhisperFeatureExtractor(chunk_length=WINDOW_S)
    model = AutoModel.from_pretrained(whisper).eval().encoder
    windows = np.split(np.pad(samples, (0, AUDIO_HZ)), 3)  # the third is half silence
    with torch.inference_mode():
        expected = [
            model(extractor(w, sampling_rate=AUDIO_HZ, return_tensors="pt").input_features) for w in windows
        ]
    rows = np.concatenate([one.last_hidden_state[0].numpy() for one in expected])[:250]
    np.testing.assert_allclose(encoded, rows, atol=4e-3)


def test_whisper_features_do_not_depend_on_the_clips_beside(whisper: Path) -> None:
    clips, counts = [noise(AUDIO_HZ * 3), noise(AUDIO_HZ), noise(0), noise(70)], [150, 50, 1, 0]
    together = load(whisper).encode(clips, counts)
    assert [matrix.shape for matrix in together] == [(150, 16), (50, 16), (1, 16), (0, 16)]
    for clip, count, matrix in zip(clips, counts, together, strict=True):
        assert load(whisper).encode([clip], [count])[0].tobytes() == matrix.tobytes()
    for one, other in zip(together, load(whisper, batch_clips=4).encode(clips, counts), strict=True):
        np.testing.assert_allclose(one, other, atol=4e-3)


def test_a_whisper_of_another_rate_or_other_bands_is_refused(tmp_path: Path) -> None:
    save_whisper(tmp_path / "dense", max_source_positions=100 * WINDOW_S)
    with pytest.raises(ModelError, match="320 samples a feature, found 16000 Hz and 160"):
        load(tmp_path / "dense")
    save_whisper(tmp_path / "bands", bands=128)
    with pytest.raises(ModelError, match="expected an extractor of 80 mel bands, found 128"):
        load(tmp_path / "bands")


# --- what is refused ---------------------------------------------------------------------------------


def test_loading_writes_nothing_to_the_terminal(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("name", ["logmel", "./absent", "/absent/folder", "~/absent", "a/b/c"])
@pytest.mark.usefixtures("no_network")
def test_a_name_that_is_no_folder_and_no_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"expected 'logmel-80', a folder that exists, or a hub name"):
        speech_encoders.load_speech_encoder(SpeechConfig(embedding=name))


def one_line(caught: pytest.ExceptionInfo[ModelError]) -> bool:
    return "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_name_that_the_registry_knows_is_its_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry.MODELS["wav2vec2-base-960h"]
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    asked = SpeechConfig(embedding=known.hub, device="cpu")
    with pytest.raises(ModelError, match=r"wav2vec2-base-960h .a folder of config\.json, model\.safetensors"):
        speech_encoders.load_speech_encoder(asked)
    shutil.copytree(tiny, tmp_path / known.file)
    with pytest.raises(ModelError, match=r"wav2vec2-base-960h/config\.json: expected sha256 d3ec255c"):
        speech_encoders.load_speech_encoder(asked)
    pieces = tuple(
        catalogue.Piece(name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for name, path in ((name, tiny / name) for name in FILES)
    )
    sha256 = catalogue.listing_sha256((piece.name, piece.sha256) for piece in pieces)
    monkeypatch.setitem(registry.MODELS, known.name, replace(known, pieces=pieces, sha256=sha256))
    encoder = speech_encoders.load_speech_encoder(asked)
    assert (encoder.name, encoder.sha256) == ("wav2vec2-base-960h", sha256)


@pytest.mark.usefixtures("no_network")
def test_what_is_no_speech_encoder_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    save(tmp_path / "text", lambda: BertModel(BertConfig(**sizes, vocab_size=8)))
    with pytest.raises(ModelError, match=r"or Whisper, found bert$") as caught:
        load(tmp_path / "text")
    assert one_line(caught)
    speaking = SpeechT5Config(
        hidden_size=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8, decoder_layers=1,
        decoder_attention_heads=1, decoder_ffn_dim=8, conv_dim=(8,) * 7, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    save(tmp_path / "speaking", lambda: SpeechT5Model(speaking))
    with pytest.raises(ModelError, match="gives no hidden state at 50 Hz for audio alone") as caught:
        load(tmp_path / "speaking")
    assert one_line(caught)


@pytest.mark.usefixtures("no_network")
def test_an_encoder_whose_adapter_gives_fewer_features_is_refused(tmp_path: Path) -> None:
    save(tmp_path, lambda: wav2vec2(add_adapter=True, num_adapter_layers=1))
    with pytest.raises(
        ModelError, match=r"at 50 Hz for audio alone: speech features: expected shape \[20, 24\]"
    ):
        load(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_code_that_comes_with_a_model_is_not_run(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(tmp_path)
    assert one_line(caught)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_network")
def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    torch.save(AutoModel.from_pretrained(tiny).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"in one model\.safetensors, found none") as caught:
        load(tmp_path)
    assert one_line(caught)


@pytest.mark.usefixtures("no_network")
def test_weights_of_another_shape_or_cut_short_are_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)
    wav2vec2(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"its weights lack \d+ tensors"):
        load(tmp_path)


def test_other_rates_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "slow", wav2vec2, hz=8000)
    with pytest.raises(
        ModelError, match=r"expected 16000 Hz and 320 samples a feature, found 8000 Hz and 320"
    ):
        load(tmp_path / "slow")
    save(tmp_path / "dense", lambda: wav2vec2(conv_stride=(5, 2, 2, 2, 2, 2, 1)))
    with pytest.raises(ModelError, match="found 16000 Hz and 160"):
        load(tmp_path / "dense")


def test_a_device_that_is_not_there_is_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"speech\.device warp: is no torch device"):
        speech_encoders.load_speech_encoder(SpeechConfig(embedding=str(tiny), device="warp"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="torch sees no CUDA device"):
            speech_encoders.load_speech_encoder(SpeechConfig(embedding=str(tiny), device="cuda"))
