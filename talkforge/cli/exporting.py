"""Commands that hand things on: data sets in the layouts of other tools, and the weights of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from talkforge.cli.app import HAND_ON, command, notes, out, print_json
from talkforge.cli.options import JsonOption
from talkforge.display import Display
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError

WEIGHTS = "weights"
"""What `--as` is for a run of training."""


@command(
    HAND_ON,
    "talkforge export set --as videox --out videox/",
    "talkforge export set --as energon",
    "talkforge export set --as musubi --out musubi/ --split train --snapshot 3",
    "talkforge export run2 --out fantasytalking.ckpt",
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
            help="weights (of a run), or of a data set: energon, wids, huggingface, videox, diffsynth, "
            "musubi, stableavatar; see docs/exports.md.",
        ),
    ] = WEIGHTS,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR|FILE",
            help="Folder to write to; energon and wids lie beside the shards without it. For weights a name "
            "in .ckpt, .pt or .safetensors.",
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
    """Write a data set as other tools read it, or a run's audio weights as they were published. Resumes."""
    if layout == WEIGHTS:
        given = {"--split": split, "--snapshot": snapshot, "--prompt": prompt, "--workers": workers}
        _export_weights(Path(source), to, [name for name, value in given.items() if value is not None])
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
    out.print(f"{done.place}: {counts} clips as {layout}", soft_wrap=True, markup=False, highlight=False)


def _export_weights(run: Path, to: Path | None, others: list[str]) -> None:
    if (run / "dataset.json").is_file():
        raise CommandError(f"{run}: is a data set; expected a format for it (--as)")
    if others:
        raise CommandError(f"{', '.join(others)}: expected a data set and --as FORMAT")
    if to is None:
        raise CommandError("--out: expected a name in .ckpt, .pt or .safetensors")
    extras.require("train", "export")
    from talkforge.training.train import run_export

    run_export(run, to)
    out.print(str(to), soft_wrap=True)
