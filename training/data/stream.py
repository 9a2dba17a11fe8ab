"""Batches of spans for one reader among many, as a function of its `ReaderId`.

shards, in an order per epoch  ->  this reader's  ->  samples, undecoded  ->  shuffled
->  spans  ->  buckets by size and length  ->  batches
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from webdataset.filters import shuffle

from talkforge.schemas.errors import DatasetError
from talkforge.schemas.sample import Members
from talkforge.schemas.tar import Sample
from talkforge.training.config import DataConfig
from talkforge.training.data import latent_cache
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import Size, SkippedSampleError
from talkforge.training.data.shards import Shard, motion_quantiles
from talkforge.training.data.spans import CACHED_MEMBERS, MEMBERS, DecodedSample, Span, decode_sample
from talkforge.training.data.tar import BrokenShardError, beside, read_joined, read_samples

log = logging.getLogger(__name__)

Bucket = tuple[Size, int]
"""Height and width in px, and frames of a span."""

BY_DESIGN = ("too_short", "no_latents")
"""Reasons for which undamaged samples are skipped."""

PATIENT_EPOCHS, PATIENT_SAMPLES, MOST_EPOCHS = 2, 10_000, 16
"""A reader gives up after that many of its epochs and that many samples without a usable one, but at the
latest after `MOST_EPOCHS`. With few shards, those without a usable sample may be drawn many times."""


@dataclass(frozen=True)
class SkippedSample:
    """A sample that is skipped, or `count` samples of a shard, and why."""

    key: str
    reason: str
    message: str
    count: int = 1

    def log(self) -> None:
        """Log it: as a warning, or as a detail where the sample is undamaged (`BY_DESIGN`)."""
        log.log(logging.INFO if self.reason in BY_DESIGN else logging.WARNING, "left out: %s", self.message)


@dataclass(frozen=True)
class ReaderId:
    """A reader among all readers of all ranks, in one checkpoint interval of a run.

    Attributes:
        seed: of the run.
        interval: number of the checkpoint interval.
        number: of the reader, from 0.
        total: how many readers there are.
    """

    seed: int
    interval: int
    number: int
    total: int

    def rng(self, purpose: str) -> random.Random:
        """A random generator of this reader alone.

        Args:
            purpose: name of what is drawn. Each has a generator of its own.
        """
        return random.Random(f"{self.seed} {self.interval} {self.number} {purpose}")


def shard_order(count: int, sampling: str, reader_id: ReaderId) -> Iterator[int]:
    """Numbers of the shards that a reader reads, without end.

    Args:
        count: how many shards there are.
        sampling: 'epochs' where the readers divide each epoch among them, so that every shard is read once
            in it. 'resampled' where each reader draws with replacement.
        reader_id: of the reader.
    """
    if sampling == "resampled":
        rng = reader_id.rng("shards")
        while True:
            yield rng.randrange(count)
    everyone = random.Random(f"{reader_id.seed} {reader_id.interval}")  # all readers agree on the order
    while True:
        epoch = list(range(count))
        everyone.shuffle(epoch)
        yield from epoch[reader_id.number :: reader_id.total]


class ClipCache:
    """Decoded clips in memory, without eviction, because a cyclic reader would miss all of an LRU cache.

    A shard that is cached whole is not read again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self._left_bytes = limit_bytes, limit_bytes
        self._found: dict[tuple[str, str], DecodedSample | SkippedSample] = {}
        self._shards: dict[str, list[str]] = {}

    def get(self, shard: str, key: str) -> DecodedSample | SkippedSample | None:
        """The cached clip, why the sample is skipped, or None where it is not cached."""
        return self._found.get((shard, key))

    def room_for(self, clip: DecodedSample) -> bool:
        """Whether there is room for a clip."""
        return clip.memory_bytes <= self._left_bytes

    def put(self, shard: str, key: str, found: DecodedSample | SkippedSample) -> None:
        """Cache a clip if there is room, or why a sample is skipped."""
        if not self.limit_bytes or (shard, key) in self._found:
            return
        if isinstance(found, DecodedSample):
            if not self.room_for(found):
                return
            self._left_bytes -= found.memory_bytes
        self._found[shard, key] = found

    def put_shard(self, shard: str, keys: list[str]) -> None:
        """Remember the keys of a shard, in their order."""
        if self.limit_bytes:
            self._shards[shard] = keys

    def whole(self, shard: str) -> list[tuple[str, DecodedSample | SkippedSample]] | None:
        """Everything in a shard, in its order. None unless all of it is cached."""
        found = [(key, self.get(shard, key)) for key in self._shards.get(shard, ())]
        whole = [(key, what) for key, what in found if what is not None]
        return whole if found and len(whole) == len(found) else None


@dataclass(frozen=True)
class _Item:
    """A sample in the shuffle buffer: members, a cached clip, or why it is skipped."""

    shard: str
    key: str
    what: Members | DecodedSample | SkippedSample


