"""Near duplicates: clips that show the same moment, in different files or twice in one.

Two clips are duplicates if their audio, their frames, the position of the face and the motion of its mouth
agree at one shift in time. No single one of these is enough: a face before the same wall looks the same in
every clip of a talk, a voice may lie over other footage, two people in one frame differ only in their
position, and speakers of one studio who are dubbed with one voice only in how their lips move. Clips without
audio therefore have no duplicates here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
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

Name = TypeVar("Name", int, str)

GAPS, FEW_GAPS, MANY_CLIPS = 5, 3, 200_000
"""Each audio hash makes keys with the next `GAPS`, in a set of more than `MANY_CLIPS` with the next
`FEW_GAPS`. Source: ours, docs/duplicates.md."""

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

COMPARED_PAIRS = 50_000
"""Most pairs that one key makes before even fewer than `COMPARED_CLIPS` clips are compared with the rest."""

BLOCK_PAIRS = 1 << 22
"""Pairs of entries that are held in memory at once."""

CLIPS_IN_FILE = 4096
"""Clips for each file of an `Index`, up to 256 files."""

MOST_INDEXED = 1 << 22
"""Most clips that an `Index` tells apart."""

_TIME, _HASH = np.uint64(HASH_BITS), np.uint64(2**HASH_BITS - 1)
"""Shift to the time of an audio hash, and mask of the rest."""

_ANCHOR = np.uint64(12)
"""Shift to the first peak of an audio hash: its bin and time."""

_KEY, _CLIP_BITS, _CLIP_MASK = np.uint64(36), np.uint64(22), np.uint64(MOST_INDEXED - 1)
_KEY_MASK, _TIME_MASK, _SHIFT_BITS = np.uint64(2**64 - 2**36), np.uint64(2**14 - 1), np.uint64(15)
_MOMENT_BITS, _MOMENT_MASK = np.uint64(5), np.uint64(2**5 - 1)
"""Parts of the numbers that stand for a key of a clip, and for a pair of clips; see `_packed` and `_shared`.
Of a moment, the time of a key in the first clip, a pair holds the lowest bits."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Multiplied by this, 2 ** 64 over the golden ratio, keys differ in their highest bits. Source: Knuth, The
Art of Computer Programming 3, section 6.4."""


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
    it resembles directly: there are no chains. Only clips that share keys are compared, see `Index`.

    Args:
        clips: (id, fingerprint) of every clip, the better ones first.
        thresholds: when two clips are duplicates; None: the defaults.

    Returns:
        Id of every clip that repeats another -> id of the clip that is kept.
    """
    thresholds = thresholds or DuplicateThresholds()
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder), len(clips))
        for number, (_, fingerprint) in enumerate(clips):
            index.add(np.full(len(fingerprint.audio_hashes), number), fingerprint.audio_hashes)
        pairs = index.pairs()
    alike = (pair for pair in pairs.tolist() if repeated(clips[pair[0]][1], clips[pair[1]][1], thresholds))
    return {clips[a][0]: clips[b][0] for a, b in sorted(kept_of(alike).items())}


def kept_of(pairs: Iterable[Sequence[Name]]) -> dict[Name, Name]:
    """Clip that is left out -> clip that is kept in its place.

    Args:
        pairs: (better, worse) clips of which the second repeats the first, by the rank of the better one
            and then of the worse.
    """
    repeats_of: dict[Name, Name] = {}
    for first, second in pairs:
        if first not in repeats_of and second not in repeats_of:
            repeats_of[second] = first
    return repeats_of


class Agreement(NamedTuple):
    """How far a second clip repeats a first, at the shift in time at which most of their audio agrees.

    It depends on the two clips alone, and `repeats` compares it with thresholds.

    Attributes:
        num_hashes: audio hashes that agree.
        hash_fraction: the same, as a fraction of the hashes in the overlap of the clip that has fewer.
        stretch: fraction of the overlap that the hashes which agree span.
        overlap: fraction of the second clip that the first one shows too.
        frame_bits: mean distance of the frame hashes, of 64 bits; NaN where no frame is common.
        face_shift: median distance of the faces, as a fraction of their width; NaN likewise.
        mouth: correlation of the lips' openings; NaN where they are not known to move in both.
    """

    num_hashes: float
    hash_fraction: float
    stretch: float
    overlap: float
    frame_bits: float
    face_shift: float
    mouth: float


def repeated(first: Fingerprint, second: Fingerprint, thresholds: DuplicateThresholds) -> bool:
    """Whether the second clip shows the face of the first, at the same moment, for long enough."""
    found = agreement(first, second, thresholds.min_hashes)
    return found is not None and bool(repeats(found, thresholds))


