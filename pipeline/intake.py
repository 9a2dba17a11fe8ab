"""The inputs of a data set as columns: which of them are measured, looked up by content and time.

A data set may have millions of inputs, so each is an object only while somebody looks at it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import model_validator

from talkforge.pipeline.parts import AUDIO_SLACK_S, Window, footage
from talkforge.pipeline.tables import R, Rows, batches
from talkforge.schemas.arrays import Doubles
from talkforge.schemas.records import Failure, Input, Record, Video

AT_ONCE = 4096
"""Inputs that are compared with what is known of them at a time."""


class IngestRow(Record):
    """One input after it was hashed and probed: a row of `intake.parquet`."""

    input: Input
    stamp: str
    """Size and time of change of the file; where it differs, the file is hashed again."""
    status: Literal["planned", "duplicate", "failed", "erased"]
    video: Video | None = None
    failure: Failure | None = None
    first_uri: str = ""
    """Input of the same content that is measured in a duplicate's place; empty for other rows."""
    training_mining: str | None = None
    """What the file's content credentials say, see `curation.credentials`; None where they were not read,
    because the package c2pa was not there."""

    @property
    def span(self) -> Window | None:
        """The span of the video that the input names; None where there is no video."""
        if self.video is None:
            return None
        start_s, end_s = self.input.span_s
        return Window(
            video=self.video, start_s=max(start_s, self.video.start_s), end_s=min(end_s, self.video.end_s)
        )

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, row: Any) -> Any:
        """Accept rows of data sets made before `input` was called so: there it is `source`."""
        if isinstance(row, dict) and "source" in row:
            row = {"input" if key == "source" else key: value for key, value in row.items()}
        return row


