"""Near duplicates: clips that show the same moment, in different files or twice in one.

Two clips are duplicates if their audio, their frames, the position of the face and the motion of its mouth
agree at one shift in time. No single one of these is enough: a face before the same wall looks the same in
every clip of a talk, a voice may lie over other footage, two people in one frame differ only in their
position, and speakers of one studio who are dubbed with one voice only in how their lips move. Clips without
audio therefore have no duplicates here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from talkforge.curation.fingerprint import (
    HASH_BITS,
    HASHED_FRAMES_HZ,
    HOP_SAMPLES,
    MOUTH_HZ,
    AudioHashes,
    Fingerprint,
)
from talkforge.schemas.arrays import Floats
from talkforge.schemas.units import AUDIO_HZ

SHARED_TOKENS = 3
"""Tokens that two clips must share to be compared; see `_tokens`."""

COMPARED_CLIPS = 50
"""Clips that share a token are compared with the first so many of them. This bounds the work where very many
share one (a jingle, a hum, a clip copied a thousand times)."""

MAX_FACE_SHIFT = 0.5
"""Faces further apart than this fraction of their width are two. Source: ours; nearer, one face of two in a
frame hides the other, while cropping 5% of the frame shifts a face of a tenth of its width by at most half
its own."""

MIN_STRETCH = 0.25
"""Hashes that agree must span at least this fraction of two clips' overlap: a jingle of two seconds is no
duplicate. Source: ours; real copies have 0.31 and more, since pauses have no hashes."""

MIN_MOUTH_CORRELATION = 0.7
"""Least correlation of the lips' openings of one mouth at one moment. Source: ours; seven clips encoded
again, and at half the size, have 0.93 to 0.99 (0.79 for a face of 55 px), and of 2,415 pairs of other clips
of 3 s one in a hundred has more than 0.64."""

MOUTH_SHIFT_FRAMES = 2
"""The openings may be off by so many frames, because clips begin between frames."""

MIN_MOUTH_FRAMES, MIN_MOUTH_DEVIATION = 38, 0.02
"""Openings are compared over this many frames and more (1.5 s), and where both vary by this standard
deviation, distances of the eyes. A mouth at rest says nothing."""

BLOCK_CLIPS = 4096
"""Clips whose candidate pairs are held in memory at once."""

_TIME, _HASH = np.uint64(HASH_BITS), np.uint64(2**HASH_BITS - 1)
"""Shift to the time of an audio hash, and mask of the rest."""

_ANCHOR, _REST = np.uint64(12), np.uint64(2**12 - 1)
"""Shift to the first peak of an audio hash (its bin and time), and mask of what describes the second peak."""

_CLIP, _TOKEN = np.uint64(2**32 - 1), np.uint64(32)
"""Mask of the clip in a sorting key, and shift to its token."""


@dataclass(frozen=True)
class DuplicateThresholds:
    """When one clip repeats another.

    Source: ours; of real clips encoded again at 24 kbit/s, shifted or noisy, at least 21 hashes and 6%
    agree, of other clips at most 2 hashes. The thresholds were set on these same clips.

    Attributes:
        min_hashes: least number of audio hashes that agree at one shift.
        min_hash_fraction: the same, as a fraction of the hashes in the overlap of the clip that has fewer.
        max_frame_bits: largest mean distance of the frame hashes, of 64 bits. The same moment has up to 9,
            or 18 in a fast pan sampled a quarter second apart. Other clips have 11 and more, half of them
            more than 31: the audio is what distinguishes moments of one clip.
        min_overlap_fraction: least fraction of the repeating clip that the other one shows too.
    """

    min_hashes: int = 8
    min_hash_fraction: float = 0.03
    max_frame_bits: float = 20.0
    min_overlap_fraction: float = 0.5


def near_duplicates(
    clips: Sequence[tuple[str, Fingerprint]], thresholds: DuplicateThresholds | None = None
) -> dict[str, str]:
    """Find the clips that repeat another.

    Of two duplicates the one named first is kept. A clip repeats only a clip that is itself kept, and that
    it resembles directly: there are no chains.

    With T audio hashes in all, sorting takes T log T steps, and then each hash at most `COMPARED_CLIPS`.
    Only clips that share tokens are compared, never all with all.

    Args:
        clips: (id, fingerprint) of every clip, the better ones first.
        thresholds: when two clips are duplicates; None: the defaults.

    Returns:
        Id of every clip that repeats another -> id of the clip that is kept.
    """
    thresholds = thresholds or DuplicateThresholds()
    repeats: dict[int, int] = {}
    for first, second in _candidates([fingerprint.audio_hashes for _, fingerprint in clips]):
        if first in repeats or second in repeats:
            continue
        if repeated(clips[first][1], clips[second][1], thresholds):
            repeats[second] = first
    return {clips[a][0]: clips[b][0] for a, b in sorted(repeats.items())}


def repeated_pairs(
    clips: Sequence[tuple[str, Fingerprint]], thresholds: DuplicateThresholds
) -> list[tuple[str, str]]:
    """All pairs of duplicates, in the order in which `near_duplicates` takes them.

    Whatever clips are taken out, it comes to the same by the pairs that are left; but for clips of which more
    than `COMPARED_CLIPS` share a token.

    Args:
        clips: (id, fingerprint) of every clip, the better ones first.
        thresholds: when two clips are duplicates.
    """
    pairs = _candidates([fingerprint.audio_hashes for _, fingerprint in clips])
    return [(clips[a][0], clips[b][0]) for a, b in pairs if repeated(clips[a][1], clips[b][1], thresholds)]


def repeated(first: Fingerprint, second: Fingerprint, thresholds: DuplicateThresholds) -> bool:
    """Whether the second clip shows the face of the first, at the same moment, for long enough."""
    agreeing_s, shift = _best_shift(first.audio_hashes, second.audio_hashes)
    if len(agreeing_s) < thresholds.min_hashes:
        return False
    # Second s of the second clip is second s + shift_s of the first: where both show something, in the
    # clock of the first.
    shift_s = shift * HOP_SAMPLES / AUDIO_HZ
    start_s, end_s = max(0.0, shift_s), min(first.duration_s, second.duration_s + shift_s)
    if end_s - start_s < thresholds.min_overlap_fraction * second.duration_s:
        return False
    # Four fifths of the agreeing hashes lie between these, so that a stray one does not count.
    low_s, high_s = np.percentile(agreeing_s, (10, 90))
    if (high_s - low_s) / 0.8 < MIN_STRETCH * (end_s - start_s):
        return False
    fewest = min(
        _count(first.audio_hashes, start_s, end_s),
        _count(second.audio_hashes, start_s - shift_s, end_s - shift_s),
    )
    if len(agreeing_s) < thresholds.min_hash_fraction * fewest:
        return False
    return _frames_agree(first, second, shift_s, thresholds) and _mouths_agree(first, second, shift_s)


def _best_shift(a: AudioHashes, b: AudioHashes) -> tuple[NDArray[np.float64], int]:
    """The shift in time at which most hashes of two clips agree.

    A shift that is not a whole number of hops is spread over two neighbouring ones, which count together.

    Returns:
        Times in `b` of the hashes that are also in `a` at that shift, seconds; and the shift, in hops: time
        in `a` minus time in `b`.
    """
    hashes_a, hashes_b = a & _HASH, b & _HASH
    order = np.argsort(hashes_a, kind="stable")
    # Hash j of b equals the hashes left[j] ... left[j] + counts[j] - 1 of a, sorted.
    left = np.searchsorted(hashes_a[order], hashes_b, "left")
    counts = np.searchsorted(hashes_a[order], hashes_b, "right") - left
    if not counts.any():
        return np.zeros(0), 0
    # One row for each pair of equal hashes: `rows` is its hash in b, `within` counts those of a.
    rows = np.repeat(np.arange(len(b)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    times_a = (a[order[left[rows] + within]] >> _TIME).astype(np.int64)
    times_b = (b[rows] >> _TIME).astype(np.int64)
    # A histogram of the shifts; the best is where two neighbouring entries hold most pairs.
    shifts = times_a - times_b
    least = int(shifts.min())
    votes = np.bincount(shifts - least, minlength=2)
    best = int(np.argmax(votes + np.append(votes[1:], 0)))
    agree = (shifts == least + best) | (shifts == least + best + 1)
    nearer = best + int(votes[best : best + 2].argmax())
    return times_b[agree] * (HOP_SAMPLES / AUDIO_HZ), least + nearer


def _count(hashes: AudioHashes, start_s: float, end_s: float) -> int:
    """How many hashes lie in a span, seconds."""
    times_s = (hashes >> _TIME) * (HOP_SAMPLES / AUDIO_HZ)
    return int(np.count_nonzero((times_s >= start_s) & (times_s < end_s)))


def _frames_agree(a: Fingerprint, b: Fingerprint, shift_s: float, thresholds: DuplicateThresholds) -> bool:
    """Whether frames of the same moment look alike and have the face in one place.

    A sampled frame of `b` falls between two of `a`, possibly with a cut on one side, so the more similar of
    both counts. Clips without a common frame do not agree.
    """
    positions = np.arange(len(b.frame_hashes)) + shift_s * HASHED_FRAMES_HZ
    inside = np.flatnonzero((positions >= 0) & (positions <= len(a.frame_hashes) - 1))
    pairs = [(near(positions[inside]).astype(int), inside) for near in (np.floor, np.ceil)]
    # Hamming distance: the bits in which two hashes differ.
    bits = [np.bitwise_count(a.frame_hashes[i] ^ b.frame_hashes[j]).sum(axis=1) for i, j in pairs]
    shifts = np.fmin(*(_face_shift(a.face_boxes[i], b.face_boxes[j]) for i, j in pairs))
    known = np.isfinite(shifts)
    if not known.any():
        return False
    mean_bits = np.minimum(*bits)[known].mean()
    return bool(mean_bits <= thresholds.max_frame_bits and np.median(shifts[known]) <= MAX_FACE_SHIFT)


def _mouths_agree(a: Fingerprint, b: Fingerprint, shift_s: float) -> bool:
    """Whether the lips move alike, where both are known to move."""
    found = []
    for more in range(-MOUTH_SHIFT_FRAMES, MOUTH_SHIFT_FRAMES + 1):
        shift = round(shift_s * MOUTH_HZ) + more
        one, other = a.mouth[max(shift, 0) :], b.mouth[max(-shift, 0) :]
        count = min(len(one), len(other))
        one, other = one[:count], other[:count]
        known = np.isfinite(one) & np.isfinite(other)
        if np.count_nonzero(known) < MIN_MOUTH_FRAMES:
            continue
        one, other = one[known], other[known]
        if min(one.std(), other.std()) >= MIN_MOUTH_DEVIATION:
            found.append(float(np.corrcoef(one, other)[0, 1]))
    return not found or max(found) >= MIN_MOUTH_CORRELATION


def _face_shift(a: Floats, b: Floats) -> Floats:
    """Distance [n] of the centres of boxes [n, 4], as a fraction of the wider box; the larger of x and y."""
    centres = np.abs(a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    sizes = np.maximum(a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2])
    shifts: Floats = (centres / np.maximum(sizes, 1e-6)).max(axis=1)
    return shifts


def _candidates(hashes: Sequence[AudioHashes]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, in order, of clips that share at least `SHARED_TOKENS` tokens.

    With a matrix E [tokens, clips] that is 1 where a clip has a token, entry (i, j) of E^T E is the number of
    tokens that clips i and j share. The left factor keeps only the first `COMPARED_CLIPS` clips of each
    token, which bounds the number of products per token.
    """
    clips, begins = _shared_tokens(hashes)
    shape = (len(begins) - 1, len(hashes))
    counts = np.diff(begins)
    early = np.arange(len(clips)) - np.repeat(begins[:-1], counts) < COMPARED_CLIPS
    early_begins = np.append(0, np.cumsum(np.minimum(counts, COMPARED_CLIPS)))
    ones = np.ones(len(clips), np.int32)
    everyone = scipy.sparse.csr_array((ones, clips, begins), shape)
    firsts = scipy.sparse.csr_array((ones[early], clips[early], early_begins), shape).T.tocsr()
    for start in range(0, len(hashes), BLOCK_CLIPS):
        shared = (firsts[start : start + BLOCK_CLIPS] @ everyone).tocoo()
        left, right = shared.coords[0] + start, shared.coords[1]
        enough = (shared.data >= SHARED_TOKENS) & (left < right)
        yield from sorted(zip(left[enough].tolist(), right[enough].tolist(), strict=True))


