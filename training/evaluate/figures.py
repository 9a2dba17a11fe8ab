"""Figures of many videos: means with bootstrap intervals, paired differences, Fréchet distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from talkforge.schemas.arrays import Doubles
from talkforge.training.evaluate.metrics import METRICS, Metric, badness

RESAMPLES = 2000
"""Draws of a bootstrap."""

SEED = 0
"""Of the bootstraps, so that a report is the same each time."""

Row = Mapping[str, float | None]
"""Measures of one video by the name of their metric."""


@dataclass(frozen=True)
class Estimate:
    """A mean over videos with its 95 % interval.

    Attributes:
        mean: over the videos in which it could be measured; None where there are none.
        low: lower end of the interval; None with fewer than two videos.
        high: upper end; likewise.
        count: how many videos.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Figure:
    """What is said of one metric.

    Attributes:
        metric: the metric.
        generated: of the generated videos.
        truth: of the true videos; None where it is not measured in a single video.
        difference: generated minus true, pair by pair; None likewise.
        why_not: why it was not computed; empty where it was.
    """

    metric: Metric
    generated: Estimate
    truth: Estimate | None
    difference: Estimate | None
    why_not: str = ""


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and 95 % interval of what could be measured, by the percentiles of a bootstrap over videos.

    Args:
        values: one for each video.
    """
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return Estimate(None, None, None, 0)
    mean = float(known.mean())
    if len(known) < 2:
        return Estimate(mean, None, None, 1)
    draws = np.random.default_rng(SEED).integers(0, len(known), (RESAMPLES, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(mean, float(low), float(high), len(known))


def figures(
    generated: Sequence[Row], truth: Sequence[Row], of_sets: Row, why_not: Mapping[str, str]
) -> list[Figure]:
    """One figure for each metric.

    Args:
        generated: measures of each generated video.
        truth: those of its true video, in the same order.
        of_sets: values of the metrics of whole sets.
        why_not: why a metric was not computed, by its name.
    """
    found = []
    for name, metric in METRICS.items():
        if metric.of == "set":
            value = of_sets.get(name)
            own = Estimate(value, None, None, len(generated) if value is not None else 0)
            found.append(Figure(metric, own, None, None, why_not.get(name, "")))
            continue
        own = estimate([row.get(name) for row in generated])
        if metric.of == "pair":
            found.append(Figure(metric, own, None, None, why_not.get(name, "")))
            continue
        pairs = zip(generated, truth, strict=True)
        differences = [difference(one.get(name), other.get(name)) for one, other in pairs]
        theirs = estimate([row.get(name) for row in truth])
        found.append(Figure(metric, own, theirs, estimate(differences), why_not.get(name, "")))
    return found


def difference(one: float | None, other: float | None) -> float | None:
    """One minus the other; None where either is not known."""
    return None if one is None or other is None else one - other


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, compared video by video.

    Attributes:
        metric: the metric.
        ours: mean over the videos that both have.
        theirs: likewise, of the other evaluation.
        difference: ours minus theirs.
        better: by how much ours is nearer to the best; above 0 it is better.
    """

    metric: Metric
    ours: Estimate
    theirs: Estimate
    difference: Estimate
    better: Estimate


def compare(ours: Mapping[str, Row], theirs: Mapping[str, Row], truth: Mapping[str, Row]) -> list[Comparison]:
    """Paired differences of two evaluations, for every metric that single videos have.

    Args:
        ours: measures of each generated video, by key.
        theirs: those of the other evaluation.
        truth: those of the true videos of ours.
    """
    keys = sorted(ours.keys() & theirs.keys())
    found = []
    for name, metric in METRICS.items():
        if metric.of == "set":
            continue
        rows = [(ours[key].get(name), theirs[key].get(name), _truth(metric, truth[key])) for key in keys]
        known = [row for row in rows if row[0] is not None and row[1] is not None]
        if not known:
            continue
        gains = [difference(badness(metric, b, t), badness(metric, a, t)) for a, b, t in known]
        found.append(
            Comparison(
                metric,
                estimate([a for a, _, _ in known]),
                estimate([b for _, b, _ in known]),
                estimate([difference(a, b) for a, b, _ in known]),
                estimate(gains),
            )
        )
    return found


def _truth(metric: Metric, row: Row) -> float | None:
    """What a value of 'truth' is compared with. The amplitude of the lip aperture is a ratio already."""
    return 1.0 if metric.of == "pair" else row.get(metric.name)


def frechet(one: Doubles, other: Doubles) -> float:
    """Fréchet distance of the normal distributions with the moments of two sets of features.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With centred features A and B, C1 is AᵀA / (n - 1) and C2
    BᵀB / (m - 1), so the trace of the root is the sum of the singular values of ABᵀ over the root of
    (n - 1)(m - 1). That needs no root of a matrix, and holds with fewer features than dimensions.

    Source: Heusel et al., GANs trained by a two time-scale update rule (NeurIPS 2017), eq. 6.

    Args:
        one: [n, D], n at least 2.
        other: [m, D], m at least 2.
    """
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    n, m = len(a) - 1, len(b) - 1
    means = float(((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum())
    root = float(np.linalg.svd(a @ b.T, compute_uv=False).sum()) / float(np.sqrt(n * m))
    return means + float((a**2).sum()) / n + float((b**2).sum()) / m - 2 * root
