"""The page `report/clips.html`: every clip in a table to sort, filter and brush.

One file, which opens without a network and runs no script but its own. Charts are drawn by uPlot, whose built
files lie in uplot/ as its authors publish them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from talkforge.curation.verdict import REJECTIONS
from talkforge.pipeline.report.charts import threshold_positions
from talkforge.pipeline.report.pages import packed, page, unit, visible
from talkforge.pipeline.report.quantities import drawn
from talkforge.pipeline.report.statistics import broken_rules

MOST_CLIPS = 100_000
"""Most clips in the page. Of more clips it holds this many, drawn by a hash of their ids."""

GROUPED = {
    "uri": "Source",
    "person_id": "Person",
    "split": "Split",
    "language": "Language",
    "licence": "Licence",
    "consent": "Consent",
    "source": "Origin",
    "stopped_by": "Stopped by gate",
    "reviewed": "Reviewer",
}
"""Columns of names, with their labels: each is a filter, and one may group by it."""

BRUSHED = (
    "duration_s", "face_clip_px", "speech_fraction", "snr_db", "sync_probability", "yaw_p95_deg",
    "face_detail_px", "omega_face",
)  # fmt: skip
"""Measurements whose distributions are shown at first, where they were measured."""

MEANINGS = {rejection.code: rejection.meaning for rejection in REJECTIONS}

STATES = ("accepted", "rejected", "failed")


@dataclass(frozen=True)
class Shown:
    """What the page has of single clips beside their rows.

    Attributes:
        pictures: clip id -> JPEG bytes.
        curves: clip id -> answer of `clip_curves.read_curves`.
    """

    pictures: Mapping[str, bytes] = field(default_factory=dict)
    curves: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def clips_page(clips: pd.DataFrame, numbers: Mapping[str, Any], shown: Shown, name: str) -> str:
    """The page; the same arguments give the same one.

    Args:
        clips: answer of `clips_table`.
        numbers: answer of `statistics` of the same clips.
        shown: pictures and curves of some clips.
        name: of the data set.
    """
    data = document(clips, numbers, shown, name)
    return page("clips.html.j2", ["uplot/uPlot.iife.min.js", "common.js", "clips.js"], data, name=name)


def document(clips: pd.DataFrame, numbers: Mapping[str, Any], shown: Shown, name: str) -> dict[str, Any]:
    """What the page knows, for JSON."""
    rows = drawn(clips, MOST_CLIPS)
    names = {column: _named(rows[column]) for column in GROUPED if column in rows}
    names = {column: found for column, found in names.items() if found[0]}
    measures = [entry for entry in numbers["measures"] if rows[entry["field"]].notna().any()]
    broken = broken_rules(rows)
    broken = broken.loc[:, broken.any()]
    states = np.where(rows["accepted"], 0, np.where(rows["failure"].notna(), 2, 1))
    start_s = rows["start_s"] if "start_s" in rows else np.full(len(rows), np.nan)
    numbered = [numbers_of for _, numbers_of in names.values()]
    columns = [states, start_s, *numbered, *(rows[entry["field"]] for entry in measures)]
    table = np.stack([np.asarray(column, "<f4") for column in columns])
    own = set(rows["clip_id"])
    text = {
        "clip_ids": rows["clip_id"].tolist(),
        "names": [values for values, _ in names.values()],
        "failures": {str(n): str(rows["failure"].iloc[n]) for n in np.flatnonzero(states == 2)},
        "curves": {key: curves for key, curves in shown.curves.items() if key in own},
    }
    return {
        "name": name,
        "num_clips": len(rows),
        "of": len(clips),
        "states": STATES,
        "groups": [{"field": column, "label": GROUPED[column]} for column in names],
        "reasons": [{"code": code, "meaning": MEANINGS.get(code, code)} for code in broken.columns],
        "measures": [_measure(entry) for entry in measures],
        "brushed": [entry["field"] for entry in measures if entry["field"] in BRUSHED],
        # The state of each clip, its start, the number of each of its names (NaN: none), its measurements.
        "table": packed(table.tobytes()),
        "broken": packed(np.ascontiguousarray(broken.to_numpy(np.uint8).T).tobytes()),
        "text": packed(json.dumps(text, allow_nan=False).encode()),
        "pictures": {
            key: base64.b64encode(jpeg).decode() for key, jpeg in shown.pictures.items() if key in own
        },
    }


def _named(column: pd.Series) -> tuple[list[str], NDArray[np.float64]]:
    """The names of a column in their order, and the number of each clip's name; NaN: it has none."""
    numbers, names = pd.factorize(column.where(column.ne("")), sort=True)
    return [visible(name) for name in names], np.where(numbers < 0, np.nan, numbers)


def _measure(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "field": entry["field"],
        "label": entry["label"],
        "unit": unit(entry["unit"]),
        "edges": entry["edges"],
        "thresholds": threshold_positions(entry),
    }
