"""The progress display of all commands: a live bar for each phase on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from talkforge.schemas.progress import Progress

log = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
"""Where the output is no terminal, a phase writes a line at most this often, s."""


def plain_console(**options: Any) -> Console:
    """A console that prints paths and messages as they are, whatever brackets or `:names:` are in them.

    Args:
        options: of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, **options)


class Display:
    """Shows how far a command is, phase by phase.

    On a terminal each phase has a bar with its elapsed time. Elsewhere each phase writes a line when it
    begins, a line every `LINE_EVERY_S`, and a line when it is done.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal and not console.quiet
        columns = (
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        self._bars = Bars(*columns, console=console)
        self._task: TaskID | None = None
        self._phase = ""
        self._begin_s = time.monotonic()
        self._last_line, self._last_line_s = "", float("-inf")

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def show(self, state: Progress) -> None:
        """Show a new state."""
        new = state.phase != self._phase
        if self._live:
            self._show_bar(state, new)
        self._phase = state.phase
        line = f"{state.phase}: {state.detail}" if state.detail else state.phase
        now_s = time.monotonic()
        finished = state.total is not None and state.done >= state.total
        due = new or finished or now_s - self._last_line_s >= LINE_EVERY_S
        if not due or line == self._last_line:
            return
        self._last_line, self._last_line_s = line, now_s
        log.debug("%s", line)
        if not self._live:
            elapsed = timedelta(seconds=round(now_s - self._begin_s))
            self._console.print(f"[{elapsed}] {line}", soft_wrap=True, highlight=False, markup=False)

    def _show_bar(self, state: Progress, new: bool) -> None:
        if new:
            if self._task is not None:
                self._bars.stop_task(self._task)
            self._task = self._bars.add_task("", total=None, phase=state.phase)
            self._bars.start()
        assert self._task is not None
        self._bars.update(self._task, description=state.detail, completed=state.done, total=state.total)
