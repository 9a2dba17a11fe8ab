"""The numbers of a data set: what came in, what was kept, and what each rule costs.

Everything here is a function of the tables it is handed: no clock, no order of rows matters, and
`json.dumps` takes the answer. Hours of footage count each input once; hours of clips count each
face once, so that two people in one frame make two hours of clips in one hour of footage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkforge.curation.verdict import CODES, RULES
from talkforge.pipeline.report.people import people_statistics, people_table
from talkforge.pipeline.report.quantities import MEASURES, histogram, hours_of, tally, threshold_of, what_if
from talkforge.pipeline.totals import STATUSES, Totals, count
from talkforge.schemas.config import Config
from talkforge.schemas.dataset import Dataset
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.units import seconds_from_frames

TEXT_COLUMNS = ("failure", "person_id", "split", "stopped_by", "identity_model", "sync_method", "language",
                "reviewed")  # fmt: skip
"""Ledger columns in which nothing, None and NaN mean the same: not there."""


def statistics(
    ledger: pd.DataFrame,
    sources: pd.DataFrame,
    failures: pd.DataFrame,
    dataset: Dataset,
    people: pd.DataFrame | None = None,
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything the report shows in numbers, ready for JSON; the order of rows does not matter.

    Args:
        ledger: one row per candidate clip.
        sources: one row per input.
        failures: one row per error.
        dataset: description of the data set.
        people: one row per person; None where the data set has no such table yet.
        audit: what labels say of the rules, see `pipeline.audit`; None where no sample was labelled.

    Raises:
        DatasetError: a clip or an input is lost or counted twice; says which.
    """
    return numbers_of(clips_table(ledger), sources_table(sources), failures, dataset, people, audit)


