"""Opening media files with PyAV: the streams that are used, their clock, packets and frames.

Only the other modules of `curation.media` need this one.

Damaged files are used as far as they go. A packet that cannot be decoded is skipped, and in a video so
is everything up to the next key frame. A truncated file ends where its data end. Both are logged as
warnings.

Everything runs on one thread. That keeps memory small and the decoded bytes independent of the machine's
load, and the workers already run in parallel (docs/decoding.md has the figures).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec.context import Flags
from av.error import FFmpegError

from talkforge.schemas.errors import MediaError, one_line

log = logging.getLogger(__name__)

MAX_PIXELS = 16384 * 8640
"""Largest frame that is decoded, 16K. A header that claims more is treated as damaged."""

DEMUXERS = (
    "mov,matroska,mpeg,mpegts,avi,flv,asf,ogg,mxf,rm,dv,wtv,nut,ivf,yuv4mpegpipe,gif,"
    "h264,hevc,m4v,mpegvideo,mp3,wav,w64,flac,aac,ac3,aiff,caf,amr"
)
"""Demuxers that may read a file. Playlists, subtitles and devices are left out, because some of them open
further files."""

SEEK_BACK_S = (0.0, 2.0, 10.0, 60.0)
"""Seek targets that are tried one after the other, as time before the wanted instant. If none works, the
file is decoded from its start."""

UNSEEKABLE = ("mpeg",)
"""Containers that are always read from the start. MPEG program streams have few timestamps, and those that
FFmpeg fills in after a seek are off by up to half a frame."""

_REASONS = {
    av.error.InvalidDataError: "data in no known media format",
    av.error.EOFError: "a file cut short before its first frame",
    av.error.ArgumentError: "a kind of file that holds no video",
}


@dataclass(frozen=True)
class MediaFile:
    """An open media file and the streams of it that are used.

    Attributes:
        uri: name of the file in messages.
        container: PyAV's input container.
        video: the video stream, or None.
        audio: the audio stream, or None.
        audio_tracks: audio streams that can be decoded.
        origin_s: time of source second 0 on the file's own clock, in seconds.
    """

    uri: str
    container: Any
    video: Any | None
    audio: Any | None
    audio_tracks: int
    origin_s: Fraction

    def seconds(self, stream: Any, stamp: int) -> float:
        """Source seconds of a timestamp of `stream`."""
        return float(stamp * stream.time_base - self.origin_s)

    def seek(self, stream: Any, time_s: float) -> bool:
        """Seek to the key frame before `time_s`, or near it. Returns False where the container cannot."""
        return self.seek_stamp(stream, math.floor((Fraction(time_s) + self.origin_s) / stream.time_base))

    def seek_stamp(self, stream: Any, stamp: int) -> bool:
        """As `seek`, to a timestamp of `stream` in its own ticks."""
        try:
            self.container.seek(stamp, stream=stream)
        except (FFmpegError, OverflowError):
            return False
        return True

    def packets(self, *streams: Any) -> Iterator[Any]:
        """Packets of these streams that hold data. The demuxer skips every other stream.

        Raises:
            MediaError: reading fails for another reason than a truncated file.
        """
        for other in self.container.streams:
            if other not in streams:
                other.discard = av.stream.Discard.all
        try:
            yield from (packet for packet in self.container.demux(*streams) if packet.size)
        except (av.error.InvalidDataError, av.error.EOFError):
            log.warning("%r: the file is cut short; what it holds is used", self.uri)
        except FFmpegError as error:
            raise MediaError(f"{self.uri!r}: reading failed: {reason(error)}") from error

    def frames(
        self, stream: Any, numbered: Iterable[tuple[int, Any]] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Decoded frames of one stream with the number of their packet, without those of damaged packets.

        After damage, video frames are dropped up to the next key frame, because a decoder fills them in
        with remains of earlier frames.

        Args:
            stream: the stream.
            numbered: its packets with their numbers. None: all that follow, counted from 0.

        Raises:
            MediaError: see `packets`.
        """
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.flags |= Flags.copy_opaque  # a frame carries the number of its packet
        num_damaged, smeared = 0, False
        for packet in self._packets_and_end(stream, numbered):
            try:
                frames = stream.codec_context.decode(packet)
            except FFmpegError:
                num_damaged += 1
                smeared = stream.type == "video"
                continue
            for frame in frames:
                smeared = smeared and not frame.key_frame
                if not smeared:
                    yield frame.opaque[0], frame
        if num_damaged:
            log.warning("%r: %d damaged %s packets were skipped", self.uri, num_damaged, stream.type)

    def _packets_and_end(self, stream: Any, numbered: Iterable[tuple[int, Any]] | None) -> Iterator[Any]:
        for number, packet in enumerate(self.packets(stream)) if numbered is None else numbered:
            packet.opaque = [number]  # PyAV compares such objects by identity, and small numbers share one
            yield packet
        yield None  # makes the decoder return the frames that it still holds


@contextmanager
def opened(
    path: Path, uri: str, demuxers: str = DEMUXERS, audio_track: int | None = None
) -> Iterator[MediaFile]:
    """Open a media file and choose its streams. No other file and no network is touched.

    Args:
        path: local path of the file.
        uri: its name in messages.
        demuxers: names of FFmpeg's demuxers that may read it, separated by commas.
        audio_track: which of `MediaFile.audio_tracks` is used. None: the default one, else the first.

    Raises:
        MediaError: none of `demuxers` reads the file.
    """
    try:
        container = av.open(
            str(path.absolute()),  # relative, a name with a colon would be taken for a protocol
            container_options={"protocol_whitelist": "file", "format_whitelist": demuxers},
            options={"max_pixels": str(MAX_PIXELS)},
            metadata_errors="replace",
        )
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{uri!r}: expected a video file, found {reason(error)}") from error
    with container:
        tracks = _audio_tracks(container)
        video, audio = _best_video(container), _audio(tracks, audio_track)
        # Second 0 does not depend on which track is used.
        first = (video, _audio(tracks, None))
        starts = [s.start_time * s.time_base for s in first if s and s.start_time is not None]
        yield MediaFile(uri, container, video, audio, len(tracks), min(starts, default=Fraction(0)))


def reason(error: Exception) -> str:
    """The error of the system or of FFmpeg in a few words."""
    for kind, words in _REASONS.items():
        if isinstance(error, kind):
            return words
    return one_line(error).lower()


def _best_video(container: Any) -> Any | None:
    """The default stream, else the largest, else the first. A cover image does not count as video."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    return max(streams, key=lambda s: (_is_default(s), _area_px(s)), default=None)


def _audio_tracks(container: Any) -> list[Any]:
    """Audio streams that can be decoded."""
    return [s for s in container.streams.audio if s.codec_context and s.codec_context.sample_rate]


def _audio(tracks: list[Any], wanted: int | None) -> Any | None:
    """The wanted stream; else the default one, else the first."""
    if wanted is not None and wanted < len(tracks):
        return tracks[wanted]
    return max(tracks, key=_is_default, default=None)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _area_px(stream: Any) -> int:
    return stream.codec_context.width * stream.codec_context.height if stream.codec_context else 0
