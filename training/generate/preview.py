"""Validation samples, made and measured while a run is training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from talkforge.curation.media.encode import decode_flac
from talkforge.schemas import scratch
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import RunError, TalkforgeError, one_line
from talkforge.schemas.units import samples_from_frames
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.loader import collate
from talkforge.training.evaluate.figures import estimate
from talkforge.training.evaluate.measures import Models, Values, compare_frames
from talkforge.training.generate.job import write
from talkforge.training.generate.of_dataset import fitting_samples
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.generate.sound import stereo
from talkforge.training.run import parallel
from talkforge.training.run.progress import Validation
from talkforge.training.wan.encoders import Encoders
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """A clip to generate: its place among the validation samples, its key, its span, its sound as FLAC."""

    number: int
    key: str
    batch: Batch
    flac: bytes


class _Made(NamedTuple):
    """A validation sample: its place among them, name of its file, video, and measures, None without any."""

    number: int
    name: str
    mp4: bytes
    values: tuple[Values, Values] | None


def preview(
    model: TalkingWan,
    encoders: Encoders,
    config: TrainConfig,
    info: DatasetInfo,
    folder: Path,
    accelerator: Accelerator,
) -> Validation:
    """Write a video with audio for each of the first validation samples, and the true one to its right.

    The validation shards are read, or the training shards where there are none. Samples that cannot be used
    are skipped. Model and random state are left as they were. With `run.validation_measures` both videos are
    measured as `talkforge evaluate` does, by networks that need no download.

    Processes share the samples, and the main one writes what all have made. Where the model is sharded over
    them, a forward pass needs every process, so each makes all samples. All have to call this.

    Args:
        model: the model that is being trained.
        encoders: of frames, prompts and reference images.
        config: of the run.
        info: of the data set.
        folder: where the main process writes the videos.
        accelerator: of this process.

    Returns:
        The files, and the means of the measures.

    Raises:
        TalkforgeError: a process could not make its share, or the videos cannot be written.
    """
    main, everyone = accelerator.is_main_process, parallel.is_sharded(accelerator)
    samples: list[_Sample] = []
    with parallel.error_barrier(accelerator):  # nobody begins a forward pass that others cannot join
        samples += _samples(config, info, _skip if main else _ignore)
    own = samples if everyone else samples[accelerator.process_index :: accelerator.num_processes]
    made: list[_Made] = []
    with parallel.error_barrier(accelerator):
        videos = _generated(model, encoders, config, info, own)
        if main or not everyone:
            models = _models() if config.run.validation_measures else None
            made += [_shown(sample, video, models) for sample, video in zip(own, videos, strict=True)]
    if accelerator.num_processes > 1 and not everyone:
        made = sorted(gather_object(made))
    with parallel.error_barrier(accelerator):
        if main:
            _keep(folder, made)
    files = [folder / one.name for one in made]
    return Validation(files, _means([one.values for one in made if one.values is not None]))


def _samples(
    config: TrainConfig, info: DatasetInfo, skip: Callable[[str, SkippedSampleError], None]
) -> Iterator[_Sample]:
    """The first samples that can be used, decoded."""
    shards = config.data.validation_shards or config.data.shards
    number = 0
    for key, members, clip in fitting_samples(shards, config.data, info, skip):
        try:
            yield _Sample(number, key, collate([clip.span(0)], info), members["flac"])
        except SkippedSampleError as error:
            skip(key, error)
            continue
        number += 1
        if number == config.run.validation_samples:
            return


def _generated(
    model: TalkingWan, encoders: Encoders, config: TrainConfig, info: DatasetInfo, samples: Sequence[_Sample]
) -> list[Bytes]:
    """Frames [F, H, W, 3] of each sample, generated from its first frame."""
    training = model.training
    pipeline = GenerationPipeline(model.eval(), encoders, config, info)
    videos = []
    try:
        for sample in samples:
            assert sample.batch.rgb_BFHWC is not None
            first = sample.batch.rgb_BFHWC[:, 0]
            videos.append(pipeline.sample(first, sample.batch, config.sample, config.run.seed)[0].numpy())
    finally:
        model.train(training)
    return videos


def _shown(sample: _Sample, made: Bytes, models: Models | None) -> _Made:
    """A generated video beside the true one, with the sound of the clip."""
    batch, sound = sample.batch, decode_flac(sample.flac)
    assert batch.rgb_BFHWC is not None
    true = batch.rgb_BFHWC[0].numpy()
    both = np.concatenate([made, true], axis=2)
    with scratch.folder() as folder:
        write(folder / "both.mp4", iter(both), batch.fps, stereo(sound), len(both))
        mp4 = (folder / "both.mp4").read_bytes()
    values = None
    if models is not None:
        heard = sound[: samples_from_frames(len(true), batch.fps)]
        values = compare_frames(list(made), list(true), batch.fps, heard, models)
    return _Made(sample.number, f"{sample.key}.mp4", mp4, values)


def _keep(folder: Path, made: Sequence[_Made]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in made:
            (folder / one.name).write_bytes(one.mp4)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {one_line(error)}") from None


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


def _ignore(_key: str, _: SkippedSampleError) -> None:
    """The main process says it."""
