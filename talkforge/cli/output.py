"""What commands print: tables and summaries for people, and progress in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from talkforge.display import hours
from talkforge.schemas.progress import Progress

if TYPE_CHECKING:
    from talkforge.curation.weights.download import FetchProgress
    from talkforge.curation.weights.registry import ModelRow
    from talkforge.pipeline.jobs import MeasureProgress
    from talkforge.pipeline.ledger import Selection
    from talkforge.schemas.records import SourceRow

WEIGHTS_WIDTH = 100
"""Columns that the table of weights takes at the most."""


def fetching(step: FetchProgress) -> Progress:
    """How much of a file is here, for the display."""
    of = "" if step.total_bytes is None else f" of {step.total_bytes / 1e6:.1f}"
    detail = f"{step.done_bytes / 1e6:.1f}{of} MB" if step.done_bytes else ""
    return Progress(f"fetching {step.what}", step.done_bytes, step.total_bytes, detail)


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


def measuring(state: MeasureProgress) -> Progress:
    """How far measuring is, for the display."""
    return Progress("measuring", state.done_s, state.total_s or 1, progress_line(state))


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
