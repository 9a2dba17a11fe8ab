"""What running tasks say of themselves: that they have begun, how far they are, that they have ended.

Each task reports to one place, and the driver reads it now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

EVERY_S = 1.0
"""A task reports its progress at most this often, s."""

OnRunning = Callable[[Mapping[str, float]], None]
"""Called with how far each running task is, by its key."""


@dataclass
class State:
    """What is known of a task.

    Attributes:
        running: whether it is at work; false between the steps of a chain.
        done: its last report.
    """

    running: bool = False
    done: float | None = None


class Heartbeats:
    """The state of every task; with Ray an actor, which costs a worker process without models."""

    def __init__(self) -> None:
        self._states: dict[int, State] = {}

    def begin(self, number: int) -> None:
        """A step of the task begins."""
        self._states.setdefault(number, State()).running = True

    def end(self, number: int) -> None:
        """A step of the task ends."""
        self._states.setdefault(number, State()).running = False

    def report(self, number: int, done: float) -> None:
        """Take a report."""
        self._states.setdefault(number, State()).done = done

    def read(self, numbers: Iterable[int]) -> dict[int, State]:
        """The states of these tasks, as far as they have said anything; all others are forgotten."""
        self._states = {number: self._states[number] for number in numbers if number in self._states}
        return self._states


class Heartbeat:
    """Reports for one task, and travels with it. As a context it says when a step begins and ends.

    Args:
        number: of the task.
        send: called with the name of a method of `Heartbeats` and its arguments.
    """

    def __init__(self, number: int, send: Callable[..., object]) -> None:
        self._number, self._send, self._last_s = number, send, float("-inf")

    def __call__(self, done: float) -> None:
        """Report, unless the last report is less than `EVERY_S` old."""
        now_s = time.monotonic()
        if now_s - self._last_s >= EVERY_S:
            self._last_s = now_s
            self._say("report", self._number, done)

    def __enter__(self) -> Heartbeat:
        self._say("begin", self._number)
        return self

    def __exit__(self, *_: object) -> None:
        self._say("end", self._number)

    def _say(self, *what: object) -> None:
        with suppress(Exception):  # a report that gets lost must not end the work
            self._send(*what)
