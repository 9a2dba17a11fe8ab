"""Commands with a page on which people look at clips: view."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import LOOK, command, notes, out
from talkforge.cli.options import BaseOption, DatasetArgument
from talkforge.schemas import extras, scratch

if TYPE_CHECKING:
    from talkforge.viewer.server import Server

PortOption = Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the page; 0: a free one.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


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


def serve(server: Server, open_page: bool) -> None:
    """Say where the page is, and answer it until interrupted."""
    out.print(server.url, soft_wrap=True, markup=False, highlight=False)
    out.file.flush()
    notes.print("Ctrl-C ends this", markup=False, highlight=False)
    if open_page:
        webbrowser.open(server.url)
    server.run()
