"""Latents for FastVideo and NeMo Automodel: read as their loaders read them."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline import snapshots
from talkforge.pipeline.export import Options, export
from talkforge.pipeline.exports.latents import WAN_DEVIATION, WAN_MEAN, raw
from talkforge.pipeline.store import Store
from talkforge.schemas import tar
from talkforge.schemas.errors import CommandError
from talkforge.schemas.npz import npz_bytes
from tests.pipeline.exports.published_set import CLIPS, publish
from tests.pipeline.exports.test_trainers import check_sums
from tests.training.shard_files import Shown

FIRST = (0, 9)


def arrays_of(number: int, *, image: bool = True) -> dict[str, np.ndarray]:
    """Latents of two spans of 17 frames at 32 x 24 px, each number of which is known."""
    random = np.random.default_rng(number)
    found = {
        "first_frame": np.array(FIRST, np.int32),
        "latents": random.normal(size=(2, 16, 5, 3, 4)).astype(np.float16),
        "condition": random.normal(size=(2, 20, 5, 3, 4)).astype(np.float16),
        "text": random.normal(size=(3, 8)).astype(np.float16),
        "empty_text": np.zeros((1, 8), np.float16),
    }
    return found | ({"image": random.normal(size=(2, 5, 6)).astype(np.float16)} if image else {})


def encoded(
    folder: Path,
    clips: Mapping[str, Sequence[Sequence[Shown]]] = CLIPS,
    *,
    image: bool = True,
    left_out: str = "",
    **changes: str,
) -> Store:
    """A published set with latents beside its shards."""
    store = publish(folder, clips)
    for shard in snapshots.current(store).shards:
        stream, keys = io.BytesIO(), [key for key in shard.keys if key != left_out]
        with tar.tar_writer(stream) as out:
            for key in keys:
                tar.write_sample(
                    out, key, {"latents.npz": npz_bytes(**arrays_of(int(key[-2:]), image=image))}
                )
        store.write(f"latents/{shard.name}.tar", stream.getvalue())
        manifest = {"version": 1, "shard_sha256": shard.sha256, "keys": keys, "codec": "wan", "text": "umt5"}
        store.write(f"latents/{shard.name}.json", json.dumps(manifest | changes).encode())
    return store


def test_the_statistics_are_those_of_wans_vae() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra train is not installed")
    defaults = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    assert tuple(defaults["latents_mean"].default) == WAN_MEAN
    assert tuple(defaults["latents_std"].default) == WAN_DEVIATION


@pytest.mark.parametrize("image", [True, False])
def test_fastvideo_reads_its_tensors(tmp_path: Path, image: bool) -> None:
    store = encoded(tmp_path / "set", image=image)
    done = export(store, "fastvideo", Options(tmp_path / "out"))
    assert (done.export.clips, done.notes) == ({"train": 3, "validation": 1}, ())
    rows = pq.read_table(tmp_path / "out" / "train" / "combined_parquet_dataset").to_pylist()

    def tensor(row: dict, name: str) -> np.ndarray:  # as FastVideo's dataloader does
        return np.frombuffer(row[f"{name}_bytes"], row[f"{name}_dtype"]).reshape(row[f"{name}_shape"])

    assert [row["id"] for row in rows] == [
        f"clip{number:02d}_{first:05d}" for number in range(3) for first in FIRST
    ]
    for row in rows:
        number, span = int(row["id"][4:6]), FIRST.index(int(row["id"][-5:]))
        true = {name: array.astype(np.float32) for name, array in arrays_of(number, image=image).items()}
        latent = tensor(row, "vae_latent")
        mean, deviation = (np.reshape(values, (-1, 1, 1, 1)) for values in (WAN_MEAN, WAN_DEVIATION))
        assert np.allclose((latent - mean) / deviation, true["latents"][span], atol=1e-5)
        assert np.array_equal(tensor(row, "first_frame_latent"), true["condition"][span, 4:])
        assert np.array_equal(tensor(row, "text_embedding"), true["text"])
        if image:
            assert np.array_equal(tensor(row, "clip_feature"), true["image"][span])
        else:
            assert (row["clip_feature_bytes"], row["clip_feature_shape"]) == (b"", [])
        assert (row["width"], row["height"], row["num_frames"], row["fps"]) == (32, 24, 17, 25.0)
    assert {row["caption"] for row in rows} == {"", "hello, you"}
    assert check_sums(tmp_path / "out") == 3 + 1


def test_automodel_loads_its_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra torch is not installed")
    done = export(encoded(tmp_path / "set"), "automodel", Options(tmp_path / "out"))
    assert done.export.clips == {"train": 3, "validation": 1}
    root = tmp_path / "out" / "train"
    items = [
        item
        for name in json.loads((root / "metadata.json").read_text())["shards"]
        for item in json.loads((root / name).read_text())
    ]
    assert [item["clip_id"] for item in items] == [f"clip{n:02d}" for n in (0, 0, 1, 1, 2, 2)]
    for item, span in zip(items, (0, 1) * 3, strict=True):
        path = Path(item["cache_file"])
        path.resolve().relative_to(root.resolve())
        entry = torch.load(path, weights_only=True)
        true = arrays_of(int(item["clip_id"][-2:]))
        assert entry["video_latents"].shape == (1, 16, 5, 3, 4)
        assert np.array_equal(entry["video_latents"][0].numpy(), true["latents"][span])
        assert entry["text_embeddings"].shape == (1, 226, 8)
        assert np.array_equal(entry["text_embeddings"][0, :3].numpy(), true["text"])
        assert not entry["text_embeddings"][0, 3:].any()
        assert item["bucket_resolution"] == [32, 24] and entry["bucket_resolution"] == (32, 24)
        assert entry["metadata"] == {"clip_id": item["clip_id"], "first_frame": FIRST[span], "fps": 25.0}
    assert check_sums(tmp_path / "out") == done.export.files + 2
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*.meta")}
    next(iter(written)).unlink()
    export(Store(str(tmp_path / "set")), "automodel", Options(tmp_path / "out"))
    assert set(root.rglob("*.meta")) == set(written)


def test_raw_latents_lead_back() -> None:
    latents = np.zeros((16, 1, 2, 2), np.float32)
    assert np.allclose(raw(latents)[:, 0, 0, 0], WAN_MEAN)
    assert np.allclose(raw(latents + 1)[:, 0, 0, 0], np.add(WAN_MEAN, WAN_DEVIATION))


def test_clips_without_latents_are_counted(tmp_path: Path) -> None:
    store = encoded(tmp_path / "set", left_out="clip02")
    done = export(store, "fastvideo", Options(tmp_path / "out", split="train"))
    assert done.export.clips == {"train": 2}
    assert done.notes == ("1 clips have no latents (talkforge encode left them out)",)


def test_latents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no latents of shard train-000000; talkforge encode first"):
        export(publish(tmp_path / "none"), "fastvideo", Options(tmp_path / "out"))
    store = encoded(tmp_path / "text", text="none")
    with pytest.raises(CommandError, match="found codec wan, text none"):
        export(store, "automodel", Options(tmp_path / "out2"))
    store = encoded(tmp_path / "old", shard_sha256="0" * 64)
    with pytest.raises(CommandError, match="no latents of shard train-000000"):
        export(store, "fastvideo", Options(tmp_path / "out3"))
