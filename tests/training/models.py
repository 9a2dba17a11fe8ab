"""Small models and their conditions, for the trainer's tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from talkforge.training.config import AdapterConfig, ModelConfig, TrainConfig, WanShape
from talkforge.training.data.batch import Conditions, DatasetInfo
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters

SHAPE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "ffn_dim": 32,
    "text_dim": 8,
    "freq_dim": 16,
}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"in_channels": 16},
    "condition": {"in_channels": 36},
    "image": {"in_channels": 36, "image_dim": 10, "added_kv_proj_dim": 24},
}
ADAPTERS = AdapterConfig(audio_dim=12, face_tokens=4, face_depth=1, face_dim=8, face_heads=2, motion_dim=8)
SPEECH_DIM, IDENTITY_DIM = 6, 5
INFO = DatasetInfo(25.0, SPEECH_DIM, "logmel", IDENTITY_DIM, "arcface", 1, 1, "")
FRAMES, LATENTS, FEATURES = 9, 3, 18


def wan(kind: str = "image") -> WanTransformer3DModel:
    """Stock Wan, the same each time."""
    torch.manual_seed(0)
    return WanTransformer3DModel(**SHAPE, **KINDS[kind])


def talking(kind: str = "image", config: AdapterConfig = ADAPTERS, text_tokens: int = 512) -> TalkingWan:
    """An untrained model on `wan`."""
    torch.manual_seed(1)
    return TalkingWan(wan(kind), config, SPEECH_DIM, IDENTITY_DIM, text_tokens)


def awake(kind: str = "condition", config: AdapterConfig = ADAPTERS, text_tokens: int = 3) -> TalkingWan:
    """A model whose adapters have left zero."""
    model = talking(kind, config, text_tokens)
    torch.manual_seed(2)
    for _, parameter in adapter_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model


def latents(samples: int = 2) -> tuple[Tensor, Tensor]:
    """Noisy latents and timesteps."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 16, LATENTS, 4, 4, generator=generator)
    return x, torch.rand(samples, generator=generator) * 1000


def conditions(stage: str, samples: int = 2, text_tokens: int = 3) -> Conditions:
    """Random, with the audio of the second sample dropped and the face of the third."""
    g = torch.Generator().manual_seed(4)
    return Conditions(
        condition_BCTHW=torch.randn(samples, 20, LATENTS, 4, 4, generator=g),
        text_BSD=torch.randn(samples, text_tokens, 8, generator=g),
        image_BKD=torch.randn(samples, 7, 10, generator=g),
        speech_BLD=torch.randn(samples, FEATURES, SPEECH_DIM, generator=g),
        num_frames=FRAMES,
        stage=stage,
        audio_scale_B=torch.tensor([1.0, 0.0, 2.5])[:samples],
        identity_BD=torch.randn(samples, IDENTITY_DIM, generator=g),
        face_scale_B=torch.tensor([0.5, 0.5, 0.0])[:samples],
        omega_B2=torch.rand(samples, 2, generator=g),
    )


def adapters_with(**values: Any) -> AdapterConfig:
    """The small adapters, changed."""
    return AdapterConfig(**{**ADAPTERS.model_dump(), **values})


def run_config(**model: Any) -> TrainConfig:
    """A run on a random base of the small shape."""
    shape = WanShape(**SHAPE)
    return TrainConfig(model=ModelConfig(shape=shape, text_tokens=3, **model), adapters=ADAPTERS)
