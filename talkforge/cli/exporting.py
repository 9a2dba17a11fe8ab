"""Commands that hand things on: data sets in other layouts, weights of a run, answers of the tables."""

from __future__ import annotations

import csv
import math
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from talkforge.cli.app import HAND_ON, LOOK, command, notes, out, print_json
from talkforge.cli.options import DatasetArgument, JsonOption, SettingsOption
from talkforge.cli.output import difference
from talkforge.display import Display
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError
from talkforge.schemas.progress import Progress

WEIGHTS = ("weights", "adapters", "lora", "lora-comfyui", "transformer")
"""What `--as` may be for a run of training; `training.run.exports.LAYOUTS`, which this does not import."""

ROWS_SHOWN = 200
"""Most rows of an answer that a table on the terminal shows."""


@command(
    HAND_ON,
    "talkforge export set --as videox --out videox/",
    "talkforge export set --as energon",
    "talkforge export set --as musubi --out musubi/ --split train --snapshot 3",
    "talkforge export run2 --out fantasytalking.ckpt",
    "talkforge export run2 --as lora-comfyui --out lora.safetensors",
)
def export(
    source: Annotated[
        str, typer.Argument(metavar="DATASET|RUN", help="A data set, or a run of training for its weights.")
    ],
    layout: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORMAT",
            help="Of a run: weights (audio weights as published), adapters (all added networks), lora, "
            "lora-comfyui, transformer. Of a data set: energon, wids, huggingface, videox, diffsynth, "
            "musubi, stableavatar, fastvideo, automodel, fiftyone, rerun, lance; see docs/exports.md.",
        ),
    ] = "weights",
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR|FILE",
            help="Folder to write to; energon and wids lie beside the shards without it. Of a run a name "
            "in .safetensors, .ckpt or .pt; for transformer a new folder.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only train or validation.")] = None,
    snapshot: Annotated[
        str | None, typer.Option(metavar="N|TAG", help="Of this snapshot; without it the current one.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Prompt of clips without a text, for trainers.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, metavar="N", help="Threads; one for each core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a data set as other tools read it, or the weights of a run. Resumes."""
    if layout in WEIGHTS:
        given = {"--split": split, "--snapshot": snapshot, "--prompt": prompt, "--workers": workers}
        _export_weights(
            Path(source), to, layout, [name for name, value in given.items() if value is not None]
        )
        return
    from talkforge.pipeline import export as job
    from talkforge.pipeline.exports.trainers import PROMPT
    from talkforge.pipeline.store import Store

    options = job.Options(
        out=to,
        split=split,
        snapshot=snapshot,
        prompt=PROMPT if prompt is None else prompt,
        workers=workers or os.cpu_count() or 1,
    )
    with Display(notes) as display:
        done = job.export(Store(source), layout, options, display.show)
    if as_json:
        print_json({"place": done.place, **done.export.model_dump(mode="json"), "notes": done.notes})
        return
    for note in done.notes:
        notes.print(note, soft_wrap=True, markup=False, highlight=False)
    counts = ", ".join(f"{count} {name}" for name, count in done.export.clips.items())
    said = f"{done.place}: {counts} clips for {job.FORMATS[layout]}"
    out.print(said, soft_wrap=True, markup=False, highlight=False)


@command(
    LOOK,
    'talkforge sql set "select code, count(*) from reasons group by 1 order by 2 desc"',
    'talkforge sql set "select person_id, sum(duration_s) as s from clips group by 1" --csv > people.csv',
    "talkforge sql set \"select * from ledger where clip_id like '0f3a%'\" --snapshot 3 --json",
)
def sql(
    dataset: DatasetArgument,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="SQL of DuckDB; - reads it from standard input.")
    ],
    snapshot: Annotated[
        str | None, typer.Option(metavar="N|TAG", help="Tables of this snapshot, not of the last selection.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the tables of a data set; changes nothing.

    Tables: ledger, people, sources, failures; transcripts, captions and review where there are any. Views:
    clips (accepted ones) and reasons (clip_id, code, detail). Columns: docs/dataset.md.
    """
    if as_csv and as_json:
        raise CommandError("--csv: goes without --json")
    from talkforge.pipeline import sql as job
    from talkforge.pipeline.store import Store

    answer = job.ask(Store(dataset), sys.stdin.read() if query == "-" else query, snapshot)
    if as_json:
        rows = [dict(zip(answer.columns, map(_plain, row), strict=True)) for row in answer.rows]
        print_json({"dataset": dataset, "columns": answer.columns, "types": answer.types, "rows": rows})
        return
    if as_csv:
        writer = csv.writer(out.file, lineterminator="\n")
        writer.writerows([answer.columns, *answer.rows])
        return
    table = Table(box=None, pad_edge=False)
    for name in answer.columns:
        table.add_column(Text(name), overflow="fold")
    for row in answer.rows[:ROWS_SHOWN]:
        table.add_row(*(Text("" if value is None else str(_plain(value))) for value in row))
    if answer.columns:
        out.print(table)
    if (left := len(answer.rows) - ROWS_SHOWN) > 0:
        notes.print(f"and {left} more rows; --csv and --json print all", highlight=False)


@command(
    LOOK,
    "talkforge diff set@3 set",
    "talkforge diff old/ new/ --json",
    "talkforge diff set -s thresholds.min_face_px=96",
)
def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A data set, or a snapshot of one as SET@3 or SET@TAG.")
    ],
    after: Annotated[
        str | None, typer.Argument(metavar="B", help="Another one; without it A with other thresholds.")
    ] = None,
    settings: SettingsOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """What came, what went and why, between two data sets, snapshots or choices of thresholds."""
    if (after is None) == (not settings):
        raise CommandError("diff: expected another data set, or other thresholds (--set)")
    from talkforge.cli.datasets import chosen_config
    from talkforge.pipeline import compare as job
    from talkforge.pipeline.dataset import load_dataset
    from talkforge.pipeline.store import Store

    with Display(notes) as display:
        display.show(Progress("comparing"))
        if after is None:
            config = chosen_config(load_dataset(Store(before)), None, settings)
            sides = job.read_side(before), job.choose_side(before, config)
        else:
            sides = job.read_side(before), job.read_side(after)
        found = job.compare(*sides)
    if as_json:
        print_json(found)
    else:
        difference(out, found)


def _plain(value: object) -> object:
    """A value as JSON has it: times and decimals as text and number."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _export_weights(run: Path, to: Path | None, layout: str, others: list[str]) -> None:
    if (run / "dataset.json").is_file():
        raise CommandError(f"{run}: is a data set; expected a format for it (--as)")
    if others:
        raise CommandError(f"{', '.join(others)}: expected a data set and --as FORMAT")
    if to is None:
        raise CommandError("--out: expected a name in .safetensors, .ckpt or .pt, or a new folder")
    extras.require("train", "export")
    from talkforge.training.run.exports import run_export

    run_export(run, to, layout)
    out.print(str(to), soft_wrap=True)
