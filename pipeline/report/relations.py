"""How clips are spread over sources, people, languages and licences; which measurements go together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from talkforge.pipeline.report.pages import visible
from talkforge.pipeline.report.quantities import MEASURES, drawn

GROUPS: tuple[tuple[str, str], ...] = (
    ("split", "Split"), ("language", "Language"), ("licence", "Licence"), ("source", "Origin"),
    ("person_id", "Person"), ("uri", "Source"),
)  # fmt: skip
"""Columns by which clips are grouped, with their labels."""

GROUPS_SHOWN = 10
"""Most groups of each column."""

CORRELATED, PAIRS_SHOWN, LEAST_CLIPS = 0.5, 15, 30
"""Least size of a correlation that is told, most pairs, and least clips with both measurements."""

RANKED = 10_000
"""Clips of which correlations are computed: with more of them an interval is narrower than 0.02."""

SAME = 0.995
"""From this on two columns are one quantity in two forms, and no finding."""

Z_95 = 1.96


def breakdown(clips: pd.DataFrame) -> list[dict[str, Any]]:
    """Clips and hours of the largest groups of each column, in all and accepted.

    Args:
        clips: answer of `clips_table`.
    """
    found = []
    for field, label in GROUPS:
        if field not in clips:
            continue
        names = clips[field].where(clips[field].notna(), "")
        numbers, values = pd.factorize(names)
        if not any(values):
            continue
        of_all = _sums(numbers, clips["hours"], np.ones(len(clips), bool), len(values))
        of_kept = _sums(numbers, clips["hours"], clips["accepted"].to_numpy(), len(values))
        order = sorted(range(len(values)), key=lambda n: (-of_kept[1][n], -of_all[1][n], values[n]))
        rows = [
            {
                "name": visible(values[n]),
                "clips": int(of_all[0][n]),
                "hours": round(float(of_all[1][n]), 6),
                "accepted": {"clips": int(of_kept[0][n]), "hours": round(float(of_kept[1][n]), 6)},
            }
            for n in order[:GROUPS_SHOWN]
        ]
        found.append({"field": field, "label": label, "groups": sum(map(bool, values)), "rows": rows})
    return found


def _sums(
    numbers: np.ndarray, hours: pd.Series, mask: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.nan_to_num(hours.to_numpy())
    return np.bincount(numbers[mask], minlength=count), np.bincount(numbers[mask], lengths[mask], count)


def correlations(clips: pd.DataFrame) -> list[dict[str, Any]]:
    """Measurements that rise or fall together, the closest first.

    The correlation is Pearson's of the ranks, over clips with both measurements. The interval holds for
    independent clips: those of one source are alike, so that the true one is wider. Source: Fieller, Hartley
    and Pearson 1957, standard error 1.03 / sqrt(n - 3) of Fisher's z for rank correlations.

    Args:
        clips: answer of `clips_table`; of many, `RANKED` are drawn by their ids.
    """
    rows = drawn(clips, RANKED)
    fields = [measure.field for measure in MEASURES if rows[measure.field].nunique() > 1]
    ranks = rows[fields].rank()
    table = ranks.corr(min_periods=LEAST_CLIPS)
    known = ranks.notna().to_numpy().astype(np.int64)
    both = known.T @ known
    found: list[dict[str, Any]] = []
    for a, b in itertools.combinations(range(len(fields)), 2):
        value, count = float(table.iat[a, b]), int(both[a, b])
        if np.isnan(value) or not CORRELATED <= abs(value) < SAME:
            continue
        reach = Z_95 * 1.03 / np.sqrt(count - 3)
        low, high = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
        found.append(
            {
                "fields": [fields[a], fields[b]],
                "clips": count,
                "value": round(value, 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
            }
        )
    return sorted(found, key=lambda pair: (-abs(pair["value"]), pair["fields"]))[:PAIRS_SHOWN]
