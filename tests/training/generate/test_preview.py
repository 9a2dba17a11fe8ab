"""Validation samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkforge.curation.media.audio import read_audio_file
from talkforge.training.config import TrainConfig
from talkforge.training.data import loader
from talkforge.training.generate.preview import preview
from talkforge.training.wan.encoders import load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build
from tests.training.runs import four_clips, small
from tests.training.shard_files import Shown, write_set
from tests.training.speakers import EDGE_PX, FRAMES, HZ, shown


def previewed(shards: str, out: Path, **changes: Any) -> tuple[list[Path], TalkingWan, TrainConfig]:
    config = small(shards, out, **changes)
    info = loader.probe(shards)
    model = build(config, info).train()
    encoders = load_encoders(config, model.transformer.config.text_dim, torch.device("cpu"))
    return preview(model, encoders, config, info, out / "samples"), model, config


def test_a_preview_shows_what_was_generated_beside_the_truth(tmp_path: Path) -> None:
    shards = four_clips(tmp_path / "set")
    before = torch.get_rng_state()
    written, model, _ = previewed(shards, tmp_path, run__validation_samples=3)
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
        written, _, _ = previewed(
            shards, tmp_path, run__validation_samples=4, data__validation_shards=held_out
        )
    assert [path.name for path in written] == ["clip06.mp4"]
    assert "no validation sample: clip05: expected 9 frames, found 5" in caplog.text
