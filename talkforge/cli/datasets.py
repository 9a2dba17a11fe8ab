"""Commands that build a data set and look at it: curate, select, shard, status, report, verify, inspect."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from talkforge.cli.app import BUILD, LOOK, all_of, command, notes, out, print_json
from talkforge.cli.options import (
    AddressOption,
    CurateConfigOption,
    DatasetArgument,
    ExecutorOption,
    JsonOption,
    SettingsOption,
    VideoOutOption,
    WorkersOption,
    check_executor,
    executor_maker,
    with_workers,
)
from talkforge.cli.output import fetching, measuring, progress_line, summary
from talkforge.display import Display
from talkforge.schemas.config import Config, apply_settings, load_config
from talkforge.schemas.errors import CommandError


@command(
    BUILD,
    "talkforge curate videos/ --out set",
    "talkforge curate videos/ list.csv -o set -c offline -s thresholds.min_face_px=128 -j 8",
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
) -> None:
    """Measure videos, choose clips, cut them into shards and write the report. Resumes."""
    resolved, _ = all_of(
        lambda: load_config(config, with_workers(settings, workers)),
        lambda: check_executor(executor, address, workers),
    )
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    with Display(notes) as display:
        selection = job.curate(
            inputs,
            Store(dataset),
            resolved,
            executor_maker(executor, resolved, address),
            limit,
            lambda state: display.show(measuring(state)),
            lambda step: display.show(fetching(step)),
        )
    summary(out, selection, dataset)


@command(LOOK, "talkforge status set", "talkforge status set --json")
def status(dataset: DatasetArgument) -> None:
    """What is done, what is left, and what was kept so far."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    state = job.progress(store, load_dataset(store).config)
    out.print(f"{len(load_ingested(store))} inputs; {progress_line(state)}", soft_wrap=True, highlight=False)


@command(BUILD, "talkforge select set -s thresholds.min_sync_confidence=3")
def select(dataset: DatasetArgument, settings: SettingsOption = []) -> None:  # noqa: B006
    """Apply other thresholds to what was measured; decodes nothing."""
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    begin_s = time.monotonic()
    config = _reselected(described.config, settings)
    from talkforge.pipeline import jobs as job

    with exclusive(store):
        selection = job.select(store, described.model_copy(update={"config": config}), load_ingested(store))
        job.report(store)
    summary(out, selection, dataset)
    waiting = sum(row.accepted and row.shard is None for row in selection.rows)
    if waiting:
        out.print(f"{waiting} accepted clips are in no shard yet: talkforge shard {dataset}")
    out.print(f"selected in {time.monotonic() - begin_s:.1f} s")


@command(BUILD, "talkforge shard set", "talkforge shard set -s shards.target_mb=256 -j 8")
def shard(
    dataset: DatasetArgument,
    settings: SettingsOption = [],  # noqa: B006
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
) -> None:
    """Cut what is now accepted into shards; measures nothing again."""
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    config, _ = all_of(
        lambda: _reselected(described.config, with_workers(settings, workers)),
        lambda: check_executor(executor, address, workers),
    )
    from talkforge.pipeline import jobs as job

    with exclusive(store):
        ingested = load_ingested(store)
        selection = job.select(store, described.model_copy(update={"config": config}), ingested)
        runner = executor_maker(executor, config, address)()
        try:
            selection = job.shard(store, load_dataset(store), selection, ingested, runner)
        finally:
            runner.close()
    summary(out, selection, dataset)


@command(LOOK, "talkforge report set")
def report(dataset: DatasetArgument) -> None:
    """Write report/index.html and report/statistics.json again."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    folder = job.report(Store(dataset))
    out.print(f"{dataset}/{folder}/index.html", soft_wrap=True)


@command(LOOK, "talkforge verify set", "talkforge verify set --json")
def verify(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Check every checksum, member, shape and clock; exit 1 and name what is wrong."""
    from talkforge.pipeline.store import Store
    from talkforge.pipeline.verify import verify as find_problems

    store = Store(dataset)
    if not store.exists("dataset.json") and not store.list("parts"):
        raise CommandError(f"{store.root}: no data set here (dataset.json is missing)")
    problems = find_problems(store)
    if as_json:
        found = [{"path": problem.path, "what": problem.what} for problem in problems]
        print_json({"dataset": dataset, "ok": not found, "problems": found})
    else:
        for problem in problems:
            out.print(f"{problem.path}: {problem.what}", soft_wrap=True, markup=False, highlight=False)
    if problems:
        raise typer.Exit(1)
    if not as_json:
        out.print(f"{dataset}: everything is as it should be", soft_wrap=True)


@command(LOOK, "talkforge inspect set 0f3a52b91c77_0_4000_t0 -o clip.mp4")
def inspect(
    dataset: DatasetArgument,
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="Id of a clip, as in ledger.parquet.")],
    to: VideoOutOption,
) -> None:
    """Draw box, landmarks, lip mask, mouth opening and loudness over a clip."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    job.inspect(Store(dataset), clip, to)
    out.print(str(to), soft_wrap=True)


def _reselected(config: Config, settings: list[str]) -> Config:
    """The configuration with other thresholds, shards or run settings.

    Raises:
        CommandError: a setting belongs to what was measured, or does not fit; names all that do not.
    """
    wrong = [s for s in settings if s.partition(".")[0] not in ("thresholds", "shards", "run")]
    if wrong:
        raise CommandError(
            f"--set {', '.join(wrong)}: only thresholds, shards and run can change without measuring again"
        )
    return apply_settings(config.model_dump(mode="json"), settings)
