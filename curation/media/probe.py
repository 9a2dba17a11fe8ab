"""Probe of a video file: its facts from the headers and one decoded frame.

Headers are checked before they are believed, because many are wrong.
"""

from __future__ import annotations

import logging
import math
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from av.sidedata.sidedata import Type

from talkforge.curation.media.container import MAX_PIXELS, MediaFile, opened, reason
from talkforge.curation.media.timeline import Timeline
from talkforge.curation.media.timeline_files import timeline_of
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input, Video

log = logging.getLogger(__name__)

STILL_IMAGES = (
    "image2,png_pipe,jpeg_pipe,jpegxl_pipe,bmp_pipe,tiff_pipe,webp_pipe,svg_pipe,psd_pipe,qoi_pipe,exr_pipe"
)
"""Demuxers of still images."""

STILL_BRANDS = ("heic", "heix", "mif1", "avif")
"""Major brands of ISO files that hold still images. Source: ISO/IEC 23008-12."""

_HDR = {16: "pq", 18: "hlg"}
"""Transfer functions of high dynamic range, in FFmpeg's numbers. Source: ITU-T H.273, table 3."""

MAX_SAMPLE_ASPECT_RATIO = 8.0
"""A pixel that is longer than this, either way, comes from a damaged header and is taken for square."""


def content_hash(path: Path) -> str:
    """sha256 of the file's bytes, as 64 hex digits.

    Raises:
        MediaError: not a regular file, or unreadable.
    """
    _expect_file(path, str(path))
    try:
        return sha256_of(path)
    except OSError as error:
        raise MediaError(f"{str(path)!r}: expected a readable file, found {reason(error)}") from error


def promised_s(path: Path, uri: str) -> float | None:
    """Length of a video as its header has it, s; None where the header has none. Decodes nothing.

    Args:
        path: local copy of the file.
        uri: name of the file in messages.

    Raises:
        MediaError: the file cannot be opened as a video.
    """
    _expect_file(path, uri)
    with _opened_video(path, uri) as file:
        duration_us = file.container.duration
        return duration_us / 1e6 if duration_us and duration_us > 0 else None


def probe(path: Path, given: Input, sha256: str) -> Video:
    """The facts of one video file. It reads the headers and decodes one frame.

    Args:
        path: local copy of the file.
        given: the input as the user listed it: uri, source, licence and consent.
        sha256: its `content_hash`.

    Raises:
        MediaError: the file is not a video that can be decoded. The message is one line that names the
            file and says what was found instead: an empty file, no regular file, no permission, another
            format, a still image, no video stream, an absurd frame size, or no frame at all.
    """
    uri = given.uri
    num_bytes = _expect_file(path, uri)
    with _opened_video(path, uri) as file:
        stream: Any = file.video
        _expect_size(stream, uri)
        number, frame = _first_frame(file)
        fps, fps_nominal = _rates(stream, uri)
        ratio, rotation_deg = _sample_aspect_ratio(stream, uri), _rotation_deg(frame, uri)
        width_px, height_px = _display_size(frame.width, frame.height, ratio, rotation_deg)
        timeline = timeline_of(path, uri)
        start_s = _shown_s(timeline, number)
        _warn_if_cut_short(file, timeline.end_s)
        return Video(
            video_id=sha256[:12],
            sha256=sha256,
            uri=uri,
            num_bytes=num_bytes,
            source=given.source,
            licence=given.licence,
            consent=given.consent,
            container=file.container.format.name,
            video_codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            width_px=width_px,
            height_px=height_px,
            coded_width_px=frame.width,
            coded_height_px=frame.height,
            rotation_deg=rotation_deg,
            mirrored=_is_mirrored(frame),
            interlaced=bool(frame.interlaced_frame),
            hdr=_HDR.get(int(frame.color_trc), ""),
            sample_aspect_ratio=ratio,
            fps=fps,
            fps_nominal=fps_nominal,
            start_s=start_s,
            end_s=max(timeline.end_s, start_s + 1 / fps),
            gaps_s=tuple(instant for gap in timeline.gaps_s for instant in gap),
            repaired_outliers=timeline.repairs.outliers,
            repaired_repeats=timeline.repairs.repeats,
            repaired_joins=timeline.repairs.joins,
            **_audio_facts(file, timeline),
        )


