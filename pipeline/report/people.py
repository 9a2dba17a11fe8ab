"""People in the report: who gives how much, who may be one person, and who may be two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from talkforge.curation.face.identity import same_person_threshold
from talkforge.pipeline.report.quantities import hours_of, tally
from talkforge.schemas.config import ShardConfig
from talkforge.schemas.records import PersonRow

LARGEST_SHOWN, PAIRS_SHOWN, MIXED_SHOWN = 48, 12, 12
"""Most people, pairs of people that may be one, and people that may be two, in the page."""

NEAR_FRACTION = 0.25
"""Two people are near when they lack less than this fraction of the way from the threshold to identity."""


def people_table(people: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of `people.parquet` by person; none where the data set has no such file yet."""
    columns = list(PersonRow.model_fields)
    table = pd.DataFrame(columns=columns) if people is None else people.reindex(columns=columns)
    return table.astype(object).where(table.notna(), None).sort_values("person_id", ignore_index=True)


def people_statistics(
    clips: pd.DataFrame, people: pd.DataFrame, config: ShardConfig
) -> dict[str, Any] | None:
    """Who is in what was kept, and how evenly; None where nobody's identity is known.

    Args:
        clips: answer of `clips_table`.
        people: answer of `people_table`.
        config: how clips are grouped and split.
    """
    names = ["clip_id", "video_id", "person_id", "accepted", "split", "hours", "identity_model"]
    known = clips.loc[clips["person_id"].notna(), names]
    if not len(known):
        return None
    kept = known[known["accepted"]]
    hours = kept.groupby("person_id")["hours"].sum()
    models = known["identity_model"].dropna()
    threshold = same_person_threshold(config, str(models.min()) if len(models) else None)
    return {
        "found": int(known["person_id"].nunique()),
        "kept": len(hours),
        "kept_without_identity": tally(clips.loc[clips["accepted"] & clips["person_id"].isna(), "hours"]),
        "same_person": threshold,
        "balance": _balance(hours),
        "largest": _largest(kept, hours, people),
        **_near(kept, people, threshold),
        **_mixed(people, threshold),
    }


def gini(values: np.ndarray) -> float:
    """Gini coefficient: 0 where all have the same, near 1 where one has everything.

    Source: Gini 1912, as half the mean absolute difference over the mean.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def _balance(hours: pd.Series) -> dict[str, Any] | None:
    """How evenly the kept hours are spread over people.

    `effective` is the number of people with equal hours that would be as uneven: the inverse of the
    chance that two seconds drawn at random show one person. Source: Hill 1973, number of order 2.
    """
    if not hours.sum() > 0:
        return None
    fractions = np.sort((hours / hours.sum()).to_numpy())[::-1]
    return {
        "top_share": round(float(fractions[0]), 4),
        "top_ten_share": round(float(fractions[:10].sum()), 4),
        "gini": round(gini(hours.to_numpy()), 4),
        "effective": round(float(1 / (fractions**2).sum()), 2),
        "median_hours": round(float(hours.median()), 6),
    }


def _largest(kept: pd.DataFrame, hours: pd.Series, people: pd.DataFrame) -> list[dict[str, Any]]:
    """Those with most kept hours first."""
    order = hours.reset_index().sort_values(["hours", "person_id"], ascending=[False, True])
    order = order.head(LARGEST_SHOWN)
    rows_of = dict(list(kept[kept["person_id"].isin(order["person_id"])].groupby("person_id")))
    faces = dict(zip(people["person_id"], people["face_clip_id"], strict=True))
    total = hours.sum()
    return [
        {
            "person_id": str(name),
            "clips": len(rows_of[name]),
            "videos": int(rows_of[name]["video_id"].nunique()),
            "hours": hours_of(rows_of[name]["hours"]),
            "share": round(float(hours[name] / total), 4) if total else 0.0,
            "split": str(rows_of[name]["split"].iloc[0] or ""),
            "face_clip_id": faces.get(name, rows_of[name]["clip_id"].iloc[0]),
        }
        for name in order["person_id"]
    ]


def _near(kept: pd.DataFrame, people: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Pairs of people who may be one, the most alike first."""
    split_of = kept.groupby("person_id")["split"].first().to_dict()
    hours = kept.groupby("person_id")["hours"].sum()
    faces = dict(zip(people["person_id"], people["face_clip_id"], strict=True))
    pairs: dict[tuple[str, str], float] = {}
    for row in people.dropna(subset="nearest_person_id").itertuples():
        first, second = sorted((str(row.person_id), str(row.nearest_person_id)))
        pairs[first, second] = float(row.nearest_similarity)
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    near = [pair for pair in ordered if pair[1] > threshold - NEAR_FRACTION * (1 - threshold)]
    splits = [{split_of[name] for name in names if name in split_of} for names, _ in near]
    return {
        "closest": ordered[0][1] if ordered else None,
        "near_count": len(near),
        "near_in_both_splits": sum(len(both) > 1 for both in splits),
        "near": [
            {
                "similarity": similarity,
                "in_both_splits": len(both) > 1,
                "people": [
                    {
                        "person_id": name,
                        "hours": round(float(hours.get(name, 0.0)), 6),
                        "split": str(split_of.get(name) or ""),
                        "face_clip_id": faces.get(name, ""),
                    }
                    for name in names
                ],
            }
            for (names, similarity), both in zip(near[:PAIRS_SHOWN], splits, strict=False)
        ],
    }


def _mixed(people: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """People one of whose clips is less similar to the others than the threshold, the worst first."""
    several = people.dropna(subset="odd_similarity")
    low = several[several["odd_similarity"].astype(float) < threshold]
    low = low.sort_values(["odd_similarity", "person_id"])
    return {
        "least_alike": float(several["odd_similarity"].astype(float).min()) if len(several) else None,
        "mixed_count": len(low),
        "mixed": [
            {
                "person_id": str(row.person_id),
                "clips": int(row.num_clips),
                "similarity": float(row.odd_similarity),
                "face_clip_id": str(row.face_clip_id),
                "odd_clip_id": str(row.odd_clip_id),
            }
            for row in low.head(MIXED_SHOWN).itertuples()
        ],
    }
