"""Active speaker detection: Light-ASD, which scores in every frame whether a face is seen to speak.

It finds the speaking face among silent ones. It does not
measure synchrony: audio shifted by half a second, or
of another speaker, scores the same. Of two mouths that both move it cannot say whose voice is in the audio. A
talking face scores high even where the audio is silent, so scores count only where there is speech. For
synchrony see `curation.sync.contrastive` and `curation.sync.syncnet`.

Source: Liao et al., "A Light Weight Model for Active Speaker Detection", CVPR 2023. The sizes of the layers
are those of the published weights, the inputs those of the published demo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.audio.cepstra import HOP_SAMPLES, WINDOW_SAMPLES, mfcc
from talkforge.curation.face.crops import ASD_INPUT_PX, FPS, nearest_frames, resample_crops
from talkforge.curation.sync import SPEAKING_FRACTION
from talkforge.curation.weights.torch import inference, load_file
from talkforge.schemas.arrays import Bytes, Floats, expect_shape

_CHUNK_FRAMES = 100
"""Frames in one call of the face encoder, which limits its memory to some 400 MB."""

_REACH_FRAMES = 6
"""Frames on either side that a frame's encoding depends on: three kernels of five frames."""

_SPANS_S = (1, 2, 3, 4, 5, 6)
"""Lengths of the spans in which a clip is scored, seconds. The score is the mean over them. Source: the
published demo, which also encodes every span anew. Here a clip is encoded once."""

_BATCH_CLIPS = 8
"""Most clips in one call on an accelerator."""


class LightAsd:
    """Light-ASD with its published weights.

    A clip's scores do not depend on the clips beside it. On a CPU each clip runs by itself.

    Args:
        path: state dict as published: `model.*`, `lossAV.*` and `lossV.*`. Only training uses the last.
        device: torch device.

    Raises:
        ModelError: not that state dict; one line.
    """

    name = "light_asd"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._network = _light_asd()
        load_file(self._network, path, self.name)
        self._network.eval().to(device)
        self._device = device

    def score(self, faces: Bytes, samples: Floats, fps: float = FPS) -> Floats:
        """Score each frame: the logit of "speaking", positive if the face is seen to speak.

        Args:
            faces: uint8 [F, 112, 112] of `to_asd`, frame k at second k / `fps`.
            samples: float32 [N] at 16 kHz, sample 0 at frame 0. Silence follows the last sample.
            fps: frame rate. If it is not 25, the nearest frames at 25 are scored.

        Returns:
            float32 [F]. Source of the sign: the published demo shows scores from 0 up as speaking.
        """
        return self.score_batch([(faces, samples)], fps)[0]

    def score_batch(self, clips: Sequence[tuple[Bytes, Floats]], fps: float = FPS) -> list[Floats]:
        """Scores of several clips. On an accelerator, clips of one length run together.

        Args:
            clips: (faces, samples) of each clip, as `score`.
            fps: frame rate of all of them.

        Returns:
            float32 [F] of each clip.
        """
        for faces, samples in clips:
            expect_shape("faces", faces, (None, ASD_INPUT_PX, ASD_INPUT_PX))
            expect_shape("samples", samples, (None,))
        size = 1 if str(self._device).startswith("cpu") else _BATCH_CLIPS
        scores: list[Floats] = [np.zeros(0, np.float32)] * len(clips)
        with inference():
            for group in _of_one_length([len(faces) for faces, _ in clips], size):
                rows = self._forward([(resample_crops(clips[i][0], fps), clips[i][1]) for i in group])
                for i, row in zip(group, rows, strict=True):
                    scores[i] = row[nearest_frames(len(clips[i][0]), fps, len(row), FPS)]
        return scores

    def _forward(self, clips: Sequence[tuple[Bytes, Floats]]) -> Floats:
        """Scores [B, F] of clips at `FPS` that have the same number of frames."""
        import torch

        model = self._network["model"]
        cepstra = np.stack([_cepstra(samples, len(faces)) for faces, samples in clips])
        audio = _encode_audio(model["audioEncoder"], torch.from_numpy(cepstra).to(self._device))
        faces = np.stack([faces for faces, _ in clips])
        video = torch.cat(list(self._encode_faces(model["visualEncoder"], faces)), dim=1)
        encoded = audio + video
        lengths = [int(FPS) * seconds for seconds in _SPANS_S]
        scores = [self._decode(encoded, length) for length in lengths]
        return np.asarray(np.mean(scores, axis=0), np.float32)

    def _decode(self, encoded: Any, length: int) -> Floats:
        """Scores [B, F] of encodings [B, F, 128]; each span of `length` frames is scored by itself."""
        import torch
        from torch.nn.functional import gelu

        rnn, head = self._network["model"]["GRU"], self._network["lossAV"]["FC"]
        scores = []
        for span in encoded.split(length, dim=1):
            hidden = gelu(rnn["gru_forward"](span)[0])
            hidden = gelu(rnn["gru_backward"](hidden.flip(1))[0].flip(1))
            scores.append(head(hidden)[..., 1])
        return np.asarray(torch.cat(scores, dim=1).cpu().numpy(), np.float32)

    def _encode_faces(self, encoder: Any, faces: Bytes) -> Iterator[Any]:
        """Encodings of faces [B, F, 112, 112], in pieces [B, f, 128] along the frames."""
        import torch

        for first in range(0, faces.shape[1], _CHUNK_FRAMES):
            start = max(0, first - _REACH_FRAMES)
            part = faces[:, start : first + _CHUNK_FRAMES + _REACH_FRAMES]
            pixels = torch.from_numpy(np.ascontiguousarray(part)).to(self._device)[:, None]
            encoded = _encode_video(encoder, (pixels / 255 - _GREY_MEAN) / _GREY_STD)
            yield encoded[:, first - start :][:, :_CHUNK_FRAMES]


