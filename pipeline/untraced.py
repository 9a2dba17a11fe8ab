"""Clips that the dense pass leaves out, because thresholds reject them by what is known before it.

`mark` decides at measuring. Where thresholds become looser later, `supplements` finds the clips that they may
accept, and the next `curate` traces just those: a supplement of a committed part is a part beside it, whose
rows count in place of the rows that wait.

Who speaks is decided by comparing faces in view. So a clip that overlaps in time one that may be accepted is
traced as well, and what is accepted does not depend on what was left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.curation.verdict import NOT_TRACED, is_open
from talkforge.pipeline import small_arrays, tables
from talkforge.pipeline.parts import Part, Window, hold, is_committed
from talkforge.pipeline.store import Store
from talkforge.pipeline.tables import Rows
from talkforge.schemas.config import Thresholds
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import ClipMeasures, ledger_columns

Row = Mapping[str, Any]
"""Ledger columns of a clip."""

_STOPPED = "stopped_by"


def may_be_accepted(row: ClipMeasures, thresholds: Thresholds | None) -> bool:
    """Whether a clip passed the gates, and no rule rejects it by what is known before the dense pass."""
    return row.stopped_by in (None, NOT_TRACED.code) and (
        thresholds is None or is_open(ledger_columns(row), thresholds)
    )


def mark(rows: Sequence[ClipMeasures], thresholds: Thresholds | None) -> list[ClipMeasures]:
    """The clips of a window, those that are not to be traced with `stopped_by` "not_traced".

    Args:
        rows: what is known before the dense pass.
        thresholds: those in force; None: every clip that passed the gates is traced.
    """
    wanted = _wanted([ledger_columns(row) for row in rows], thresholds)
    left = {_STOPPED: NOT_TRACED.code}
    return [
        row if row.stopped_by or row.clip.clip_id in wanted else row.model_copy(update=left) for row in rows
    ]


def supplements(
    store: Store,
    clips: pa.Table,
    plan: Iterable[Part],
    thresholds: Thresholds | None,
    kept: Collection[str] = (),
) -> list[Part]:
    """One part for each committed part with clips that are to be traced now; none where there are none.

    Args:
        store: the data set.
        clips: what its parts say, see `measured.Measured.clips`.
        plan: its parts; clips of videos that it does not name any more are left as they are.
        thresholds: those in force; None: every clip that was not traced is.
        kept: ids of clips that a reviewer keeps, whatever the rules say.
    """
    waits = pc.fill_null(pc.equal(clips.column(_STOPPED), pa.scalar(NOT_TRACED.code)), False)
    videos = clips.column("video_id").filter(waits).combine_chunks().unique()
    rows = clips.filter(pc.is_in(clips.column("video_id"), value_set=videos)).select(_known()).to_pylist()
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        if row[_STOPPED] == NOT_TRACED.code:
            waiting.setdefault(row["part"], []).append(row)
    wanted = _wanted(rows, thresholds, kept)
    planned: dict[str, list[Window]] = {}
    parts = Rows.of(Part, plan)
    for part in parts.where(hold(parts, videos)):
        for window in part.windows:
            planned.setdefault(window.video.video_id, []).append(window)
    found = []
    for name, of_part in sorted(waiting.items()):
        keys = {row["clip_id"]: row for row in of_part if row["clip_id"] in wanted}
        windows = {
            window.key: window
            for row in keys.values()
            for window in planned.get(row["video_id"], ())
            if _holds(window, row)
        }
        held = tuple(key for key, row in keys.items() if any(_holds(w, row) for w in windows.values()))
        if held:
            digest = hashlib.sha256(" ".join(held).encode()).hexdigest()
            made = Part(name=f"{name}.{digest[:8]}", windows=tuple(windows.values()), of=name, clips=held)
            found += [] if is_committed(made, store) else [made]
    return found


def read_clips(
    part: Part, window: Window, store: Store
) -> tuple[list[ClipMeasures], dict[str, dict[str, NDArray[Any]]], dict[str, bytes]]:
    """The clips of a supplement that lie in one of its windows.

    Returns:
        Their rows as they are to be traced, in order of start; their small arrays and their images, by id.

    Raises:
        DatasetError: the part that it supplements cannot be read.
    """
    folder, wanted = f"parts/{part.of}", set(part.clips)
    rows = [
        row.model_copy(update={_STOPPED: None})
        for row in tables.read(store, f"{folder}/clips.parquet", ClipMeasures)
        if row.clip.clip_id in wanted and _holds(window, ledger_columns(row))
    ]
    keys = {row.clip.clip_id for row in rows}
    stored = small_arrays.read(store, folder)
    arrays: dict[str, dict[str, NDArray[Any]]] = {key: stored.get(key, {}) for key in keys}
    name = f"{folder}/thumbnails.npz"
    images = read_npz(store.read(name), name, wanted=lambda key: key in keys)
    order = sorted(rows, key=lambda row: (row.clip.start_s, row.clip.track, row.clip.clip_id))
    return order, arrays, {key: image.tobytes() for key, image in images.items()}


def _wanted(rows: Sequence[Row], thresholds: Thresholds | None, kept: Collection[str] = ()) -> set[str]:
    """Ids of the clips to trace: those that may be accepted, and those in view beside one of them."""
    passed = [row for row in rows if row[_STOPPED] in (None, NOT_TRACED.code)]
    by_video: dict[str, list[tuple[bool, Row]]] = {}
    for row in sorted(passed, key=lambda row: float(row["start_s"])):
        is_wanted = thresholds is None or row["clip_id"] in kept or is_open(row, thresholds)
        by_video.setdefault(row["video_id"], []).append((is_wanted, row))
    wanted: set[str] = set()
    for ordered in by_video.values():
        wanted |= {row["clip_id"] for is_wanted, row in ordered if is_wanted}
        # Once forwards and once backwards: who begins before, and who begins within, a clip that is wanted.
        end_s = float("-inf")
        for is_wanted, row in ordered:
            if row["start_s"] < end_s:
                wanted.add(row["clip_id"])
            end_s = max(end_s, row["end_s"]) if is_wanted else end_s
        start_s = float("inf")
        for is_wanted, row in reversed(ordered):
            if row["end_s"] > start_s:
                wanted.add(row["clip_id"])
            start_s = min(start_s, row["start_s"]) if is_wanted else start_s
    return wanted


def _holds(window: Window, row: Row) -> bool:
    """Whether the middle of a clip lies in the window."""
    middle_s = (row["start_s"] + row["end_s"]) / 2
    return bool(window.video.video_id == row["video_id"] and window.start_s <= middle_s < window.end_s)


def _known() -> list[str]:
    """Columns of what is known of a clip before the dense pass."""
    schema = tables.arrow_schema(ClipMeasures)
    known = [
        leaf.name for record in ("clip", "face", "speech", "sound") for leaf in schema.field(record).type
    ]
    return [*known, "duration_s", _STOPPED, "part"]
