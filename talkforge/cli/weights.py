"""The command `models`: which weights there are, and fetching them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from talkforge.cli.app import SETUP, command, notes, out, print_json
from talkforge.cli.options import JsonOption
from talkforge.cli.output import fetching, weights_table
from talkforge.display import Display
from talkforge.schemas.errors import CommandError


@command(SETUP, "talkforge models", "talkforge models --fetch scrfd w600k_r50", "talkforge models --json")
def models(
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME...]", help="Only these.", show_default=False)
    ] = [],  # noqa: B006
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what is named now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Which weights there are: source, licence, commercial use, present or not."""
    from talkforge.curation.weights import registry

    if fetch and not names:
        raise CommandError(f"--fetch: expected the names of models: {', '.join(registry.MODELS)}")
    unknown = [name for name in names if name not in registry.MODELS]
    if unknown:
        raise CommandError(f"no model is called {', '.join(unknown)}; known: {', '.join(registry.MODELS)}")
    if fetch:
        with Display(notes) as display:
            for name in names:
                path = registry.present(name) or registry.fetch(
                    name, allow_web=True, on_progress=lambda step: display.show(fetching(step))
                )
                if not as_json:
                    out.print(f"{name}: {path}", soft_wrap=True, markup=False, highlight=False)
        if not as_json:
            return
    rows = [row for row in registry.describe() if not names or row.name in names]
    if as_json:
        print_json({"models": [dataclasses.asdict(row) for row in rows]})
    else:
        weights_table(out, rows)
