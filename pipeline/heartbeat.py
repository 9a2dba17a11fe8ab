"""How far running tasks are: each task reports a number now and then, and the driver reads them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

EVERY_S = 1.0
"""A task reports at most this often, s."""

OnRunning = Callable[[Mapping[str, float]], None]
"""Called with how far each running task is, by its key."""


class Heartbeats:
    """The last report of every task; with Ray an actor, which costs a worker process without models."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}

    def report(self, key: str, done: float) -> None:
        """Take a report."""
        self._done[key] = done

    def read(self) -> dict[str, float]:
        """All reports."""
        return dict(self._done)


class Heartbeat:
    """Reports how far one task is. It travels with the task."""

    def __init__(self, key: str, send: Callable[[str, float], object]) -> None:
        self._key, self._send, self._last_s = key, send, float("-inf")

    def __call__(self, done: float) -> None:
        """Report, unless the last report is less than `EVERY_S` old."""
        now_s = time.monotonic()
        if now_s - self._last_s >= EVERY_S:
            self._last_s = now_s
            with suppress(Exception):  # a report that gets lost must not end the work
                self._send(self._key, done)
