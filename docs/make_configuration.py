"""Writes docs/configuration.md from the configuration's own fields: `python docs/make_configuration.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.config import Config

HEAD = """# Configuration

Every value of the configuration, as `talkforge curate --config FILE` and `--set section.key=value` take it.
This page is written from `schemas/config.py` by `python docs/make_configuration.py`; a test keeps the two
together.

- `measure` decides what is recorded of a clip. It cannot change once a data set is begun. `--set` may leave
  the word out: `scan.sample_s=1`.
- `thresholds` and `shards` are applied to what was recorded: `talkforge select`, `talkforge shard`. `null`
  switches a threshold off.
- `run` says how the work is done, and never changes what comes out.
"""


def page() -> str:
    """The page's text."""
    return HEAD + "".join(_tables(Config, "Config", ""))


def _tables(section: type[BaseModel], title: str, prefix: str) -> list[str]:
    lines, below = [], []
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below += _tables(kind, (kind.__doc__ or "").strip().split("\n")[0], f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = "null" if field.default is None else f"{field.default}"
        unit, source = extra.get("unit", ""), extra.get("source", "")
        lines.append(f"| `{prefix}{name}` | `{default}` | {unit} | {field.description} | {source} |\n")
    if not lines:
        return below
    head = f"\n## {title}\n\n| key | default | unit | what | source |\n|---|---|---|---|---|\n"
    return [head, *lines, *below]


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
