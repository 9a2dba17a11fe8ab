"""The commands that work on a data set that was measured."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import talkforge
from examples.talking_heads import varied_take, write
from talkforge import display
from talkforge.cli import output
from talkforge.curation import media, trace
from talkforge.curation.weights import registry
from talkforge.curation.weights.download import FetchProgress, ProgressCallback
from talkforge.pipeline import cut, jobs, tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.measured import read_measured
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import ClipMeasures
from tests.command_line import run

Row = dict[str, Any]

SETTINGS = ("thresholds.min_face_px=64", "shards.max_samples=1", "motion.body=none")
"""Those of the fixture's data set."""


def ledger(dataset: Path) -> dict[str, Row]:
    return {Path(row["uri"]).name: row for row in pq.read_table(dataset / "ledger.parquet").to_pylist()}


def files(folder: Path, pattern: str) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.glob(pattern))}


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be decoded any more."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a video was opened")

    for module, name in [(media, "read_frames"), (media, "read_audio"), (trace, "read_frames"), (av, "open")]:
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_decoder")
def test_status_says_what_is_done(curated: Any) -> None:
    code, out, err = run("status", curated.dataset)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "3 inputs, 9.0 s: 2 measured, 1 no candidates",
        "measured 9.0 s of 9.0 s, parts 1/1",
        "2 candidate clips: 2 accepted (8.0 s), 0 rejected, 0 failed",
    ]


@pytest.mark.usefixtures("no_decoder")
def test_status_counts_what_is_left(curated: Any) -> None:
    (marker,) = curated.dataset.glob("parts/*/part.json")
    marker.unlink()
    assert run("status", curated.dataset)[1].splitlines() == [
        "3 inputs, 9.0 s: 3 pending",
        "measured 0.0 s of 9.0 s, parts 0/1",
        "0 candidate clips: 0 accepted (about 0.0 s), 0 rejected, 0 failed",
        "not selected since: speakers and near duplicates are not counted yet",
    ]


@pytest.fixture
def grown(curated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[object]]:
    """The data set after a run over three more inputs (a broken one, a copy, and one that waits to be
    measured) was interrupted before it measured anything; and the command that goes on."""
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(curated.videos / "a.mp4", more / "copy.mp4")
    (more / "broken.mp4").write_bytes(b"no video")
    write(more / "waits.mp4", varied_take(7))
    config = [f"--set={value}" for value in SETTINGS]
    command = ["curate", curated.videos, more, "-o", curated.dataset, "-c", "offline", *config]
    command += ["--executor", "inline"]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "measure", interrupt)
        assert run(*command)[0] == 130
    return curated.dataset, command


