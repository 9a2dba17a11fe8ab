"""The jobs behind the commands: `curate` runs all steps, and each step can also be run by itself."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from talkforge.curation.body.joints import JOINTS
from talkforge.curation.weights import download
from talkforge.pipeline import (
    annotate,
    attempts,
    audit,
    cut,
    inspect_clip,
    ledger,
    review,
    snapshots,
    tables,
    untraced,
)
from talkforge.pipeline.calibrate import read_calibrated, scored_last, settle, with_calibration
from talkforge.pipeline.dataset import (
    ARRIVED,
    check_base,
    check_target,
    describe,
    exclusive,
    extend_plan,
    keep_arrived,
    load_dataset,
    load_ingested,
    open_for_curating,
    read_arrived,
    save_dataset,
    tool_version,
)
from talkforge.pipeline.executor import Executor, InlineExecutor
from talkforge.pipeline.ingest import after, find_inputs, is_due, stamps_of, without_erased
from talkforge.pipeline.intake import AT_ONCE, IngestRow, Intake, rows_of
from talkforge.pipeline.ledger import CommittedClip, Selection
from talkforge.pipeline.measured import Measured, kept_s, part_clips, read_measured
from talkforge.pipeline.near_duplicates import Repeats
from talkforge.pipeline.needs import gather
from talkforge.pipeline.parts import Left, Part, footage_of, left_of
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import FetchLimits, Store
from talkforge.pipeline.tables import Rows, batches
from talkforge.pipeline.timelines import local_video
from talkforge.pipeline.tombstones import read_tombstones
from talkforge.schemas import extras, scratch
from talkforge.schemas.config import Config, ExecutionConfig, Thresholds
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.errors import CommandError, FailureKind
from talkforge.schemas.progress import Progress, ProgressCallback, counted, hours, no_progress
from talkforge.schemas.records import Input
from talkforge.schemas.sample import ShardManifest

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasureProgress:
    """How far measuring is; `kept_s` counts by the thresholds in force, before speakers are named,
    near duplicates are found and audio is moved."""

    parts_done: int
    parts: int
    done_s: float
    total_s: float
    kept_s: float
    measured_s: float
    """Footage measured in this run, without what was there before."""
    wall_s: float

    @property
    def real_time_factor(self) -> float:
        """Seconds of footage measured per second of wall clock in this run."""
        return self.measured_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Wall seconds left at this pace; None before the first part is done."""
        pace = self.real_time_factor
        return (self.total_s - self.done_s) / pace if pace > 0 else None

    def shown(self) -> Progress:
        """Parts, footage done, hours kept, real-time factor and time left, for the display."""
        left = "" if self.left_s is None else f", {hours(self.left_s)} left"
        pace = f", {self.real_time_factor:.2f}x real time" if self.measured_s else ""
        detail = (
            f"{hours(self.done_s)} of {hours(self.total_s)}, parts {self.parts_done}/{self.parts}, "
            f"kept about {hours(self.kept_s)}{pace}{left}"
        )
        return Progress("measuring", self.done_s, self.total_s, detail)

    def within(self, running_s: float, wall_s: float) -> MeasureProgress:
        """The state with `running_s` seconds of footage done in parts that are not committed yet."""
        return replace(
            self, done_s=self.done_s + running_s, measured_s=self.measured_s + running_s, wall_s=wall_s
        )


def curate(
    inputs: Sequence[str],
    store: Store,
    config: Config,
    make_executor: Callable[[], Executor],
    limit: int | None = None,
    on_progress: ProgressCallback = no_progress,
    on_download: download.ProgressCallback = download.no_progress,
    exclude: Sequence[str] = (),
) -> Selection:
    """Measure what is not measured yet, then select, cut and report.

    Args:
        inputs: files, folders, globs, lists and URIs.
        store: the data set to make or to go on with.
        config: the whole configuration.
        make_executor: makes the executor once the inputs and the models are known.
        limit: most inputs that are taken; None takes all.
        on_progress: called about once a second with the phase and how far it is: `reading inputs`,
            `measuring`, `selecting`, `cutting`, `report`.
        on_download: called while weights are fetched.
        exclude: globs of inputs to leave out, see `ingest.find_inputs`.

    Raises:
        CommandError: inputs, output or configuration cannot be used.
        ModelError: weights are missing. RunError: the run cannot go on.
    """
    passed_over: list[str] = []
    found = find_inputs(inputs, limit, exclude, store.base, passed_over.append, config.run.protocols)
    return _go_on(found, store, config, make_executor, on_progress, on_download, passed_over)


