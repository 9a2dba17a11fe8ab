"""Differences between sets, snapshots and thresholds: every clip that came or went has its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from talkforge.pipeline.compare import compare, read_side
from talkforge.pipeline.report import against
from talkforge.pipeline.report.charts import TOP
from talkforge.pipeline.report.quantities import Measure
from talkforge.pipeline.report.statistics import clips_table
from talkforge.schemas.config import Config
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


def test_the_report_stands_beside_another_set_or_snapshot(curated: Curated) -> None:
    code, output, _ = run("report", curated.dataset, "--against", f"{curated.dataset}@1")
    assert (code, output.splitlines()[-1]) == (0, f"{curated.dataset}/report/against.html")
    page = (curated.dataset / "report/against.html").read_text()
    assert "<script" not in page and page.count("<h2>") == 3 and page.rstrip().endswith("</html>")
    assert f"{curated.dataset}@1" in page and "None." in page
    keys = [row["clip_id"] for row in pq.read_table(curated.dataset / "ledger.parquet").to_pylist()]
    assert keys and not any(key in page for key in keys), "clips that may be erased elsewhere are not named"
    code, _, _ = run("select", curated.dataset, "-s", "thresholds.min_duration_s=19.9")
    assert code == 0 and not (curated.dataset / "report/against.html").exists(), "it was of another state"
    run("report", curated.dataset, "--against", f"{curated.dataset}@1")
    page = (curated.dataset / "report/against.html").read_text()
    found = compare(read_side(f"{curated.dataset}@1"), read_side(str(curated.dataset)))
    went = sum(row["duration_s"] for row in found["went"])
    assert re.search(rf"is rejected: too_short</td><td class=\"n\">{went:.1f} s</td>", page)
    assert "thresholds.min_duration_s: 3.0 -&gt; 19.9" in page
    code, _, error = run("report", curated.dataset, "--against", f"{curated.dataset}@9")
    assert code == 2 and "no snapshot 9" in error


def test_two_histograms_have_one_scale_and_the_lengths_of_their_side(path: str) -> None:
    sides = read_side(f"{path}@1"), read_side(path)
    before, after = (clips_table(side.clips.reset_index()) for side in sides)
    chart = against._pair(Measure("duration_s", "Length"), before, after, Config())
    assert chart is not None
    left, right = ([text.text for text in ElementTree.fromstring(s).findall("text")] for s in chart["drawn"])
    assert left == right and "s" in left
    tops = [
        min(float(y) for y in re.findall(r"[ML][-\d.]+ ([-\d.]+)", one.get("d", "")))
        for svg in chart["drawn"]
        for one in list(ElementTree.fromstring(svg).iter("path"))[:1]
    ]
    # Before four clips of 1.1 s on average and after of 1.15 s; the fuller side reaches the top.
    assert min(tops) == pytest.approx(TOP, abs=0.1)
    assert against._pair(Measure("sync_c", "Sync-C"), before, after, Config()) is None
