"""What the page shows of a data set: which clips there are, their video, what was measured of them.

The video of a clip comes out of the shard that holds it, by ranges of bytes. A clip that is in no shard, as
rejected ones are, is cut out of its source when somebody looks at it, into a temporary file.
"""

from __future__ import annotations

import math
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from talkforge.curation import draw
from talkforge.pipeline import annotate, cut, inspect_clip, ledger, review, snapshots, tables
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.intake import Intake
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import local_video
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.records import Clip, ClipMeasures, ReviewRow, Trim

Show = Literal["all", "accepted", "rejected", "failed", "reviewed", "unreviewed"]

CUT_KEPT = 24
"""Most clips whose cut video is kept in temporary files."""


@dataclass(frozen=True)
class Filter:
    """Which clips are listed, in the order of their ids.

    Attributes:
        show: by their state, or by whether anybody has said anything of them.
        reason: code that rejected or overruled clips must have; empty: any.
        begins: how the id begins.
    """

    show: Show = "all"
    reason: str = ""
    begins: str = ""


@dataclass(frozen=True)
class Span:
    """Where the bytes of a file lie: a whole temporary file, or part of a file of the data set."""

    path: Path | None
    name: str
    begin: int
    size: int


@dataclass
class _Tar:
    """Members of a tar file as far as it was read: name -> place of the content."""

    found: dict[str, tuple[int, int]] = field(default_factory=dict)
    read_to: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Library:
    """A data set to look at. Every method may be called by several threads at once.

    Args:
        store: the data set; its base says where relative inputs lie.
        folder: temporary folder for videos that are cut.
        only: ids of the clips to show, in this order; None shows all.

    Raises:
        CommandError: there is no data set. DatasetError: a table is missing or damaged.
    """

    def __init__(self, store: Store, folder: Path, only: Sequence[str] | None = None) -> None:
        self.dataset = load_dataset(store)
        self._store, self._folder = store, folder
        self._ledger = tables.from_bytes(
            store.read(snapshots.current_table(store, "ledger.parquet")), "ledger.parquet"
        )
        clips = self._ledger.column("clip_id").to_pylist()
        self._row_of = {key: row for row, key in enumerate(clips)}
        self._order = [key for key in only if key in self._row_of] if only is not None else sorted(clips)
        self._tars: dict[str, _Tar] = {}
        self._cut_lock, self._parts_lock = threading.Lock(), threading.Lock()
        self._measures = lru_cache(maxsize=4)(self._read_measures)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._row_of

    @property
    def clip_ids(self) -> Sequence[str]:
        """Ids of the clips to show, in their order."""
        return self._order

    def reasons(self) -> list[str]:
        """Codes for which clips of the ledger are rejected or overruled, in alphabetical order."""
        names = [name for name in ("reasons", "overruled") if name in self._ledger.column_names]
        return sorted(
            {code for name in names for code in pc.unique(pc.list_flatten(self._column(name))).to_pylist()}
        )

    def listed(self, wanted: Filter, reviews: dict[str, ReviewRow]) -> list[str]:
        """Ids of the clips that a filter leaves."""
        table = self._ledger
        mask = np.ones(table.num_rows, bool)
        failed = table.column("failure").is_valid().to_numpy()
        accepted = table.column("accepted").to_numpy()
        by_state = {"accepted": accepted, "failed": failed, "rejected": ~accepted & ~failed}
        if wanted.show in by_state:
            mask &= by_state[wanted.show]
        if wanted.reason:
            mask &= self._has(wanted.reason)
        rows = self._row_of
        keys = (key for key in self._order if mask[rows[key]] and key.startswith(wanted.begins))
        if wanted.show in ("reviewed", "unreviewed"):
            said = {key for key, row in reviews.items() if row.decision != "none" or row.label != "none"}
            keys = (key for key in keys if (key in said) == (wanted.show == "reviewed"))
        return list(keys)

    def _column(self, name: str) -> Any:
        return self._ledger.column(name).combine_chunks()

    def _has(self, reason: str) -> np.ndarray:
        found = np.zeros(self._ledger.num_rows, bool)
        for name in ("reasons", "overruled"):
            if name in self._ledger.column_names:
                column = self._column(name)
                hit = pc.equal(pc.list_flatten(column), reason).to_numpy(zero_copy_only=False)
                found[pc.list_parent_indices(column).to_numpy()[hit]] = True
        return found

    def row(self, clip_id: str) -> dict[str, Any]:
        """The ledger row of a clip: columns that have a value, without numbers that JSON does not know."""
        (row,) = self._ledger.slice(self._row_of[clip_id], 1).to_pylist()
        return {
            name: value
            for name, value in row.items()
            if value is not None and not (isinstance(value, float) and not math.isfinite(value))
        }

    def text(self, clip_id: str) -> str:
        """What is said in a clip; empty where it was not transcribed."""
        row = self._transcripts.get(clip_id)
        return row.text if row else ""

    @cached_property
    def _transcripts(self) -> dict[str, Any]:
        return annotate.read(self._store, annotate.TRANSCRIPTS)

    def reviews(self) -> dict[str, ReviewRow]:
        """What people have said so far."""
        return review.read(self._store)

    def save(self, row: ReviewRow) -> ReviewRow:
        """Write what was said of a clip, see `review.save`."""
        return review.save(self._store, row)

    # -------------------------------------------------------------------------- what was measured

    def _part(self, clip_id: str) -> str:
        with self._parts_lock:
            part = self._parts.get(clip_id)
        if part is None:
            raise DatasetError(f"clip {clip_id}: expected it in a part, found it in none")
        return part

    @cached_property
    def _parts(self) -> dict[str, str]:
        return ledger.parts_of_clips(self._store)

    def _read_measures(self, part: str) -> dict[str, ClipMeasures]:
        rows = tables.read(self._store, f"parts/{part}/clips.parquet", ClipMeasures)
        return {row.clip.clip_id: row for row in rows}

    def measures(self, clip_id: str) -> ClipMeasures:
        """Everything that was measured of a clip.

        Raises:
            DatasetError: it is in no part.
        """
        return self._measures(self._part(clip_id))[clip_id]

    def clip(self, clip_id: str) -> Clip:
        """A clip as the ledger has it: shorter than what was measured where its audio is moved over an edge
        of the file."""
        return self.measures(clip_id).clip.trimmed(self._trim(clip_id))

    def _trim(self, clip_id: str) -> Trim:
        row = self.row(clip_id)
        return self.measures(clip_id).clip.trim_of(row["start_s"], row["num_frames"])

    def marks(self, clip_id: str) -> dict[str, Floats] | None:
        """What is drawn on each of the F frames of a clip, in its pixels; None where it was not traced.

        Returns:
            `landmarks` [F, 478, 2], `contour` [F, P, 2], `joints` [F, J, 3], `valid` [F], `opening` [F] (gap
            of the lips over the distance of the eyes); NaN where nothing was seen. All float32.
        """
        if self.measures(clip_id).lips is None:
            return None
        arrays = cut.read_arrays(self._store, self._part(clip_id), clip_id, np.zeros(0, np.float32))
        arrays = arrays.trimmed(*self._trim(clip_id))
        return {
            "landmarks": np.asarray(arrays.landmarks[:, :, :2], np.float32),
            "contour": np.asarray(arrays.contour, np.float32),
            "joints": np.asarray(arrays.joints, np.float32),
            "valid": arrays.lip_valid.astype(np.float32),
            "opening": draw.mouth_opening(arrays.landmarks),
        }

    def thumbnail(self, clip_id: str) -> bytes | None:
        """JPEG of a clip with its face marked; None where there is none."""
        with self._parts_lock:  # it holds the images of one part at a time
            return self._thumbnails(clip_id)

    @cached_property
    def _thumbnails(self) -> Callable[[str], bytes | None]:
        return ledger.thumbnails(self._store)

    # ------------------------------------------------------------------------------------- video

    def video(self, clip_id: str) -> Span:
        """Where the MP4 of a clip lies; a clip that is in no shard is cut first.

        Raises:
            MediaError: it is in no shard, and its source cannot be read or has changed.
            DatasetError: a shard is damaged. CommandError: inputs are named relative to a base.
        """
        name = self._shards.get(clip_id)
        place = self._member(name, f"{clip_id}.mp4") if name else None
        if name and place:
            return Span(None, name, *place)
        path = self._cut(clip_id)
        return Span(path, path.name, 0, path.stat().st_size)

    @cached_property
    def _shards(self) -> dict[str, str]:
        """Tar file of each clip that lies in a shard of the current snapshot."""
        snapshot = snapshots.current(self._store)
        return {key: snapshot.tar(shard) for shard in snapshot.shards for key in shard.keys}

    def read(self, span: Span, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of what a span holds."""
        if span.path is None:
            return self._store.read_span(span.name, span.begin + begin, span.begin + end)
        with span.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def _member(self, name: str, member: str) -> tuple[int, int] | None:
        """Begin and size of a member of a tar file, which is read no further than to there."""
        tar = self._tars.setdefault(name, _Tar())
        with tar.lock:
            if member in tar.found:
                return tar.found[member]
            try:
                with self._store.open(name) as stream:
                    stream.seek(tar.read_to)
                    with tarfile.open(fileobj=stream, mode="r:") as archive:
                        for entry in archive:
                            tar.found[entry.name] = (entry.offset_data, entry.size)
                            tar.read_to = (
                                entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                            )
                            if entry.name == member:
                                return tar.found[member]
            except (tarfile.TarError, EOFError) as error:
                raise DatasetError(f"{name}: not a readable tar file ({error})") from None
        return None

    def _cut(self, clip_id: str) -> Path:
        path = self._folder / f"{self._row_of[clip_id]}.mp4"
        with self._cut_lock:  # one at a time: cutting takes a core, and a page asks for the next clip ahead
            if path.exists():
                path.touch()
                return path
            clip, shift_s = self.clip(clip_id), self.row(clip_id).get("audio_shift_s", 0.0)
            entry = self._intake.of_videos([clip.video_id]).get(clip.video_id)
            if entry is None or entry.video is None:
                raise MediaError(f"clip {clip_id}: its source is no input any more")
            with local_video(self._store, entry.video, entry.stamp) as source:
                inspect_clip.write_plain(clip, entry.video, source, path, shift_s)
            for old in sorted(self._folder.glob("*.mp4"), key=lambda one: one.stat().st_mtime)[:-CUT_KEPT]:
                old.unlink()
        return path

    @cached_property
    def _intake(self) -> Intake:
        return Intake(load_ingested(self._store))


def packed(marks: dict[str, Floats]) -> bytes:
    """The arrays of `Library.marks` one after the other, float32, little endian."""
    return b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in marks.values())


def shapes(marks: dict[str, Floats]) -> dict[str, list[int]]:
    """Shape of each array in `packed`, in its order."""
    return {name: list(array.shape) for name, array in marks.items()}