def _expect_file(path: Path, uri: str) -> int:
    """Size in bytes of a regular file that is not empty. Opening anything else could block for ever."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise MediaError(f"{uri!r}: expected a readable file, found {reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}.get(
            stat.S_IFMT(status.st_mode), "a device"
        )
        raise MediaError(f"{uri!r}: expected a regular file, found {kind}")
    if not status.st_size:
        raise MediaError(f"{uri!r}: expected a video file, found an empty file (0 bytes)")
    return status.st_size


@contextmanager
def _opened_video(path: Path, uri: str) -> Iterator[MediaFile]:
    """The opened file, once it is known to be no still image and to have a video stream with a decoder."""
    try:
        stack = ExitStack()
        file = stack.enter_context(opened(path, uri))
    except MediaError:
        if _is_still_image(path, uri):
            raise MediaError(f"{uri!r}: expected a video file, found a still image") from None
        raise
    with stack:
        if file.container.metadata.get("major_brand") in STILL_BRANDS:
            raise MediaError(f"{uri!r}: expected a video file, found a still image")
        if file.video is None:
            found = "audio only" if file.container.streams.audio else "none"
            raise MediaError(f"{uri!r}: expected a video stream, found {found}")
        if file.video.codec_context is None:
            raise MediaError(f"{uri!r}: expected a known video codec, found one without a decoder")
        yield file


def _is_still_image(path: Path, uri: str) -> bool:
    try:
        with opened(path, uri, STILL_IMAGES):
            return True
    except MediaError:
        return False


def _expect_size(stream: Any, uri: str) -> None:
    width_px, height_px = stream.codec_context.width, stream.codec_context.height
    if 0 < width_px * height_px <= MAX_PIXELS:
        return
    # FFmpeg itself refuses sizes beyond the limit that it was opened with, and reports none.
    found = f"{width_px}x{height_px}" if width_px else "none, or one larger than that"
    raise MediaError(f"{uri!r}: expected a frame size of at most {MAX_PIXELS} pixels, found {found}")


def _first_frame(file: MediaFile) -> tuple[int, Any]:
    """Number of the packet of the first frame that can be decoded, and that frame."""
    for number, frame in file.frames(file.video):
        return number, frame
    raise MediaError(f"{file.uri!r}: expected frames, found none that can be decoded")


def _shown_s(timeline: Timeline, number: int) -> float:
    """When the frame of packet `number`, the first that is decoded, is shown."""
    time_s = float(timeline.time_s[number])
    return timeline.start_s if timeline.ordinal or math.isnan(time_s) else time_s


def _rates(stream: Any, uri: str) -> tuple[float, float]:
    """Average and nominal frame rate, frames/s."""
    nominal = stream.guessed_rate or stream.base_rate or stream.average_rate
    average = stream.average_rate or nominal
    if not average or not nominal:
        raise MediaError(f"{uri!r}: expected a frame rate, found none")
    return float(average), float(nominal)


def _sample_aspect_ratio(stream: Any, uri: str) -> float:
    ratio = float(stream.sample_aspect_ratio or 1)
    if 1 / MAX_SAMPLE_ASPECT_RATIO <= ratio <= MAX_SAMPLE_ASPECT_RATIO:
        return ratio
    log.warning("%r: a sample aspect ratio of %g is taken for 1", uri, ratio)
    return 1.0


def _rotation_deg(frame: Any, uri: str) -> int:
    """Clockwise quarter turns that put the frame upright."""
    clockwise_deg = -frame.rotation % 360
    upright_deg = round(clockwise_deg / 90) * 90 % 360
    if upright_deg != clockwise_deg:
        log.warning("%r: a rotation of %d degrees is taken for %d", uri, clockwise_deg, upright_deg)
    return int(upright_deg)


def _is_mirrored(frame: Any) -> bool:
    """Whether the display matrix turns the frame over, besides rotating it."""
    for data in frame.side_data:
        if data.type == Type.DISPLAYMATRIX:
            a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
            return bool(a * d < b * c)
    return False


def _display_size(width_px: int, height_px: int, ratio: float, rotation_deg: int) -> tuple[int, int]:
    """Size with square pixels. The shorter side of a pixel is stretched, so no detail is lost."""
    wide = max(1, math.floor(width_px * max(ratio, 1.0) + 0.5))
    high = max(1, math.floor(height_px * max(1 / ratio, 1.0) + 0.5))
    return (high, wide) if rotation_deg in (90, 270) else (wide, high)


def _warn_if_cut_short(file: MediaFile, end_s: float) -> None:
    """Logs where an indexed file ends a second or more before its header's end."""
    stream: Any = file.video
    promised_s = file.container.duration / 1e6 if file.container.duration and stream.frames else end_s
    if end_s < promised_s - 1:
        log.warning("%r: cut short at %.2f s of %.2f s", file.uri, end_s, promised_s)


def _audio_facts(file: MediaFile, timeline: Timeline) -> dict[str, Any]:
    """Fields of `Video` about its audio. Empty where no audio stream can be decoded."""
    stream = file.audio
    if stream is None:
        return {}
    return {
        "audio_tracks": file.audio_tracks,
        "audio_end_s": timeline.audio_end_s,
        "audio_codec": stream.codec_context.name,
        "audio_hz": stream.codec_context.sample_rate,
        "audio_channels": stream.codec_context.layout.nb_channels,
        "audio_start_s": 0.0 if stream.start_time is None else file.seconds(stream, stream.start_time),
    }
