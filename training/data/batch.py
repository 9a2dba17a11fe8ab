"""Batches of the loader, and the conditions of the transformer.

Legend of the suffixes: B samples, F video frames, T latent frames, C channels, H W height and width
(of the frame in `*_BFHW`, of the latent grid in `*_BCTHW`), L speech features at 50 Hz, D their
width, S text tokens, K image tokens, W positions of an audio window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


def _moved(record: Any, device: torch.device) -> Any:
    moved = {f.name: v.to(device) for f in fields(record) if isinstance(v := getattr(record, f.name), Tensor)}
    return replace(record, **moved)


@dataclass(frozen=True)
class Cached:
    """What `talkforge encode` has computed of a span.

    Attributes:
        latents_BCTHW: normalised latents of the span, [B, 16, T, H/8, W/8] float32.
        condition_BCTHW: the first frame as a condition, [B, 20, T, H/8, W/8] float32, 4 mask channels and
            16 of latents. See `codec.Codec.condition`.
        text_BSD: prompt embedding, or None where the model has no text encoder.
        empty_text_SD: embedding of the empty prompt, or None likewise.
        image_BKD: CLIP features of the first frame, or None where the model has no image branch.
    """

    latents_BCTHW: Tensor
    condition_BCTHW: Tensor
    text_BSD: Tensor | None
    empty_text_SD: Tensor | None
    image_BKD: Tensor | None

    def to(self, device: torch.device) -> Self:
        """A copy on a device."""
        moved: Self = _moved(self, device)
        return moved


@dataclass(frozen=True)
class Batch:
    """Spans of clips, all of one size and length.

    Attributes:
        keys: `<clip id>+<first frame of the span>` of each sample, for messages.
        fps: of the data set.
        rgb_BFHWC: frames, uint8 [B, F, H, W, 3], or None where `cached` has their latents.
        lips_BFHW: lip mask, uint8 0/1, at the size of the frames, 0 in frames that are not valid.
        lip_valid_BF: bool: the mask of the frame was measured or interpolated.
        speech_BLD: float32 speech features of exactly the span, L = features_from_frames(F, fps).
        identity_BD: float32 of unit length, zeros where `has_identity_B` is False. D may be 0.
        has_identity_B: bool.
        omega_B2: float32, motion intensity of face and body in the span, 0..1, and 0.5 where unknown.
        texts: prompt of each sample, may be empty.
        cached: see `Cached`. None where the frames are to be encoded.
        face_BFHW: mask of the face, uint8 0/1, likewise 0 in frames without one. None where it is not used.
    """

    keys: tuple[str, ...]
    fps: float
    rgb_BFHWC: Tensor | None
    lips_BFHW: Tensor
    lip_valid_BF: Tensor
    speech_BLD: Tensor
    identity_BD: Tensor
    has_identity_B: Tensor
    omega_B2: Tensor
    texts: tuple[str, ...]
    cached: Cached | None = None
    face_BFHW: Tensor | None = None

    @property
    def size(self) -> int:
        """Samples in the batch."""
        return len(self.keys)

    @property
    def num_frames(self) -> int:
        """Frames of each span."""
        return int(self.lips_BFHW.shape[1])

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on a device."""
        moved: Self = _moved(self, device)
        return replace(moved, cached=self.cached.to(device)) if self.cached else moved


@dataclass(frozen=True)
class DatasetInfo:
    """What a model must know of its data set, as `training.data.shards.probe` finds it."""

    fps: float
    speech_dim: int
    speech_model: str
    identity_dim: int
    """0 where clips carry no identity."""
    identity_model: str
    num_shards: int
    num_samples: int
    fingerprint: str
    """sha256 over the shards' manifests: the data set hash of a run."""


@dataclass(frozen=True)
class Windows:
    """The speech features that each latent frame attends to in stage 2.

    Attributes:
        index_TW: int64, index of each feature in the span, the valid ones first. 0 where not valid.
        valid_TW: bool. Positions beyond the span's ends are not valid, and are on the right.
        position_TW: int64, position 0..W-1 of the feature in the window before it was cut at the span's ends.
            The same distance from the latent frame is the same position in every window.
    """

    index_TW: Tensor
    valid_TW: Tensor
    position_TW: Tensor


@dataclass(frozen=True)
class Conditions:
    """Conditions of the transformer: its inputs beside the noisy latents and the timestep.

    Attributes:
        condition_BCTHW: [B, 20, T, H, W], 4 mask channels and 16 of the latents that are given, which are
            those of the reference image and, where a video is continued, of a prefix. Zeros where the image
            is dropped.
        text_BSD: prompt embedding (that of the empty prompt where dropped).
        image_BKD: CLIP features, zeros where dropped. None means that there is no image branch.
        speech_BLD: speech features as measured.
        num_frames: video frames F of the span, 4(T - 1) + 1.
        stage: 'clip' where every video token attends to all speech, 'frame' where it attends to its latent
            frame's window.
        audio_scale_B: weight of the audio attention, lambda1, 0 where dropped.
        identity_BD: identity embedding. None means that the model has no face attention.
        face_scale_B: weight of the face attention, lambda2, 0 where dropped or unknown.
        omega_B2: motion intensities. None means that the model has no motion network.
        windows: audio windows of the latent frames, where they are not those of one span.
    """

    condition_BCTHW: Tensor
    text_BSD: Tensor
    image_BKD: Tensor | None
    speech_BLD: Tensor
    num_frames: int
    stage: str
    audio_scale_B: Tensor
    identity_BD: Tensor | None
    face_scale_B: Tensor
    omega_B2: Tensor | None
    windows: Windows | None = None
