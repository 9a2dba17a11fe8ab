"""The timeline of a video: which packet's frame is shown when, on one clock that never jumps.

`build` reads every packet once and decodes nothing. Containers are full of timestamps that are wrong,
so the timeline repairs them and counts each repair:

    outliers   lone timestamps that disagree with all around them are put where a frame is missing
    repeats    frames shown already, as where segments of a stream overlap, are left out
    joins      a clock that starts again, or jumps while no stream has data, goes on without a jump
    gaps       spans without video while the audio goes on keep their place, and are no footage

Times are source seconds: 0 is the earliest start of the file's video and audio streams. Whoever decodes
asks the timeline for the time of each packet's frame, so a frame has one time wherever reading begins.

Legend: N video packets in the order of the file.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

JUMP_S = 1.0
"""A step of a clock by more than this is a jump, not jitter or a slow frame rate. Source: ours; segments
that overlap step back by less, and no talking head is filmed at less than one frame per second."""

OUTLIER_S = 0.2
"""A timestamp is an outlier only where it is off by more than this. Less does not harm lip sync for
longer than a frame or two, and variable rates may do it."""

WINDOW = 16
"""Packets on each side with which a timestamp is compared. Source: the longest reordering that H.264 and
HEVC allow."""

LOCATE_PACKETS = 64
"""Packets after a seek that are looked at to find out where one is."""

NO_STAMP = np.iinfo(np.int64).min
"""Stands for a missing timestamp."""

Ints = NDArray[np.int64]
Times = NDArray[np.float64]


class Packets(NamedTuple):
    """Packets of one stream, in the order of the file.

    Attributes:
        pts: [N] presentation timestamps in ticks, `NO_STAMP` where there is none.
        dts: [N] decoding timestamps in ticks, likewise.
        ticks: [N] durations in ticks, 0 where unknown.
        size: [N] bytes.
        keyframe: [N] bool.
        tick_s: seconds of a tick.
    """

    pts: Ints
    dts: Ints
    ticks: Ints
    size: Ints
    keyframe: NDArray[np.bool_]
    tick_s: Fraction


@dataclass(frozen=True)
class Repairs:
    """What was mended.

    Attributes:
        outliers: frames whose timestamp was replaced.
        repeats: frames left out because they were shown already.
        joins: places where the clock was set on.
        gaps: spans of more than `JUMP_S` without video.
    """

    outliers: int = 0
    repeats: int = 0
    joins: int = 0
    gaps: int = 0


@dataclass(frozen=True)
class Timeline:
    """When the frame of each video packet is shown.

    Attributes:
        pts: [N] timestamps as the file has them, in ticks, `NO_STAMP` where there is none.
        size: [N] bytes of each packet; with `pts` they tell after a seek which packet one reads.
        keyframe: [N] bool.
        time_s: [N] when the packet's frame is shown, source seconds; NaN where it is not shown.
        frame_s: median time between frames.
        end_s: end of the last frame.
        breaks_s: instants at which a scene ends whatever is seen: joins, and both ends of gaps.
        gaps_s: spans (start_s, end_s) without video.
        audio_order: places of the audio packets from which `audio_shift_s` holds; the first is 0.
        audio_shift_s: what to add to the audio's own seconds.
        audio_end_s: end of the last audio packet; None without audio.
        ordinal: the container has no presentation timestamps: the k-th frame that is decoded has the
            k-th smallest time, and reading begins at the start of the file.
        repairs: what was mended.
    """

    pts: Ints
    size: Ints
    keyframe: NDArray[np.bool_]
    time_s: Times
    frame_s: float
    end_s: float
    breaks_s: tuple[float, ...]
    gaps_s: tuple[tuple[float, float], ...]
    audio_order: tuple[int, ...]
    audio_shift_s: tuple[float, ...]
    audio_end_s: float | None
    ordinal: bool
    repairs: Repairs

    @property
    def start_s(self) -> float:
        """Time of the first frame that is shown."""
        return float(np.nanmin(self.time_s))

    def key_before(self, time_s: float) -> int:
        """Number of the last keyframe from which the frame shown at `time_s` can be decoded."""
        shown = np.flatnonzero(self.time_s <= time_s)
        if not len(shown):
            return 0
        wanted = int(shown[np.argmax(self.time_s[shown])])
        keys = np.flatnonzero(self.keyframe[: wanted + 1] & (self.time_s[: wanted + 1] <= time_s))
        return int(keys[-1]) if len(keys) else 0

    def located(self, packets: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """(number, packet) of packets that are read somewhere in the file, from the first that is known.

        A packet is known by its timestamp and size. Where several are alike, those that follow decide.
        Gives nothing where the first `LOCATE_PACKETS` packets do not tell.

        Args:
            packets: consecutive packets of the video stream.
        """
        waiting: list[Any] = []
        possible: set[int] = set()
        for tried, packet in enumerate(packets):
            here = set(self._places.get(_identity(packet), ()))
            if waiting and possible & {place - len(waiting) for place in here}:
                possible &= {place - len(waiting) for place in here}
                waiting.append(packet)
            else:  # after a seek the first packets may be cut off: nothing before this one counts
                possible, waiting = here, [packet] if here else []
            if len(possible) == 1:
                (first,) = possible
                yield from enumerate(waiting, first)
                yield from self._following(packets, first + len(waiting))
                return
            if tried == LOCATE_PACKETS:
                return

    def _following(self, packets: Iterator[Any], expected: int) -> Iterator[tuple[int, Any]]:
        """Packets with their numbers; a packet that was not there when the timeline was built is left out."""
        for packet in packets:
            places = self._places.get(_identity(packet), ())
            at = bisect_left(places, expected)
            if at < len(places):
                yield places[at], packet
                expected = places[at] + 1

    @functools.cached_property
    def _places(self) -> dict[tuple[int, int], list[int]]:
        """Numbers of the packets of each timestamp and size, in order."""
        places: dict[tuple[int, int], list[int]] = {}
        for number, identity in enumerate(zip(self.pts.tolist(), self.size.tolist(), strict=True)):
            places.setdefault(identity, []).append(number)
        return places

    def until_s(self, time_s: float, duration_s: float) -> float:
        """When the frame shown at `time_s` gives way to the next one, whether or not that can be decoded.

        Args:
            time_s: when it is shown.
            duration_s: how long it is shown where it is the last, s.
        """
        later = self.time_s[self.time_s > time_s]
        if not len(later):
            return time_s + duration_s
        next_s = float(later.min())
        return next_s if next_s - time_s <= JUMP_S else time_s + self.frame_s

    def audio_seconds(self, number: int, own_s: float) -> float:
        """Source seconds of audio packet `number`, which the file's own clock puts at `own_s`."""
        return own_s + self.audio_shift_s[bisect_right(self.audio_order, number) - 1]


