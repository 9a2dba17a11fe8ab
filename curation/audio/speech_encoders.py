"""Speech encoders: 16 kHz audio in, speech features at 50 Hz out.

`load_speech_encoder` loads the one that the configuration names: log-mel features, or the encoder of a
transformers model.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talkforge.curation.audio.logmel import Features, LogMelEncoder, fit
from talkforge.curation.weights import catalogue, hub, registry
from talkforge.curation.weights.torch import inference, torch_device
from talkforge.schemas import extras
from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.config import SpeechConfig
from talkforge.schemas.errors import ModelError, one_line
from talkforge.schemas.units import AUDIO_HZ, SPEECH_HZ

log = logging.getLogger(__name__)

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
"""Files in the folder of a transformers encoder that the features depend on."""

HOP_SAMPLES = AUDIO_HZ // SPEECH_HZ

PROBE_FEATURES = 20
"""Features of silence that a model must return before it is used: 0.4 s."""


class SpeechEncoder(Protocol):
    """Computes speech features at 50 Hz.

    Feature j of a clip belongs to its second j / 50: it begins there, or, with Whisper, is centred there.

    Attributes:
        name: of the encoder, for the record.
        dim: numbers in one feature, D.
        sha256: of the weights; empty where there are none.
    """

    name: str
    dim: int
    sha256: str

    def encode(self, clips: Sequence[Floats], num_features: Sequence[int]) -> list[Features]:
        """Speech features of clips.

        A clip's features do not depend on the clips beside it, except in their last bits where `batch_clips`
        is above 1.

        Args:
            clips: samples float32 [N] in [-1, 1] at 16 kHz of each clip. Silence follows the last sample.
            num_features: features of each clip, L.

        Returns:
            float16 [L, D] of each clip.
        """


class FrontEnd(Protocol):
    """The input of a transformers encoder, and the call of its network."""

    def pieces(self, samples: Floats, num_features: int) -> list[Floats]:
        """Inputs of the network for a clip, in order of time.

        Args:
            samples: float32 [N] at 16 kHz. Silence follows the last sample.
            num_features: features of the clip.
        """

    def hidden(self, values: Any) -> Any:
        """Last hidden state [B, T, D] for a tensor of B inputs of one shape."""


def load_speech_encoder(config: SpeechConfig) -> SpeechEncoder:
    """Load the speech encoder that `config.embedding` names.

    Args:
        config: `embedding` is `logmel-80`, a local folder, or a hub name. A hub name of the registry means
            the registry's folder, at its revision and with its hashes. Another one is loaded from the hub by
            transformers. `device` and `batch_clips` are for transformers models.

    Raises:
        ModelError: no such encoder, or not one of 16 kHz and 50 Hz; one line.
    """
    if config.embedding == LogMelEncoder.name:
        return LogMelEncoder()
    known = registry.by_hub(config.embedding)
    source = str(registry.weights(known)) if known else config.embedding
    return TransformersEncoder(source, config.device, config.batch_clips)


class TransformersEncoder:
    """The speech encoder of a transformers model: its features are the last hidden state.

    Two kinds are supported: models with a convolutional front end on samples (wav2vec2, HuBERT, WavLM,
    data2vec-audio, UniSpeech, SEW and others whose configuration lists strides and kernels), and the encoder
    of Whisper.

    Inputs are never padded to each other's length, because models with group normalisation (wav2vec2-base,
    HuBERT-base) react to padding in spite of the mask. Only inputs of one shape share a call, and none do
    with `batch_clips` 1: the size of a batch changes the order of sums, and so the last bits. On a CPU it
    runs on one thread, so that the number of cores changes nothing. On CUDA it runs in fp16.

    Args:
        source: folder or hub name.
        device: torch device, or "auto".
        batch_clips: most inputs in one call.

    Raises:
        ModelError: not there, no speech encoder, not safetensors, or not 16 kHz to 50 Hz; one line.
    """

    def __init__(self, source: str, device: str = "auto", batch_clips: int = 1) -> None:
        extras.require("torch", f"speech.embedding={source}")
        import torch  # here, because log-mel features do without its seconds and hundreds of megabytes

        local = hub.is_local(source, "config.json", "speech encoder", f"'{LogMelEncoder.name}'")
        self._torch = torch
        self._device = torch_device(device, "speech.device")
        self._batch_clips = batch_clips
        self._dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        extractor, model, self.sha256 = _load(source, local, self._dtype)
        self._front = _front_end(source, extractor, model.eval().to(self._device))
        self.name = Path(source).resolve().name if local else source
        self.dim = int(model.config.hidden_size)
        self._probe(source)

    def encode(self, clips: Sequence[Floats], num_features: Sequence[int]) -> list[Features]:
        """See `SpeechEncoder.encode`."""
        with inference():
            pieces = [self._front.pieces(*clip) for clip in zip(clips, num_features, strict=True)]
            found = self._run([piece for own in pieces for piece in own])
        encoded = []
        for own, count in zip(pieces, num_features, strict=True):
            parts = [next(found) for _ in own]
            features = np.concatenate([np.zeros((0, self.dim), np.float16), *parts])[:count]
            expect_shape("speech features", features, (count, self.dim))
            encoded.append(features)
        return encoded

    def _run(self, pieces: Sequence[Floats]) -> Iterator[Features]:
        """Last hidden states [T, D] of each input, in order; inputs of one shape share calls."""
        found: dict[int, Features] = {}
        by_shape = sorted(range(len(pieces)), key=lambda index: pieces[index].shape)
        for _, same in itertools.groupby(by_shape, key=lambda index: pieces[index].shape):
            group = list(same)
            for first in range(0, len(group), self._batch_clips):
                batch = group[first : first + self._batch_clips]
                stacked = self._torch.from_numpy(np.stack([pieces[index] for index in batch]))
                hidden = self._front.hidden(stacked.to(self._device, self._dtype))
                found |= zip(batch, hidden.to("cpu", self._torch.float16).numpy(), strict=True)
        return (found[index] for index in range(len(pieces)))

    def _probe(self, source: str) -> None:
        """Check that the model returns features at 50 Hz, before a run relies on it."""
        if isinstance(self._front, _Whisper):
            return  # known from its configuration; one window would cost seconds
        try:
            self.encode([np.zeros(AUDIO_HZ, np.float32)], [PROBE_FEATURES])
        except Exception as error:  # models of every kind fail in every way
            log.debug("speech encoder %s", source, exc_info=True)
            reason = one_line(error)
            raise ModelError(
                f"speech encoder {source}: gives no hidden state at {SPEECH_HZ} Hz for audio alone: {reason}"
            ) from None


# --- front ends --------------------------------------------------------------------------------------


class _Waves:
    """Input of models with a convolutional front end: samples, scaled by the model's own extractor.

    Feature j sees `field_samples` samples from 320 j on.
    """

    def __init__(self, extractor: Any, model: Any, field_samples: int) -> None:
        self._extractor, self._model, self._field_samples = extractor, model, field_samples

    def pieces(self, samples: Floats, num_features: int) -> list[Floats]:
        if num_features == 0:
            return []
        scaled = samples
        if len(samples):
            scaled = self._extractor(samples, sampling_rate=AUDIO_HZ, return_tensors="np").input_values[0]
        return [fit(scaled, (num_features - 1) * HOP_SAMPLES + self._field_samples)]

    def hidden(self, values: Any) -> Any:
        return self._model(values).last_hidden_state


class _Whisper:
    """Input of Whisper: log-mel windows of 30 s, the last one filled up with silence.

    Feature j is centred on sample 320 j. A window does not see its neighbours.
    """

    def __init__(self, extractor: Any, model: Any) -> None:
        self._extractor, self._encoder = extractor, model.get_encoder()
        self._extractor.dither = 0.0  # its noise would differ in every run

    def pieces(self, samples: Floats, num_features: int) -> list[Floats]:
        window = self._extractor.n_samples
        starts = range(0, num_features * HOP_SAMPLES, window)
        return [self._log_mel(fit(samples[start : start + window], window)) for start in starts]

    def _log_mel(self, window: Floats) -> Floats:
        mel = self._extractor(window, sampling_rate=AUDIO_HZ, return_tensors="np").input_features[0]
        return np.asarray(mel, np.float32)

    def hidden(self, values: Any) -> Any:
        return self._encoder(values).last_hidden_state


def _front_end(source: str, extractor: Any, model: Any) -> FrontEnd:
    config = model.config
    if config.model_type == "whisper":
        windows = getattr(extractor, "n_samples", 0), getattr(extractor, "feature_size", 0)
        _check_rates(source, extractor, windows[0] / config.max_source_positions)
        if windows[1] != config.num_mel_bins:
            raise ModelError(
                f"speech encoder {source}: expected an extractor of {config.num_mel_bins} mel bands, "
                f"found {windows[1]}"
            )
        return _Whisper(extractor, model)
    field, hop = 1, 1
    for stride, kernel in zip(config.conv_stride, config.conv_kernel, strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride
    _check_rates(source, extractor, hop)
    return _Waves(extractor, model, field)


def _check_rates(source: str, extractor: Any, hop: float) -> None:
    rate = getattr(extractor, "sampling_rate", 0)
    if (rate, hop) != (AUDIO_HZ, HOP_SAMPLES):
        raise ModelError(
            f"speech encoder {source}: expected {AUDIO_HZ} Hz and {HOP_SAMPLES} samples a feature, "
            f"found {rate} Hz and {hop:g}"
        )


# --- loading -----------------------------------------------------------------------------------------


def _load(source: str, local: bool, dtype: Any) -> tuple[Any, Any, str]:
    """Feature extractor, model, and the sha256 of its folder, see `catalogue.listing_sha256`."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
    from transformers.utils import cached_file

    where: dict[str, Any] = {"local_files_only": local}
    try:
        with _quiet():
            _check_kind(source, AutoConfig.from_pretrained(source, trust_remote_code=False, **where))
            extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False, **where)
            found = cached_file(
                source, "model.safetensors", _raise_exceptions_for_missing_entries=False, **where
            )
            if found is None:
                raise ModelError(
                    f"speech encoder {source}: expected its weights in one model.safetensors, found none: "
                    "pickled weights are not read; transformers' save_pretrained writes the other form"
                )
            model, loading = AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=dtype, trust_remote_code=False,
                output_loading_info=True, **where,
            )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:  # files of any kind can be under that name, and fail in any way
        log.debug("speech encoder %s", source, exc_info=True)
        reason = one_line(error)
        raise ModelError(f"speech encoder {source}: cannot be loaded: {reason}") from None
    _check_complete(source, loading["missing_keys"])
    files = [Path(cached_file(source, name, **where)) for name in FILES]
    return extractor, model, catalogue.listing_sha256((file.name, sha256_of(file)) for file in files)


def _check_kind(source: str, config: Any) -> None:
    """Check by its configuration that a model is a speech encoder, before its weights are fetched."""
    lists = getattr(config, "conv_stride", None), getattr(config, "conv_kernel", None)
    if config.model_type == "whisper" or all(isinstance(each, list | tuple) and each for each in lists):
        return
    raise ModelError(
        f"speech encoder {source}: expected a model with a convolutional front end on samples (wav2vec2, "
        f"HuBERT, WavLM, ...) or Whisper, found {config.model_type}"
    )


def _check_complete(source: str, missing_keys: Sequence[str]) -> None:
    # Published weights may lack the mask embedding, which only training uses, and the decoder.
    missing = sorted(k for k in missing_keys if k != "masked_spec_embed" and not k.startswith("decoder."))
    if missing:
        raise ModelError(
            f"speech encoder {source}: its weights lack {len(missing)} tensors: {missing[0]} ..."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and its reports of unused heads off the user's terminal."""
    from transformers.utils import logging as reports

    verbosity, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if bars:
            reports.enable_progress_bar()