class Reader:
    """Batches of spans for one reader."""

    def __init__(
        self,
        shards: Sequence[Shard],
        config: DataConfig,
        info: DatasetInfo,
        *,
        cached: bool,
        cache: ClipCache,
        faces: bool = False,
    ) -> None:
        self._shards, self._config, self._info = shards, config, info
        self._cached, self._cache, self._faces = cached, cache, faces
        # Empty: the intensity of a span is that of its clip.
        self._quantiles = motion_quantiles(shards, config.snapshot) if config.omega == "span" else {}
        self._to_tell = bool(self._quantiles)

    def batches(
        self, reader_id: ReaderId, skip: int = 0
    ) -> Iterator[tuple[list[Span], tuple[SkippedSample, ...]]]:
        """Batches without end, each with the samples that were skipped since the last one.

        Args:
            reader_id: of the reader.
            skip: batches at the start that are passed over. They are drawn and checked, but not converted.

        Raises:
            DatasetError: no sample can be used, or a shard is missing.
        """
        rng = reader_id.rng("spans")
        self._to_tell &= reader_id.number == 0
        buckets: dict[Bucket, list[Span | Callable[[], Span]]] = {}
        skipped: list[SkippedSample] = []
        patience = _Patience(sum(manifest.count for _, manifest in self._shards) / reader_id.total)
        for item in self._shuffled(reader_id):
            found = self._drawn(item, rng, check_only=skip > 0)
            if isinstance(found, SkippedSample):
                skipped.append(found)
                patience.skipped(found)
                continue
            patience.usable()
            where, span = found
            bucket = buckets.setdefault(where, [])
            bucket.append(span)
            if len(bucket) < self._config.batch_size:
                continue
            if skip:
                skip -= 1
            else:
                yield [one if isinstance(one, Span) else one() for one in bucket], tuple(skipped)
                skipped.clear()
            bucket.clear()

    def _shuffled(self, reader_id: ReaderId) -> Iterator[_Item]:
        size = self._config.shuffle
        shuffled: Iterable[_Item] = shuffle(size, initial=size, rng=reader_id.rng("shuffle"))(
            self._items(reader_id)
        )
        yield from shuffled

    def _items(self, reader_id: ReaderId) -> Iterator[_Item]:
        order = shard_order(len(self._shards), self._config.sampling, reader_id)
        for url, manifest in (self._shards[k] for k in order):
            if whole := self._cache.whole(url):
                for key, what in whole:
                    yield _Item(url, key, what)
                continue
            keys: list[str] = []
            for key, members in self._samples(url):
                keys.append(key)
                yield _Item(url, key, self._cache.get(url, key) or members)
            if len(keys) < manifest.count:
                lost = self._lost(url, manifest.count - len(keys), manifest.count)
                keys.append(lost.key)
                self._cache.put(url, lost.key, lost)
                yield _Item(url, lost.key, lost)
            self._cache.put_shard(url, keys)

    def _samples(self, url: str) -> Iterator[Sample]:
        self._broken = ""
        try:
            if self._cached:
                yield from read_joined(url, CACHED_MEMBERS, latent_cache.path_of(url))
            else:
                yield from read_samples(url, MEMBERS)
        except BrokenShardError as error:
            self._broken = str(error)
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename or url}: a shard that was there is gone") from None

    def _lost(self, url: str, lost: int, count: int) -> SkippedSample:
        why = self._broken or f"{url}: holds fewer than its manifest says"
        return SkippedSample(url, "lost", f"{why}; {lost} of {count} samples are lost", lost)

    def _drawn(
        self, item: _Item, rng: random.Random, *, check_only: bool
    ) -> tuple[Bucket, Span | Callable[[], Span]] | SkippedSample:
        """A span of a sample, or a function that makes it where it may not be needed."""
        clip = self._clip(item)
        if isinstance(clip, SkippedSample):
            return clip
        bucket = (clip.size, clip.span_frames)
        if clip.latents is not None:
            first = int(rng.choice(clip.latents.first_frame.tolist()))
        else:
            first = rng.randint(0, clip.num_frames - clip.span_frames)
        try:
            if not check_only:
                return bucket, clip.span(first)
            clip.check(first)
            return bucket, partial(clip.span, first)
        except SkippedSampleError as error:
            return SkippedSample(item.key, error.reason, str(error))

    def _clip(self, item: _Item) -> DecodedSample | SkippedSample:
        if isinstance(item.what, DecodedSample | SkippedSample):
            return item.what
        found = self._cache.get(item.shard, item.key)  # it may be in the buffer twice
        if found is not None:
            return found
        try:
            found = decode_sample(
                item.key, item.what, self._config.sizes, self._config.lengths, self._info,
                cached=self._cached, quantiles=self._quantiles.get(beside(item.shard, "")), faces=self._faces,
                decoder=self._config.decoder,
            )  # fmt: skip
            self._tell_old(found)
            if self._cache.room_for(found):
                found = found.in_memory()
        except SkippedSampleError as error:
            found = SkippedSample(item.key, error.reason, str(error))
        self._cache.put(item.shard, item.key, found)
        return found

    def _tell_old(self, clip: DecodedSample) -> None:
        """Say once, and in one reader of all, that a sample has no motion of its frames."""
        if self._to_tell and clip.motion == (None, None):
            self._to_tell = False
            log.warning(
                "clip %s was measured by an earlier version: spans of such clips have the motion intensity "
                "of the clip", clip.key,
            )  # fmt: skip


class _Patience:
    """Ends a reader that finds no usable sample.

    Args:
        epoch: samples that it reads in an epoch.
    """

    def __init__(self, epoch: float) -> None:
        self._most = min(MOST_EPOCHS * epoch, max(PATIENT_EPOCHS * epoch, PATIENT_SAMPLES))
        self._skipped = Counter[str]()

    def usable(self) -> None:
        """A sample was usable."""
        self._skipped.clear()

    def skipped(self, skipped: SkippedSample) -> None:
        """A sample was skipped. Raises DatasetError where no usable one is to be expected."""
        self._skipped[skipped.reason] += skipped.count
        if self._skipped.total() > self._most:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self._skipped.items()))
            raise DatasetError(f"no sample can be used: {counts}; the last: {skipped.message}")
