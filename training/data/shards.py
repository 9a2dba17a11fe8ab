"""What is there: the shards that a pattern names, their manifests, and what they have in common."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from talkforge.schemas.errors import CommandError, DatasetError, one_line
from talkforge.schemas.sample import SampleMeta, ShardManifest
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.tar import BrokenShardError, Members, beside, read_files, read_samples

log = logging.getLogger(__name__)

Shard = tuple[str, ShardManifest]
"""Path or URI of a tar file, and its manifest."""

LOOKED_AT = 64
"""Samples of a data set among which one is looked for that can be read, and one with an identity: where
these have none, none is expected of any."""


def shard_list(shards: str) -> list[Shard]:
    """Every shard that a pattern with braces names, with its manifest.

    Raises:
        CommandError: no shards are named, or one of them is not there.
        DatasetError: a manifest is not readable, or of another version.
    """
    if not shards:
        raise CommandError("data.shards: expected DATASET/shards/train-{000000..000123}.tar, found nothing")
    named = wds.shardlists.expand_urls(shards)
    urls = [url if "://" in url else str(Path(url).expanduser().absolute()) for url in named]
    names = [url.removesuffix(".tar") + ".json" for url in urls]
    return [
        (url, _manifest(url, name, data))
        for url, name, data in zip(urls, names, read_files(names), strict=True)
    ]


def _manifest(url: str, name: str, data: bytes | Exception) -> ShardManifest:
    if isinstance(data, FileNotFoundError):
        raise CommandError(f"data.shards: no shard {url} (its manifest {name} is not there)")
    try:
        if isinstance(data, Exception):
            raise data
        described = json.loads(data)
        if described.get("version") != 1:
            raise DatasetError(f"{name}: expected shard version 1, found {described.get('version')}")
        return ShardManifest.model_validate(described)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{name}: not a shard's manifest ({one_line(error, 200)})") from None


def probe(shards: str) -> DatasetInfo:
    """What a model must know of a data set, from manifests, first samples and `dataset.json`.

    Raises:
        CommandError, DatasetError: as `shard_list`; or there is no sample at all; or the pattern spans
            data sets that differ in frame rate, speech features or identity embedding.
    """
    return dataset_info(shard_list(shards), shards)


def dataset_info(found: Sequence[Shard], name: str) -> DatasetInfo:
    """As `probe`, of shards that are listed already; `name` is for messages."""
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
    """What all data sets say; one without identities has nothing to say of them."""
    common: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for url, info in described.items():
        for key, value in info.items():
            known = bool(value) or not key.startswith("identity")
            if known and key in said_by and common[key] != value:
                both = f"{common[key]} in {said_by[key]} and {value} in {url}"
                raise DatasetError(f"{name}: {key}: expected one value, found {both}")
            if known or key not in common:
                common[key] = value
            if known:
                said_by[key] = url
    return common


def _described(urls: Sequence[str]) -> dict[str, Any]:
    """What the samples of one data set have in common: of the first that can be read.

    A damaged sample or shard is no reason to stop here; whoever trains on it counts it.
    """
    info: dict[str, Any] = {}
    wrong = ""
    for url, members in itertools.islice(_samples(urls), LOOKED_AT):
        try:
            meta = SampleMeta.model_validate_json(members["json"])
            speech_dim = int(_array(members["speech.npy"]).shape[1])
            found = {"fps": meta.clip.fps, "speech_dim": speech_dim, "speech_model": _speech_model(url)}
            who, vector = meta.measures.identity, members.get("identity.npy")
            identity: dict[str, Any] = {"identity_dim": len(_array(vector)) if vector else 0}
            identity["identity_model"] = who.identity_model if who and vector else ""
        except Exception as error:  # damaged bytes make the libraries raise almost anything
            wrong = wrong or f"{url}: {one_line(error, 200)}"
            continue
        info = found | identity if identity["identity_dim"] else info or found | identity
        if info["identity_dim"]:
            break
    if not info:
        raise DatasetError(
            f"{urls[0]}: expected samples, as its manifest says, found none ({wrong or 'empty'})"
        )
    return info


def _samples(urls: Sequence[str]) -> Iterator[tuple[str, Members]]:
    for url in urls:
        try:
            for _, members in read_samples(url, ("json", "speech.npy", "identity.npy")):
                yield url, members
        except FileNotFoundError:
            raise CommandError(f"data.shards: no shard {url} (only its manifest is there)") from None
        except OSError as error:
            raise DatasetError(f"{url}: {one_line(error, 200)}") from None
        except BrokenShardError as error:
            log.warning("%s", error)


def _array(data: bytes) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _speech_model(url: str) -> str:
    """Name of the speech encoder, from the data set's own description; empty where there is none."""
    (data,) = read_files([beside(url, "dataset.json")])
    try:
        return (
            ""
            if isinstance(data, Exception)
            else str(json.loads(data)["config"]["measure"]["speech"]["embedding"])
        )
    except (ValueError, KeyError, TypeError):
        return ""
