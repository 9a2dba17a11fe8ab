"""Audio decoding: any window of a file, at any sample rate, with every sample at its source time.

Use it through `curation.media`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from talkforge.curation.media.container import SEEK_BACK_S, UNSEEKABLE, opened
from talkforge.curation.media.encode import audio_frame
from talkforge.curation.media.timeline import JUMP_S, Timeline
from talkforge.curation.media.timeline_files import timeline_of
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Video
from talkforge.schemas.units import AUDIO_HZ

PREROLL_S = 0.5
"""Audio that is decoded and dropped after a seek. It covers the overlap of AAC frames, the convergence of
Opus (80 ms, RFC 7845) and the bit reservoir of MP3."""

JITTER_S = 0.05
"""An audio timestamp that is off by at most this is a rounding error. A larger step is a gap, which is
filled with silence."""


def read_audio(
    path: Path, video: Video, start_s: float, end_s: float, hz: int = AUDIO_HZ, channels: int = 1
) -> Floats:
    """The audio of [start_s, end_s), with silence where the file has none.

    Sample 0 lies at `start_s` to within one sample and one tick of the container's clock (1 ms in
    Matroska). Mono is the mean of a stereo pair. More than two channels are mixed by swresample's
    matrix (ITU-R BS.775), scaled so that it does not clip. Where `video.audio_channel` names one channel
    of a pair, that one is used for all.

    Args:
        path: local copy of the file.
        video: what the probe found of it.
        start_s: start of the window in source seconds.
        end_s: end of the window in source seconds, exclusive.
        hz: sample rate of the result.
        channels: 1 (mono) or 2 (stereo).

    Returns:
        float32 in [-1, 1], [N] for one channel and [N, 2] for two. N is (end_s - start_s) * hz, rounded
        half up.

    Raises:
        MediaError: the file cannot be opened, or reading fails.
    """
    if video.audio_channel != "mix":
        pair = read_audio(path, video.model_copy(update={"audio_channel": "mix"}), start_s, end_s, hz, 2)
        chosen = pair[:, 0 if video.audio_channel == "left" else 1]
        return chosen if channels == 1 else np.repeat(chosen[:, None], channels, axis=1)
    out = np.zeros((max(0, math.floor((end_s - start_s) * hz + 0.5)), channels), np.float32)
    if video.audio_start_s is not None:
        chunks = _covering(_monotonic(_decoded(path, video, start_s, channels)), start_s, end_s)
        done = 0
        for samples in _resampled(chunks, hz):
            part = samples[: len(out) - done]
            np.clip(part, -1, 1, out=out[done : done + len(part)])
            done += len(part)
    return out[:, 0] if channels == 1 else out


def read_audio_file(path: Path, hz: int = AUDIO_HZ, channels: int = 1) -> Floats:
    """All audio of a video or audio file, from its first sample to its last, in the format of `read_audio`.

    Raises:
        MediaError: the file cannot be opened or read, or holds no audio.
    """
    decoded = _decoded_from(path, None, 0.0, None, channels)
    chunks = list(_resampled(((samples, rate) for samples, rate, _ in _monotonic(decoded)), hz))
    if not chunks:
        raise MediaError(f"{path.name!r}: expected audio, found none")
    out: Floats = np.clip(np.concatenate(chunks), -1, 1)
    return out[:, 0] if channels == 1 else out


def promised_s(path: Path) -> float | None:
    """How much audio a file says that it has, s. None where it does not say.

    What a file with video says of its whole length is not taken for that of its audio.

    Raises:
        MediaError: the file cannot be opened.
    """
    with opened(path, path.name) as file:
        audio = file.audio
        if audio is not None and audio.duration is not None:
            return float(audio.duration * audio.time_base)
        whole = file.container.duration
        return None if audio is None or file.video is not None or whole is None else whole / av.time_base


class _Chunk(NamedTuple):
    """Decoded samples [n, channels] at `hz`, of which the first lies at `time_s`."""

    samples: Floats
    hz: int
    time_s: float


def _decoded(path: Path, video: Video, start_s: float, channels: int) -> Iterator[_Chunk]:
    """Decoded chunks from well before `start_s` on, or from the start of the audio."""
    assert video.audio_start_s is not None
    timeline = timeline_of(path, video.uri, video.audio_track)
    if len(timeline.audio_shift_s) > 1:  # after a seek nobody could tell which clock a packet is on
        yield from _decoded_from(path, video, video.audio_start_s, None, channels, timeline)
        return
    for back_s in SEEK_BACK_S:
        target_s = start_s - PREROLL_S - back_s
        if target_s <= video.audio_start_s or video.container in UNSEEKABLE:
            break
        chunks = _decoded_from(path, video, video.audio_start_s, target_s, channels)
        first = next(chunks, None)
        if first is not None and first.time_s <= start_s - PREROLL_S / 2:
            yield first
            yield from chunks
            return
    yield from _decoded_from(path, video, video.audio_start_s, None, channels)


def _decoded_from(
    path: Path,
    video: Video | None,
    first_s: float,
    seek_s: float | None,
    channels: int,
    timeline: Timeline | None = None,
) -> Iterator[_Chunk]:
    """Decoded chunks with the wanted channels, all at the sample rate of the first frame.

    Args:
        path: local copy of the file.
        video: what the probe found of it; None for a file of which only the audio matters.
        first_s: time of the first frame where the container does not give one.
        seek_s: where to seek to. None: decode from the start.
        channels: 1 or 2.
        timeline: moves what is read from the start onto the timeline's clock; None: the file's own clock.
    """
    uri, track = (video.uri, video.audio_track) if video else (path.name, None)
    with opened(path, uri, audio_track=track) as file:
        stream = file.audio
        if stream is None or (seek_s is not None and not file.seek(stream, seek_s)):
            return
        hz, setup, mixer = 0, None, _mixer(channels, 1)
        time_s = first_s if seek_s is None else None
        for number, frame in file.frames(stream):
            hz = hz or frame.sample_rate
            if frame.pts is not None:
                time_s = file.seconds(stream, frame.pts)
                time_s = timeline.audio_seconds(number, time_s) if timeline else time_s
            if time_s is None:
                return
            # Mono is copied to both channels here, because swresample would make it 3 dB quieter.
            mixed_channels = min(channels, frame.layout.nb_channels)
            if setup != (setup := (frame.format.name, frame.layout.name, frame.sample_rate)):
                mixer = _mixer(mixed_channels, hz)
            for mixed in mixer.resample(frame):
                samples = mixed.to_ndarray().reshape(-1, mixed_channels)
                samples = np.repeat(samples, channels // mixed_channels, axis=1)
                yield _Chunk(samples, hz, time_s)
                time_s += len(samples) / hz


def _mixer(channels: int, hz: int) -> Any:
    """Converts to float and mixes. The matrix is normalised, which swresample does not do for float."""
    layout = "mono" if channels == 1 else "stereo"
    return av.AudioResampler("flt", layout, hz, options={"rematrix_maxval": "1"})


def _monotonic(chunks: Iterator[_Chunk]) -> Iterator[tuple[Floats, int, int]]:
    """(samples, hz, index of the first sample on the source's clock), in order and without overlap.

    Where segments of a stream overlap, what comes twice is dropped to the sample: the rest of an overlap is
    not taken for jitter, or each join would leave the audio late by up to `JITTER_S`.
    """
    expected: int | None = None
    overlaps = False
    for samples, hz, time_s in chunks:
        index = math.floor(time_s * hz + 0.5)
        if expected is not None:
            late_s = (index - expected) / hz
            if late_s < -JUMP_S or (abs(late_s) <= JITTER_S and not overlaps):
                index = expected
            elif late_s < 0:
                samples, index = samples[expected - index :], expected
                overlaps = not len(samples)
            else:
                overlaps = False
        expected = index + len(samples)
        yield samples, hz, index


def _covering(
    chunks: Iterator[tuple[Floats, int, int]], start_s: float, end_s: float
) -> Iterator[tuple[Floats, int]]:
    """(samples, hz) without holes from `start_s` to a little past `end_s`, or to the end of the audio."""
    at: int | None = None
    for samples, hz, index in chunks:
        at = math.floor(start_s * hz + 0.5) if at is None else at
        # The resampler looks ahead, so it also needs the samples just after the end.
        if index >= (end_s + PREROLL_S) * hz:
            return
        samples, index = samples[max(0, at - index) :], max(index, at)
        if not len(samples):
            continue
        if index > at:
            yield np.zeros((index - at, samples.shape[1]), np.float32), hz
        yield samples, hz
        at = index + len(samples)


def _resampled(chunks: Iterator[tuple[Floats, int]], hz: int) -> Iterator[Floats]:
    """Chunks [n, channels] of one sample rate, resampled to chunks [m, channels] at `hz`."""
    resampler = av.AudioResampler("flt", rate=hz)
    channels = 1
    for samples, from_hz in chunks:
        channels = samples.shape[1]
        for frame in resampler.resample(audio_frame(samples, from_hz)):
            yield frame.to_ndarray().reshape(-1, channels)
    for frame in resampler.resample(None) if not resampler.is_passthrough else ():
        yield frame.to_ndarray().reshape(-1, channels)
