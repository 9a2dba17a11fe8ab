"""Speech encoders: audio at 16 kHz in, features at 50 Hz out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from curation.networks import inference
from schemas.arrays import Floats, expect_shape
from schemas.errors import ModelError
from schemas.units import AUDIO_HZ, SPEECH_HZ

log = logging.getLogger(__name__)

Features = NDArray[np.float16]


class LogMel:
    """Natural logarithm of 80 mel bands: 25 ms Hann windows, 20 ms apart, 0 to 8 kHz.

    Window j begins at sample 320 j and is 400 samples long, as the receptive field of wav2vec2.
    Values are `log(max(band power, 1e-10))` of samples in [-1, 1]: -23.0 is silence. These are
    plain features, no stand-in for a learned speech representation.

    Source: mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987) with triangular bands as in HTK.
    """

    name = "logmel-80"
    dim = 80
    sha256 = ""

    _WINDOW_SAMPLES = 400
    _FFT_SAMPLES = 1024
    """Padded, so that the narrowest band still spans several bins."""
    _FLOOR = 1e-10

    def __init__(self) -> None:
        self._window = np.hanning(self._WINDOW_SAMPLES + 1)[:-1]
        # Sparse, because its product has one order of summation whatever the number of threads.
        self._bands = scipy.sparse.csr_array(mel_bands(self.dim, self._FFT_SAMPLES))

    def encode(self, clips: Sequence[Floats], num_features: Sequence[int]) -> list[Features]:
        """See `SpeechEncoder.encode`."""
        return [self._encode(clip, count) for clip, count in zip(clips, num_features, strict=True)]

    def _encode(self, samples: Floats, num_features: int) -> Features:
        if num_features == 0:
            return np.zeros((0, self.dim), np.float16)
        hop = AUDIO_HZ // SPEECH_HZ
        fitted = _fit(samples, (num_features - 1) * hop + self._WINDOW_SAMPLES)
        windows = np.lib.stride_tricks.sliding_window_view(fitted, self._WINDOW_SAMPLES)[::hop]
        spectrum = np.fft.rfft(windows * self._window, self._FFT_SAMPLES)
        power = (spectrum.real**2 + spectrum.imag**2) / np.sum(self._window**2)
        energies = (self._bands @ power.T).T
        features: Features = np.log(np.maximum(energies, self._FLOOR)).astype(np.float16)
        return features


def mel_bands(num_bands: int, fft_samples: int) -> NDArray[np.float64]:
    """Triangular bands [num_bands, fft_samples // 2 + 1] with peaks of 1, even on the mel scale.

    Source: HTK book 5.4; edges from 0 Hz to half the sample rate of 16 kHz.
    """
    top = 2595.0 * np.log10(1.0 + AUDIO_HZ / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (np.linspace(0.0, top, num_bands + 2) / 2595.0) - 1.0)
    bins_hz = np.fft.rfftfreq(fft_samples, 1.0 / AUDIO_HZ)
    low, middle, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)
    return np.maximum(0.0, np.minimum(rising, falling))


class Wav2Vec2:
    """Last hidden state of a transformers speech encoder of the wav2vec2 family.

    Each clip runs by itself: wav2vec2-base was trained without an attention mask, so that padding
    it to its neighbours' length would change its features, and so that a batch changes nothing.
    On a CPU it runs on one thread, so that the number of cores changes nothing; on CUDA in fp16.

    Raises:
        ModelError: not there, not safetensors, or not 16 kHz to 50 Hz; one line.
    """

    def __init__(self, source: str, device: str = "auto") -> None:
        import torch  # seconds and hundreds of megabytes that the other encoder does without

        local = _is_folder(source)
        self._torch = torch
        self._device = _device(device)
        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        self._extractor, model, self.sha256 = _load(source, local, dtype)
        self._field_samples = _receptive_field(source, model.config, self._extractor)
        self._model = model.eval().to(self._device)
        self.name = Path(source).resolve().name if local else source
        self.dim = int(model.config.hidden_size)

    def encode(self, clips: Sequence[Floats], num_features: Sequence[int]) -> list[Features]:
        """See `SpeechEncoder.encode`."""
        with inference():
            return [self._encode(clip, count) for clip, count in zip(clips, num_features, strict=True)]

    def _encode(self, samples: Floats, num_features: int) -> Features:
        if num_features == 0:
            return np.zeros((0, self.dim), np.float16)
        hop = AUDIO_HZ // SPEECH_HZ
        scaled = samples
        if len(samples):
            scaled = self._extractor(samples, sampling_rate=AUDIO_HZ, return_tensors="np").input_values[0]
        fitted = _fit(scaled, (num_features - 1) * hop + self._field_samples)
        values = self._torch.from_numpy(fitted)[None].to(self._device, self._model.dtype)
        hidden = self._model(values).last_hidden_state[0]
        features: Features = hidden.to("cpu", self._torch.float16).numpy()
        expect_shape("speech features", features, (num_features, self.dim))
        return features


def _fit(samples: Floats, num_samples: int) -> Floats:
    """Exactly `num_samples`: cut, or silence after the last one."""
    kept = np.asarray(samples[:num_samples], np.float32)
    return np.pad(kept, (0, num_samples - len(kept)))


def _is_folder(source: str) -> bool:
    """True for a folder, False for a hub name; anything else is refused before a hub is asked."""
    if Path(source).is_dir():
        return True
    owner, _, name = source.partition("/")
    if owner.strip(".~") and name and "/" not in name:
        return False
    raise ModelError(
        f"speech encoder {source}: expected '{LogMel.name}', a folder that exists, or a hub name "
        "such as 'facebook/wav2vec2-base-960h'"
    )


def _load(source: str, local: bool, dtype: Any) -> tuple[Any, Any, str]:
    """Feature extractor, model, and the sha256 of its weights."""
    from transformers import AutoFeatureExtractor, AutoModel
    from transformers.utils import cached_file

    try:
        with _quiet():
            extractor = AutoFeatureExtractor.from_pretrained(source, local_files_only=local)
            weights = Path(cached_file(source, "model.safetensors", local_files_only=local))
            model, loading = AutoModel.from_pretrained(
                source, local_files_only=local, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # files of any kind can be under that name, and fail in any way
        log.debug("speech encoder %s", source, exc_info=True)
        reason = " ".join(str(error).split())
        raise ModelError(f"speech encoder {source}: cannot be loaded: {reason}") from None
    # The mask embedding serves training alone; published weights may lack it.
    missing = sorted(set(loading["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise ModelError(
            f"speech encoder {source}: its weights lack {len(missing)} tensors: {missing[0]} ..."
        )
    with weights.open("rb") as file:
        return extractor, model, hashlib.file_digest(file, "sha256").hexdigest()


def _receptive_field(source: str, config: Any, extractor: Any) -> int:
    """Samples that one feature sees. Source: the strides and kernels of the model's own config."""
    strides, kernels = getattr(config, "conv_stride", None), getattr(config, "conv_kernel", None)
    if not strides or not kernels:
        raise ModelError(f"speech encoder {source}: expected the wav2vec2 family, found {config.model_type}")
    field, hop = 1, 1
    for stride, kernel in zip(strides, kernels, strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride
    if hop * SPEECH_HZ != AUDIO_HZ or extractor.sampling_rate != AUDIO_HZ:
        raise ModelError(
            f"speech encoder {source}: expected {AUDIO_HZ} Hz and {AUDIO_HZ // SPEECH_HZ} samples a feature, "
            f"found {extractor.sampling_rate} Hz and {hop}"
        )
    return field


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"speech.device {name}: is no torch device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"speech.device {name}: torch sees no CUDA device")
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports of unused heads on the user's terminal."""
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
