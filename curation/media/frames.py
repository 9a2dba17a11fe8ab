"""Video decoding: frames by timestamp, upright and with square pixels.

Variable frame rates, rotation, sample aspect ratios, 10-bit formats, odd sizes, an audio offset and damage
are all handled here. Times are source seconds: 0 is the earliest start of the file's video and audio streams.

`MediaError` is raised where nothing can be decoded or where reading fails. A truncated file gives the
frames that it holds.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from talkforge.curation.media.container import SEEK_BACK_S, UNSEEKABLE, opened, reason
from talkforge.curation.media.encode import BT709, LIMITED, SCALING
from talkforge.curation.media.geometry import coded_rectangle
from talkforge.curation.media.timeline import JUMP_S, NO_STAMP, Timeline
from talkforge.curation.media.timeline_files import timeline_of
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Clip, Rectangle, Video

TOLERANCE_S = 0.6e-3
"""A frame counts as shown this long before its timestamp. Matroska and FLV round timestamps to whole
milliseconds, so without it a frame of a 30 fps file could miss its own instant."""

_BT601 = 5
_MATRICES = (BT709, 4, _BT601, 6, 7, 9)
"""Colour matrices that swscale knows, in FFmpeg's numbers: 709, FCC, 470BG, 170M, 240M, 2020."""


class _DecodedFrame(NamedTuple):
    """A decoded frame with its time on the source's clock."""

    raw: Any
    time_s: float
    duration_s: float


