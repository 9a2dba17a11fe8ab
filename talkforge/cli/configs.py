"""The commands `config list`, `config show` and `config check`."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.table import Table

from talkforge.cli.app import SETUP, app, command, out
from talkforge.cli.options import SettingsOption
from talkforge.schemas.config import Config, load_config
from talkforge.schemas.errors import CommandError
from talkforge.schemas.presets import find_config, presets
from talkforge.training.config import TrainConfig, load_train_config
from talkforge.training.config import check as check_training

config = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(
    config, name="config", rich_help_panel=SETUP, help="Presets and configuration files: list, show, check."
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME|FILE", help="Preset, or a YAML file.")]


@command(SETUP, "talkforge config list", group=config, name="list")
def list_() -> None:
    """List the presets and what each is for."""
    table = Table("preset", "for", "", box=None, pad_edge=False)
    for name, preset in presets().items():
        table.add_row(name, preset.kind, preset.summary)
    out.print(table)


@command(SETUP, "talkforge config show offline > mine.yaml", group=config)
def show(name: NameArgument) -> None:
    """Print a preset, to read it or to begin a file of your own with it."""
    out.file.write(find_config(name).text())


@command(
    SETUP, "talkforge config check mine.yaml", "talkforge config check mine.yaml --for train", group=config
)
def check(
    name: NameArgument,
    purpose: Annotated[
        str | None, typer.Option("--for", metavar="curate|train", help="What a file of yours configures.")
    ] = None,
    settings: SettingsOption = [],  # noqa: B006
) -> None:
    """Check every key and value of a configuration; exit 2 and name what is wrong."""
    if purpose not in (None, "curate", "train"):
        raise CommandError(f"--for {purpose}: expected curate or train")
    found = find_config(name)
    kind = purpose or found.kind or _kind_of(found.text())
    if kind == "curate":
        load_config(name, settings)
    elif kind == "train":
        loaded = load_train_config(name, settings)
        out_of_run = loaded.run.out or "RUN"  # each run has its own: a file need not name one
        check_training(loaded.model_copy(update={"run": loaded.run.model_copy(update={"out": out_of_run})}))
    else:
        raise CommandError(f"{found}: is read by accelerate, which checks it")
    out.print(f"{name}: a valid configuration for {kind}", soft_wrap=True, markup=False, highlight=False)


def _kind_of(text: str) -> str:
    """What a YAML text configures, by the names of its sections."""
    sections = set(re.findall(r"^(\w+)\s*:", text, re.MULTILINE))
    return "train" if sections & (TrainConfig.model_fields.keys() - Config.model_fields.keys()) else "curate"
