"""Folders for other trainers: what their own readers would read, going on, and counts."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tomllib
import wave
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from talkforge.curation.media import decode_mp4
from talkforge.pipeline.export import Options, export
from talkforge.pipeline.exports.folder import ExportFolder
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError
from tests.pipeline.exports.published_set import CLIPS, members, publish, ramp
from tests.training.shard_files import Shown, number_and_frame

TRAIN = [clip for shard in CLIPS["train"] for clip in shard]
VALIDATION = CLIPS["validation"][0]


def check_sums(folder: Path) -> int:
    """Number of files that have the sum of SHA256SUMS; every file but that one must."""
    lines = [line.split("  ", 1) for line in (folder / "SHA256SUMS").read_text().splitlines()]
    for digest, name in lines:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {name for _, name in lines} | {"SHA256SUMS"}
    return len(lines)


def samples_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_videox_reads_its_list(tmp_path: Path) -> None:
    done = export(publish(tmp_path / "set"), "videox", Options(tmp_path / "out", workers=2))
    assert (done.export.complete, done.export.clips) == (True, {"train": 3, "validation": 1})
    assert done.notes == ("2 clips have no text: their prompt is 'a person is talking' (--prompt)",)
    for split, clips in (("train", TRAIN), ("validation", VALIDATION)):
        root = tmp_path / "out" / split
        rows = json.loads((root / "metadata.json").read_text())
        assert [row["clip_id"] for row in rows] == [clip.key for clip in clips]
        for row, clip in zip(rows, clips, strict=True):  # as VideoSpeechDataset.get_batch takes them
            assert row["type"] == "video"
            assert row["text"] == (" ".join(clip.text.split()) or "a person is talking")
            assert (row["width"], row["height"], row["num_frames"]) == (
                clip.width_px, clip.height_px, clip.num_frames,
            )  # fmt: skip
            rgb = decode_mp4((root / row["file_path"]).read_bytes())
            numbers, frames = number_and_frame(rgb)
            assert (set(numbers), frames.tolist()) == ({clip.number}, list(range(clip.num_frames)))
            assert np.array_equal(samples_of(root / row["audio_path"]), ramp(clip))
    assert check_sums(tmp_path / "out") == done.export.files + 2  # and export.json, clips.jsonl
    lines = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    assert [(line["clip_id"], line["split"], line["ledger"]["licence"]) for line in lines] == [
        *((clip.key, "train", "CC0") for clip in TRAIN), (VALIDATION[0].key, "validation", "CC0"),
    ]  # fmt: skip


def test_diffsynth_reads_its_list(tmp_path: Path) -> None:
    options = Options(tmp_path / "out", split="train", prompt='say "it", now')
    done = export(publish(tmp_path / "set"), "diffsynth", options)
    assert done.export.clips == {"train": 3}
    root = tmp_path / "out" / "train"
    rows = pd.read_csv(root / "metadata.csv")  # as UnifiedDataset does: an empty prompt would be NaN
    assert rows["prompt"].tolist() == ['say "it", now', "hello, you", 'say "it", now']
    for row, clip in zip(rows.to_dict("records"), TRAIN, strict=True):
        assert (root / row["video"]).read_bytes() == members(clip)["mp4"]
        assert np.array_equal(samples_of(root / row["input_audio"]), ramp(clip))
    with (root / "metadata.csv").open() as file:
        assert [row["clip_id"] for row in csv.DictReader(file)] == [clip.key for clip in TRAIN]


def test_musubi_reads_its_configuration(tmp_path: Path) -> None:
    export(publish(tmp_path / "set"), "musubi", Options(tmp_path / "out"))
    config = tomllib.loads((tmp_path / "out" / "train" / "dataset.toml").read_text())
    (part,) = config["datasets"]
    assert config["general"]["resolution"] == [64, 64]
    # 30 frames at 25/s are 19 at 16/s: 4 n + 1 is 17.
    assert (part["target_frames"], part["frame_extraction"], part["source_fps"]) == ([17], "chunk", 25.0)
    videos = Path(part["video_directory"])
    assert sorted(path.stem for path in videos.glob("*.mp4")) == [clip.key for clip in TRAIN]
    for clip in TRAIN:
        text = videos.joinpath(f"{clip.key}{config['general']['caption_extension']}").read_text()
        assert text == f"{clip.text or 'a person is talking'}\n"
        assert np.array_equal(samples_of(videos / f"{clip.key}.wav"), ramp(clip))
    held_out = tomllib.loads((tmp_path / "out" / "validation" / "dataset.toml").read_text())
    assert held_out["datasets"][0]["target_frames"] == [9]
    assert held_out["datasets"][0]["cache_directory"] != part["cache_directory"]


def test_an_export_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = publish(tmp_path / "set")
    whole = export(store, "videox", Options(tmp_path / "whole"))
    left, write = [4], ExportFolder.write

    def dies(self: ExportFolder, name: str, data: bytes) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ExportFolder, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            export(store, "videox", Options(tmp_path / "out"))
    held = (tmp_path / "out" / "clips.jsonl").read_bytes()
    assert not json.loads((tmp_path / "out" / "export.json").read_text())["complete"]
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
    # A killed process also leaves half a line, a temporary file, and a file that is shorter than it was.
    (tmp_path / "out" / "clips.jsonl").write_bytes(held + held[:40])
    (tmp_path / "out" / "train" / "videos" / (".tmp-" + 32 * "a")).write_bytes(b"x")
    (tmp_path / "out" / "train" / "audio" / f"{TRAIN[0].key}.wav").write_bytes(b"short")
    written: list[str] = []
    monkeypatch.setattr(
        ExportFolder, "write", lambda self, name, data: written.append(name) or write(self, name, data)
    )
    assert export(store, "videox", Options(tmp_path / "out")).export == whole.export
    assert f"train/audio/{TRAIN[0].key}.wav" in written
    assert f"train/videos/{TRAIN[1].key}.mp4" not in written
    assert check_sums(tmp_path / "out") == check_sums(tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    written.clear()
    export(store, "videox", Options(tmp_path / "out"))
    assert written == ["train/metadata.json", "validation/metadata.json"]


def test_a_folder_holds_one_export(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    export(store, "videox", Options(tmp_path / "out"))
    with pytest.raises(CommandError, match=re.escape("holds another export (format videox, not diffsynth)")):
        export(store, "diffsynth", Options(tmp_path / "out"))
    publish(tmp_path / "set", {"train": [[Shown(5)]]})
    with pytest.raises(CommandError, match=r"holds another export \(snapshot 1, not 2"):
        export(store, "videox", Options(tmp_path / "out"))
    assert export(store, "videox", Options(tmp_path / "out", snapshot=1)).export.snapshot == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(CommandError, match="expected a folder with an export, or an empty or new one"):
        export(store, "videox", Options(tmp_path / "mine"))


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    out = Options(tmp_path / "out")
    with pytest.raises(CommandError, match="--as nothing: expected energon, wids, "):
        export(store, "nothing", out)
    with pytest.raises(CommandError, match=r"--as videox: expected a folder to write to \(--out DIR\)"):
        export(store, "videox", Options())
    with pytest.raises(CommandError, match="--split test: expected train or validation"):
        export(store, "videox", Options(tmp_path / "out", split="test"))
    with pytest.raises(CommandError, match="no data set here"):
        export(Store(str(tmp_path)), "videox", out)
    publish(tmp_path / "empty", {"train": [[Shown(0)]]})
    with pytest.raises(CommandError, match="no clips in shards in the split validation"):
        export(Store(str(tmp_path / "empty")), "videox", Options(tmp_path / "out", split="validation"))
    assert not (tmp_path / "out").exists()


def test_clips_that_are_not_accepted_any_more_are_not_handed_on(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    other = publish(tmp_path / "other", {"train": [[Shown(0)]]}, rejected=[Shown(1), Shown(2), Shown(3)])
    store.write("ledger.parquet", other.read("ledger.parquet"))  # as `talkforge select` would
    with pytest.raises(CommandError, match="3 clips in the shards are not accepted any more, such as clip01"):
        export(store, "videox", Options(tmp_path / "out"))
    assert export(store, "videox", Options(tmp_path / "out", snapshot=1)).export.clips["train"] == 3


def test_a_damaged_sample_ends_the_export(tmp_path: Path) -> None:
    store = publish(tmp_path / "set", changes={"clip01": {"txt": b"\xff"}})
    with pytest.raises(DatasetError, match=r"^sample clip01: txt: "):
        export(store, "videox", Options(tmp_path / "out"))
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
