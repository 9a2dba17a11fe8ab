"""Commands with a page on which people look at clips: view and audit."""

from __future__ import annotations

from typing import Annotated

import typer

from talkforge.cli.app import LOOK, command, out, print_json
from talkforge.cli.options import BaseOption, DatasetArgument, JsonOption
from talkforge.cli.output import audit_tables
from talkforge.cli.pages import OpenOption, PortOption, serve
from talkforge.schemas import extras, scratch
from talkforge.schemas.errors import CommandError


@command(LOOK, "talkforge view set", "talkforge view set --clip 0f3a52 --port 8000")
def view(
    dataset: DatasetArgument,
    clip: Annotated[
        str, typer.Option(metavar="CLIP", help="Begin with this clip: its id, or how it begins.")
    ] = "",
    port: PortOption = 0,
    open_page: OpenOption = False,
    base: BaseOption = "",
) -> None:
    """Watch clips with what was measured drawn in; keep, drop and label them by keys. Ctrl-C ends it.

    The page is served on this machine alone, at an address with a secret.
    """
    extras.require("view", "view")
    from talkforge.pipeline.review import find_clip, waiting
    from talkforge.pipeline.store import Store
    from talkforge.viewer.library import Library
    from talkforge.viewer.server import Mode, listen

    store = Store(dataset, base)
    with scratch.folder() as folder:
        library = Library(store, folder)
        first = find_clip(library.clip_ids, clip, store) if clip else ""
        serve(listen(library, Mode("view", f"Clips of {dataset}", first), port), open_page)
    if decisions := waiting(store):
        out.print(
            f"{decisions} decisions wait: talkforge select {dataset}",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip


@command(
    LOOK,
    "talkforge audit set",
    "talkforge audit set --clips 200 --seed 1",
    "talkforge audit set --result",
    "talkforge audit set --result --json",
)
def audit(
    dataset: DatasetArgument,
    clips: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw a new sample of N clips; 100 where there is none yet."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw a new sample with this seed; 0 where there is none yet.")
    ] = None,
    result: Annotated[
        bool, typer.Option("--result", help="Print what the labels say of the rules so far.")
    ] = False,
    port: PortOption = 0,
    open_page: OpenOption = False,
    base: BaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Label a random sample of clips by keys, and learn how well each rule judges. Ctrl-C ends it.

    Labels stay in the data set: the same command goes on where it was ended, and the report shows the result.
    """
    if result and not (clips is None and seed is None):
        raise CommandError("--result: goes without --clips and --seed")
    if as_json and not result:
        raise CommandError("--json: goes with --result")
    from talkforge.pipeline import audit as job
    from talkforge.pipeline.dataset import load_dataset
    from talkforge.pipeline.store import Store

    store = Store(dataset, base)
    load_dataset(store)
    if result:
        found = job.result(store)
        if as_json:
            print_json({"dataset": dataset, **found.document()})
        else:
            audit_tables(out, found)
        return
    extras.require("view", "audit")
    from talkforge.viewer.library import Library
    from talkforge.viewer.server import Mode, listen

    rows = job.read(store)
    if not rows or clips is not None or seed is not None:
        rows = job.draw(store, clips or job.NUM_CLIPS, seed or 0)
    with scratch.folder() as folder:
        library = Library(store, folder, job.order(rows))
        serve(listen(library, Mode("audit", f"Audit of {dataset}"), port), open_page)
    labelled = sum(row.label != "none" for key in job.order(rows) if (row := library.reviews().get(key)))
    out.print(
        f"{labelled} of {len(job.order(rows))} clips have a label: talkforge audit {dataset} --result",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
