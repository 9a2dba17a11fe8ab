"""Timelines of files: built from a file's packets, kept in the process, and stored as npz files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from talkforge.curation.media.container import MediaFile, opened, reason
from talkforge.curation.media.timeline import NO_STAMP, Packets, Repairs, Timeline, build
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.npz import npz_bytes, read_npz

ORDINAL_CONTAINERS = ("avi", "h264", "hevc", "m4v", "mpegvideo")
"""Containers that store no presentation timestamps. Their frames come in the order of display."""

VERSION = 1
"""Of a stored timeline. One of another version is built again."""

_ARRAYS = ("pts", "size", "keyframe", "time_s")
_NUMBERS = ("frame_s", "end_s", "breaks_s", "gaps_s", "audio_order", "audio_shift_s", "ordinal")

_FileKey = tuple[str, int, int, int | None]

_KNOWN: OrderedDict[_FileKey, Timeline] = OrderedDict()
"""Timelines of the files that this process read last."""

MAX_KNOWN = 16


def timeline_of(path: Path, uri: str, audio_track: int | None = None) -> Timeline:
    """The timeline of a file, built by reading its packets; kept in this process while the file is the same.

    Args:
        path: the file.
        uri: its name in messages.
        audio_track: which audio track shares the clock; None: the default one.

    Raises:
        MediaError: the file cannot be opened or read, or holds no video packets.
    """
    key = _file_key(path, uri, audio_track)
    if key not in _KNOWN:
        remember(path, uri, audio_track, _read(path, uri, audio_track))
    return _KNOWN[key]


def remember(path: Path, uri: str, audio_track: int | None, timeline: Timeline) -> None:
    """Make `timeline_of` give this timeline, which was built before and stored, instead of building it.

    Args:
        path: the file.
        uri: its name in messages.
        audio_track: which audio track shares the clock.
        timeline: what `timeline_of` gave for the same content.
    """
    _KNOWN[_file_key(path, uri, audio_track)] = timeline
    while len(_KNOWN) > MAX_KNOWN:
        _KNOWN.popitem(last=False)


def _file_key(path: Path, uri: str, audio_track: int | None) -> _FileKey:
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError(f"{uri!r}: expected a readable file, found {reason(error)}") from error
    return (str(path), status.st_size, status.st_mtime_ns, audio_track)


def _read(path: Path, uri: str, audio_track: int | None) -> Timeline:
    with opened(path, uri, audio_track=audio_track) as file:
        stream = file.video
        if stream is None:
            raise MediaError(f"{uri!r}: expected a video stream, found none")
        video, audio = read_packets(file)
        rate = stream.average_rate or stream.guessed_rate
        return build(
            video,
            audio,
            file.origin_s,
            reorder=int(stream.codec_context.reorder_depth) if stream.codec_context else 0,
            ordinal=is_ordinal(file, video),
            nominal_s=float(1 / rate) if rate else 0.04,
            indexed=bool(stream.frames),
        )


def to_bytes(timeline: Timeline) -> bytes:
    """The npz file of a timeline; the same timeline gives the same bytes."""
    fields = {name: getattr(timeline, name) for name in _ARRAYS}
    fields |= {name: np.array(getattr(timeline, name)) for name in _NUMBERS}
    fields["audio_end_s"] = np.array(np.nan if timeline.audio_end_s is None else timeline.audio_end_s)
    fields["repairs"] = np.array([getattr(timeline.repairs, name) for name in Repairs.__dataclass_fields__])
    return npz_bytes(**fields, version=np.array(VERSION))


def from_bytes(data: bytes, file: str) -> Timeline:
    """The timeline in an npz file.

    Args:
        data: content of the file.
        file: what messages call it.

    Raises:
        DatasetError: the bytes are no timeline, or one of another version.
    """
    found = read_npz(data, file, (*_ARRAYS, *_NUMBERS, "audio_end_s", "repairs", "version"))
    if found["version"].item() != VERSION:
        raise DatasetError(f"{file}: expected timeline version {VERSION}, found {found['version'].item()}")
    audio_end_s = float(found["audio_end_s"].item())
    return Timeline(
        **{name: found[name] for name in _ARRAYS},
        frame_s=found["frame_s"].item(),
        end_s=found["end_s"].item(),
        breaks_s=tuple(found["breaks_s"].tolist()),
        gaps_s=tuple((a, b) for a, b in found["gaps_s"].reshape(-1, 2).tolist()),
        audio_order=tuple(found["audio_order"].tolist()),
        audio_shift_s=tuple(found["audio_shift_s"].tolist()),
        audio_end_s=None if np.isnan(audio_end_s) else audio_end_s,
        ordinal=found["ordinal"].item(),
        repairs=Repairs(*found["repairs"].tolist()),
    )


def read_packets(file: MediaFile) -> tuple[Packets, Packets | None]:
    """Packets of the video and audio streams that are used.

    Args:
        file: a file that was just opened.

    Raises:
        MediaError: reading fails, or there are no video packets.
    """
    streams = [stream for stream in (file.video, file.audio) if stream is not None]
    rows: dict[int, list[tuple[int, int, int, int, bool]]] = {}
    for packet in file.packets(*streams):
        pts, dts = (NO_STAMP if stamp is None else stamp for stamp in (packet.pts, packet.dts))
        row = (int(pts), int(dts), packet.duration or 0, packet.size, packet.is_keyframe)
        rows.setdefault(packet.stream_index, []).append(row)
    found = [_packets(rows[s.index], s.time_base) if s.index in rows else None for s in streams]
    if found[0] is None:
        raise MediaError(f"{file.uri!r}: expected frames, found none")
    return found[0], (found[1] if len(found) > 1 else None)


def _packets(rows: Sequence[tuple[int, int, int, int, bool]], tick_s: Fraction) -> Packets:
    pts, dts, ticks, size, keyframe = (np.array(column) for column in zip(*rows, strict=True))
    return Packets(pts, dts, ticks, size, keyframe, Fraction(tick_s))


def is_ordinal(file: Any, packets: Packets) -> bool:
    """Whether timestamps say nothing of the order of display: there are none, or they are made up."""
    if file.container.format.name in ORDINAL_CONTAINERS:
        return bool(file.video.codec_context.reorder_depth) or bool((packets.dts == NO_STAMP).all())
    return bool((packets.pts == NO_STAMP).mean() > 0.5)
