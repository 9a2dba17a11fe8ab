"""Validation samples, made and measured while a run is training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from talkforge.curation.media.encode import decode_flac
from talkforge.schemas.errors import TalkforgeError
from talkforge.schemas.units import samples_from_frames
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.loader import collate
from talkforge.training.evaluate.figures import estimate
from talkforge.training.evaluate.measures import Models, Values, compare_frames
from talkforge.training.generate.job import write
from talkforge.training.generate.of_dataset import fitting_samples
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.generate.sound import stereo
from talkforge.training.run.progress import Validation
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)


def preview(
    model: TalkingWan, encoders: Encoders, config: TrainConfig, info: DatasetInfo, folder: Path
) -> Validation:
    """Write a video with audio for each of the first validation samples, and the true one to its right.

    The validation shards are read, or the training shards where there are none. Samples that cannot be used
    are skipped. Model and random state are left as they were. With `run.validation_measures` both videos are
    measured as `talkforge evaluate` does, by networks that need no download.

    Args:
        model: the model that is being trained.
        encoders: of frames, prompts and reference images.
        config: of the run.
        info: of the data set.
        folder: where the videos are written.

    Returns:
        The files, and the means of the measures.
    """
    shards = config.data.validation_shards or config.data.shards
    training = model.training
    pipeline = GenerationPipeline(model.eval(), encoders, config, info)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    rows: list[tuple[Values, Values]] = []
    models = _models() if config.run.validation_measures else None
    try:
        for key, members, clip in fitting_samples(shards, config.data, info, _skip):
            try:
                batch = collate([clip.span(0)], info)
            except SkippedSampleError as error:
                _skip(key, error)
                continue
            assert batch.rgb_BFHWC is not None
            video = pipeline.sample(batch.rgb_BFHWC[:, 0], batch, config.sample, config.run.seed)[0]
            made, true, sound = video.numpy(), batch.rgb_BFHWC[0].numpy(), decode_flac(members["flac"])
            both = np.concatenate([made, true], axis=2)
            write(folder / f"{key}.mp4", iter(both), info.fps, stereo(sound), len(both))
            written.append(folder / f"{key}.mp4")
            if models is not None:
                heard = sound[: samples_from_frames(len(true), info.fps)]
                rows.append(compare_frames(list(made), list(true), info.fps, heard, models))
            if len(written) == config.run.validation_samples:
                break
    finally:
        model.train(training)
    return Validation(written, _means(rows))


@functools.lru_cache(maxsize=1)
def _models() -> Models | None:
    """The networks of the measures, loaded once; None where their weights are missing, which is logged."""
    try:
        return Models.load()
    except TalkforgeError as error:
        log.warning("validation samples are not measured: %s", error)
        return None


def _means(rows: Sequence[tuple[Values, Values]]) -> dict[str, float]:
    """Mean of each measure over the samples in which it could be taken."""
    found = {}
    for prefix, side in (("", 0), ("true_", 1)):
        for name in dict.fromkeys(name for row in rows for name in row[side]):
            mean = estimate([row[side].get(name) for row in rows]).mean
            if mean is not None:
                found[f"{prefix}{name}"] = mean
    return found


def _skip(_key: str, error: SkippedSampleError) -> None:
    log.warning("no validation sample: %s", error)