def build(
    video: Packets,
    audio: Packets | None,
    origin_s: Fraction,
    reorder: int = 0,
    ordinal: bool = False,
    nominal_s: float = 0.04,
    indexed: bool = True,
) -> Timeline:
    """The timeline of a file from its packets.

    Args:
        video: packets of the video stream; at least one.
        audio: packets of the audio stream, or None.
        origin_s: where source second 0 lies on the file's clock.
        reorder: frames that the decoder holds back to bring them into the order of display.
        ordinal: see `Timeline`.
        nominal_s: time between frames by the header, for streams without timestamps and for the last frame.
        indexed: whether durations come from an index; elsewhere they are the demuxer's guess.
    """
    own_s = _seconds(video.dts if ordinal else video.pts, video, origin_s)
    if ordinal:
        own_s.sort()
    frame_s = _frame_s(own_s, video, nominal_s)
    outlier = np.isnan(own_s) if ordinal else _outliers(own_s, frame_s, reorder)
    kept = np.where(outlier, np.nan, own_s)
    packets = _AudioPackets.of(audio, origin_s)
    time_s, audio_s, joins_s = _continued(kept, packets, frame_s)
    audio_shift = _shifts(audio_s - packets.start_s)
    num_outliers = int(outlier.sum())
    if not ordinal:
        time_s, num_repeats = _without_repeats(time_s, video.keyframe, frame_s, float(video.tick_s))
        time_s = _with_outliers(time_s, outlier, frame_s, reorder)
    else:
        num_repeats = 0
    shown = np.sort(time_s[~np.isnan(time_s)])
    if not len(shown):  # not one usable timestamp
        time_s = np.arange(len(time_s), dtype=np.float64) * frame_s
        shown = time_s
    long = np.flatnonzero(np.diff(shown) > JUMP_S)
    gaps = tuple((float(shown[k]) + frame_s, float(shown[k + 1])) for k in long)
    breaks = sorted({*joins_s, *(instant for gap in gaps for instant in gap)})
    return Timeline(
        pts=video.pts,
        size=video.size,
        keyframe=video.keyframe,
        time_s=time_s,
        frame_s=frame_s,
        end_s=float(shown[-1]) + _last_s(video, time_s, nominal_s, indexed),
        breaks_s=tuple(breaks),
        gaps_s=gaps,
        audio_order=tuple(number for number, _ in audio_shift),
        audio_shift_s=tuple(shift for _, shift in audio_shift),
        audio_end_s=float((audio_s + packets.length_s).max()) if len(audio_s) else None,
        ordinal=ordinal,
        repairs=Repairs(num_outliers, num_repeats, len(joins_s), len(gaps)),
    )


