"""Audit: people label a random sample of clips, and precision and recall of the rules follow with intervals.

The sample is stratified: clips that the rules accept, and rejected ones by the first rule that they break.
`audit.parquet` holds what was drawn from what, so that thresholds may change afterwards: a label is of the
clip and not of the verdict. Labels lie in `review.parquet`.

What is judged are the rules. Decisions of reviewers are left out of account, and so are clips that failed,
near duplicates, clips that wait to be traced, and clips that are rejected for what nobody can see (consent,
licence, forbidden words).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from talkforge.curation.verdict import BINDING, CODES, NEAR_DUPLICATE, NOT_TRACED, REVIEWED_DROP
from talkforge.pipeline import review, snapshots, tables
from talkforge.pipeline.dataset import exclusive
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import AuditRow, ReviewRow

TABLE = "audit.parquet"

ACCEPTED = "accepted"
"""Name of the stratum of clips that no rule rejects."""

NUM_CLIPS = 100
"""Clips that are drawn unless the user says otherwise."""

LEAST_OF_STRATUM = 2
"""Clips that every stratum gives where there is room, so that none is unknown. Source: ours."""

UNSEEN = BINDING | {NEAR_DUPLICATE.code, NOT_TRACED.code}
"""Reasons that say nothing about how a clip looks and sounds."""

CONFIDENCE = 0.95

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


# ------------------------------------------------------------------------------------- drawing


def rule_reasons(store: Store) -> dict[str, tuple[str, ...]]:
    """Codes of the rules that each clip breaks, whatever reviewers decided; of the clips that are judged.

    Args:
        store: a data set that was selected.
    """
    name = "ledger.parquet"
    table = tables.from_bytes(store.read(snapshots.current_table(store, name)), name)
    wanted = [one for one in ("clip_id", "failure", "reasons", "overruled") if one in table.column_names]
    found = {}
    for row in table.select(wanted).to_pylist():
        codes = {*(row["reasons"] or ()), *(row.get("overruled") or ())} - {REVIEWED_DROP.code}
        if row["failure"] is None and not codes & UNSEEN:
            found[row["clip_id"]] = tuple(code for code in CODES if code in codes)
    return found


def draw(store: Store, num_clips: int, seed: int) -> list[AuditRow]:
    """Draw a sample of the clips as they are judged now, and write `audit.parquet`; labels stay.

    The same ledger, number and seed give the same sample, and a larger number one that holds it.

    Args:
        store: the data set.
        num_clips: number to draw; fewer where there are fewer.
        seed: of the draw.

    Raises:
        CommandError: there is no clip to draw, or another run is at work.
    """
    strata: dict[str, list[str]] = {}
    for clip_id, codes in rule_reasons(store).items():
        strata.setdefault(codes[0] if codes else ACCEPTED, []).append(clip_id)
    if not strata:
        raise CommandError(f"{store.root}: no clip to draw; `talkforge curate` measures some")
    share = allocate({name: len(clips) for name, clips in strata.items()}, num_clips)
    drawn: list[tuple[str, str]] = []
    for name, clips in strata.items():
        drawn += ((key, name) for key in sorted(clips, key=lambda key: _lot(key, seed))[: share[name]])
    places = {key: place for place, (key, _) in enumerate(sorted(drawn, key=lambda one: _lot(one[0], ~seed)))}
    rows = [
        AuditRow(clip_id=key, stratum=name, position=places.get(key), seed=seed)
        for name, clips in strata.items()
        for key in clips
    ]
    with exclusive(store):
        tables.write(store, TABLE, AuditRow, sorted(rows, key=lambda row: row.clip_id))
    return rows


def _lot(clip_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{clip_id}".encode()).digest()


def allocate(sizes: Mapping[str, int], num_clips: int) -> dict[str, int]:
    """How many clips each stratum gives.

    Half are accepted ones, as precision rests on them alone. The rejected strata share the rest by the square
    roots of their sizes, so that small ones are not lost. Strata that are too small leave theirs to others.

    Source: Bankier, Power allocations, The American Statistician 42(3), 1988, with power 1/2.

    Args:
        sizes: clips of each stratum, 1 or more.
        num_clips: number to draw.
    """
    weight = {name: math.sqrt(size) for name, size in sizes.items() if name != ACCEPTED}
    if ACCEPTED in sizes:
        weight[ACCEPTED] = sum(weight.values()) or 1.0
    share = dict.fromkeys(sizes, 0)
    for _ in range(min(num_clips, sum(sizes.values()))):
        open_ = [name for name in sizes if share[name] < sizes[name]]
        few = [name for name in open_ if share[name] < LEAST_OF_STRATUM]
        share[max(few or open_, key=lambda name: (weight[name] / (share[name] + 1), name))] += 1
    return share


def read(store: Store) -> list[AuditRow]:
    """What was drawn from what, by clip id; empty where nothing was.

    Raises:
        DatasetError: the table is damaged.
    """
    return tables.read(store, TABLE, AuditRow) if store.exists(TABLE) else []


def order(rows: Iterable[AuditRow]) -> list[str]:
    """Ids of the clips that were drawn, in the random order in which they are shown.

    Whoever stops half way has labelled a sample all the same.
    """
    drawn = [(row.position, row.clip_id) for row in rows if row.position is not None]
    return [clip_id for _, clip_id in sorted(drawn)]


def is_labelled(store: Store) -> bool:
    """Whether a sample was drawn, and at least one clip of it has a label."""
    reviews = review.read(store) if store.exists(TABLE) else {}
    return any(key in reviews and reviews[key].label != "none" for key in order(read(store)))


# ---------------------------------------------------------------------------------- estimating


@dataclass(frozen=True)
class Rate:
    """A fraction that a sample tells, 0 to 1.

    Attributes:
        value: the estimate; None where nothing that was labelled says anything of it.
        low, high: limits of its confidence interval (`CONFIDENCE`).
    """

    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Clips of one stratum on one side of a rule.

    Attributes:
        size: all clips.
        labelled: those with a label.
        hits: labelled clips that have the property which is counted.
    """

    size: int
    labelled: int
    hits: int


