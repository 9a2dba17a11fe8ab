"""The numbers of a data set: what came in, what was kept, and what each rule costs.

Everything here is a function of the tables it is handed: no clock, no order of rows matters, and
`json.dumps` takes the answer. Hours of footage count each input once; hours of clips count each
face once, so that two people in one frame make two hours of clips in one hour of footage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.curation.verdict import CODES, RULES
from talkforge.pipeline.report.alerts import alerts, nearest
from talkforge.pipeline.report.people import people_statistics, people_table
from talkforge.pipeline.report.quantities import (
    MEASURES,
    histogram,
    hours_of,
    rule_inputs,
    tally,
    threshold_of,
    what_if,
)
from talkforge.pipeline.report.relations import breakdown, correlations
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
        pa.table({"status": inputs["status"], "duration_s": inputs["duration_s"].fillna(0.0)}),
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
    found = {
        "schema_version": dataset.schema_version,
        "tool_version": dataset.tool_version,
        "config_hash": dataset.config_hash,
        "conservation": counts,
        "headline": _headline(clips, inputs, totals),
        "funnel": _funnel(clips, inputs, broken, [rule["code"] for rule in rules]),
        "rules": rules,
        "what_if": _what_if(clips, broken, config),
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
        "breakdown": breakdown(clips),
        "correlations": correlations(clips),
    }
    return found | {"alerts": alerts(found, clips, config), "nearest": nearest(clips, config)}


def frame_of(ledger: pa.Table) -> pd.DataFrame:
    """The ledger as pandas has it, for a million clips: equal names and lists of reasons are one object.

    Args:
        ledger: rows of `LedgerRow`, or some of its columns.
    """
    columns = {}
    for name, column in zip(ledger.column_names, ledger.columns, strict=True):
        if pa.types.is_list(column.type) and name != "reason_details":
            texts = pc.binary_join(column.combine_chunks(), ",").dictionary_encode()
            values = [tuple(text.split(",")) if text else () for text in texts.dictionary.to_pylist()]
            columns[name] = _shared(texts, values)
        elif pa.types.is_string(column.type) and name != "clip_id":
            texts = column.combine_chunks().dictionary_encode()
            columns[name] = _shared(texts, texts.dictionary.to_pylist())
        elif name == "reason_details":  # a million lists; those of the clips that are shown are made
            columns[name] = pd.Series(pd.arrays.ArrowExtensionArray(column))
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns, copy=False)


def _shared(texts: pa.DictionaryArray, values: Sequence[Any]) -> pd.Series:
    own = np.empty(len(values) + 1, object)  # the last one stands for null
    for number, value in enumerate(values):
        own[number] = value
    return pd.Series(own[texts.indices.fill_null(len(values)).to_numpy()], dtype=object)


def clips_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger sorted by clip, with every column there is to count, `duration_s` and `hours`."""
    wanted = ["clip_id", "video_id", "uri", "reasons", "reason_details", "accepted", "fps", "num_frames"]
    wanted += [*TEXT_COLUMNS, *(measure.field for measure in MEASURES)]
    columns = dict.fromkeys([*ledger.columns, *wanted])
    clips = ledger.reset_index(drop=True).reindex(columns=list(columns))
    if not clips["clip_id"].is_monotonic_increasing:
        clips = clips.sort_values("clip_id", ignore_index=True)
    made: dict[str, Any] = {name: clips[name].astype(object) for name in ("clip_id", "video_id", "uri")}
    for name in TEXT_COLUMNS:
        text = clips[name].astype(object)
        made[name] = text.where(text.notna() & text.ne(""), None)
    for name in ("reasons", "reason_details"):
        if not isinstance(clips[name].dtype, pd.ArrowDtype):
            made[name] = _tuples(clips[name])
    made["accepted"] = clips["accepted"].eq(True).astype(bool)
    made |= {measure.field: _numbers(clips[measure.field]) for measure in MEASURES}
    frames, fps = _numbers(clips["num_frames"]), _numbers(clips["fps"])
    made["duration_s"] = seconds_from_frames(frames, fps)
    made["hours"] = made["duration_s"] / 3600
    return pd.DataFrame({**{name: clips[name] for name in clips.columns}, **made}, copy=False)


def _tuples(column: pd.Series) -> pd.Series:
    """Lists as tuples; none is an empty one."""
    values = [() if value is None or isinstance(value, float) else tuple(value) for value in column]
    return pd.Series(values, column.index, dtype=object)


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
    numbers, sets = pd.factorize(clips["reasons"])
    found = sorted({code for codes in sets for code in codes} - set(CODES))
    order = [*CODES, *found]
    of_set = np.array([[code in codes for code in order] for codes in sets], bool).reshape(-1, len(order))
    table = of_set[numbers] & clips["failure"].isna().to_numpy()[:, None]
    return pd.DataFrame(table, columns=order, index=clips.index)


def first_broken(broken: pd.DataFrame) -> NDArray[np.int64]:
    """[clips]: number of the first column of `broken_rules` that each clip breaks; -1 for none."""
    table = broken.to_numpy()
    return np.where(table.any(axis=1), table.argmax(axis=1), -1)


