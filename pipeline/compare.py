"""`diff` and `report --against`: what came and went, and why, between sets, snapshots or thresholds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from talkforge.pipeline import jobs, ledger, snapshots, tables
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.measured import read_measured
from talkforge.pipeline.report.against import against_page
from talkforge.pipeline.report.quantities import MEASURES
from talkforge.pipeline.report.statistics import clips_table
from talkforge.pipeline.store import Store
from talkforge.schemas.columns import unit_of
from talkforge.schemas.config import Config, differences
from talkforge.schemas.dataset import parse_dataset
from talkforge.schemas.errors import DatasetError

QUANTILES = (0.05, 0.5, 0.95)
"""Of each measured column, over the accepted clips."""

DECIDED = ("accepted", "reasons", "reason_details", "split", "shard", "person_id", "omega_face", "omega_body")
"""Columns that the selection writes: they may differ where the clip itself does not."""

AGAINST = "report/against.html"

_AT = re.compile(r"(.+)@(\d+|[A-Za-z][\w.-]{0,63})")


@dataclass(frozen=True)
class Side:
    """One of two that are compared.

    Attributes:
        name: as the user gave it.
        clips: the ledger.
        config: with its thresholds.
        num_inputs: rows of `sources.parquet`.
        input_s: footage in them, s.
    """

    name: str
    clips: pd.DataFrame
    config: Config
    num_inputs: int
    input_s: float

    @property
    def accepted(self) -> pd.DataFrame:
        """Rows of the accepted clips."""
        return self.clips[self.clips["accepted"]]


def read_side(name: str) -> Side:
    """A data set in the state of its last selection, or a snapshot of it.

    Args:
        name: `SET`, or `SET@3` and `SET@tag` for a snapshot.

    Raises:
        CommandError: there is no such data set or snapshot.
        DatasetError: it was not selected yet, or is damaged.
    """
    match = _AT.fullmatch(name)
    if match is None or Store(name).exists("dataset.json"):
        store = Store(name)
        config = load_dataset(store).config
        places = {table: snapshots.current_table(store, table) for table in snapshots.TABLES}
    else:
        store = Store(match[1])
        load_dataset(store)
        snapshot = snapshots.find(store, match[2])
        places = {table: snapshot.table(table) for table in snapshots.TABLES}
        config = parse_dataset(store.read(places["dataset.json"])).config
    if not store.exists(places["ledger.parquet"]):
        raise DatasetError(f"{name}: expected a ledger, found none; talkforge select first")
    read = {file: store.read(places[file]) for file in ("ledger.parquet", "sources.parquet")}
    return _side(name, read, config)


def choose_side(name: str, config: Config) -> Side:
    """A data set as `talkforge select` would leave it with another configuration; nothing is written.

    Args:
        name: `SET`.
        config: with other thresholds.
    """
    store = Store(name)
    selection = jobs.choose(store, config, load_ingested(store), read_measured(store, writes=False))
    return _side(f"{name} with other thresholds", ledger.ledger_tables(selection), config)


def _side(name: str, read: dict[str, bytes], config: Config) -> Side:
    table = tables.from_bytes(read["ledger.parquet"], "ledger.parquet")
    clips = table.to_pandas()
    for field in table.schema:
        if pa.types.is_list(field.type):
            clips[field.name] = [() if value is None else tuple(value) for value in clips[field.name]]
    sources = tables.from_bytes(read["sources.parquet"], "sources.parquet").to_pandas()
    clips = clips.drop_duplicates("clip_id").set_index("clip_id").sort_index()
    return Side(name, clips, config, len(sources), float(sources["duration_s"].fillna(0).sum()))


def compare(before: Side, after: Side) -> dict[str, Any]:
    """What differs, ready for JSON.

    Returns:
        `sides`: totals of each. `settings`: one line for each value of the configuration that differs.
        `kept`: clips that both accept. `came`, `went`: accepted clips of one side alone, each with `clip_id`,
        `why`, `duration_s`. `why` counts these by reason. `changed`: column -> clips of those kept in which
        it differs. `reasons`: rejected clips of each code. `measures`: quantiles of each column over accepted
        clips. In pairs, before is first.
    """
    sides = (before, after)
    a, b = before.accepted, after.accepted
    came = _alone(b, a, before.clips, "was")
    went = _alone(a, b, after.clips, "is")
    return {
        "sides": [_totals(side) for side in sides],
        "settings": differences(before.config, after.config),
        "kept": int(a.index.isin(b.index).sum()),
        "came": came,
        "went": went,
        "why": {
            "came": dict(Counter(row["why"] for row in came).most_common()),
            "went": dict(Counter(row["why"] for row in went).most_common()),
        },
        "changed": _changed(a, b),
        "reasons": _reasons(sides),
        "measures": _measures(sides),
    }


def write_page(store: Store, other: str) -> str:
    """Write `report/against.html`, the data set beside another one; its path in the data set.

    Args:
        store: the data set.
        other: data set or snapshot to compare with, as `read_side` takes it.

    Raises:
        CommandError: there is no such data set or snapshot.
        DatasetError: a table is missing or damaged.
    """
    before, after = read_side(other), read_side(store.root)
    clips = [clips_table(side.clips.reset_index()) for side in (before, after)]
    page = against_page(compare(before, after), clips[0], clips[1], after.config)
    store.write(AGAINST, page.encode())
    return AGAINST


def _totals(side: Side) -> dict[str, Any]:
    kept = side.accepted
    return {
        "name": side.name,
        "inputs": side.num_inputs,
        "input_s": round(side.input_s, 3),
        "candidates": len(side.clips),
        "accepted": len(kept),
        "kept_s": round(float(kept["duration_s"].sum()), 3),
        "people": int(kept["person_id"].nunique()),
        "videos": int(kept["video_id"].nunique()),
        "splits": {str(split): int(count) for split, count in kept["split"].value_counts().items()},
    }


def _alone(here: pd.DataFrame, there: pd.DataFrame, others: pd.DataFrame, verb: str) -> list[dict[str, Any]]:
    """Clips that are accepted on one side alone, and what they are on the other one.

    Args:
        here: accepted clips of this side.
        there: accepted clips of the other one.
        others: all candidates of the other one.
        verb: `is` or `was`.
    """
    found = []
    for clip_id, duration_s in here.loc[~here.index.isin(there.index), "duration_s"].items():
        if clip_id not in others.index:
            why = "no candidate"
        elif others.at[clip_id, "reasons"]:
            why = f"{verb} rejected: {', '.join(others.at[clip_id, 'reasons'])}"
        else:
            why = f"{verb} failed"
        found.append({"clip_id": str(clip_id), "why": why, "duration_s": round(float(duration_s), 3)})
    return found


def _changed(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, int]:
    """Column -> accepted clips of both sides in which it differs; null and null are equal."""
    both = a.index.intersection(b.index)
    counts: dict[str, int] = {}
    for name in a.columns.intersection(b.columns).difference(DECIDED):
        one, other = a.loc[both, name], b.loc[both, name]
        different = one.astype(object).ne(other.astype(object)) & ~(one.isna() & other.isna())
        if (count := int(different.sum())) > 0:
            counts[str(name)] = count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _reasons(sides: Sequence[Side]) -> dict[str, list[int]]:
    counts = [Counter(code for codes in side.clips["reasons"] for code in codes) for side in sides]
    return {code: [count[code] for count in counts] for code in sorted({*counts[0], *counts[1]})}


def _measures(sides: Sequence[Side]) -> list[dict[str, Any]]:
    found = []
    for measure in MEASURES:
        values = [
            pd.to_numeric(side.accepted[measure.field], errors="coerce").dropna()
            if measure.field in side.clips
            else pd.Series([], dtype=float)
            for side in sides
        ]
        if all(of_side.empty for of_side in values):
            continue
        found.append(
            {
                "field": measure.field,
                "label": measure.label,
                "unit": unit_of(measure.field),
                "known": [len(of_side) for of_side in values],
                "quantiles": {
                    f"{q:g}": [None if v.empty else round(float(v.quantile(q)), 6) for v in values]
                    for q in QUANTILES
                },
            }
        )
    return found
