"""What a reader of the report should know first, and what to do where nothing was accepted."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from talkforge.curation.verdict import NOT_TRACED, RULES, Rule
from talkforge.pipeline.report.pages import count, span, visible
from talkforge.pipeline.report.quantities import carries, compared, decided_by_thresholds, rounded, tally
from talkforge.schemas.config import Config, Thresholds

LARGE_SHARE = 0.5
"""Fraction of the kept hours from which on one person, or one source, is too much."""

UNMEASURED = 0.25
"""Fraction of the accepted clips from which on a rule that they were not measured for is told."""

COSTLY = 0.5
"""Fraction of the candidate hours from which on a rule that alone costs them is told."""

TROUBLED = 0.05
"""Fraction of the inputs, or of the clips, from which on failures are told."""

NAMED = 4
"""Most columns, and rules, that one alert names."""

NEAREST = 3
"""Most ways to keep some clips."""


def alerts(numbers: Mapping[str, Any], clips: pd.DataFrame, config: Config) -> list[dict[str, str]]:
    """What is likely to be wrong with a data set, the worst first: `code`, `level` (bad or warn) and `text`.

    Args:
        numbers: answer of `statistics`, without alerts.
        clips: answer of `clips_table`.
        config: of the last selection.
    """
    names = {"hours", "person_id", "uri", "licence", "consent", *(rule.field for rule in RULES)}
    kept = clips.loc[clips["accepted"], [name for name in clips.columns if name in names]]
    found = [*_nothing(numbers), *_validation(numbers, config), *_shares(numbers, kept)]
    found += [
        *_unmeasured(kept, config),
        *_costs(numbers),
        *_untraced(clips),
        *_failures(numbers),
        *_terms(kept),
    ]
    return [dict(zip(("code", "level", "text"), row, strict=True)) for row in found]


Alert = tuple[str, str, str]


def _nothing(numbers: Mapping[str, Any]) -> list[Alert]:
    counts = numbers["conservation"]
    if counts["accepted"]:
        return []
    why = (
        "there are no candidate clips"
        if not counts["candidates"]
        else "every candidate was rejected or failed"
    )
    return [("nothing_accepted", "bad", f"No clip was accepted: {why}.")]


def _validation(numbers: Mapping[str, Any], config: Config) -> list[Alert]:
    splits = numbers["headline"]["splits"]
    if not splits or "validation" in splits or not config.shards.validation_fraction:
        return []
    fraction = f"shards.validation_fraction={config.shards.validation_fraction:g}"
    return [("no_validation", "bad", f"No validation clip: nothing falls into {fraction}.")]


def _shares(numbers: Mapping[str, Any], kept: pd.DataFrame) -> list[Alert]:
    found: list[Alert] = []
    total = kept["hours"].sum()
    for field, code, what in (("person_id", "one_person", "person"), ("uri", "one_source", "source")):
        hours = kept.groupby(field)["hours"].sum()
        if not total or hours.empty:
            continue
        share = float(hours.max() / total)
        if share >= LARGE_SHARE and (len(hours) > 1 or field == "person_id"):
            percent, name = f"{100 * share:.0f} %", visible(hours.idxmax())
            found.append((code, "warn", f"One {what} gives {percent} of the kept hours: {name}."))
    pairs = numbers["people"]["near_in_both_splits"] if numbers["people"] else 0
    if pairs:
        one = "1 pair of people who may be one has"
        who = one if pairs == 1 else f"{count(pairs)} pairs of people who may be one have"
        found.append(("in_both_splits", "warn", f"{who} one half in training and one in validation."))
    return found


def _unmeasured(kept: pd.DataFrame, config: Config) -> list[Alert]:
    """Rules that are on, and that accepted clips pass because they were not measured for them."""
    alike: dict[bytes, list[Rule]] = {}
    for rule in RULES:
        if getattr(config.thresholds, rule.threshold) is None or rule.needed:
            continue
        missing = kept[rule.field].isna().to_numpy()
        if missing.any() and missing.sum() >= UNMEASURED * len(kept):
            alike.setdefault(missing.tobytes(), []).append(rule)
    found: list[Alert] = []
    for mask, rules in alike.items():
        fields = list(dict.fromkeys(rule.field for rule in rules))
        how_many = f"{count(sum(mask))} of {count(len(kept))} accepted clips have no {_listed(fields)}"
        passed = _listed([f"{rule.code}" for rule in rules])
        found.append(("unmeasured", "warn", f"{how_many}, and pass {passed} unseen."))
    return found


def _listed(words: list[str]) -> str:
    if len(words) > NAMED:
        words = [*words[:NAMED], f"{len(words) - NAMED} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _costs(numbers: Mapping[str, Any]) -> list[Alert]:
    total = numbers["headline"]["candidates"]["hours"]
    return [
        (
            "costly_rule",
            "warn",
            f"{rule['code']} alone costs {span(hours)} of {span(total)} of candidate clips.",
        )
        for rule in numbers["rules"]
        if total and (hours := rule["only"]["hours"] + rule["only_unmeasured"]["hours"]) >= COSTLY * total
    ]


def _untraced(clips: pd.DataFrame) -> list[Alert]:
    waits = carries(clips["reasons"], NOT_TRACED.code)
    if not waits.any():
        return []
    text = f"Clips that wait to be traced by the next talkforge curate: {count(int(waits.sum()))}."
    return [("untraced", "warn", text)]


def _failures(numbers: Mapping[str, Any]) -> list[Alert]:
    counts = numbers["conservation"]
    told = (("sources_failed", "sources", "inputs"), ("failed", "candidates", "candidate clips"))
    return [
        (f"many_{name}", "warn", f"{count(counts[name])} of {count(counts[of])} {what} failed.")
        for name, of, what in told
        if counts[name] and counts[name] >= TROUBLED * counts[of]
    ]


def _terms(kept: pd.DataFrame) -> list[Alert]:
    found: list[Alert] = []
    for field in ("licence", "consent"):
        if field not in kept or kept.empty:
            continue
        unstated = int((kept[field].isna() | kept[field].eq("")).sum())
        if unstated:
            text = f"{count(unstated)} of {count(len(kept))} accepted clips come without a stated {field}."
            found.append((f"no_{field}", "warn", text))
    return found


# ------------------------------------------------------------------------------ nothing accepted


def nearest(clips: pd.DataFrame, config: Config) -> list[dict[str, Any]]:
    """Thresholds that would keep some clips, where none is accepted; those that keep most come first.

    They are of the clips that break the fewest rules: for each set of rules, the thresholds with which the
    nearest half of its clips pass.

    Args:
        clips: answer of `clips_table`.
        config: of the last selection.

    Returns:
        At most `NEAREST`, each with `settings` (name, value now, value then; None is off), `clips` and
        `hours` that then pass all rules, near duplicates included, and the `command`.
    """
    if clips["accepted"].any():
        return []
    is_open = decided_by_thresholds(clips).to_numpy()
    numbers, sets = pd.factorize(clips["reasons"])
    by_code = {rule.code: rule for rule in RULES}
    of_sets = {n: [by_code[code] for code in sets[n] if code in by_code] for n in np.unique(numbers[is_open])}
    broken = {number: rules for number, rules in of_sets.items() if rules}
    fewest = min(map(len, broken.values()), default=0)
    found = []
    for number, rules in sorted(broken.items()):
        if len(rules) > fewest:
            continue
        settings = _loosened(rules, clips.loc[is_open & (numbers == number)], config)
        loose = config.thresholds.model_copy(update={name: then for name, _, then in settings})
        values = [(name, "null" if then is None else f"{then:g}") for name, _, then in settings]
        told = [f" -s thresholds.{name}={value}" for name, value in values]
        found.append(
            {
                "settings": [{"name": name, "now": now, "then": then} for name, now, then in settings],
                **tally(clips.loc[_passing(clips, loose) & is_open, "hours"]),
                "command": "talkforge select DATASET" + "".join(told),
            }
        )
    return sorted(found, key=lambda one: (-one["hours"], one["command"]))[:NEAREST]


def _loosened(
    rules: list[Rule], group: pd.DataFrame, config: Config
) -> list[tuple[str, float | None, float | None]]:
    """For each rule the name of its threshold, the threshold, and the one that lets the nearest half pass."""
    limits = [getattr(config.thresholds, rule.threshold) for rule in rules]
    values = np.stack([compared(rule, group).to_numpy(np.float64) for rule in rules])
    gaps = np.abs(values - np.array(limits, np.float64)[:, None])
    scale = np.nansum(gaps, axis=1) / np.maximum((~np.isnan(gaps)).sum(axis=1), 1)
    distance = np.nan_to_num(gaps / np.maximum(scale, 1e-9)[:, None], nan=np.inf).sum(axis=0)
    half = values[:, np.argsort(distance, kind="stable")[: (len(group) + 1) // 2]]
    found = []
    for rule, now, reached in zip(rules, limits, half, strict=True):
        then = None
        if not np.isnan(reached).any():
            then = _outwards(rule, float(reached.min() if rule.side == "at_least" else reached.max()))
        found.append((rule.threshold, now, then))
    return found


def _outwards(rule: Rule, value: float) -> float:
    """A number of three digits at the value, or just beyond it on the side that lets it pass."""
    if int in typing.get_args(Thresholds.model_fields[rule.threshold].annotation):
        return float(np.floor(value) if rule.side == "at_least" else np.ceil(value))
    step = 10.0 ** (np.floor(np.log10(abs(value))) - 2) if value else 1.0
    steps = value / step
    return rounded(float((np.floor(steps) if rule.side == "at_least" else np.ceil(steps)) * step))


def _passing(clips: pd.DataFrame, thresholds: Thresholds) -> pd.Series:
    """Which clips pass every rule with a threshold."""
    passes = pd.Series(True, clips.index)
    for rule in RULES:
        if (limit := getattr(thresholds, rule.threshold)) is None:
            continue
        values = compared(rule, clips)
        good = values.ge(limit) if rule.side == "at_least" else values.le(limit)
        passes &= good | (values.isna() & (not rule.needed))
    return passes
