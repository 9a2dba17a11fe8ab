"""Deep verification: a sample of cut clips, decoded again and compared with their source videos.

In every second of a clip, its frames and its audio are laid over the source's at every place nearby. Where in
the source both are found, against where they should be, is the error of each, and their difference is the A/V
error. The source's timeline is built anew from its packets, not read from the data set, and its bytes must
still have the sha256 that was measured.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.signal import correlate

from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import shards, snapshots
from talkforge.pipeline.dataset import load_ingested
from talkforge.pipeline.intake import IngestRow, Intake
from talkforge.pipeline.store import Store, local_copy
from talkforge.pipeline.verify import MIN_SIMILARITY, PEAK_FRACTION, SILENCE_DBFS, Problem, level_dbfs
from talkforge.schemas import sample, scratch
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.records import Clip, Input, Video
from talkforge.schemas.sample import Members
from talkforge.schemas.units import AUDIO_HZ

log = logging.getLogger(__name__)

REACH_S = 0.5
"""Errors up to this are measured, either way. Source: ours; beyond it a viewer needs no measurement."""

COMPARED_PX = 160
"""Longest edge at which frames are compared."""

ALIKE, NOISE = 1.02, 0.02
"""A place in the source where frames differ from the clip's by at most `ALIKE` times the least difference,
and `NOISE` grey levels more, is as good: a still scene is the same everywhere. Source: ours."""

NEAR = 160
"""Samples at 16 kHz (10 ms) within which a match is preferred to an equal one beyond."""


@dataclass(frozen=True)
class SecondError:
    """Where in the source a second of a clip was found, against where it should be, s; positive: too late.

    `frame_s` is None where there are no frames, `audio_s` where it is silent.
    """

    second: int
    frame_s: float | None
    audio_s: float | None

    @property
    def av_s(self) -> float | None:
        """How much later the frame comes from than the audio; None where one is not known."""
        return None if self.frame_s is None or self.audio_s is None else self.frame_s - self.audio_s


@dataclass(frozen=True)
class Deep:
    """What the comparison found.

    Attributes:
        clips: number of clips in the shards.
        compared: those that were compared.
        sources: number of source files that they come from.
        unreachable: why a source could not be read now, by its name; that is no damage.
        frame_s, audio_s, av_s: largest error of frames, of audio, and between them, s.
        problems: what is wrong.
    """

    clips: int
    compared: int
    sources: int
    unreachable: dict[str, str]
    frame_s: float
    audio_s: float
    av_s: float
    problems: tuple[Problem, ...]

    def line(self) -> str:
        """The figures in one line."""
        missing = f", {len(self.unreachable)} sources cannot be read now" if self.unreachable else ""
        return (
            f"deep: {self.compared} of {self.clips} clips against {self.sources} sources{missing}: frames at "
            f"most {self.frame_s * 1000:.0f} ms off, audio {self.audio_s * 1000:.0f} ms, A/V error "
            f"{self.av_s * 1000:.0f} ms"
        )

    def document(self) -> dict[str, Any]:
        """The figures for `--json`."""
        return {
            "clips": self.clips,
            "compared": self.compared,
            "sources": self.sources,
            "unreachable": self.unreachable,
            "frame_s": round(self.frame_s, 6),
            "audio_s": round(self.audio_s, 6),
            "av_s": round(self.av_s, 6),
        }


def deep(
    store: Store, num_clips: int, on_progress: Callable[[int, int], object] = lambda _done, _all: None
) -> Deep:
    """Compare clips of the shards with their sources.

    Args:
        store: the data set, with the base of its inputs where it has one.
        num_clips: how many, drawn by their names and the same in every run; 0 means all.
        on_progress: called with the clips that are compared, and how many there are to compare.

    Raises:
        CommandError: the inputs are relative to a base, and none was given.
        DatasetError: a manifest or the table of inputs is damaged. RunError: the store cannot be read.
    """
    snapshot = snapshots.current(store)
    shard_of = {key: snapshot.tar(shard) for shard in snapshot.shards for key in shard.keys}
    drawn = sorted(shard_of, key=lambda key: hashlib.sha256(key.encode()).digest())[: num_clips or None]
    intake = Intake(load_ingested(store))
    errors: list[SecondError] = []
    problems: list[Problem] = []
    unreachable: dict[str, str] = {}
    sources: set[str] = set()
    by_video = sorted(drawn, key=lambda key: (key.partition("_")[0], key))  # each source is fetched once
    compared = 0
    for video_id, keys in _grouped(by_video):
        row = intake.at(video_id, None)
        if row is None:  # its file has changed since, or is no input any more
            unreachable[video_id] = "no input holds this video any more"
            continue
        uri = store.input_uri(row.input.uri)
        try:
            with local_copy(uri, store.limits) as path:
                digest = content_hash(path)
                sources.add(uri)
                for key in keys:
                    path_of = f"{shard_of[key]}: {key}"
                    found, why = _compare(store, shard_of[key], key, path, row, digest)
                    errors += found
                    problems += (Problem(path_of, what) for what in why)
                    compared += 1
                    on_progress(compared, len(drawn))
        except MediaError as error:
            unreachable[row.input.uri] = str(error)
            log.warning("%s: cannot be compared with its clips now: %s", row.input.uri, error)
    return Deep(
        clips=len(shard_of),
        compared=compared,
        sources=len(sources),
        unreachable=unreachable,
        frame_s=_largest(error.frame_s for error in errors),
        audio_s=_largest(error.audio_s for error in errors),
        av_s=_largest(error.av_s for error in errors),
        problems=tuple(problems),
    )


def _grouped(keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for key in keys:
        grouped.setdefault(key.partition("_")[0], []).append(key)
    yield from grouped.items()


def _largest(errors_s: Iterator[float | None]) -> float:
    return max((abs(error_s) for error_s in errors_s if error_s is not None), default=0.0)


def _compare(
    store: Store, shard: str, key: str, path: Path, row: IngestRow, digest: str
) -> tuple[list[SecondError], list[str]]:
    """Errors of a clip in every second, and what is wrong with it."""
    try:
        members = _members(store, shard, key)
        meta = sample.read_meta(key, members["json"])
        if digest != meta.provenance.sha256:
            return [], [f"its source has changed: expected sha256 {meta.provenance.sha256}, found {digest}"]
        assert row.video is not None
        errors = measure_errors(members["mp4"], meta.clip, path, row.video, meta.audio_shift_s)
    except (DatasetError, MediaError, KeyError) as error:
        return [], [f"cannot be compared with its source: {error}"]
    return errors, [what for error in errors for what in _wrong(error, meta.clip)]


def _members(store: Store, shard: str, key: str) -> Members:
    for found, members in shards.read_samples(store, shard):
        if found == key:
            return members
    raise DatasetError(f"no sample in {shard}")


def _wrong(error: SecondError, clip: Clip) -> Iterator[str]:
    frame_s = 1 / clip.fps + 1e-6
    errors = (("frame", error.frame_s), ("audio", error.audio_s), ("A/V error", error.av_s))
    for what, off_s in errors:
        if off_s is not None and abs(off_s) > frame_s:
            yield (
                f"second {error.second}: {what}: expected at most {1000 / clip.fps:.0f} ms, found "
                f"{off_s * 1000:+.0f} ms"
            )


def measure_errors(
    mp4: bytes, clip: Clip, path: Path, video: Video, audio_shift_s: float = 0.0
) -> list[SecondError]:
    """Where in its source every second of a clip is found, against where it should be.

    Args:
        mp4: the clip's video with audio.
        clip: where in the source it lies.
        path: local copy of the source.
        video: what the probe found of the source.
        audio_shift_s: by how much the clip's audio was moved when it was cut; positive: delayed.

    Raises:
        MediaError: one of the two cannot be decoded.
    """
    with scratch.file(".mp4") as cut:
        cut.write_bytes(mp4)
        cut_video = probe(cut, Input(uri=f"{clip.clip_id}.mp4"), "0" * 64)
        shown = {
            round(frame.time_s * clip.fps): _small(frame, clip, of_source=False)
            for frame in media.read_frames(cut, cut_video)
        }
        audio = media.read_audio(cut, cut_video, 0.0, clip.duration_s)
    begin_s, end_s = clip.start_s - REACH_S, clip.end_s + REACH_S
    source = [
        (frame.time_s, _small(frame, clip, of_source=True))
        for frame in media.read_frames(path, video, begin_s, end_s)
    ]
    source_audio = media.read_audio(path, video, begin_s - audio_shift_s, end_s - audio_shift_s)
    return [
        SecondError(
            second, _frame_error_s(second, shown, source, clip), _audio_error_s(second, audio, source_audio)
        )
        for second in range(max(1, int(clip.duration_s)))
    ]


def _small(frame: media.Frame, clip: Clip, of_source: bool) -> Floats:
    """Grey levels of a frame of the clip, or of what the clip shows of a frame of its source, in small."""
    scale = min(1.0, COMPARED_PX / max(clip.width_px, clip.height_px))
    width_px, height_px = (max(2, int(px * scale) // 2 * 2) for px in (clip.width_px, clip.height_px))
    if of_source and clip.crop is not None:
        rgb = cv2.resize(frame.of_clip(clip), (width_px, height_px), interpolation=cv2.INTER_AREA)
    else:
        rgb = frame.rgb(width_px, height_px)
    grey: Floats = rgb.astype(np.float32).mean(axis=2)
    return grey


def _frame_error_s(
    second: int, shown: dict[int, Floats], source: Sequence[tuple[float, Floats]], clip: Clip
) -> float | None:
    """How much later in the source the frames of a second are shown than they should be, s.

    All frames of the second are laid over the source together, in steps of a frame of the clip: a single
    frame of a head that hardly moves is like its neighbours.
    """
    first, last = round(second * clip.fps), round((second + 1) * clip.fps)
    numbers = [number for number in range(first, last) if number in shown]
    if not numbers or not source:
        return None
    begins_s = np.array([time_s for time_s, _ in source]) - media.frames.TOLERANCE_S
    reach = round(REACH_S * clip.fps)
    differences: dict[int, float] = {}
    for late in range(-reach, reach + 1):
        at_s = [clip.start_s + (number + late) / clip.fps for number in numbers]
        there = np.searchsorted(begins_s, at_s, "right") - 1
        pairs = [(shown[number], source[at][1]) for number, at in zip(numbers, there, strict=True) if at >= 0]
        if len(pairs) == len(numbers):
            differences[late] = float(np.mean([np.abs(ours - theirs).mean() for ours, theirs in pairs]))
    if not differences:
        return None
    bound = ALIKE * min(differences.values()) + NOISE
    return min((late for late, found in differences.items() if found <= bound), key=abs) / clip.fps


def _audio_error_s(second: int, audio: Floats, source: Floats) -> float | None:
    """How much later in the source a second of audio is found than it should be, s.

    Raises:
        MediaError: it is not found at all.
    """
    piece = audio[second * AUDIO_HZ : (second + 1) * AUDIO_HZ]
    reach = round(REACH_S * AUDIO_HZ)
    around = source[second * AUDIO_HZ : (second + 1) * AUDIO_HZ + 2 * reach]
    if level_dbfs(piece) < SILENCE_DBFS or len(around) <= len(piece):
        return None
    field, wanted = around.astype(np.float64), piece.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(field**2)])
    power = sums[len(wanted) :] - sums[: -len(wanted)]
    curve = correlate(field, wanted, "valid", "fft")
    curve /= np.sqrt(np.maximum(power, 1e-9) * np.dot(wanted, wanted))
    best = int(np.argmax(curve))
    if curve[best] < MIN_SIMILARITY:
        raise MediaError(f"second {second}: its audio is not in the source (similarity {curve[best]:.2f})")
    near = slice(max(0, reach - NEAR), reach + NEAR + 1)
    near_best = near.start + int(np.argmax(curve[near]))
    if curve[near_best] >= PEAK_FRACTION * curve[best]:  # a steady tone fits a period later, too
        best = near_best
    return float(best - reach) / AUDIO_HZ