def _shared_tokens(hashes: Sequence[AudioHashes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The clips that have each token, for the tokens that at least two clips have.

    Returns:
        Clips of the first token, ascending, then those of the second, and so on [C]; and where the clips of
        each token begin [tokens + 1].
    """
    tokens = [_tokens(of_clip) for of_clip in hashes]
    keys = np.concatenate([*tokens, np.zeros(0, np.uint64)]) << _TOKEN
    keys |= np.repeat(np.arange(len(tokens), dtype=np.uint64), [len(t) for t in tokens])
    del tokens
    keys.sort()  # by token, then by clip; in place, because there may be a hundred million
    # A token begins where a key differs from the one before in more than its clip.
    begins_token = np.ones(len(keys), bool)
    begins_token[1:] = (keys[1:] ^ keys[:-1]) > _CLIP
    counts = np.diff(np.flatnonzero(begins_token), append=len(keys))
    kept = np.repeat(counts > 1, counts)
    begins = np.append(0, np.cumsum(counts[counts > 1]))
    return (keys[kept] & _CLIP).astype(np.int32), begins


def _tokens(hashes: AudioHashes) -> AudioHashes:
    """Tokens of a clip: pairs of hashes that begin with the same peak, without their time.

    A token has 32 bits (first peak 8, both second peaks 12 each) and is far rarer than a hash of 20.
    """
    found = []
    for apart in (1, 2):  # at most three hashes begin with one peak, and they follow each other
        first, second = hashes[:-apart], hashes[apart:]
        same = (first >> _ANCHOR) == (second >> _ANCHOR)
        pairs = ((first & _HASH) << _ANCHOR) | (second & _REST)
        found.append(pairs[same])
    return np.unique(np.concatenate(found))
