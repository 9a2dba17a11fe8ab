"""The audit: what is drawn, and that its estimates and intervals are right where the truth is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from talkforge.pipeline import audit, jobs, review, tables
from talkforge.pipeline.audit import (
    ACCEPTED,
    Cell,
    Rate,
    allocate,
    capture,
    fraction,
    judge_rules,
    total,
    wilson,
)
from talkforge.pipeline.repair import repair
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import AuditRow, ReviewRow
from tests.conftest import Curated


@pytest.mark.parametrize(
    ("sizes", "num_clips", "share"),
    [
        ({ACCEPTED: 1000, "noisy": 400, "music": 100}, 90, {ACCEPTED: 45, "noisy": 30, "music": 15}),
        ({ACCEPTED: 1000, "noisy": 10_000, "music": 1}, 100, {ACCEPTED: 50, "noisy": 49, "music": 1}),
        ({ACCEPTED: 10, "noisy": 400}, 100, {ACCEPTED: 10, "noisy": 90}),
        ({ACCEPTED: 3, "noisy": 4}, 100, {ACCEPTED: 3, "noisy": 4}),
        ({ACCEPTED: 500}, 100, {ACCEPTED: 100}),
        ({"noisy": 500}, 100, {"noisy": 100}),
        ({ACCEPTED: 9, "noisy": 9, "music": 9}, 2, {ACCEPTED: 1, "noisy": 1, "music": 0}),
    ],
)
def test_half_are_accepted_and_small_strata_are_not_lost(
    sizes: dict[str, int], num_clips: int, share: dict[str, int]
) -> None:
    assert allocate(sizes, num_clips) == share


def test_a_larger_sample_holds_the_smaller_one(monkeypatch: pytest.MonkeyPatch, curated: Curated) -> None:
    store = Store(str(curated.dataset))
    reasons = {f"c{n}": (("noisy",) if n % 3 else ()) for n in range(300)}
    monkeypatch.setattr(audit, "rule_reasons", lambda _: reasons)
    small, again, large, other = (
        audit.order(audit.draw(store, n, seed)) for n, seed in ((20, 0), (20, 0), (60, 0), (20, 1))
    )
    assert small == again and len(small) == 20 and set(small) < set(large) and set(small) != set(other)
    assert small != sorted(small)
    assert [key for key in large if key in small] == small  # in the same order
    rows = audit.read(store)
    assert len(rows) == 300 and audit.order(rows) == other
    assert {row.stratum for row in rows} == {ACCEPTED, "noisy"}


# ---------------------------------------------------------------------------------- estimating


@pytest.mark.parametrize(
    ("cell", "low", "high"),
    [
        (Cell(10**9, 10, 5), 0.2366, 0.7634),  # Wilson's own, of an endless population
        (Cell(10**9, 10, 10), 0.7225, 1.0),
        (Cell(10**9, 50, 0), 0.0, 0.0713),
        (Cell(20, 10, 5), 0.29495, 0.70505),  # half of all are known
        (Cell(10, 10, 3), 0.3, 0.3),
    ],
)
def test_wilsons_interval_with_a_finite_population(cell: Cell, low: float, high: float) -> None:
    assert wilson(cell.hits / cell.labelled, cell) == pytest.approx((low, high), abs=1e-4)


def test_a_single_cell_has_wilsons_interval_and_nothing_known_may_be_anything() -> None:
    assert fraction([Cell(10**9, 10, 10)]) == Rate(1.0, pytest.approx(0.7225, abs=1e-4), 1.0)
    assert fraction([Cell(5, 0, 0)]) == Rate(None, 0.0, 1.0)
    assert fraction([]) == Rate(None, 0.0, 1.0)
    value, low, high = total([Cell(100, 100, 40), Cell(50, 0, 0)])
    assert (value, low, high) == (60.0, 40.0, 90.0)  # 40 for sure, and the unknown ones like the others


@pytest.mark.parametrize(
    ("inside", "outside", "value", "low", "high"),
    [
        # All is known: 30 hits inside, 10 outside.
        ([Cell(40, 40, 30)], [Cell(60, 60, 10)], 0.75, 0.75, 0.75),
        ([Cell(40, 40, 30)], [Cell(60, 60, 0)], 1.0, 1.0, 1.0),
        ([Cell(40, 40, 0)], [Cell(60, 60, 6)], 0.0, 0.0, 0.0),
        # No hit among 50 of 1000 outside: up to 68.1 may be there, beside 100 inside.
        ([Cell(100, 100, 100)], [Cell(1000, 50, 0)], 1.0, 100 / 168.1, 1.0),
        ([Cell(100, 0, 0)], [Cell(100, 0, 0)], None, 0.0, 1.0),
        ([Cell(100, 10, 0)], [Cell(100, 10, 0)], None, 0.0, 1.0),
    ],
)
def test_what_share_of_all_hits_lies_inside(
    inside: list[Cell], outside: list[Cell], value: float | None, low: float, high: float
) -> None:
    found = capture(inside, outside)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=2e-3)


TRUTH = {"accepted": (120, 0.95), "noisy": (180, 0.20), "music": (60, 0.02), "yaw": (40, 0.5)}
"""Stratum -> its clips, and the fraction that is good."""


def population(seed: int) -> tuple[dict[str, tuple[str, ...]], dict[str, bool]]:
    """Reasons and truth of clips; half of those with music are noisy as well."""
    chance = random.Random(seed)
    reasons: dict[str, tuple[str, ...]] = {}
    good: dict[str, bool] = {}
    for name, (size, rate) in TRUTH.items():
        codes = {"accepted": (), "noisy": ("noisy",), "music": ("music",), "yaw": ("face_turned",)}[name]
        for n in range(size):
            key = f"{name}{n}"
            reasons[key] = ("noisy", "music") if name == "music" and n % 2 else codes
            good[key] = chance.random() < rate
    return reasons, good


def sampled(
    reasons: dict[str, tuple[str, ...]], good: dict[str, bool], clips: int, seed: int
) -> audit.AuditResult:
    strata: dict[str, list[str]] = {}
    for key, codes in reasons.items():
        strata.setdefault(codes[0] if codes else ACCEPTED, []).append(key)
    share = allocate({name: len(keys) for name, keys in strata.items()}, clips)
    chance = random.Random(seed)
    rows, reviews = [], {}
    for name, keys in strata.items():
        drawn = set(chance.sample(keys, share[name]))
        rows += [AuditRow(clip_id=k, stratum=name, position=0 if k in drawn else None, seed=0) for k in keys]
        for key in drawn:
            reviews[key] = ReviewRow(clip_id=key, label="good" if good[key] else "bad")
    return judge_rules(rows, reasons, reviews)


def truth(reasons: dict[str, tuple[str, ...]], good: dict[str, bool]) -> dict[str, float]:
    accepted = [key for key, codes in reasons.items() if not codes]
    noisy = [key for key, codes in reasons.items() if "noisy" in codes]
    bad = [key for key in reasons if not good[key]]
    return {
        "precision": sum(good[key] for key in accepted) / len(accepted),
        "recall": sum(good[key] for key in accepted) / sum(good.values()),
        "noisy precision": sum(not good[key] for key in noisy) / len(noisy),
        "noisy recall": sum(not good[key] for key in noisy) / len(bad),
    }


def rates(found: audit.AuditResult) -> dict[str, Rate]:
    noisy = next(rule for rule in found.rules if rule.code == "noisy")
    return {
        "precision": found.precision,
        "recall": found.recall,
        "noisy precision": noisy.precision,
        "noisy recall": noisy.recall,
    }


def test_with_every_clip_labelled_the_truth_comes_out() -> None:
    reasons, good = population(3)
    found = sampled(reasons, good, len(reasons), 0)
    for name, rate in rates(found).items():
        assert (rate.value, rate.low, rate.high) == pytest.approx((truth(reasons, good)[name],) * 3), name
    assert [rule.code for rule in found.rules] == ["face_turned", "noisy", "music"]
    assert (found.rules[2].clips, found.rules[2].only_clips) == (60, 30)


@pytest.mark.parametrize("clips", [60, 150])
def test_intervals_hold_the_truth_as_often_as_they_say(clips: int) -> None:
    rounds = 100
    reasons, good = population(7)
    true = truth(reasons, good)
    held = dict.fromkeys(true, 0)
    means = dict.fromkeys(true, 0.0)
    for seed in range(rounds):
        for name, rate in rates(sampled(reasons, good, clips, seed)).items():
            held[name] += rate.low <= true[name] <= rate.high
            means[name] += (rate.value or 0.0) / rounds
    # 95 are expected; four standard deviations of that are 8.7.
    assert all(number >= 86 for number in held.values()), held
    assert means == pytest.approx(true, abs=0.03)


def test_labels_outlive_a_change_of_thresholds() -> None:
    """The stratum is that of the draw, the verdict that of now."""
    reasons, good = population(5)
    strata = {key: codes[0] if codes else ACCEPTED for key, codes in reasons.items()}
    rows = [AuditRow(clip_id=key, stratum=name, position=0, seed=0) for key, name in strata.items()]
    reviews = {key: ReviewRow(clip_id=key, label="good" if good[key] else "bad") for key in reasons}
    loose = {key: tuple(code for code in codes if code != "noisy") for key, codes in reasons.items()}
    found = judge_rules(rows, loose, reviews)
    assert found.precision.value == pytest.approx(
        truth(loose | {"x": ("noisy",)}, good | {"x": False})["precision"]
    )
    assert found.accepted == sum(not codes for codes in loose.values())


def test_what_came_or_went_since_the_draw_is_counted() -> None:
    rows = [AuditRow(clip_id=key, stratum=ACCEPTED, position=n, seed=4) for n, key in enumerate("abc")]
    reviews = {
        "a": ReviewRow(clip_id="a", label="bad", reason="frozen"),
        "b": ReviewRow(clip_id="b", decision="drop"),
        "new": ReviewRow(clip_id="new", label="good"),
    }
    found = judge_rules(rows, {"a": (), "b": (), "new": ()}, reviews)
    assert (found.population, found.drawn, found.left_out, found.good, found.bad) == (2, 2, 1, 0, 1)
    assert found.accepted_bad == {"frozen": 1} and found.seed == 4
    assert found.recall.value is None and math.isclose(found.precision.value or 0.0, 0.0)


# ----------------------------------------------------------------------------------- a data set


def label_all(store: Store, label: Any) -> None:
    rows = {key: ReviewRow(clip_id=key, label=label) for key in audit.order(audit.read(store))}
    tables.write(store, review.TABLE, ReviewRow, [rows[key] for key in sorted(rows)])


def test_the_report_shows_what_labels_say(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    with pytest.raises(CommandError, match="no sample was drawn; `talkforge audit"):
        audit.result(store)
    jobs.report(store)
    assert b'id="audit"' not in store.read("report/index.html")
    audit.draw(store, 100, 0)
    assert not audit.is_labelled(store)
    label_all(store, "good")
    jobs.report(store)
    page = store.read("report/index.html").decode()
    assert 'id="audit"' in page and "100 % (100 to 100)" in page
    found = audit.result(store)
    assert (found.good, found.bad, found.precision) == (2, 0, Rate(1.0, 1.0, 1.0))
    assert verify(store) == []


def test_decisions_of_reviewers_are_no_rules(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    ledger = tables.from_bytes(store.read("ledger.parquet"), "").to_pylist()
    first, second = sorted(row["clip_id"] for row in ledger)
    changes = {
        first: {"accepted": False, "reasons": ["noisy", "reviewed_drop"]},
        second: {"overruled": ["music"]},
    }
    schema = tables.from_bytes(store.read("ledger.parquet"), "").schema
    import pyarrow as pa

    rows = [row | changes[row["clip_id"]] for row in ledger]
    store.write("ledger.parquet", tables.to_bytes(pa.Table.from_pylist(rows, schema)))
    assert audit.rule_reasons(store) == {first: ("noisy",), second: ("music",)}
    rows = [
        row | {"reasons": ["noisy", code]}
        for row, code in zip(ledger, ("no_consent", "near_duplicate"), strict=True)
    ]
    store.write("ledger.parquet", tables.to_bytes(pa.Table.from_pylist(rows, schema)))
    assert audit.rule_reasons(store) == {}
    with pytest.raises(CommandError, match="no clip to draw"):
        audit.draw(store, 10, 0)


def test_a_damaged_draw_can_be_drawn_again(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    rows = audit.draw(store, 100, 0)
    store.write(audit.TABLE, store.read(audit.TABLE)[:-40])
    (problem,) = verify(store)
    assert problem.path == audit.TABLE and repair(store, [problem]) == [audit.TABLE]
    assert audit.draw(store, 100, 0) == rows
