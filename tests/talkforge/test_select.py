"""`select`: a dry run, another preset, the way back, and shards that hold what is no longer accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.command_line import run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def accepted(dataset: Path) -> list[bool]:
    return pq.read_table(dataset / "ledger.parquet")["accepted"].to_pylist()


def thresholds(dataset: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dataset / "dataset.json").read_text())["config"]["thresholds"]
    return found


def face_px(dataset: Path) -> dict[str, float]:
    """Face size by shard."""
    rows = pq.read_table(dataset / "ledger.parquet").to_pylist()
    return {row["shard"]: row["face_px"] for row in rows}


def test_a_dry_run_shows_the_difference_and_writes_nothing(curated: Any) -> None:
    before = contents(curated.dataset)
    command = ("select", curated.dataset, "-s", "thresholds.min_face_px=5000", "--dry-run")
    code, out, _ = run(*command)
    assert code == 0
    assert contents(curated.dataset) == before
    rows = [line.split() for line in out.splitlines()]
    assert rows[:5] == [
        ["now", "then", "difference"],
        ["accepted", "2", "0", "-2"],
        ["kept", "8.0", "s", "0.0", "s", "-8.0", "s"],
        ["rejected", "0", "2", "+2"],
        ["face_small", "0", "2", "+2"],
    ]
    assert "selected in" not in out

    code, out, _ = run(*command, "--json")
    found = json.loads(out)
    assert (code, found["dry_run"], found["before"]["kept_s"], found["kept_s"]) == (0, True, 8.0, 0.0)
    assert found["reasons"] == {"face_small": 2}
    assert found["clips"] == {"candidates": 2, "accepted": 0, "rejected": 2, "failed": 0}
    assert [setting.partition(":")[0] for setting in found["changed_settings"]] == ["thresholds.min_face_px"]
    assert contents(curated.dataset) == before


def test_shards_with_clips_that_are_not_accepted_any_more_are_named(curated: Any) -> None:
    sizes = face_px(curated.dataset)
    small, large = sorted(sizes, key=lambda shard: sizes[shard])
    between = (sizes[small] + sizes[large]) / 2
    for options in (("--dry-run",), ()):
        command = ("select", curated.dataset, "-s", f"thresholds.min_face_px={between}", *options)
        code, out, _ = run(*command)
        assert code == 0
        assert (
            f"stale shards, with clips that are not accepted any more: {small} (1): "
            f"talkforge shard {curated.dataset}\n"
        ) in out
        assert json.loads(run(*command, "--json")[1])["stale_shards"] == {small: 1}
    assert run("shard", curated.dataset, "--executor", "inline")[0] == 0
    code, out, _ = run("select", curated.dataset, "--json")
    assert (code, json.loads(out)["stale_shards"]) == (0, {})


def test_reset_goes_back_to_what_the_data_set_was_made_with(curated: Any) -> None:
    before = thresholds(curated.dataset)
    assert run("select", curated.dataset, "-s", "thresholds.min_face_px=5000")[0] == 0
    assert accepted(curated.dataset) == [False, False]
    assert run("select", curated.dataset, "-s", "thresholds.max_yaw_p95_deg=70")[0] == 0
    changed = thresholds(curated.dataset)
    assert (changed["min_face_px"], changed["max_yaw_p95_deg"]) == (5000, 70)  # what is not named stays
    code, out, _ = run("select", curated.dataset, "--reset")
    assert code == 0
    assert "2 candidate clips: 2 accepted (8.0 s), 0 rejected, 0 failed" in out
    assert accepted(curated.dataset) == [True, True]
    assert thresholds(curated.dataset) == before
    assert before["min_face_px"] == 64


def test_settings_are_laid_over_what_reset_goes_back_to(curated: Any) -> None:
    before = thresholds(curated.dataset)
    assert run("select", curated.dataset, "-s", "thresholds.min_face_px=5000")[0] == 0
    assert run("select", curated.dataset, "--reset", "-s", "thresholds.max_yaw_p95_deg=70")[0] == 0
    assert thresholds(curated.dataset) == {**before, "max_yaw_p95_deg": 70}


def test_another_configuration_gives_thresholds_and_nothing_of_measuring(
    curated: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("measure: {motion: {body: mediapipe}}\nthresholds: {min_face_px: 5000}\n")
    before = json.loads((curated.dataset / "dataset.json").read_text())["config"]
    code, _, _ = run("select", curated.dataset, "--config", file)
    after = json.loads((curated.dataset / "dataset.json").read_text())["config"]
    assert (code, accepted(curated.dataset)) == (0, [False, False])
    assert after["thresholds"]["min_face_px"] == 5000
    assert after["measure"] == before["measure"]
    assert before["measure"]["motion"]["body"] == "none"
    assert before["shards"]["max_samples"] == 1 != after["shards"]["max_samples"]

    code, _, _ = run("select", curated.dataset, "--config", file, "-s", "thresholds.min_face_px=10")
    assert (code, accepted(curated.dataset)) == (0, [True, True])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--reset", "--config", "offline"], "--reset: goes without --config"),
        (["--config", "ofline"], "configuration ofline: "),
        (["--config", "tiny-stage1"], "configuration tiny-stage1: the preset configures train"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(curated: Any, options: list[str], told: str) -> None:
    before = contents(curated.dataset)
    code, out, err = run("select", curated.dataset, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"talkforge: {told}")
    assert contents(curated.dataset) == before
