"""The folder that an export is written to: what it holds, going on where it stopped, counts and checksums.

    export.json      which data set, snapshot and format; `complete` is true when everything is there
    clips.jsonl      one line for each clip: id, split, row of the format, files with size and sha256; not
                     where the export holds whole shards
    SHA256SUMS       sha256 of every other file, as `sha256sum -c` takes it; written last, can be signed

A line of `clips.jsonl` is appended when the clip's files are there. A run that was cut short goes on behind
the last line, and so does one after files were lost. The names of a clip's files begin with its id, and its
line has the row of the ledger, so that everything leads back to the data set.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from talkforge.pipeline.store import TEMPORARY, Store
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.records import Record

EXPORT, CLIPS, SUMS = "export.json", "clips.jsonl", "SHA256SUMS"


class Export(Record):
    """`export.json`."""

    version: Literal[1] = 1
    format: str
    """Name of the format, as `--as` takes it."""
    dataset: str
    """Path or URI of the data set."""
    snapshot: int
    """Number of the snapshot whose clips these are; 0 in a data set without snapshots."""
    snapshot_sha256: str
    """sha256 of the manifest of that snapshot; empty for number 0."""
    options: dict[str, str] = Field(default_factory=dict)
    """What was asked for besides."""
    tool_version: str
    complete: bool = False
    clips: dict[str, int] = Field(default_factory=dict)
    """Split -> number of clips, once it is complete."""
    files: int = 0
    """Number of files, but for this one and those beside it that are named above."""
    bytes: int = 0
    """Size of these."""


class StoredFile(Record):
    """A file of the folder."""

    bytes: int
    sha256: str


class ClipEntry(Record):
    """A line of `clips.jsonl`."""

    clip_id: str
    split: str
    files: dict[str, StoredFile]
    """Name below the folder -> what is there."""
    row: dict[str, Any] = Field(default_factory=dict)
    """What the format's own lists say of the clip."""
    ledger: dict[str, Any] = Field(default_factory=dict)
    """The clip's row of the ledger."""


