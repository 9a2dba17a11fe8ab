"""Writes docs/configuration.md, docs/training-configuration.md and docs/rejections.md from the code:
`python -m docs.make_configuration`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from talkforge.curation.verdict import REJECTIONS, Rule
from talkforge.schemas.config import GATES, Config
from talkforge.training.config import TrainConfig

HEAD = """# Configuration

Every value of the configuration, as `talkforge curate --config NAME|FILE` and `--set section.key=value` take
it. `NAME` is a preset: `offline` (the defaults, written out) needs no downloads, `curate` is the paper's
filter. Without `--config`, the defaults below hold.
This page is written from `schemas/config.py` by `python -m docs.make_configuration`; a test keeps the two
together.

- `measure` decides what is recorded of a clip. It cannot change once a data set is begun. `--set` may leave
  the word out: `scan.sample_s=1`.
- `thresholds` and `shards` are applied to what was recorded: `talkforge select`, `talkforge shard`. `null`
  switches a threshold off.
- `run` says how the work is done. What is measured of a clip does not depend on it. Which clips there are
  can: by `run.part_s` in videos that are longer, and by the limits on inputs. `run.trace` decides which
  rejected clips are traced.

Files and values of `--set` are YAML 1.2: `no`, `on` and `1_0` are texts, `010` is ten, `true` and `false` are
the only truth values. A key that is there twice is refused. All mistakes of a file are named at once, with
their lines.

## Gates

Measuring leaves some clips out by itself, because they would cost time and could not be kept. A threshold
that is looser than its gate cannot act, since nothing that it would admit was measured. It is warned of when
the configuration is read, and by `talkforge select` and `talkforge shard`.

| threshold | gate | what the gate leaves out |
|---|---|---|
"""

TRAINING_HEAD = """# Configuration of the trainer

Every value that `talkforge train CONFIG` and `--set section.key=value` take. What they mean together:
[training.md](training.md). `CONFIG` is a file or the name of a preset such as `wan-14b-stage1`; their files
are in [configs/train](../configs/train). Files are YAML 1.2, as in [configuration.md](configuration.md).
This page is written from `training/config.py` by `python -m docs.make_configuration`; a test keeps the two
together.
"""

REJECTIONS_HEAD = """# Reasons for a rejection

Every code that the columns `reasons` and `stopped_by` of [ledger.parquet](dataset.md) can hold, in the order
of the report's funnel. A rule compares one column of the ledger with one threshold
([configuration.md](configuration.md)). A clip that was not measured for it fails a rule marked "yes" under
"needed", and passes the others.
This page is written from `curation/verdict.py` by `python -m docs.make_configuration`; a test keeps the two
together.

| code | meaning | column | measured by | threshold | needed |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Text of configuration.md."""
    gates = "".join(f"| `thresholds.{name}` | `measure.{key}` | {what} |\n" for name, key, what in GATES)
    return HEAD + gates + "".join(_tables(Config, "Config", ""))


def training_page() -> str:
    """Text of training-configuration.md."""
    return TRAINING_HEAD + "".join(_tables(TrainConfig, "TrainConfig", "", sources=False))


def rejections_page() -> str:
    """Text of rejections.md."""
    lines = []
    for one in REJECTIONS:
        threshold, needed = "", ""
        if isinstance(one, Rule):
            side = f"{'magnitude ' if one.absolute else ''}{one.side.replace('_', ' ')}"
            threshold = f"{side} `thresholds.{one.threshold}`"
            needed = "yes" if one.needed else "no"
        lines.append(
            f"| `{one.code}` | {one.meaning} | `{one.field}` | {one.stage} | {threshold} | {needed} |\n"
        )
    return REJECTIONS_HEAD + "".join(lines)


def _tables(section: type[BaseModel], title: str, prefix: str, *, sources: bool = True) -> list[str]:
    lines, below = [], []
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            title_below = (kind.__doc__ or "").strip().split("\n")[0]
            below += _tables(kind, title_below, f"{prefix}{name}.", sources=sources)
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = _yaml(extra.get("default", field.default))
        unit, source = extra.get("unit", ""), extra.get("source", "")
        described = f"{unit} | {field.description} | {source}" if sources else field.description
        lines.append(f"| `{prefix}{name}` | `{default}` | {described} |\n")
    if not lines:
        return below
    columns = "| key | default | unit | what | source |\n|---|---|---|---|---|\n"
    head = f"\n## {title}\n\n" + (columns if sources else "| key | default | what |\n|---|---|---|\n")
    return [head, *lines, *below]


def _yaml(value: Any) -> str:
    """A value as files and `--set` take it."""
    return value if isinstance(value, str) and value else json.dumps(value)


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "configuration.md").write_text(page(), encoding="utf-8")
    (folder / "training-configuration.md").write_text(training_page(), encoding="utf-8")
    (folder / "rejections.md").write_text(rejections_page(), encoding="utf-8")
