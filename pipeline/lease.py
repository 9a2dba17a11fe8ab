"""The lease of a data set in an object store: one writer at a time.

A writer creates the next numbered file in `.writer/`, which only one of several can do, and renews it while
it is at work. The highest number holds. A lease that is not renewed is dead: the next writer watches it for
`WATCH_S`, whatever the clocks of the two machines say, and then takes over under the next number. The former
holder, should it still live, notices at its next renewal and stops.

On a local disk a lock that dies with its process does the same, see `dataset.exclusive`.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, DatasetError, RunError, TalkforgeError

log = logging.getLogger(__name__)

FOLDER = ".writer"

RENEW_S = 10.0
"""A lease is renewed so often, s."""

LASTS_S = 60.0
"""A lease that was renewed less long ago is in force, by the clock of whoever looks, s. Source: ours; a store
may refuse some renewals in a row."""

WATCH_S = 25.0
"""A lease that seems dead is watched for so long before it is taken over, s: two and a half renewals."""


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Holds the data set's lease until the block ends.

    Raises:
        CommandError: another writer holds it; names it, and says how to go on if it is dead.
        RunError: the store cannot be read or written, or another writer has taken the lease over.
    """
    lease = _take(store)
    stop = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    thread = threading.Thread(target=_keep, args=(lease, stop, in_main), name="lease", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lease.lost:
            raise RunError(_lost(store)) from None
        raise
    finally:
        stop.set()
        thread.join()
        if not lease.lost:
            _release(lease)
    if lease.lost:
        raise RunError(_lost(store))


@dataclass
class _Lease:
    """A lease that this process has taken."""

    store: Store
    number: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    begun: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    lost: bool = False

    @property
    def name(self) -> str:
        return _name(self.number)

    def content(self) -> bytes:
        """What the file holds: who has the lease, and until when."""
        who = {"key": self.key, "host": socket.gethostname(), "pid": os.getpid(), "begun": self.begun}
        return json.dumps({**who, "renewed_s": time.time()}).encode()

    def is_ours(self) -> bool:
        """Whether it is the highest one, and nobody wrote over it."""
        names = self.store.list(FOLDER)
        return bool(names) and names[-1] == self.name and _read(self.store, self.name).get("key") == self.key


def _take(store: Store) -> _Lease:
    names = store.list(FOLDER)
    if names:
        _expect_dead(store, names[-1])
    lease = _Lease(store, 1 + _number(names))
    if not store.create(lease.name, lease.content()):
        raise CommandError(_at_work(store, lease.name))
    if not lease.is_ours():  # a store without conditional writes, or a slow competitor
        raise CommandError(_at_work(store, lease.name))
    for name in names:
        store.delete(name)
    return lease


def _expect_dead(store: Store, name: str) -> None:
    """Raises CommandError unless nobody renews a lease any more."""
    before = _read(store, name)
    renewed_s = before.get("renewed_s", 0.0)
    if isinstance(renewed_s, float) and time.time() - renewed_s < LASTS_S:
        raise CommandError(_at_work(store, name))
    log.warning("%s: watching for %g s whether the run that left its lease lives", store.root, WATCH_S)
    time.sleep(WATCH_S)
    if _read(store, name) != before:
        raise CommandError(_at_work(store, name))


def _keep(lease: _Lease, stop: threading.Event, in_main: bool) -> None:
    """Renews the lease until told to stop; where it is lost, interrupts the run."""
    while not stop.wait(RENEW_S):
        try:
            if lease.is_ours():
                lease.store.write(lease.name, lease.content())
                continue
        except TalkforgeError as error:  # nobody else has it: it is tried again
            log.debug("%s", error)
            continue
        lease.lost = True
        if in_main:
            _thread.interrupt_main()
        return


def _release(lease: _Lease) -> None:
    try:
        lease.store.delete(lease.name)
    except TalkforgeError as error:  # the work is done all the same, and the lease runs out
        log.warning("%s: the lease cannot be given back: %s", lease.store.root, error)


def _read(store: Store, name: str) -> dict[str, object]:
    """Content of a lease; empty where it is gone or no lease."""
    try:
        found = json.loads(store.read(name))
    except (DatasetError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def _number(names: list[str]) -> int:
    """The highest number of these files."""
    numbers = [name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in names]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _at_work(store: Store, name: str) -> str:
    found = _read(store, name)
    who = f" ({found.get('host')}, process {found.get('pid')}, since {found.get('begun')})" if found else ""
    return (
        f"{store.root}: another run is at work on this data set{who}; if it is dead, try again in "
        f"{LASTS_S:.0f} s, or remove {store.root}/{name}"
    )


def _lost(store: Store) -> str:
    return f"{store.root}: another run has taken over this data set, because the lease could not be renewed"
