"""Music detection: FireRedVAD's network for speech, singing and music, in frames of 10 ms.

The weights are published as a bundle for another runtime (ncnn). `_graph` builds the few layers as an ONNX
graph: eight memory blocks (DFSMN), 589 thousand parameters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from talkforge.curation.audio.mel import mel_filters
from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.errors import ModelError
from talkforge.schemas.units import AUDIO_HZ

MUSIC_THRESHOLD = 0.5
"""Probability of music from which a frame counts as music. Source: FireRedVAD, `FireRedAedConfig`."""

MIN_SINGING_S = 0.25
"""Shorter stretches are not singing, seconds. Source: as for speech, `vad.MIN_SPEECH_S`."""

BLOCK_SAMPLES = 60 * AUDIO_HZ
"""Singing is looked for in so much audio at a time, so that memory does not grow with its length."""

WINDOW_SAMPLES, HOP_SAMPLES = AUDIO_HZ * 25 // 1000, AUDIO_HZ // 100
_FFT_SAMPLES, _NUM_BANDS, _LOWEST_HZ, _PREEMPHASIS = 512, 80, 20.0, 0.97
_FULL_SCALE = 32768.0
"""The network was trained on 16-bit samples."""

_HIDDEN, _MEMORY, _REACH, _BLOCKS = 256, 128, 20, 8
"""Widths of the hidden and the memory layers, frames that a memory reaches back and ahead, memory blocks."""

SPEECH, SINGING, MUSIC = range(3)
"""Columns of the network's output."""


class MusicDetector:
    """Detects where there is music. The model is loaded once.

    Raises:
        ModelError: the weights are not available, or not the right ones; one line.
    """

    def __init__(self) -> None:
        path = registry.weights("fireredvad_aed")
        label = f"fireredvad_aed: {path.name}"
        bundle = _Bundle(path.read_bytes(), label)
        self._mean, self._scale = bundle.mean, bundle.scale
        self._session = open_onnx(_graph(bundle), label)

    def fraction(self, samples: Floats) -> float:
        """Fraction of the frames with music, alone or under speech: 0 to 1.

        Args:
            samples: float32 [N] in [-1, 1] at 16 kHz. In less than one window there is no music.
        """
        has_music = self.probabilities(samples)[:, MUSIC] >= MUSIC_THRESHOLD
        return round(float(has_music.mean()), 4) if len(has_music) else 0.0

    def singing(self, samples: Floats, start_s: float) -> list[tuple[float, float]]:
        """Spans of singing in audio of any length.

        Args:
            samples: float32 [N] in [-1, 1] at 16 kHz.
            start_s: time of the first sample, seconds.

        Returns:
            Half-open (start_s, end_s) on the same clock, in order, disjoint, of `MIN_SINGING_S` and more.
        """
        found = []
        for first in range(0, len(samples), BLOCK_SAMPLES):
            sung = self.probabilities(samples[first : first + BLOCK_SAMPLES])[:, SINGING] >= MUSIC_THRESHOLD
            edges = np.flatnonzero(np.diff(sung.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            found += [(first + a * HOP_SAMPLES, first + b * HOP_SAMPLES) for a, b in edges.tolist()]
        spans = ((start_s + a / AUDIO_HZ, start_s + b / AUDIO_HZ) for a, b in found)
        return [(a, b) for a, b in spans if b - a >= MIN_SINGING_S]

    def probabilities(self, samples: Floats) -> NDArray[np.float32]:
        """Probabilities of speech, singing and music, which do not exclude each other.

        Args:
            samples: float32 [N] in [-1, 1] at 16 kHz.

        Returns:
            float32 [T, 3] at 100 Hz, T = 1 + (N - 400) // 160.
        """
        bands = log_mel(samples)
        if not len(bands):
            return np.zeros((0, 3), np.float32)
        scaled = ((bands - self._mean) * self._scale).astype(np.float32)
        return np.asarray(self._session.run(None, {"bands": scaled.T[None]})[0][0].T, np.float32)


def log_mel(samples: Floats) -> NDArray[np.float64]:
    """Log-mel bands as the network takes them.

    Each window of 25 ms, scaled to 16 bits, goes through these steps: subtraction of its mean,
    pre-emphasis x[n] - 0.97 x[n - 1], the window (0.5 - 0.5 cos)^0.85, power of an FFT of 512, 80 triangular
    filters from 20 to 8000 Hz, and the logarithm.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz.

    Returns:
        float64 [T, 80] at 100 Hz, T = 1 + (N - 400) // 160.

    Source: Kaldi, `compute-fbank-feats` without dither, as FireRedVAD uses it.
    """
    expect_shape("samples", samples, (None,))
    if len(samples) < WINDOW_SAMPLES:
        return np.zeros((0, _NUM_BANDS))
    scaled = np.asarray(samples, np.float64) * _FULL_SCALE
    windows = np.lib.stride_tricks.sliding_window_view(scaled, WINDOW_SAMPLES)[::HOP_SAMPLES]
    windows = windows - windows.mean(axis=1, keepdims=True)
    before = np.hstack([windows[:, :1], windows[:, :-1]])
    shape = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / (WINDOW_SAMPLES - 1))) ** 0.85
    spectrum = np.fft.rfft((windows - _PREEMPHASIS * before) * shape, _FFT_SAMPLES)
    power = spectrum.real**2 + spectrum.imag**2
    filters = mel_filters(_NUM_BANDS, _FFT_SAMPLES, low_hz=_LOWEST_HZ, linear_in="mel")
    # einsum sums in one order whatever the number of threads.
    energies = np.einsum("tf,bf->tb", power, filters)
    return np.asarray(np.log(np.maximum(energies, np.finfo(np.float32).eps)))