def repeats(found: Any, thresholds: DuplicateThresholds) -> Any:
    """Whether an agreement, or each of a table of them, is enough.

    Args:
        found: an `Agreement`, or anything with arrays under the same names.
        thresholds: when two clips are duplicates.
    """
    return (
        (found.num_hashes >= thresholds.min_hashes)
        & (found.overlap >= thresholds.min_overlap_fraction)
        & (found.stretch >= MIN_STRETCH)
        & (found.hash_fraction >= thresholds.min_hash_fraction)
        & (found.frame_bits <= thresholds.max_frame_bits)
        & (found.face_shift <= MAX_FACE_SHIFT)
        & np.logical_not(found.mouth < MIN_MOUTH_CORRELATION)
    )


def agreement(first: Fingerprint, second: Fingerprint, min_hashes: int = 8) -> Agreement | None:
    """How far the second clip repeats the first; None where fewer than `min_hashes` hashes agree, or nothing
    overlaps."""
    agreeing_s, shift = _best_shift(first.audio_hashes, second.audio_hashes)
    if len(agreeing_s) < min_hashes:
        return None
    # Second s of the second clip is second s + shift_s of the first: where both show something, in the
    # clock of the first.
    shift_s = shift * HOP_SAMPLES / AUDIO_HZ
    start_s, end_s = max(0.0, shift_s), min(first.duration_s, second.duration_s + shift_s)
    if end_s <= start_s:
        return None
    # Four fifths of the agreeing hashes lie between these, so that a stray one does not count.
    low_s, high_s = np.percentile(agreeing_s, (10, 90))
    fewest = min(
        _count(first.audio_hashes, start_s, end_s),
        _count(second.audio_hashes, start_s - shift_s, end_s - shift_s),
    )
    frame_bits, face_shift = _frames(first, second, shift_s)
    return Agreement(
        num_hashes=len(agreeing_s),
        hash_fraction=len(agreeing_s) / max(fewest, 1),
        stretch=float((high_s - low_s) / 0.8 / (end_s - start_s)),
        overlap=(end_s - start_s) / second.duration_s,
        frame_bits=frame_bits,
        face_shift=face_shift,
        mouth=_mouths(first, second, shift_s),
    )


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


def _frames(a: Fingerprint, b: Fingerprint, shift_s: float) -> tuple[float, float]:
    """Mean distance in bits of frames of the same moment, and median distance of the faces in them.

    A sampled frame of `b` falls between two of `a`, possibly with a cut on one side, so the more similar of
    both counts. NaN where the clips have no common frame.
    """
    positions = np.arange(len(b.frame_hashes)) + shift_s * HASHED_FRAMES_HZ
    inside = np.flatnonzero((positions >= 0) & (positions <= len(a.frame_hashes) - 1))
    pairs = [(near(positions[inside]).astype(int), inside) for near in (np.floor, np.ceil)]
    # Hamming distance: the bits in which two hashes differ.
    bits = [np.bitwise_count(a.frame_hashes[i] ^ b.frame_hashes[j]).sum(axis=1) for i, j in pairs]
    shifts = np.fmin(*(_face_shift(a.face_boxes[i], b.face_boxes[j]) for i, j in pairs))
    known = np.isfinite(shifts)
    if not known.any():
        return float("nan"), float("nan")
    return float(np.minimum(*bits)[known].mean()), float(np.median(shifts[known]))


def _mouths(a: Fingerprint, b: Fingerprint, shift_s: float) -> float:
    """Largest correlation of the lips' openings near the shift; NaN where they are not known to move."""
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
    return max(found, default=float("nan"))


def _face_shift(a: Floats, b: Floats) -> Floats:
    """Distance [n] of the centres of boxes [n, 4], as a fraction of the wider box; the larger of x and y."""
    centres = np.abs(a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    sizes = np.maximum(a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2])
    shifts: Floats = (centres / np.maximum(sizes, 1e-6)).max(axis=1)
    return shifts


# ---------------------------------------------------------------------- which clips are compared


