"""Near duplicates: clips that fulfil every rule and show the same moment as a better clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.duplicates import DuplicateThresholds, near_duplicates, repeated_pairs
from talkforge.curation.fingerprint import Fingerprint
from talkforge.curation.sync.features import at_sync_rate
from talkforge.schemas.config import Thresholds

MAX_CLIPS = 100_000
"""Clips up to which all pairs are looked for, for the what-if page of the report. Source: ours; the page then
has 13 MB."""

Repeats = tuple[tuple[str, str], ...]
"""(clip, clip that repeats it) of near duplicates."""

Candidate = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
"""A row of the ledger, and the small arrays of its clip."""


SURELY_IN_SYNC = 0.95
"""Least `sync_probability` of a clip that is not in doubt. Source: ours, well above the threshold."""


def find_near_duplicates(candidates: Iterable[Candidate], thresholds: Thresholds) -> dict[str, str]:
    """Id of every candidate that repeats a better one -> id of that one, which is kept.

    A candidate without a fingerprint repeats nothing.
    """
    return near_duplicates(*_ranked(candidates, thresholds)) if thresholds.near_duplicates else {}


def all_repeats(candidates: Sequence[Candidate], thresholds: Thresholds) -> Repeats | None:
    """Every pair of near duplicates, the better one first, in the order in which they are decided.

    Args:
        candidates: rows of the ledger on which thresholds decide, with the small arrays of their clips.
        thresholds: when two are duplicates.

    Returns:
        None where there are more than `MAX_CLIPS` candidates.
    """
    if len(candidates) > MAX_CLIPS:
        return None
    return tuple(repeated_pairs(*_ranked(candidates, thresholds))) if thresholds.near_duplicates else ()


def _ranked(
    candidates: Iterable[Candidate], thresholds: Thresholds
) -> tuple[list[tuple[str, Fingerprint]], DuplicateThresholds]:
    """Fingerprints of the candidates that have one, the better ones first, and when two are duplicates."""
    limits = DuplicateThresholds(
        min_hash_fraction=thresholds.duplicate_landmarks,
        max_frame_bits=thresholds.duplicate_picture_bits,
        min_overlap_fraction=thresholds.duplicate_overlap,
    )
    known = [(row, arrays) for row, arrays in candidates if "sound" in arrays]
    known.sort(key=lambda candidate: rank(candidate[0]))
    return [(row["clip_id"], _fingerprint(row, arrays)) for row, arrays in known], limits


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


def _fingerprint(row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Fingerprint:
    column = arrays["mouth"][:, 0] if "mouth" in arrays else arrays.get("opening", np.zeros(0))
    opening = at_sync_rate(column[:, None], row["fps"])[:, 0]
    return Fingerprint(row["duration_s"], arrays["pictures"], arrays["faces"], arrays["sound"], opening)
