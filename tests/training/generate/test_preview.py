"""Validation samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from talkforge.curation.media.audio import read_audio_file
from talkforge.schemas.errors import ModelError
from talkforge.training.config import TrainConfig
from talkforge.training.data import loader
from talkforge.training.evaluate.measures import Models, Values
from talkforge.training.generate import preview as module
from talkforge.training.generate.preview import preview
from talkforge.training.run.progress import Validation
from talkforge.training.wan.encoders import load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build
from tests.training.runs import four_clips, small
from tests.training.shard_files import Shown, write_set
from tests.training.speakers import EDGE_PX, FRAMES, HZ, shown


def previewed(shards: str, out: Path, **changes: Any) -> tuple[Validation, TalkingWan, TrainConfig]:
    config = small(shards, out, **changes)
    info = loader.probe(shards)
    model = build(config, info).train()
    encoders = load_encoders(config, model.transformer.config.text_dim, torch.device("cpu"))
    found = preview(model, encoders, config, info, out / "samples", Accelerator(cpu=True))
    return found, model, config


def test_a_preview_shows_what_was_generated_beside_the_truth(tmp_path: Path) -> None:
    shards = four_clips(tmp_path / "set")
    before = torch.get_rng_state()
    found, model, _ = previewed(shards, tmp_path, run__validation_samples=3, run__validation_measures=False)
    written = found.files
    assert found.measures == {}
    assert [path.name for path in written] == ["clip01.mp4", "clip02.mp4", "clip03.mp4"]
    assert model.training and torch.equal(torch.get_rng_state(), before)
    images, fps = shown(written[1])
    assert images.shape == (FRAMES, EDGE_PX, 2 * EDGE_PX, 3) and fps == 25
    # Clip 2 of the made set: in frame k red is 24 + 7 k, and blue 48.
    truth = images[:, 8:24, EDGE_PX + 8 : 2 * EDGE_PX - 8].mean(axis=(1, 2))
    assert np.abs(truth[:, 0] - (24 + 7 * np.arange(FRAMES))).max() < 6
    assert np.abs(truth[:, 2] - 48).max() < 6
    assert len(read_audio_file(written[1], HZ, 2)) > 0


def test_held_out_samples_come_first_and_unfit_ones_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = four_clips(tmp_path / "set")
    held_out = write_set(tmp_path / "other", [[Shown(5, num_frames=5), Shown(6)]])
    with caplog.at_level(logging.WARNING, "talkforge.training.generate.preview"):
        found, _, _ = previewed(
            shards, tmp_path, run__validation_samples=4, data__validation_shards=held_out,
            run__validation_measures=False,
        )  # fmt: skip
    assert [path.name for path in found.files] == ["clip06.mp4"]
    assert "no validation sample: clip05: expected 9 frames, found 5" in caplog.text


def test_samples_are_measured_against_the_true_frames_and_their_own_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = four_clips(tmp_path / "set")
    seen: list[tuple[int, float, int]] = []

    def compared(made: Any, true: Any, fps: float, samples: Any, _: Models) -> tuple[Values, Values]:
        seen.append((round(float(true[1][..., 2].mean())), fps, len(samples)))
        assert len(made) == len(true) == FRAMES and made[0].shape == true[0].shape
        return {"jitter": float(len(seen)), "sync_probability": None}, {"jitter": 5.0}

    monkeypatch.setattr(module, "_models", lambda: "networks")
    monkeypatch.setattr(module, "compare_frames", compared)
    found, _, _ = previewed(shards, tmp_path)
    # Blue is 20 + 14 for clip 1, and so on; 9 frames at 25 per second are 5760 samples.
    assert [(fps, samples) for _, fps, samples in seen] == [(25.0, 5760)] * 2
    assert [abs(blue - truth) <= 2 for (blue, _, _), truth in zip(seen, (34, 48), strict=True)] == [True] * 2
    assert found.measures == {"jitter": 1.5, "true_jitter": 5.0}


def test_without_weights_samples_are_made_and_the_log_says_why_they_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> Models:
        raise ModelError("face_landmarker: no package index")

    monkeypatch.setattr(Models, "load", missing)
    module._models.cache_clear()
    with caplog.at_level(logging.WARNING, "talkforge.training.generate.preview"):
        found, _, _ = previewed(four_clips(tmp_path / "set"), tmp_path, run__validation_samples=1)
    module._models.cache_clear()
    assert len(found.files) == 1 and found.measures == {}
    assert "validation samples are not measured: face_landmarker: no package index" in caplog.text