class ExportFolder:
    """A local folder with an export.

    Args:
        path: the folder; made where it is missing.
        wanted: what it is to hold.

    Raises:
        CommandError: it holds something else, or another export.
        RunError: it cannot be written to.
    """

    def __init__(self, path: Path, wanted: Export) -> None:
        self.path, self._wanted = path.absolute(), wanted
        self.store = Store(str(self.path))
        self._begin()
        self.done = self._read_done()

    def _begin(self) -> None:
        if self.store.exists(EXPORT):
            held = Export.from_json(self.store.read(EXPORT), f"{self.path}/{EXPORT}", "an export")
            wrong = differences(held, self._wanted)
            if wrong:
                raise CommandError(
                    f"{self.path}: holds another export ({'; '.join(wrong)}); remove it, or choose "
                    "another --out"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise CommandError(f"{self.path}: expected a folder with an export, or an empty or new one")
        self.store.sweep()
        for left in self.path.glob(f"**/{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        self.store.write(EXPORT, _bytes_of(self._wanted))

    def _read_done(self) -> dict[str, ClipEntry]:
        """Clips whose files are all there with their sizes, by id. A line that was cut short is dropped."""
        found: dict[str, ClipEntry] = {}
        if self.store.exists(CLIPS):
            for line in self.store.read(CLIPS).splitlines():
                try:
                    entry = ClipEntry.model_validate_json(line)
                except ValidationError:
                    continue
                if all(self._is_there(name, file) for name, file in entry.files.items()):
                    found[entry.clip_id] = entry
        self.store.write(CLIPS, _lines(found.values()))
        return found

    def _is_there(self, name: str, file: StoredFile) -> bool:
        path = self.path / name
        return path.is_file() and path.stat().st_size == file.bytes

    def write(self, name: str, data: bytes) -> dict[str, StoredFile]:
        """Write a file whole; its name and what is there."""
        return {name: StoredFile(bytes=len(data), sha256=self.store.write(name, data))}

    @contextmanager
    def filling(self, name: str) -> Iterator[tuple[Path, dict[str, StoredFile]]]:
        """A new folder to put many files in; it gets its name when the block ends well.

        Yields:
            Its path for now, and a dictionary which then holds its files.
        """
        target, files = self.path / name, dict[str, StoredFile]()
        temporary = target.with_name(TEMPORARY + uuid.uuid4().hex)
        with self.store.reporting_errors("write", name):
            temporary.mkdir(parents=True)
            try:
                yield temporary, files
                for path in sorted(temporary.rglob("*")):
                    if path.is_file():
                        inner = path.relative_to(temporary).as_posix()
                        files[f"{name}/{inner}"] = StoredFile(
                            bytes=path.stat().st_size, sha256=sha256_of(path)
                        )
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def add(self, entry: ClipEntry) -> None:
        """Note that a clip is there. Not to be called by two threads at once."""
        with self.store.reporting_errors("write", CLIPS), (self.path / CLIPS).open("ab") as file:
            file.write(_lines([entry]))
            file.flush()
            os.fsync(file.fileno())
        self.done[entry.clip_id] = entry

    def finish(self, keys: Mapping[str, Collection[str]], lists: Mapping[str, bytes]) -> Export:
        """Check that every clip is there, write the format's own lists and the checksums.

        Args:
            keys: split -> ids of the clips that the snapshot has, in their order.
            lists: name -> content of files about all clips.

        Raises:
            DatasetError: clips are missing, or there are others; says how many.
        """
        ordered = [key for of_split in keys.values() for key in of_split]
        missing, others = set(ordered) - set(self.done), set(self.done) - set(ordered)
        lost = [k for k in ordered if k in self.done and not self._all_there(self.done[k])]
        if missing or others or lost:
            raise DatasetError(
                f"{self.path}: expected {len(ordered)} clips, found {len(missing) + len(lost)} missing and "
                f"{len(others)} unknown ones; the same command makes what is missing"
            )
        self.store.write(CLIPS, _lines(self.done[key] for key in ordered))
        files = {name: file for key in ordered for name, file in self.done[key].files.items()}
        return self.close(files, {split: len(of_split) for split, of_split in keys.items()}, lists)

    def close(
        self, files: Mapping[str, StoredFile], clips: Mapping[str, int], lists: Mapping[str, bytes]
    ) -> Export:
        """Write the format's own lists and the checksums, and call the export complete.

        Args:
            files: name -> what is there already.
            clips: split -> number of clips.
            lists: name -> content of files about all clips.
        """
        held = dict(files)
        for name, data in lists.items():
            held |= self.write(name, data)
        finished = self._wanted.model_copy(
            update={
                "complete": True,
                "clips": dict(clips),
                "files": len(held),
                "bytes": sum(file.bytes for file in held.values()),
            }
        )
        sums = {name: file.sha256 for name, file in held.items()}
        if self.done:
            sums[CLIPS] = self.store.sha256(CLIPS)
        else:
            self.store.delete(CLIPS)
        sums[EXPORT] = self.store.write(EXPORT, _bytes_of(finished))
        self.store.write(SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
        return finished

    def _all_there(self, entry: ClipEntry) -> bool:
        return all(self._is_there(name, file) for name, file in entry.files.items())


def differences(held: Export, wanted: Export) -> list[str]:
    """What two exports differ in, as `<field> <held>, not <wanted>`; how far they are does not count."""
    fields = ("format", "snapshot", "snapshot_sha256", "options")
    return [
        f"{name} {getattr(held, name) or 'none'}, not {getattr(wanted, name) or 'none'}"
        for name in fields
        if getattr(held, name) != getattr(wanted, name)
    ]


def _bytes_of(export: Export) -> bytes:
    return export.model_dump_json(indent=1).encode() + b"\n"


def _lines(entries: Any) -> bytes:
    return b"".join(
        json.dumps(entry.model_dump(mode="json"), ensure_ascii=False, sort_keys=True).encode() + b"\n"
        for entry in entries
    )
