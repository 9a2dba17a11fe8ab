"""Videos of a data set's clips by a trained model, and the true ones at the same size, for evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch

from talkforge.curation.media.encode import decode_flac
from talkforge.pipeline import snapshots
from talkforge.pipeline.store import Store
from talkforge.schemas import scratch
from talkforge.schemas.errors import CommandError, DatasetError, ModelError, RunError, one_line
from talkforge.schemas.progress import ProgressCallback, counted, no_progress
from talkforge.schemas.units import frames_from_seconds, span_features
from talkforge.training.config import DataConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.shards import motion_quantiles, shard_list
from talkforge.training.data.spans import MEMBERS, DecodedSample, decode_sample
from talkforge.training.data.tar import beside, read_samples
from talkforge.training.generate.job import checkpoint_state, decoded_frames, is_made, write
from talkforge.training.generate.pipeline import GenerationPipeline, Speaker
from talkforge.training.generate.sound import stereo

MADE = "made.json"
"""File beside the videos that says what they were made from."""

MAX_S = 20.0
"""Longest part of a clip that is generated, s."""


def generate_clips(
    run: Path,
    dataset: str,
    generated: Path,
    truth: Path,
    clips: int,
    omega: float | None = None,
    *,
    device: str = "auto",
    show: ProgressCallback = no_progress,
) -> dict[str, str]:
    """Generate clips of a data set from their first frame and their sound, and write the true ones beside.

    Both are named by the clip's id. The true ones are the frames that training sees: scaled and cropped to
    the bucket. Clips of the split `validation` are taken where there are any. A run that was interrupted
    goes on.

    Args:
        run: folder of a run, or of a checkpoint.
        dataset: data set.
        generated: folder of the generated videos.
        truth: folder of the true ones.
        clips: most clips.
        omega: motion intensity of face and body, 0..1. None: that of each clip.
        device: 'auto', 'cpu' or a torch device.
        show: gets the progress.

    Returns:
        Why clips were left out, by key.

    Raises:
        CommandError: the run or the data set cannot be used, or no clip fits.
        RunError: a video cannot be written.
    """
    pattern = _shards(dataset)
    try:
        pipeline = GenerationPipeline.load(run, device)
    except ModelError as error:
        raise CommandError(str(error)) from None
    made = {"run": checkpoint_state(run), "dataset": dataset, "omega": omega}
    skipped: dict[str, str] = {}

    def skip(key: str, error: SkippedSampleError) -> None:
        skipped[key] = str(error)

    done: list[str] = []
    _refuse_others(generated, truth)
    try:
        for folder in (generated, truth):
            folder.mkdir(parents=True, exist_ok=True)
        if not is_made(generated / MADE, made):  # before the file says otherwise: this run may be interrupted
            _remove_all_but((), generated, truth)
        (generated / MADE).write_text(json.dumps(made), encoding="utf-8")
        config = pipeline.config.data.model_copy(update={"snapshot": ""})  # the data set's current one
        for key, members, sample in fitting_samples(pattern, config, pipeline.info, skip):
            show(counted("generating", len(done), clips, "clips"))
            paths = [folder / f"{key}.mp4" for folder in (generated, truth)]
            if not all(path.exists() for path in paths):
                try:
                    _make(pipeline, sample, members, omega, *paths)
                except SkippedSampleError as error:
                    skip(key, error)
                    continue
            done.append(key)
            if len(done) == clips:
                break
    except OSError as error:
        raise RunError(f"{generated}: cannot be written: {one_line(error)}") from None
    if not done:
        why = next(iter(skipped.values()), "it has no samples")
        raise CommandError(f"--set {dataset}: no clip fits the run: {why}")
    _remove_all_but(done, generated, truth)  # an earlier request may have been of more clips
    return skipped


def _remove_all_but(keys: Collection[str], *folders: Path) -> None:
    for path in (path for folder in folders for path in folder.glob("*.mp4")):
        if path.stem not in keys:
            path.unlink()


def _refuse_others(generated: Path, truth: Path) -> None:
    """Refuse folders with videos that were not made here: they would be overwritten.

    Raises:
        CommandError: there are such videos.
    """
    for folder in (generated, truth):
        if not (generated / MADE).is_file() and any(folder.glob("*.mp4")):
            raise CommandError(f"{folder}: expected no videos but those of `evaluate --run`")


def _shards(dataset: str) -> str:
    """Shards of the split `validation`, or all where it has none, as a configuration names them."""
    try:
        snapshot = snapshots.current(Store(dataset))
    except DatasetError as error:
        raise CommandError(f"--set {dataset}: {error}") from None
    names = [shard.name for shard in snapshot.shards]
    chosen = [name for name in names if name.startswith("validation-")] or names
    if not chosen:
        raise CommandError(f"--set {dataset}: expected shards, found none: `talkforge shard` makes them")
    return "::".join(f"{dataset.rstrip('/')}/shards/{name}.tar" for name in chosen)


def fitting_samples(
    shards: str, config: DataConfig, info: DatasetInfo, skip: Callable[[str, SkippedSampleError], None]
) -> Iterator[tuple[str, Mapping[str, bytes], DecodedSample]]:
    """Key, members with the sound, and what is decoded of every sample that fits a run, in their order.

    Frames are decoded when they are asked for, which may raise SkippedSampleError.

    Args:
        shards: as a configuration names them.
        config: section `data` of the run.
        info: of the data set that the run was trained on.
        skip: gets the key of a sample that cannot be used, and why.
    """
    listed = shard_list(shards, config.snapshot)
    quantiles = motion_quantiles(listed, config.snapshot) if config.omega == "span" else {}
    for url, _ in listed:
        for key, members in read_samples(url, MEMBERS | {"flac"}):
            try:
                sample = decode_sample(
                    key, members, config.sizes, config.lengths, info, quantiles=quantiles.get(beside(url, ""))
                )
            except SkippedSampleError as error:
                skip(key, error)
                continue
            yield key, members, sample


def _make(
    pipeline: GenerationPipeline,
    sample: DecodedSample,
    members: Mapping[str, bytes],
    omega: float | None,
    generated: Path,
    truth: Path,
) -> None:
    """Write one clip, generated and true."""
    fps = sample.fps
    frames = min(sample.num_frames, frames_from_seconds(MAX_S, fps))
    rgb = sample.frames.rgb(0, frames)
    settings = pipeline.config.sample
    speaker = Speaker(
        rgb_HWC=torch.from_numpy(rgb[0]),
        speech_LD=torch.from_numpy(sample.speech[span_features(0, frames, sample.num_frames, fps)]).float(),
        num_frames=frames,
        identity_D=sample.identity if len(sample.identity) and pipeline.config.adapters.face else None,
        omega=sample.omega if omega is None else (omega, omega),
        prompt=sample.text if pipeline.config.codec.text != "none" else "",
        seed=pipeline.config.run.seed,
    )
    video = pipeline.long_video(speaker, settings)
    pipeline.use("transformer")
    compute = video.one_by_one if settings.windows == "continue" else video.together
    with torch.no_grad():
        latents = compute(lambda _: None)
    pipeline.use("codec")
    sound = stereo(decode_flac(members["flac"]))
    for path, images in ((generated, decoded_frames(pipeline, latents, frames)), (truth, iter(rgb))):
        with scratch.replacing(path) as part:
            write(part, images, fps, sound, frames)
