"""Which videos are compared: generated ones and true ones, paired by their names or keys."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from talkforge.pipeline import shards, snapshots
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, one_line

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"})
"""Endings of the files that are taken for videos."""

DATASET = "dataset.json"
"""A folder with this file is a data set."""

_KEY = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class VideoPair:
    """A generated video and its true one.

    Attributes:
        key: name of both files without its ending, or the clip's id.
        generated: its file.
        truth: its file.
    """

    key: str
    generated: Path
    truth: Path


@dataclass(frozen=True)
class Pairing:
    """What was found in both folders.

    Attributes:
        pairs: by key, ascending.
        unpaired: why a video has no partner, by its name.
    """

    pairs: tuple[VideoPair, ...]
    unpaired: dict[str, str]


def pair(generated: Path, reference: Path, scratch: Path) -> Pairing:
    """Pair the videos of two folders by the names of their files, or with the clips of a data set.

    Args:
        generated: folder of generated videos.
        reference: folder of true videos, or of a data set, whose clips are named by their ids.
        scratch: folder for the clips of a data set.

    Raises:
        CommandError: a folder is not there or has no videos, or nothing pairs.
        DatasetError: the data set is damaged.
    """
    made = _listed(generated, "--generated")
    if (reference / DATASET).is_file():
        true = _from_dataset(reference, set(made), scratch)
    else:
        true = _listed(reference, "--reference")
    unpaired = {path.name: f"no true video is called {key}" for key, path in made.items() if key not in true}
    unpaired |= {
        path.name: f"no generated video is called {key}" for key, path in true.items() if key not in made
    }
    keys = sorted(made.keys() & true.keys())
    if not keys:
        few = ", ".join(sorted(made)[:3])
        raise CommandError(
            f"no video of {generated} has a true one in {reference}: they are paired by name, found {few}"
        )
    return Pairing(tuple(VideoPair(key, made[key], true[key]) for key in keys), unpaired)


def only_true(reference: Path, scratch: Path) -> Pairing:
    """The true videos, each paired with itself, for the self-test alone.

    Args:
        reference: as of `pair`.
        scratch: as of `pair`.

    Raises:
        CommandError: the folder is not there or has no videos.
    """
    if (reference / DATASET).is_file():
        found = _from_dataset(reference, None, scratch)
    else:
        found = _listed(reference, "--reference")
    if not found:
        raise CommandError(f"--reference {reference}: expected clips in the data set, found none")
    return Pairing(tuple(VideoPair(key, found[key], found[key]) for key in sorted(found)), {})


def _listed(folder: Path, option: str) -> dict[str, Path]:
    """Videos of a folder by their names without the ending."""
    if not folder.is_dir():
        raise CommandError(f"{option} {folder}: expected a folder of videos, found none")
    try:
        paths = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
    except OSError as error:
        raise CommandError(f"{option} {folder}: cannot be read ({one_line(error)})") from None
    if not paths:
        raise CommandError(f"{option} {folder}: expected videos, found none")
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise CommandError(
                f"{option} {folder}: expected every name once, found {found[path.stem].name} and {path.name}"
            )
        found[path.stem] = path
    return found


SELF_TEST_CLIPS = 8
"""Most clips of a data set that are written out for the self-test alone."""


def _from_dataset(folder: Path, wanted: Collection[str] | None, scratch: Path) -> dict[str, Path]:
    """Clips of a data set's current snapshot, written to files. None: the first few."""
    store = Store(str(folder))
    found: dict[str, Path] = {}
    snapshot = snapshots.current(store)
    for shard in snapshot.shards:
        for key, members in shards.read_samples(store, snapshot.tar(shard)):
            if wanted is None and len(found) == SELF_TEST_CLIPS:
                return found
            if (wanted is None or key in wanted) and "mp4" in members and _KEY.fullmatch(key):
                found[key] = scratch / f"{key}.mp4"
                found[key].write_bytes(members["mp4"])
    return found
