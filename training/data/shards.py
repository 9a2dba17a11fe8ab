"""The shards that a pattern names, their manifests, and what a model must know of their data set."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset as wds

from talkforge.pipeline import snapshots
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.dataset import parse_dataset
from talkforge.schemas.errors import CommandError, DatasetError, one_line
from talkforge.schemas.sample import Members, ShardManifest
from talkforge.training.config import DataConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.tar import BrokenShardError, beside, read_files, read_samples

log = logging.getLogger(__name__)

Shard = tuple[str, ShardManifest]
"""Path or URI of a tar file, and its manifest."""

MAX_PROBED = 64
"""Most samples that are read to find one without damage and one with an identity. Where these have no
identity, none is expected of any."""

DESCRIBING = ("json", "speech.npy", "identity.npy")
"""Members that a model's sizes follow from. The last one may be missing."""


def shard_list(shards: str, snapshot: str = "") -> list[Shard]:
    """Every shard that a pattern with braces names, with its manifest.

    `DATASET/shards/<name>.tar` stands for the shard of this name in a snapshot of the data set, whose file
    never changes. In a data set without snapshots, and elsewhere, the file itself is meant.

    Args:
        shards: paths or URIs of tar files, such as `set/shards/train-{000000..000123}.tar`.
        snapshot: `data.snapshot` of the configuration.

    Raises:
        CommandError: no shards are named, or one of them, or the snapshot, is not there.
        DatasetError: a manifest is not readable, or of another version.
    """
    if not shards:
        raise CommandError("data.shards: expected DATASET/shards/train-{000000..000123}.tar, found nothing")
    urls = _expanded(shards)
    found = {root: _snapshot(root, snapshot) for root in _roots(urls)}
    plain = [url for url in urls if not found.get(_root(url))]
    names = [url.removesuffix(".tar") + ".json" for url in plain]
    listed = {
        url: (url, _manifest(url, name, data))
        for url, name, data in zip(plain, names, read_files(names), strict=True)
    }
    for root, held in found.items():
        if held:
            own = {f"{root}/shards/{shard.name}.tar": shard for shard in held.shards}
            for url in urls:
                if _root(url) == root and url not in own:
                    raise CommandError(f"data.shards: no shard {url} in snapshot {held.number}")
            listed |= {url: (f"{root}/{held.tar(shard)}", shard) for url, shard in own.items()}
    return [listed[url] for url in urls]


def pin(config: DataConfig) -> DataConfig:
    """The configuration with the number of each snapshot that it reads now, so that it reads no other later.

    Args:
        config: which shards. Where `snapshot` is empty, the current snapshots are taken.

    Raises:
        CommandError: a snapshot is not there. DatasetError: it is damaged.
    """
    found = _snapshots(config)
    numbers = {root: snapshot.number for root, snapshot in found.items() if snapshot}
    if not numbers:
        return config
    one = len(set(numbers.values())) == 1 and len(numbers) == len(found)
    text = str(next(iter(numbers.values()))) if one else json.dumps(numbers, sort_keys=True)
    return config.model_copy(update={"snapshot": text})


def snapshot_notes(config: DataConfig) -> list[dict[str, Any]]:
    """The snapshots that a configuration reads: data set, number, and sha256 of the manifest."""
    return [
        {
            "dataset": root,
            "number": snapshot.number,
            "sha256": snapshots.manifest_sha256(Store(root), snapshot),
        }
        for root, snapshot in sorted(_snapshots(config).items())
        if snapshot
    ]


def _snapshots(config: DataConfig) -> dict[str, Snapshot | None]:
    urls = [
        url for shards in (config.shards, config.validation_shards) if shards for url in _expanded(shards)
    ]
    return {root: _snapshot(root, config.snapshot) for root in _roots(urls)}


def _expanded(shards: str) -> list[str]:
    named = wds.shardlists.expand_urls(shards)
    return [url if "://" in url else str(Path(url).expanduser().absolute()) for url in named]


def _root(url: str) -> str:
    """The data set of a shard under its plain name; empty for another file."""
    match = re.fullmatch(r"(.+)/shards/[^/]+\.tar", url)
    return match[1] if match else ""


def _roots(urls: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(root for url in urls if (root := _root(url))))


def _snapshot(root: str, which: str) -> Snapshot | None:
    """The snapshot to read of a data set; None where it has none."""
    store = Store(root)
    if which.startswith("{"):
        try:
            which = str(json.loads(which).get(root, ""))
        except ValueError as error:
            raise CommandError(f"data.snapshot: expected a JSON object, found {one_line(error)}") from None
    if not which and snapshots.read_index(store) is None:
        return None
    found = snapshots.find(store, which or None)
    return found if found.number else None


def _manifest(url: str, name: str, data: bytes | Exception) -> ShardManifest:
    if isinstance(data, FileNotFoundError):
        raise CommandError(f"data.shards: no shard {url} (its manifest {name} is not there)")
    if isinstance(data, Exception):
        raise DatasetError(f"{name}: cannot be read ({one_line(data)})")
    return sample.read_manifest(data, name)


def probe(shards: str) -> DatasetInfo:
    """What a model must know of a data set, from manifests, first samples and `dataset.json`.

    Args:
        shards: pattern that names the tar files.

    Raises:
        CommandError, DatasetError: as `shard_list`.
        DatasetError: there is no sample, or the pattern spans data sets that differ in frame rate, speech
            features or identity embedding.
    """
    return dataset_info(shard_list(shards), shards)


