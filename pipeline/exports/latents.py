"""Exports of cached latents for FastVideo and NeMo Automodel, from what `talkforge encode` wrote.

    <split>/combined_parquet_dataset/<shard>.parquet     for FastVideo: a row for each span
    <split>/<width>x<height>/<clip id>_<first frame>.meta with metadata.json    for NeMo Automodel

A span is a piece of a clip: its id is `<clip id>_<first frame>`. Neither trainer takes audio: they train the
text-to-video and image-to-video models of Wan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict

from talkforge.pipeline.exports.clips import Source
from talkforge.pipeline.exports.folder import ClipEntry, ExportFolder, StoredFile
from talkforge.schemas import extras, sample, tar
from talkforge.schemas.arrays import Floats
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.progress import ProgressCallback, counted
from talkforge.schemas.records import Record
from talkforge.schemas.sample import ShardManifest
from talkforge.schemas.units import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX

FOLDER = "latents"

WAN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_DEVIATION = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Mean and standard deviation of each channel of Wan 2.1's VAE, by which latents are normalised. Source:
`latents_mean` and `latents_std` of diffusers' AutoencoderKLWan."""

MASK_CHANNELS = 4
"""Channels of the first-frame condition before its latents. Source: `latents.npz`, docs/dataset.md."""

AUTOMODEL_TOKENS = 226
"""Tokens of a prompt that NeMo Automodel's Wan takes. Source: its tools/diffusion/processors/wan.py."""


class Described(Record):
    """What is read of `latents/<shard>.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    shard_sha256: str
    keys: tuple[str, ...]
    codec: str
    text: str


@dataclass(frozen=True)
class Span:
    """One encoded span.

    Attributes:
        clip_id: of its clip.
        first_frame: its first frame in the clip.
        latents: [16, T, h, w], normalised.
        condition: latents of the first frame followed by grey, [16, T, h, w], normalised.
        text: embedding of the prompt, [S, D], without the zeros at its end.
        image: CLIP features of the first frame, [K, D]; None where there are none.
        caption: the prompt.
        fps: frames per second.
    """

    clip_id: str
    first_frame: int
    latents: Floats
    condition: Floats
    text: Floats
    image: Floats | None
    caption: str
    fps: float

    @property
    def span_id(self) -> str:
        return f"{self.clip_id}_{self.first_frame:05d}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.latents.shape[3] * LATENT_STRIDE_PX, self.latents.shape[2] * LATENT_STRIDE_PX

    @property
    def num_frames(self) -> int:
        return int(self.latents.shape[1] - 1) * LATENT_STRIDE_FRAMES + 1


def described(source: Source) -> dict[str, Described]:
    """Shard -> its latents, all of which must be there.

    Raises:
        CommandError: a shard has no latents, or those of another codec or without prompts.
    """
    found: dict[str, Described] = {}
    for shard in (shard for shards in source.shards.values() for shard in shards):
        name = f"{FOLDER}/{shard.name}.json"
        here = source.store.exists(name)
        one = Described.from_json(source.store.read(name), name) if here else None
        if one is None or one.shard_sha256 != shard.sha256:
            raise CommandError(
                f"{source.store.root}: no latents of shard {shard.name}; talkforge encode first"
            )
        if one.codec != "wan" or one.text == "none":
            raise CommandError(
                f"{name}: expected latents of Wan's VAE with embeddings of prompts, found codec {one.codec}, "
                f"text {one.text}"
            )
        found[shard.name] = one
    return found


def spans_of(source: Source, shard: ShardManifest, held: Described) -> Iterator[list[Span]]:
    """The spans of each clip of a shard that has latents, in order.

    Raises:
        DatasetError: the file has other clips than its manifest says.
    """
    file = f"{FOLDER}/{shard.name}.tar"
    texts: dict[str, tuple[str, float]] = {}
    with source.store.open(source.snapshot.tar(shard)) as stream:
        for key, members in tar.read_samples(stream, ("json", "txt")):
            fps = sample.read_meta(key, members["json"]).clip.fps
            texts[key] = sample.read_text(key, members["txt"]).strip(), fps
    keys = []
    with source.store.open(file) as stream:
        for key, members in tar.read_samples(stream):
            keys.append(key)
            arrays = read_npz(members["latents.npz"], f"{file}: {key}")
            yield [_span(key, n, arrays, *texts[key]) for n in range(len(arrays["first_frame"]))]
    if tuple(keys) != held.keys:
        raise DatasetError(
            f"{file}: expected {len(held.keys)} clips, found {len(keys)}; talkforge verify says more"
        )


def _span(key: str, number: int, arrays: Mapping[str, np.ndarray], caption: str, fps: float) -> Span:
    image = arrays["image"][number].astype(np.float32) if "image" in arrays else None
    return Span(
        clip_id=key,
        first_frame=int(arrays["first_frame"][number]),
        latents=arrays["latents"][number].astype(np.float32),
        condition=arrays["condition"][number, MASK_CHANNELS:].astype(np.float32),
        text=arrays["text"].astype(np.float32),
        image=image,
        caption=caption,
        fps=fps,
    )


def raw(latents: Floats) -> Floats:
    """Latents as the VAE's encoder gives them, before they are normalised.

    Args:
        latents: [16, T, h, w], normalised.
    """
    shape = (-1, 1, 1, 1)
    found: Floats = latents * np.array(WAN_DEVIATION, np.float32).reshape(shape)
    found += np.array(WAN_MEAN, np.float32).reshape(shape)
    return found


# ------------------------------------------------------------------------------ FastVideo


def _tensor_fields(name: str) -> list[pa.Field]:
    return [
        pa.field(f"{name}_bytes", pa.binary()),
        pa.field(f"{name}_shape", pa.list_(pa.int64())),
        pa.field(f"{name}_dtype", pa.string()),
    ]


FASTVIDEO = pa.schema(
    [
        pa.field("id", pa.string()),
        *(f for name in ("vae_latent", "text_embedding", "clip_feature", "first_frame_latent", "pil_image")
          for f in _tensor_fields(name)),
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_sec", pa.float64()),
        pa.field("fps", pa.float64()),
    ]
)  # fmt: skip
"""Columns of FastVideo's image-to-video data. Source: its fastvideo/dataset/dataloader/schema.py."""


