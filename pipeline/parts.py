"""Parts, the unit of work: at most about ten minutes of footage, measured and committed together.

Many short videos share a part. A long video is divided into windows, one for each part. The plan is a
pure function of the videos and the length of a part. It is stored, so that a run that was killed goes
on with the same parts. A part exists once its `part.json` exists.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from talkforge.pipeline import tables
from talkforge.pipeline.store import Store
from talkforge.pipeline.tables import Rows
from talkforge.schemas.config import Thresholds
from talkforge.schemas.records import Record, Video

MIN_FILL_S, MANY_PARTS = 20.0, 64
"""A part is filled with less than its most footage where that would make fewer parts than this, but
not with less than so many seconds."""


MARKER = "part.json"
"""File that a part is there by."""

ATTEMPTS = "attempts"
"""Folder of the notes on windows that were put off, see `attempts.py`; each is named after its part."""

AUDIO_SLACK_S = 0.5
"""Audio may begin so much later or end so much earlier than the video without being cut out."""


class Window(Record):
    """A span of one video, in source seconds."""

    video: Video
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def holds(self, other: Window) -> bool:
        """Whether the other window is a part of this one, but for rounding."""
        same = self.video.video_id == other.video.video_id
        return same and self.start_s - 1e-6 <= other.start_s and other.end_s <= self.end_s + 1e-6

    @property
    def key(self) -> str:
        """Names the window in failures: video id and span."""
        return f"{self.video.video_id} [{self.start_s:.1f}, {self.end_s:.1f}) s"


def span_of_key(key: str) -> tuple[float, float] | None:
    """The span that a `Window.key` names, source seconds; None where it names none."""
    found = re.search(r"\[([-\d.]+), ([-\d.]+)\) s$", key)
    return (float(found[1]), float(found[2])) if found else None


class Part(Record):
    """Windows that are measured and committed together."""

    name: str
    windows: tuple[Window, ...]
    stamps: dict[str, str] = Field(default_factory=dict, exclude=True)
    """State of the videos' files when they were hashed, by video id, see `ingest.stamp_of`. A run adds it and
    what follows. The plan does not hold them."""
    thresholds: Thresholds | None = Field(default=None, exclude=True)
    """Clips that these reject before the dense pass are not traced; None: all are."""
    of: str = Field(default="", exclude=True)
    """Name of the committed part of which this is a supplement: it holds the traces of some of its clips, see
    `pipeline.untraced`. Empty for any other part."""
    clips: tuple[str, ...] = Field(default=(), exclude=True)
    """Ids of these clips."""

    @property
    def duration_s(self) -> float:
        return sum(window.duration_s for window in self.windows)

    def halves(self) -> tuple[Part, Part]:
        """The part as two, to find the window that kills its worker.

        A half is named after what it holds: should a video leave the plan later, no half that was
        committed before stands for other windows.
        """
        middle = len(self.windows) // 2
        return self._piece(self.windows[:middle]), self._piece(self.windows[middle:])

    def alone(self, window: Window) -> Part:
        """The part that holds nothing but this window of it."""
        return self if len(self.windows) == 1 else self._piece((window,))

    def _piece(self, windows: tuple[Window, ...]) -> Part:
        content = hashlib.sha256("".join(window.key for window in windows).encode()).hexdigest()
        return self.model_copy(update={"name": f"{self.name}-{content[:8]}", "windows": windows})


def windows_of(whole: Video | Window, part_s: float) -> list[Window]:
    """The footage of a video, or of a span of one, in the fewest equal windows of at most `part_s`.

    A track that crosses the border of two windows is two tracks; with clips of seconds and
    windows of minutes that touches about one clip in thirty.
    """
    video = whole.video if isinstance(whole, Window) else whole
    windows = []
    for start_s, end_s in footage(whole):
        count = max(1, math.ceil((end_s - start_s) / part_s))
        edges = [start_s + (end_s - start_s) * i / count for i in range(count + 1)]
        edges[-1] = end_s
        windows += [Window(video=video, start_s=a, end_s=b) for a, b in itertools.pairwise(edges)]
    return windows


def uncovered(span: Window, planned: Iterable[Window]) -> list[Window]:
    """The footage of a span that no planned window holds; pieces below `AUDIO_SLACK_S` are left out.

    Args:
        span: what an input names of a video.
        planned: windows of the same video.
    """
    pieces = footage(span)
    for window in planned:
        cut = [((a, min(b, window.start_s)), (max(a, window.end_s), b)) for a, b in pieces]
        pieces = [(a, b) for pair in cut for a, b in pair if b - a >= AUDIO_SLACK_S]
    if len(pieces) == 1 and pieces[0] == (span.start_s, span.end_s):
        return [span]
    return [Window(video=span.video, start_s=a, end_s=b) for a, b in pieces]


def footage(whole: Video | Window) -> list[tuple[float, float]]:
    """Spans in which there is video and audio; all of the video where there is no audio at all.

    Audio that begins or ends within `AUDIO_SLACK_S` of the video does not count as missing.
    """
    video = whole.video if isinstance(whole, Window) else whole
    start_s, end_s = whole.start_s, whole.end_s
    if video.audio_start_s is not None and video.audio_start_s > start_s + AUDIO_SLACK_S:
        start_s = min(video.audio_start_s, end_s)
    if video.audio_end_s is not None and video.audio_end_s < end_s - AUDIO_SLACK_S:
        end_s = max(video.audio_end_s, start_s)
    edges = [start_s, *(min(max(at, start_s), end_s) for at in video.gaps_s), end_s]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    found = [(a, b) for a, b in spans if b > a]
    return found or [(whole.start_s, whole.end_s)]


def plan(videos: Sequence[Video | Window], part_s: float, first_number: int = 0) -> list[Part]:
    """Parts of the videos, or spans of videos, see `packed`."""
    return list(packed(videos, sum(video.duration_s for video in videos), part_s, first_number))


def packed(
    videos: Iterable[Video | Window], total_s: float, part_s: float, first_number: int = 0
) -> Iterator[Part]:
    """Parts of videos, or of spans of videos, in the order given; windows are packed until a part is full.

    A part of a small set is filled less, so that there is work for every core. What a window is does
    not depend on that, and so neither does any clip.

    Args:
        videos: what to divide.
        total_s: seconds of footage in all of it.
        part_s: most seconds of a part.
        first_number: names the first part.
    """
    fill_s = min(part_s, max(MIN_FILL_S, total_s / MANY_PARTS))
    held: list[Window] = []
    numbers = itertools.count(first_number)
    for window in _all_windows(videos, part_s):
        if held and sum(other.duration_s for other in held) + window.duration_s > fill_s * (1 + 1e-9):
            yield Part(name=f"{next(numbers):06d}", windows=tuple(held))
            held.clear()
        held.append(window)
    if held:
        yield Part(name=f"{next(numbers):06d}", windows=tuple(held))


def _all_windows(videos: Iterable[Video | Window], part_s: float) -> Iterable[Window]:
    for video in videos:
        yield from windows_of(video, part_s)


def is_committed(part: Part, store: Store) -> bool:
    """Whether the part is measured and written."""
    return store.exists(f"parts/{part.name}/part.json")


def remaining(parts: Iterable[Part], store: Store, committed: Iterable[str] | None = None) -> list[Part]:
    """What is left to do of several parts, in their order.

    A window that was put off is a part of its own, under the name of its note. The others stay together, or
    are those halves of their part of which nothing is committed.

    Raises:
        DatasetError: a committed part does not say which windows it holds.
    """
    noted = _by_root(noted_names(store))
    there = _by_root(committed_parts(store) if committed is None else committed)
    left = []
    for part in parts:
        root = _root(part.name)
        names = [name for name in there.get(root, ()) if _is_of(name, part)]
        notes = [name for name in noted.get(root, ()) if _is_of(name, part)]
        if names != [part.name] or notes:
            done = {window.key for name in names for window in _windows_in(name, store)} if names else set()
            left += _left(part, done, notes)
    return left


@dataclass(frozen=True)
class Left:
    """What is left to do of a plan; goes through the parts in the order of their names.

    Attributes:
        pieces: what is left of parts of which something is there or was put off.
        whole: parts of which nothing is there. Each is an object only while it is worked on.
        duration_s: footage in all of them, s.
    """

    pieces: Sequence[Part]
    whole: Rows[Part]
    duration_s: float

    def __len__(self) -> int:
        return len(self.pieces) + len(self.whole)

    def __iter__(self) -> Iterator[Part]:
        return heapq.merge(self.pieces, self.whole, key=lambda part: part.name)


def left_of(plan: Iterable[Part], store: Store, committed: Collection[str] | None = None) -> Left:
    """What is left to do of a plan, as `remaining`, of which only few parts are objects.

    Args:
        plan: all parts.
        store: the data set.
        committed: names of the parts that are there; None: looks.
    """
    rows = Rows.of(Part, plan)
    done = committed_parts(store) if committed is None else committed
    names = rows.column("name").to_pylist()
    there, begun = settled(names, store, done), {_root(name) for name in (*done, *noted_names(store))}
    is_begun = np.array([_root(name) in begun for name in names], bool)
    is_open = np.array([name not in there for name in names], bool)
    pieces, whole = remaining(rows.where(is_begun & is_open), store, done), rows.where(~is_begun)
    return Left(pieces, whole, sum(part.duration_s for part in pieces) + footage_of(whole))


def footage_of(plan: Rows[Part]) -> float:
    """Seconds of footage in all windows of these parts."""
    windows = pc.list_flatten(plan.column("windows"))
    lengths_s = pc.subtract(pc.struct_field(windows, "end_s"), pc.struct_field(windows, "start_s"))
    return float(pc.sum(lengths_s).as_py() or 0.0)


def hold(plan: Rows[Part], video_ids: pa.Array) -> NDArray[np.bool_]:
    """Which parts hold a window of one of these videos, bool [len(plan)]."""
    windows = plan.column("windows")
    videos = pc.struct_field(pc.struct_field(pc.list_flatten(windows), "video"), "video_id")
    holders = pc.list_parent_indices(windows).filter(pc.is_in(videos, value_set=video_ids))
    return np.bincount(holders.to_numpy(), minlength=len(plan)) > 0


def noted_names(store: Store) -> list[str]:
    """Names of the pieces that were put off."""
    return [PurePosixPath(name).stem for name in store.list(ATTEMPTS)]


def settled(planned: Iterable[str], store: Store, committed: Collection[str]) -> set[str]:
    """Names of planned parts of which `remaining` leaves nothing, as far as names alone tell it.

    Args:
        planned: names of the parts.
        store: the data set.
        committed: names of the parts that are there.
    """
    pieces = Counter(_root(name) for name in (*committed, *noted_names(store)))
    there = set(committed)
    return {name for name in planned if name in there and pieces[_root(name)] == 1}


def _left(part: Part, done: Collection[str], notes: Sequence[str]) -> list[Part]:
    """What is left of a part.

    Args:
        part: the part as it was planned.
        done: keys of the windows that are committed, as whatever piece of it.
        notes: names of the pieces that were put off, each of them a single window.
    """
    names = {}
    for name in sorted(notes, key=len, reverse=True):
        for window in part.windows:
            if part.alone(window).name.removeprefix(part.name) in ("", f"-{name.rpartition('-')[2]}"):
                names[window.key] = name
    apart = [
        part.model_copy(update={"name": names[window.key], "windows": (window,)})
        for window in part.windows
        if window.key in names and window.key not in done
    ]
    rest = part.model_copy(update={"windows": tuple(w for w in part.windows if w.key not in names)})
    return _not_done(rest, done) + apart


def _not_done(part: Part, done: Collection[str]) -> list[Part]:
    """The part where none of its windows is committed, else what is left of its halves."""
    left = [window for window in part.windows if window.key not in done]
    if len(left) == len(part.windows):
        return [part] if left else []
    return [piece for half in part.halves() for piece in _not_done(half, done)] if left else []


def _by_root(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of parts and of pieces of parts, by the planned part that they are of."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_root(name), []).append(name)
    return found


def _root(name: str) -> str:
    return name.partition("-")[0]


def _is_of(name: str, part: Part) -> bool:
    return name == part.name or name.startswith(f"{part.name}-")


def _windows_in(name: str, store: Store) -> Sequence[Window]:
    return tables.read(store, f"parts/{name}/windows.parquet", Window)


def committed_parts(store: Store) -> list[str]:
    """Names of the parts that are there, sorted."""
    return list(store.stamps("parts", MARKER))
