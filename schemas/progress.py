"""How far a piece of work is: the record that progress callbacks receive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The state of a piece of work.

    Attributes:
        phase: what is being done, such as `measuring`.
        done: how much of it is done, in any unit.
        total: all of it, in the same unit; None where that is not known.
        detail: the figures in one line for people, such as `3 of 7 clips`.
    """

    phase: str
    done: float = 0.0
    total: float | None = None
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def no_progress(_: Progress) -> None:
    """A callback that shows nothing."""


def counted(phase: str, done: int, total: int, unit: str = "") -> Progress:
    """Progress of so many things, such as `3 of 7 clips`."""
    return Progress(phase, done, total, f"{done} of {total} {unit}".rstrip())


def hours(seconds: float) -> str:
    """A length of time for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.2f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