def fastvideo_row(span: Span) -> dict[str, Any]:
    """A span as FastVideo takes it: its trainer normalises the latents, but not the first frame's."""
    tensors = {
        "vae_latent": raw(span.latents),
        "text_embedding": span.text,
        "clip_feature": span.image,
        "first_frame_latent": span.condition,
        "pil_image": None,
    }
    row: dict[str, Any] = {"id": span.span_id}
    for name, array in tensors.items():
        row[f"{name}_bytes"] = b"" if array is None else np.ascontiguousarray(array).tobytes()
        row[f"{name}_shape"] = [] if array is None else list(array.shape)
        row[f"{name}_dtype"] = "" if array is None else str(array.dtype)
    width, height = span.size
    return row | {
        "file_name": f"{span.clip_id}.mp4", "caption": span.caption, "media_type": "video", "width": width,
        "height": height, "num_frames": span.num_frames, "duration_sec": span.num_frames / span.fps,
        "fps": span.fps,
    }  # fmt: skip


def write_fastvideo(
    source: Source, folder: ExportFolder, on_progress: ProgressCallback
) -> tuple[dict[str, StoredFile], dict[str, int]]:
    """Write a Parquet file for each shard; those that are there are left.

    Returns:
        Name -> what is there, and split -> number of clips with latents.
    """
    held = described(source)
    files: dict[str, StoredFile] = {}
    clips: dict[str, int] = {}
    for split, shards in source.shards.items():
        for number, shard in enumerate(shards):
            on_progress(counted("exporting", number, len(shards), f"shards of {split}"))
            name = f"{split}/combined_parquet_dataset/{shard.name}.parquet"
            if not _is_whole(folder.path / name, held[shard.name]):
                with folder.store.writing(name) as path, pq.ParquetWriter(path, FASTVIDEO) as writer:
                    for spans in spans_of(source, shard, held[shard.name]):
                        rows = [fastvideo_row(span) for span in spans]
                        writer.write_table(pa.Table.from_pylist(rows, schema=FASTVIDEO))
            target = folder.path / name
            files[name] = StoredFile(bytes=target.stat().st_size, sha256=sha256_of(target))
            clips[split] = clips.get(split, 0) + len(held[shard.name].keys)
    return files, clips