def dataset_info(found: Sequence[Shard], name: str) -> DatasetInfo:
    """As `probe`, of shards that are listed already.

    Args:
        found: what `shard_list` gave.
        name: what messages call them.
    """
    full = [(url, manifest) for url, manifest in found if manifest.count]
    if not full:
        raise DatasetError(f"{name}: expected samples, found {len(found)} empty shards")
    sets: dict[str, list[str]] = {}
    for url, _ in full:
        sets.setdefault(url.rpartition("/")[0], []).append(url)
    info = _common(name, {urls[0]: _described(urls) for urls in sets.values()})
    digest = hashlib.sha256("".join(manifest.sha256 for _, manifest in found).encode())
    return DatasetInfo(
        **info,
        num_shards=len(found),
        num_samples=sum(manifest.count for _, manifest in found),
        fingerprint=digest.hexdigest(),
    )


def _common(name: str, described: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of all data sets. Only those with identities must agree on the identity model."""
    common: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for url, info in described.items():
        for key, value in info.items():
            known = bool(value) or not key.startswith("identity")
            if known and key in origin and common[key] != value:
                both = f"{common[key]} in {origin[key]} and {value} in {url}"
                raise DatasetError(f"{name}: {key}: expected one value, found {both}")
            if known or key not in common:
                common[key] = value
            if known:
                origin[key] = url
    return common


def _described(urls: Sequence[str]) -> dict[str, Any]:
    """What the samples of one data set have in common: of the first that can be read.

    A damaged sample or shard does not stop a run here. The loader counts it.
    """
    info: dict[str, Any] = {}
    damage = ""
    for url, key, members in itertools.islice(_samples(urls), MAX_PROBED):
        try:
            found = _described_by(key, members)
        except DatasetError as error:
            damage = damage or f"{url}: {error}"
            continue
        info = found if found["identity_dim"] else info or found
        if info["identity_dim"]:
            break
    if not info:
        raise DatasetError(
            f"{urls[0]}: expected samples, as its manifest says, found none ({damage or 'empty'})"
        )
    return info | {"speech_model": _speech_model(urls[0])}


def _described_by(key: str, members: Members) -> dict[str, Any]:
    """Description of a data set by one of its samples."""
    if lacking := [name for name in DESCRIBING[:2] if name not in members]:
        raise DatasetError(f"sample {key}: no {', '.join(lacking)}")
    meta = sample.read_meta(key, members["json"])
    sample.check_version_members(meta, members, DESCRIBING)
    speech_dim = sample.read_speech(key, members["speech.npy"], meta.clip).shape[1]
    found = {"fps": meta.clip.fps, "speech_dim": speech_dim, "identity_dim": 0, "identity_model": ""}
    identity, vector = meta.measures.identity, members.get("identity.npy")
    if vector is not None and (dim := len(sample.read_identity(key, vector, meta.clip))):
        found |= {"identity_dim": dim, "identity_model": identity.identity_model if identity else ""}
    return found


def _samples(urls: Sequence[str]) -> Iterator[tuple[str, str, Members]]:
    """Shard, key and members of every sample."""
    for url in urls:
        try:
            for key, members in read_samples(url, DESCRIBING):
                yield url, key, members
        except FileNotFoundError:
            raise CommandError(f"data.shards: no shard {url} (only its manifest is there)") from None
        except OSError as error:
            raise DatasetError(f"{url}: cannot be read ({one_line(error)})") from None
        except BrokenShardError as error:
            log.warning("%s", error)


def motion_quantiles(shards: Sequence[Shard], snapshot: str) -> dict[str, dict[str, tuple[float, ...]]]:
    """Percentiles of the raw motion variances of each data set, by `beside(url, "")` of its shards.

    They are those of the snapshot that is read. A data set without any, or whose `dataset.json` cannot be
    read, is left out with a line in the log: the motion intensity of its spans is that of their clips.

    Args:
        shards: what `shard_list` gave.
        snapshot: `data.snapshot` of the configuration.

    Raises:
        DatasetError: disk or network fail.
    """
    found = {}
    sets = {beside(url, "") for url, _ in shards if re.search(r"/(shards|snapshots/\d+)/[^/]+\.tar$", url)}
    for root in dict.fromkeys(beside(url, "") for url, _ in shards):
        held = _snapshot(root.rstrip("/"), snapshot) if root in sets else None
        name = f"{root}{held.table('dataset.json') if held else 'dataset.json'}"
        (data,) = read_files([name])
        why = f"{name} is not there"
        if isinstance(data, bytes):
            try:
                if quantiles := parse_dataset(data).quantiles:
                    found[root] = quantiles
                    continue
                why = f"{name} has no quantiles of it"
            except DatasetError as error:
                why = f"{name.removesuffix('dataset.json')}{error}"
        elif not isinstance(data, FileNotFoundError):
            raise DatasetError(f"{name}: cannot be read ({one_line(data)})")
        log.warning("the motion intensity of spans is taken to be that of their clips: %s", why)
    return found


def _speech_model(url: str) -> str:
    """Name of the speech encoder from `dataset.json`, or empty where that is missing or damaged.

    Raises:
        DatasetError: disk or network fail.
    """
    name = beside(url, "dataset.json")
    (data,) = read_files([name])
    why = f"{name} is not there"
    if isinstance(data, bytes):
        try:
            return parse_dataset(data).config.measure.speech.embedding
        except DatasetError as error:
            why = f"{name.removesuffix('dataset.json')}{error}"
    elif not isinstance(data, FileNotFoundError):
        raise DatasetError(f"{name}: cannot be read ({one_line(data)})")
    log.warning("which speech encoder the data set used is not known (%s): training needs no more than its "
                "features, but `talkforge generate` will refuse the run", why)  # fmt: skip
    return ""