def _of_one_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in groups of at most `size` that share a length other than 0."""
    for length in sorted(set(lengths) - {0}):
        same = [index for index, other in enumerate(lengths) if other == length]
        yield from (same[first : first + size] for first in range(0, len(same), size))


def _cepstra(samples: Floats, num_frames: int) -> Floats:
    """Cepstra [4 F, 13], four for each frame. The audio is cut, or silence follows it."""
    # T windows at hop H and width W cover (T - 1) H + W samples.
    num_samples = (4 * num_frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES
    cut = samples[:num_samples]
    return mfcc(np.pad(cut, (0, num_samples - len(cut)))).astype(np.float32)


_GREY_MEAN, _GREY_STD = 0.4161, 0.1688
"""Source: the published `ASD_Model`."""

_CHANNELS = ((1, 32), (32, 64), (64, 128))
"""Input and output channels of the three blocks of both encoders."""


def _light_asd() -> Any:
    """The layers under their published names. `_encode_video`, `_encode_audio` and `_decode` apply them."""
    from torch import nn

    def video(number: int, inside: int, outside: int) -> Any:
        halves = 2 if number == 1 else 1
        layers: dict[str, Any] = {}
        for k in (3, 5):
            across = {"kernel_size": (1, k, k), "stride": (1, halves, halves), "padding": (0, k // 2, k // 2)}
            layers[f"s_{k}"] = nn.Conv3d(inside, outside, bias=False, **across)
            layers[f"t_{k}"] = nn.Conv3d(outside, outside, (k, 1, 1), padding=(k // 2, 0, 0), bias=False)
        layers["last"] = nn.Conv3d(outside, outside, 1, bias=False)
        return _with_norms(layers, nn.BatchNorm3d)

    def audio(_: int, inside: int, outside: int) -> Any:
        layers: dict[str, Any] = {}
        for k in (3, 5):
            layers[f"m_{k}"] = nn.Conv2d(inside, outside, (k, 1), padding=(k // 2, 0), bias=False)
            layers[f"t_{k}"] = nn.Conv2d(outside, outside, (1, k), padding=(0, k // 2), bias=False)
        layers["last"] = nn.Conv2d(outside, outside, 1, bias=False)
        return _with_norms(layers, nn.BatchNorm2d)

    def encoder(block: Any) -> Any:
        return nn.ModuleDict({f"block{i}": block(i, *c) for i, c in enumerate(_CHANNELS, 1)})

    names = ("gru_forward", "gru_backward")
    rnn = nn.ModuleDict({name: nn.GRU(128, 128, batch_first=True) for name in names})
    model = {"visualEncoder": encoder(video), "audioEncoder": encoder(audio), "GRU": rnn}
    heads = {name: nn.ModuleDict({"FC": nn.Linear(128, 2)}) for name in ("lossAV", "lossV")}
    return nn.ModuleDict({"model": nn.ModuleDict(model), **heads})


def _with_norms(layers: Mapping[str, Any], norm: Any) -> Any:
    """The layers, each with its batch normalisation beside it."""
    from torch import nn

    norms = {f"bn_{name}": norm(layer.out_channels, eps=1e-3) for name, layer in layers.items()}
    return nn.ModuleDict({**layers, **norms})


def _block(block: Any, x: Any, across: str) -> Any:
    """Two paths, each a convolution over bands ("m") or pixels ("s") and then one over time; summed."""

    def layer(name: str, x: Any) -> Any:
        return block[f"bn_{name}"](block[name](x)).relu()

    paths = [layer(f"t_{k}", layer(f"{across}_{k}", x)) for k in (3, 5)]
    return layer("last", paths[0] + paths[1])


def _encode_video(encoder: Any, x: Any) -> Any:
    """Encodings [B, F, 128] of normalised faces [B, 1, F, 112, 112]."""
    from torch.nn.functional import max_pool3d

    x = _block(encoder["block1"], x, "s")
    for name in ("block2", "block3"):
        x = _block(encoder[name], max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)), "s")
    return x.amax((3, 4)).transpose(1, 2)


def _encode_audio(encoder: Any, x: Any) -> Any:
    """Encodings [B, F, 128] of cepstra [B, 4 F, 13]; the rate is halved twice."""
    from torch.nn.functional import max_pool2d

    x = _block(encoder["block1"], x[:, None].transpose(2, 3), "m")
    for name in ("block2", "block3"):
        x = _block(encoder[name], max_pool2d(x, (1, 3), (1, 2), (0, 1)), "m")
    return x.mean(2).transpose(1, 2)


# --------------------------------------------------------------------------- who speaks


def speaking_fraction(scores: Floats, has_speech: NDArray[np.bool_]) -> float | None:
    """Fraction of the frames with speech in which the face is seen to speak.

    Args:
        scores: float32 [F] of `LightAsd.score`.
        has_speech: bool [F], whether there is speech in each frame; a moving mouth scores high even in
            silence.

    Returns:
        0 to 1; None without speech.
    """
    expect_shape("has_speech", has_speech, scores.shape)
    return round(float((scores[has_speech] > 0).mean()), 4) if has_speech.any() else None


def speaker(fractions: Mapping[str, float | None]) -> str | None:
    """Which of the faces in view at the same time speaks.

    That is clear if all were measured and exactly one speaks in more than `SPEAKING_FRACTION` of its speech.
    Lips at rest can score above 0 while another face speaks. Then two seem to speak, and it is unclear.

    Args:
        fractions: face -> its `speaking_fraction`.

    Returns:
        Key of the face; None where it is unclear.
    """
    if any(fraction is None for fraction in fractions.values()):
        return None
    speaking = [key for key, value in fractions.items() if value is not None and value > SPEAKING_FRACTION]
    return speaking[0] if len(speaking) == 1 else None
