"""Differences between sets, snapshots and thresholds: every clip that came or went has its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talkforge.pipeline.compare import compare, read_side
from talkforge.schemas.errors import CommandError
from tests.command_line import run
from tests.conftest import Curated
from tests.pipeline.exports.published_set import publish
from tests.training.shard_files import Shown


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Snapshot 1: clips 0 to 3, 7 rejected. Snapshot 2: 0, 4, 7 and a longer 3; 1 rejected, 2 gone."""
    folder = tmp_path_factory.mktemp("compared") / "set"
    publish(folder)
    clips = {"train": [[Shown(0), Shown(3, num_frames=25), Shown(4), Shown(7)]]}
    publish(folder, clips, rejected=[Shown(1)])
    return str(folder)


def test_clips_that_came_and_went_have_their_reason(path: str) -> None:
    found = compare(read_side(f"{path}@1"), read_side(path))
    assert found["came"] == [
        {"clip_id": "clip04", "why": "no candidate", "duration_s": 1.2},
        {"clip_id": "clip07", "why": "was rejected: too_short", "duration_s": 1.2},
    ]
    assert found["went"] == [
        {"clip_id": "clip01", "why": "is rejected: too_short", "duration_s": 1.2},
        {"clip_id": "clip02", "why": "no candidate", "duration_s": 1.2},
    ]
    assert found["why"]["came"] == {"no candidate": 1, "was rejected: too_short": 1}
    assert (found["kept"], found["reasons"]) == (2, {"too_short": [1, 1]})
    assert found["changed"] == {"duration_s": 1, "end_s": 1, "num_frames": 1}
    assert [side["accepted"] for side in found["sides"]] == [4, 4]
    assert [side["kept_s"] for side in found["sides"]] == [4.4, 4.6]
    assert [side["splits"] for side in found["sides"]] == [{"train": 3, "validation": 1}, {"train": 4}]
    length = next(one for one in found["measures"] if one["field"] == "duration_s")
    assert (length["known"], length["quantiles"]["0.5"]) == ([4, 4], [1.2, 1.2])
    assert "sync_probability" not in [one["field"] for one in found["measures"]]


def test_a_set_does_not_differ_from_itself(path: str) -> None:
    found = compare(read_side(path), read_side(f"{path}@2"))
    assert (found["came"], found["went"], found["changed"], found["settings"]) == ([], [], {}, [])
    code, output, _ = run("diff", path, f"{path}@2")
    assert (code, output.splitlines()[-1]) == (0, "no difference in 4 accepted clips")


def test_the_command_names_both_sides(path: str) -> None:
    code, output, _ = run("diff", f"{path}@1", path)
    assert code == 0
    assert "came: 1 (was rejected: too_short)" in output and "  clip07  was rejected: too_short" in output
    assert "measured anew: num_frames differs in 1 clips" in output
    code, output, _ = run("diff", f"{path}@1", path, "--json")
    assert json.loads(output)["went"][1]["clip_id"] == "clip02"


def test_what_cannot_be_compared_is_said(path: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no snapshot 9; there are: 1, 2"):
        read_side(f"{path}@9")
    with pytest.raises(CommandError, match="no data set here"):
        read_side(str(tmp_path / "nothing"))
    for arguments in ((path,), (path, path, "-s", "thresholds.min_face_px=1")):
        code, _, error = run("diff", *arguments)
        assert (code, error.strip()) == (
            2, "talkforge: diff: expected another data set, or other thresholds (--set)"
        )  # fmt: skip


def test_other_thresholds_are_compared_without_writing(curated: Curated) -> None:
    before = {path: path.read_bytes() for path in curated.dataset.rglob("*.parquet")}
    code, output, _ = run("diff", curated.dataset, "-s", "thresholds.min_duration_s=19.9", "--json")
    found = json.loads(output)
    assert code == 0 and found["settings"] == ["thresholds.min_duration_s: 3.0 -> 19.9"]
    assert found["went"] and {row["why"] for row in found["went"]} == {"is rejected: too_short"}
    assert found["sides"][1]["accepted"] == found["sides"][0]["accepted"] - len(found["went"])
    assert {path: path.read_bytes() for path in curated.dataset.rglob("*.parquet")} == before