def _refuse(clips: pd.DataFrame, bad: pd.Series, complaint: str) -> None:
    if bad.any():
        first = clips.loc[bad, "clip_id"].iloc[0]
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise DatasetError(f"clip {first}{more} {complaint}")


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(float)


def _headline(clips: pd.DataFrame, inputs: pd.DataFrame, totals: Totals) -> dict[str, Any]:
    kept = clips.loc[clips["accepted"], ["hours", "person_id", "video_id", "split"]]
    return {
        "input": {
            "sources": len(inputs),
            "hours": round(totals.input_s / 3600, 6),
            "unknown_length": int(inputs["hours"].isna().sum()),
        },
        "candidates": tally(clips["hours"]),
        "accepted": {"clips": totals.accepted, "hours": round(totals.kept_s / 3600, 6)},
        "people": int(kept["person_id"].nunique()) or None,
        "videos": int(kept["video_id"].nunique()),
        "splits": {str(split): tally(hours) for split, hours in kept.groupby("split")["hours"]},
    }


def _funnel(
    clips: pd.DataFrame, inputs: pd.DataFrame, broken: pd.DataFrame, codes: list[str]
) -> list[dict[str, Any]]:
    """What is left after each step. `kind` says what is counted: sources (footage) or clips."""
    steps: list[dict[str, Any]] = []

    def add(step: str, kind: str, rows: pd.Series) -> None:
        count, hours = len(rows), hours_of(rows)
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
    add("input", "sources", left["hours"])
    for step, status in (
        ("readable", "failed"),
        ("unique", "duplicate"),
        ("looked_at", "pending"),
        ("with_candidates", "no_candidates"),
    ):
        left = left[left["status"] != status]
        if status == "pending" and not (inputs["status"] == "pending").any():
            continue  # only a run that was cut short has this step
        add(step, "sources", left["hours"])
    hours = clips["hours"]
    add("candidates", "clips", hours)
    alive = clips["failure"].isna()
    add("measured", "clips", hours[alive])
    for code in codes:
        alive &= ~broken[code]
        add(code, "clips", hours[alive])
    add("accepted", "clips", hours[clips["accepted"]])
    return steps


def _rules(clips: pd.DataFrame, broken: pd.DataFrame, config: Config) -> list[dict[str, Any]]:
    """For every rule that is on or that some clip breaks: whom it stops first, at all, and alone."""
    first, several = first_broken(broken), broken.sum(axis=1)
    is_whole = clips["failure"].isna()
    stopped, hours = clips["stopped_by"].notna(), clips["hours"]
    known = {rule.code: rule for rule in RULES}
    rows = []
    for number, code in enumerate(broken.columns):
        rule, hit = known.get(code), broken[code]
        threshold = getattr(config.thresholds, rule.threshold) if rule else None
        if threshold is None and not hit.any():
            continue
        only = hit & several.eq(1) & is_whole
        rows.append(
            {
                "code": code,
                **threshold_of(rule, config),
                "first": tally(hours[first == number]),
                "any": tally(hours[hit]),
                "only": tally(hours[only & ~stopped]),
                "only_unmeasured": tally(hours[only & stopped]),
            }
        )
    return rows


def _what_if(clips: pd.DataFrame, broken: pd.DataFrame, config: Config) -> list[dict[str, Any]]:
    is_open = clips["failure"].isna() & clips["stopped_by"].isna()
    names = {"hours", "reviewed", "audio_shift_s", *(rule.field for rule in RULES)}
    names = {*names, *(name for rule in RULES for name in rule_inputs(rule))}
    open_, tried = clips.loc[is_open, sorted(names)], broken[is_open]
    tried = tried.assign(others=tried.sum(axis=1))
    return [entry for rule in RULES if (entry := what_if(rule, open_, tried, config))]


def _sync(clips: pd.DataFrame) -> dict[str, Any]:
    reached = clips["failure"].isna() & clips["stopped_by"].isna()
    scored, hours = clips["sync_offset_frames"].notna(), clips["hours"]
    return {
        "methods": sorted({str(name) for name in clips.loc[reached, "sync_method"].dropna().unique()}),
        "scored": tally(hours[reached & scored]),
        "unscored": tally(hours[reached & ~scored]),
        "not_measured": tally(hours[~reached]),
    }


def _languages(clips: pd.DataFrame) -> list[dict[str, Any]]:
    """Clips of each transcribed language, the most spoken first; none where nothing is transcribed."""
    rows = [
        {
            "language": str(language),
            **tally(group["hours"]),
            "accepted": tally(group.loc[group["accepted"], "hours"]),
        }
        for language, group in clips[["language", "hours", "accepted"]].groupby("language")
    ]
    return sorted(rows, key=lambda row: (-row["hours"], row["language"]))


def _identity(clips: pd.DataFrame) -> dict[str, Any]:
    known = clips["identity_model"].notna()
    return {
        "models": sorted({str(name) for name in clips.loc[known, "identity_model"].unique()}),
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
    kept = clips.loc[clips["accepted"], ["video_id", "hours"]]
    kept = kept.join(of_video, on="video_id").fillna(dict.fromkeys(terms, ""))
    by_kept = dict(list(kept.groupby(terms)["hours"]))
    empty = kept["hours"].iloc[:0]
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