def test_an_input_that_waits_is_pending_at_once(grown: Any) -> None:
    dataset, _ = grown
    code, out, _ = run("status", dataset, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["inputs"] == {
        "total": 6, "measured": 2, "no_candidates": 1, "pending": 1, "duplicate": 1, "failed": 1,
    }  # fmt: skip
    assert (found["exact"], found["parts"]) == (False, {"done": 1, "total": 2})
    assert (found["input_s"], found["measured_s"], found["planned_s"]) == (17.0, 9.0, 13.0)


def test_status_counts_clips_of_an_earlier_version_as_well(grown: Any) -> None:
    """Their parts lack the height of the face in the clip."""
    dataset, _ = grown
    before = json.loads(run("status", dataset, "--json")[1])
    store = Store(str(dataset))
    for name in [name for name in store.list("parts") if name.endswith("/clips.parquet")]:
        rows = tables.read(store, name, ClipMeasures)
        lacking = {"face_clip_px": None, "faces_frame_max": None}
        faces = [row.face.model_copy(update=lacking) if row.face else None for row in rows]
        old = [row.model_copy(update={"face": face}) for row, face in zip(rows, faces, strict=True)]
        assert old != rows
        tables.write(store, name, ClipMeasures, old)
    found = json.loads(run("status", dataset, "--json")[1])
    assert found["kept_s"] == before["kept_s"] == 8.0 and not found["exact"]


def test_hours_are_the_same_wherever_they_are_shown(grown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, command = grown
    code, out, _ = run("select", dataset, "--json")
    selected = json.loads(out)
    assert (code, selected["kept_s"], selected["input_s"]) == (0, 8.0, 17.0)
    status = json.loads(run("status", dataset, "--json")[1])
    assert status["exact"]
    same = ("inputs", "input_s", "clips", "kept_s", "reasons")
    assert {key: status[key] for key in same} == {key: selected[key] for key in same}
    report = json.loads((dataset / "report" / "statistics.json").read_text())
    assert report["headline"]["input"]["hours"] == round(selected["input_s"] / 3600, 6)
    assert report["headline"]["accepted"] == {"clips": 2, "hours": round(selected["kept_s"] / 3600, 6)}
    counts = {
        name.removeprefix("sources_"): n for name, n in report["conservation"].items() if "sources" in name
    }
    assert counts == {"sources": 6} | {name: n for name, n in selected["inputs"].items() if name != "total"}
    monkeypatch.setattr(jobs, "measure", lambda _, store, *__: read_measured(store))  # as if it were done
    code, out, _ = run(*command)
    lines = [
        "6 inputs, 17.0 s: 1 duplicate, 1 failed, 2 measured, 1 no candidates, 1 pending",
        "2 candidate clips: 2 accepted (8.0 s), 0 rejected, 0 failed",
    ]
    assert (code, out.splitlines()[:2]) == (0, lines)
    assert [line for line in run("status", dataset)[1].splitlines() if line in lines] == lines


@pytest.mark.usefixtures("no_decoder")
def test_other_thresholds_take_effect_without_decoding(curated: Any) -> None:
    before = ledger(curated.dataset)
    assert {name: row["accepted"] for name, row in before.items()} == {"a.mp4": True, "b.mp4": True}
    larger, smaller = sorted(before, key=lambda name: -before[name]["face_px"])
    between = (before[larger]["face_px"] + before[smaller]["face_px"]) / 2
    code, out, err = run("select", curated.dataset, "-q", "-s", f"thresholds.min_face_px={between}")
    assert (code, err) == (0, "")
    assert "2 candidate clips: 1 accepted (4.0 s), 1 rejected, 0 failed" in out
    after = ledger(curated.dataset)
    assert (after[larger]["accepted"], after[larger]["reasons"]) == (True, [])
    assert after[larger]["shard"] == before[larger]["shard"] is not None
    assert (after[smaller]["accepted"], after[smaller]["reasons"]) == (False, ["face_small"])
    (detail,) = after[smaller]["reason_details"]
    assert detail == f"face_small (face_clip_px {before[smaller]['face_px']:.4g}, threshold {between:.4g})"
    assert (after[smaller]["split"], after[smaller]["shard"]) == (None, None)
    measures = ("clip_id", "face_px", "face_confidence", "lip_valid_fraction", "omega_face_raw")
    assert [[row[name] for name in measures] for row in after.values()] == [
        [row[name] for name in measures] for row in before.values()
    ]


def test_what_is_selected_is_what_is_cut(curated: Any) -> None:
    before = files(curated.dataset, "shards/*")
    assert len(before) == 4
    code, _, _ = run("select", curated.dataset, "--set", "thresholds.min_face_px=5000")
    assert code == 0
    code, out, err = run("shard", curated.dataset, "--executor", "inline", "--quiet")
    assert (code, err) == (0, "")
    assert "2 candidate clips: 0 accepted (0.0 s), 2 rejected, 0 failed" in out
    assert files(curated.dataset, "shards/*") == {}

    code, out, _ = run("select", curated.dataset, "--set", "thresholds.min_face_px=64")
    assert code == 0
    assert f"2 accepted clips are in no shard yet: talkforge shard {curated.dataset}" in out.replace("\n", "")
    assert run("shard", curated.dataset, "--executor", "inline")[0] == 0
    assert {row["shard"] for row in ledger(curated.dataset).values()} == {"train-000000", "train-000001"}
    after = files(curated.dataset, "shards/*")
    assert {name: data for name, (_, data) in after.items()} == {name: d for name, (_, d) in before.items()}
    assert run("verify", curated.dataset)[0] == 0


@pytest.mark.usefixtures("no_decoder")
def test_shards_that_are_as_they_should_be_are_left_alone(curated: Any) -> None:
    before = files(curated.dataset, "shards/*")
    assert run("shard", curated.dataset, "--executor", "inline")[0] == 0
    assert files(curated.dataset, "shards/*") == before


def test_only_what_is_missing_is_cut(curated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(curated.dataset, "shards/*")
    (curated.dataset / "shards" / "train-000001.tar").unlink()
    cuts: list[str] = []
    real: Callable[..., Any] = cut.cut
    monkeypatch.setattr(cut, "cut", lambda *args: cuts.append(args[1].meta.clip.clip_id) or real(*args))
    assert run("shard", curated.dataset, "--executor", "inline")[0] == 0
    assert cuts == []  # the snapshot has it
    assert files(curated.dataset, "shards/*.tar") == files(curated.dataset, "snapshots/000001/*.tar")

    for folder in ("shards", "snapshots/000001"):
        (curated.dataset / folder / "train-000001.tar").unlink()
    assert run("shard", curated.dataset, "--executor", "inline")[0] == 0
    (row,) = [row for row in ledger(curated.dataset).values() if row["shard"] == "train-000001"]
    assert cuts == [row["clip_id"]]
    after = files(curated.dataset, "shards/*")
    assert {name: data for name, (_, data) in after.items()} == {name: d for name, (_, d) in before.items()}
    assert after["train-000000.tar"] == before["train-000000.tar"]
    assert files(curated.dataset, "shards/*.tar") == files(curated.dataset, "snapshots/000001/*.tar")
    assert not (curated.dataset / "snapshots" / "000002").exists()


@pytest.mark.usefixtures("no_decoder")
def test_measuring_again_measures_nothing(curated: Any) -> None:
    config = Path(__file__).parents[2] / "configs" / "offline.yaml"
    settings = [f"--set={value}" for value in SETTINGS]
    before = files(curated.dataset, "**/*.*")
    command = ("curate", curated.videos, "--out", curated.dataset, "--config", config, *settings)
    code, out, _ = run(*command, "--executor", "inline")
    assert code == 0
    assert "2 accepted (8.0 s)" in out
    assert {name: data for name, (_, data) in files(curated.dataset, "**/*.*").items()} == {
        name: data for name, (_, data) in before.items()
    }
    code, out, _ = run(*command, "--executor", "inline", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["dataset"], found["dry_run"], found["failures"]) == (str(curated.dataset), False, {})
    assert (found["kept_s"], found["clips"]["accepted"], found["inputs"]["measured"]) == (8.0, 2, 2)
    rows = pq.read_table(curated.dataset / "sources.parquet").to_pylist()
    assert [(row["uri"], row["status"]) for row in rows if row["status"] in ("failed", "no_candidates")] == [
        (row["uri"], row["status"]) for row in found["inputs_without_clips"]
    ]


def test_a_dry_run_of_curate_makes_no_folder(
    curated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "present", lambda name: tmp_path if name == "centerface" else None)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("curate", curated.videos, "-o", "new/set", "-c", "offline", "--dry-run", "-q")
    assert (code, err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    lines = out.splitlines()
    assert lines[0].startswith("3 inputs, ") and lines[0].endswith(" by their headers, 0 unreadable")
    assert lines[1:4] == [
        "to be read: 3; read before: 0",
        "measured 0.0 s of 0.0 s planned so far",
        "weights here: centerface",
    ]
    assert "weights that the run fetches from the package index: face_landmarker, silero_vad" in out
    assert lines[-1] == "nothing was written"


def test_a_dry_run_of_curate_says_what_is_done_and_what_cannot_be(curated: Any, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "broken.mp4").write_bytes(b"")
    (more / "notes.md").write_text("x")
    before = files(curated.dataset, "**/*.*")
    settings = [f"--set={value}" for value in SETTINGS]
    command = ("curate", curated.videos, more, "-o", curated.dataset, "-c", "offline", *settings)
    code, out, _ = run(*command, "--dry-run")
    assert code == 0
    assert files(curated.dataset, "**/*.*") == before
    broken = str(more / "broken.mp4")
    num_bytes = sum(path.stat().st_size for path in curated.videos.iterdir())
    assert out.splitlines()[:5] == [
        f"4 inputs, {num_bytes / 1e6:.1f} MB, 9.0 s by their headers, 1 unreadable",
        "to be read: 1; read before: 3",
        f"unreadable: {broken!r}: expected a video file, found an empty file (0 bytes)",
        f"{more}: passed over what is no video by its name: 1 .md",
        "measured 9.0 s of 9.0 s planned so far",
    ]
    code, out, _ = run(*command, "--dry-run", "--json")
    assert (code, files(curated.dataset, "**/*.*")) == (0, before)
    found = json.loads(out)
    assert found.pop("weights").keys() == {"here", "to_fetch", "missing", "absent"}
    assert found == {
        "dataset": str(curated.dataset),
        "dry_run": True,
        "inputs": {
            "total": 4,
            "due": 1,
            "unreadable": {broken: "expected a video file, found an empty file (0 bytes)"},
        },
        "num_bytes": num_bytes,
        "input_s": 9.0,
        "unknown_length": [],
        "passed_over": [f"{more}: passed over what is no video by its name: 1 .md"],
        "measured_s": 9.0,
        "planned_s": 9.0,
    }


def test_a_dry_run_of_curate_refuses_what_the_run_would(curated: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for inputs, place, told in (
        ("nowhere", tmp_path / "new", "no such file, folder or list: 'nowhere'"),
        (curated.videos, tmp_path / "file", "cannot be written to (a file, not a folder)"),
        (curated.videos, curated.dataset, "was measured with another configuration: motion.body"),
    ):
        code, out, err = run("curate", inputs, "-o", place, "--dry-run")
        assert (code, out) == (2, "")
        assert told in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("setting", ["clip.fps=23", "measure.scan.sample_s=1", "colour.red=1"])
def test_what_was_measured_is_not_changed_by_selecting(curated: Any, setting: str) -> None:
    before = files(curated.dataset, "*.*")
    for command in ("select", "shard"):
        code, out, err = run(command, curated.dataset, "--set", setting)
        assert (code, out) == (2, "")
        assert err == (
            f"talkforge: --set {setting}: only thresholds, shards and run can change "
            "without measuring again\n"
        )
    assert files(curated.dataset, "*.*") == before


@pytest.mark.usefixtures("no_decoder")
def test_the_report_is_written_again(curated: Any) -> None:
    before = files(curated.dataset, "report/*")
    assert set(before) >= {"index.html", "statistics.json"}
    for path in curated.dataset.glob("report/*"):
        path.unlink()
    code, out, err = run("report", curated.dataset)
    assert (code, out, err) == (0, f"{curated.dataset}/report/index.html\n", "")
    after = files(curated.dataset, "report/*")
    assert {name: data for name, (_, data) in after.items()} == {name: d for name, (_, d) in before.items()}


def test_brackets_and_names_of_emoji_in_a_path_are_printed_as_they_are(curated: Any, tmp_path: Path) -> None:
    odd = tmp_path / "[bold]a[/red] :boom:"
    shutil.copytree(curated.dataset, odd)
    assert run("report", odd) == (0, f"{odd}/report/index.html\n", "")
    (odd / "parts" / "[red]x").mkdir()
    (odd / "parts" / "[red]x" / "y").write_bytes(b"")
    code, told, _ = run("verify", odd, "--repair")
    assert code == 3
    assert told.startswith("parts/[red]x: no part.json")
    assert run("verify", odd / "[/]")[2] == (
        f"talkforge: {odd / '[/]'}: no data set here (dataset.json is missing)\n"
    )


def test_inspect_writes_a_video_of_the_clip(curated: Any, tmp_path: Path) -> None:
    row = ledger(curated.dataset)["a.mp4"]
    code, out, err = run("inspect", curated.dataset, row["clip_id"][:10], "--out", tmp_path / "x.mp4")
    assert (code, out, err) == (0, f"{tmp_path / 'x.mp4'}\n", "")
    with av.open(str(tmp_path / "x.mp4")) as file:
        assert (file.streams.video[0].frames, len(file.streams.audio)) == (row["num_frames"], 1)


@pytest.mark.parametrize("out", ["x.avi", "none/x.mp4"])
def test_inspect_refuses_what_is_no_place_for_a_video(curated: Any, tmp_path: Path, out: str) -> None:
    clip = ledger(curated.dataset)["a.mp4"]["clip_id"]
    code, stdout, err = run("inspect", curated.dataset, clip, "--out", tmp_path / out)
    assert (code, stdout) == (2, "")
    assert err.endswith(f"{out}: expected a .mp4 file in a folder that is there\n")


def test_a_video_that_inspect_cannot_write_is_one_line_and_leaves_nothing(
    curated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **_: Any) -> None:
        given[0].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("talkforge.curation.media.encode_mp4", full)
    (tmp_path / "x.mp4").write_bytes(b"before")
    clip = ledger(curated.dataset)["a.mp4"]["clip_id"]
    code, stdout, err = run("inspect", curated.dataset, clip, "--out", tmp_path / "x.mp4")
    assert (code, stdout) == (1, "")
    assert err == f"talkforge: {tmp_path / 'x.mp4'}: cannot be written: No space left on device\n"
    assert (tmp_path / "x.mp4").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_inspect_says_why_a_clip_was_not_measured_densely(curated: Any, tmp_path: Path) -> None:
    (name,) = curated.dataset.glob("parts/*/clips.parquet")
    rows = tables.from_table(ClipMeasures, tables.from_bytes(name.read_bytes(), name.name))
    rows = [row.model_copy(update={"lips": None, "stopped_by": "no_speech"}) for row in rows]
    name.write_bytes(tables.to_bytes(tables.to_table(ClipMeasures, rows)))
    clip = min(row["clip_id"] for row in ledger(curated.dataset).values())
    code, _, err = run("inspect", curated.dataset, clip, "--out", tmp_path / "x.mp4")
    assert (code, err) == (
        2,
        f"talkforge: clip {clip}: was not measured densely (no_speech), there is nothing to draw\n",
    )


def test_verify_names_what_is_wrong_and_exits_3(curated: Any) -> None:
    assert run("verify", curated.dataset) == (
        0,
        f"{curated.dataset}: everything is as it should be\n",
        "",
    )
    with (curated.dataset / "shards" / "train-000001.tar").open("r+b") as file:
        file.seek(1000)
        file.write(b"scratched")
    code, out, err = run("verify", curated.dataset)
    assert (code, err) == (3, "")
    assert "shards/train-000001.tar: " in out
    assert "train-000000" not in out


def test_snapshots_are_listed_named_and_gone_back_to(curated: Any) -> None:
    dataset = curated.dataset
    shard = ("shard", dataset, "--executor", "inline")
    before = files(dataset, "shards/*.tar")
    code, _, err = run(*shard, "-s", "thresholds.min_face_px=5000")
    assert code == 0 and "snapshot 2: 0 shards, 0 samples, 0.0 MB; earlier snapshots take up" in err
    megabytes = sum(len(data) for _, data in before.values()) / 1e6
    assert f"earlier snapshots take up {megabytes:.1f} MB beside it: talkforge snapshots {dataset} --k" in err
    line = f"snapshot 1: 2 shards, 2 samples, {megabytes:.1f} MB\n"
    assert run("tag", dataset, "1", "both")[:2] == (0, f"both: {line}")
    code, out, _ = run("snapshots", dataset, "--json")
    found = json.loads(out)["snapshots"]
    assert [(one["number"], one["current"], one["tags"], one["samples"]) for one in found] == [
        (1, False, ["both"], 2),
        (2, True, [], 0),
    ]
    assert len(list(talkforge.open(dataset, snapshot="both").samples())) == 2
    assert list(talkforge.open(dataset).samples()) == []
    accepted = [talkforge.open(dataset, snapshot=number).ledger.accepted.sum() for number in (1, 2)]
    assert accepted == [2, 0]

    code, out, _ = run("rollback", dataset, "both", "-q")
    assert (code, out) == (0, line)
    after = files(dataset, "shards/*.tar")
    assert {name: data for name, (_, data) in after.items()} == {name: d for name, (_, d) in before.items()}
    assert all(row["accepted"] for row in ledger(dataset).values())
    assert load_dataset(Store(str(dataset))).config.thresholds.min_face_px == 64
    assert run("verify", dataset)[0] == 0
    code, out, _ = run("snapshots", dataset, "--keep", "1")
    assert (code, out.splitlines()[0]) == (0, "removed: 2")
    assert run("tag", dataset, "both", "--delete")[0] == 0
    assert run("rollback", dataset, "2")[2].endswith("no snapshot 2; there are: 1\n")
    assert run("tag", dataset, "1")[0] == 2

    (dataset / "snapshots" / "index.json").write_text("{")
    assert run("snapshots", dataset)[0] == 1
    assert run("verify", dataset, "--repair")[0] == 3
    assert run("verify", dataset)[0] == 0
    assert json.loads(run("snapshots", dataset, "--json")[1])["snapshots"][0]["current"]


def test_an_unknown_model_cannot_be_fetched() -> None:
    code, out, err = run("models", "--fetch", "nobody")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("talkforge: no model is called nobody; known: centerface, scrfd")
    assert run("models", "--fetch")[2].startswith("talkforge: --fetch: expected the names of models: center")


def test_a_second_run_is_kept_out(curated: Any) -> None:
    from talkforge.pipeline.dataset import exclusive
    from talkforge.pipeline.store import Store

    with exclusive(Store(str(curated.dataset))):
        for command in (["select"], ["shard", "--executor", "inline"]):
            code, out, err = run(command[0], curated.dataset, *command[1:])
            assert (code, out) == (2, "")
            assert err == f"talkforge: {curated.dataset}: another run is at work on this data set\n"


def test_an_error_nobody_thought_of_is_one_line(curated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("talkforge.pipeline.jobs.report", broken)
    code, out, err = run("report", curated.dataset)
    assert (code, out) == (1, "")
    assert err == ("talkforge: unexpected ZeroDivisionError: by nothing (TALKFORGE_LOG=DEBUG shows where)\n")


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (CommandError("no"), 2)])
def test_exit_codes(curated: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    def broken(_: object) -> None:
        raise raised

    monkeypatch.setattr("talkforge.pipeline.jobs.report", broken)
    found, out, err = run("report", curated.dataset)
    assert (found, out) == (code, "")
    assert err.splitlines()[-1] == (
        "interrupted; the same command goes on from here" if code == 130 else "talkforge: no"
    )


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_ends_though_threads_of_a_pool_wait_for_work(code: int) -> None:
    program = (
        "import atexit; from concurrent.futures import ThreadPoolExecutor; "
        "from talkforge.cli.app import _leave; "
        f"ThreadPoolExecutor().submit(int).result(); atexit.register(print, 'cleaned up'); _leave({code})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", "")


# ------------------------------------------------------------------------------- weights


def test_the_table_of_weights_is_readable_in_a_hundred_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    (tmp_path / registry.MODELS["scrfd"].file).write_bytes(b"<html>")
    text = io.StringIO()
    output.weights_table(Console(file=text, width=200), registry.describe())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= output.WEIGHTS_WIDTH
    heads = [line.split() for line in lines if line.strip() and line.strip().split()[0] in registry.MODELS]
    assert [head[0] for head in heads] == list(registry.MODELS)
    first = {head[0]: head[1:4] for head in heads}
    assert first["centerface"] == ["yes", "no", "7.3"]
    assert first["scrfd"] == ["no", "refused", "16.9"]
    folded = "".join(text.getvalue().split())
    for entry in registry.MODELS.values():
        for told in (entry.needed_by, entry.licence, entry.source):
            assert "".join(told.split()) in folded


def test_models_lists_only_what_is_named() -> None:
    code, out, err = run("models", "centerface", "dnsmos")
    assert (code, err) == (0, "")
    assert "centerface" in out and "dnsmos" in out and "scrfd" not in out


def test_several_weights_are_fetched_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, *, allow_web: bool, on_progress: ProgressCallback) -> Path:
        assert allow_web
        for done_bytes in (0, 500_000, 1_000_000):
            on_progress(FetchProgress(f"https://host/{name}.onnx", done_bytes, 1_000_000))
        return tmp_path / name

    monkeypatch.setattr(registry, "present", lambda name: tmp_path if name == "dnsmos" else None)
    monkeypatch.setattr(registry, "fetch", fetch)
    for command in (("--fetch", "scrfd", "w600k_r50"), ("--fetch", "scrfd", "--fetch", "w600k_r50")):
        code, out, err = run("models", *command)
        assert (code, out) == (0, f"scrfd: {tmp_path / 'scrfd'}\nw600k_r50: {tmp_path / 'w600k_r50'}\n")
        assert [line.partition("] ")[2] for line in err.splitlines()] == [
            "fetching https://host/scrfd.onnx",
            "fetching https://host/scrfd.onnx: 1.0 of 1.0 MB",
            "fetching https://host/w600k_r50.onnx",
            "fetching https://host/w600k_r50.onnx: 1.0 of 1.0 MB",
        ]
    assert run("models", "--fetch", "dnsmos")[1:] == (f"dnsmos: {tmp_path}\n", "")


def test_on_a_terminal_fetching_is_a_bar() -> None:
    text = io.StringIO()
    with display.Display(Console(file=text, force_terminal=True, width=100)) as shown:
        shown.show(output.fetching(FetchProgress("https://host/w.onnx", 500_000, 2_000_000)))
    assert "w.onnx" in text.getvalue()
    assert "0.5 of 2.0 MB" in text.getvalue()
