"""Recordings of Rerun and a table of Lance, read by their own tools."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from talkforge.pipeline.export import Options, export
from talkforge.schemas.npz import npz_bytes
from tests.pipeline.exports.published_set import CLIPS, members, publish
from tests.pipeline.exports.test_trainers import check_sums

TRAIN = [clip for shard in CLIPS["train"] for clip in shard]


def test_fiftyone_has_labels_of_every_frame(tmp_path: Path) -> None:
    clip = CLIPS["validation"][0][0]
    landmarks = np.full((clip.num_frames, 478, 3), np.nan, np.float32)
    landmarks[1:] = 16, 8, 0
    landmarks[1:, 0] = 48, 40, 0
    store = publish(tmp_path / "set", changes={clip.key: {"landmarks.npz": npz_bytes(points=landmarks)}})
    done = export(store, "fiftyone", Options(tmp_path / "out"))
    assert done.export.clips == {"train": 3, "validation": 1}
    root = tmp_path / "out" / "validation"
    (entry,) = json.loads((root / "manifest.json").read_text())["index"]
    assert (root / entry["data"]).read_bytes() == members(clip)["mp4"]
    labels = json.loads((root / entry["labels"]).read_text())
    attributes = {
        one["name"]: (one["type"].rpartition(".")[2], one["value"]) for one in labels["attrs"]["attrs"]
    }
    assert attributes["clip_id"] == ("CategoricalAttribute", clip.key)
    assert attributes["accepted"] == ("BooleanAttribute", True)
    assert attributes["num_frames"] == ("NumericAttribute", clip.num_frames)
    assert attributes["text"] == ("CategoricalAttribute", "good\nday")
    assert "sync_probability" not in attributes
    assert list(labels["frames"]) == [str(k + 1) for k in range(clip.num_frames)]
    for k, frame in enumerate(labels["frames"].values()):
        assert frame["frame_number"] == k + 1
        assert ("objects" in frame) == (k > 0)
        assert ("polylines" in frame) == bool(clip.valid()[k])
    (face,) = labels["frames"]["2"]["objects"]["objects"]
    assert face["bounding_box"] == {
        "top_left": {"x": 0.25, "y": 0.125},
        "bottom_right": {"x": 0.75, "y": 0.625},
    }
    (lips,) = labels["frames"]["2"]["polylines"]["polylines"]
    assert lips["points"] == [[[0.5, 0.5]] * 4] and lips["closed"]
    assert check_sums(tmp_path / "out") == 2 * 4 + 2 + 2


def test_lance_reads_every_clip(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="the extra lance is not installed")
    store = publish(tmp_path / "set")
    done = export(store, "lance", Options(tmp_path / "out"))
    assert done.export.clips == {"train": 3, "validation": 1}
    dataset = lance.dataset(str(tmp_path / "out" / "clips.lance"))
    rows = dataset.to_table(filter="split = 'train' AND licence = 'CC0'").to_pylist()
    assert [row["clip_id"] for row in rows] == [clip.key for clip in TRAIN]
    for row, clip in zip(rows, TRAIN, strict=True):
        true = members(clip)
        assert (row["video_mp4"], row["audio_flac"], row["text"]) == (true["mp4"], true["flac"], clip.text)
        assert (row["sync_probability"], row["num_frames"]) == (None, clip.num_frames)
    assert check_sums(tmp_path / "out") == done.export.files + 1
    version = dataset.version
    export(store, "lance", Options(tmp_path / "out"))
    assert lance.dataset(str(tmp_path / "out" / "clips.lance")).version == version


def test_a_lance_table_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lance = pytest.importorskip("lance", reason="the extra lance is not installed")
    store, write, left = publish(tmp_path / "set"), lance.write_dataset, [1]

    def dies(*arguments: object, **options: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", dies)
        with pytest.raises(KeyboardInterrupt):
            export(store, "lance", Options(tmp_path / "out"))
    export(store, "lance", Options(tmp_path / "out"))
    found = lance.dataset(str(tmp_path / "out" / "clips.lance")).to_table(columns=["clip_id"])
    assert found.column("clip_id").to_pylist() == [clip.key for clip in [*TRAIN, *CLIPS["validation"][0]]]


def test_rerun_accepts_every_recording(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra rerun is not installed")
    done = export(publish(tmp_path / "set"), "rerun", Options(tmp_path / "out", split="train", workers=2))
    assert done.export.clips == {"train": 3}
    paths = [tmp_path / "out" / "train" / "recordings" / f"{clip.key}.rrd" for clip in TRAIN]
    rerun = [sys.executable, "-m", "rerun", "rrd"]
    subprocess.run([*rerun, "verify", *paths], check=True, capture_output=True)
    shown = subprocess.run(
        [*rerun, "print", "-v", paths[0]], check=True, capture_output=True, text=True
    ).stdout
    for entity in (
        "clip/video",
        "clip/landmarks",
        "clip/joints",
        "clip/lips",
        "mouth_opening",
        "loudness_dbfs",
    ):
        assert f"/{entity}" in shown, entity
    assert "recording_id: clip00" in shown.replace('"', "") or "clip00" in shown
    assert check_sums(tmp_path / "out") == 3 + 2