def _identity(packet: Any) -> tuple[int, int]:
    return int(NO_STAMP) if packet.pts is None else int(packet.pts), int(packet.size)


def _seconds(stamps: Ints, packets: Packets, origin_s: Fraction) -> Times:
    """Ticks as source seconds; NaN where there is no timestamp."""
    seconds = stamps.astype(np.float64) * float(packets.tick_s) - float(origin_s)
    return np.where(stamps == NO_STAMP, np.nan, seconds)


def _frame_s(own_s: Times, video: Packets, nominal_s: float) -> float:
    """Median time between frames, by the order of display."""
    steps = np.diff(np.sort(own_s[~np.isnan(own_s)]))
    steps = steps[steps > float(video.tick_s) / 2]
    return float(np.median(steps)) if len(steps) else nominal_s


def _last_s(video: Packets, time_s: Times, nominal_s: float, indexed: bool) -> float:
    """How long the last frame is shown: its own duration where that is plausible."""
    own_s = float(video.ticks[np.nanargmax(time_s)]) * float(video.tick_s)
    return own_s if indexed and 0 < own_s <= JUMP_S else nominal_s


def _outliers(own_s: Times, frame_s: float, reorder: int) -> NDArray[np.bool_]:
    """[N]: True where a timestamp is missing, or disagrees with those before and behind it alike.

    A timestamp is too high where it exceeds all before it by more than the tolerance, and more packets
    behind it have lower ones than reordering explains. A clock that is set back is no outlier: the packet
    before the step is but one frame ahead of its predecessors. Too low is the same read backwards.
    A frame that has room of its own among the others is in the right place, whatever the order.
    """
    flagged = np.isnan(own_s)
    tolerance_s = max(OUTLIER_S, (reorder + 2) * frame_s)
    steps = np.diff(own_s)
    for k in np.flatnonzero(-steps > tolerance_s).tolist():  # too high: the next one steps back
        left = own_s[max(0, k - WINDOW) : k][~flagged[max(0, k - WINDOW) : k]]
        right = own_s[k + 1 : k + 1 + WINDOW]
        if not len(left) or own_s[k] <= left.max() + tolerance_s:
            continue
        behind = int((right < own_s[k]).sum())
        flagged[k] = behind > min(reorder + 2, len(right) - 1) and not _has_room(own_s, k, frame_s)
    for k in (np.flatnonzero(-steps > tolerance_s)[::-1] + 1).tolist():  # too low: it steps back itself
        right = own_s[k + 1 : k + 1 + WINDOW][~flagged[k + 1 : k + 1 + WINDOW]]
        left = own_s[max(0, k - WINDOW) : k][~flagged[max(0, k - WINDOW) : k]]
        if not len(right) or not len(left) or flagged[k] or own_s[k] >= right.min() - tolerance_s:
            continue
        before = int((left > own_s[k]).sum())
        flagged[k] = before > min(reorder + 2, len(left) - 1) and not _has_room(own_s, k, frame_s)
    return flagged


