"""Batches that wait so that all processes have one of the same size and length in a step.

A process with fewer tokens than the others would only wait for them: a step takes as long as its largest
batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

from talkforge.training.data.batch import Batch

log = logging.getLogger(__name__)

MOST_WAITING = 8
"""Batches of a process that wait for their turn. With more, it uses the oldest, whatever the others have.
Source: ours. Decoded, 8 batches of one sample of 81 frames of 512 x 512 take 0.7 GB."""

Bucket = tuple[int, int, int]
"""Frames, height and width of a batch."""


class BucketQueue:
    """Batches of this process in their order, some of which wait.

    Attributes:
        turn: batches that were taken.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self._waiting = batches, deque[Batch]()
        self._told = False
        self.turn = 0

    def oldest(self) -> Bucket:
        """Bucket of the batch that has waited longest. One is read where none waits."""
        if not self._waiting:
            self._waiting.append(next(self._batches))
        return _bucket(self._waiting[0])

    def take(self, wanted: Bucket) -> Batch:
        """The batch of a bucket that has waited longest. Batches are read until there is one.

        Args:
            wanted: the bucket that all processes shall use.
        """
        self.turn += 1
        for number, batch in enumerate(self._waiting):
            if _bucket(batch) == wanted:
                del self._waiting[number]
                return batch
        while len(self._waiting) < MOST_WAITING:
            batch = next(self._batches)
            if _bucket(batch) == wanted:
                return batch
            self._waiting.append(batch)
        if not self._told:
            self._told = True
            log.warning(
                "%d batches wait and none is of %d frames, %d x %d px: this process uses another",
                MOST_WAITING,
                *wanted,
            )
        return self._waiting.popleft()


def _bucket(batch: Batch) -> Bucket:
    frames, height_px, width_px = batch.lips_BFHW.shape[1:]
    return frames, height_px, width_px
