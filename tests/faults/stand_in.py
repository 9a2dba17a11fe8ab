"""A command line whose measuring costs nothing, and whose faults are written in files.

Run as a program it is `talkforge`, but a window's only clip is all of it, and what would be measured of it is
made up from its name. Everything else is real: inputs, plan, executor, commits, selection, cutting, shards.

A file `<data set>.faults/<stage> <name>` says what happens there once: at the stages `open`, `measure`,
`embed` and `cut` with that video, at `write` with that file of the data set. A line is appended to
`<data set>.history` for everything that was acknowledged: a part after its commit, the shards after they were
published.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.draw import thumbnail
from talkforge.pipeline import cut, jobs, stages, timelines
from talkforge.pipeline.needs import Gathered
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.rows import failure_row, outcome_row
from talkforge.pipeline.store import Store
from talkforge.schemas.config import MeasureConfig, Thresholds
from talkforge.schemas.errors import FetchError, RunError
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import Clip, ClipMeasures, Face, Failure, Video, clip_id
from talkforge.schemas.units import features_from_frames, frames_from_seconds

CONTOUR = np.array([[20, 20], [44, 20], [44, 40], [20, 40]], np.float32)

SLOW_S = "STAND_IN_SLOW_S"
"""Environment variable: seconds that measuring a window takes at least."""

STAGES = ("open", "measure", "embed", "cut", "write")


def fault(root: str, stage: str, name: str) -> None:
    """Do what a file says, once.

    Args:
        root: of the data set.
        stage: one of `STAGES`.
        name: of the video, or of the file that is written.
    """
    planned = Path(f"{root}.faults") / f"{stage} {name.replace('/', ' ')}"
    claimed = planned.with_name(f"done {os.getpid()} {time.monotonic_ns()} {planned.name}")
    try:
        planned.rename(claimed)  # of several processes one gets it
    except OSError:
        return
    what = claimed.read_text()
    if what == "hang":
        time.sleep(3600)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "memory":
        raise MemoryError("made up")
    elif what in ("EIO", "ENOSPC"):
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number), name)
    else:
        raise FetchError(f"{name}: cannot be fetched: {what}")


def measure(part: Part, _: MeasureConfig, store: Store, *_callback: Any) -> PartResult:
    """Stands in for `stages.measure`."""
    install()
    result = PartResult(part)
    for window in part.windows:
        name = Path(window.video.uri).name
        time.sleep(float(os.environ.get(SLOW_S, 0)))
        try:
            fault(store.root, "measure", name)
            with timelines.local_video(store, window.video):
                _measure(window, store, result)
        except RunError:
            raise
        except Exception as error:
            failure = failure_row("measure", window.key, window.video, error)
            if failure.kind == "video":
                result.failures.append(failure)
            else:
                result.put_off[window.key] = failure
    return result


def _measure(window: Window, store: Store, result: PartResult) -> None:
    video, fps = window.video, window.video.fps
    clip = Clip(
        clip_id=clip_id(video.video_id, window.start_s, window.end_s, 0),
        video_id=video.video_id, uri=video.uri, scene=0, track=0, start_s=window.start_s, end_s=window.end_s,
        fps=fps,
        num_frames=frames_from_seconds(window.duration_s, fps), width_px=video.width_px,
        height_px=video.height_px,
    )  # fmt: skip
    number = int(hashlib.sha256(clip.clip_id.encode()).hexdigest()[:4], 16)
    frames = clip.num_frames
    arrays = {
        "landmarks": np.full((frames, 478, 3), number % 50, np.float32),
        "contour": np.repeat(CONTOUR[None], frames, 0),
        "lip_valid": np.full(frames, 2, np.uint8),
        "joints": np.full((frames, 65, 3), np.nan, np.float32),
        "face_rgb": np.full((112, 112, 3), number % 255, np.uint8),
    }
    name = f"{clip.clip_id}.npz"
    result.files[name] = store.write(f"parts/{result.part.name}/{name}", npz_bytes(**arrays))
    face = Face(source_fps=fps, face_px=number, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    image = thumbnail(arrays["face_rgb"])
    result.clips.append(MeasuredClip(ClipMeasures(clip=clip, stopped_by=None, face=face), image))
    result.outcomes.append(outcome_row(window, "candidates", [], [(window.start_s, window.end_s)]))


def embed(result: PartResult, _: MeasureConfig, store: Store) -> PartResult:
    """Stands in for `stages.embed`."""
    install()
    for item in result.clips:
        clip = item.measures.clip
        fault(store.root, "embed", Path(clip.uri).name)
        speech = np.zeros((features_from_frames(clip.num_frames, clip.fps), 80), np.float16)
        name = f"{clip.clip_id}.speech.npz"
        result.files[name] = store.write(f"parts/{result.part.name}/{name}", npz_bytes(speech=speech))
    return result


def commit(result: PartResult, store: Store) -> tuple[Failure, ...]:
    """`stages.commit`, and a line of the history."""
    install()
    put_off = real("commit")(result, store)
    keys = [window.key for window in result.part.windows if window.key not in result.put_off]
    if keys:
        note(store, {"part": result.part.name, "windows": keys})
    return put_off


def cut_task(task: cut.CutTask, *callback: Any) -> Any:
    """`cut.cut_task`, with faults."""
    install()
    for order in task.orders:
        fault(task.store.root, "cut", Path(order.video.uri).name)
    return real("cut_task")(task, *callback)


def shard(store: Store, *arguments: Any) -> Any:
    """`jobs.shard`, and a line of the history."""
    selection = real("shard")(store, *arguments)
    note(store, {"shards": {name: store.sha256(name) for name in store.list("shards")}})
    return selection


def write(self: Store, name: str, data: bytes) -> str:
    """`Store.write`, with faults."""
    with self.reporting_errors("write", name):
        fault(self.root, "write", Path(name).name)
    return str(real("write")(self, name, data))


@contextmanager
def local_video(store: Store, video: Video, *stamp: Any) -> Iterator[Path]:
    """`timelines.local_video`, with faults."""
    fault(store.root, "open", Path(video.uri).name)
    with real("local_video")(store, video, *stamp) as path:
        yield path


def note(store: Store, line: dict[str, Any]) -> None:
    """Append a line to the history; it is there whole, or not at all."""
    number = os.open(f"{store.root}.history", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(number, (json.dumps(line) + "\n").encode())
    os.close(number)


_REAL: dict[str, Any] = {}


def real(name: str) -> Any:
    """A function that this module stands in for."""
    return _REAL[name]


@functools.cache
def install() -> None:
    """Stand in, in this process: the driver's, and each worker's."""
    for module, name, new in (
        (stages, "commit", commit),
        (cut, "cut_task", cut_task),
        (jobs, "shard", shard),
        (Store, "write", write),
        (timelines, "local_video", local_video),
    ):
        _REAL[name] = getattr(module, name)
        setattr(module, name, new)
    cut.local_video = local_video  # type: ignore[attr-defined]
    stages.measure, stages.embed = measure, embed
    jobs.gather = lambda config, _: Gathered(config, (), (), LogMelEncoder())


def settings() -> list[str]:
    """Arguments with which every clip is accepted, two to a shard, and parts hold two windows."""
    off = []
    for name in Thresholds.model_fields:
        with suppress(ValidationError):
            Thresholds.model_validate({name: None})
            off.append(f"thresholds.{name}=null")
    given = ["run.part_s=3", "shards.max_samples=2", "shards.preset=ultrafast", *off]
    return [word for setting in given for word in ("--set", setting)]


if __name__ == "__main__":
    with suppress(ImportError):
        from tests.faults import stand_in  # workers find its functions by this name

        stand_in.install()
    from talkforge.cli import main

    main()
