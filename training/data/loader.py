"""Batches out of shards: an endless stream that is a function of its seed.

A stream is named by (seed, chapter, rank, worker): the trainer opens a new chapter with every
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

from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import CommandError, DatasetError, RunError, TalkforgeError, one_line
from talkforge.training.config import UMT5_TOKENS, DataConfig
from talkforge.training.data.batch import Batch, Cached, Facts
from talkforge.training.data.shards import Shard
from talkforge.training.data.shards import probe as probe
from talkforge.training.data.shards import shard_list as shard_list
from talkforge.training.data.spans import Span
from talkforge.training.data.stream import Bad, Kept, Place, Reader

log = logging.getLogger(__name__)


def collate(spans: Sequence[Span], facts: Facts) -> Batch:
    """Spans of one size and length as a batch; an absent identity is zeros."""
    identity_BD = np.zeros((len(spans), facts.identity_dim), np.float32)
    for row, span in zip(identity_BD, spans, strict=True):
        row[: len(span.identity)] = span.identity
    return Batch(
        keys=tuple(span.key for span in spans),
        fps=facts.fps,
        rgb_BFHWC=None if spans[0].rgb is None else _stacked(span.rgb for span in spans),
        lips_BFHW=_stacked(span.lips for span in spans),
        lip_valid_BF=_stacked(span.lip_valid for span in spans),
        speech_BLD=_stacked(span.speech for span in spans),
        identity_BD=torch.from_numpy(identity_BD),
        has_identity_B=torch.tensor([bool(len(span.identity)) for span in spans]),
        omega_B2=torch.tensor([span.omega for span in spans], dtype=torch.float32),
        texts=tuple(span.text for span in spans),
        cached=_cached(spans) if spans[0].latents is not None else None,
    )


def _stacked(arrays: Iterable[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


def _cached(spans: Sequence[Span]) -> Cached:
    kept = [(span.latents, span.nth) for span in spans if span.latents is not None]
    first = kept[0][0]
    images = [found.image[k].astype(np.float32) for found, k in kept if found.image is not None]
    texts = [_padded(found.text) for found, _ in kept if found.text is not None]
    return Cached(
        latents_BCTHW=_stacked(found.latents[k].astype(np.float32) for found, k in kept),
        condition_BCTHW=_stacked(found.condition[k].astype(np.float32) for found, k in kept),
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
    """What a loader process hands over: a batch, and what was left out since the last one; or why it
    cannot go on, because an exception would cross the process with its traceback."""

    batch: Batch | None
    bad: tuple[Bad, ...] = ()
    fault: tuple[type[TalkforgeError], str] | None = None


class _Stream(IterableDataset):  # type: ignore[misc]  # torch is untyped to mypy
    """The endless stream of one rank; each loader process is a reader of its own.

    Lives on in its processes from chapter to chapter, and so do the clips that it keeps.
    """

    def __init__(self, reader: Reader, facts: Facts, *, seed: int, rank: int, world: int) -> None:
        self._reader, self._facts = reader, facts
        self._seed, self._rank, self._world = seed, rank, world
        self.turn = torch.zeros(2, dtype=torch.int64).share_memory_()
        """Chapter and batches to skip, seen by every process when it begins to iterate."""

    def __iter__(self) -> Iterator[_Read]:
        chapter, skip = self.turn.tolist()
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Batches are taken from the processes in turn, always from the first one first.
        own = (own + skip) % workers
        place = Place(self._seed, chapter, self._rank * workers + own, self._world * workers)
        try:
            for spans, bad in self._reader.batches(place, len(range(own, skip, workers))):
                yield _Read(collate(spans, self._facts), bad)
        except TalkforgeError as error:
            yield _Read(None, fault=(type(error), one_line(error)))
        except Exception as error:
            log.debug("reading shards", exc_info=True)
            said = " ".join(str(error).split())  # the whole of it: nothing else names the file
            yield _Read(None, fault=(RunError, f"reading shards: {type(error).__name__}: {said}"))


def _begin(_: int) -> None:
    """A loader process: an interrupt is its trainer's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class SpanLoader:
    """Batches for one rank, for ever.

    Args:
        config: which shards, and what a batch is. facts: of these shards, see `probe`.
        rank, world: this process among all. chapter: names the stream together with `seed`.
        skip: batches at the start of the chapter that are passed over.
        cached: read latents beside the shards, see `cache.usable`.

    Attributes:
        bad: how many samples were left out, by reason; each counts once, however often it comes round.
        bad_keys: why, by key; by shard for samples that are lost with it. Each is named in the log once.

    Raises:
        CommandError: fewer shards than ranks x workers, of which some would have nothing to read.
        DatasetError: there are no samples.
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
        # Here and not in the loader processes: OpenCV's threads do not come along when a process forks,
        # and whoever asks for another number of them there waits for those for ever.
        cv2.setNumThreads(1)
        listed = shard_list(config.shards)
        shards = [(url, manifest) for url, manifest in listed if manifest.count]
        _check_enough(shards, len(listed), config, world)
        self.bad: Counter[str] = Counter()
        self.bad_keys: dict[str, str] = {}
        self._first = (chapter, skip)
        reader = Reader(shards, config, facts, cached=cached, kept=Kept(config.cache_mb * 2**20))
        self._stream = _Stream(reader, facts, seed=seed, rank=rank, world=world)
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
        return self.chapter(*self._first)

    def chapter(self, chapter: int, skip: int = 0) -> Iterator[Batch]:
        """Batches of a chapter after its first `skip`, for ever; any earlier iteration ends.

        The same as a new loader's, but loader processes and the clips that they keep live on.
        """
        self._stream.turn.copy_(torch.tensor([chapter, skip]))
        for read in self._each():
            for bad in read.bad:
                self._count(bad)
            if read.fault:
                self._end()
                kind, message = read.fault
                raise kind(message)
            if read.batch is not None:
                yield read.batch

    def _each(self) -> Iterator[_Read]:
        try:
            yield from self._loader
        except RuntimeError as error:  # torch's way to say that a process was killed
            self._end()
            raise RunError(f"a loader process ended: {one_line(error, 300)}") from None

    def _end(self) -> None:
        """End the loader processes, which torch would do when it comes to it; a next chapter has new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()

    def _count(self, bad: Bad) -> None:
        if bad.key not in self.bad_keys:
            self.bad_keys[bad.key] = bad.reason
            self.bad[bad.reason] += bad.count
            bad.tell()


def _check_enough(shards: Sequence[Shard], listed: int, config: DataConfig, world: int) -> None:
    if not shards:
        raise DatasetError(f"{config.shards}: expected samples, found {listed} empty shards")
    readers = world * max(1, config.workers)
    if config.sampling == "epochs" and len(shards) < readers:
        raise CommandError(
            f"data.shards: {len(shards)} shards for {world} ranks x {max(1, config.workers)} workers: "
            f"each needs one at least; lower data.workers, cut smaller shards, or data.sampling=resampled"
        )