def _has_room(own_s: Times, k: int, frame_s: float) -> bool:
    """Whether packet k stands one frame from its neighbours in time (or is the last), and on top of none."""
    near = np.delete(own_s[max(0, k - 4 * WINDOW) : k + 4 * WINDOW], min(k, 4 * WINDOW))
    off = (near - own_s[k]) / frame_s
    before, after = ((off > -1.6) & (off < -0.6)).any(), ((off > 0.6) & (off < 1.6)).any()
    return bool(before and (after or np.nanmax(off) < 0) and not (np.abs(off) < 0.6).any())


@dataclass
class _AudioPackets:
    """Audio packets as spans [start_s, start_s + length_s) on the file's clock."""

    start_s: Times
    length_s: Times

    @classmethod
    def of(cls, audio: Packets | None, origin_s: Fraction) -> _AudioPackets:
        if audio is None or (audio.pts == NO_STAMP).all():
            none = np.zeros(0)
            return cls(none, none)
        start_s = _seconds(audio.pts, audio, origin_s)
        known = ~np.isnan(start_s)
        start_s = np.interp(np.arange(len(start_s)), np.flatnonzero(known), start_s[known])
        length_s = audio.ticks * float(audio.tick_s)
        steps = np.diff(start_s, append=np.nan)
        guess_s = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        return cls(start_s, np.where(length_s > 0, length_s, guess_s))


def _continued(own_s: Times, packets: _AudioPackets, frame_s: float) -> tuple[Times, Times, list[float]]:
    """Times of video and audio packets on a clock that never jumps, and the instants of the joins.

    A clock that steps back by more than `JUMP_S` begins a new section, whose first packet of either stream
    follows the last of the section before. Sections of audio and video are paired by the size of their
    step. Then spans of more than `JUMP_S` in which neither stream has a packet are cut out.
    """
    starts_v = _set_back(own_s, max(JUMP_S, WINDOW * frame_s))
    starts_a = _set_back(packets.start_s, JUMP_S)
    time_s, audio_s = own_s.copy(), packets.start_s.copy()
    joins: list[float] = []
    for v, a in _paired(own_s, starts_v, packets.start_s, starts_a):
        ends = [float(np.nanmax(time_s[:v], initial=-np.inf)) + frame_s] if v is not None else []
        ends += [float((audio_s[:a] + packets.length_s[:a]).max())] if a is not None else []
        firsts = [float(np.nanmin(own_s[v : v + WINDOW]))] if v is not None else []
        firsts += [float(packets.start_s[a])] if a is not None else []
        shift_s = max(ends) - min(firsts)
        if v is not None:
            time_s[v:] = own_s[v:] + shift_s
            joins.append(max(ends))
        if a is not None:
            audio_s[a:] = packets.start_s[a:] + shift_s
    for hole_s, length_s in _holes(time_s, frame_s, audio_s, packets.length_s)[::-1]:
        time_s = np.where(time_s >= hole_s + length_s - 1e-9, time_s - length_s, time_s)
        audio_s = np.where(audio_s >= hole_s + length_s - 1e-9, audio_s - length_s, audio_s)
        joins = [at - length_s if at >= hole_s + length_s - 1e-9 else at for at in joins] + [hole_s]
    return time_s, audio_s, sorted(joins)


def _set_back(own_s: Times, jump_s: float) -> list[int]:
    """Places at which a clock begins again: more than `jump_s` below the latest of the last packets."""
    starts: list[int] = []
    for k in np.flatnonzero(np.diff(_filled(own_s)) < -jump_s / 2) + 1:
        begin = max(0, int(k) - WINDOW, *starts)
        if float(np.nanmax(own_s[begin:k], initial=-np.inf)) - own_s[k] > jump_s:
            starts.append(int(k))
    return starts


