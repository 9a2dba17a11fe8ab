"""Batches of shards for training: an endless stream that is a function of its seed.

A stream is named by (seed, interval, rank, worker): the trainer opens a new interval with every
checkpoint, so that a run that is resumed reads what the uninterrupted one would have read.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from talkforge.schemas import extras
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import CommandError, DatasetError, RunError, TalkforgeError, one_line
from talkforge.schemas.machine import check_sockets
from talkforge.training.config import UMT5_TOKENS, DataConfig
from talkforge.training.data.batch import Batch, Cached, DatasetInfo
from talkforge.training.data.shards import Shard
from talkforge.training.data.shards import probe as probe
from talkforge.training.data.shards import shard_list as shard_list
from talkforge.training.data.spans import Span
from talkforge.training.data.stream import ClipCache, Reader, ReaderId, SkippedSample

log = logging.getLogger(__name__)


def collate(spans: Sequence[Span], info: DatasetInfo) -> Batch:
    """Spans of one size and length as a batch. An absent identity becomes zeros.

    Args:
        spans: samples of the batch.
        info: of the data set.
    """
    identity_BD = np.zeros((len(spans), info.identity_dim), np.float32)
    for row, span in zip(identity_BD, spans, strict=True):
        row[: len(span.identity)] = span.identity
    return Batch(
        keys=tuple(span.key for span in spans),
        fps=info.fps,
        rgb_BFHWC=None if spans[0].rgb is None else _stacked(span.rgb for span in spans),
        lips_BFHW=_stacked(span.lips for span in spans),
        lip_valid_BF=_stacked(span.lip_valid for span in spans),
        speech_BLD=_stacked(span.speech for span in spans),
        identity_BD=torch.from_numpy(identity_BD),
        has_identity_B=torch.tensor([bool(len(span.identity)) for span in spans]),
        omega_B2=torch.tensor([span.omega for span in spans], dtype=torch.float32),
        texts=tuple(span.text for span in spans),
        cached=_cached(spans) if spans[0].latents is not None else None,
        face_BFHW=None if spans[0].face is None else _stacked(span.face for span in spans),
    )


def _stacked(arrays: Iterable[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


def _cached(spans: Sequence[Span]) -> Cached:
    cached = [(span.latents, span.nth) for span in spans if span.latents is not None]
    first = cached[0][0]
    images = [found.image[k].astype(np.float32) for found, k in cached if found.image is not None]
    texts = [_padded(found.text) for found, _ in cached if found.text is not None]
    return Cached(
        latents_BCTHW=_stacked(found.latents[k].astype(np.float32) for found, k in cached),
        condition_BCTHW=_stacked(found.condition[k].astype(np.float32) for found, k in cached),
        text_BSD=_stacked(texts) if texts else None,
        empty_text_SD=None if first.empty_text is None else torch.from_numpy(_padded(first.empty_text)),
        image_BKD=_stacked(images) if images else None,
    )


def _padded(text: np.ndarray) -> Floats:
    full = np.zeros((UMT5_TOKENS, text.shape[1]), np.float32)
    full[: len(text)] = text
    return full


@dataclass(frozen=True)
class _Read:
    """What a loader process hands over: a batch, and the samples skipped since the last one.

    An error is handed over as `fault`, because an exception would cross the process with its traceback.
    """

    batch: Batch | None
    skipped: tuple[SkippedSample, ...] = ()
    fault: tuple[type[TalkforgeError], str] | None = None


class _Stream(IterableDataset):  # type: ignore[misc]  # torch is untyped to mypy
    """The endless stream of one rank. Each loader process is a reader of its own.

    It stays in its processes from interval to interval, and so does the cache of clips.
    """

    def __init__(self, reader: Reader, info: DatasetInfo, *, seed: int, rank: int, world: int) -> None:
        self._reader, self._info = reader, info
        self._seed, self._rank, self._world = seed, rank, world
        self.turn = torch.zeros(2, dtype=torch.int64).share_memory_()
        """Interval and batches to skip, read by every process when it begins to iterate."""

    def __iter__(self) -> Iterator[_Read]:
        interval, skip = self.turn.tolist()
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Batches are taken from the processes in turn, always from the first one first.
        own = (own + skip) % workers
        reader_id = ReaderId(self._seed, interval, self._rank * workers + own, self._world * workers)
        try:
            for spans, skipped in self._reader.batches(reader_id, len(range(own, skip, workers))):
                yield _Read(collate(spans, self._info), skipped)
        except TalkforgeError as error:
            yield _Read(None, fault=(type(error), one_line(error)))
        except Exception as error:
            log.debug("reading shards", exc_info=True)
            why = f"{type(error).__name__}: {one_line(error, with_path=True)}"
            yield _Read(None, fault=(RunError, f"reading shards: {why}"))


TERMINATION_S = 5
"""Seconds that a loader process goes on after SIGTERM."""


def _begin(_: int) -> None:
    """Start of a loader process. The trainer answers signals, and may be reading from it just then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(TERMINATION_S))  # whose signal ends the process


