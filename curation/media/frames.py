"""Video decoding: frames by timestamp.

Pictures come by timestamp, upright and with square pixels, whatever the file does: variable
rate, rotation, sample aspect ratio, 10 bits, odd sizes, late or early audio, damage. Times are
source seconds: 0 is the earliest start of the file's video and audio streams.

`MediaError` is raised where nothing at all can be decoded, or where reading itself fails; a
file cut short gives what it holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from talkforge.curation.media.container import SEEK_BACK_S, UNSEEKABLE, opened, reason
from talkforge.curation.media.encode import BT709, LIMITED, SCALING
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Video

TOLERANCE_S = 0.6e-3
"""A picture counts as shown this much before its timestamp. Matroska and FLV round timestamps to
whole milliseconds; without it a picture of a 30 fps file could miss its own instant."""

_BT601 = 5
_MATRICES = (BT709, 4, _BT601, 6, 7, 9)
"""Colour matrices that swscale knows, in FFmpeg's numbers: 709, FCC, 470BG, 170M, 240M, 2020."""


class _DecodedFrame(NamedTuple):
    """A decoded frame and its place on the source's clock."""

    raw: Any
    time_s: float
    duration_s: float


@dataclass(frozen=True)
class _Scaler:
    """Turns decoded frames into upright RGB; keeps its swscale contexts from frame to frame.

    Scales in 4:2:0 and converts to RGB afterwards: both have fast and exact code in swscale,
    while doing both at once is several times slower or two grey levels too dark.
    """

    video: Video
    _to_yuv: dict[tuple[int, int], Any] = field(default_factory=lambda: defaultdict(VideoReformatter))
    _to_rgb: dict[tuple[int, int], Any] = field(default_factory=lambda: defaultdict(VideoReformatter))

    def rgb(self, raw: Any, width_px: int, height_px: int) -> Bytes:
        sideways = self.video.rotation_deg in (90, 270)
        size = (height_px, width_px) if sideways else (width_px, height_px)
        try:
            rgb = self._converted(raw, size)
        except FFmpegError as error:
            raise MediaError(f"{self.video.uri!r}: a picture cannot be converted: {reason(error)}") from error
        return np.ascontiguousarray(np.rot90(rgb, -(self.video.rotation_deg // 90)))

    def _converted(self, raw: Any, size: tuple[int, int]) -> Bytes:
        matrix = _matrix(raw)
        yuv = self._to_yuv[size].reformat(
            raw,
            *size,
            format="yuv420p",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            dst_color_range=LIMITED,
            interpolation=SCALING,
            threads=1,
        )
        rgb = self._to_rgb[size].reformat(yuv, format="rgb24", src_colorspace=matrix, threads=1)
        return rgb.to_ndarray()  # type: ignore[no-any-return]


def _matrix(raw: Any) -> int:
    """Colour matrix of a frame; where it does not say, BT.709 for HD and BT.601 below.

    Source: the guess of mpv (mp_csp_guess_colorspace): HD is 1280 wide or over 576 high.
    """
    if raw.colorspace in _MATRICES:
        return int(raw.colorspace)
    return BT709 if raw.width >= 1280 or raw.height > 576 else _BT601


@dataclass(frozen=True)
class Frame:
    """A decoded picture, in force during [time_s, until_s) of source time."""

    time_s: float
    until_s: float
    _raw: Any = field(repr=False)
    _scaler: _Scaler = field(repr=False)

    def rgb(
        self, width_px: int | None = None, height_px: int | None = None, longest_edge_px: int | None = None
    ) -> Bytes:
        """Upright RGB uint8 [H, W, 3] with square pixels, by default in the video's display size.

        `width_px` and `height_px` set the size; given one, the other keeps the shape.
        `longest_edge_px` scales down to that edge, never up. Every call converts anew.
        """
        video = self._scaler.video
        scale = 1.0
        if longest_edge_px is not None:
            scale = min(1.0, longest_edge_px / max(video.width_px, video.height_px))
        elif width_px is not None:
            scale = width_px / video.width_px
        elif height_px is not None:
            scale = height_px / video.height_px
        width = width_px or max(1, math.floor(video.width_px * scale + 0.5))
        height = height_px or max(1, math.floor(video.height_px * scale + 0.5))
        return self._scaler.rgb(self._raw, width, height)


def read_frames(path: Path, video: Video, start_s: float = 0.0, end_s: float = math.inf) -> Iterator[Frame]:
    """Every decoded picture in force somewhere in [start_s, end_s), in order of time.

    Seeks to a key frame before `start_s`; what comes out is the same as without seeking. Holds
    two decoded frames besides those that the codec refers to. The last picture of the file is
    in force for its own duration.

    Raises:
        MediaError: the file cannot be opened, reading fails, or no picture can be decoded.
    """
    scaler = _Scaler(video)
    held: _DecodedFrame | None = None
    for frame in _frames_covering(path, video, start_s):
        if held is not None and frame.time_s > start_s:
            yield Frame(held.time_s, frame.time_s, held.raw, scaler)
        if frame.time_s >= end_s:
            return
        held = frame
    if held is None:
        raise MediaError(f"{video.uri!r}: expected pictures, found none that can be decoded")
    until_s = held.time_s + held.duration_s
    if until_s > start_s:
        yield Frame(held.time_s, until_s, held.raw, scaler)


def _frames_covering(path: Path, video: Video, start_s: float) -> Iterator[_DecodedFrame]:
    """Frames from a key frame at or before `start_s`, or from the first frame."""
    for back_s in SEEK_BACK_S:
        if start_s - back_s <= video.start_s or video.container in UNSEEKABLE:
            break
        frames = _frames_from(path, video, start_s - back_s)
        for frame in frames:
            if frame.time_s > start_s:
                break
            # Between the landing point and a key frame, pictures lack what they refer to.
            if frame.raw.key_frame:
                yield frame
                yield from frames
                return
    yield from _frames_from(path, video, None)


def _frames_from(path: Path, video: Video, seek_s: float | None) -> Iterator[_DecodedFrame]:
    """Decoded frames with strictly increasing times, from near `seek_s` or from the start.

    A frame without a timestamp, or with one that does not advance, comes one nominal frame
    duration after the one before; after a seek there must be a timestamp to start with.
    """
    with opened(path, video.uri) as file:
        stream = file.video
        if stream is None or (seek_s is not None and not file.seek(stream, seek_s)):
            return
        time_s: float | None = None
        for raw in file.frames(stream):
            stamp_s = None if raw.pts is None else file.seconds(stream, raw.pts)
            if time_s is not None:
                time_s = stamp_s if stamp_s is not None and stamp_s > time_s else time_s + 1 / video.fps
            elif stamp_s is None and seek_s is not None:
                return
            else:
                time_s = video.start_s if stamp_s is None else stamp_s
            yield _DecodedFrame(raw, time_s, float(raw.duration * stream.time_base) or 1 / video.fps)


def clip_indices(frame: Frame, start_s: float, fps: float, num_frames: int) -> range:
    """Output frames k of a clip for which `frame` is in force at `start_s + k / fps`.

    Consecutive pictures give consecutive ranges, so that each k belongs to one picture at most.
    A picture counts from `TOLERANCE_S` before its timestamp.
    """

    def first_at(time_s: float) -> int:
        return min(max(math.ceil((time_s - TOLERANCE_S - start_s) * fps), 0), num_frames)

    return range(first_at(frame.time_s), first_at(frame.until_s))


def clip_size(video: Video, longest_edge_px: int) -> tuple[int, int]:
    """(width_px, height_px) of a clip: even, scaled down to `longest_edge_px`, never up."""
    scale = min(1.0, longest_edge_px / max(video.width_px, video.height_px))

    def even(size_px: int) -> int:
        nearest = 2 * math.floor(size_px * scale / 2 + 0.5)
        return max(2, min(nearest, size_px // 2 * 2))

    return even(video.width_px), even(video.height_px)