@dataclass(frozen=True)
class _Scaler:
    """Converts decoded frames to upright RGB and keeps its swscale contexts from frame to frame.

    It scales in 4:2:0 and converts to RGB afterwards. swscale has fast and exact code for each of these
    steps, while doing both at once is several times slower or two grey levels too dark.
    """

    video: Video
    _to_yuv: dict[tuple[int, int], Any] = field(default_factory=lambda: defaultdict(VideoReformatter))
    _to_rgb: dict[tuple[int, int], Any] = field(default_factory=lambda: defaultdict(VideoReformatter))
    _croppers: dict[tuple[str, int, int, int, int], Any] = field(default_factory=dict)

    def rgb(self, raw: Any, width_px: int, height_px: int, crop: Rectangle | None = None) -> Bytes:
        sideways = self.video.rotation_deg in (90, 270)
        size = (height_px, width_px) if sideways else (width_px, height_px)
        try:
            rgb = self._converted(raw, size) if crop is None else self._cropped(raw, size, crop)
        except FFmpegError as error:
            raise MediaError(f"{self.video.uri!r}: a frame cannot be converted: {reason(error)}") from error
        rgb = np.flipud(rgb) if self.video.mirrored else rgb
        return np.ascontiguousarray(np.rot90(rgb, -(self.video.rotation_deg // 90)))

    def encodable(self, raw: Any, width_px: int, height_px: int, crop: Rectangle | None = None) -> Any:
        """The frame as `encode_mp4` stores it, yuv420p, or as RGB where that takes a conversion anyway."""
        video = self.video
        upright = video.rotation_deg == 0 and not video.mirrored
        as_probed = (raw.width, raw.height) == (video.coded_width_px, video.coded_height_px)
        if not (upright and as_probed and _matrix(raw) == BT709):
            return self.rgb(raw, width_px, height_px, crop)
        try:
            part = raw if crop is None else self._part(raw, crop)
            return self._planes(part, (width_px, height_px), BT709)
        except FFmpegError as error:
            raise MediaError(f"{video.uri!r}: a frame cannot be converted: {reason(error)}") from error

    def _converted(self, raw: Any, size: tuple[int, int]) -> Bytes:
        """RGB of `size` (width, height); a frame of another shape than the video's keeps it, on black."""
        coded = (self.video.coded_width_px, self.video.coded_height_px)
        if (raw.width, raw.height) != coded:
            scale = min(size[0] / raw.width, size[1] / raw.height)
            inner = (max(2, int(raw.width * scale) // 2 * 2), max(2, int(raw.height * scale) // 2 * 2))
            rgb = np.zeros((size[1], size[0], 3), np.uint8)
            left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
            rgb[top : top + inner[1], left : left + inner[0]] = self._scaled(raw, inner, _matrix(raw))
            return rgb
        return self._scaled(raw, size, _matrix(raw))

    def _cropped(self, raw: Any, size: tuple[int, int], crop: Rectangle) -> Bytes:
        """RGB of `size` (width, height) of a part of the frame."""
        coded = (self.video.coded_width_px, self.video.coded_height_px)
        matrix = _matrix(raw)
        if (raw.width, raw.height) != coded:
            left, top, width, height = coded_rectangle(self.video, crop)
            rgb = self._converted(raw, coded)[top : top + height, left : left + width]
            return self._scaled(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"), size, matrix
            )
        return self._scaled(self._part(raw, crop), size, matrix)

    def _part(self, raw: Any, crop: Rectangle) -> Any:
        """A part of a frame of the size that the probe found, without copying it."""
        left, top, width, height = coded_rectangle(self.video, crop)
        key = (raw.format.name, left, top, width, height)
        if key not in self._croppers:
            self._croppers[key] = _cropper(raw, left, top, width, height)
        self._croppers[key].push(raw)
        return self._croppers[key].pull()

    def _planes(self, raw: Any, size: tuple[int, int], matrix: int) -> Any:
        """The frame scaled to `size`, yuv420p of limited range in the matrix that it has."""
        return self._to_yuv[size].reformat(
            raw,
            *size,
            format="yuv420p",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            dst_color_range=LIMITED,
            interpolation=SCALING,
            threads=1,
        )

    def _scaled(self, raw: Any, size: tuple[int, int], matrix: int) -> Bytes:
        yuv = self._planes(raw, size, matrix)
        rgb = self._to_rgb[size].reformat(yuv, format="rgb24", src_colorspace=matrix, threads=1)
        return rgb.to_ndarray()  # type: ignore[no-any-return]


def _cropper(raw: Any, left: int, top: int, width: int, height: int) -> Any:
    """Filter that cuts a rectangle in coded pixels out of frames like `raw`, without copying them."""
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=raw.width, height=raw.height, format=raw.format.name, time_base=Fraction(1, 1000)
        ),
        graph.add("crop", f"{width}:{height}:{left}:{top}"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _matrix(raw: Any) -> int:
    """Colour matrix of a frame. If it names none, this is BT.709 for HD and BT.601 below.

    Source: the guess of mpv (mp_csp_guess_colorspace): HD is 1280 wide or over 576 high.
    """
    if raw.colorspace in _MATRICES:
        return int(raw.colorspace)
    return BT709 if raw.width >= 1280 or raw.height > 576 else _BT601


@dataclass(frozen=True)
class Frame:
    """A decoded frame, shown during [time_s, until_s) of source time."""

    time_s: float
    until_s: float
    _raw: Any = field(repr=False)
    _scaler: _Scaler = field(repr=False)

    @property
    def coded_size(self) -> tuple[int, int]:
        """Width and height as stored, px; it may change within a file."""
        return int(self._raw.width), int(self._raw.height)

    def rgb(
        self, width_px: int | None = None, height_px: int | None = None, longest_edge_px: int | None = None
    ) -> Bytes:
        """The frame as upright RGB, uint8 [H, W, 3], with square pixels. Every call converts again.

        Args:
            width_px: width of the result. With this alone the height follows from the aspect ratio.
            height_px: height of the result. With this alone the width follows.
            longest_edge_px: scales down to this longest edge, never up. Without any of the three the result
                has the video's display size.
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

    def of_clip(self, clip: Clip) -> Bytes:
        """The frame as the clip shows it, uint8 [clip height, clip width, 3].

        This is what is measured.
        """
        return self._scaler.rgb(self._raw, clip.width_px, clip.height_px, clip.crop)

    def to_encode(self, clip: Clip) -> Any:
        """The same picture for `encode_mp4`, which is what is cut.

        It is a frame in yuv420p where the source has the matrix that is written, BT.709, as nearly all
        footage in HD has. Then nothing is converted to RGB and back. Otherwise it is `of_clip`.
        """
        return self._scaler.encodable(self._raw, clip.width_px, clip.height_px, clip.crop)


def read_frames(path: Path, video: Video, start_s: float = 0.0, end_s: float = math.inf) -> Iterator[Frame]:
    """Every decoded frame that is shown at some time in [start_s, end_s), in order of time.

    Times are those of the video's timeline, so a frame has one time wherever reading begins. Two decoded
    frames are held, besides the reference frames of the codec. A frame is shown until the next one, but
    before a gap in the video, and at its end, for one frame's duration only.

    Args:
        path: local copy of the video.
        video: what the probe found of it.
        start_s: start of the span in source seconds.
        end_s: end of the span in source seconds, exclusive.

    Raises:
        MediaError: the file cannot be opened, reading fails, or no frame can be decoded.
    """
    scaler = _Scaler(video)
    timeline = timeline_of(path, video.uri, video.audio_track)
    held: _DecodedFrame | None = None
    for frame in _frames_covering(path, video, timeline, start_s):
        if held is not None:
            until_s = frame.time_s if frame.time_s - held.time_s <= JUMP_S else held.time_s + timeline.frame_s
            if until_s > start_s:
                yield Frame(held.time_s, until_s, held.raw, scaler)
        if frame.time_s >= end_s:
            return
        held = frame
    if held is None:
        raise MediaError(f"{video.uri!r}: expected frames, found none that can be decoded")
    until_s = timeline.until_s(held.time_s, held.duration_s)
    if until_s > start_s:
        yield Frame(held.time_s, until_s, held.raw, scaler)


def _frames_covering(path: Path, video: Video, timeline: Timeline, start_s: float) -> Iterator[_DecodedFrame]:
    """Frames from a key frame at or before `start_s`, or from the first frame."""
    if video.interlaced:
        start_s -= 2 * timeline.frame_s  # see `_deinterlaced`
    wanted = timeline.key_before(start_s)
    if wanted and not timeline.ordinal and video.container not in UNSEEKABLE:
        for back_s in SEEK_BACK_S:
            frames = _frames_from(path, video, timeline, timeline.key_before(start_s - back_s), start_s)
            first = next(frames, None)
            if first is not None:
                yield first
                yield from frames
                return
    yield from _frames_from(path, video, timeline, 0, start_s)


def _frames_from(
    path: Path, video: Video, timeline: Timeline, key: int, start_s: float
) -> Iterator[_DecodedFrame]:
    """Decoded frames with strictly increasing times, from key frame number `key` on; 0 is the start.

    Gives nothing where seeking leads past `start_s`, or where nobody knows where it leads.
    """
    with opened(path, video.uri) as file:
        stream, numbered = file.video, None
        if stream is None:
            return
        if key:
            stamp = int(timeline.pts[key])
            if stamp == NO_STAMP or not file.seek_stamp(stream, stamp):
                return
            numbered = timeline.located(file.packets(stream))
        latest_s = -math.inf
        times_s = iter(np.sort(timeline.time_s)) if timeline.ordinal else None
        decoded = file.frames(stream, numbered)
        for number, raw in _deinterlaced(stream, decoded) if video.interlaced else decoded:
            time_s = float(timeline.time_s[number]) if times_s is None else float(next(times_s, math.nan))
            if key and latest_s == -math.inf and (time_s > start_s or not raw.key_frame):
                if time_s > start_s:
                    return
                continue  # frames between the landing point of the seek and a key frame lack their references
            if time_s > latest_s:  # False for NaN: a repeat, which is not shown
                yield _DecodedFrame(raw, time_s, float(raw.duration * stream.time_base) or 1 / video.fps)
                latest_s = time_s


def _deinterlaced(stream: Any, frames: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The frames with their numbers; those that are interlaced as one full frame each, by FFmpeg's bwdif.

    The filter looks at the frame before and the one after. The first frame has none before it, so reading
    has to begin one frame early for a result that does not depend on where it begins.
    """
    numbers = deque[int]()
    graph: Any = None
    shape: tuple[int, int, str] | None = None
    for number, raw in frames:
        if shape != (shape := (raw.width, raw.height, raw.format.name)):
            if graph is not None:
                yield from _flushed(graph, numbers)
            width, height, pixels = shape
            graph = Graph()
            graph.link_nodes(
                graph.add_buffer(width=width, height=height, format=pixels, time_base=stream.time_base),
                graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
                graph.add("buffersink"),
            ).configure()
        numbers.append(number)
        graph.push(raw)
        yield from _filtered(graph, numbers)
    if graph is not None:
        yield from _flushed(graph, numbers)


def _filtered(graph: Any, numbers: deque[int]) -> Iterator[tuple[int, Any]]:
    """Frames that the filter gives now, each with the oldest number."""
    while numbers:
        try:
            raw = graph.pull()
        except (BlockingIOError, EOFError):
            return
        yield numbers.popleft(), raw


def _flushed(graph: Any, numbers: deque[int]) -> Iterator[tuple[int, Any]]:
    """Frames that the filter still holds."""
    graph.push(None)
    yield from _filtered(graph, numbers)


def clip_indices(frame: Frame, start_s: float, fps: float, num_frames: int) -> range:
    """Indices k of a clip's frames for which `frame` is shown at `start_s + k / fps`.

    Consecutive frames of the video give consecutive ranges, so each k belongs to one of them at most. A frame
    counts from `TOLERANCE_S` before its timestamp.

    Args:
        frame: a decoded frame of the video.
        start_s: start of the clip in source seconds.
        fps: frame rate of the clip.
        num_frames: length of the clip.
    """

    def first_at(time_s: float) -> int:
        return min(max(math.ceil((time_s - TOLERANCE_S - start_s) * fps), 0), num_frames)

    return range(first_at(frame.time_s), first_at(frame.until_s))
