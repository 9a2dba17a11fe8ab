"""The data set as a whole: its description, its inputs and its plan, and what may change them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talkforge.pipeline import lease, parts, snapshots, tables
from talkforge.pipeline.intake import IngestRow, footage_s, in_order, is_one_of, keys_of, with_duplicates
from talkforge.pipeline.parts import Part, Window, hold
from talkforge.pipeline.store import PROBE, Store, is_relative
from talkforge.pipeline.tables import Rows
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


def load_ingested(store: Store) -> Rows[IngestRow]:
    """Every input so far, in the order of their keys; empty before the first plan."""
    return tables.rows(store, INTAKE, IngestRow) if store.exists(PLAN) else Rows.of(IngestRow, ())


def check_base(store: Store, known: Iterable[str]) -> None:
    """Inputs of one data set are all relative to a base, or all absolute.

    Args:
        store: the data set.
        known: names of its inputs.

    Raises:
        CommandError: a base was given to a data set that has none, or none to one that has.
    """
    for uri in known:
        store.input_uri(uri)
        if store.base and not is_relative(uri):
            raise CommandError(
                f"{store.root}: names its inputs absolutely, such as {uri!r}, because it was begun"
                " without --base; go on without it"
            )


def load_plan(store: Store) -> Rows[Part]:
    """The parts planned so far."""
    return tables.rows(store, PLAN, Part) if store.exists(PLAN) else Rows.of(Part, ())


def extend_plan(store: Store, new: Iterable[IngestRow], part_s: float) -> tuple[Rows[IngestRow], Rows[Part]]:
    """Add inputs: their rows to `intake.parquet`, and parts for videos that no part covers yet.

    An input that was there before is replaced: its file has changed. Parts once planned keep
    their names and windows, so that a run that is resumed finds what it has committed.
    """
    fresh, plan = Rows.of(IngestRow, new), load_plan(store)
    if not len(fresh) and len(plan):
        return load_ingested(store), plan
    rows, videos = _with_new(load_ingested(store), fresh)
    del fresh
    plan = _replanned(plan, rows, videos, part_s)
    tables.write(store, INTAKE, IngestRow, rows)
    tables.write(store, PLAN, Part, plan)
    return rows, plan


def _with_new(before: Rows[IngestRow], fresh: Rows[IngestRow]) -> tuple[Rows[IngestRow], pa.Array]:
    """All inputs in the order of their keys, and the videos of which one is new, replaced or a duplicate."""
    is_replaced = pc.is_in(keys_of(before), value_set=keys_of(fresh).combine_chunks()).to_numpy()
    known = before.where(~is_replaced)
    # A duplicate is looked at again: the file that stood for it may just have been replaced.
    is_duplicate = is_one_of(known.column("status"), "duplicate")
    again = known.where(is_duplicate)
    touched = [part.column("video.video_id") for part in (fresh, again, before.where(is_replaced))]
    videos = pa.chunked_array([piece for column in touched for piece in column.chunks], pa.string())
    rows = in_order(with_duplicates(fresh + again, known.where(~is_duplicate)))
    return rows, videos.unique().drop_null()


def _replanned(plan: Rows[Part], rows: Rows[IngestRow], videos: pa.Array, part_s: float) -> Rows[Part]:
    """The plan once the inputs of these videos are as in `rows`; those of other videos are as they were."""
    planned = rows.where(is_one_of(rows.column("status"), "planned"))
    numbers = np.flatnonzero(hold(plan, videos))
    held = list(plan.take(numbers))
    in_plan = {window.video.video_id for part in held for window in part.windows}
    known = planned.where(is_one_of(planned.column("video.video_id"), *in_plan))
    spans = _by_video(row.span for row in known if row.span)
    held = [_refreshed(part, spans) for part in held]
    covered = _by_video(window for part in held for window in part.windows)
    plan, before = plan.replaced(numbers, held), plan.column("name").to_pylist()
    plan = plan.where(pc.list_value_length(plan.column("windows")).to_numpy() > 0)

    new = planned.where(pc.is_in(planned.column("video.video_id"), value_set=videos).to_numpy())
    # Spans of one video follow each other, in the place of the first.
    ids = new.column("video.video_id").combine_chunks().dictionary_encode()
    new = new.take(np.argsort(ids.indices.to_numpy(), kind="stable"))
    is_covered = is_one_of(new.column("video.video_id"), *covered)

    def pieces(of: Rows[IngestRow]) -> Iterator[Window]:
        for row in of:
            if row.video and row.span:
                yield from parts.uncovered(row.span, covered.get(row.video.video_id, ()))

    total_s = float(footage_s(new.where(~is_covered)).sum())
    total_s += sum(piece.duration_s for piece in pieces(new.where(is_covered)))
    number = 1 + max((int(name.partition("-")[0]) for name in before), default=-1)
    return plan + Rows.of(Part, parts.packed(pieces(new), total_s, part_s, number))


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


def read_arrived(store: Store) -> Rows[IngestRow]:
    """What `keep_arrived` has written, in the order of keys; a file that is damaged is passed over."""
    found = [Rows.of(IngestRow, ())]
    for name in store.list(ARRIVED):
        with suppress(DatasetError):
            found.append(tables.rows(store, name, IngestRow))
    return in_order(Rows.joined(found))


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
