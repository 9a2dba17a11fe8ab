"""TransNet V2, a network for shot boundary detection.

Source: Souček and Lokoč, TransNet V2: An effective deep network architecture for fast shot
transition detection (2020): the architecture, the windows and the threshold. The names of the
tensors are those of the published weights.

Importing this module imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from talkforge.curation.shots.network import FRAME_HEIGHT_PX, FRAME_WIDTH_PX
from talkforge.curation.weights.torch import inference, load_file
from talkforge.schemas.arrays import Bytes, Floats, expect_shape

WINDOW_FRAMES = 100
MARGIN_FRAMES = 25
"""Length of the input, and how many frames on either side of it give no result. So windows advance by 50
frames. Source: the published code."""

_SIMILARITY_FRAMES = 101
_COLOURS = 8**3


class TransNet:
    """The network with its published weights, read from a torch state dict.

    On a CPU it runs on one thread, so that the number of cores does not change the result.

    Raises:
        ModelError: the file is not a state dict of TransNet V2. The message is one line.
    """

    name = "transnetv2"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = _TransNetV2()
        load_file(self._network, path, self.name)
        self._network.eval().to(self._device)

    def boundaries(self, frames: Bytes) -> Floats:
        """Probability float32 [N] that a shot ends with the frame, for frames uint8 RGB [N, 27, 48, 3].

        Beside the frames, it takes the memory of one window.
        """
        expect_shape("frames", frames, (None, FRAME_HEIGHT_PX, FRAME_WIDTH_PX, 3))
        found = np.zeros(len(frames), np.float32)
        step = WINDOW_FRAMES - 2 * MARGIN_FRAMES
        for start in range(0, len(frames), step):
            # The first and the last frame are repeated beyond the ends.
            wanted = np.arange(start - MARGIN_FRAMES, start - MARGIN_FRAMES + WINDOW_FRAMES)
            window = frames[np.clip(wanted, 0, len(frames) - 1)]
            middle = self._run(window)[MARGIN_FRAMES:-MARGIN_FRAMES]
            found[start : start + step] = middle[: len(frames) - start]
        return found

    def _run(self, window: Bytes) -> Floats:
        with inference():
            logits = self._network(torch.from_numpy(window)[None].to(self._device))
            return np.asarray(torch.sigmoid(logits)[0].float().cpu().numpy())


# Legend of the shapes below: B batch, C channels, T frames, H height, W width, K similarities.


class _TransNetV2(nn.Module):  # type: ignore[misc]
    """uint8 [B, T, H, W, 3] -> logits [B, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([_Stack(3, 16), _Stack(64, 32), _Stack(128, 64)])
        self.frame_sim_layer = _FrameSimilarity(64 + 128 + 256)
        self.color_hist_layer = _ColourSimilarity()
        self.fc1 = nn.Linear(256 * 3 * 6 + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        # The head that marks every frame of a transition. Only training uses it, but the weights hold it.
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames_bthwc: Any) -> Any:
        features = frames_bthwc.permute(0, 4, 1, 2, 3).float() / 255
        stages = []
        for stack in self.SDDCNN:
            features = stack(features)
            stages.append(features)
        flat = features.permute(0, 2, 3, 4, 1).flatten(2)
        similar = self.frame_sim_layer(stages)
        joined = torch.cat([self.color_hist_layer(frames_bthwc), similar, flat], dim=2)
        return self.cls_layer1(functional.relu(self.fc1(joined)))[..., 0]


class _Stack(nn.Module):  # type: ignore[misc]
    """Two dilated blocks with a shortcut around the second, then average pooling by 2 in space."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(channels, filters), _Dilated(4 * filters, filters)])

    def forward(self, x: Any) -> Any:
        first = functional.relu(self.DDCNN[0](x))
        return functional.avg_pool3d(functional.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class _Dilated(nn.Module):  # type: ignore[misc]
    """Four parallel convolutions over 3 frames that are 1, 2, 4 and 8 frames apart."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.Conv3D_1 = _SpaceThenTime(channels, filters, 1)
        self.Conv3D_2 = _SpaceThenTime(channels, filters, 2)
        self.Conv3D_4 = _SpaceThenTime(channels, filters, 4)
        self.Conv3D_8 = _SpaceThenTime(channels, filters, 8)
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x: Any) -> Any:
        convolutions = (self.Conv3D_1, self.Conv3D_2, self.Conv3D_4, self.Conv3D_8)
        return self.bn(torch.cat([convolution(x) for convolution in convolutions], dim=1))


class _SpaceThenTime(nn.Module):  # type: ignore[misc]
    """A separable 3-D convolution: 3x3 in space, then 3 in time."""

    def __init__(self, channels: int, filters: int, apart: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(apart, 1, 1), padding=(apart, 0, 0), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Any) -> Any:
        return self.layers(x)


class _FrameSimilarity(nn.Module):  # type: ignore[misc]
    """Learned similarity of each frame to the 50 before and after it: stages -> [B, T, 128]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, 128)
        self.fc = nn.Linear(_SIMILARITY_FRAMES, 128)

    def forward(self, stages: list[Any]) -> Any:
        means = torch.cat([stage.mean(dim=(3, 4)) for stage in stages], dim=1)
        return functional.relu(self.fc(_neighbours(self.projection(means.transpose(1, 2)))))


class _ColourSimilarity(nn.Module):  # type: ignore[misc]
    """Similarity of the histograms of 512 colours, likewise: uint8 [B, T, H, W, 3] -> [B, T, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(_SIMILARITY_FRAMES, 128)

    def forward(self, frames_bthwc: Any) -> Any:
        red, green, blue = (frames_bthwc >> 5).long().unbind(dim=-1)
        colours = ((red * 8 + green) * 8 + blue).flatten(2)
        counts = colours.new_zeros((*colours.shape[:2], _COLOURS), dtype=torch.float32)
        counts.scatter_add_(2, colours, torch.ones_like(colours, dtype=torch.float32))
        return functional.relu(self.fc(_neighbours(counts)))


def _neighbours(vectors_btc: Any) -> Any:
    """Cosine similarities [B, T, K] of each frame to the frames at offsets -50..50, 0 beyond the ends."""
    unit = functional.normalize(vectors_btc, dim=2)
    reach = _SIMILARITY_FRAMES // 2
    padded = functional.pad(unit @ unit.transpose(1, 2), (reach, reach))
    batch, frames = unit.shape[:2]
    offsets = torch.arange(_SIMILARITY_FRAMES, device=unit.device)
    columns = torch.arange(frames, device=unit.device)[:, None] + offsets
    return padded.gather(2, columns.expand(batch, -1, -1))
