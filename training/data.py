"""Batches out of shards: an endless stream that is a function of its seed.

    shards, in an order per epoch  ->  this rank's and worker's  ->  samples  ->  shuffled, undecoded
    ->  decoded, cut to a span  ->  buckets by size  ->  batches

A stream is named by (seed, chapter, rank, worker): the trainer opens a new chapter with every
checkpoint, so that a run that is resumed reads what the uninterrupted one would have read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import fsspec
import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from schemas.arrays import Floats
from schemas.errors import CommandError, DatasetError
from schemas.sample import SampleMeta, ShardManifest
from training import cache, spans
from training.batch import Batch, Cached, Facts
from training.config import DataConfig
from training.spans import BadSampleError, Prepared, Size, Span

log = logging.getLogger(__name__)

Members = dict[str, bytes]


# --------------------------------------------------------------------------- what is there


def shard_list(shards: str) -> list[tuple[str, ShardManifest]]:
    """Every shard that a pattern with braces names, with its manifest.

    Raises:
        CommandError: no shards are named, or one of them is not there.
        DatasetError: a manifest is not readable, or of another version.
    """
    if not shards:
        raise CommandError("data.shards: expected DATASET/shards/train-{000000..000123}.tar, found nothing")
    return [(url, _manifest(url)) for url in wds.shardlists.expand_urls(shards)]


def _manifest(url: str) -> ShardManifest:
    name = url.removesuffix(".tar") + ".json"
    try:
        with fsspec.open(name, "rb") as file:
            data = json.loads(file.read())
        if data.get("version") != 1:
            raise DatasetError(f"{name}: expected shard version 1, found {data.get('version')}")
        return ShardManifest.model_validate(data)
    except FileNotFoundError:
        raise CommandError(f"data.shards: no shard {url} (its manifest {name} is not there)") from None
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(f"{name}: not a shard's manifest ({' '.join(str(error).split())[:200]})") from None


def probe(shards: str) -> Facts:
    """What a model must know of a data set, from the manifests, the first sample and `dataset.json`.

    Raises:
        CommandError, DatasetError: as `shard_list`; or there is no sample at all.
    """
    found = shard_list(shards)
    full = [(url, manifest) for url, manifest in found if manifest.count]
    if not full:
        raise DatasetError(f"{shards}: expected samples, found {len(found)} empty shards")
    url = full[0][0]
    first = next(_samples([url]))
    try:
        meta = SampleMeta.model_validate_json(first["json"])
        speech = np.load(io.BytesIO(first["speech.npy"]), allow_pickle=False)
        identity = first.get("identity.npy")
        identity_dim = len(np.load(io.BytesIO(identity), allow_pickle=False)) if identity else 0
    except (KeyError, ValueError) as error:
        raise DatasetError(f"{url}: first sample: {' '.join(str(error).split())[:200]}") from None
    who = meta.measures.identity
    digest = hashlib.sha256("".join(manifest.sha256 for _, manifest in found).encode())
    return Facts(
        fps=meta.clip.fps,
        speech_dim=int(speech.shape[1]),
        speech_model=_speech_model(url),
        identity_dim=identity_dim,
        identity_model=who.identity_model if who and identity_dim else "",
        num_shards=len(found),
        num_samples=sum(manifest.count for _, manifest in found),
        fingerprint=digest.hexdigest(),
    )


def _speech_model(url: str) -> str:
    """Name of the speech encoder, from the data set's own description; empty where there is none."""
    name = cache.path_of(url).rpartition(f"{cache.FOLDER}/")[0] + "dataset.json"
    try:
        with fsspec.open(name, "rb") as file:
            return str(json.loads(file.read())["config"]["measure"]["speech"]["embedding"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# --------------------------------------------------------------------------- samples


def _samples(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Members of every sample, with `__key__` and `__url__`; a tar file that breaks off ends there."""
    files = wds.tariterators.tar_file_expander(_opened(urls), handler=_broken)
    yield from wds.tariterators.group_by_keys(files, handler=_broken)


def _opened(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    for url in urls:
        with fsspec.open(url, "rb") as stream:
            yield {"url": url, "stream": stream}


def _broken(error: Exception) -> bool:
    log.warning("a shard cannot be read to its end: %s", " ".join(str(error).split())[:300])
    return True


def _with_latents(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """As `_samples`, with the member `latents.npz` out of the parallel shard where the key is there too."""
    for url in urls:
        cached = _samples([cache.path_of(url)])
        waiting = next(cached, None)
        for sample in _samples([url]):
            if waiting is not None and waiting["__key__"] == sample["__key__"]:
                sample["latents.npz"] = waiting["latents.npz"]
                waiting = next(cached, None)
            yield sample


# --------------------------------------------------------------------------- the stream


@dataclass(frozen=True)
class Bad:
    """A sample that was left out, and why."""

    key: str
    reason: str
    message: str


@dataclass(frozen=True)
class _Read:
    """What a worker hands over: a batch, and what it left out since the last one; or why it cannot go
    on, because an exception would cross the process with its traceback."""

    batch: Batch | None
    bad: tuple[Bad, ...]
    error: str = ""


class _Stream(IterableDataset):  # type: ignore[misc]  # torch is untyped to mypy
    """The endless stream of one rank; each loader process takes its share of the shards."""

    def __init__(
        self,
        urls: list[str],
        config: DataConfig,
        facts: Facts,
        *,
        seed: int,
        rank: int,
        world: int,
        chapter: int,
        cached: bool,
    ) -> None:
        self._urls, self._config, self._facts = urls, config, facts
        self._seed, self._rank, self._world, self._chapter = seed, rank, world, chapter
        self._cached = cached

    def __iter__(self) -> Iterator[_Read]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        place, places = self._rank * workers + number, self._world * workers
        rng = random.Random(f"{self._seed} {self._chapter} {place}")
        urls = self._shards(place, places, rng)
        samples = _with_latents(urls) if self._cached else _samples(urls)
        shuffled = wds.filters.shuffle(self._config.shuffle, initial=self._config.shuffle, rng=rng)(samples)
        try:
            yield from self._batches(shuffled, rng, len(self._urls) // places + 1)
        except (DatasetError, OSError) as error:
            yield _Read(None, (), " ".join(str(error).split()))

    def _shards(self, place: int, places: int, rng: random.Random) -> Iterator[str]:
        if self._config.sampling == "resampled":
            while True:
                yield rng.choice(self._urls)
        order = random.Random(f"{self._seed} {self._chapter}")  # the same on every rank and worker
        while True:
            epoch = list(self._urls)
            order.shuffle(epoch)
            yield from epoch[place::places]

    def _batches(
        self, samples: Iterable[dict[str, Any]], rng: random.Random, shards_each: int
    ) -> Iterator[_Read]:
        """Batches of spans; gives up where all that there is was read twice without one good sample."""
        buckets: dict[Size, list[Span]] = {}
        bad: list[Bad] = []
        clips = _Kept(self._config.cache_mb * 2**20)
        patience = 2 * shards_each * max(1, self._facts.num_samples)
        for sample in samples:
            try:
                clip = self._clip(sample, clips)
                span = clip.span(self._first(clip, rng), self._config.num_frames)
            except BadSampleError as error:
                bad.append(Bad(sample["__key__"], error.reason, str(error)))
                if len(bad) >= patience:
                    raise DatasetError(f"no sample can be used: {_counted(bad)}; the last: {error}") from None
                continue
            bucket = buckets.setdefault(clip.size, [])
            bucket.append(span)
            if len(bucket) == self._config.batch_size:
                yield _Read(collate(bucket, self._facts), tuple(bad))
                bucket.clear()
                bad.clear()

    def _clip(self, sample: Mapping[str, Any], clips: _Kept) -> Prepared:
        key, members = str(sample["__key__"]), {k: v for k, v in sample.items() if not k.startswith("__")}
        if self._cached and "latents.npz" not in members:
            raise BadSampleError("no_latents", f"{key}: no cached latents")
        found = clips.get(key)
        if found is None:
            found = spans.prepare(key, members, self._config.sizes, self._config.num_frames, self._facts)
            clips.put(key, found)
        return found

    def _first(self, clip: Prepared, rng: random.Random) -> int:
        if clip.latents is not None:
            return int(rng.choice(clip.latents.first_frame.tolist()))
        return rng.randint(0, clip.num_frames - self._config.num_frames)


def _counted(bad: Iterable[Bad]) -> str:
    counts = Counter(one.reason for one in bad)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


class _Kept:
    """Prepared clips in memory, the one used longest ago leaving first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._clips: OrderedDict[str, Prepared] = OrderedDict()

    def get(self, key: str) -> Prepared | None:
        if key in self._clips:
            self._clips.move_to_end(key)
        return self._clips.get(key)

    def put(self, key: str, clip: Prepared) -> None:
        if clip.num_bytes > self._limit_bytes:
            return
        self._clips[key] = clip
        self._bytes += clip.num_bytes
        while self._bytes > self._limit_bytes:
            self._bytes -= self._clips.popitem(last=False)[1].num_bytes


def collate(found: list[Span], facts: Facts) -> Batch:
    """Spans of one size and length as a batch; an absent identity is zeros."""
    clips = [span.clip for span in found]
    identity_BD = np.zeros((len(clips), facts.identity_dim), np.float32)
    for row, clip in zip(identity_BD, clips, strict=True):
        row[: len(clip.identity)] = clip.identity
    return Batch(
        keys=tuple(span.key for span in found),
        fps=facts.fps,
        rgb_BFHWC=None if clips[0].rgb is None else _stacked(clip.rgb for clip in clips),
        lips_BFHW=_stacked(clip.lips for clip in clips),
        lip_valid_BF=_stacked(clip.lip_valid for clip in clips),
        speech_BLD=_stacked(clip.speech for clip in clips),
        identity_BD=torch.from_numpy(identity_BD),
        has_identity_B=torch.tensor([bool(len(clip.identity)) for clip in clips]),
        omega_B2=torch.tensor([clip.omega for clip in clips], dtype=torch.float32),
        texts=tuple(clip.text for clip in clips),
        cached=_cached(found) if clips[0].latents is not None else None,
    )


def _stacked(arrays: Iterable[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


def _cached(found: list[Span]) -> Cached:
    chosen = [(span.clip.latents, span.cached) for span in found]
    kept = [(latents, index) for latents, index in chosen if latents is not None and index is not None]
    first = kept[0][0]
    images = [latents.image[k].astype(np.float32) for latents, k in kept if latents.image is not None]
    return Cached(
        latents_BCTHW=_stacked(latents.latents[k].astype(np.float32) for latents, k in kept),
        condition_BCTHW=_stacked(latents.condition[k].astype(np.float32) for latents, k in kept),
        text_BSD=None if first.text is None else _stacked(_padded(latents.text) for latents, _ in kept),
        empty_text_SD=None if first.empty_text is None else torch.from_numpy(_padded(first.empty_text)),
        image_BKD=_stacked(images) if images else None,
    )


def _padded(text: np.ndarray | None) -> Floats:
    from training.encoders import TEXT_TOKENS

    assert text is not None, "either all cached samples have a prompt embedding, or none"
    full = np.zeros((TEXT_TOKENS, text.shape[1]), np.float32)
    full[: len(text)] = text
    return full


class SpanLoader:
    """Batches for one rank, for ever.

    Args:
        config: which shards, and what a batch is. facts: of these shards, see `probe`.
        rank, world: this process among all. chapter: names the stream together with `seed`.
        skip: batches at the start of the chapter that are passed over.
        cached: read latents beside the shards, see `cache.usable`.

    Attributes:
        bad: counts of the samples left out, by reason; each is named in the log once.

    Raises:
        CommandError: fewer shards than ranks x workers, of which some would have nothing to read.
    """

    def __init__(
        self,
        config: DataConfig,
        facts: Facts,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        chapter: int = 0,
        skip: int = 0,
        cached: bool = False,
    ) -> None:
        urls = [url for url, manifest in shard_list(config.shards) if manifest.count]
        readers = world * max(1, config.workers)
        if config.sampling == "epochs" and len(urls) < readers:
            raise CommandError(
                f"data.shards: {len(urls)} shards for {world} ranks x {max(1, config.workers)} workers: "
                f"each needs one at least; lower data.workers, cut smaller shards, or data.sampling=resampled"
            )
        self.bad: Counter[str] = Counter()
        self._named: set[tuple[str, str]] = set()
        self._skip = skip
        self._loader = DataLoader(
            _Stream(urls, config, facts, seed=seed, rank=rank, world=world, chapter=chapter, cached=cached),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            generator=torch.Generator().manual_seed(seed),  # the global one is not touched
        )

    def __iter__(self) -> Iterator[Batch]:
        for count, read in enumerate(self._loader):
            for one in read.bad:
                self.bad[one.reason] += 1
                if (one.key, one.reason) not in self._named:
                    self._named.add((one.key, one.reason))
                    log.warning("left out: %s", one.message)
            if read.batch is None:
                raise DatasetError(read.error)
            if count >= self._skip:
                yield read.batch
