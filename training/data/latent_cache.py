"""The cache of latents beside the shards: where it is, what it was made with, and whether a run may use it.

DATASET/shards/train-000000.tar    ->    DATASET/latents/train-000000.tar, .json
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from talkforge.schemas.errors import DatasetError, one_line
from talkforge.schemas.records import Record
from talkforge.schemas.sample import ShardManifest
from talkforge.training.config import TrainConfig
from talkforge.training.data.tar import beside, read_files

log = logging.getLogger(__name__)

FOLDER = "latents"


class LatentsManifest(Record):
    """`latents/<name>.json`: commits and describes the tar file of the same name.

    Every setting that changes the latents is a field, so that a message can name the ones that differ.
    """

    version: Literal[1] = 1
    name: str
    shard_sha256: str
    """Of the shard that was encoded."""
    sha256: str
    """Of the tar file of latents."""
    bytes: int
    keys: tuple[str, ...]
    """In the order of the shard. Samples that could not be used are missing."""
    lost: int
    """Samples that were lost because the shard could not be read to its end."""
    num_frames: int
    shorter_spans: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...]
    spans_per_clip: int
    base: str
    codec: str
    codec_sha256: str
    text: str
    image: str
    condition: bool = True
    """Whether the reference image's condition is there. A base that takes none has none."""
    decoder: str = "pyav"


def path_of(shard: str) -> str:
    """Where the latents of a shard lie: the folder `latents` beside the shard's own.

    Args:
        shard: path or URI of the shard's tar file.
    """
    return beside(shard, f"{FOLDER}/{shard.rpartition('/')[2]}")


def read_manifests(shards: Sequence[str]) -> list[LatentsManifest | None]:
    """The manifest of each shard's latents, or None where there are none.

    Args:
        shards: paths or URIs of the shards' tar files.

    Raises:
        DatasetError: one is there and cannot be read.
    """
    names = [path_of(shard).removesuffix(".tar") + ".json" for shard in shards]
    return [_manifest(data, name) for name, data in zip(names, read_files(names), strict=True)]


def _manifest(data: bytes | Exception, name: str) -> LatentsManifest | None:
    if isinstance(data, FileNotFoundError):
        return None
    if isinstance(data, Exception):
        raise DatasetError(f"{name}: cannot be read ({one_line(data)})")
    return parse_manifest(data, name)


def parse_manifest(data: bytes, file: str) -> LatentsManifest:
    """The manifest of a shard's latents.

    Args:
        data: content of `latents/<name>.json`.
        file: what messages call it.

    Raises:
        DatasetError: it is no manifest, or one of another version.
    """
    return LatentsManifest.from_json(data, file, "a manifest of latents")


def misfits(
    found: LatentsManifest, shard: ShardManifest, config: TrainConfig, condition: bool = True
) -> list[str]:
    """Why this run cannot use these latents. Empty where it can.

    Args:
        found: manifest of the latents.
        shard: manifest of the shard that they should be of.
        config: of the run.
        condition: whether the base takes the reference image's condition.
    """
    expected = {
        "shard": (shard.sha256, found.shard_sha256),
        "data.num_frames": (config.data.num_frames, found.num_frames),
        "data.shorter_spans": (config.data.shorter_spans, found.shorter_spans),
        "data.sizes": (config.data.sizes, found.sizes),
        "data.decoder": (config.data.decoder, found.decoder),
        "model.base": (config.model.base, found.base),
        "codec.kind": (config.codec.kind, found.codec),
        "codec.text": (config.codec.text, found.text),
        "codec.image": (config.codec.image, found.image),
    }
    lacking = ["condition of the reference image: found none"] if condition and not found.condition else []
    return lacking + [
        f"{name}: expected {want}, found {have}" for name, (want, have) in expected.items() if want != have
    ]


def usable(shards: Sequence[tuple[str, ShardManifest]], config: TrainConfig, condition: bool = True) -> bool:
    """Whether this run reads cached latents: all shards have fitting ones, or none is used.

    Where some exist and are not used, the log says why.

    Args:
        shards: path or URI and manifest of each shard.
        config: of the run.
        condition: whether the base takes the reference image's condition.

    Raises:
        DatasetError: `data.latents` is 'require' and a shard has none, or others.
    """
    if config.data.latents == "ignore":
        return False
    manifests = read_manifests([url for url, _ in shards])
    for (url, manifest), found in zip(shards, manifests, strict=True):
        reasons = ["none are there"] if found is None else misfits(found, manifest, config, condition)
        if not reasons:
            continue
        text = f"latents of {url}: {'; '.join(reasons)}: run `talkforge encode` again"
        if config.data.latents == "require":
            raise DatasetError(text)
        if any(manifests):
            log.warning("cached latents are not used: %s", text)
        return False
    return True
