"""The main job on real footage: each clip's verdict is the right one, for the right reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Row = dict[str, Any]
Rows = dict[str, list[Row]]

TALKFORGE = Path(sys.executable).with_name("talkforge")
CONFIG = Path(__file__).parents[2] / "configs" / "offline.yaml"


@pytest.fixture(scope="module")
def dataset(clips_dir: Path, weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All twelve clips, curated through Ray with MobileFaceNet for identity."""
    out = tmp_path_factory.mktemp("real") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALKFORGE_MODELS", str(weights_dir))
        done = subprocess.run(
            [TALKFORGE, "curate", clips_dir, "--out", out, "--config", CONFIG],
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def ledger(dataset: Path) -> Rows:
    rows: Rows = {}
    for row in pq.read_table(dataset / "ledger.parquet").to_pylist():
        rows.setdefault(Path(row["uri"]).name, []).append(row)
    return rows


@pytest.fixture(scope="module")
def sources(dataset: Path) -> dict[str, Row]:
    return {Path(row["uri"]).name: row for row in pq.read_table(dataset / "sources.parquet").to_pylist()}


@pytest.mark.parametrize("name", ["bbaf2n", "brbk7n", "id2_swwp2s", "lrwp9a"])
def test_frontal_speakers_are_kept_whole(ledger: Rows, name: str) -> None:
    (row,) = ledger[f"grid_{name}.mpg"]
    assert (row["accepted"], row["reasons"], row["num_frames"]) == (True, [], 75)


def test_an_animation_has_no_face(sources: dict[str, Row]) -> None:
    row = sources["sk_bigbuckbunny.mp4"]
    assert (row["status"], row["reason"]) == ("no_candidates", "no_face")


def test_a_silent_film_has_no_audio(sources: dict[str, Row]) -> None:
    row = sources["sk_carphone_pristine.mp4"]
    assert (row["status"], row["reason"]) == ("no_candidates", "no_audio")


def test_a_woman_who_does_not_speak(ledger: Rows) -> None:
    (row,) = ledger["lp_s18.mp4"]
    assert (row["reasons"], row["speech_fraction"], row["failure"]) == (["no_speech"], 0.0, None)


def test_a_slow_camera(ledger: Rows) -> None:
    (row,) = ledger["vr_1.mp4"]
    assert row["reasons"] == ["low_frame_rate"]
    assert row["source_fps"] == pytest.approx(22.1, abs=0.3)


def test_a_small_face_in_a_tall_picture_is_kept(ledger: Rows) -> None:
    assert [row["accepted"] for row in ledger["ls_demo3.mp4"]] == [True, True]


def test_the_stage_is_rejected_with_its_evidence(ledger: Rows) -> None:
    rows = ledger["fr_hamilton.mp4"]
    assert rows
    for row in rows:
        assert row["reasons"]
        assert len(row["reason_details"]) == len(row["reasons"])


def test_gestures_move_the_body_more_than_a_newsreader_does(
    ledger: Rows,
) -> None:
    still = max(row["omega_body_raw"] for name in ("bbaf2n", "lrwp9a") for row in ledger[f"grid_{name}.mpg"])
    moving = min(row["omega_body_raw"] for row in ledger["ls_demo3.mp4"])
    assert moving > 10 * still


def test_people_are_told_apart(ledger: Rows) -> None:
    alone = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_lrwp9a.mpg", "st_katie.mp4", "ls_demo3.mp4")
    people = [{row["person_id"] for row in ledger[name]} for name in alone]
    assert [len(who) for who in people] == [1] * len(alone)
    assert len(set.union(*people)) == len(alone)


def test_nothing_is_lost(ledger: Rows, sources: dict[str, Row]) -> None:
    assert len(sources) == 12
    for name, row in sources.items():
        assert row["num_clips"] == len(ledger.get(name, []))
    for rows in ledger.values():
        for row in rows:
            assert bool(row["accepted"]) + bool(row["reasons"]) + (row["failure"] is not None) == 1


def test_the_data_set_is_sound(dataset: Path) -> None:
    done = subprocess.run(
        [TALKFORGE, "verify", dataset], capture_output=True, text=True, timeout=1800, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
