"""The checks of the self-test: they pass where an evaluation is sound, and fail where it is blind."""

from __future__ import annotations

import pytest

from talkforge.training.evaluate.measures import Values
from talkforge.training.evaluate.self_test import EXPECTATIONS, VERSIONS, checks

SOUND: dict[str, Values] = {
    "truth": {
        "lip_aperture_r": 1.0, "lip_aperture_ratio": 1.0, "fid": 0.0, "sync_probability": 0.95, "sync_c": 6.0,
        "av_delay_ms": 20.0, "sharpness": 90.0, "jitter": 2.0, "flow_subject": 1.5, "head_motion_deg": 1.0,
    },
    "re-encoded": {
        "lip_aperture_r": 0.9, "sync_probability": 0.9, "sharpness": 60.0, "identity_similarity": 0.97,
        "fid": 20.0,
    },
    "shifted": {"sync_probability": 0.02, "av_delay_ms": -380.0, "sync_c": 1.0},
    "swapped": {"identity_similarity": 0.8, "lip_aperture_r": 0.1, "sync_probability": 0.3},
    "frozen": {
        "frozen_fraction": 1.0, "lip_aperture_r": 0.0, "still_fraction": 1.0, "flow_subject": 0.0,
        "head_motion_deg": 0.1,
    },
    "noise": {"jitter": 7.0, "sharpness": 250.0, "fid": 90.0},
}  # fmt: skip
"""Means as a sound evaluation finds them."""


def test_a_sound_evaluation_passes_every_check() -> None:
    found = checks(SOUND)
    assert [check.passed for check in found] == [True] * len(EXPECTATIONS)
    assert {check.version for check in found} == set(VERSIONS)


@pytest.mark.parametrize("one", EXPECTATIONS, ids=lambda one: f"{one.version} {one.metric}")
def test_each_check_fails_where_its_metric_is_blind(one: object) -> None:
    """A blind metric says of a spoiled video what it says of the one that it is compared with."""
    version, metric, than = one.version, one.metric, one.than  # type: ignore[attr-defined]
    blind = {name: dict(values) for name, values in SOUND.items()}
    same = {"lip_aperture_r": 0.5, "lip_aperture_ratio": 0.5, "fid": 5.0}
    blind[version][metric] = SOUND[than][metric] if than else same.get(metric, 0.5)
    (check,) = [check for check in checks(blind) if (check.version, check.metric) == (version, metric)]
    assert check.passed is False and check.found == blind[version][metric]


def test_what_could_not_be_measured_is_neither_passed_nor_failed() -> None:
    blind = {**SOUND, "shifted": {**SOUND["shifted"], "av_delay_ms": None}}
    (check,) = [one for one in checks(blind) if one.metric == "av_delay_ms"]
    assert check.passed is None and check.found is None


def test_versions_and_metrics_that_were_not_measured_are_left_out() -> None:
    alone = {name: values for name, values in SOUND.items() if name != "swapped"}  # there was one video
    alone["truth"] = {**alone["truth"], "fid": None, "sync_c": None}  # without their weights
    left = {(one.version, one.metric) for one in EXPECTATIONS} - {
        (check.version, check.metric) for check in checks(alone)
    }
    assert left == {
        ("swapped", "identity_similarity"), ("swapped", "lip_aperture_r"), ("swapped", "sync_probability"),
        ("truth", "fid"), ("noise", "fid"), ("shifted", "sync_c"),
    }  # fmt: skip
