"""Writes docs/configuration.md and docs/training-configuration.md from the configurations' own fields:
`python -m docs.make_configuration`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from talkforge.schemas.config import Config
from talkforge.training.config import TrainConfig

HEAD = """# Configuration

Every value of the configuration, as `talkforge curate --config FILE` and `--set section.key=value` take it.
This page is written from `schemas/config.py` by `python -m docs.make_configuration`; a test keeps the two
together.

- `measure` decides what is recorded of a clip. It cannot change once a data set is begun. `--set` may leave
  the word out: `scan.sample_s=1`.
- `thresholds` and `shards` are applied to what was recorded: `talkforge select`, `talkforge shard`. `null`
  switches a threshold off.
- `run` says how the work is done, and never changes what comes out.
"""

TRAINING_HEAD = """# Configuration of the trainer

Every value that `talkforge train CONFIG` and `--set section.key=value` take. What they mean together:
[training.md](training.md); ready-made ones: [configs/train](../configs/train).
This page is written from `training/config.py` by `python -m docs.make_configuration`; a test keeps the two
together.
"""


def page() -> str:
    """Text of configuration.md."""
    return HEAD + "".join(_tables(Config, "Config", ""))


def training_page() -> str:
    """Text of training-configuration.md."""
    return TRAINING_HEAD + "".join(_tables(TrainConfig, "TrainConfig", "", sources=False))


def _tables(section: type[BaseModel], title: str, prefix: str, *, sources: bool = True) -> list[str]:
    lines, below = [], []
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            title_below = (kind.__doc__ or "").strip().split("\n")[0]
            below += _tables(kind, title_below, f"{prefix}{name}.", sources=sources)
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = "null" if field.default is None else f"{field.default}"
        unit, source = extra.get("unit", ""), extra.get("source", "")
        described = f"{unit} | {field.description} | {source}" if sources else field.description
        lines.append(f"| `{prefix}{name}` | `{default}` | {described} |\n")
    if not lines:
        return below
    columns = "| key | default | unit | what | source |\n|---|---|---|---|---|\n"
    head = f"\n## {title}\n\n" + (columns if sources else "| key | default | what |\n|---|---|---|\n")
    return [head, *lines, *below]


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "configuration.md").write_text(page(), encoding="utf-8")
    (folder / "training-configuration.md").write_text(training_page(), encoding="utf-8")
