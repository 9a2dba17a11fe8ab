"""What a person sees on the terminal: progress while measuring, and a summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from talkforge.curation.weights.download import FetchProgress
from talkforge.curation.weights.registry import ModelRow
from talkforge.pipeline.jobs import MeasureProgress
from talkforge.pipeline.ledger import Selection
from talkforge.schemas.records import SourceRow

LINE_EVERY_S = 30.0
"""Where the output is no terminal, a line of progress is written at most this often, s."""


class Watch:
    """Shows progress: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), console=console)
        self._task = self._bar.add_task("measuring", total=None)
        self._last_line_s = float("-inf")

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, state: MeasureProgress) -> None:
        """Take over a new state."""
        text = progress_line(state)
        self._bar.update(self._task, description=text, completed=state.done_s, total=state.total_s or 1)
        now_s = time.monotonic()
        finished = state.parts_done == state.parts
        if not self._console.is_terminal and (finished or now_s - self._last_line_s >= LINE_EVERY_S):
            self._last_line_s = now_s
            self._console.print(text, soft_wrap=True, highlight=False)


class CountWatch:
    """Says how many clips are done, now and then, and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line_s = float("-inf")

    def show(self, done: int, total: int) -> None:
        """Take over a new count."""
        now_s = time.monotonic()
        if total and (done == total or now_s - self._last_line_s >= LINE_EVERY_S):
            self._last_line_s = now_s
            self._console.print(f"clips {done}/{total}", highlight=False)


class Fetching:
    """Shows weights as they come: a live bar for each file on a terminal, elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._last_line_s = float("-inf")

    def __enter__(self) -> Fetching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, step: FetchProgress) -> None:
        """Take over how far a file is."""
        new = step.what not in self._tasks
        if new:
            self._tasks[step.what] = self._bar.add_task(step.what.rpartition("/")[2], total=None)
        if self._console.is_terminal:
            self._bar.start()
            self._bar.update(self._tasks[step.what], completed=step.done_bytes, total=step.total_bytes)
            return
        now_s = time.monotonic()
        whole = step.done_bytes == step.total_bytes
        if new or whole or now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            self._console.print(fetching_line(step), soft_wrap=True, highlight=False, markup=False)


def fetching_line(step: FetchProgress) -> str:
    """What is fetched, and how much of it is here, where that is known."""
    if not step.done_bytes:
        return f"fetching {step.what}"
    of = "" if step.total_bytes is None else f" of {step.total_bytes / 1e6:.1f}"
    return f"fetching {step.what}: {step.done_bytes / 1e6:.1f}{of} MB"


WEIGHTS_WIDTH = 100
"""Columns that the table of weights takes at the most."""


def weights_table(console: Console, rows: Iterable[ModelRow]) -> None:
    """Which weights there are: what for, whence, on what terms, and whether they are here."""
    titles = [Column(title, no_wrap=True) for title in ("name", "commercial", "here")]
    table = Table(*titles, Column("MB", justify="right"), Column("", overflow="fold"), box=None)
    for row in rows:
        state = "yes" if row.present else ("no" if not row.found else "refused")
        lines = [row.needed_by, row.licence, row.source, row.found, row.note]
        about = Text("\n".join(line for line in lines if line))
        commercial = "yes" if row.commercial_use else "no"
        table.add_row(row.name, commercial, state, f"{row.num_bytes / 1e6:.1f}", about)
    console.print(table, width=min(console.width, WEIGHTS_WIDTH))


def progress_line(state: MeasureProgress) -> str:
    """Parts, hours in, hours kept, real-time factor, time left: in one line."""
    left = "" if state.left_s is None else f", {hours(state.left_s)} left"
    pace = f", {state.real_time_factor:.2f}x real time" if state.measured_s else ""
    return (
        f"parts {state.parts_done}/{state.parts}, in {hours(state.done_s)} of {hours(state.total_s)}, "
        f"kept {hours(state.kept_s)}{pace}{left}"
    )


def summary(console: Console, selection: Selection, dataset: str) -> None:
    """What was kept, what was not and why, and where the report is."""
    accepted = [row for row in selection.rows if row.accepted]
    rejected = [row for row in selection.rows if not row.accepted and row.failure is None]
    failed = [row for row in selection.rows if row.failure is not None]
    kept_s = sum(row.duration_s for row in accepted)
    in_s = sum(row.duration_s for row in selection.sources if row.status != "duplicate")
    states = Counter(row.status for row in selection.sources)
    console.print(
        f"{len(selection.sources)} inputs, {hours(in_s)}: "
        + ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(states.items()))
    )
    console.print(
        f"{len(selection.rows)} candidate clips: {len(accepted)} accepted ({hours(kept_s)}), "
        f"{len(rejected)} rejected, {len(failed)} failed"
    )
    reasons = Counter(code for row in rejected for code in row.reasons)
    if reasons:
        table = Table("clips", "reason", box=None, pad_edge=False)
        for code, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(str(count), code)
        console.print(table)
    for source in selection.sources:
        if source.status in ("failed", "no_candidates"):
            console.print(
                f"{source.status.replace('_', ' ')}: {source.uri!r}: {told(source)}",
                soft_wrap=True, markup=False, highlight=False,
            )  # fmt: skip
    console.print(f"report: {dataset}/report/index.html", soft_wrap=True, markup=False, highlight=False)


def told(source: SourceRow) -> str:
    """Why an input gave nothing, without its name, which messages repeat."""
    return source.reason.replace(f"{source.uri!r}: ", "")


def hours(seconds: float) -> str:
    """A length of time for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.2f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
