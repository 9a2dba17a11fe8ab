"""The same moment twice: near duplicates among clips, across files and within one.

Two clips are duplicates where sound, picture and the place of the face agree at one shift in time. None
is enough: a face before the same wall looks the same in every clip of a talk, a voice may lie over
other pictures, and two people in one picture share all but their place. So clips without sound have
no duplicates here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from talkforge.curation.fingerprint import HASH_BITS, HASHED_FRAMES_HZ, HOP_SAMPLES, Fingerprint
from talkforge.schemas.arrays import Floats
from talkforge.schemas.units import AUDIO_HZ

Landmarks = NDArray[np.uint64]

SHARED_TOKENS = 3
"""Pairs of landmarks that two clips must have in common to be compared at all."""

COMPARED_CLIPS = 50
"""Clips that share a pair of landmarks are compared with the first so many of them: it bounds the work
where very many do (a jingle, a hum, a clip copied a thousand times)."""

MAX_FACE_SHIFT = 0.5
"""Faces further apart than this share of their width are two. Source: ours; nearer, one face of two
in a picture hides the other, while cutting off 5% of the picture shifts a face of a tenth of its
width by half its own at most."""

MIN_STRETCH = 0.25
"""Landmarks that agree must lie over at least this share of what two clips have in common: a jingle of
two seconds is no duplicate. Source: ours; real copies have 0.31 and more, since pauses do not agree."""

BLOCK_CLIPS = 4096
"""Clips whose candidates are held at once."""

_TIME, _HASH = np.uint64(HASH_BITS), np.uint64(2**HASH_BITS - 1)
_ANCHOR, _REST = np.uint64(12), np.uint64(2**12 - 1)
_CLIP, _TOKEN = np.uint64(2**32 - 1), np.uint64(32)


@dataclass(frozen=True)
class DuplicateThresholds:
    """When one clip repeats another. Source: ours; of real clips encoded again at 24 kbit/s, shifted,
    noisy, at least 21 landmarks and 6% agree, of others at most 2. The thresholds
    were set on these same clips.

    Attributes:
        min_hashes: least number of landmarks that agree at one shift.
        min_hash_fraction: the same, as a share of those of the clip that has fewer in the overlap.
        max_frame_bits: largest mean distance of the frames' hashes, of 64 bits. The same moment has
            up to 9, or 18 in a fast pan sampled a quarter second apart; other clips have 11 and more,
            half of them more than 31: it is the sound that tells moments apart.
        min_overlap_fraction: least share of the clip that repeats which the other one shows.
    """

    min_hashes: int = 8
    min_hash_fraction: float = 0.03
    max_frame_bits: float = 20.0
    min_overlap_fraction: float = 0.5


def near_duplicates(
    clips: Sequence[tuple[str, Fingerprint]], thresholds: DuplicateThresholds | None = None
) -> dict[str, str]:
    """Id of every clip that repeats another -> id of the one that is kept.

    Of clips that are the same the one named first is kept, so put the better before the worse. A
    clip repeats only one that is itself kept, and is like that very one: there are no chains.

    For T landmarks in all, T log T for sorting them, and at most `COMPARED_CLIPS` steps for each; only
    clips with landmarks in common are compared, never all with all.
    """
    thresholds = thresholds or DuplicateThresholds()
    repeats: dict[int, int] = {}
    for first, second in _candidates([print_.audio_hashes for _, print_ in clips]):
        if first in repeats or second in repeats:
            continue
        if repeated(clips[first][1], clips[second][1], thresholds):
            repeats[second] = first
    return {clips[a][0]: clips[b][0] for a, b in sorted(repeats.items())}


def repeated(first: Fingerprint, second: Fingerprint, thresholds: DuplicateThresholds) -> bool:
    """Whether the second clip shows the face of the first, at the same moment, for long enough."""
    agreeing_s, shift = _best_shift(first.audio_hashes, second.audio_hashes)
    if len(agreeing_s) < thresholds.min_hashes:
        return False
    shift_s = shift * HOP_SAMPLES / AUDIO_HZ
    start_s, end_s = max(0.0, shift_s), min(first.duration_s, second.duration_s + shift_s)
    if end_s - start_s < thresholds.min_overlap_fraction * second.duration_s:
        return False
    tenth_s, ninth_s = np.percentile(agreeing_s, (10, 90))
    if (ninth_s - tenth_s) / 0.8 < MIN_STRETCH * (end_s - start_s):
        return False
    fewest = min(
        _count(first.audio_hashes, start_s, end_s),
        _count(second.audio_hashes, start_s - shift_s, end_s - shift_s),
    )
    if len(agreeing_s) < thresholds.min_hash_fraction * fewest:
        return False
    return _looks_alike(first, second, shift_s, thresholds)


def _best_shift(a: Landmarks, b: Landmarks) -> tuple[NDArray[np.float64], int]:
    """Times in `b`, s, of most landmarks that are also in `a` at one shift, and that shift, in hops.

    A shift that is no whole number of hops spreads over two neighbours, which count together.
    """
    hashes_a, hashes_b = a & _HASH, b & _HASH
    order = np.argsort(hashes_a, kind="stable")
    left = np.searchsorted(hashes_a[order], hashes_b, "left")
    counts = np.searchsorted(hashes_a[order], hashes_b, "right") - left
    if not counts.any():
        return np.zeros(0), 0
    rows = np.repeat(np.arange(len(b)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    times_a = (a[order[left[rows] + within]] >> _TIME).astype(np.int64)
    times_b = (b[rows] >> _TIME).astype(np.int64)
    shifts = times_a - times_b
    least = int(shifts.min())
    votes = np.bincount(shifts - least, minlength=2)
    best = int(np.argmax(votes + np.append(votes[1:], 0)))
    agree = (shifts == least + best) | (shifts == least + best + 1)
    nearer = best + int(votes[best : best + 2].argmax())
    return times_b[agree] * (HOP_SAMPLES / AUDIO_HZ), least + nearer


def _count(sound: Landmarks, start_s: float, end_s: float) -> int:
    times_s = (sound >> _TIME) * (HOP_SAMPLES / AUDIO_HZ)
    return int(np.count_nonzero((times_s >= start_s) & (times_s < end_s)))


def _looks_alike(a: Fingerprint, b: Fingerprint, shift_s: float, thresholds: DuplicateThresholds) -> bool:
    """Whether the frames that show the same moment look alike, with the face in one place.

    A frame of `b` falls between two of `a`, perhaps with a cut on one side: the nearer one counts.
    Clips without a common frame are not alike.
    """
    places = np.arange(len(b.frame_hashes)) + shift_s * HASHED_FRAMES_HZ
    inside = np.flatnonzero((places >= 0) & (places <= len(a.frame_hashes) - 1))
    pairs = [(near(places[inside]).astype(int), inside) for near in (np.floor, np.ceil)]
    bits = np.minimum(
        *(np.bitwise_count(a.frame_hashes[i] ^ b.frame_hashes[j]).sum(axis=1) for i, j in pairs)
    )
    shifts = np.fmin(*(_face_shift(a.face_boxes[i], b.face_boxes[j]) for i, j in pairs))
    known = np.isfinite(shifts)
    if not known.any():
        return False
    return bool(
        bits[known].mean() <= thresholds.max_frame_bits and np.median(shifts[known]) <= MAX_FACE_SHIFT
    )


def _face_shift(a: Floats, b: Floats) -> Floats:
    """[n] distance of the centres of boxes [n, 4] in x and y, the larger, as a share of the wider box."""
    centres = np.abs(a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    sizes = np.maximum(a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2])
    shifts: Floats = (centres / np.maximum(sizes, 1e-6)).max(axis=1)
    return shifts


def _candidates(sounds: Sequence[Landmarks]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, in order, that have `SHARED_TOKENS` tokens in common: a product of sparse
    matrices, the left one with the first clips of every token only."""
    clips, begins = _shared_tokens(sounds)
    shape = (len(begins) - 1, len(sounds))
    counts = np.diff(begins)
    early = np.arange(len(clips)) - np.repeat(begins[:-1], counts) < COMPARED_CLIPS
    early_begins = np.append(0, np.cumsum(np.minimum(counts, COMPARED_CLIPS)))
    ones = np.ones(len(clips), np.int32)
    everyone = scipy.sparse.csr_array((ones, clips, begins), shape)
    firsts = scipy.sparse.csr_array((ones[early], clips[early], early_begins), shape).T.tocsr()
    for start in range(0, len(sounds), BLOCK_CLIPS):
        shared = (firsts[start : start + BLOCK_CLIPS] @ everyone).tocoo()
        left, right = shared.coords[0] + start, shared.coords[1]
        enough = (shared.data >= SHARED_TOKENS) & (left < right)
        yield from sorted(zip(left[enough].tolist(), right[enough].tolist(), strict=True))


