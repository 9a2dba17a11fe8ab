"""Commands that build a data set and look at it: from curate to inspect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from talkforge.cli.app import BUILD, LOOK, all_of, command, notes, out, print_json
from talkforge.cli.options import (
    AddressOption,
    BaseOption,
    CurateConfigOption,
    DatasetArgument,
    DryRunOption,
    ExecutorOption,
    JsonOption,
    SettingsOption,
    SnapshotArgument,
    VideoOutOption,
    WorkersOption,
    check_executor,
    executor_maker,
    with_workers,
)
from talkforge.cli.output import (
    clips_line,
    comparison,
    fetching,
    inputs_line,
    preview_document,
    preview_lines,
    selection_document,
    snapshot_document,
    snapshot_line,
    snapshot_notes,
    snapshots_table,
    summary,
    totals_document,
    untraced_line,
)
from talkforge.display import Display
from talkforge.schemas.config import Config, apply_settings, differences, load_config
from talkforge.schemas.errors import CommandError, FailureKind
from talkforge.schemas.progress import Progress, counted, hours

if TYPE_CHECKING:
    from talkforge.pipeline.deep import Deep
    from talkforge.pipeline.executor import Executor
    from talkforge.pipeline.store import Store
    from talkforge.schemas.dataset import Dataset

DEEP_CLIPS = 20
"""Clips that `verify --deep` compares, unless the user says otherwise."""

DAMAGED = 3
"""Exit code of `verify` where something is damaged; 1 means that it could not check."""


@command(
    BUILD,
    "talkforge curate videos/ --out set",
    "talkforge curate videos/ list.csv -o set -c offline -s thresholds.min_face_px=128 -j 8",
    "talkforge curate videos/ -o set --dry-run",
    "talkforge curate videos/ -o set --dry-run --json",
)
def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Files, folders, globs, lists (.txt, .csv, .tsv, .parquet) or URIs."
        ),
    ],
    dataset: Annotated[
        str, typer.Option("--out", "-o", metavar="DATASET", help="Folder or URI of the data set.")
    ],
    config: CurateConfigOption = None,
    settings: SettingsOption = [],  # noqa: B006 (typer reads the default, nobody changes it)
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N inputs.")] = None,
    exclude: Annotated[
        list[str],
        typer.Option(metavar="GLOB", help="Leave out inputs with such a name or folder; repeatable."),
    ] = [],  # noqa: B006
    base: BaseOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure videos, choose clips, cut them into shards and write the report. Resumes.

    --dry-run says what would be read, how long it is by its headers, which weights are missing and what
    is measured already.
    """
    resolved, _ = all_of(
        lambda: load_config(config, with_workers(settings, workers)),
        lambda: check_executor(executor, address, workers),
    )
    from talkforge.pipeline.store import Store

    if dry_run:
        from talkforge.pipeline.preview import preview

        with Display(notes) as display:
            found = preview(inputs, Store(dataset, base), resolved, limit, exclude, display.show)
        if as_json:
            print_json({"dataset": dataset, "dry_run": True, **preview_document(found)})
        else:
            preview_lines(out, found)
        return
    from talkforge.pipeline import jobs as job

    with Display(notes) as display:
        selection = job.curate(
            inputs,
            Store(dataset, base),
            resolved,
            executor_maker(executor, resolved, address),
            limit,
            display.show,
            lambda step: display.show(fetching(step)),
            exclude,
        )
    if as_json:
        print_json({"dataset": dataset, "dry_run": False, **selection_document(selection)})
    else:
        summary(out, selection, dataset)
        _note_snapshots(dataset)


@command(BUILD, "talkforge retry set", "talkforge retry set --kind network --kind storage")
def retry(
    dataset: DatasetArgument,
    kind: Annotated[
        list[str],
        typer.Option(
            metavar="KIND",
            help="storage, network, memory, worker, cluster, deadline or video; repeatable. "
            "Without it: all but video.",
        ),
    ] = [],  # noqa: B006
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
    base: BaseOption = "",
) -> None:
    """Try again what failed, however often it was tried, then select, cut and report."""
    known: tuple[FailureKind, ...] = get_args(FailureKind)
    if wrong := sorted(set(kind) - set(known)):
        raise CommandError(f"--kind {', '.join(wrong)}: expected {', '.join(known)}")
    check_executor(executor, address, workers)
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    kinds = [name for name in known if (name in kind if kind else name != "video")]

    def make(config: Config) -> Executor:
        resolved = apply_settings(config.model_dump(mode="json"), with_workers([], workers))
        return executor_maker(executor, resolved, address)()

    with Display(notes) as display:
        count, selection = job.retry(Store(dataset, base), kinds, make, display.show)
    out.print(f"tried again: {count}", highlight=False)
    summary(out, selection, dataset)
    _note_snapshots(dataset)