def retry(
    store: Store,
    kinds: Sequence[FailureKind],
    make_executor: Callable[[Config], Executor],
    on_progress: ProgressCallback = no_progress,
) -> tuple[int, Selection]:
    """Try again what failed, for the inputs and with the configuration that the data set has.

    Args:
        store: the data set.
        kinds: kinds of failures to try again.
        make_executor: makes the executor for the data set's configuration.
        on_progress: see `curate`.

    Returns:
        Number of failures that were tried again, and the selection after that.

    Raises:
        CommandError: there is no data set. ModelError: weights are missing. RunError: the run cannot go on.
    """
    config = load_dataset(store).config
    with exclusive(store):
        num_forgiven = attempts.forgive(store, kinds)
        inputs = Rows.of(Input, (row.input for row in load_ingested(store)))
    return num_forgiven, _go_on(inputs, store, config, lambda: make_executor(config), on_progress)


def _go_on(
    found: Rows[Input],
    store: Store,
    config: Config,
    make_executor: Callable[[], Executor],
    on_progress: ProgressCallback,
    on_download: download.ProgressCallback = download.no_progress,
    passed_over: Sequence[str] = (),
) -> Selection:
    if config.thresholds.respect_reservations:
        extras.require("c2pa", "thresholds.respect_reservations")
    store = _limited(store, config)
    gathered = gather(config.measure, on_download)
    fresh = describe(config, gathered.used, JOINTS, gathered.encoder, gathered.absent)
    if check_target(store, config) is None:
        store.check_writable()
    with exclusive(store):
        executor = make_executor()  # a cluster that cannot be reached leaves no data set behind
        try:
            dataset = open_for_curating(store, fresh)
            for line in passed_over:  # not before: a command that is refused is answered by one line
                log.warning("%s", line)
            store.sweep()
            settled = config.model_copy(update={"measure": gathered.config})
            for intake in _ingest(found, store, settled, executor, on_progress):
                measured = measure(intake[1], store, settled, executor, on_progress)
            ingested, plan = intake
            measured = trace_untraced(plan, measured, store, settled, executor, on_progress)
            on_progress(Progress("selecting"))
            selection = calibrate_and_select(store, dataset, ingested, measured)
            return shard(store, load_dataset(store), selection, ingested, executor, on_progress)
        finally:
            executor.close()


def _limited(store: Store, config: Config) -> Store:
    """The store with the bounds of remote inputs that the configuration sets."""
    run = config.run
    return replace(store, limits=FetchLimits(run.max_input_gb * 1e9, run.fetch_timeout_s))


FIRST_INPUTS = 1024
"""Inputs that are read before the first parts are measured. Then as many are read as were before, so that the
plan, which is written each time, is written twice in all."""


def _ingest(
    inputs: Rows[Input], store: Store, config: Config, executor: Executor, on_progress: ProgressCallback
) -> Iterator[tuple[Rows[IngestRow], Rows[Part]]]:
    """Read the inputs in steps: after each all rows and the whole plan so far, so that they can be measured.

    Rows that are in no plan yet are kept beside it, for the case that the run is killed while it reads.
    """
    known = load_ingested(store)
    check_base(store, known.column("input.uri").to_pylist())
    tripwire = attempts.Tripwire(config.run.max_failed_share)
    begin, num_read = 0, 0
    while begin < len(inputs) or not begin:
        some = inputs[begin : 2 * begin or FIRST_INPUTS]
        begin += max(1, len(some))
        there, left = _due(some, known, store, config)
        num_due = len(there) + len(left)
        rows: Iterable[IngestRow] = ()
        if num_due and not num_read:
            executor.warm_up(config.measure, num_due)
        if num_due:
            read = _read_inputs(there, left, known, store, executor, tripwire)
            rows = _counting(read, on_progress, num_read, num_due + max(0, len(inputs) - begin))
        num_read += num_due
        found = extend_plan(store, rows, config.run.part_s)
        store.delete_folder(ARRIVED)
        yield found


