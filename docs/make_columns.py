"""Writes the tables of columns in docs/dataset.md from the records: `python -m docs.make_columns`."""

from __future__ import annotations

import re
from pathlib import Path

from talkforge.schemas.columns import columns
from talkforge.schemas.records import (
    AuditRow,
    CaptionRow,
    Failure,
    LedgerRow,
    PersonRow,
    Record,
    ReviewRow,
    SourceRow,
    TranscriptRow,
)

PAGE = Path(__file__).with_name("dataset.md")

TABLES: dict[str, tuple[type[Record], ...]] = {
    "ledger": (LedgerRow,),
    "people": (PersonRow,),
    "review": (ReviewRow,),
    "audit": (AuditRow,),
    "annotations": (TranscriptRow, CaptionRow),
    "sources": (SourceRow,),
    "failures": (Failure,),
}
"""Name of the markers around a table -> the records whose fields are its rows."""


def table(models: tuple[type[Record], ...]) -> str:
    """Markdown table of the columns of some records, each column once."""
    lines = ["| column | unit | content |", "|---|---|---|"]
    described = {name: column for model in models for name, column in columns(model).items()}
    lines += [f"| `{name}` | {column.unit} | {column.description} |" for name, column in described.items()]
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", "\n".join(lines)).replace("|  |", "| |")


def page(text: str) -> str:
    """The page with every table written anew between its markers.

    Args:
        text: of the page.
    """
    for name, models in TABLES.items():
        before, after = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        found = re.findall(f"{before}.*?{after}", text, re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"{PAGE.name}: expected the markers of {name} once, found {len(found)} pairs")
        text = text.replace(found[0], before + table(models) + after)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