def _shared_tokens(sounds: Sequence[Landmarks]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Clips of every token that two clips have, one token after another, in order; and where each begins."""
    tokens = [_tokens(sound) for sound in sounds]
    keys = np.concatenate([*tokens, np.zeros(0, np.uint64)]) << _TOKEN
    keys |= np.repeat(np.arange(len(tokens), dtype=np.uint64), [len(t) for t in tokens])
    del tokens
    keys.sort()  # by token, then by clip; in place, for there may be a hundred million
    another = np.ones(len(keys), bool)
    another[1:] = (keys[1:] ^ keys[:-1]) > _CLIP
    counts = np.diff(np.flatnonzero(another), append=len(keys))
    kept = np.repeat(counts > 1, counts)
    begins = np.append(0, np.cumsum(counts[counts > 1]))
    return (keys[kept] & _CLIP).astype(np.int32), begins


def _tokens(sound: Landmarks) -> Landmarks:
    """Pairs of landmarks of one and the same peak, without their time: 32 bits, far rarer than a landmark."""
    found = []
    for apart in (1, 2):  # audfprint makes at most three landmarks of a peak
        first, second = sound[:-apart], sound[apart:]
        same = (first >> _ANCHOR) == (second >> _ANCHOR)
        pairs = ((first & _HASH) << _ANCHOR) | (second & _REST)
        found.append(pairs[same])
    return np.unique(np.concatenate(found))