def _due(
    inputs: Rows[Input], known: Rows[IngestRow], store: Store, config: Config
) -> tuple[Rows[IngestRow], Rows[Input]]:
    """Of the inputs that are to be read: rows of those that a run that was killed has read, and the others.

    Args:
        inputs: what was given.
        known: what an earlier run found.
        store: the data set.
        config: the whole configuration.
    """
    arrived = read_arrived(store)
    there: list[Rows[IngestRow]] = [arrived[:0]]
    left: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for block, some in enumerate(batches(inputs, AT_ONCE)):
        stamps = stamps_of([store.input_uri(given.uri) for given in some])
        before, read = rows_of(some, known), rows_of(some, arrived)
        due = [n for n, given in enumerate(some) if is_due(before.get(given), stamps[n], config)]
        is_there = [not is_due(read.get(some[n]), stamps[n], config) for n in due]
        there.append(Rows.of(IngestRow, (read[some[n]] for n in itertools.compress(due, is_there))))
        left.append(block * AT_ONCE + np.array(due, np.int64)[~np.array(is_there, bool)])
    return Rows.joined(there), inputs.take(np.concatenate(left))


def _read_inputs(
    there: Iterable[IngestRow],
    left: Iterable[Input],
    known: Rows[IngestRow],
    store: Store,
    executor: Executor,
    tripwire: attempts.Tripwire,
) -> Iterator[IngestRow]:
    """Rows of inputs that were read before, and of others, which are read now.

    Args:
        there: those that were read.
        left: the others.
        known: what an earlier run found.
        store: the data set.
        executor: reads them.
        tripwire: is told what failed.
    """
    erased = set(read_tombstones(store).sha256)
    fresh = keep_arrived(store, executor.ingest(left, store.base, store.limits))
    for row in itertools.chain(there, fresh):
        row = without_erased(row, erased)
        tripwire.note(1, [row.failure] if row.failure else ())
        yield after(row, rows_of([row.input], known).get(row.input))


def _counting(
    rows: Iterator[IngestRow], on_progress: ProgressCallback, before: int, total: int
) -> Iterator[IngestRow]:
    """The rows; says how many have passed, of so many after those before."""
    on_progress(counted("reading inputs", before, before + total))
    for number, row in enumerate(rows, before + 1):
        yield row
        on_progress(counted("reading inputs", number, before + total))


def measure(
    plan: Rows[Part],
    store: Store,
    config: Config,
    executor: Executor,
    on_progress: ProgressCallback = no_progress,
) -> Measured:
    """Measure and commit every part of the plan that is not there yet.

    Returns:
        What all committed parts say then.

    Raises:
        RunError: the run cannot go on, or infrastructure fails too many inputs, see `attempts.Tripwire`.
    """
    measured = read_measured(store)
    left = left_of(plan, store, measured.parts)
    tried = {name: failure.attempts for name, failure in attempts.noted(store, left).items()}
    given_up = {name for name, count in tried.items() if count >= config.run.max_attempts}
    intake = Intake(load_ingested(store))
    deciding = {"thresholds": _deciding(config)}
    todo = (_with_stamps(part, intake, deciding) for part in left if part.name not in given_up)
    tripwire = attempts.Tripwire(config.run.max_failed_share)
    state = _progress(plan, left, measured, config, intake)
    is_complete = len(left) == len(given_up)
    if not is_complete:
        del measured  # not held for the hours that follow
    begin_s = time.monotonic()
    on_progress(state.shown())

    def running(done_s: Mapping[str, float]) -> None:
        on_progress(state.within(sum(done_s.values()), time.monotonic() - begin_s).shown())

    for done in executor.run(todo, config, store, running):
        tripwire.note(len(done.part.windows), done.put_off)
        state = replace(state, wall_s=time.monotonic() - begin_s)
        if done.measured_s:
            state = replace(
                state,
                parts_done=state.parts_done + 1,
                done_s=state.done_s + done.measured_s,
                kept_s=state.kept_s + kept_s(part_clips(store, done.part.name), intake, config.thresholds),
                measured_s=state.measured_s + done.measured_s,
            )
        on_progress(state.shown())
    return measured if is_complete else read_measured(store)