@dataclass(frozen=True)
class RuleResult:
    """What the labels say of one rule.

    Attributes:
        code: its reason.
        clips: that it rejects, alone or with others.
        labelled: of them.
        precision: fraction of the clips that it rejects which are bad.
        recall: fraction of all bad clips that it rejects.
        only_clips: clips that no other rule rejects.
        only_labelled: of them.
        only_precision: fraction of these which are bad. The others are what the rule costs.
    """

    code: str
    clips: int
    labelled: int
    precision: Rate
    recall: Rate
    only_clips: int
    only_labelled: int
    only_precision: Rate


@dataclass(frozen=True)
class AuditResult:
    """What the labels say of the rules as they are selected now.

    Attributes:
        seed: of the draw.
        population: clips that were drawn from, as far as they are judged now.
        left_out: clips that are judged now and were not there when the sample was drawn.
        drawn: clips of the sample.
        good, bad: labels of the sample.
        accepted: clips of the population that the rules accept.
        accepted_labelled: of them.
        precision: fraction of the accepted clips which are good.
        recall: fraction of the good clips which are accepted: the yield.
        rules: in the order of the funnel.
        accepted_bad: reason of the label -> accepted clips of the sample that are bad for it.
    """

    seed: int
    population: int
    left_out: int
    drawn: int
    good: int
    bad: int
    accepted: int
    accepted_labelled: int
    precision: Rate
    recall: Rate
    rules: tuple[RuleResult, ...]
    accepted_bad: dict[str, int]

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def result(store: Store) -> AuditResult:
    """What the labels say.

    Raises:
        CommandError: nothing was drawn. DatasetError: a table is damaged.
    """
    rows = read(store)
    if not rows:
        raise CommandError(f"{store.root}: no sample was drawn; `talkforge audit {store.root}` draws one")
    return judge_rules(rows, rule_reasons(store), review.read(store))


def judge_rules(
    rows: Sequence[AuditRow], reasons: Mapping[str, tuple[str, ...]], reviews: Mapping[str, ReviewRow]
) -> AuditResult:
    """Precision and recall of each rule and of all together.

    Args:
        rows: what was drawn from what.
        reasons: of the clips that are judged now, see `rule_reasons`.
        reviews: labels, by clip id.
    """
    known = [row for row in rows if row.clip_id in reasons]
    drawn = [row for row in known if row.position is not None]
    label = {
        row.clip_id: reviews[row.clip_id].label == "good"
        for row in drawn
        if row.clip_id in reviews and reviews[row.clip_id].label != "none"
    }

    def sides(is_in: Callable[[tuple[str, ...]], bool], is_good: bool) -> tuple[list[Cell], list[Cell]]:
        inside = {row.clip_id: is_in(reasons[row.clip_id]) for row in known}
        return (
            cells([row for row in known if inside[row.clip_id]], label, is_good),
            cells([row for row in known if not inside[row.clip_id]], label, is_good),
        )

    taken, rejected = sides(lambda codes: not codes, True)
    rules = []
    for code in CODES:
        caught, missed = sides(lambda codes, code=code: code in codes, False)  # type: ignore[misc]
        only, _ = sides(lambda codes, code=code: codes == (code,), False)  # type: ignore[misc]
        if caught:
            rules.append(
                RuleResult(
                    code=code,
                    clips=sum(cell.size for cell in caught),
                    labelled=sum(cell.labelled for cell in caught),
                    precision=fraction(caught),
                    recall=capture(caught, missed),
                    only_clips=sum(cell.size for cell in only),
                    only_labelled=sum(cell.labelled for cell in only),
                    only_precision=fraction(only),
                )
            )
    there = {row.clip_id for row in rows}
    false = (key for key, is_good in label.items() if not is_good and not reasons[key])
    return AuditResult(
        seed=rows[0].seed,
        population=len(known),
        left_out=sum(key not in there for key in reasons),
        drawn=len(drawn),
        good=sum(label.values()),
        bad=len(label) - sum(label.values()),
        accepted=sum(cell.size for cell in taken),
        accepted_labelled=sum(cell.labelled for cell in taken),
        precision=fraction(taken),
        recall=capture(taken, rejected),
        rules=tuple(rules),
        accepted_bad=dict(sorted(Counter(reviews[key].reason or "other" for key in false).items())),
    )


