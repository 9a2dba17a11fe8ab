"""Does this mouth follow this audio, and by how many frames is the audio off?

A ridge map predicts mouth motion from audio; what it predicts is compared with what the landmarks
show, at every lag. Legend: F frames, B audio bands, M mouth measures, V source videos, T context.

**Confidence** is the height of the peak in standard deviations of a null: the same comparison with
the clip's own audio played backwards, at every circular shift, and forwards at shifts too long to be
in sync. `SCORED_FROM` and its false-alarm rate are in docs/sync.md. A clip is scored by a map that
has never seen its source video.

**Sign**: a positive offset says that the audio must be delayed by so many frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from talkforge.curation.audio.mel import mel_filters
from talkforge.schemas.arrays import Doubles, Floats, Landmarks, expect_shape
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Sync
from talkforge.schemas.units import AUDIO_HZ

Item = tuple[str, Floats, Floats]
"""video id, mouth measures [F, M], audio bands [F, B] of one clip."""

MAP_HZ = 25.0
"""Rate at which the map works; features of clips at other rates are interpolated to it."""

NUM_BANDS = 26
WINDOW_S, FFT, LOW_HZ, HIGH_HZ = 0.04, 1024, 60.0, 7600.0
POWER_FLOOR = 1e-6
"""Added to band power before the logarithm: digital silence is a constant."""

CONTEXT = 5
"""Frames of audio before and after the frame whose mouth is predicted."""

HIGH_PASS = 8.0
"""Sigma of the Gaussian whose output is subtracted, in frames of `MAP_HZ` (0.32 s): turns the head's
posture and the speaker's resting face into nothing."""

RIDGE = 0.3
"""Ridge strength in units of the mean diagonal of the Gram matrix."""

SEARCH = 15
"""Largest lag searched, in frames of `MAP_HZ` (0.6 s)."""

MIN_FRAMES = 50
"""Frames of `MAP_HZ` with a face below which nothing is said (2 s)."""

SCORED_FROM = 3.75
"""Least confidence of a peak that is reported. Source: docs/sync.md."""

SPEAKER_FROM, SPEAKER_MARGIN = 1.5, 1.0
"""Least confidence at lag zero of a speaker, and least lead over the next face. Source: docs/sync.md."""

DATASET_MIN_S, DATASET_MIN_VIDEOS, DATASET_MAX_VIDEOS = 120.0, 5, 300
"""A data set with less footage is scored by the shipped map; from a larger one so many videos are
used, the first by id, and ids are hashes."""

SHIPPED, DATASET = "ridge-shipped-v1", "ridge-dataset-v1"
MAP_PATH = Path(__file__).with_name("sync_map.npz")

# Pairs of landmarks whose mean distance is one measure.
# Source: MediaPipe's canonical face mesh; left and right partners are averaged.
_EYES = (33, 263)
_DISTANCES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((13, 14),),  # opening between the lips, middle
    ((82, 87), (312, 317)),
    ((81, 178), (311, 402)),
    ((80, 88), (310, 318)),  # ... to the corners
    ((0, 17),),  # outer height
    ((37, 84), (267, 314)),
    ((61, 291),),  # outer width
    ((78, 308),),  # inner width
    ((0, 13),),  # thickness of the upper lip
    ((14, 17),),  # and of the lower
    ((168, 152),),  # nose bridge to chin: the jaw
    ((168, 0),),  # to the lips' four edges
    ((168, 13),),
    ((168, 14),),
    ((168, 17),),
    ((61, 152), (291, 152)),  # corners to chin
)
# Indices into MediaPipe's 52 blendshapes.
_SHAPES: tuple[tuple[int, ...], ...] = (
    (25,),  # jawOpen
    (27,),  # mouthClose
    (32,),  # mouthFunnel
    (38,),  # mouthPucker
    (40,),  # mouthRollLower
    (41,),  # mouthRollUpper
    (42,),  # mouthShrugLower
    (43,),  # mouthShrugUpper
    (36, 37),  # mouthPress
    (34, 35),  # mouthLowerDown
    (48, 49),  # mouthUpperUp
    (46, 47),  # mouthStretch
    (44, 45),  # mouthSmile
)
NUM_MEASURES = len(_DISTANCES) + len(_SHAPES)


