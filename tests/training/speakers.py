"""Runs whose models were never trained, portraits and audio, for the tests of generation."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from examples.portraits import frame
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.run import checkpoint
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.talking_wan import TalkingWan, build
from tests.training.runs import small

FRAMES, EDGE_PX, HZ = 9, 32, 48_000


def moved(model: TalkingWan) -> TalkingWan:
    """With no weight left at zero, so that every condition changes the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def a_codec() -> LinearCodec:
    images = torch.randint(
        0, 256, (4, FRAMES, EDGE_PX, EDGE_PX, 3), generator=torch.Generator().manual_seed(2)
    )
    return LinearCodec.fit([images.to(torch.uint8)])


def a_run(out: Path, info: DatasetInfo, **changes: Any) -> Path:
    """A run's folder with one checkpoint of a model that was never trained."""
    config = small("unused", out, **changes)
    model = moved(build(config, info))
    checkpoint.save(
        out,
        checkpoint.TrainProgress(1, 1, 0, 1, False, info),
        config,
        trained={name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        optimizer={},
        ema=None,
        codec=a_codec(),
        keep=1,
    )
    return out


def tone(path: Path, duration_s: float, hz: float = 440.0) -> Path:
    """A WAV file, mono, 16 kHz."""
    samples = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * 16_000)) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def portrait(path: Path, size_px: int = 200) -> Path:
    cv2.imwrite(str(path), frame("hopper", size_px, size_px).picture[..., ::-1])
    return path


def shown(path: Path) -> tuple[np.ndarray, float]:
    """Pictures [F, H, W, 3] of a video, and its frame rate."""
    reader = cv2.VideoCapture(str(path))
    images = []
    while (found := reader.read())[0]:
        images.append(found[1][..., ::-1])
    return np.stack(images), float(reader.get(cv2.CAP_PROP_FPS))
