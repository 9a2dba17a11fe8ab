"""Near duplicates: clips that fulfil every rule and show the same moment as a better clip.

Which clips are alike does not depend on thresholds. It is found once for all clips with a fingerprint
(`alike`), and kept. A selection then looks at the pairs whose clips are both accepted (`repeated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.curation.duplicates import (
    MOST_INDEXED,
    Agreement,
    DuplicateThresholds,
    Index,
    agreement,
    kept_of,
    near_duplicates,
    repeats,
)
from talkforge.curation.fingerprint import Fingerprint
from talkforge.curation.sync.features import at_sync_rate
from talkforge.schemas import scratch
from talkforge.schemas.config import Thresholds
from talkforge.schemas.errors import DatasetError

Candidate = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
"""A row of the ledger, and the small arrays of its clip."""


def find_near_duplicates(candidates: Iterable[Candidate], thresholds: Thresholds) -> dict[str, str]:
    """Id of every candidate that repeats a better one -> id of that one, which is kept.

    A candidate without a fingerprint repeats nothing.
    """
    if not thresholds.near_duplicates:
        return {}
    known = [(row, arrays) for row, arrays in candidates if "sound" in arrays]
    known.sort(key=lambda candidate: rank(candidate[0]))
    return near_duplicates(
        [(row["clip_id"], fingerprint(row, arrays)) for row, arrays in known], _limits(thresholds)
    )


SURELY_IN_SYNC = 0.95
"""Least `sync_probability` of a clip that is not in doubt. Source: ours. Most true pieces of 3 s
have it, and about one in a hundred with another's voice (docs/duplicates.md)."""


def rank(row: Mapping[str, Any]) -> tuple[bool, float, bool, float, float, str]:
    """Sorts the better of two ledger rows before the worse.

    First the one that is surely in sync, so that a dubbed copy never takes the place of the true one. Then
    the longer one, if it lies between higher powers of two seconds: of a talk and an excerpt of it the talk
    is kept. Then the one whose audio is not moved, then the larger face, then the surer sync, then the lower
    id.
    """
    confidence, probability = row["sync_confidence"], row["sync_probability"]
    doubtful = probability is None or probability < SURELY_IN_SYNC
    octave = math.floor(math.log2(row["duration_s"]))
    surer = math.inf if confidence is None else -confidence
    return doubtful, -octave, row["audio_shift_s"] is not None, -row["face_px"], surer, row["clip_id"]


TABLE = pa.schema(
    [("first", pa.string()), ("second", pa.string()), *((name, pa.float64()) for name in Agreement._fields)]
)
"""Pairs of clips, the second of which repeats the first, and how far: the fields of an `Agreement`."""

COMPARED_AT_ONCE = 50_000
"""Pairs whose fingerprints are in memory at once: 1 GB for clips of 8 s."""


def empty() -> pa.Table:
    """No pairs."""
    return TABLE.empty_table()


def alike(
    ids: Sequence[str],
    read_hashes: Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]],
    read: Callable[[NDArray[np.int64]], Mapping[int, Fingerprint]],
) -> pa.Table:
    """Pairs of clips that may be near duplicates, both ways round; a table of `TABLE`.

    Args:
        ids: of the clips with a fingerprint, the better ones first.
        read_hashes: for some clips after others the number of the clip that each audio hash is of, and the
            hashes, see `duplicates.Index.add`.
        read: gives the fingerprints of clips by their numbers.

    Raises:
        DatasetError: there are too many clips.
    """
    if len(ids) > MOST_INDEXED:
        raise DatasetError(
            f"near duplicates: expected at most {MOST_INDEXED} clips, found {len(ids)}; divide the data set"
        )
    with scratch.folder() as folder:
        index = Index(folder, len(ids))
        for clips, hashes in read_hashes:
            index.add(clips, hashes)
        pairs = index.pairs()
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(pairs), COMPARED_AT_ONCE):
        block = pairs[start : start + COMPARED_AT_ONCE]
        fingerprints = read(np.unique(block))
        for one, other in block.tolist():
            for first, second in ((one, other), (other, one)):
                found = agreement(fingerprints[first], fingerprints[second])
                if found is not None and repeats(found, ANY):
                    rows.append((ids[first], ids[second], *found))
    columns = zip(*rows, strict=True) if rows else [()] * len(TABLE)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TABLE, strict=True)], schema=TABLE)


