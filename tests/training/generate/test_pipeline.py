"""Loading a model, and what every condition changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkforge.schemas.errors import ModelError
from talkforge.training.config import SampleConfig
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.generate.savings import Savings
from talkforge.training.run import checkpoint
from talkforge.training.wan.codec import LinearCodec
from tests.training.batches import some_info
from tests.training.speakers import EDGE_PX, FRAMES, a_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on log-mel features, without identities."""
    return a_run(tmp_path_factory.mktemp("run"), some_info(speech_dim=80, identity_dim=0))


def test_a_seed_is_one_video_and_every_condition_changes_it(run: Path) -> None:
    pipeline = GenerationPipeline.load(run, "cpu")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, EDGE_PX, EDGE_PX, 3), generator=generator).to(torch.uint8)
    speech = torch.randn(1, 18, 80, generator=generator)

    def video(
        rgb: torch.Tensor = image, features: torch.Tensor = speech, omega: float = 0.5, seed: int = 0
    ) -> Any:
        batch = pipeline.batch(features, (omega, 0.5), (EDGE_PX, EDGE_PX))
        return pipeline.sample(rgb, batch, SampleConfig(steps=2, text_cfg=1, audio_cfg=1), seed)

    first = video()
    assert first.shape == (1, FRAMES, EDGE_PX, EDGE_PX, 3) and first.dtype == torch.uint8
    assert torch.equal(video(), first)
    others = (video(rgb=255 - image), video(features=-speech), video(omega=1.0), video(seed=1))
    assert all(not torch.equal(other, first) for other in others)


def test_the_average_of_the_weights_is_what_speaks(tmp_path: Path, run: Path) -> None:
    info = some_info(speech_dim=80, identity_dim=0)
    a_run(tmp_path, info)
    found = checkpoint.read(checkpoint.find(tmp_path))
    average = {name: tensor + 0.1 for name, tensor in found.trained().items()}
    checkpoint.save(
        tmp_path, found.progress, found.config, trained=found.trained(), optimizer={}, ema=average,
        codec=found.codec(), keep=1,
    )  # fmt: skip
    weights = dict(GenerationPipeline.load(tmp_path, "cpu").model.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in average.items())
    weights = dict(GenerationPipeline.load(run, "cpu").model.named_parameters())
    plain = checkpoint.read(checkpoint.find(run)).trained()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.items())


def test_an_identity_is_given_to_all_or_to_none(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.load(a_run(tmp_path, some_info(speech_dim=80, identity_dim=8)), "cpu")
    known = np.eye(8, dtype=np.float32)[3]
    batch = pipeline.batch(
        torch.zeros(2, 18, 80), (0.2, 0.7), (EDGE_PX, EDGE_PX), identity_D=known, prompt="hello"
    )
    assert batch.identity_BD.tolist() == [known.tolist()] * 2 and batch.has_identity_B.tolist() == [
        True,
        True,
    ]
    assert batch.texts == ("hello", "hello") and batch.num_frames == FRAMES
    assert torch.equal(batch.omega_B2, torch.tensor([[0.2, 0.7]] * 2))
    unknown = pipeline.batch(torch.zeros(1, 18, 80), (0.5, 0.5), (EDGE_PX, EDGE_PX))
    assert unknown.has_identity_B.tolist() == [False] and not unknown.identity_BD.any()


def test_the_image_is_dropped_and_the_identity_stays(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.load(a_run(tmp_path, some_info(speech_dim=80, identity_dim=8)), "cpu")
    settings = SampleConfig(steps=2, text_cfg=1, audio_cfg=1)
    image = torch.full((1, EDGE_PX, EDGE_PX, 3), 90, dtype=torch.uint8)

    def video(rgb: torch.Tensor | None, who: int | None) -> torch.Tensor:
        known = None if who is None else np.eye(8, dtype=np.float32)[who]
        batch = pipeline.batch(torch.zeros(1, 18, 80), (0.5, 0.5), (EDGE_PX, EDGE_PX), identity_D=known)
        return pipeline.sample(rgb, batch, settings, 0)

    videos = [video(None, 1), video(None, 2), video(None, None), video(image, 1)]
    assert all(one.shape == (1, FRAMES, EDGE_PX, EDGE_PX, 3) for one in videos)
    assert len({one.numpy().tobytes() for one in videos}) == 4
    assert torch.equal(video(None, 1), videos[0])


def test_a_device_that_is_none_is_refused(run: Path) -> None:
    with pytest.raises(ModelError, match="--device quantum: is no torch device"):
        GenerationPipeline.load(run, "quantum")


@pytest.mark.parametrize("offload", ("none", "model", "group"))
def test_only_what_is_used_is_on_the_device(run: Path, offload: str) -> None:
    """On a device without memory, which shows where everything is."""
    pipeline = GenerationPipeline.load(run, "cpu", Savings(offload=offload), prompts=[])
    pipeline.device = torch.device("meta")

    def places() -> tuple[str, str]:
        codec = pipeline.encoders.codec
        assert isinstance(codec, LinearCodec)
        return next(pipeline.model.parameters()).device.type, codec._first.device.type

    assert places() == ("cpu", "cpu")
    pipeline.use("transformer")
    assert places() == (("meta" if offload == "model" else "cpu"), "cpu")
    pipeline = GenerationPipeline.load(run, "cpu", Savings(offload=offload), prompts=[])
    pipeline.device = torch.device("meta")
    pipeline.use("codec")
    assert places() == ("cpu", "cpu" if offload == "none" else "meta")