class Intake:
    """Every input, and those that are measured.

    Attributes:
        all: every input.
        planned: those that are measured.
        numbers: of these in `all`, int64 [len(planned)].
    """

    def __init__(self, ingested: Iterable[IngestRow]) -> None:
        self.all: Rows[IngestRow] = Rows.of(IngestRow, ingested)
        has_video = self.all.table.column("video").is_valid().to_numpy()
        self.numbers = np.flatnonzero(has_video & is_one_of(self.all.column("status"), "planned"))
        everything = len(self.numbers) == len(self.all)
        self.planned: Rows[IngestRow] = self.all if everything else self.all.take(self.numbers)

    def counts(self, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each of the measured inputs is one of `inputs`, numbers in `planned`."""
        return np.asarray(np.bincount(inputs, minlength=len(self.planned)), np.int64)

    def of_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values [len(planned)] of the measured inputs as values [len(all)] of all, 0 for the others."""
        found = np.zeros(len(self.all), values.dtype)
        found[self.numbers] = values
        return found

    def of_videos(self, video_ids: Iterable[str]) -> dict[str, IngestRow]:
        """The input of each of some videos that are measured, by the video's id; the last one of several."""
        order, first, count = self._find(sorted({*video_ids}))
        rows = self.planned.take(order[(first + count - 1)[count > 0]])
        return {row.video.video_id: row for row in rows if row.video}

    def at(self, video_id: str, span_s: tuple[float, float] | None) -> IngestRow | None:
        """The input in whose span the middle of a span of a video lies; None: of no input (any more).

        Args:
            video_id: key of the video.
            span_s: source seconds; None where it is not known, which gives the first input of the video.
        """
        order, first, count = self._find([video_id])
        starts_s, ends_s = self._named_s
        numbers: list[int] = order[first[0] : first[0] + count[0]].tolist()
        for number in numbers:
            if span_s is None or starts_s[number] <= sum(span_s) / 2 < ends_s[number]:
                return self.planned[number]
        return None

    def inputs_of(self, video_ids: pa.ChunkedArray, at_s: Doubles) -> NDArray[np.int64]:
        """Number in `planned` of the input in whose span each of many instants lies; -1 where there is none.

        Args:
            video_ids: the videos, [n].
            at_s: the instants, source seconds, [n]; NaN where one is not known, which gives the first input
                of the video.
        """
        videos = video_ids.combine_chunks().dictionary_encode()
        order, first, count = self._find(videos.dictionary.to_pylist())
        starts_s, ends_s = self._named_s
        numbers = np.append(order, -1)[np.where(count > 0, first, -1)]
        is_whole = np.append(np.isneginf(starts_s) & np.isposinf(ends_s), True)[numbers] & (count < 2)
        which = videos.indices.to_numpy()
        found = np.asarray(numbers[which], np.int64)
        for row in np.flatnonzero(~is_whole[which] & ~np.isnan(at_s)).tolist():
            begin, length = first[which[row]], count[which[row]]
            own = order[begin : begin + length]
            own = own[(starts_s[own] <= at_s[row]) & (at_s[row] < ends_s[own])]
            found[row] = own[0] if len(own) else -1
        return found

    def _find(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the measured inputs by video; where the inputs of each video begin, and their number."""
        known, order = self._by_video
        wanted = np.array([key.encode() for key in ids], np.bytes_)
        first = np.searchsorted(known, wanted)
        return order, first, np.searchsorted(known, wanted, side="right") - first

    @cached_property
    def _named_s(self) -> tuple[Doubles, Doubles]:
        return named_s(self.planned)

    @cached_property
    def _by_video(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Ids of the videos of the measured inputs, sorted, and the numbers of these inputs."""
        ids = self.planned.column("video.video_id").cast(pa.binary()).to_numpy().astype(np.bytes_)
        order = np.argsort(ids, kind="stable")
        return ids[order], order


def is_one_of(column: pa.ChunkedArray, *values: str) -> NDArray[np.bool_]:
    """Which of a column's texts are one of these; a null is none."""
    found = pc.is_in(column, value_set=pa.array(values, pa.string()))
    return np.asarray(found.to_numpy(), bool)


def named_s(rows: Rows[IngestRow]) -> tuple[Doubles, Doubles]:
    """Starts and ends of the spans that inputs name, source seconds; infinite where they name none."""
    starts_s, ends_s = (rows.column(f"input.{name}") for name in ("start_s", "end_s"))
    return starts_s.fill_null(-math.inf).to_numpy(), ends_s.fill_null(math.inf).to_numpy()


def spans_s(rows: Rows[IngestRow]) -> tuple[Doubles, Doubles]:
    """Starts and ends of what `IngestRow.span` gives, source seconds; NaN where there is no video."""
    starts_s, ends_s = named_s(rows)
    first_s, last_s = (rows.column(f"video.{name}").to_numpy() for name in ("start_s", "end_s"))
    return np.maximum(starts_s, first_s), np.minimum(ends_s, last_s)


def footage_s(rows: Rows[IngestRow]) -> Doubles:
    """Seconds of footage in the span of each input, see `parts.footage`; NaN where there is no video."""
    whole_s = starts_s, ends_s = spans_s(rows)
    first_s, last_s = (rows.column(f"video.audio_{name}").to_numpy() for name in ("start_s", "end_s"))
    with np.errstate(invalid="ignore"):
        starts_s = np.where(first_s > starts_s + AUDIO_SLACK_S, np.minimum(first_s, ends_s), starts_s)
        ends_s = np.where(last_s < ends_s - AUDIO_SLACK_S, np.maximum(last_s, starts_s), ends_s)
        found_s = np.where(ends_s > starts_s, ends_s - starts_s, whole_s[1] - whole_s[0])
    gaps = pc.list_value_length(rows.column("video.gaps_s")).fill_null(0).to_numpy()
    for number in np.flatnonzero(gaps).tolist():
        if span := rows[number].span:
            found_s[number] = sum(end_s - start_s for start_s, end_s in footage(span))
    return found_s


def _key_columns(rows: Rows[R]) -> dict[str, pa.ChunkedArray]:
    """What `Input.key` is made of, of rows that have an input or are one."""
    at = "input." if rows.model is IngestRow else ""
    uris, starts_s, ends_s = (rows.column(f"{at}{name}") for name in ("uri", "start_s", "end_s"))
    return {"uri": uris, "start_s": starts_s.fill_null(-math.inf), "end_s": ends_s.fill_null(math.inf)}


def keys_of(rows: Rows[R]) -> pa.ChunkedArray:
    """`Input.key` of each row as one text."""
    uris, *span_s = _key_columns(rows).values()
    return pc.binary_join_element_wise(uris, *(column.cast(pa.string()) for column in span_s), "\n")


def in_order(rows: Rows[R]) -> Rows[R]:
    """The rows in the order of `Input.key`; of equal ones the first comes first."""
    keys = _key_columns(rows)
    uris = keys["uri"]
    if len(rows) < 2 or pc.all(pc.less(uris[:-1], uris[1:])).as_py():
        return rows
    order = [(name, "ascending") for name in [*keys, "number"]]
    return rows.take(pc.sort_indices(pa.table({**keys, "number": np.arange(len(rows))}), sort_keys=order))


def rows_of(inputs: Sequence[Input], known: Rows[IngestRow]) -> dict[Input, IngestRow]:
    """What is known of some inputs, as far as they were given just so before.

    Args:
        inputs: some.
        known: rows of all, in the order of their keys.
    """
    names = {given.uri for given in inputs}
    if not names or not len(known):
        return {}
    uris = known.column("input.uri")

    def at(number: int) -> str:
        return str(uris[number].as_py())

    numbers = range(len(known))
    some = known[bisect_left(numbers, min(names), key=at) : bisect_right(numbers, max(names), key=at)]
    return {row.input: row for row in some.where(is_one_of(some.column("input.uri"), *names))}


def with_rows(inputs: Rows[Input], known: Rows[IngestRow]) -> Iterator[tuple[Input, IngestRow | None]]:
    """Each input with what is known of it, see `rows_of`."""
    for some in batches(inputs, AT_ONCE):
        found = rows_of(some, known)
        yield from ((given, found.get(given)) for given in some)


def each_once(inputs: Rows[Input]) -> Rows[Input]:
    """The inputs in the order of `Input.key`, each once; of equal ones the first."""
    ordered = in_order(inputs)
    keys = keys_of(ordered)
    return ordered.where(np.append(True, pc.not_equal(keys[1:], keys[:-1]).to_numpy())[: len(ordered)])


def with_duplicates(rows: Rows[IngestRow], known: Rows[IngestRow]) -> Rows[IngestRow]:
    """`rows` as `mark_duplicates` marks them, and `known`.

    Only inputs that share their content with others become objects.

    Args:
        rows: inputs of this run, and those that were duplicates.
        known: all others.
    """
    has_video = rows.table.column("video").is_valid().to_numpy()
    is_planned = is_one_of(known.column("status"), "planned")
    contents = pa.chunked_array(
        [chunk for some in (rows, known) for chunk in some.column("video.sha256").chunks], pa.string()
    )
    encoded = contents.combine_chunks().dictionary_encode()
    which = encoded.indices.fill_null(-1).to_numpy()
    which = np.where(np.append(has_video, is_planned), which, -1)
    is_shared = np.append(np.bincount(which[which >= 0], minlength=len(encoded.dictionary)) > 1, False)[which]
    open_rows = has_video & (is_shared[: len(rows)] | is_one_of(rows.column("status"), "duplicate"))
    numbers = np.flatnonzero(open_rows)
    of_key = {row.input.key: number for number, row in zip(numbers.tolist(), rows.take(numbers), strict=True)}
    marked = mark_duplicates(rows.take(numbers), known.where(is_shared[len(rows) :]))
    return rows.replaced([of_key[row.input.key] for row in marked], marked) + known


def mark_duplicates(rows: Iterable[IngestRow], known: Iterable[IngestRow] = ()) -> list[IngestRow]:
    """Of several inputs with the same bytes the first by name is measured, the rest point to it.

    Spans of one file are inputs of their own while they do not overlap.

    Args:
        rows: inputs of this run.
        known: rows of an earlier run, which come before all new ones.
    """
    planned: dict[str, list[Input]] = {}
    for row in known:
        if row.video and row.status == "planned":
            planned.setdefault(row.video.sha256, []).append(row.input)
    marked = []
    for row in sorted(rows, key=lambda row: row.input.key):
        if row.video is not None:
            same = planned.setdefault(row.video.sha256, [])
            first = next((given for given in same if _overlap(given, row.input)), None)
            if first is None:
                same.append(row.input)
            status, uri = ("duplicate", first.uri) if first else ("planned", "")
            row = row.model_copy(update={"status": status, "first_uri": uri})
        marked.append(row)
    return marked


def _overlap(a: Input, b: Input) -> bool:
    return a.span_s[0] < b.span_s[1] and b.span_s[0] < a.span_s[1]