@dataclass
class Index:
    """Keys of the audio of many clips, and the pairs of clips that share some; files in a folder.

    A key is two audio hashes that follow each other and begin with different peaks, and the time between
    them. Every clip is added, in any order. Keys are kept in files by their value, so that no more than one
    of these is ever held in memory. The more clips there are, the more bits of its value a key has, so that
    few keys are equal that should not be.

    Attributes:
        folder: an empty folder.
        num_clips: clips that will be added.
    """

    folder: Path
    num_clips: int

    def __post_init__(self) -> None:
        self._gaps = GAPS if self.num_clips <= MANY_CLIPS else FEW_GAPS
        bits = min(8, (self.num_clips // CLIPS_IN_FILE).bit_length())
        self._keys = _Files(self.folder, "keys", bits, 64)
        self._pairs = _Files(self.folder, "pairs", bits, 42 + max(self.num_clips - 1, 1).bit_length())

    def add(self, clips: NDArray[np.int64], hashes: AudioHashes) -> None:
        """Add the hashes of some clips.

        Args:
            clips: number of the clip [L] that each hash is of, those of one clip next to each other.
            hashes: audio hashes [L], ascending in each clip.
        """
        for apart in range(1, self._gaps + 1):
            first, second = hashes[:-apart], hashes[apart:]
            used = (clips[:-apart] == clips[apart:]) & ((first >> _ANCHOR) != (second >> _ANCHOR))
            first, second = first[used], second[used]
            between = np.minimum((second >> _TIME) - (first >> _TIME), np.uint64(255))
            key = ((first & _HASH) << np.uint64(28)) | ((second & _HASH) << np.uint64(8)) | between
            key *= _SPREAD
            times = (first >> _TIME) & _TIME_MASK
            self._keys.write(key, _packed(key << self._keys.bits, clips[:-apart][used], times))

    def pairs(self) -> NDArray[np.int64]:
        """Pairs (i, j) of clips [P, 2], i < j, in order, that share keys of two moments at one shift in time.

        Keys of one moment are seldom alike alone: all of them begin with one peak.
        """
        for entries in self._keys.read():
            for codes in _shared(entries):
                self._pairs.write(codes, codes)
        found = [np.zeros(0, np.uint64)]
        for codes in self._pairs.read():
            # By pair, then by shift, then by moment. np.unique hashes, which takes twenty times as long here.
            codes.sort()
            pairs, shifts = codes >> (_SHIFT_BITS + _MOMENT_BITS), codes >> _MOMENT_BITS
            same, near = pairs[1:] == pairs[:-1], shifts[1:] - shifts[:-1] <= 1
            other = ((codes[1:] ^ codes[:-1]) & _MOMENT_MASK) > 0
            found.append(np.unique(pairs[1:][same & near & other]))
        merged = np.concatenate(found)
        return np.asarray(np.stack([merged >> _CLIP_BITS, merged & _CLIP_MASK], axis=1), np.int64)


class _Files:
    """Numbers in 2 ** `split_bits` files, each by the highest of the `num_bits` bits of its key."""

    def __init__(self, folder: Path, name: str, split_bits: int, num_bits: int) -> None:
        self._files = [(folder / f"{name}-{number}").open("wb") for number in range(1 << split_bits)]
        self._below = np.uint64(num_bits - max(split_bits, 1))
        self.bits = np.uint64(split_bits)
        """How many bits of a key the name of its file stands for."""

    def write(self, keys: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> None:
        """Add some numbers, in any order, each to the file of its key."""
        if len(self._files) == 1:
            self._files[0].write(numbers.tobytes())
            return
        files = (keys >> self._below).astype(np.uint8)
        order = np.argsort(files, kind="stable")  # of bytes: a radix sort
        ends = np.cumsum(np.bincount(files, minlength=len(self._files)))
        for file, piece in zip(self._files, np.split(numbers[order], ends[:-1]), strict=True):
            file.write(piece.data)

    def read(self) -> Iterator[NDArray[np.uint64]]:
        """What is in each file, which is gone then."""
        for file in self._files:
            file.close()
            yield np.fromfile(file.name, np.uint64)
            Path(file.name).unlink()


def _packed(
    keys: NDArray[np.uint64], clips: NDArray[np.int64], times: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One number for each key: its highest 28 bits, 22 of its clip and 14 of its time."""
    return (keys & _KEY_MASK) | (clips.astype(np.uint64) << np.uint64(14)) | times


def _shared(entries: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Pairs of clips, the shift in time at which they share a key, and its moment, a number for each.

    A clip is paired with the first `COMPARED_CLIPS` that have the key, fewer where very many have it.
    """
    entries.sort()  # by key, clip and time
    begins = np.append(0, np.flatnonzero((entries[1:] >> _KEY) != (entries[:-1] >> _KEY)) + 1)
    counts = np.diff(begins, append=len(entries))
    several = counts > 1
    begins, counts = begins[several], counts[several]
    firsts = np.minimum(counts - 1, np.clip(COMPARED_PAIRS // np.maximum(counts, 1), 1, COMPARED_CLIPS))
    # One row for each of the first entries of a key: all entries after it are its partners.
    left = np.repeat(begins, firsts) + _within(firsts)
    partners = np.repeat(begins + counts, firsts) - left - 1
    for start, end in _blocks(partners, BLOCK_PAIRS):
        one = np.repeat(left[start:end], partners[start:end])
        other = one + 1 + _within(partners[start:end])
        a, b = entries[one], entries[other]
        clip_a, clip_b = (a >> np.uint64(14)) & _CLIP_MASK, (b >> np.uint64(14)) & _CLIP_MASK
        shift = (a & _TIME_MASK) + np.uint64(2**14) - (b & _TIME_MASK)
        code = (((clip_a << _CLIP_BITS) | clip_b) << _SHIFT_BITS) | shift
        code = (code << _MOMENT_BITS) | (a & _MOMENT_MASK)
        yield code[clip_a != clip_b]


def _within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _blocks(counts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Spans of entries whose counts add up to about `most`."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + most, "right")))
        yield start, end
        start = end
