"""One video: a portrait and audio in, an MP4 out. A job that was interrupted goes on where it stopped.

OUT's folder/.NAME.work/job.json               what is made, so that another command begins anew
OUT's folder/.NAME.work/latents.safetensors    where the solver stands
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from talkforge.curation.media.encode import CLIP_AUDIO_HZ, encode_mp4
from talkforge.schemas import scratch
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import CommandError, ModelError, first_invalid, one_line
from talkforge.schemas.progress import Progress, ProgressCallback, no_progress
from talkforge.training.config import SampleConfig
from talkforge.training.generate.long_video import LongVideo, Standing
from talkforge.training.generate.pipeline import GenerationPipeline, Source, Speaker
from talkforge.training.generate.portrait import Portrait, read_portrait
from talkforge.training.generate.savings import Savings
from talkforge.training.generate.sound import Sound, encode_speech, read_sound
from talkforge.training.objective.sampling import SolverState
from talkforge.training.run import checkpoint
from talkforge.training.run.tensor_files import WRITE_ERRORS, flush, read_tensors, write_tensors

log = logging.getLogger(__name__)

CRF, PRESET = 18, "veryfast"

MOST_SEED = 2**63 - 1
"""Largest seed that torch takes as it is."""

SAVE_EVERY_S = 30.0
"""The solver's state is written at most this often, s, and when a job is interrupted."""