def trace_untraced(
    plan: Rows[Part],
    measured: Measured,
    store: Store,
    config: Config,
    executor: Executor,
    on_progress: ProgressCallback = no_progress,
) -> Measured:
    """Trace the clips that were left out, and that the thresholds in force may accept, see `untraced.py`.

    Args:
        plan: all parts.
        measured: what the committed ones say.
        store: the data set.
        config: the whole configuration.
        executor: traces.
        on_progress: see `curate`.

    Returns:
        What the parts say then.

    Raises:
        RunError: the run cannot go on, or infrastructure fails too many of them, see `attempts.Tripwire`.
    """
    kept = {key for key, row in review.read(store).items() if row.decision == "keep"}
    todo = untraced.supplements(store, measured.clips, plan, _deciding(config), kept)
    if not todo:
        return measured
    del measured
    intake = Intake(load_ingested(store))
    todo = [_with_stamps(part, intake) for part in todo]
    tripwire = attempts.Tripwire(config.run.max_failed_share)
    total, num_done = sum(len(part.clips) for part in todo), 0
    for done in executor.run(todo, config, store):
        tripwire.note(len(done.part.windows), done.put_off)
        num_done += len(done.part.clips)
        on_progress(counted("tracing what was left out", min(num_done, total), total, "clips"))
    return read_measured(store)


def _deciding(config: Config) -> Thresholds | None:
    """The thresholds that decide on what is traced; None: everything is."""
    return None if config.run.trace == "all" else config.thresholds


def _with_stamps(part: Part, intake: Intake, more: Mapping[str, Any] = MappingProxyType({})) -> Part:
    """The part with the states of its videos' files, and more."""
    inputs = intake.of_videos(window.video.video_id for window in part.windows)
    return part.model_copy(update={"stamps": {key: row.stamp for key, row in inputs.items()}, **more})


def _progress(
    plan: Rows[Part], todo: Left, measured: Measured, config: Config, intake: Intake
) -> MeasureProgress:
    total_s = footage_of(plan)
    return MeasureProgress(
        parts_done=len(measured.parts),
        parts=len(measured.parts) + len(todo),
        done_s=total_s - todo.duration_s,
        total_s=total_s,
        kept_s=kept_s(measured.clips, intake, config.thresholds) if measured.parts else 0.0,
        measured_s=0.0,
        wall_s=0.0,
    )


def calibrate_and_select(
    store: Store, dataset: Dataset, ingested: Sequence[IngestRow], measured: Measured | None = None
) -> Selection:
    """`calibrate` and `select` by one reading of the parts.

    Nothing of it is held afterwards but what is cut.

    Args:
        store: the data set.
        dataset: its description, with the thresholds to apply.
        ingested: every input.
        measured: answer of `read_measured`, where it was read already; None reads it.
    """
    measured = measured or read_measured(store)
    settle(store, measured, dataset.config)
    return select(store, dataset, ingested, measured)


def choose(store: Store, config: Config, ingested: Sequence[IngestRow], measured: Measured) -> Selection:
    """What `select` would write with this configuration; nothing is written.

    Shard names are carried over for clips whose shard still holds them.
    """
    measured = with_calibration(store, measured)
    measured = annotate.joined(store, measured, config.thresholds.forbidden_words)
    selection = ledger.select(measured, ingested, config, review.read(store))
    selection = ledger.with_shards(selection, shards_of(store))
    ledger.check_conservation(selection, ingested)
    return selection


