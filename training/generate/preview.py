"""Validation samples, made while a run is training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from talkforge.curation.media.encode import decode_flac
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.loader import collate
from talkforge.training.data.shards import motion_quantiles, shard_list
from talkforge.training.data.spans import MEMBERS, decode_sample
from talkforge.training.data.tar import beside, read_samples
from talkforge.training.generate.job import write
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.generate.sound import stereo
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)


def preview(
    model: TalkingWan, encoders: Encoders, config: TrainConfig, info: DatasetInfo, folder: Path
) -> list[Path]:
    """Write a video with audio for each of the first validation samples, and the true one to its right.

    The validation shards are read, or the training shards where there are none. Samples that cannot be used
    are skipped. Model and random state are left as they were.

    Args:
        model: the model that is being trained.
        encoders: of frames, prompts and reference images.
        config: of the run.
        info: of the data set.
        folder: where the videos are written.

    Returns:
        The files.
    """
    shards = config.data.validation_shards or config.data.shards
    training = model.training
    pipeline = GenerationPipeline(model.eval(), encoders, config, info)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        listed = shard_list(shards, config.data.snapshot)
        quantiles = motion_quantiles(listed, config.data.snapshot) if config.data.omega == "span" else {}
        for url, key, members in _samples(url for url, _ in listed):
            if len(written) == config.run.validation_samples:
                break
            try:
                clip = decode_sample(
                    key, members, config.data.sizes, config.data.lengths, info,
                    quantiles=quantiles.get(beside(url, "")),
                )  # fmt: skip
                batch = collate([clip.span(0)], info)
            except SkippedSampleError as error:
                log.warning("no validation sample: %s", error)
                continue
            assert batch.rgb_BFHWC is not None
            video = pipeline.sample(batch.rgb_BFHWC[:, 0], batch, config.sample, config.run.seed)[0]
            both = np.concatenate([video.numpy(), batch.rgb_BFHWC[0].numpy()], axis=2)
            write(
                folder / f"{key}.mp4", iter(both), info.fps, stereo(decode_flac(members["flac"])), len(both)
            )
            written.append(folder / f"{key}.mp4")
    finally:
        model.train(training)
    return written


def _samples(urls: Iterable[str]) -> Iterable[tuple[str, str, dict[str, bytes]]]:
    """Shard, key and members of every sample."""
    for url in urls:
        for key, members in read_samples(url, MEMBERS | {"flac"}):
            yield url, key, members