ANY = DuplicateThresholds(
    min_hash_fraction=-math.inf, max_frame_bits=math.inf, min_overlap_fraction=-math.inf
)
"""What every duplicate fulfils, whatever the thresholds."""


MAX_CLIPS = 100_000
"""Clips up to which all pairs are looked for, for the what-if page of the report. Source: ours; the page then
has 13 MB."""

Repeats = tuple[tuple[str, str], ...]
"""(clip, clip that repeats it) of near duplicates."""


def all_repeats(rows: pa.Table, copies: pa.Table, thresholds: Thresholds) -> Repeats:
    """Every pair of near duplicates, the better one first, in the order in which they are decided.

    Args:
        rows: ledger columns of the clips on which thresholds decide, those that `rank` reads.
        copies: answer of `alike`.
        thresholds: when two are duplicates.
    """
    return tuple(_pairs(rows, copies, thresholds)) if thresholds.near_duplicates else ()


def repeated(rows: pa.Table, copies: pa.Table, thresholds: Thresholds) -> dict[str, str]:
    """Id of every clip that repeats a better one -> id of that one, which is kept.

    Args:
        rows: ledger columns of the clips that fulfil every rule, those that `rank` reads.
        copies: answer of `alike`.
        thresholds: when two clips are duplicates.
    """
    if not thresholds.near_duplicates:
        return {}
    return kept_of(_pairs(rows, copies, thresholds))


def _pairs(rows: pa.Table, copies: pa.Table, thresholds: Thresholds) -> list[tuple[str, str]]:
    """Pairs of near duplicates among the rows, the better one first, by the ranks of both."""
    accepted = rows.column("clip_id").combine_chunks()
    both = pc.and_(
        pc.is_in(copies.column("first"), value_set=accepted),
        pc.is_in(copies.column("second"), value_set=accepted),
    )
    copies = copies.filter(both)
    values = {name: copies.column(name).to_numpy() for name in Agreement._fields}
    copies = copies.filter(pa.array(repeats(SimpleNamespace(**values), _limits(thresholds)), pa.bool_()))
    first, second = copies.column("first").to_pylist(), copies.column("second").to_pylist()
    involved = pc.is_in(accepted, value_set=pa.array(sorted({*first, *second}), pa.string()))
    ranked = sorted(rows.select(RANKED).filter(involved).to_pylist(), key=rank)
    number = {row["clip_id"]: n for n, row in enumerate(ranked)}
    pairs = sorted(
        (number[a], number[b]) for a, b in zip(first, second, strict=True) if number[a] < number[b]
    )
    names = list(number)
    return [(names[a], names[b]) for a, b in pairs]


def _limits(thresholds: Thresholds) -> DuplicateThresholds:
    return DuplicateThresholds(
        min_hash_fraction=thresholds.duplicate_landmarks,
        max_frame_bits=thresholds.duplicate_picture_bits,
        min_overlap_fraction=thresholds.duplicate_overlap,
    )


RANKED = ["clip_id", "duration_s", "audio_shift_s", "face_px", "sync_confidence", "sync_probability"]
"""Columns that `rank` reads."""


def fingerprint(row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Fingerprint:
    """Fingerprint of a clip.

    Args:
        row: its ledger columns `duration_s` and `fps`.
        arrays: its small arrays, `mouth` or `opening` among them; see `small_arrays`.
    """
    column = arrays["mouth"][:, 0] if "mouth" in arrays else arrays.get("opening", np.zeros(0))
    opening = at_sync_rate(column[:, None], row["fps"])[:, 0]
    return Fingerprint(row["duration_s"], arrays["pictures"], arrays["faces"], arrays["sound"], opening)
