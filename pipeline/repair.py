"""Repair: removes what verification found damaged, so that the next run makes it again.

Damaged parts are measured again by the next `talkforge curate`, shards are cut again by the next
`talkforge shard`, tables and the report are written again by `talkforge select`. An earlier snapshot of
which a file is damaged is removed, because nothing makes it again. The plan is put together again from the
parts, whose names and windows it has to keep. Nothing that is whole is removed, and a damaged `dataset.json`
is left alone: nothing else says how the parts were measured.
"""

from __future__ import annotations

from collections.abc import Iterable

from talkforge.pipeline import snapshots, tables
from talkforge.pipeline.dataset import INTAKE, PLAN
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.parts import ATTEMPTS, Part, Window
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import Problem
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import Input, Video


def repair(store: Store, problems: Iterable[Problem]) -> list[str]:
    """Remove the files that make the next run do the damaged things again.

    Args:
        store: a data set on which no other run is at work.
        problems: what `verify` found.

    Returns:
        Names of the files that were removed or written again, in order.

    Raises:
        RunError: the store cannot be written.
    """
    dropped = sorted({name for problem in problems for name in problem.drop})
    # Markers and manifests go first, so that they never vouch for a file that is gone.
    for name in sorted(dropped, key=lambda name: not name.endswith(".json")):
        if name not in (PLAN, INTAKE, snapshots.INDEX):
            store.delete(name)
    if snapshots.INDEX in dropped:
        snapshots.rebuild_index(store)
    snapshots.forget(store, [number for name in dropped if (number := snapshots.number_of(name))])
    if PLAN in dropped or INTAKE in dropped:
        _rebuild_plan(store)
    return dropped


def _rebuild_plan(store: Store) -> None:
    """Plan and inputs as the parts tell them.

    The next `talkforge curate` ingests its inputs anew: those it knows by their content keep their parts, and
    inputs that were duplicates, unreadable or not measured yet come back. Notes of windows that were put off
    name parts of the old plan, and are removed: those windows come back with all their attempts.
    """
    for name in store.list(ATTEMPTS):
        store.delete(name)
    parts = [Part(name=name, windows=tuple(_windows(store, name))) for name in _folders(store)]
    videos: dict[str, Video] = {w.video.video_id: w.video for part in parts for w in part.windows}
    rows = [
        IngestRow(input=Input(uri=video.uri), stamp="", status="planned", video=video)
        for video in sorted(videos.values(), key=lambda video: video.uri)
    ]
    tables.write(store, INTAKE, IngestRow, rows)
    tables.write(store, PLAN, Part, [part for part in parts if part.windows])


def _folders(store: Store) -> list[str]:
    """Names of all parts, committed or not: one that is damaged is planned, and measured again."""
    return sorted({path.split("/")[1] for path in store.list("parts")})


def _windows(store: Store, part: str) -> list[Window]:
    try:
        return tables.read(store, f"parts/{part}/windows.parquet", Window)
    except DatasetError:  # found damaged as well: its footage is planned anew
        return []
