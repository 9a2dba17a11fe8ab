"""Groups add up to the clips; correlations are those of ranks, with an interval that covers the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from talkforge.pipeline.report import relations
from talkforge.pipeline.report.relations import breakdown, correlations
from talkforge.pipeline.report.statistics import clips_table
from tests.pipeline.test_report import clip

V = [f"{n:012x}" for n in range(15)]


def test_groups_are_sorted_by_what_was_accepted_and_add_up() -> None:
    rows = [clip(f"c{n:02d}", V[n], float(n + 1), person_id=f"p{n % 2}") for n in range(15)]
    rows[14] = clip("c14", V[14], 15.0, ("face_small",))
    found = {part["field"]: part for part in breakdown(clips_table(pd.DataFrame(rows)))}
    people = found["person_id"]
    assert [(row["name"], row["accepted"]["clips"]) for row in people["rows"]] == [
        ("p1", 7),
        ("p0", 7),
        ("", 0),
    ]
    assert people["groups"] == 2
    assert people["rows"][0]["hours"] == pytest.approx(sum(range(2, 15, 2)) / 3600, abs=1e-6)
    assert [row["name"] for row in found["split"]["rows"]] == ["train", ""]
    sources = found["uri"]
    assert (sources["groups"], len(sources["rows"])) == (15, 10)
    assert sources["rows"][0]["name"] == f"/in/{V[13]}.mp4"
    assert "language" not in found, "nothing was transcribed"


def test_correlations_are_those_of_ranks_among_clips_with_both() -> None:
    chance = np.random.default_rng(5)
    signal = chance.normal(0, 1, 400)
    frame = pd.DataFrame([clip(f"c{n:03d}", V[n % 15], 5.0) for n in range(400)])
    frame["snr_db"] = np.exp(signal)
    frame["music_fraction"] = -signal + chance.normal(0, 0.5, 400)
    frame["face_luma"] = chance.normal(0, 1, 400)
    frame["omega_face_raw"], frame["omega_face"] = np.exp(3 * signal), signal  # one quantity in two forms
    frame.loc[:99, ["omega_face_raw", "omega_face"]] = np.nan
    frame.loc[390:, "music_fraction"] = np.nan
    found = correlations(clips_table(frame))
    pairs = {tuple(pair["fields"]): pair for pair in found}
    assert ("omega_face_raw", "omega_face") not in pairs
    assert not any("face_luma" in fields for fields in pairs)
    pair = pairs["snr_db", "music_fraction"]
    truth = spearmanr(frame["snr_db"][:390], frame["music_fraction"][:390]).statistic
    assert pair["value"] == pytest.approx(truth, abs=2e-3)
    assert pair["clips"] == 390
    assert pair["low"] < pair["value"] < pair["high"] < -0.8


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 draws of 60 clips from a distribution whose rank correlation is 0.786, 95 % hold it."""
    monkeypatch.setattr(relations, "CORRELATED", 0.0)
    chance = np.random.default_rng(11)
    frame = clips_table(pd.DataFrame([clip(f"c{n:02d}", V[0], 5.0) for n in range(60)]))
    frame = frame.drop(columns=["face_px", "face_clip_px"]).reindex(columns=[*frame.columns])
    hits = 0
    for _ in range(200):
        x = chance.normal(0, 1, 60)
        frame["snr_db"], frame["face_luma"] = x, 0.8 * x + 0.6 * chance.normal(0, 1, 60)
        (pair,) = correlations(frame)
        hits += pair["low"] <= 6 / np.pi * np.arcsin(0.8 / 2) <= pair["high"]
    assert 180 <= hits <= 198
