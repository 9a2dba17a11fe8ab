"""Means, intervals, paired differences and Fréchet distances, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from talkforge.training.evaluate.figures import Estimate, compare, estimate, figures, frechet
from talkforge.training.evaluate.metrics import FREE, METRICS, PAPER, badness


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Features that have exactly this mean and covariance."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    whitened = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T)).T)
    return np.asarray(whitened @ np.linalg.cholesky(covariance).T + mean)


def test_the_frechet_distance_of_known_gaussians() -> None:
    # Diagonal covariances commute: the distance is |m1 - m2|^2 + sum of (s1 - s2)^2.
    one = with_moments(np.array([0.0, 0, 0]), np.diag([1.0, 4, 9]), 500, 1)
    other = with_moments(np.array([3.0, 0, 4]), np.diag([4.0, 4, 1]), 300, 2)
    assert frechet(one, other) == pytest.approx(25 + 1 + 0 + 4, abs=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_without_commuting_covariances_is_that_of_the_matrix_root() -> None:
    a, b = np.array([[2.0, 1], [1, 3]]), np.array([[1.0, -0.5], [-0.5, 2]])
    one, other = with_moments(np.zeros(2), a, 50, 3), with_moments(np.ones(2), b, 60, 4)
    expected = 2 + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet(one, other) == pytest.approx(expected, abs=1e-9)


def test_fewer_features_than_dimensions_have_a_distance() -> None:
    """The covariances are singular then, and the root of their product is not defined by most routines."""
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(6, 40)), rng.normal(size=(5, 40)) + 1
    a, b = np.cov(one.T), np.cov(other.T)
    roots = np.sqrt(np.clip(np.real(np.linalg.eigvals(a @ b)), 0, None))
    means = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = means + np.trace(a) + np.trace(b) - 2 * roots.sum()
    assert frechet(one, other) == pytest.approx(expected, rel=1e-5)


def test_an_estimate_has_the_interval_of_a_bootstrap_over_what_is_known() -> None:
    values = [float(value) for value in range(100)]
    found = estimate([*values, None])
    assert found.mean == 49.5 and found.count == 100 and found.low is not None and found.high is not None
    # The standard error of the mean is 28.87 / 10: the interval is about 49.5 -+ 1.96 * 2.887.
    assert found.low == pytest.approx(43.84, abs=0.5) and found.high == pytest.approx(55.16, abs=0.5)
    assert found == estimate(values)  # the same each time
    assert estimate([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0, 2)
    assert estimate([3.0, None]) == Estimate(3.0, None, None, 1)
    assert estimate([None]) == Estimate(None, None, None, 0)


def test_figures_are_paired_and_say_why_not() -> None:
    made = [{"jitter": 3.0, "lip_aperture_r": 0.5}, {"jitter": 5.0, "lip_aperture_r": None}]
    true = [{"jitter": 2.0}, {"jitter": 2.0}]
    found = {one.metric.name: one for one in figures(made, true, {"fid": 12.5}, {"sync_c": "no weights"})}
    assert list(found) == [metric.name for metric in (*PAPER, *FREE)]
    jitter = found["jitter"]
    assert jitter.truth is not None and jitter.difference is not None
    assert (jitter.generated.mean, jitter.truth.mean, jitter.difference.mean) == (4.0, 2.0, 2.0)
    pair = found["lip_aperture_r"]
    assert (pair.generated.mean, pair.generated.count, pair.truth) == (0.5, 1, None)
    assert found["fid"].generated == Estimate(12.5, None, None, 2)
    assert found["sync_c"].why_not == "no weights" and found["sync_c"].generated.mean is None


def test_the_better_of_two_is_the_one_nearer_to_the_best() -> None:
    ours = {"a": {"jitter": 1.0, "av_delay_ms": -80.0, "head_motion_deg": 2.0, "sync_probability": 0.9}}
    theirs = {"a": {"jitter": 4.0, "av_delay_ms": 40.0, "head_motion_deg": 5.0, "sync_probability": 0.5}}
    truth = {"a": {"head_motion_deg": 4.5, "sync_probability": 1.0}}
    found = {one.metric.name: one for one in compare(ours, theirs, truth)}
    better = {name: one.better.mean for name, one in found.items()}
    assert better == {
        "sync_probability": pytest.approx(0.4),
        "av_delay_ms": -40.0,  # 80 ms early is worse than 40 ms late
        "jitter": 3.0,
        "head_motion_deg": -2.0,  # 2.5 degrees from the truth, against 0.5
    }
    assert found["jitter"].difference.mean == -3.0


def test_the_amplitude_of_the_lips_is_best_at_one() -> None:
    found = compare({"a": {"lip_aperture_ratio": 0.9}}, {"a": {"lip_aperture_ratio": 1.3}}, {"a": {}})
    assert [(one.metric.name, one.better.mean) for one in found] == [
        ("lip_aperture_ratio", pytest.approx(0.2))
    ]


@pytest.mark.parametrize(
    ("name", "value", "truth", "expected"),
    [
        ("sync_probability", 0.25, None, -0.25),
        ("jitter", 2.0, None, 2.0),
        ("av_delay_ms", -80.0, None, 80.0),
        ("blinks_per_min", 10.0, 25.0, 15.0),
        ("blinks_per_min", 10.0, None, None),
        ("jitter", None, None, None),
        ("jitter", float("nan"), None, None),
    ],
)
def test_badness(name: str, value: float | None, truth: float | None, expected: float | None) -> None:
    assert badness(METRICS[name], value, truth) == expected
