"""Exports read by the loaders of the tools themselves, which `make readers` puts into .readers/.

Only the modules that read data are loaded: what the packages import for training is not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline.export import Options, export
from tests.conftest import ROOT
from tests.pipeline.exports.published_set import CLIPS, publish
from tests.pipeline.exports.test_latents import FIRST, arrays_of, encoded
from tests.pipeline.exports.test_trainers import samples_of
from tests.training.shard_files import number_and_frame

READERS = ROOT / ".readers"
UNUSED = ("torchvision", "py7zr")
"""Packages that the loaders import and do not use for what is read here."""

TRAIN = [clip for shard in CLIPS["train"] for clip in shard]
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of a reader, without what its packages import besides."""
    if not (READERS / ".installed").is_file():
        pytest.skip("the readers are not here: make readers")
    pytest.importorskip("torch", reason="the extra torch is not installed")
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path, str(READERS)])
    for name in set(UNUSED) - before:
        sys.modules[name] = ModuleType(name)

    def module(name: str) -> Any:
        folders = name.split(".")[:-1]
        for depth in range(1, len(folders) + 1):
            package = ".".join(folders[:depth])
            if package not in sys.modules:
                sys.modules[package] = ModuleType(package)
                sys.modules[package].__path__ = [str(READERS.joinpath(*folders[:depth]))]
        return importlib.import_module(name)

    yield module
    ours = {*UNUSED, *(path.name for path in READERS.iterdir())}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ours:
            del sys.modules[name]


def test_diffsynth_loads_every_frame_that_its_list_names(load: Load, tmp_path: Path) -> None:
    export(publish(tmp_path / "set"), "diffsynth", Options(tmp_path / "out", split="train"))
    operators = load("diffsynth.core.data.operators")
    root = str(tmp_path / "out" / "train")
    video = operators.ToAbsolutePath(root) >> operators.LoadVideo(num_frames=81)
    dataset = load("diffsynth.core.data.unified_dataset").UnifiedDataset(
        root,
        f"{root}/metadata.csv",
        data_file_keys=("video", "input_audio"),
        main_data_operator=video,
        special_operator_map={"input_audio": operators.ToAbsolutePath(root)},
    )
    assert len(dataset) == 3
    for row, clip in zip((dataset[n] for n in range(3)), TRAIN, strict=True):
        assert (row["clip_id"], row["prompt"]) == (clip.key, clip.text or "a person is talking")
        # It takes 4 n + 1 frames where there are fewer than asked for.
        numbers, frames = number_and_frame(np.stack([np.asarray(image) for image in row["video"]]))
        assert (set(numbers), frames.tolist()) == ({clip.number}, list(range(29)))
        assert len(samples_of(Path(row["input_audio"]))) == 30 * 640


@pytest.mark.parametrize("image", [True, False])
def test_fastvideo_collates_every_row(load: Load, tmp_path: Path, image: bool) -> None:
    export(encoded(tmp_path / "set", image=image), "fastvideo", Options(tmp_path / "out"))
    schema = load("fastvideo.dataset.dataloader.schema").pyarrow_schema_i2v
    collate = load("fastvideo.dataset.utils").collate_rows_from_parquet_schema
    files = sorted((tmp_path / "out" / "train" / "combined_parquet_dataset").glob("*.parquet"))
    for file in files:
        assert pq.read_schema(file).equals(schema)
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    batch = collate(rows, schema, text_padding_length=7)
    assert batch["vae_latent"].shape == (6, 16, 5, 3, 4) and batch["text_embedding"].shape == (6, 7, 8)
    assert batch["text_attention_mask"].sum(dim=1).tolist() == [3] * 6
    assert batch["clip_feature"].shape == ((6, 5, 6) if image else (6, 0))
    assert [row["prompt"] for row in batch["info_list"]] == ["", "", "hello, you", "hello, you", "", ""]
    for number in range(3):
        for span, at in enumerate(FIRST):
            row = 2 * number + span
            assert batch["info_list"][row]["id"] == f"clip{number:02d}_{at:05d}"
            condition = arrays_of(number, image=image)["condition"][span, 4:].astype(np.float32)
            assert np.array_equal(batch["first_frame_latent"][row].numpy(), condition)


def test_automodel_reads_by_its_list_and_by_its_folder(load: Load, tmp_path: Path) -> None:
    export(encoded(tmp_path / "set"), "automodel", Options(tmp_path / "out"))
    room = "nemo_automodel.components.datasets.diffusion"
    root = str(tmp_path / "out" / "train")
    by_list = load(f"{room}.text_to_video_dataset").TextToVideoDataset(root)
    by_folder = load(f"{room}.meta_files_dataset").MetaFilesDataset(f"{root}/32x24")
    assert len(by_list) == len(by_folder) == 6
    for number in range(3):
        true = arrays_of(number)
        for span in range(2):
            for item in (by_list[2 * number + span], by_folder[2 * number + span]):
                assert np.array_equal(item["video_latents"][0].numpy(), true["latents"][span])
                assert np.array_equal(item["text_embeddings"][0, :3].numpy(), true["text"])
                assert np.array_equal(item["image_embeds"][0].numpy(), true["image"][span])
            assert by_list[2 * number + span]["bucket_resolution"].tolist() == [32, 24]
            name = by_folder[2 * number + span]["file_info"]["meta_filename"]
            assert name == f"clip{number:02d}_{FIRST[span]:05d}.meta"


def test_fiftyones_labels_are_read_by_eta(load: Load, tmp_path: Path) -> None:
    export(publish(tmp_path / "set"), "fiftyone", Options(tmp_path / "out", split="train"))
    root = tmp_path / "out" / "train"
    datasets, video = load("eta.core.datasets"), load("eta.core.video")
    index = datasets.LabeledVideoDataset(str(root / "manifest.json"))
    assert [Path(path).stem for path in index.iter_data_paths()] == [clip.key for clip in TRAIN]
    for clip in TRAIN:
        labels = video.VideoLabels.from_json(str(root / "labels" / f"{clip.key}.json"))
        said = {one.name: one.value for one in labels.attrs}
        written = json.loads((root / "labels" / f"{clip.key}.json").read_text())["attrs"]["attrs"]
        assert said == {one["name"]: one["value"] for one in written} and said["clip_id"] == clip.key
        assert list(labels.frames) == list(range(1, clip.num_frames + 1))
        lips = [frame.has_polylines for frame in labels.frames.values()]
        assert lips == [bool(valid) for valid in clip.valid()]