def numbers_of(
    clips: pd.DataFrame,
    inputs: pd.DataFrame,
    failures: pd.DataFrame,
    dataset: Dataset,
    people: pd.DataFrame | None,
    audit: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The `statistics` of tables as `clips_table` and `sources_table` give them."""
    counts = conservation(clips, inputs)
    totals = count(
        zip(inputs["status"], inputs["duration_s"].fillna(0.0), strict=True),
        pa.table(
            {
                "accepted": pa.array(clips["accepted"], pa.bool_()),
                "failure": pa.array(clips["failure"], pa.string()),
                "duration_s": pa.array(clips["duration_s"], pa.float64()),
                "reasons": pa.nulls(len(clips), pa.list_(pa.string())),
            }
        ),
    )
    config = dataset.config
    broken = broken_rules(clips)
    rules = _rules(clips, broken, config)
    return {
        "schema_version": dataset.schema_version,
        "tool_version": dataset.tool_version,
        "config_hash": dataset.config_hash,
        "conservation": counts,
        "headline": _headline(clips, inputs, totals),
        "funnel": _funnel(clips, inputs, broken, [rule["code"] for rule in rules]),
        "rules": rules,
        "what_if": [w for rule in RULES if (w := what_if(rule, clips, broken, config))],
        "measures": [m for measure in MEASURES if (m := histogram(measure, clips, config))],
        "quantiles": {name: list(values) for name, values in dataset.quantiles.items()},
        "sync": _sync(clips),
        "languages": _languages(clips),
        "identity": _identity(clips),
        "people": people_statistics(clips, people_table(people), dataset.config.shards),
        "provenance": _provenance(clips, inputs),
        "models": [use.model_dump() for use in sorted(dataset.models, key=lambda use: use.name)],
        "models_absent": [absent.model_dump() for absent in dataset.models_absent],
        "failures": _failures(failures),
        "audit": audit,
    }


def clips_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger sorted by clip, with every column there is to count, `duration_s` and `hours`."""
    wanted = ["clip_id", "video_id", "uri", "reasons", "reason_details", "accepted", "fps", "num_frames"]
    wanted += [*TEXT_COLUMNS, *(measure.field for measure in MEASURES)]
    columns = dict.fromkeys([*ledger.columns, *wanted])
    clips = ledger.reindex(columns=list(columns)).sort_values("clip_id", ignore_index=True)
    for name in ("clip_id", "video_id", "uri"):
        clips[name] = clips[name].astype(object)
    for name in TEXT_COLUMNS:
        clips[name] = clips[name].astype(object).where(clips[name].notna() & (clips[name] != ""), None)
    for name in ("reasons", "reason_details"):
        clips[name] = [[] if value is None or np.ndim(value) == 0 else list(value) for value in clips[name]]
    clips["accepted"] = clips["accepted"].eq(True).astype(bool)
    frames, fps = _numbers(clips["num_frames"]), _numbers(clips["fps"])
    clips["duration_s"] = [seconds_from_frames(n, rate) for n, rate in zip(frames, fps, strict=True)]
    clips["hours"] = clips["duration_s"] / 3600
    for measure in MEASURES:
        clips[measure.field] = _numbers(clips[measure.field])
    return clips


def sources_table(sources: pd.DataFrame) -> pd.DataFrame:
    """The inputs sorted by name, with `hours` (NaN where the length is not known, or given as 0)."""
    text = ["uri", "video_id", "status", "reason", "source", "licence", "consent"]
    numbers = ["duration_s", "width_px", "height_px", "fps", "num_bytes"]
    columns = dict.fromkeys([*sources.columns, *text, *numbers])
    inputs = sources.reindex(columns=list(columns)).sort_values(["uri", "video_id"], ignore_index=True)
    for name in text:
        inputs[name] = inputs[name].astype(object).where(inputs[name].notna(), "").astype(str)
    for name in numbers:
        inputs[name] = _numbers(inputs[name])
    inputs["hours"] = inputs["duration_s"].where(inputs["duration_s"] > 0) / 3600
    return inputs


def conservation(clips: pd.DataFrame, inputs: pd.DataFrame) -> dict[str, int]:
    """Counts that must add up: inputs by status, candidates by status.

    Raises:
        DatasetError: an input has no known status, a clip has no status or two, or no input.
    """
    unknown = inputs[~inputs["status"].isin(STATUSES)]
    if len(unknown):
        row = unknown.iloc[0]
        raise DatasetError(f"source {row.uri!r}: expected a status of {STATUSES}, found {row.status!r}")
    failed = clips["failure"].notna()
    rejected = clips["reasons"].map(len).gt(0) & ~failed
    statuses = clips["accepted"].astype(int) + rejected + failed
    _refuse(clips, statuses.eq(0), "is neither accepted, rejected nor failed")
    _refuse(clips, statuses.gt(1), "has more than one status of accepted, rejected and failed")
    _refuse(clips, clips["clip_id"].duplicated(), "is in the ledger twice")
    measured = inputs.loc[inputs["status"].isin(["measured", "failed"]), "video_id"]
    _refuse(clips, ~clips["video_id"].isin(measured), "belongs to no measured source")
    by_status = inputs["status"].value_counts()
    return {
        "sources": len(inputs),
        **{f"sources_{status}": int(by_status.get(status, 0)) for status in STATUSES},
        "candidates": len(clips),
        "accepted": int(clips["accepted"].sum()),
        "rejected": int(rejected.sum()),
        "failed": int(failed.sum()),
    }


def broken_rules(clips: pd.DataFrame) -> pd.DataFrame:
    """[clips, codes] of bool: which rules each clip breaks; codes in the order of the funnel.

    A clip that failed is not judged, and breaks none.
    """
    pairs = clips.loc[clips["failure"].isna(), "reasons"].explode().dropna()
    found = sorted(set(pairs) - set(CODES))
    order = [*CODES, *found]
    table = np.zeros((len(clips), len(order)), bool)
    table[pairs.index.to_numpy(int), [order.index(code) for code in pairs]] = True
    return pd.DataFrame(table, columns=order, index=clips.index)


def first_broken(broken: pd.DataFrame) -> pd.Series:
    """Code of the first rule each clip breaks, in the order of the funnel; "" for none."""
    if not len(broken):
        return pd.Series([], dtype=object)
    return broken.idxmax(axis=1).where(broken.any(axis=1), "")


def _refuse(clips: pd.DataFrame, bad: pd.Series, complaint: str) -> None:
    if bad.any():
        first = clips.loc[bad, "clip_id"].iloc[0]
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise DatasetError(f"clip {first}{more} {complaint}")


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(float)


def _headline(clips: pd.DataFrame, inputs: pd.DataFrame, totals: Totals) -> dict[str, Any]:
    kept = clips[clips["accepted"]]
    return {
        "input": {
            "sources": len(inputs),
            "hours": round(totals.input_s / 3600, 6),
            "unknown_length": int(inputs["hours"].isna().sum()),
        },
        "candidates": tally(clips),
        "accepted": {"clips": totals.accepted, "hours": round(totals.kept_s / 3600, 6)},
        "people": int(kept["person_id"].nunique()) or None,
        "videos": int(kept["video_id"].nunique()),
        "splits": {str(split): tally(rows) for split, rows in kept.groupby("split")},
    }


def _funnel(
    clips: pd.DataFrame, inputs: pd.DataFrame, broken: pd.DataFrame, codes: list[str]
) -> list[dict[str, Any]]:
    """What is left after each step. `kind` says what is counted: sources (footage) or clips."""
    steps: list[dict[str, Any]] = []

    def add(step: str, kind: str, rows: pd.DataFrame) -> None:
        count, hours = len(rows), hours_of(rows["hours"])
        before = steps[-1] if steps and steps[-1]["kind"] == kind else None
        lost = before["count"] - count if before else 0
        lost_hours = round(before["hours"] - hours, 6) if before else 0.0
        steps.append(
            {
                "step": step,
                "kind": kind,
                "count": count,
                "hours": hours,
                "lost": lost,
                "lost_hours": lost_hours,
            }
        )

    left = inputs
    add("input", "sources", left)
    for step, status in (
        ("readable", "failed"),
        ("unique", "duplicate"),
        ("looked_at", "pending"),
        ("with_candidates", "no_candidates"),
    ):
        left = left[left["status"] != status]
        if status == "pending" and not (inputs["status"] == "pending").any():
            continue  # only a run that was cut short has this step
        add(step, "sources", left)
    add("candidates", "clips", clips)
    alive = clips["failure"].isna()
    add("measured", "clips", clips[alive])
    for code in codes:
        alive &= ~broken[code]
        add(code, "clips", clips[alive])
    add("accepted", "clips", clips[clips["accepted"]])
    return steps


def _rules(clips: pd.DataFrame, broken: pd.DataFrame, config: Config) -> list[dict[str, Any]]:
    """For every rule that is on or that some clip breaks: whom it stops first, at all, and alone."""
    first, several = first_broken(broken), broken.sum(axis=1)
    stopped = clips["stopped_by"].notna()
    known = {rule.code: rule for rule in RULES}
    rows = []
    for code in broken.columns:
        rule, hit = known.get(code), broken[code]
        threshold = getattr(config.thresholds, rule.threshold) if rule else None
        if threshold is None and not hit.any():
            continue
        only = hit & several.eq(1) & clips["failure"].isna()
        rows.append(
            {
                "code": code,
                **threshold_of(rule, config),
                "first": tally(clips[first == code]),
                "any": tally(clips[hit]),
                "only": tally(clips[only & ~stopped]),
                "only_unmeasured": tally(clips[only & stopped]),
            }
        )
    return rows


def _sync(clips: pd.DataFrame) -> dict[str, Any]:
    reached = clips[clips["failure"].isna() & clips["stopped_by"].isna()]
    scored = reached["sync_offset_frames"].notna()
    return {
        "methods": sorted({str(name) for name in reached["sync_method"].dropna()}),
        "scored": tally(reached[scored]),
        "unscored": tally(reached[~scored]),
        "not_measured": tally(clips.drop(reached.index)),
    }


def _languages(clips: pd.DataFrame) -> list[dict[str, Any]]:
    """Clips of each transcribed language, the most spoken first; none where nothing is transcribed."""
    groups = clips.groupby("language", sort=True)
    rows = [
        {"language": str(language), **tally(rows), "accepted": tally(rows[rows["accepted"]])}
        for language, rows in groups
    ]
    return sorted(rows, key=lambda row: (-row["hours"], row["language"]))


def _identity(clips: pd.DataFrame) -> dict[str, Any]:
    known = clips["identity_model"].notna()
    return {
        "models": sorted({str(name) for name in clips.loc[known, "identity_model"]}),
        "clips": int(known.sum()),
        "people": int(clips["person_id"].nunique()),
        "split_by": "person" if clips["person_id"].notna().any() else "source video",
    }


def _provenance(clips: pd.DataFrame, inputs: pd.DataFrame) -> list[dict[str, Any]]:
    """Hours in and hours kept for each licence and consent that was stated."""
    terms = ["licence", "consent"]
    first = inputs[inputs["video_id"] != ""]
    first = first.sort_values("status", key=lambda s: s.eq("duplicate"), kind="stable")
    of_video = first.drop_duplicates("video_id").set_index("video_id")[terms]
    kept = clips[clips["accepted"]].drop(columns=terms, errors="ignore")
    kept = kept.join(of_video, on="video_id").fillna(dict.fromkeys(terms, ""))
    by_kept = dict(list(kept.groupby(terms)))
    empty = kept.iloc[:0]
    return [
        {
            "licence": str(licence),
            "consent": str(consent),
            "sources": len(rows),
            "hours": hours_of(rows["hours"]),
            "accepted": tally(by_kept.get((licence, consent), empty)),
        }
        for (licence, consent), rows in inputs.groupby(terms)
    ]


def _failures(failures: pd.DataFrame) -> list[dict[str, Any]]:
    counts = failures.reindex(columns=["stage", "error"]).value_counts().reset_index()
    rows = counts.sort_values(["stage", "error"]).to_dict("records")
    return [{"stage": str(r["stage"]), "error": str(r["error"]), "count": int(r["count"])} for r in rows]
