"""What the studio does: it takes a portrait and audio, and makes videos with one model, one at a time."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import CommandError, RunError, TalkforgeError, one_line
from talkforge.schemas.progress import Progress
from talkforge.training.config import SampleConfig
from talkforge.training.generate.job import Job, make, refuse_without_effect, sample_config
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.portrait import Box, faces, largest, portrait_of, read_image
from talkforge.training.generate.savings import Savings
from talkforge.training.generate.sound import Sound, read_sound

log = logging.getLogger(__name__)

Status = Literal["idle", "working", "done", "failed", "cancelled"]

MOST_SECONDS = 3600
"""Longest audio that the page takes, s. `talkforge generate` has no such limit."""


class Settings(BaseModel):
    """What the page asks for, beside portrait and audio.

    Attributes:
        prompt: prompt, where the model has a text encoder.
        omega_face: motion intensity of the face, 0..1.
        omega_body: motion intensity of the body, 0..1.
        seed: of the noise.
        face: number of the face that speaks, from left to right, or None for the largest.
        sample: other values of the run's section `sample`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    prompt: str = ""
    omega_face: float = 0.5
    omega_body: float = 0.5
    seed: int = 0
    face: int | None = None
    sample: dict[str, Any] = {}


_T = TypeVar("_T")

NOTHING = Progress("")


@dataclass(frozen=True)
class Photo:
    """A portrait that was handed over, with its faces from left to right."""

    path: Path
    rgb: Bytes
    boxes: list[Box]


@dataclass(frozen=True)
class Speech:
    """Audio that was handed over."""

    path: Path
    sound: Sound


@dataclass(frozen=True)
class State:
    """Where the studio stands.

    Attributes:
        status: of the last video.
        progress: of the video that is being made.
        error: why the last one failed, in one line.
        videos: files that were made, in order.
    """

    status: Status = "idle"
    progress: Progress = NOTHING
    error: str = ""
    videos: tuple[Path, ...] = ()


class _CancelledError(Exception):
    """Somebody has cancelled the video."""


