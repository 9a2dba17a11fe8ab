"""Alignment: the audio window of each latent frame, and the lip mask on the latent grid.

Training and generation both use it. Suffixes are those of `training.data.batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from talkforge.schemas.units import LATENT_STRIDE_FRAMES, latent_frames
from talkforge.training.data.batch import Windows

MARGIN_FEATURES = 4
"""Features added on each side of a latent frame's own span. Source: published inference code."""


def windows(num_features: int, num_frames: int) -> Windows:
    """Windows of a span.

    At 23 frames/s, 81 frames and 175 features, a window has 17 positions of which 6, 14, 17 ... 17, 14 are
    valid. Source: published inference code of FantasyTalking.

    Args:
        num_features: speech features of the span.
        num_frames: frames of the span, 4n + 1.

    Raises:
        ValueError: `num_frames` is not 4n + 1, or there are no features.
    """
    if num_features < 1:
        raise ValueError(f"a window needs at least one speech feature, not {num_features}")
    per_frame = num_features / num_frames
    return windows_at(range(latent_frames(num_frames)), num_features, per_frame, per_frame)


def windows_at(
    latents: Sequence[int], num_features: int, per_frame: float, trained_per_frame: float
) -> Windows:
    """Windows of chosen latent frames of a video.

    Args:
        latents: numbers of the latent frames in the video.
        num_features: speech features of the video.
        per_frame: speech features of a frame.
        trained_per_frame: the same of the spans that the model was trained on, where it was rounded to whole
            features. The width of a window follows from it.
    """
    half = int(trained_per_frame * LATENT_STRIDE_FRAMES / 2)
    width = 2 * half + 1 + 2 * MARGIN_FEATURES
    starts = [_start(i, per_frame, half) for i in latents]
    feature_TW = torch.tensor(starts)[:, None] - MARGIN_FEATURES + torch.arange(width)
    inside_TW = (feature_TW >= 0) & (feature_TW < num_features)
    position_TW = torch.argsort((~inside_TW).int(), dim=1, stable=True)
    valid_TW = inside_TW.gather(1, position_TW)
    return Windows(feature_TW.gather(1, position_TW) * valid_TW, valid_TW, position_TW)


def _start(latent: int, per_frame: float, half: int) -> int:
    """First feature of a latent frame's own span, before the margin."""
    nth = max(latent, 1)
    centre = int((per_frame * ((nth - 1) * 4 + 1) + per_frame * (nth * 4 + 1)) / 2) - 1
    start = centre - half
    return start if latent else start - 2 * half


def gather_windows(tokens_BLC: Tensor, found: Windows) -> Tensor:
    """Tokens of every window, [B, T, W, C], zeros in positions that are not valid.

    Args:
        tokens_BLC: a token for each speech feature of the span.
        found: windows of the span.
    """
    index_TW = found.index_TW.to(tokens_BLC.device)
    valid_TW = found.valid_TW.to(tokens_BLC.device)
    return tokens_BLC[:, index_TW] * valid_TW[None, :, :, None].to(tokens_BLC.dtype)


def latent_masks(
    masks_BFHW: Tensor,
    valid_BF: Tensor | None,
    size_HW: tuple[int, int],
    resize: Literal["trilinear", "area"],
) -> Tensor:
    """Mask of the lips or of the face on the latent grid, [B, 1, T, H, W] float32, 0 to 1.

    The first latent frame is frame 0, and each later one is four frames. So the first frame is resized by
    itself and the rest in fours, as the causal codec does. Resizing 81 frames to 21 at once would be off by
    up to 1.1 frames. Frames that are not valid have none.

    Args:
        masks_BFHW: 0/1, F = 4n + 1.
        valid_BF: bool, frames whose mask is valid. None: all.
        size_HW: height and width of the latent grid.
        resize: 'trilinear' samples the mask at the cells' centres (Source: FantasyTalking §3.2). 'area'
            averages over each cell, which loses no lips where cells are larger than a lip.
    """
    latents = latent_frames(masks_BFHW.shape[1])
    valid = masks_BFHW if valid_BF is None else masks_BFHW * valid_BF[:, :, None, None]
    masks = valid.float().unsqueeze(1)
    pieces = [_resized(masks[:, :, :1], (1, *size_HW), resize)]
    if latents > 1:
        pieces.append(_resized(masks[:, :, 1:], (latents - 1, *size_HW), resize))
    return torch.cat(pieces, dim=2)


def _resized(lips: Tensor, size: tuple[int, int, int], resize: str) -> Tensor:
    if resize == "area":
        return functional.interpolate(lips, size, mode="area")
    return functional.interpolate(lips, size, mode="trilinear", align_corners=False)
