"""What commands that serve a page share: view, audit, studio."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import notes, out

if TYPE_CHECKING:
    from talkforge.local_page import Server

PortOption = Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the page; 0: a free one.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


def serve(server: Server, open_page: bool) -> None:
    """Say where the page is, and answer it until interrupted."""
    out.print(server.url, soft_wrap=True, markup=False, highlight=False)
    out.file.flush()
    notes.print("Ctrl-C ends this", markup=False, highlight=False)
    if open_page:
        webbrowser.open(server.url)
    server.run()
