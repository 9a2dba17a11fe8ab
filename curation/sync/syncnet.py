"""SyncNet: Sync-C, Sync-D and offset of face crops and audio, as the literature reports them.

Source: Chung and Zisserman, "Out of time: automated lip sync in the wild", ACCV workshops 2016. Layers and
evaluation are those of the published `syncnet_v2.model` and its pipeline
(https://github.com/joonson/syncnet_python): 25 frames per second, crops of 224 px, windows of 5 frames
against 20 cepstra, shifts of up to 15 frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from talkforge.curation.audio.cepstra import NUM_CEPSTRA, mfcc
from talkforge.curation.face.crops import FACE_CROP_PX, FPS, resample_crops
from talkforge.curation.weights.torch import inference, load_file
from talkforge.schemas.arrays import Bytes, Floats, expect_shape
from talkforge.schemas.units import samples_from_frames

SHIFT_FRAMES = 15
"""Largest shift to either side, frames. Source: `vshift` of the published demo."""

WINDOW_FRAMES = 5
"""Frames in a window of the mouth, 0.2 s."""

WINDOW_CEPSTRA = 20
"""Cepstra in a window of the audio, 0.2 s."""

MIN_FRAMES = WINDOW_FRAMES + 1
"""Least number of frames that get a score. The published evaluation leaves out the last window."""

_CHUNK_WINDOWS = 20
"""Windows in one call, which limits the memory to some 500 MB."""


class SyncScore(NamedTuple):
    """How well audio and mouth agree.

    Attributes:
        sync_c: confidence, >= 0: median over the shifts of the mean distance, minus its minimum. Higher is
            surer.
        sync_d: that minimum. Lower is better.
        offset_frames: frames at 25 fps by which the audio must be delayed to match the mouth, as
            `Sync.sync_offset_frames`, -15 to 15.
    """

    sync_c: float
    sync_d: float
    offset_frames: int


class SyncNet:
    """SyncNet with its published weights.

    Args:
        path: state dict as published: `netcnnaud.*`, `netfcaud.*`, `netcnnlip.*`, `netfclip.*`.
        device: torch device.

    Raises:
        ModelError: not that state dict; one line.
    """

    name = "syncnet_v2"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._network = _layers()
        load_file(self._network, path, self.name)
        self._network.eval().to(device)
        self._device = device

    def score(self, faces: Bytes, samples: Floats, fps: float = FPS) -> SyncScore | None:
        """Sync-C, Sync-D and offset of a face and audio.

        Args:
            faces: RGB uint8 [F, 224, 224, 3] of `crop_face`, frame k at second k / `fps`.
            samples: float32 [N] at 16 kHz, sample 0 at frame 0.
            fps: frame rate. If it is not 25, the nearest frames at 25 are scored.

        Returns:
            The scores; None with fewer than `MIN_FRAMES` of either.
        """
        embedded = self.embed(faces, samples, fps)
        return None if embedded is None else compare(*embedded)

    def embed(self, faces: Bytes, samples: Floats, fps: float = FPS) -> tuple[Floats, Floats] | None:
        """Embeddings of the windows of mouth and audio.

        Args:
            faces: as `score`.
            samples: as `score`.
            fps: as `score`.

        Returns:
            float32 [W, 1024] of the mouth and of the audio; window w begins at frame w. None if there are
            none.
        """
        expect_shape("faces", faces, (None, FACE_CROP_PX, FACE_CROP_PX, 3))
        expect_shape("samples", samples, (None,))
        faces = resample_crops(faces, fps)
        num_windows = min(len(faces), len(samples) // samples_from_frames(1, FPS)) - WINDOW_FRAMES
        if num_windows < 1:
            return None
        cepstra = mfcc(samples).astype(np.float32)
        with inference():
            spans = [
                (first, min(first + _CHUNK_WINDOWS, num_windows))
                for first in range(0, num_windows, _CHUNK_WINDOWS)
            ]
            mouth = np.concatenate([self._embed_mouth(faces, *span) for span in spans])
            audio = np.concatenate([self._embed_audio(cepstra, *span) for span in spans])
        return mouth, audio

    def _embed_mouth(self, faces: Bytes, first: int, end: int) -> Floats:
        """Embeddings of windows `first` to `end`; the first layer slides over the frames that they share."""
        import torch

        bgr = np.ascontiguousarray(faces[first : end + WINDOW_FRAMES - 1, :, :, ::-1])
        pixels = torch.from_numpy(bgr).to(self._device).float().permute(3, 0, 1, 2)[None]
        features = self._network["netcnnlip"](pixels)[0, :, :, 0, 0].T
        return np.asarray(self._network["netfclip"](features).cpu().numpy(), np.float32)

    def _embed_audio(self, cepstra: Floats, first: int, end: int) -> Floats:
        import torch

        step = 100 // int(FPS)
        windows = np.stack([cepstra[w * step : w * step + WINDOW_CEPSTRA].T for w in range(first, end)])
        expect_shape("cepstra", windows, (end - first, NUM_CEPSTRA, WINDOW_CEPSTRA))
        inputs = torch.from_numpy(np.ascontiguousarray(windows[:, None])).to(self._device)
        features = self._network["netcnnaud"](inputs).flatten(1)
        return np.asarray(self._network["netfcaud"](features).cpu().numpy(), np.float32)


def compare(mouth: Floats, audio: Floats) -> SyncScore:
    """Sync-C, Sync-D and offset of embeddings.

    Distance d[s] of shift s = -15 ... 15 is the mean over w of |mouth[w] - audio[w + s]|, where the audio is
    zero beyond its ends. Sync-D is the minimum of d, and Sync-C its median minus the minimum. The offset is
    minus the shift of the minimum: audio that comes s frames late must be delayed by -s.

    Args:
        mouth: float32 [W, D].
        audio: float32 [W, D].

    Source: `calc_pdist` and `evaluate` of the published pipeline, with its 1e-6 on each difference.
    """
    expect_shape("mouth", mouth, (None, None))
    expect_shape("audio", audio, mouth.shape)
    padded = np.pad(audio.astype(np.float64), ((SHIFT_FRAMES, SHIFT_FRAMES), (0, 0)))
    means = []
    for begin in range(2 * SHIFT_FRAMES + 1):  # begin = s + SHIFT_FRAMES
        difference = mouth - padded[begin : begin + len(mouth)] + 1e-6
        means.append(np.sqrt(np.square(difference).sum(axis=1)).mean())
    least = int(np.argmin(means))
    distance = float(means[least])
    confidence = float(np.median(means)) - distance
    return SyncScore(round(confidence, 4), round(distance, 4), SHIFT_FRAMES - least)


def _layers() -> Any:
    """The four parts of the network under their published names, each layer at its published index."""
    from torch import nn

    def audio(inside: int, outside: int, kernel: tuple[int, int], pad: int) -> list[Any]:
        return [nn.Conv2d(inside, outside, kernel, padding=pad), nn.BatchNorm2d(outside), nn.ReLU()]

    def mouth(inside: int, outside: int, kernel: tuple[int, int, int], stride: int, pad: int) -> list[Any]:
        conv = nn.Conv3d(inside, outside, kernel, (1, stride, stride), (0, pad, pad))
        return [conv, nn.BatchNorm3d(outside), nn.ReLU()]

    def head() -> Any:
        return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    netcnnaud = nn.Sequential(
        *audio(1, 64, (3, 3), 1),
        nn.MaxPool2d((1, 1), (1, 1)),
        *audio(64, 192, (3, 3), 1),
        nn.MaxPool2d((3, 3), (1, 2)),
        *audio(192, 384, (3, 3), 1),
        *audio(384, 256, (3, 3), 1),
        *audio(256, 256, (3, 3), 1),
        nn.MaxPool2d((3, 3), (2, 2)),
        *audio(256, 512, (5, 4), 0),
    )
    netcnnlip = nn.Sequential(
        *mouth(3, 96, (5, 7, 7), 2, 0),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *mouth(96, 256, (1, 5, 5), 2, 1),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *mouth(256, 256, (1, 3, 3), 1, 1),
        *mouth(256, 256, (1, 3, 3), 1, 1),
        *mouth(256, 256, (1, 3, 3), 1, 1),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *mouth(256, 512, (1, 6, 6), 1, 0),
    )
    parts = {"netcnnaud": netcnnaud, "netfcaud": head(), "netcnnlip": netcnnlip, "netfclip": head()}
    return nn.ModuleDict(parts)
