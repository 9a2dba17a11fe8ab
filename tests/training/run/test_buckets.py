"""Batches of one bucket in a step of all processes."""

from __future__ import annotations

import logging

import pytest

from talkforge.training.data.batch import Batch
from talkforge.training.run.buckets import MOST_WAITING, BucketQueue
from tests.training.batches import a_batch

NINE, FIVE = (9, 32, 32), (5, 32, 32)


def batches(frames: str) -> list[Batch]:
    """Batches of so many frames, each with its number as key."""
    return [a_batch(1, int(count), keys=(str(number),)) for number, count in enumerate(frames)]


def test_batches_wait_for_their_turn() -> None:
    queue = BucketQueue(iter(batches("9559955")))
    assert queue.oldest() == NINE == queue.oldest()
    taken = [queue.take(wanted).keys[0] for wanted in (FIVE, FIVE, NINE, NINE)]
    assert taken == ["1", "2", "0", "3"]
    assert queue.oldest() == NINE  # the next one, which is read now
    assert [queue.take(wanted).keys[0] for wanted in (FIVE, NINE, FIVE)] == ["5", "4", "6"]
    assert queue.turn == 7


def test_a_process_without_such_batches_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    queue = BucketQueue(iter(batches("5" * (MOST_WAITING + 3))))
    assert [queue.take(NINE).keys[0] for _ in range(3)] == ["0", "1", "2"]
    assert caplog.messages == [
        "8 batches wait and none is of 9 frames, 32 x 32 px: this process uses another"
    ]
