"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.schemas.config import Config
from talkforge.schemas.errors import CommandError

if TYPE_CHECKING:
    from talkforge.pipeline.executor import Executor

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder or fsspec URI of a data set.")
]
SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Number or tag of a snapshot, see `talkforge snapshots`.")
]
SettingsOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the configuration.",
    ),
]
CurateConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="NAME|FILE", help="Preset (offline, curate), or a YAML file."),
]
TrainConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="NAME|FILE", help="Preset, such as wan-14b-stage1, or a YAML file."
    ),
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="ray: worker processes; inline: everything in this process.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster to use, such as auto; without it Ray starts on this machine.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", "-j", min=1, metavar="N", help="Worker processes; one for each core if not given."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document; see docs/cli.md.")]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="DIR|URI",
        help="Name inputs in the data set relative to this; give it again in each run (docs/inputs.md).",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; write nothing.")]
VideoOutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.mp4", help="Video to write.")]


def with_workers(settings: list[str], workers: int | None) -> list[str]:
    """The settings, and `--workers` as one of them."""
    return settings if workers is None else [*settings, f"run.workers={workers}"]


def check_executor(name: str, address: str | None, workers: int | None) -> None:
    """Refuse what does not go together.

    Raises:
        CommandError: names everything that does not.
    """
    problems = []
    if name not in ("ray", "inline"):
        problems.append(f"--executor {name}: expected ray or inline")
    if name == "inline" and address:
        problems.append("--address: goes with --executor ray")
    if name == "inline" and workers not in (None, 1):
        problems.append(f"--workers {workers}: --executor inline is one process")
    if problems:
        raise CommandError("; ".join(problems))


def executor_maker(name: str, config: Config, address: str | None) -> Callable[[], Executor]:
    """What makes the chosen executor, when it is needed."""

    def make() -> Executor:
        from talkforge.pipeline.executor import make_executor

        return make_executor(name, config, address)

    return make