def cells(rows: Iterable[AuditRow], label: Mapping[str, bool], is_good: bool) -> list[Cell]:
    """One cell for each stratum of these clips; inside it the labelled ones are a simple random sample.

    Args:
        rows: the clips.
        label: whether a clip is good, of those that were drawn and labelled.
        is_good: whether good clips are counted, or bad ones.
    """
    strata: dict[str, list[str]] = {}
    for row in rows:
        strata.setdefault(row.stratum, []).append(row.clip_id)
    return [
        Cell(
            size=len(keys),
            labelled=sum(key in label for key in keys),
            hits=sum(label[key] == is_good for key in keys if key in label),
        )
        for _, keys in sorted(strata.items())
    ]


def fraction(cells: Sequence[Cell]) -> Rate:
    """Fraction of all clips of these cells that are hits.

    Args:
        cells: independent samples.
    """
    size = sum(cell.size for cell in cells)
    if not any(cell.labelled for cell in cells):
        return Rate(None, 0.0, 1.0)
    value, low, high = total(cells)
    return Rate(value / size, low / size, high / size)


def capture(inside: Sequence[Cell], outside: Sequence[Cell]) -> Rate:
    """Fraction of all hits that lie inside.

    The interval is that of the ratio of two independent estimates whose own limits are known.

    Source: Donner and Zou, Closed-form confidence intervals for functions of the normal mean and standard
    deviation, Statistical Methods in Medical Research 21(4), 2012, equation for the ratio (MOVER-R).

    Args:
        inside: cells on the side in question.
        outside: all others.
    """
    a, b = total(inside), total(outside)
    low, upside_down = _ratio_low(a, b), _ratio_low(b, a)
    value = a[0] / (a[0] + b[0]) if a[0] + b[0] > 0 else None
    return Rate(value, 1.0 if math.isinf(low) else low / (1 + low), 1 / (1 + upside_down))


def _ratio_low(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Lower limit of a / b, each with its estimate, lower and upper limit. Written without a difference of
    large numbers, so that it holds where an estimate is 0."""
    (value, low, _), (other, _, high) = a, b
    part, product = low * (2 * value - low), value * other
    below = product + math.sqrt(max(0.0, product**2 - part * high * (2 * other - high)))
    if part <= 0:
        return 0.0
    return part / below if below > 0 else math.inf


def total(cells: Sequence[Cell]) -> tuple[float, float, float]:
    """Number of hits among all clips of these cells: estimate, lower and upper limit.

    Each cell's limits are Wilson's, and limits of a sum follow from those of its terms. A cell in which
    nothing is labelled counts with the fraction of the others, and may be anything.

    Source: Yan and Su, Stratified Wilson and Newcombe confidence intervals for multiple binomial
    proportions, Statistics in Biopharmaceutical Research 2(3), 2010; for the sum Zou and Donner, Construction
    of confidence limits about effect measures, Statistics in Medicine 27(10), 2008.

    Args:
        cells: independent samples.
    """
    known = [cell for cell in cells if cell.labelled]
    among = sum(cell.size for cell in known)
    pooled = sum(cell.size * cell.hits / cell.labelled for cell in known) / among if among else 0.0
    value = below = above = 0.0
    for cell in cells:
        rate = cell.hits / cell.labelled if cell.labelled else pooled
        low, high = wilson(rate, cell) if cell.labelled else (0.0, 1.0)
        value += cell.size * rate
        below += (cell.size * (rate - low)) ** 2
        above += (cell.size * (high - rate)) ** 2
    size = sum(cell.size for cell in cells)
    return value, max(0.0, value - math.sqrt(below)), min(float(size), value + math.sqrt(above))


def wilson(rate: float, cell: Cell) -> tuple[float, float]:
    """Limits of the fraction of hits in a cell, with the correction for a finite population: where all of it
    is labelled, nothing is uncertain.

    Source: Wilson, Probable inference, JASA 22, 1927; Cochran, Sampling Techniques, 1977, section 2.6.

    Args:
        rate: of the labelled clips.
        cell: with at least one labelled clip.
    """
    if cell.labelled >= cell.size:
        return rate, rate
    n = cell.labelled * (cell.size - 1) / (cell.size - cell.labelled)
    middle = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
