"""Small batches with random content, for the trainer's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from talkforge.schemas.units import features_from_frames
from talkforge.training.data.batch import Batch, Cached, DatasetInfo


def a_batch(
    size: int = 2,
    num_frames: int = 9,
    edge_px: int = 32,
    speech_dim: int = 12,
    identity_dim: int = 8,
    fps: float = 25.0,
    seed: int = 0,
    **changes: Any,
) -> Batch:
    """Spans of noise with lips in the middle of every frame."""
    generator = torch.Generator().manual_seed(seed)
    lips = torch.zeros(size, num_frames, edge_px, edge_px, dtype=torch.uint8)
    lips[:, :, edge_px // 2 : edge_px * 3 // 4, edge_px // 4 : edge_px * 3 // 4] = 1
    identity = torch.randn(size, identity_dim, generator=generator)
    batch = Batch(
        keys=tuple(f"clip{k}+0" for k in range(size)),
        fps=fps,
        rgb_BFHWC=torch.randint(0, 256, (size, num_frames, edge_px, edge_px, 3), generator=generator).to(
            torch.uint8
        ),
        lips_BFHW=lips,
        lip_valid_BF=torch.ones(size, num_frames, dtype=torch.bool),
        speech_BLD=torch.randn(size, features_from_frames(num_frames, fps), speech_dim, generator=generator),
        identity_BD=identity / identity.norm(dim=1, keepdim=True) if identity_dim else identity,
        has_identity_B=torch.full((size,), identity_dim > 0),
        omega_B2=torch.rand(size, 2, generator=generator),
        texts=("",) * size,
    )
    return replace(batch, **changes)


def a_cache(size: int = 2, num_frames: int = 9, edge_px: int = 32, seed: int = 0) -> Cached:
    """Random latents, as `talkforge encode` would have left them, without text or CLIP features."""
    generator = torch.Generator().manual_seed(seed)
    grid = (num_frames // 4 + 1, edge_px // 8, edge_px // 8)
    return Cached(
        latents_BCTHW=torch.randn(size, 16, *grid, generator=generator),
        condition_BCTHW=torch.randn(size, 20, *grid, generator=generator),
        text_BSD=None,
        empty_text_SD=None,
        image_BKD=None,
    )


def some_info(speech_dim: int = 12, identity_dim: int = 8, fps: float = 25.0) -> DatasetInfo:
    """What a probe of a data set of such batches would say."""
    return DatasetInfo(
        fps=fps,
        speech_dim=speech_dim,
        speech_model="logmel-80",
        identity_dim=identity_dim,
        identity_model="mobilefacenet" if identity_dim else "",
        num_shards=2,
        num_samples=8,
        fingerprint="0" * 64,
    )