def select(
    store: Store, dataset: Dataset, ingested: Sequence[IngestRow], measured: Measured | None = None
) -> Selection:
    """Apply the data set's thresholds to everything committed, and write the ledger.

    Args:
        store: the data set.
        dataset: its description, with the thresholds to apply.
        ingested: every input.
        measured: answer of `read_measured`, where it was read already; None reads it.
    """
    measured = measured or read_measured(store)
    selection = choose(store, dataset.config, ingested, measured)
    ledger.write_ledger(store, selection)
    quantiles = {name: tuple(values) for name, values in selection.quantiles.items()}
    selected = {"quantiles": quantiles, "parts_selected": len(measured.parts)}
    save_dataset(store, dataset.model_copy(update=selected))
    return selection


def shards_of(store: Store) -> dict[str, str]:
    """Shard name of every clip that lies in one."""
    return {key: manifest.name for manifest in snapshots.current(store).shards for key in manifest.keys}


def stale_shards(store: Store, selection: Selection) -> dict[str, int]:
    """Shards that hold clips which are not accepted any more, and how many each holds."""
    accepted = set(selection.accepted)
    lost = Counter(name for key, name in shards_of(store).items() if key not in accepted)
    return dict(sorted(lost.items()))


def shard(
    store: Store,
    dataset: Dataset,
    selection: Selection,
    ingested: Sequence[IngestRow],
    executor: Executor | None = None,
    on_progress: ProgressCallback = no_progress,
) -> Selection:
    """Cut what is accepted, publish a snapshot of the shards and the ledger that names them, and report."""
    intake = Intake(ingested)
    check_base(store, intake.all.column("input.uri").to_pylist())
    store = _limited(store, dataset.config)
    executor = executor or InlineExecutor()
    results = cut_accepted(store, dataset, selection, intake, executor, on_progress)
    executor.release()
    where = {key: result.name for result in results for key in result.keys}
    failures = [failure for result in results for failure in result.failures]
    kept = {key for result in results for key in result.kept}
    if kept:
        log.warning(
            "%d clips cannot be cut anew and keep the samples of an earlier run; failures.parquet says why",
            len(kept),
        )
    selection = ledger.with_failures(ledger.with_shards(selection, where), failures, kept)
    ledger.check_conservation(selection, ingested)
    publish(store, [result.manifest for result in results if result.manifest], selection, dataset.config.run)
    on_progress(Progress("report"))
    report(store, selection)
    return selection


def cut_accepted(
    store: Store,
    dataset: Dataset,
    selection: Selection,
    intake: Intake,
    executor: Executor,
    on_progress: ProgressCallback = no_progress,
) -> list[cut.CutShard]:
    """Cut what is accepted into shards that are not published yet.

    Clips are read part by part. What each is cut by waits in a temporary file.

    Returns:
        What became of each shard, in the order of their names.
    """
    config, scored, said = dataset.config.shards, scored_last(store), annotate.said_last(store)
    total = 0

    def read(part: str, wanted: Collection[str]) -> list[CommittedClip]:
        return said(scored(ledger.clips_of_part(store, part, ("identity",), wanted)))

    def show(done: int, running: Mapping[str, float]) -> None:
        on_progress(counted("cutting", done + int(sum(running.values())), total, "clips"))

    with scratch.file() as path, closing(cut.OrderFile(path)) as orders:
        made = cut.orders(
            selection.accepted_by_part(),
            read,
            intake.of_videos,
            {use.name: use.sha256 for use in dataset.models},
            dataset.config_hash,
            tool_version(),
            dataset.config.measure.speech,
            config.text,
        )
        plan = cut.plan(orders.kept(made), config)
        total = len(orders)
        return cut.cut_shards(store, plan, orders, config, executor, show)


