"""Tombstones: what was erased from a data set, by the sha256 of its content, so that it does not come back.

erased.json    the tombstones
erasing.json   an erasure that is at work, or was killed: no other run may write to the data set
"""

from __future__ import annotations

from typing import Literal

from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import Record

TOMBSTONES = "erased.json"

JOURNAL = "erasing.json"


class HeldBy(Record):
    """A snapshot that held samples of what was erased: training runs note both."""

    number: int
    sha256: str
    """Of its manifest; empty for shards without a snapshot."""


class Erased(Record):
    """`erased.json`.

    Attributes:
        sha256: of the contents that were erased, sorted.
        held_by: snapshots that held samples of any of them; they are gone.
    """

    version: Literal[1] = 1
    sha256: tuple[str, ...] = ()
    held_by: tuple[HeldBy, ...] = ()

    def with_more(self, sha256: set[str], held_by: set[HeldBy]) -> Erased:
        """These and others."""
        held = {*self.held_by, *held_by}
        return Erased(
            sha256=tuple(sorted({*self.sha256, *sha256})),
            held_by=tuple(sorted(held, key=lambda one: (one.number, one.sha256))),
        )


def read_tombstones(store: Store) -> Erased:
    """What was erased; nothing where there is no such file.

    Raises:
        DatasetError: it is damaged. Nothing is measured then, as what was erased could come back.
    """
    if not store.exists(TOMBSTONES):
        return Erased()
    return Erased.from_json(store.read(TOMBSTONES), TOMBSTONES)


def write_tombstones(store: Store, erased: Erased) -> None:
    """Write `erased.json`."""
    store.write(TOMBSTONES, erased.model_dump_json(indent=1).encode())


def check_not_erasing(store: Store) -> None:
    """Refuse to change a data set that is half erased.

    Raises:
        CommandError: an erasure was killed; says how to go on.
    """
    if store.exists(JOURNAL):
        raise CommandError(
            f"{store.root}: an erasure was not finished; `talkforge erase {store.root}` goes on with it"
        )
