"""Attempts: windows that infrastructure kept from being measured, and how often each was tried.

A window whose storage, network, memory, worker or cluster failed is put off: it is not committed, and a
file `attempts/<part>.json` holds its last failure. From then on the window is a part of its own. The next
runs try it again, up to `run.max_attempts` times; `talkforge retry` begins the count anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from talkforge.pipeline import tables
from talkforge.pipeline.dataset import INTAKE, load_ingested, load_plan
from talkforge.pipeline.intake import IngestRow, is_one_of
from talkforge.pipeline.parts import ATTEMPTS, Left, Part, Window, committed_parts, left_of, noted_names
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import FailureKind, RunError
from talkforge.schemas.records import Failure

MIN_FAILURES = 10
"""Fewer failures of one kind than this never stop a run."""


def put_off(part: Part, window: Window, failure: Failure, store: Store) -> Failure:
    """Note that a window of a part could not be measured now.

    Args:
        part: the part that holds it.
        window: the window.
        failure: what kept it from being measured.
        store: the data set.

    Returns:
        The failure with the number of attempts so far.
    """
    name = part.alone(window).name
    before = _read(store, name) if store.exists(_file(name)) else None
    failure = store.named(failure).model_copy(update={"attempts": 1 + (before.attempts if before else 0)})
    store.write(_file(name), failure.model_dump_json(indent=1).encode())
    return failure


def waiting(store: Store, plan: Sequence[Part] | None = None) -> dict[str, Failure]:
    """Last failure of every window that is put off and not measured since, by the name of its part.

    Args:
        store: the data set.
        plan: its parts; None: those that it holds, which are read only where a window is put off.
    """
    if not store.list(ATTEMPTS):
        return {}
    return noted(store, left_of(load_plan(store) if plan is None else plan, store))


def noted(store: Store, left: Left) -> dict[str, Failure]:
    """The same for what is left to do."""
    names = set(noted_names(store))
    return {part.name: _read(store, part.name) for part in left.pieces if part.name in names}


def forgive(store: Store, kinds: Collection[FailureKind]) -> int:
    """Let the next run try again what failed for these reasons, as if it had never been tried.

    Windows that are put off get their attempts back. Failures that were committed make their part
    uncommitted: all of it is measured again. Inputs that could not be read are read again.

    Args:
        store: a data set on which no other run is at work.
        kinds: kinds of failures.

    Returns:
        Number of failures that will be tried again.
    """
    num_forgiven = 0
    for name, failure in waiting(store).items():
        if failure.kind in kinds:
            num_forgiven += 1
            again = failure.model_copy(update={"attempts": 0})
            store.write(_file(name), again.model_dump_json(indent=1).encode())
    for part in committed_parts(store):
        failures = tables.read(store, f"parts/{part}/failures.parquet", Failure)
        if hit := [failure for failure in failures if failure.kind in kinds]:
            num_forgiven += len(hit)
            store.delete(f"parts/{part}/part.json")
    rows = load_ingested(store)
    hit_rows = np.flatnonzero(is_one_of(rows.column("failure.kind"), *kinds))
    if len(hit_rows):
        fresh = [row.model_copy(update={"stamp": ""}) for row in rows.take(hit_rows)]
        tables.write(store, INTAKE, IngestRow, rows.replaced(hit_rows, fresh))
    return num_forgiven + len(hit_rows)


class Tripwire:
    """Stops a run in which one kind of infrastructure fails too often to be worth going on."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._num_tried = 0
        self._num_failed: Counter[str] = Counter()

    def note(self, num_tried: int, failures: Iterable[Failure]) -> None:
        """Count what was tried, and what infrastructure kept from being done.

        Raises:
            RunError: at least `MIN_FAILURES`, and more than the allowed fraction, failed for one reason.
        """
        self._num_tried += num_tried
        for failure in failures:
            if failure.kind == "video":
                continue
            self._num_failed[failure.kind] += 1
            count = self._num_failed[failure.kind]
            if count >= MIN_FAILURES and count > self._max_share * self._num_tried:
                raise RunError(
                    f"{count} of {self._num_tried} inputs failed for one reason, {failure.kind}; the last: "
                    f"{failure.uri!r}: {failure.message} (run.max_failed_share={self._max_share:g}; the same "
                    "command goes on from here)"
                )


def _file(name: str) -> str:
    return f"{ATTEMPTS}/{name}.json"


def _read(store: Store, name: str) -> Failure:
    return Failure.from_json(store.read(_file(name)), _file(name), "a failure")