# --- weights -----------------------------------------------------------------------------------------


class _Bundle:
    """Reader of a bundle: `OVAD`, version, four sizes, graph, weights, means, scales.

    `take` reads the tensors one after the other, in the order of the layers. Each begins with a mark for
    16-bit floats and is padded to four bytes.
    """

    _HEAD = struct.Struct("<4s5I")
    _HALF = 0x01306B47

    def __init__(self, content: bytes, label: str) -> None:
        self._label = label
        if len(content) < self._HEAD.size or content[:4] != b"OVAD":
            raise ModelError(f"{label}: expected a bundle that begins with OVAD, found {content[:4]!r}")
        _, version, graph, weights, means, scales = self._HEAD.unpack_from(content)
        sizes = (version, len(content), means, scales)
        start = self._HEAD.size + graph
        if sizes != (1, start + weights + means + scales, 4 * _NUM_BANDS, 4 * _NUM_BANDS):
            raise ModelError(f"{label}: expected version 1 and {_NUM_BANDS} bands, found sizes {sizes}")
        self._weights, self._at = content[start : start + weights], 0
        self.mean, self.scale = np.frombuffer(content, "<f4", offset=start + weights).reshape(2, -1)

    def take(self, *shape: int) -> Floats:
        """The next tensor, float32 of this shape.

        Raises:
            ModelError: there is no such tensor.
        """
        count = math.prod(shape)
        end = self._at + 4 + 2 * count
        if end > len(self._weights) or struct.unpack_from("<I", self._weights, self._at)[0] != self._HALF:
            raise ModelError(
                f"{self._label}: expected {count} 16-bit floats at byte {self._at} of its weights"
            )
        values = np.frombuffer(self._weights, "<f2", count, self._at + 4)
        self._at = -(-end // 4) * 4
        return values.astype(np.float32).reshape(shape)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            ModelError: there are more weights.
        """
        if self._at != len(self._weights):
            raise ModelError(
                f"{self._label}: expected {self._at} bytes of weights, found {len(self._weights)}"
            )


def _graph(bundle: _Bundle) -> bytes:
    """The network as an ONNX model: `bands` [1, 80, T] in, probabilities [1, 3, T] out."""
    net = _Network()
    wide = net.relu(net.dense("bands", bundle, _NUM_BANDS, _HIDDEN))
    state = net.memory(net.relu(net.dense(wide, bundle, _HIDDEN, _MEMORY)), bundle)
    for _ in range(_BLOCKS - 1):
        wide = net.relu(net.dense(state, bundle, _MEMORY, _HIDDEN))
        narrow = net.dense(wide, bundle, _HIDDEN, _MEMORY, bias=False)
        state = net.add("Add", net.memory(narrow, bundle), state)
    wide = net.relu(net.dense(state, bundle, _MEMORY, _HIDDEN))
    net.add("Sigmoid", net.dense(wide, bundle, _HIDDEN, 3))
    bundle.finish()
    return net.to_bytes()


class _Network:
    """Builder of an ONNX graph. A value is named by the number of the node that computes it."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, pads: Sequence[int] = (), group: int = 1) -> str:
        convolution: dict[str, Any] = {"pads": list(pads), "group": group} if pads else {}
        output = str(len(self._nodes))
        self._nodes.append(helper.make_node(kind, inputs, [output], **convolution))
        return output

    def relu(self, value: str) -> str:
        return self.add("Relu", value)

    def dense(self, value: str, bundle: _Bundle, narrow: int, wide: int, bias: bool = True) -> str:
        """A dense layer on every frame by itself, from `narrow` to `wide` channels."""
        weights = [self._tensor(bundle.take(wide, narrow)[:, :, None])]
        weights += [self._tensor(bundle.take(wide))] if bias else []
        return self.add("Conv", value, *weights, pads=(0, 0))

    def memory(self, value: str, bundle: _Bundle) -> str:
        """Each channel plus its weighted sums over the frames before (this one included) and after."""
        kernel = np.concatenate([bundle.take(_MEMORY, _REACH) for _ in range(2)], axis=1)
        kernel[:, _REACH - 1] += 1  # the channel itself
        return self.add(
            "Conv", value, self._tensor(kernel[:, None]), pads=(_REACH - 1, _REACH), group=_MEMORY
        )

    def _tensor(self, values: Floats) -> str:
        name = f"w{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(values, name))
        return name

    def to_bytes(self) -> bytes:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "frames"])
            for name, channels in (("bands", _NUM_BANDS), (str(len(self._nodes) - 1), 3))
        ]
        graph = helper.make_graph(self._nodes, "music", ends[:1], ends[1:], self._tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        content: bytes = model.SerializeToString()
        return content
