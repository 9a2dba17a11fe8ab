"""Latents beside the shards: where they lie, what they were made with, and whether a run may use them.

DATASET/shards/train-000000.tar    ->    DATASET/latents/train-000000.tar, .json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import fsspec
from pydantic import ValidationError

from schemas.errors import DatasetError
from schemas.records import Record
from schemas.sample import ShardManifest
from training.config import TrainConfig

FOLDER = "latents"


class LatentsManifest(Record):
    """`latents/<name>.json`: commits and describes the tar file of the same name.

    What decides the latents is named field by field, so that a run can say what differs.
    """

    version: Literal[1] = 1
    name: str
    shard_sha256: str
    """Of the shard that was encoded."""
    sha256: str
    """Of the tar file of latents."""
    bytes: int
    keys: tuple[str, ...]
    num_frames: int
    sizes: tuple[tuple[int, int], ...]
    spans_per_clip: int
    base: str
    codec: str
    codec_sha256: str
    text: str
    image: str


def path_of(shard: str) -> str:
    """Where the latents of a shard lie: the folder `latents` beside the shard's own."""
    folder, _, name = shard.rpartition("/")
    parent, slash, _ = folder.rpartition("/")
    return f"{parent}{slash}{FOLDER}/{name}" if folder else f"../{FOLDER}/{name}"


def read_manifest(shard: str) -> LatentsManifest | None:
    """The manifest of a shard's latents; None where there are none.

    Raises:
        DatasetError: it is there and cannot be read.
    """
    name = path_of(shard).removesuffix(".tar") + ".json"
    try:
        with fsspec.open(name, "rb") as file:
            return LatentsManifest.model_validate_json(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{name}: not a manifest of latents ({' '.join(str(error).split())[:200]})"
        ) from None


def misfits(found: LatentsManifest, shard: ShardManifest, config: TrainConfig) -> list[str]:
    """Why these latents do not serve this run; empty where they do."""
    expected = {
        "shard_sha256": (shard.sha256, found.shard_sha256),
        "num_frames": (config.data.num_frames, found.num_frames),
        "sizes": (config.data.sizes, found.sizes),
        "base": (config.model.base, found.base),
        "codec": (config.codec.kind, found.codec),
        "text": (config.codec.text, found.text),
        "image": (config.codec.image, found.image),
    }
    return [
        f"{name}: expected {want}, found {have}" for name, (want, have) in expected.items() if want != have
    ]


def usable(shards: Sequence[tuple[str, ShardManifest]], config: TrainConfig) -> bool:
    """Whether this run reads cached latents: all shards have them, or none is used.

    Raises:
        DatasetError: `data.latents` is 'require' and a shard has none, or others; one line.
    """
    if config.data.latents == "ignore":
        return False
    for shard, manifest in shards:
        found = read_manifest(shard)
        reasons = ["none are there"] if found is None else misfits(found, manifest, config)
        if reasons:
            if config.data.latents == "require":
                raise DatasetError(f"latents of {shard}: {'; '.join(reasons)}: run `talkforge encode` again")
            return False
    return True