# ---------------------------------------------------------------------------- features


def audio_bands(samples: Floats, num_frames: int, fps: float) -> Floats:
    """Log-mel power [num_frames, 26] of 16 kHz samples [N]; row k is heard around second k / fps.

    The 40 ms Hann window is centred on the frame's instant; beyond the ends there is silence.
    """
    width = round(WINDOW_S * AUDIO_HZ)
    centres = np.floor(np.arange(num_frames) / fps * AUDIO_HZ + 0.5).astype(np.int64)
    short = max(int(centres[-1]) + width - len(samples), 0) if num_frames else 0
    padded = np.pad(samples.astype(np.float64), (width // 2, width // 2 + short))
    hann = np.hanning(width)
    frames = padded[centres[:, None] + np.arange(width)] * hann
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / np.sum(hann**2)
    filters = mel_filters(NUM_BANDS, FFT, low_hz=LOW_HZ, high_hz=HIGH_HZ)
    return np.log(power @ filters.T + POWER_FLOOR).astype(np.float32)


def mouth_measures(landmarks: Landmarks) -> Floats:
    """Shape of the mouth [F, 29]; NaN where the face was not seen.

    16 lip and jaw distances in three dimensions over the distance of the outer eye corners, then
    13 blendshapes, left and right averaged. Column 0 is the opening between the lips.
    """
    points = landmarks.points.astype(np.float64)

    def distance(pair: tuple[int, int]) -> Doubles:
        return np.asarray(np.linalg.norm(points[:, pair[0]] - points[:, pair[1]], axis=1))

    eyes = np.maximum(distance(_EYES), 1e-6)
    columns = [np.mean([distance(pair) for pair in pairs], axis=0) / eyes for pairs in _DISTANCES]
    columns += [landmarks.blendshapes[:, list(shapes)].mean(axis=1) for shapes in _SHAPES]
    return np.stack(columns, axis=1).astype(np.float32)


def _at_map_rate(features: Floats, fps: float) -> Doubles:
    """Features [F, n] at `MAP_HZ`, linear between frames; NaN next to a missing frame."""
    if fps == MAP_HZ or not len(features):
        return features.astype(np.float64)
    times = np.arange(int((len(features) - 1) / fps * MAP_HZ + 1e-6) + 1) / MAP_HZ
    before = np.minimum((times * fps + 1e-9).astype(np.int64), len(features) - 1)
    after = np.minimum(before + 1, len(features) - 1)
    share = np.clip(times * fps - before, 0, 1)[:, None]
    # A frame of weight zero must not spread its NaN.
    late = np.where(share > 1e-6, features[after], 0)
    return np.asarray(features[before] * (1 - share) + late * share, np.float64)


def _motion(features: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """Features [F, n] high-passed, 0 where missing; and where they were not [F]."""
    seen = np.asarray(np.isfinite(features).all(axis=1))
    known = np.where(seen[:, None], features, 0)
    weight = gaussian_filter1d(seen.astype(np.float64), HIGH_PASS, mode="constant")
    slow = gaussian_filter1d(known, HIGH_PASS, axis=0, mode="constant") / np.maximum(weight, 1e-6)[:, None]
    return np.where(seen[:, None], known - slow, 0), seen


@dataclass(frozen=True)
class _Prepared:
    """A clip at the map's rate: mouth [F, M], each measure of unit power; bands [F, B], together so."""

    mouth: Doubles
    bands: Doubles
    num_seen: int


def _prepare(mouth: Floats, bands: Floats, fps: float) -> _Prepared:
    expect_shape("mouth", mouth, (None, NUM_MEASURES))
    expect_shape("bands", bands, (len(mouth), NUM_BANDS))
    y, seen = _motion(_at_map_rate(mouth, fps))
    x, _ = _motion(_at_map_rate(bands, fps))
    power = (y**2).sum(axis=0) / max(int(seen.sum()), 1)
    y = y / np.where(power > 1e-12, np.sqrt(power), np.inf)
    loud = np.sqrt((x**2).mean()) if x.size else 0.0
    return _Prepared(y, x / (loud if loud > 1e-6 else np.inf), int(seen.sum()))


def _later(features: Doubles, frames: int) -> Doubles:
    """Row t of the result is row t - `frames`, 0 beyond the ends."""
    moved = np.zeros_like(features)
    count = max(len(features) - abs(frames), 0)
    moved[max(frames, 0) : max(frames, 0) + count] = features[max(-frames, 0) : max(-frames, 0) + count]
    return moved


# ---------------------------------------------------------------------------- the map


@dataclass(frozen=True)
class SyncMap:
    """Sufficient statistics of a ridge map from audio to mouth, kept apart by source video.

    Sums and differences of statistics are those of the footage, so leaving a video out is exact.

    Attributes:
        method: name that goes into the records.
        video_ids: V ids, ascending.
        auto: [V, 2 T + 1, B, B], sum over t of bands[t + d] x bands[t], d = 0 ... 2 T, T = `CONTEXT`.
        cross: [V, 2 T + 1, B, M], sum over t of bands[t + k] x mouth[t], k = -T ... T.
        frames: [V] frames counted, at `MAP_HZ`.
    """

    method: str
    video_ids: tuple[str, ...]
    auto: Doubles
    cross: Doubles
    frames: NDArray[np.int64]

    def __post_init__(self) -> None:
        count, lags = len(self.video_ids), 2 * CONTEXT + 1
        expect_shape("auto", self.auto, (count, lags, NUM_BANDS, NUM_BANDS))
        expect_shape("cross", self.cross, (count, lags, NUM_BANDS, NUM_MEASURES))
        expect_shape("frames", self.frames, (count,))

    @classmethod
    def empty(cls, method: str = DATASET) -> SyncMap:
        lags = 2 * CONTEXT + 1
        return cls(
            method,
            (),
            np.zeros((0, lags, NUM_BANDS, NUM_BANDS)),
            np.zeros((0, lags, NUM_BANDS, NUM_MEASURES)),
            np.zeros(0, np.int64),
        )

    @classmethod
    def fit(cls, items: Iterable[Item], fps: float = MAP_HZ, method: str = DATASET) -> SyncMap:
        """Map of clips (video id, mouth [F, M], bands [F, B]) at `fps`; their order does not matter."""
        ordered = sorted(items, key=lambda item: (item[0], item[1].tobytes(), item[2].tobytes()))
        result = cls.empty(method)
        totals: dict[str, tuple[Doubles, Doubles, int]] = {}
        for video_id, mouth, bands in ordered:
            auto, cross, frames = _statistics(_prepare(mouth, bands, fps))
            if video_id in totals:
                before = totals[video_id]
                auto, cross, frames = auto + before[0], cross + before[1], frames + before[2]
            totals[video_id] = (auto, cross, frames)
        if not totals:
            return result
        autos, crosses, counts = zip(*totals.values(), strict=True)
        return cls(method, tuple(totals), np.stack(autos), np.stack(crosses), np.array(counts, np.int64))

    @classmethod
    def load(cls, path: Path = MAP_PATH) -> SyncMap:
        """The map in a file written by `save`; the shipped one by default.

        Raises:
            ModelError: the file is missing or is not such a map.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(
                    str(file["method"]),
                    tuple(str(name) for name in file["video_ids"]),
                    file["auto"].astype(np.float64),
                    file["cross"].astype(np.float64),
                    file["frames"].astype(np.int64),
                )
        except (OSError, KeyError, ValueError) as error:
            raise ModelError(f"sync map {path.name}: expected one of this version: {error}") from None

    def save(self, path: Path) -> None:
        """Write the statistics, as float32."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                method=np.array(self.method),
                video_ids=np.array(self.video_ids, "U12"),
                auto=self.auto.astype(np.float32),
                cross=self.cross.astype(np.float32),
                frames=self.frames,
            )

    def __add__(self, other: SyncMap) -> SyncMap:
        """Both maps' footage; a video in both counts with the footage of both. Keeps self's name."""
        ids = tuple(sorted({*self.video_ids, *other.video_ids}))
        total = SyncMap(
            self.method,
            ids,
            np.zeros((len(ids), *self.auto.shape[1:])),
            np.zeros((len(ids), *self.cross.shape[1:])),
            np.zeros(len(ids), np.int64),
        )
        row = {video_id: index for index, video_id in enumerate(ids)}
        for part in (self, other):
            where = [row[video_id] for video_id in part.video_ids]
            total.auto[where] += part.auto
            total.cross[where] += part.cross
            total.frames[where] += part.frames
        return total

    def without(self, video_ids: Iterable[str]) -> SyncMap:
        """The map as if these videos had never been in it."""
        gone = set(video_ids)
        keep = [index for index, video_id in enumerate(self.video_ids) if video_id not in gone]
        if len(keep) == len(self.video_ids):
            return self
        ids = tuple(self.video_ids[index] for index in keep)
        return SyncMap(self.method, ids, self.auto[keep], self.cross[keep], self.frames[keep])

    @cached_property
    def weights(self) -> Doubles | None:
        """Ridge solution [2 T + 1, B, M], context -T ... T first; None where there was no sound."""
        lags = 2 * CONTEXT + 1
        auto, cross = self.auto.sum(axis=0), self.cross.sum(axis=0)
        # Row block k, column block j: sum of bands[t + k] x bands[t + j], which depends on k - j.
        blocks = [[auto[k - j] if k >= j else auto[j - k].T for j in range(lags)] for k in range(lags)]
        gram = np.block(blocks)
        strength = RIDGE * float(np.trace(gram)) / len(gram)
        if strength <= 0:
            return None
        gram[np.diag_indices_from(gram)] += strength
        solution = np.linalg.solve(gram, cross.reshape(len(gram), -1))
        return np.asarray(solution.reshape(lags, NUM_BANDS, -1))


def _statistics(clip: _Prepared) -> tuple[Doubles, Doubles, int]:
    x, y = clip.bands, clip.mouth
    auto = [_later(x, -lag).T @ x for lag in range(2 * CONTEXT + 1)]
    cross = [_later(x, -lag).T @ y for lag in range(-CONTEXT, CONTEXT + 1)]
    return np.stack(auto), np.stack(cross), len(x)


def dataset_map(items: Iterable[Item], fps: float, shipped: SyncMap | None = None) -> SyncMap:
    """The map for a data set: its own footage added to the shipped map's, where there is enough of it.

    `method` of the result says which. Most clips must be in sync; a minority that is not adds noise
    to the map and does not move its zero. Neither depends on the order of the items.

    Args:
        items: clips of the data set, all at `fps`.
        shipped: the map to build upon; None: the one that comes with the package.
    """
    base = SyncMap.load() if shipped is None else shipped
    items = list(items)
    ids = sorted({item[0] for item in items})[:DATASET_MAX_VIDEOS]
    length_s = sum(len(item[1]) for item in items) / fps
    if len(ids) < DATASET_MIN_VIDEOS or length_s < DATASET_MIN_S:
        return base
    used = set(ids)
    own = SyncMap.fit((item for item in items if item[0] in used), fps)
    return own + base.without(ids)


# ---------------------------------------------------------------------------- scoring


def score(mouth: Floats, bands: Floats, fps: float, sync_map: SyncMap, video_id: str) -> Sync:
    """How far the audio is from the mouth, and how sure that is.

    Args:
        mouth: [F, M] of `mouth_measures`; bands: [F, B] of `audio_bands`; both at `fps`.
        video_id: left out of the map.

    Returns:
        Offset in frames of the clip, positive where the audio must be delayed, and its
        confidence; both None where the confidence is below `SCORED_FROM`. `sync_zero_confidence`
        is None only with less than 2 s of face, or without any sound or motion.
    """
    curve = confidence_by_lag(mouth, bands, fps, sync_map.without([video_id]))
    offset = confidence = zero = None
    if curve is not None:
        peak = int(curve.argmax())
        zero = round(float(curve[SEARCH]), 3)
        if curve[peak] >= SCORED_FROM:
            offset = int(np.floor((peak - SEARCH) / MAP_HZ * fps + 0.5))
            confidence = round(float(curve[peak]), 3)
    return Sync(
        sync_method=sync_map.method,
        sync_offset_frames=offset,
        sync_confidence=confidence,
        sync_zero_confidence=zero,
    )


def confidence_by_lag(mouth: Floats, bands: Floats, fps: float, sync_map: SyncMap) -> Doubles | None:
    """Confidence [2 SEARCH + 1] of lags -SEARCH ... SEARCH at `MAP_HZ`; None where there is nothing.

    Nothing is left out of the map here.
    """
    clip = _prepare(mouth, bands, fps)
    weights = sync_map.weights
    if clip.num_seen < MIN_FRAMES or weights is None:
        return None
    steps = range(-CONTEXT, CONTEXT + 1)
    expected = np.stack([_later(clip.bands, -k) @ w for k, w in zip(steps, weights, strict=True)]).sum(axis=0)
    null = _null(clip.mouth, expected)
    spread = float(np.sqrt((null**2).mean()))
    if spread < 1e-9:
        return None
    count = len(expected)
    linear = _products(clip.mouth, expected, 2 * count)
    lags = np.arange(-SEARCH, SEARCH + 1)
    # A longer lag overlaps less: without the root its noise would look smaller than the null's.
    return np.asarray(linear[lags] / np.sqrt(1 - np.abs(lags) / count) / spread)


def _null(mouth: Doubles, expected: Doubles) -> Doubles:
    """What the comparison gives where nothing can be in sync: every circular shift of the reversed
    prediction, and those of the prediction itself that lie beyond every lag searched."""
    count, reach = len(expected), SEARCH + CONTEXT
    far = _products(mouth, expected, count)[reach + 1 : max(count - reach, 0)]
    return np.concatenate([far, _products(mouth, expected[::-1], count)])


def _products(mouth: Doubles, expected: Doubles, period: int) -> Doubles:
    """Entry l: sum over t of mouth[t] . expected[t - l], circular over `period` frames."""
    spectrum = np.fft.rfft(mouth, period, axis=0) * np.conj(np.fft.rfft(expected, period, axis=0))
    return np.asarray(np.fft.irfft(spectrum.sum(axis=1), period))


def speaker(scores: Mapping[str, Sync]) -> str | None:
    """Which of the faces seen at the same time speaks: its key, or None where that is unclear.

    All scores come from one audio and about the same span. The speaker's `sync_zero_confidence`
    is at least `SPEAKER_FROM` and leads the next by `SPEAKER_MARGIN`.
    """
    known = [(s.sync_zero_confidence, key) for key, s in scores.items() if s.sync_zero_confidence is not None]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]))
    if not ranked or ranked[0][0] < SPEAKER_FROM:
        return None
    if len(ranked) > 1 and ranked[0][0] - ranked[1][0] < SPEAKER_MARGIN:
        return None
    return ranked[0][1]