def _is_whole(path: Path, held: Described) -> bool:
    """Whether a file of rows is there, can be read, and has the clips that have latents."""
    try:
        ids = pq.read_table(path, columns=["id"]).column("id").to_pylist()
    except (OSError, pa.ArrowInvalid):
        return False
    return {one.rpartition("_")[0] for one in ids} == set(held.keys)


# ------------------------------------------------------------------------------ NeMo Automodel


def automodel_entry(span: Span) -> dict[str, Any]:
    """A span as NeMo Automodel's `MetaFilesDataset` and `TextToVideoDataset` load it: tensors, normalised.

    Source: its tools/diffusion/processors/wan.py (`get_cache_data`).
    """
    import torch

    text = np.zeros((AUTOMODEL_TOKENS, span.text.shape[1]), np.float32)
    count = min(len(span.text), AUTOMODEL_TOKENS)
    text[:count] = span.text[:count]
    width, height = span.size
    entry: dict[str, Any] = {
        "video_latents": torch.from_numpy(span.latents).half()[None],
        "text_embeddings": torch.from_numpy(text).half()[None],
        "bucket_resolution": (width, height),
        "aspect_ratio": width / height,
        "num_frames": span.num_frames,
        "prompt": span.caption,
        "original_filename": f"{span.clip_id}.mp4",
        "metadata": {"clip_id": span.clip_id, "first_frame": span.first_frame, "fps": span.fps},
        "deterministic_latents": True,
        "model_version": "wan2.1",
        "model_type": "wan",
    }
    if span.image is not None:
        entry["image_embeds"] = torch.from_numpy(span.image).half()[None]
    return entry


def write_automodel(
    source: Source, folder: ExportFolder, on_progress: ProgressCallback
) -> dict[str, list[str]]:
    """Write a `.meta` file for each span of the clips that are not there yet.

    Returns:
        Split -> ids of the clips with latents, in order.
    """
    extras.require("torch", "--as automodel")
    import torch

    held = described(source)
    keys: dict[str, list[str]] = {}
    total = sum(len(one.keys) for one in held.values())
    for split, shards in source.shards.items():
        keys[split] = [key for shard in shards for key in held[shard.name].keys]
        for shard in shards:
            if all(key in folder.done for key in held[shard.name].keys):
                continue
            for spans in spans_of(source, shard, held[shard.name]):
                clip_id = spans[0].clip_id
                if clip_id in folder.done:
                    continue
                files: dict[str, StoredFile] = {}
                rows = []
                for span in spans:
                    width, height = span.size
                    name = f"{split}/{width}x{height}/{span.span_id}.meta"
                    with folder.store.writing(name) as path, path.open("wb") as stream:
                        torch.save(automodel_entry(span), stream)
                    target = folder.path / name
                    files[name] = StoredFile(bytes=target.stat().st_size, sha256=sha256_of(target))
                    rows.append({"file": name, "size": [width, height], "caption": span.caption})
                entry = ClipEntry(
                    clip_id=clip_id, split=split, files=files, row={"spans": rows}, ledger=source.row(clip_id)
                )
                folder.add(entry)
                on_progress(counted("exporting", len(folder.done), total, "clips"))
    return keys


def automodel_lists(folder: ExportFolder, keys: Mapping[str, list[str]]) -> dict[str, bytes]:
    """`metadata.json` of each split and the list that it names; paths are absolute.

    Source: NeMo Automodel, nemo_automodel/components/datasets/diffusion/base_dataset.py.
    """
    found: dict[str, bytes] = {}
    for split, of_split in keys.items():
        items = [
            {
                "cache_file": str(folder.path / span["file"]),
                "bucket_resolution": span["size"],
                "aspect_ratio": span["size"][0] / span["size"][1],
                "prompt": span["caption"],
                "clip_id": key,
            }
            for key in of_split
            for span in folder.done[key].row["spans"]
        ]
        name = "metadata_shard_0000.json"
        found[f"{split}/{name}"] = json.dumps(items, indent=1, ensure_ascii=False).encode() + b"\n"
        found[f"{split}/metadata.json"] = (
            json.dumps({"total_items": len(items), "shards": [name]}).encode() + b"\n"
        )
    return found
