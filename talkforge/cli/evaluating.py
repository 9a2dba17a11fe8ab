"""Commands that say how good generated videos are: evaluate and ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from talkforge.cli.app import TRAIN, command, notes, out, print_json
from talkforge.cli.options import (
    AddressOption,
    ExecutorOption,
    JsonOption,
    SettingsOption,
    check_executor,
)
from talkforge.display import Display
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping


@command(
    TRAIN,
    "talkforge evaluate --generated videos/ --reference true/ --out report",
    "talkforge evaluate --run runs/stage2 --set set --out report",
    "talkforge evaluate --generated videos/ --reference set --out report --against other-report",
    "talkforge evaluate --self-test --reference true/ --out report",
)
def evaluate(
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the report.")],
    generated: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Generated videos, named as the true ones.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR|DATASET", help="True videos, or a data set: clips by their id."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Generate first: clips of --set by this run's model.")
    ] = None,
    dataset: Annotated[
        str, typer.Option("--set", metavar="DATASET", help="With --run: data set whose clips are generated.")
    ] = "",
    clips: Annotated[int, typer.Option(min=1, metavar="N", help="With --run: most clips.")] = 50,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another report, compared with this one video by video."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Only the self-test, on the true videos of --reference.")
    ] = False,
    self_test_videos: Annotated[
        int, typer.Option(min=0, metavar="N", help="True videos of the self-test; 0: none.")
    ] = 4,
    max_s: Annotated[
        float, typer.Option(min=0.2, metavar="S", help="Longest span of a video that is compared, s.")
    ] = 20.0,
    identity: Annotated[
        str, typer.Option(help="Face embedder: auto, none, or one of docs/identity.md.")
    ] = "auto",
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes that measure videos.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure generated videos against true ones: sync, lips, identity, motion, FID.

    Writes a report in HTML and tables. Goes on where it was interrupted.
    """
    from talkforge.training.evaluate import job

    settings = job.Settings(max_s, self_test_videos, identity)
    if (run is None) != (not dataset):
        raise CommandError("--run and --set go together")
    if self_test:
        if generated is not None or run is not None or against is not None or reference is None:
            raise CommandError(
                "--self-test: goes with --reference, and without --generated, --run and --against"
            )
        with Display(notes) as display:
            tested = job.run_self_test(reference, to, settings, display.show)
        if as_json:
            print_json(tested)
        else:
            checks_table(tested)
        return
    skipped: dict[str, str] = {}
    if run is not None:
        if generated is not None or reference is not None:
            raise CommandError("--run: generates both, without --generated and --reference")
        extras.require("train", "evaluate --run")
        from talkforge.training.generate.of_dataset import generate_clips

        generated, reference = to / "generated", to / "truth"
        with Display(notes) as display:
            skipped = generate_clips(run, dataset, generated, reference, clips, show=display.show)
    if generated is None or reference is None:
        raise CommandError("expected --generated and --reference, --run and --set, or --self-test")
    for key, why in skipped.items():
        line(f"not generated: {key}: {why}")
    with Display(notes) as display:
        document = job.evaluate(
            generated, reference, to, settings, against=against, workers=workers, show=display.show
        )
    if as_json:
        print_json({key: value for key, value in document.items() if key != "rows"})
        return
    metrics_table(document)
    if document["self_test"]:
        checks_table(document["self_test"])
    out.print(f"report: {to}/index.html", soft_wrap=True, markup=False, highlight=False)


def metrics_table(document: Mapping[str, Any]) -> None:
    """Means of generated and true videos, and what is left out, on the terminal."""
    from talkforge.training.evaluate.report import DIRECTIONS, interval

    table = Table(box=None, pad_edge=False)
    for title in ("metric", "better", "generated (95 %)", "true", "difference (95 %)", "videos"):
        table.add_column(title, justify="left" if title in ("metric", "better") else "right", no_wrap=True)
    for one in document["metrics"]:
        if one["why_not"]:
            continue
        table.add_row(
            one["label"],
            DIRECTIONS[one["better"]],
            interval(one["generated"]),
            interval({**one["truth"], "low": None}) if one["truth"] else "–",
            interval(one["difference"]),
            str(one["generated"]["count"]),
        )
    out.print(table)
    reasons: dict[str, list[str]] = {}
    for one in document["metrics"]:
        if one["why_not"]:
            reasons.setdefault(one["why_not"], []).append(one["label"])
    for why, labels in reasons.items():
        line(f"not computed: {', '.join(labels)}: {why}")
    for key, why in document["failed"].items():
        line(f"failed: {key}: {why}")
    for name, why in document["unpaired"].items():
        line(f"left out: {name}: {why}")
    if document["against"]:
        line(f"against {document['against']['name']}: {document['against']['videos']} videos in both")
        for one in document["against"]["metrics"]:
            line(f"  {one['name']}: {interval(one['difference'])}, better by {interval(one['better'])}")


def checks_table(tested: Mapping[str, Any]) -> None:
    """The checks of a self-test, on the terminal."""
    from talkforge.training.evaluate.report import number

    passed = [check["passed"] for check in tested["checks"]]
    line(
        f"self-test on {len(tested['videos'])} true videos: {passed.count(True)} of {len(passed)} as expected"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("video", "metric", "expected", "found", "compared with", ""):
        table.add_column(title, no_wrap=True)
    for check in tested["checks"]:
        state = {True: "as expected", False: "NOT SO", None: "not measured"}[check["passed"]]
        values = number(check["found"]), number(check["compared"])
        table.add_row(check["version"], check["metric"], check["expected"], *values, state)
    out.print(table)


def line(text: str) -> None:
    """One line as it is."""
    out.print(text, soft_wrap=True, markup=False, highlight=False)


@command(
    TRAIN,
    "talkforge ablate tiny --set data.shards=set/shards/train-000000.tar --dataset set --out ablation",
    "talkforge ablate wan-14b --dataset set --out ablation --address auto --only full --only clip_only",
)
def ablate(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="Presets or files: tiny is tiny-stage1 and tiny-stage2."),
    ],
    to: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of runs, videos and tables.")
    ],
    dataset: Annotated[
        str, typer.Option(metavar="DATASET", help="Data set whose clips are generated and evaluated.")
    ],
    settings: SettingsOption = [],  # noqa: B006
    clips: Annotated[int, typer.Option(min=1, metavar="N", help="Most clips.")] = 20,
    stage1_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 1; the preset's.")] = None,
    stage2_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 2; the preset's.")] = None,
    only: Annotated[
        list[str], typer.Option(metavar="VARIANT", help="Only this variant; may be given again.")
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu or a torch device.")] = "auto",
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, metavar="N", help="Trainings at once; one for each GPU."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate the paper's ablation: clip or frame level only, without identity, motion 0.1 to 1.

    The same command goes on where it was interrupted.
    """
    extras.require("train", "ablate")
    check_executor(executor, address, workers)
    from talkforge.training.ablate import Ablation, run_ablation, table_rows

    asked = Ablation(
        config, tuple(settings), dataset, to, clips, (stage1_steps, stage2_steps), tuple(only), device
    )
    with Display(notes) as display:
        document = run_ablation(
            asked, workers=workers, address=address, inline=executor == "inline", show=display.show
        )
    if as_json:
        print_json(document)
        return
    first, *rows = table_rows(document)
    table = Table(*first, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for name, why in document["left_out"].items():
        line(f"left out: {name}: {why}")
    line(f"tables: {to}/ablation.csv, ablation.tex")