WORK_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One video that is asked for.

    Attributes:
        image: file of the portrait.
        audio: any audio or video file with speech.
        out: MP4 file to write.
        prompt: prompt, where the model has a text encoder.
        omega_face: motion intensity of the face, 0..1. 0.5 is the data set's median.
        omega_body: motion intensity of the body, likewise.
        seed: of the noise.
        face: number of the face that speaks, from left to right, or None for the largest.
    """

    image: Path
    audio: Path
    out: Path
    prompt: str = ""
    omega_face: float = 0.5
    omega_body: float = 0.5
    seed: int = 0
    face: int | None = None

    def check(self) -> None:
        """Raise CommandError where a value is out of range, or the video cannot be written."""
        for name, omega in (("omega-face", self.omega_face), ("omega-body", self.omega_body)):
            if not 0 <= omega <= 1:
                raise CommandError(f"--{name} {omega:g}: expected 0 to 1")
        if not 0 <= self.seed <= MOST_SEED:
            raise CommandError(f"--seed {self.seed}: expected 0 to {MOST_SEED}")
        if self.out.suffix.lower() != ".mp4" or not self.out.parent.is_dir():
            raise CommandError(f"--out {self.out}: expected a .mp4 file in a folder that is there")
        if not os.access(self.out.parent, os.W_OK):
            raise CommandError(f"--out {self.out}: the folder cannot be written to")


def generate(
    source: Source,
    job: Job,
    changes: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    saving: Savings = Savings(),  # noqa: B008 (it is frozen)
    show: ProgressCallback = no_progress,
) -> None:
    """Write an MP4 of a portrait that speaks, as long as its audio.

    Args:
        source: the model.
        job: the video.
        changes: other values of the run's `sample` section, by name.
        device: 'auto', 'cpu' or a torch device.
        saving: of memory and time.
        show: gets the progress.

    Raises:
        CommandError: an option does not fit; portrait, audio or weights cannot be used.
        RunError: the video cannot be written.
    """
    job.check()
    portrait, sound = (
        read_portrait(job.image, job.face),
        read_sound(job.audio),
    )  # before the model, which is slow
    show(Progress("loading the model"))
    try:
        pipeline = load(source, [job], changes, device, saving)
        settings = sample_config(pipeline, changes)
        make(pipeline, source, job, settings, show, saving=saving, portrait=portrait, sound=sound)
    except ModelError as error:
        raise CommandError(str(error)) from None


def load(
    source: Source,
    jobs: list[Job],
    changes: Mapping[str, Any] | None = None,
    device: str = "auto",
    saving: Savings = Savings(),  # noqa: B008
) -> GenerationPipeline:
    """The pipeline for some jobs. Their prompts are embedded, and the text encoder is freed.

    Args:
        source: the model.
        jobs: the videos.
        changes: other values of the run's `sample` section, by name.
        device: 'auto', 'cpu' or a torch device.
        saving: of memory and time.

    Raises:
        CommandError: a value has no effect on this model.
        ModelError: weights are missing, damaged or of another width.
    """
    prompts = [job.prompt for job in jobs]
    if changes and (negative := changes.get("negative_prompt")):
        prompts.append(str(negative))
    pipeline = GenerationPipeline.load(source, device, saving, prompts)
    for job in jobs:
        refuse_without_effect(pipeline, job)
    idle = [name for name in ("negative_prompt", "text_cfg") if name in (changes or {})]
    if idle and pipeline.config.codec.text == "none":
        named = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise CommandError(f"{named}: has no effect, the model has no text encoder")
    if "overlap" in (changes or {}) and sample_config(pipeline, changes).windows == "continue":
        raise CommandError("--overlap: has no effect with windows that continue")
    return pipeline


def refuse_without_effect(pipeline: GenerationPipeline, job: Job) -> None:
    """Raise CommandError where the job asks for what the model has no branch for."""
    moved = [
        f"--{name} {value:g}"
        for name, value in (("omega-face", job.omega_face), ("omega-body", job.omega_body))
        if value != 0.5 and pipeline.model.motion is None
    ]
    if moved:
        raise CommandError(f"{', '.join(moved)}: has no effect, the model has no motion branch")
    if job.prompt and pipeline.config.codec.text == "none":
        raise CommandError("--prompt: has no effect, the model has no text encoder")


def sample_config(pipeline: GenerationPipeline, changes: Mapping[str, Any] | None) -> SampleConfig:
    """How the pipeline's run makes videos, with other values laid over it.

    Args:
        pipeline: the model.
        changes: values of the section `sample`, by name.

    Raises:
        CommandError: a value does not fit.
    """
    values = {**pipeline.config.sample.model_dump(), **(changes or {})}
    try:
        return SampleConfig.model_validate(values)
    except ValidationError as error:
        raise CommandError(f"sample.{first_invalid(error)}") from None


def make(
    pipeline: GenerationPipeline,
    source: Source,
    job: Job,
    settings: SampleConfig,
    show: ProgressCallback = no_progress,
    *,
    saving: Savings = Savings(),  # noqa: B008
    portrait: Portrait | None = None,
    sound: Sound | None = None,
) -> None:
    """Make one video with a model that is loaded.

    Args:
        pipeline: the model.
        source: where it is from.
        job: the video.
        settings: how it is made.
        show: gets the progress. What it raises ends the job, which then goes on as after an interruption.
        saving: what the model was loaded with.
        portrait: where it has been read already.
        sound: likewise.
    """
    portrait = portrait or read_portrait(job.image, job.face)
    sound = sound or read_sound(job.audio)
    info = pipeline.info
    pipeline.use("codec")
    frames = sound.num_frames(info.fps)
    show(Progress("encoding speech"))
    speaker = Speaker(
        rgb_HWC=torch.from_numpy(portrait.framed(pipeline.config.data.sizes)),
        speech_LD=encode_speech(sound.mono, info),
        num_frames=frames,
        identity_D=portrait.identity(info) if pipeline.config.adapters.face else None,
        omega=(job.omega_face, job.omega_body),
        prompt=job.prompt,
        seed=job.seed,
    )
    meter = _Meter(show)
    video = pipeline.long_video(speaker, settings, meter.window_done)
    meter.video = video
    work = WorkFolder(job.out, fingerprint(source, job, settings, saving))
    latents = _latents(pipeline, video, settings, work, meter)
    pipeline.use("codec")
    with scratch.replacing(job.out) as part:
        write(part, decoded_frames(pipeline, latents, frames, show), info.fps, sound.stereo, frames)
    work.remove()


def _latents(
    pipeline: GenerationPipeline,
    video: LongVideo,
    settings: SampleConfig,
    work: WorkFolder,
    meter: _Meter,
) -> Tensor:
    begin = work.read()
    if begin is not None:
        meter.begin(begin)
    pipeline.use("transformer")
    compute = video.one_by_one if settings.windows == "continue" else video.together
    try:
        with torch.no_grad():
            latents = compute(work.reached, begin)
    except BaseException:
        work.save()
        raise
    work.save()  # decoding begins anew where it is interrupted
    return latents


def decoded_frames(
    pipeline: GenerationPipeline, latents: Tensor, frames: int, show: ProgressCallback = no_progress
) -> Iterator[Bytes]:
    """The frames of a video, uint8 [H, W, 3] each, decoded part by part.

    Args:
        pipeline: has the codec.
        latents: [1, C, T, h, w] of at least so many frames.
        frames: of the video.
        show: gets the progress.
    """
    done = 0
    for part in pipeline.encoders.codec.decode_parts(latents[0]):
        yield from part[: frames - done].cpu().numpy()
        done = min(frames, done + len(part))
        show(Progress("decoding", done, frames, f"{done} of {frames} frames"))


def write(out: Path, frames: Iterator[Bytes], fps: float, stereo: Floats, num_frames: int) -> None:
    """Write an MP4. Its audio is cut to the length of the video, or continued in silence.

    Args:
        out: file to write.
        frames: uint8 [H, W, 3] each.
        fps: frames per second.
        stereo: 48 kHz, float32 [N, 2], -1..1.
        num_frames: how many frames there are.
    """
    count = round(num_frames / fps * CLIP_AUDIO_HZ)
    padded = np.zeros((count, 2), np.float32)
    padded[: len(stereo)] = stereo[:count]
    encode_mp4(out, frames, fps, padded, CRF, PRESET)


# --------------------------------------------------------------------------- progress


class _Meter:
    """Shows how many calls of the model are done, and how long the rest takes."""

    def __init__(self, show: ProgressCallback) -> None:
        self._show = show
        self.video: LongVideo | None = None
        self._done = self._before = 0
        self._begin_s = time.monotonic()

    def begin(self, standing: Standing) -> None:
        """Count what an earlier process has done."""
        assert self.video is not None
        windows, steps = len(self.video.windows), len(self.video.levels) - 1
        done = standing.solver.step * windows if not standing.window and not standing.done.shape[2] else 0
        if standing.window or standing.done.shape[2]:
            done = standing.window * steps + standing.solver.step
        self._done = self._before = done
        log.info("goes on after %d of %d calls of the model", done, windows * steps)

    def window_done(self, step: int, window: int) -> None:
        """One window has taken one step."""
        assert self.video is not None
        windows, steps = len(self.video.windows), len(self.video.levels) - 1
        self._done += 1
        total = windows * steps
        spent_s = time.monotonic() - self._begin_s
        left_s = spent_s / max(1, self._done - self._before) * (total - self._done)
        place = f"step {step + 1} of {steps}" + (f", window {window + 1} of {windows}" if windows > 1 else "")
        left = timedelta(seconds=round(left_s))
        self._show(Progress("generating", self._done, total, f"{place}, left {left}"))


# --------------------------------------------------------------------------- going on


def fingerprint(
    source: Source,
    job: Job,
    settings: SampleConfig,
    saving: Savings = Savings(),  # noqa: B008
) -> dict[str, Any]:
    """What a video depends on. A job goes on only with the same.

    Args:
        source: the model.
        job: the video.
        settings: how it is made.
        saving: of memory and time. What leaves the video as it is does not count.
    """
    model: dict[str, Any]
    if source.run is not None:
        model = checkpoint_state(source.run)
    else:
        assert source.adapters is not None
        model = {
            "base": source.base,
            "adapters": _file_state(source.adapters),
            "speech_model": source.speech_model,
            "fps": source.fps,
        }
    if saving.lora:
        model["lora"] = [_file_state(path) for path in saving.lora]
    asked = {name: value for name, value in asdict(job).items() if name not in ("image", "audio", "out")}
    if changed := {name: value for name, value in _of_video(saving).items() if value}:
        asked["saving"] = changed  # videos that were made before have no such entry, and stay as they are
    return {
        "version": WORK_VERSION,
        "model": model,
        "image": sha256_of(job.image),
        "audio": sha256_of(job.audio),
        "job": asked,
        "sample": settings.model_dump(mode="json"),
    }


def _of_video(saving: Savings) -> dict[str, Any]:
    dtype = "" if saving.dtype == "auto" else saving.dtype
    return {"dtype": dtype, "fp8": saving.fp8, "vae_tiling": saving.vae_tiling}


def is_made(marker: Path, made: Mapping[str, Any]) -> bool:
    """Whether a file says that what lies beside it was made from the same.

    Args:
        marker: a JSON file; where there is none, nothing was made.
        made: what it should hold.
    """
    with suppress(OSError, ValueError):
        return bool(json.loads(marker.read_text(encoding="utf-8")) == json.loads(json.dumps(made)))
    return False


def checkpoint_state(run: Path) -> dict[str, list[Any]]:
    """What tells the last checkpoint of a run from others: name, size and time of its files.

    Args:
        run: folder of a run, or of a checkpoint.

    Raises:
        CommandError: there is no checkpoint.
    """
    folder = checkpoint.find(run)
    return {
        "checkpoint": _file_state(folder / "state.json"),
        "trained": _file_state(folder / checkpoint.TRAINED),
    }


def _file_state(path: Path) -> list[Any]:
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


class WorkFolder:
    """Where the state of a job's solver is kept until the video is written."""

    def __init__(self, out: Path, made: Mapping[str, Any]) -> None:
        """The folder beside a video.

        Args:
            out: the video.
            made: see `fingerprint`.
        """
        self.folder = out.with_name(f".{out.name}.work")
        self._made = json.loads(json.dumps(made))
        self._last: Standing | None = None
        self._saved_s = time.monotonic()

    def read(self) -> Standing | None:
        """Where an earlier process stopped, or None where there is none, or it made another video."""
        try:
            found = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
            if found["made"] != self._made:
                return None
            tensors = read_tensors(self.folder / "latents.safetensors")
            clean = tensors.get("clean")
            return Standing(found["window"], SolverState(found["step"], tensors["x"], clean), tensors["done"])
        except (OSError, ValueError, KeyError, TypeError, ModelError):
            return None

    def reached(self, standing: Standing) -> None:
        """Remember a state, and write it now and then."""
        self._last = standing
        if time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the last state. Where that fails the job goes on, and the log says so."""
        if self._last is None:
            return
        state, part = self._last, self.folder.with_name(f"{self.folder.name}.part")
        tensors = {"x": state.solver.x, "done": state.done}
        if state.solver.clean is not None:
            tensors["clean"] = state.solver.clean
        described = {"made": self._made, "window": state.window, "step": state.solver.step}
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_tensors(part / "latents.safetensors", tensors)
            (part / "job.json").write_text(json.dumps(described), encoding="utf-8")
            flush(part / "latents.safetensors")
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)
        except WRITE_ERRORS as error:
            shutil.rmtree(part, ignore_errors=True)
            log.warning("%s: the job's state cannot be kept (%s)", self.folder, one_line(error))
        self._last, self._saved_s = None, time.monotonic()

    def remove(self) -> None:
        """Remove the folder: the video is there."""
        with suppress(OSError):
            shutil.rmtree(self.folder)
