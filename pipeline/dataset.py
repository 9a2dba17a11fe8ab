"""The data set as a whole: its description, its inputs and its plan, and what may change them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING

import filelock

from talkforge.pipeline import lease, parts, snapshots, tables
from talkforge.pipeline.ingest import IngestRow, mark_duplicates
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.store import PROBE, Store, is_relative
from talkforge.pipeline.tombstones import check_not_erasing
from talkforge.schemas.arrays import BLENDSHAPES
from talkforge.schemas.config import Config, config_hash, differences
from talkforge.schemas.dataset import (
    SCHEMA_VERSION,
    SYNC_SCORER,
    Choice,
    Dataset,
    ModelAbsence,
    ModelUse,
    parse_dataset,
)
from talkforge.schemas.errors import CommandError, DatasetError, RunError, one_line
from talkforge.schemas.records import Input, Video

if TYPE_CHECKING:
    from talkforge.curation.audio.speech_encoders import SpeechEncoder

INTAKE, PLAN = "intake.parquet", "plan.parquet"
"""Tables of inputs and of parts. The plan is written last: without it ingest is not complete."""

LOCK = ".lock"
"""File by which a run keeps others out of a local data set."""


def tool_version() -> str:
    """Version of the installed package."""
    return metadata.version("talkforge")


def load_dataset(store: Store) -> Dataset:
    """The data set's description.

    Raises:
        CommandError: there is no data set here.
        DatasetError: `dataset.json` is not readable or of another schema version.
    """
    if not store.exists("dataset.json"):
        raise CommandError(f"{store.root}: no data set here (dataset.json is missing)")
    return parse_dataset(store.read(snapshots.current_table(store, "dataset.json")))


def save_dataset(store: Store, dataset: Dataset) -> None:
    """Write `dataset.json`."""
    store.write("dataset.json", json.dumps(dataset.model_dump(mode="json"), indent=1).encode())


def open_for_curating(store: Store, fresh: Dataset) -> Dataset:
    """The data set to go on with, or a new one.

    Raises:
        CommandError: what is there was made with another configuration, or other models; names the
            differences.
    """
    old = check_target(store, fresh.config)
    if old is None:
        store.check_writable()
        save_dataset(store, fresh)
        return fresh
    models = {use for use in {*old.models} ^ {*fresh.models} if use.needed_by != SYNC_SCORER}
    if models:
        names = ", ".join(sorted({use.name for use in models}))
        raise CommandError(f"{store.root} was measured with other models: {names} differ")
    return old.model_copy(
        update={
            "config": fresh.config,
            "models": fresh.models,
            "speech_encoder": fresh.speech_encoder,
            "speech_dim": fresh.speech_dim,
        }
    )


def check_target(store: Store, config: Config) -> Dataset | None:
    """The data set that is there, if a run with this configuration can go on with it; writes nothing.

    Returns:
        None where a new data set can be made.

    Raises:
        CommandError: something else is there, or a data set of another configuration; names the differences.
    """
    if not store.exists("dataset.json"):
        root = store.local_root
        with store.reporting_errors("look for", "the folder"):
            is_file = root is not None and any(place.is_file() for place in (root, *root.parents))
        if is_file:
            raise CommandError(f"{store.root}: cannot be written to (a file, not a folder)")
        if any(not name.startswith((LOCK, PROBE, lease.FOLDER)) for name in store.list()):
            raise CommandError(f"{store.root}: not empty, and no data set (dataset.json is missing)")
        return None
    old = load_dataset(store)
    changed = differences(old.config.measure, config.measure)
    if changed:
        raise CommandError(
            f"{store.root} was measured with another configuration: {'; '.join(changed)}. "
            "Use that configuration again, or another --out"
        )
    chosen = differences(old.config.thresholds, config.thresholds)
    chosen += differences(old.config.shards, config.shards)
    if chosen:
        raise CommandError(
            f"{store.root} was selected with other thresholds: {'; '.join(chosen)}. "
            "Change them with `talkforge select` and `talkforge shard` (`select --reset` goes back to those "
            "it was made with); nothing is measured again"
        )
    return old


@contextmanager
def exclusive(store: Store, erasing: bool = False) -> Iterator[None]:
    """Keeps a second run out of a data set.

    On a local disk by a lock that dies with its process, in an object store by a lease.

    A snapshot that a killed run has published and not shown yet is shown first.

    Args:
        store: the data set.
        erasing: whether this run may write where an erasure was not finished: the one that goes on with it,
            and the repair of what it has stopped at.

    Raises:
        CommandError: another run is at work on it.
        RunError: another run has taken over, see `lease.held`.
    """
    folder = store.local_root
    if folder is None:
        with lease.held(store):
            _begin_to_write(store, erasing)
            yield
        return
    with store.reporting_errors("look for", LOCK):
        is_there = folder.is_dir()
    if not is_there:
        yield
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise CommandError(f"{store.root}: another run is at work on this data set") from None
    except OSError as error:
        raise CommandError(f"{store.root}: cannot be written to ({one_line(error)})") from None
    try:
        _begin_to_write(store, erasing)
        yield
    finally:
        lock.release()


def _begin_to_write(store: Store, erasing: bool) -> None:
    if not erasing:
        check_not_erasing(store)
    with suppress(DatasetError):  # `verify --repair` locks, too; what needs a snapshot says what is damaged
        snapshots.settle(store)


def load_ingested(store: Store) -> list[IngestRow]:
    """Every input so far; empty before the first plan."""
    return tables.read(store, INTAKE, IngestRow) if store.exists(PLAN) else []


def check_base(store: Store, known: Iterable[Input]) -> None:
    """Inputs of one data set are all relative to a base, or all absolute.

    Raises:
        CommandError: a base was given to a data set that has none, or none to one that has.
    """
    for given in known:
        store.input_uri(given.uri)
        if store.base and not is_relative(given.uri):
            raise CommandError(
                f"{store.root}: names its inputs absolutely, such as {given.uri!r}, because it was begun"
                " without --base; go on without it"
            )


def load_plan(store: Store) -> list[Part]:
    """The parts planned so far."""
    return tables.read(store, PLAN, Part) if store.exists(PLAN) else []


def extend_plan(store: Store, new: Iterable[IngestRow], part_s: float) -> tuple[list[IngestRow], list[Part]]:
    """Add inputs: their rows to `intake.parquet`, and parts for videos that no part covers yet.

    An input that was there before is replaced: its file has changed. Parts once planned keep
    their names and windows, so that a run that is resumed finds what it has committed.
    """
    new = list(new)
    keys = {row.input.key for row in new}
    known = [row for row in load_ingested(store) if row.input.key not in keys]
    plan = load_plan(store)
    if not new and plan:
        return known, plan
    # A duplicate is looked at again: the file that stood for it may just have been replaced.
    settled = [row for row in known if row.status != "duplicate"]
    open_rows = new + [row for row in known if row.status == "duplicate"]
    rows = sorted([*settled, *mark_duplicates(open_rows, settled)], key=lambda row: row.input.key)
    spans = _by_video(row.span for row in rows if row.span and row.status == "planned")
    number = 1 + max((int(part.name.partition("-")[0]) for part in plan), default=-1)
    plan = [part for old in plan if (part := _refreshed(old, spans)).windows]
    planned = _by_video(window for part in plan for window in part.windows)
    new_spans = [
        piece
        for video_id, of_video in spans.items()
        for span in of_video
        for piece in parts.uncovered(span, planned.get(video_id, ()))
    ]
    plan += parts.plan(new_spans, part_s, number)
    tables.write(store, INTAKE, IngestRow, rows)
    tables.write(store, PLAN, Part, plan)
    return rows, plan


ARRIVED = "arrived"
"""Folder of rows of inputs that were read and are in no plan yet."""

ARRIVED_ROWS, ARRIVED_S = 256, 30.0
"""They are written when there are so many, or when the last were written so long ago."""


def keep_arrived(store: Store, rows: Iterable[IngestRow]) -> Iterator[IngestRow]:
    """The rows, which are written from time to time, so that a run that is killed has not read them in vain.

    Args:
        store: the data set.
        rows: of inputs as they are read.
    """
    held: list[IngestRow] = []
    number, since_s = len(store.list(ARRIVED)), time.monotonic()

    def write() -> None:
        tables.write(store, f"{ARRIVED}/{number:06d}.parquet", IngestRow, held)

    try:
        for row in rows:
            held.append(row)
            if len(held) >= ARRIVED_ROWS or time.monotonic() - since_s > ARRIVED_S:
                write()
                held, number, since_s = [], number + 1, time.monotonic()
            yield row
    except GeneratorExit:
        raise
    except BaseException:
        with suppress(RunError):  # what goes wrong already is told
            write()
        raise


def read_arrived(store: Store) -> Iterator[IngestRow]:
    """What `keep_arrived` has written; a file that is damaged is passed over."""
    for name in store.list(ARRIVED):
        with suppress(DatasetError):
            yield from tables.read(store, name, IngestRow)


def _by_video(windows: Iterable[Window]) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {}
    for window in windows:
        found.setdefault(window.video.video_id, []).append(window)
    return found


def _refreshed(part: Part, spans: Mapping[str, Sequence[Window]]) -> Part:
    """The part without windows that no input holds any more, the others where their content lies now."""
    windows = []
    for window in part.windows:
        holder = next((span for span in spans.get(window.video.video_id, ()) if span.holds(window)), None)
        if holder is not None:
            windows.append(window.model_copy(update={"video": holder.video}))
    return part.model_copy(update={"windows": tuple(windows)})


def describe(
    config: Config,
    models: Sequence[ModelUse],
    joints: Sequence[str],
    encoder: SpeechEncoder,
    absent: Sequence[ModelAbsence] = (),
) -> Dataset:
    """Description of a data set that is about to be made."""
    return Dataset(
        schema_version=SCHEMA_VERSION,
        tool_version=tool_version(),
        config=config,
        config_hash=config_hash(config.measure),
        models=tuple(models),
        models_absent=tuple(absent),
        joints=tuple(joints),
        blendshapes=BLENDSHAPES,
        speech_encoder=encoder.name,
        speech_dim=encoder.dim,
        original=Choice.of(config),
    )


def videos_by_id(ingested: Iterable[IngestRow]) -> dict[str, Video]:
    """The videos that are measured, by id."""
    return {row.video.video_id: row.video for row in ingested if row.video and row.status == "planned"}


def stamps_by_id(ingested: Iterable[IngestRow]) -> dict[str, str]:
    """State of the file of each of these videos when it was hashed, see `ingest.stamp_of`."""
    return {row.video.video_id: row.stamp for row in ingested if row.video and row.status == "planned"}