def publish(
    store: Store, manifests: Iterable[ShardManifest], selection: Selection, run: ExecutionConfig
) -> Snapshot:
    """Make these shards, and the tables of a selection that names them, the current snapshot."""
    tables = {**ledger.ledger_tables(selection), "dataset.json": store.read("dataset.json")}
    return snapshots.publish(store, manifests, tables, tool_version(), run.keep_snapshots, run.plain_shards)


def report(store: Store, selection: Selection | None = None) -> str:
    """Write the pages of `report/` and `statistics.json` from what the data set holds; their folder.

    Args:
        store: the data set.
        selection: the last one, where it is at hand: the parts are then not read once more.
    """
    # It loads pandas and jinja2, which nothing before it needs.
    from talkforge.pipeline.clip_curves import read_curves
    from talkforge.pipeline.report import Title, write_report
    from talkforge.pipeline.report.statistics import frame_of

    dataset = load_dataset(store)
    snapshot = snapshots.current(store) if snapshots.read_index(store) else None
    table = _table(store, "ledger.parquet")
    repeats = selection.repeats if selection else _repeats(store, table, dataset.config)
    clips = frame_of(table)
    del table  # of a million clips one of both is enough
    part_of = ledger.parts_of_clips(store, selection)
    write_report(
        store,
        ledger=clips,
        sources=_frame(store, "sources.parquet"),
        failures=_frame(store, "failures.parquet"),
        dataset=dataset,
        thumbnails=ledger.thumbnails(store, part_of),
        people=_people(store),
        audit=audit.result(store).document() if audit.is_labelled(store) else None,
        repeats=repeats,
        curves=functools.partial(read_curves, store, part_of=part_of),
        title=Title(
            store.root.rstrip("/").rpartition("/")[2],
            f"snapshot {snapshot.number} of {snapshot.made_at[:10]}" if snapshot else "",
        ),
    )
    return "report"


def _repeats(store: Store, table: pa.Table, config: Config) -> Repeats | None:
    """Near duplicates among all clips of a ledger on which thresholds decide, as `Selection.repeats`."""
    return ledger.all_repeats(
        table, lambda: read_measured(store, writes=False).read_copies(), config.thresholds
    )


def _frame(store: Store, name: str) -> pd.DataFrame:
    found: pd.DataFrame = _table(store, name).to_pandas()
    return found


def _table(store: Store, name: str) -> pa.Table:
    return tables.from_bytes(store.read(snapshots.current_table(store, name)), name)


def _people(store: Store) -> pd.DataFrame | None:
    """Rows of `people.parquet`; None where the data set was selected before there was one."""
    return _frame(store, "people.parquet") if store.exists("people.parquet") else None


def inspect(store: Store, clip_id: str, out: Path) -> None:
    """Write a video of one clip with everything that was measured of it drawn in.

    Args:
        store: the data set.
        clip_id: id of the clip, or how it begins.
        out: mp4 to write.

    Raises:
        CommandError: there is no such clip, or several; it was not measured densely, or `out` is no mp4.
        RunError: `out` cannot be written.
    """
    load_dataset(store)
    if out.suffix.lower() != ".mp4" or not out.parent.is_dir():
        raise CommandError(f"--out {out}: expected a .mp4 file in a folder that is there")
    part_of = ledger.parts_of_clips(store)
    clip_id = review.find_clip(part_of, clip_id, store)
    (clip,) = read_calibrated(store, (), {part_of[clip_id]: (clip_id,)}).clips
    if clip.measures.lips is None:
        why = clip.failure.message if clip.failure else clip.measures.stopped_by
        raise CommandError(f"clip {clip_id}: was not measured densely ({why}), there is nothing to draw")
    video_id = clip.measures.clip.video_id
    entry = Intake(load_ingested(store)).of_videos([video_id])[video_id]
    arrays = cut.read_arrays(store, clip.part, clip_id, np.zeros(0, np.float32))
    assert entry.video is not None
    with local_video(store, entry.video, entry.stamp) as path, scratch.replacing(out) as part:
        inspect_clip.inspect(clip.measures.clip, arrays, entry.video, path, part)