class SpanLoader:
    """Batches for one rank, without end.

    Args:
        config: which shards, and what a batch is.
        info: of these shards, see `probe`.
        seed: of the run. Seed, interval, rank and loader process name a stream.
        rank: number of this process among all.
        world: how many processes there are.
        interval: number of the checkpoint interval.
        skip: batches at the start of the interval that are passed over.
        cached: read latents beside the shards, see `latent_cache.usable`.
        faces: read the masks of faces.

    Attributes:
        skipped: how many samples were skipped, by reason. A sample counts once, in however many epochs it is.
        skipped_keys: reason by key, or by shard for samples that are lost with it. Each is logged once.

    Raises:
        CommandError: fewer shards than ranks x workers, of which some would have nothing to read.
        DatasetError: there are no samples.
    """

    def __init__(
        self,
        config: DataConfig,
        info: DatasetInfo,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        interval: int = 0,
        skip: int = 0,
        cached: bool = False,
        faces: bool = False,
    ) -> None:
        # Not in the loader processes: a forked process has none of OpenCV's threads, and would wait for
        # them forever when it set another number.
        cv2.setNumThreads(1)
        if config.workers:
            check_sockets()
        if config.decoder == "decord" and not cached:
            extras.require("decord", "data.decoder=decord")
        listed = shard_list(config.shards, config.snapshot)
        shards = [(url, manifest) for url, manifest in listed if manifest.count]
        _check_enough(shards, len(listed), config, world)
        self.skipped: Counter[str] = Counter()
        self.skipped_keys: dict[str, str] = {}
        self._first = (interval, skip)
        cache = ClipCache(config.cache_mb * 2**20)
        reader = Reader(shards, config, info, cached=cached, cache=cache, faces=faces)
        self._stream = _Stream(reader, info, seed=seed, rank=rank, world=world)
        self._loader = DataLoader(
            self._stream,
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            persistent_workers=config.workers > 0,
            worker_init_fn=_begin,
            generator=torch.Generator().manual_seed(seed),  # the global one is not touched
        )

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(*self._first)

    def batches(self, interval: int, skip: int = 0) -> Iterator[Batch]:
        """Batches of an interval, without end. Any earlier iteration ends.

        They are the same as a new loader's, but the loader processes and their cached clips are used again.

        Args:
            interval: number of the checkpoint interval.
            skip: batches at its start that are passed over.
        """
        self._stream.turn.copy_(torch.tensor([interval, skip]))
        for read in self._each():
            for skipped in read.skipped:
                self._count(skipped)
            if read.fault:
                self._end()
                kind, message = read.fault
                raise kind(message)
            if read.batch is not None:
                yield read.batch

    def _each(self) -> Iterator[_Read]:
        try:
            yield from self._loader
        except RuntimeError as error:  # torch raises it where a process was killed
            self._end()
            raise RunError(f"a loader process ended: {one_line(error)}") from None

    def _end(self) -> None:
        """End the loader processes now. The next interval starts new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()

    def _count(self, skipped: SkippedSample) -> None:
        if skipped.key not in self.skipped_keys:
            self.skipped_keys[skipped.key] = skipped.reason
            self.skipped[skipped.reason] += skipped.count
            skipped.log()


def _check_enough(shards: Sequence[Shard], listed: int, config: DataConfig, world: int) -> None:
    if not shards:
        raise DatasetError(f"{config.shards}: expected samples, found {listed} empty shards")
    readers = world * max(1, config.workers)
    if config.sampling == "epochs" and len(shards) < readers:
        raise CommandError(
            f"data.shards: {len(shards)} shards for {world} ranks x {max(1, config.workers)} workers: "
            f"each needs one at least; lower data.workers, cut smaller shards, or data.sampling=resampled"
        )