def _filled(own_s: Times) -> Times:
    """NaN replaced by the value before."""
    known = ~np.isnan(own_s)
    if not known.any():
        return np.zeros_like(own_s)
    place = np.maximum.accumulate(np.where(known, np.arange(len(own_s)), 0))
    return own_s[np.maximum(place, int(np.argmax(known)))]


def _paired(
    video_s: Times, starts_v: list[int], audio_s: Times, starts_a: list[int]
) -> list[tuple[int | None, int | None]]:
    """Sections of both streams that begin together, in order; None where a stream has none."""
    pairs: list[tuple[int | None, int | None]] = []
    waiting = list(starts_a)
    for v in starts_v:
        step_v = video_s[v] - np.nanmax(video_s[max(0, v - WINDOW) : v])
        match = next((a for a in waiting if abs(audio_s[a] - audio_s[a - 1] - step_v) <= JUMP_S), None)
        while match is not None and waiting[0] != match:
            pairs.append((None, waiting.pop(0)))
        if match is not None:
            waiting.remove(match)
        pairs.append((v, match))
    return pairs + [(None, a) for a in waiting]


def _holes(time_s: Times, frame_s: float, audio_s: Times, length_s: Times) -> list[tuple[float, float]]:
    """(start_s, length_s) of spans of more than `JUMP_S` that no packet of either stream covers."""
    shown = time_s[~np.isnan(time_s)]
    begin = np.concatenate([shown, audio_s])
    end = np.concatenate([shown + frame_s, audio_s + length_s])
    order = np.argsort(begin, kind="stable")
    covered = np.maximum.accumulate(end[order])
    free_s = begin[order][1:] - covered[:-1]
    return [(float(covered[k]), float(free_s[k])) for k in np.flatnonzero(free_s > JUMP_S)]


def _shifts(shift_s: Times) -> list[tuple[int, float]]:
    """(first packet, shift) wherever the shift changes; always begins at packet 0."""
    if not len(shift_s):
        return [(0, 0.0)]
    places = [0, *(np.flatnonzero(np.abs(np.diff(shift_s)) > 1e-9) + 1).tolist()]
    return [(int(place), round(float(shift_s[place]), 9)) for place in places]


def _without_repeats(
    time_s: Times, keyframe: NDArray[np.bool_], frame_s: float, tick_s: float
) -> tuple[Times, int]:
    """Times with NaN for frames that were shown already, and how many these are.

    A keyframe that is not later than everything before it begins a segment that overlaps the last one. Its
    frames up to there are repeats. Elsewhere frames with one time are: the first of them is shown.
    """
    time_s = time_s.copy()
    latest = np.fmax.accumulate(np.where(np.isnan(time_s), -np.inf, time_s))
    repeats = np.zeros(len(time_s), np.bool_)
    for k in np.flatnonzero(keyframe[1:] & (time_s[1:] <= latest[:-1])) + 1:
        repeats[k:] |= time_s[k:] <= latest[k - 1] + frame_s / 4
    time_s[repeats] = np.nan
    order = np.argsort(time_s, kind="stable")
    close = np.diff(time_s[order]) <= min(1.5 * tick_s, frame_s / 4)
    same = order[1:][close]
    time_s[same] = np.nan
    return time_s, int(repeats.sum()) + len(same)


def _with_outliers(time_s: Times, outlier: NDArray[np.bool_], frame_s: float, reorder: int) -> Times:
    """Times with outliers put where a frame is missing near their place; NaN where none is missing."""
    time_s = time_s.copy()
    reach = reorder + 2
    for k in np.flatnonzero(outlier).tolist():
        shown = np.sort(time_s[~np.isnan(time_s)])
        near = time_s[max(0, k - reach) : k + reach + 1]
        if not len(shown) or np.isnan(near).all():
            continue
        expected_s = float(np.nanmedian(near))
        missing = shown[:-1][np.diff(shown) > 1.4 * frame_s] + frame_s
        missing = np.append(missing, shown[-1] + frame_s)
        best = float(missing[np.argmin(np.abs(missing - expected_s))])
        if abs(best - expected_s) <= (reach + 1) * frame_s:
            time_s[k] = best
    return time_s