@command(LOOK, "talkforge status set", "talkforge status set --json")
def status(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """What is done, what is left, and what was kept so far."""
    from talkforge.pipeline import review
    from talkforge.pipeline.dataset import load_dataset
    from talkforge.pipeline.standing import standing
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    found = standing(store, load_dataset(store))
    unheard = review.waiting(store)
    if as_json:
        document = {
            "dataset": dataset,
            "parts": {"done": found.parts_done, "total": found.parts},
            "measured_s": round(found.measured_s, 3),
            "planned_s": round(found.planned_s, 3),
            **totals_document(found.totals),
            "exact": found.exact,
            "waiting_for_shard": found.waiting,
            "decisions_not_selected": unheard,
        }
        print_json(document)
        return
    measured = f"{hours(found.measured_s)} of {hours(found.planned_s)}"
    out.print(inputs_line(found.totals), highlight=False)
    out.print(f"measured {measured}, parts {found.parts_done}/{found.parts}", highlight=False)
    out.print(clips_line(found.totals, "" if found.exact else "about "), highlight=False)
    if line := untraced_line(found.totals):
        out.print(line, highlight=False, soft_wrap=True)
    if not found.exact:
        out.print("not selected since: speakers and near duplicates are not counted yet", highlight=False)
    if found.waiting:
        _print_waiting(found.waiting, dataset)
    _print_unheard(unheard, dataset)


@command(
    BUILD,
    "talkforge select set -s thresholds.min_sync_confidence=3 --dry-run",
    "talkforge select set --config offline",
    "talkforge select set --reset",
)
def select(
    dataset: DatasetArgument,
    config: CurateConfigOption = None,
    settings: SettingsOption = [],  # noqa: B006
    reset: Annotated[
        bool, typer.Option("--reset", help="Go back to the thresholds that the data set was made with.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Apply other thresholds to what was measured; decodes nothing.

    Clips that only a looser threshold lets through may never have been traced. They are counted, and the next
    `talkforge curate` traces them.

    What neither --config nor --set names stays as it was selected last. --dry-run shows now, then, and
    the difference for each reason.
    """
    if reset and config:
        raise CommandError("--reset: goes without --config")
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    chosen = chosen_config(described, config, settings, reset)
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.measured import read_measured
    from talkforge.pipeline.standing import standing

    before = standing(store, described).totals
    begin_s = time.monotonic()
    with Display(notes) as display:
        if dry_run:
            display.show(Progress("selecting"))
            selection = job.choose(store, chosen, load_ingested(store), read_measured(store, writes=False))
        else:
            with exclusive(store):
                display.show(Progress("selecting"))
                changed = described.model_copy(update={"config": chosen})
                selection = job.select(store, changed, load_ingested(store))
                display.show(Progress("report"))
                job.report(store, selection)
    stale, totals = job.stale_shards(store, selection), selection.totals
    waiting = selection.waiting
    if as_json:
        document = {
            "dataset": dataset,
            "dry_run": dry_run,
            **totals_document(totals),
            "notes": list(selection.notes),
            "before": totals_document(before),
            "changed_settings": differences(described.config, chosen),
            "waiting_for_shard": waiting,
            "stale_shards": stale,
        }
        print_json(document)
        return
    if dry_run:
        comparison(out, before, totals)
        if line := untraced_line(totals):
            out.print(line, highlight=False, soft_wrap=True)
    else:
        summary(out, selection, dataset)
    if waiting:
        _print_waiting(waiting, dataset)
    if stale:
        held = ", ".join(f"{name} ({number})" for name, number in stale.items())
        out.print(
            f"stale shards, with clips that are not accepted any more: {held}: talkforge shard {dataset}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
    if not dry_run:
        out.print(f"selected in {time.monotonic() - begin_s:.1f} s")


def _print_waiting(waiting: int, dataset: str) -> None:
    out.print(
        f"{waiting} accepted clips are in no shard yet: talkforge shard {dataset}",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip


def _print_unheard(decisions: int, dataset: str) -> None:
    """Say how many decisions of `review.parquet` the ledger does not follow yet, where there are any."""
    if decisions:
        out.print(
            f"{decisions} decisions of reviewers are not selected yet: talkforge select {dataset}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip


@command(BUILD, "talkforge shard set", "talkforge shard set -s shards.target_mb=256 -j 8")
def shard(
    dataset: DatasetArgument,
    settings: SettingsOption = [],  # noqa: B006
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
    base: BaseOption = "",
) -> None:
    """Cut what is now accepted into shards; measures nothing again."""
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset, base)
    described = load_dataset(store)
    config, _ = all_of(
        lambda: chosen_config(described, None, with_workers(settings, workers)),
        lambda: check_executor(executor, address, workers),
    )
    from talkforge.pipeline import jobs as job

    with Display(notes) as display, exclusive(store):
        ingested = load_ingested(store)
        display.show(Progress("selecting"))
        selection = job.select(store, described.model_copy(update={"config": config}), ingested)
        runner = executor_maker(executor, config, address)()
        try:
            selection = job.shard(store, load_dataset(store), selection, ingested, runner, display.show)
        finally:
            runner.close()
    summary(out, selection, dataset)
    _note_snapshots(dataset)


def _note_snapshots(dataset: str) -> None:
    """Which snapshot this is, and what the earlier ones take up beside it."""
    from talkforge.pipeline import snapshots
    from talkforge.pipeline.store import Store

    found = snapshots.describe(Store(dataset))
    for line in snapshot_notes(found, dataset, "://" in dataset):
        notes.print(line, soft_wrap=True, markup=False, highlight=False)


@command(LOOK, "talkforge report set", "talkforge report set --against set@3")
def report(
    dataset: DatasetArgument,
    against: Annotated[
        str,
        typer.Option(
            metavar="DATASET",
            help="Also write report/against.html: beside this data set or snapshot (SET@3).",
        ),
    ] = "",
) -> None:
    """Write the pages of report/ and report/statistics.json again."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    folder = job.report(store)
    out.print(f"{dataset}/{folder}/index.html", soft_wrap=True)
    if against:
        from talkforge.pipeline.compare import write_page

        out.print(f"{dataset}/{write_page(store, against)}", soft_wrap=True)


@command(LOOK, "talkforge verify set", "talkforge verify set --deep", "talkforge verify set --json")
def verify(
    dataset: DatasetArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next curate makes it again.")
    ] = False,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also compare a sample of clips with their source videos."),
    ] = False,
    clips: Annotated[
        int, typer.Option(min=0, metavar="N", help="Clips that --deep compares; 0: all.")
    ] = DEEP_CLIPS,
    base: BaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Check every file, checksum, member, shape and clock; exit 3 and name what is wrong.

    --deep decodes the source videos again and tells the largest error of frames and audio.
    """
    from talkforge.pipeline.dataset import exclusive
    from talkforge.pipeline.repair import repair as remove_damaged
    from talkforge.pipeline.store import Store
    from talkforge.pipeline.verify import verify as find_problems

    store = Store(dataset, base)
    if not store.exists("dataset.json") and not store.list("parts"):
        raise CommandError(f"{store.root}: no data set here (dataset.json is missing)")
    problems = find_problems(store)
    compared = _compare_with_sources(store, clips) if deep and not problems else None
    problems += compared.problems if compared else ()
    removed: list[str] = []
    if repair and problems:
        with exclusive(store, erasing=True):  # damage may be what an erasure has stopped at
            removed = remove_damaged(store, problems)
    if as_json:
        found = [{"path": problem.path, "what": problem.what} for problem in problems]
        document = {"dataset": dataset, "ok": not found, "problems": found, "removed": removed}
        print_json(document | ({"deep": compared.document()} if compared else {}))
    else:
        for problem in problems:
            out.print(f"{problem.path}: {problem.what}", soft_wrap=True, markup=False, highlight=False)
    if removed and not as_json:
        out.print(f"removed: {', '.join(removed)}; talkforge curate makes them again", soft_wrap=True)
    if deep and not as_json:
        out.print(compared.line() if compared else "deep: not compared, because of the damage")
    if problems:
        raise typer.Exit(DAMAGED)
    if not as_json:
        out.print(f"{dataset}: everything is as it should be", soft_wrap=True)


def _compare_with_sources(store: Store, num_clips: int) -> Deep:
    from talkforge.pipeline.deep import deep

    with Display(notes) as display:
        return deep(
            store, num_clips, lambda done, total: display.show(counted("comparing", done, total, "clips"))
        )


@command(
    LOOK, "talkforge snapshots set", "talkforge snapshots set --json", "talkforge snapshots set --keep 1"
)
def snapshots(
    dataset: DatasetArgument,
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Remove all but the last N and those with a tag."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Snapshots of the shards: number, time, size, tags; what each alone takes up.

    `curate` and `shard` make one where shards or ledger change, and keep `run.keep_snapshots` of them.
    """
    from talkforge.pipeline import snapshots as job
    from talkforge.pipeline.dataset import exclusive, load_dataset
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    load_dataset(store)
    removed: list[int] = []
    if keep is not None:
        with exclusive(store):
            removed = job.prune(store, keep)
    found = job.describe(store)
    if as_json:
        print_json({"dataset": dataset, "snapshots": list(map(snapshot_document, found)), "removed": removed})
        return
    if removed:
        out.print(f"removed: {', '.join(map(str, removed))}", highlight=False)
    snapshots_table(out, found)


@command(BUILD, "talkforge rollback set 3", "talkforge rollback set paper")
def rollback(dataset: DatasetArgument, which: SnapshotArgument) -> None:
    """Make an earlier snapshot the current one: its shards, its tables and its thresholds.

    What was measured and reviewed stays, and so does the snapshot that was the current one.
    """
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline import review, snapshots
    from talkforge.pipeline.dataset import exclusive, load_dataset
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    load_dataset(store)
    with Display(notes) as display, exclusive(store):
        snapshot = snapshots.roll_back(store, which)
        display.show(Progress("report"))
        job.report(store)
    out.print(snapshot_line(snapshot), highlight=False)
    _print_unheard(review.waiting(store), dataset)


@command(BUILD, "talkforge tag set 3 paper", "talkforge tag set paper --delete")
def tag(
    dataset: DatasetArgument,
    which: SnapshotArgument,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The name to give to it.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
) -> None:
    """Give a snapshot a name; it is kept as long as it has one."""
    if delete == (name is not None):
        raise CommandError("tag: expected a snapshot and a name for it, or a tag and --delete")
    from talkforge.pipeline import snapshots
    from talkforge.pipeline.dataset import exclusive, load_dataset
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    load_dataset(store)
    with exclusive(store):
        if name is None:
            snapshots.untag(store, which)
        else:
            out.print(f"{name}: {snapshot_line(snapshots.tag(store, which, name))}", highlight=False)


@command(LOOK, "talkforge inspect set 0f3a52b91c77_0_4000_t0 -o clip.mp4")
def inspect(
    dataset: DatasetArgument,
    clip: Annotated[
        str, typer.Argument(metavar="CLIP", help="Id of a clip, as in ledger.parquet, or how it begins.")
    ],
    to: VideoOutOption,
    base: BaseOption = "",
) -> None:
    """Draw box, landmarks, lip mask, mouth opening and loudness over a clip."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    job.inspect(Store(dataset, base), clip, to)
    out.print(str(to), soft_wrap=True)


def chosen_config(described: Dataset, name: str | None, settings: list[str], reset: bool = False) -> Config:
    """The data set's configuration with other thresholds, shards or run settings.

    Args:
        described: `dataset.json` of the data set.
        name: preset or file whose thresholds and shards are taken. Its measuring settings are not.
        settings: each overrides one value.
        reset: whether to begin with what the data set was made with.

    Raises:
        CommandError: a setting belongs to what was measured, or does not fit; names all that do not.
    """
    config = described.config
    if reset and described.original:
        config = config.model_copy(update=dict(described.original))
    if name:
        named = load_config(name)
        config = config.model_copy(update={"thresholds": named.thresholds, "shards": named.shards})
    wrong = [s for s in settings if s.partition(".")[0] not in ("thresholds", "shards", "run")]
    if wrong:
        raise CommandError(
            f"--set {', '.join(wrong)}: only thresholds, shards and run can change without measuring again"
        )
    return apply_settings(config.model_dump(mode="json"), settings)