class Studio:
    """One model, one portrait, one audio file, and one video at a time.

    Attributes:
        pipeline: the model.
    """

    def __init__(
        self, pipeline: GenerationPipeline, source: Source, saving: Savings, given: Path, out: Path
    ) -> None:
        """A studio.

        Args:
            pipeline: the model, with its text encoder.
            source: where it is from.
            saving: what it was loaded with.
            given: folder for what is handed over.
            out: folder for the videos.
        """
        self.pipeline = pipeline
        self._source, self._saving, self._given, self._out = source, saving, given, out
        self._photo: Photo | None = None
        self._speech: Speech | None = None
        self._lock = threading.Lock()
        self._state = State()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_photo(self) -> bool:
        """Whether there is a portrait."""
        return self._photo is not None

    @property
    def has_speech(self) -> bool:
        """Whether there is audio."""
        return self._speech is not None

    @property
    def photo(self) -> Photo:
        """The portrait.

        Raises:
            CommandError: there is none yet.
        """
        if self._photo is None:
            raise CommandError("expected a portrait first")
        return self._photo

    @property
    def speech(self) -> Speech:
        """The audio.

        Raises:
            CommandError: there is none yet.
        """
        if self._speech is None:
            raise CommandError("expected audio first")
        return self._speech

    def take_photo(self, data: Iterable[bytes]) -> Photo:
        """Take a portrait.

        Args:
            data: an image file, in pieces.

        Raises:
            CommandError: it is no image.
        """
        path = self._kept(data)
        rgb = _named("portrait", path, read_image)
        self._photo = Photo(path, rgb, faces(rgb))
        return self._photo

    def take_speech(self, data: Iterable[bytes]) -> Speech:
        """Take audio.

        Args:
            data: an audio or video file, in pieces.

        Raises:
            CommandError: it holds no audio, or more than `MOST_SECONDS`.
        """
        path = self._kept(data)
        sound = _named("audio", path, read_sound)
        if sound.duration_s > MOST_SECONDS:
            raise CommandError(
                f"audio: expected at most {MOST_SECONDS} s, found {sound.duration_s:.0f} s: "
                "talkforge generate makes longer videos"
            )
        self._speech = Speech(path, sound)
        return self._speech

    def framed(self, face: int | None) -> Bytes:
        """The portrait as the model gets it, uint8 [H, W, 3].

        Args:
            face: number of the face that speaks, or None for the largest.
        """
        return portrait_of(self.photo.rgb, self.photo.boxes, self._face(face)).framed(
            self.pipeline.config.data.sizes
        )

    def begin(self, asked: Settings) -> None:
        """Begin a video.

        Args:
            asked: how it is made.

        Raises:
            CommandError: portrait or audio is missing, a value does not fit, or a video is being made.
        """
        photo, speech = self.photo, self.speech
        face = self._face(asked.face)
        settings = sample_config(self.pipeline, asked.sample)
        self.pipeline.windows(2, settings)  # refuses what the run cannot do
        with self._lock:
            if self._state.status == "working":
                raise CommandError("a video is being made: cancel it, or wait for it")
            job = Job(
                photo.path, speech.path, self._next(), asked.prompt, asked.omega_face, asked.omega_body,
                asked.seed, face,
            )  # fmt: skip
            job.check()
            refuse_without_effect(self.pipeline, job)
            self._cancel.clear()
            self._state = replace(self._state, status="working", progress=Progress("beginning"), error="")
            self._thread = threading.Thread(
                target=self._work, args=(job, settings, photo, speech), name="studio"
            )
            self._thread.start()

    def cancel(self) -> None:
        """End the video that is being made, after the call of the model that runs."""
        self._cancel.set()

    def close(self) -> None:
        """Cancel, and wait for the end."""
        self.cancel()
        if self._thread is not None:
            self._thread.join()

    @property
    def state(self) -> State:
        """Where the studio stands."""
        with self._lock:
            return self._state

    # ------------------------------------------------------------------------- one video

    def _work(self, job: Job, settings: SampleConfig, photo: Photo, speech: Speech) -> None:
        status: Status = "failed"
        error = ""
        made: tuple[Path, ...] = ()
        try:
            make(
                self.pipeline,
                self._source,
                job,
                settings,
                self._show,
                saving=self._saving,
                portrait=portrait_of(photo.rgb, photo.boxes, job.face),
                sound=speech.sound,
            )
            status, made = "done", (job.out,)
        except _CancelledError:
            status = "cancelled"
        except TalkforgeError as failure:
            error = one_line(failure)
        except Exception as failure:  # the page says so, and the next video may succeed
            error = f"{type(failure).__name__}: {one_line(failure)}"
            log.warning("a video failed: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        with self._lock:
            videos = (*self._state.videos, *made)
            self._state = replace(self._state, status=status, error=error, videos=videos)

    def _show(self, progress: Progress) -> None:
        if self._cancel.is_set():
            raise _CancelledError
        with self._lock:
            self._state = replace(self._state, progress=progress)

    # ------------------------------------------------------------------------- files

    def _face(self, face: int | None) -> int | None:
        count = len(self.photo.boxes)
        if face is not None and not 1 <= face <= count:
            raise CommandError(f"face {face}: the portrait has {count}")
        return largest(self.photo.boxes) if face is None and count else face

    def _next(self) -> Path:
        """The first name that no video has. A video that was cancelled keeps its own, and goes on."""
        number = 1
        while (path := self._out / f"video-{number:04d}.mp4").exists():
            number += 1
        return path

    def _kept(self, data: Iterable[bytes]) -> Path:
        """A file with the data, named by its content: what is handed over never names files."""
        part, digest = self._given / f"part-{threading.get_ident()}", hashlib.sha256()
        try:
            with part.open("wb") as file:
                for piece in data:
                    digest.update(piece)
                    file.write(piece)
            return part.rename(self._given / digest.hexdigest())
        except OSError as error:
            raise RunError(f"what was handed over cannot be kept ({one_line(error)})") from None
        finally:
            part.unlink(missing_ok=True)


def _named(what: str, path: Path, read: Callable[[Path], _T]) -> _T:
    """What is read from a file, with errors that name it as the page does."""
    try:
        return read(path)
    except CommandError as error:
        text = str(error).partition(f"{path}: ")[2] or str(error)
        raise CommandError(f"{what}: {text}") from None
