"""Audio-visual sync by ridge regression: the offset between audio and mouth, and its significance.

A ridge map predicts the motion of the mouth from the audio. The prediction is compared with the motion in the
landmarks, at every lag. In shapes, F is frames, B audio bands, M mouth measures, V source videos, T context.

**Confidence** is the height of the peak in standard deviations of a null distribution. That is the same
comparison with the clip's own prediction played backwards, at every circular shift, and forwards at shifts
too long to be in sync. docs/sync.md gives the rate of false alarms at `SCORED_FROM`. A clip is scored by a
map that was fitted without its source video.

**Sign**: a positive offset says by how many frames the audio must be delayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES
from talkforge.schemas.arrays import Doubles, Floats, expect_shape
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Sync

Item = tuple[str, Floats, Floats]
"""One clip: video id, mouth measures [F, M], audio bands [F, B]."""

MAP_HZ = 25.0
"""Frame rate of the map. Features of clips at other rates are interpolated to it."""

CONTEXT = 5
"""T: frames of audio before and after the frame whose mouth is predicted."""

HIGH_PASS = 8.0
"""Sigma of the Gaussian low-pass that is subtracted, in frames of `MAP_HZ` (0.32 s). This removes the posture
of the head and the resting face of the speaker."""

RIDGE = 0.3
"""Ridge strength in units of the mean diagonal of the Gram matrix."""

SEARCH = 15
"""Largest lag searched, in frames of `MAP_HZ` (0.6 s)."""

MIN_FRAMES = 50
"""Least number of frames with a face, at `MAP_HZ` (2 s). With fewer, a clip is not scored."""

SCORED_FROM = 3.75
"""Least confidence of a peak that is reported. Source: ours, docs/sync.md."""

SPEAKER_FROM, SPEAKER_MARGIN = 1.5, 1.0
"""Least confidence of a speaker at lag zero, and least lead over the next face. Source: docs/sync.md."""

DATASET_MIN_S, DATASET_MIN_VIDEOS, DATASET_MAX_VIDEOS = 120.0, 5, 300
"""Least footage and videos of a data set that adds to the shipped map, and most videos that are used: the
first by id. Ids are hashes, so that is a random choice."""

SHIPPED, DATASET = "ridge-shipped-v1", "ridge-dataset-v1"
MAP_PATH = Path(__file__).with_name("sync_map.npz")


def _at_map_rate(features: Floats, fps: float) -> Doubles:
    """Features [F, n] at `fps`, interpolated linearly to `MAP_HZ`; NaN next to a missing frame."""
    if fps == MAP_HZ or not len(features):
        return features.astype(np.float64)
    times = np.arange(int((len(features) - 1) / fps * MAP_HZ + 1e-6) + 1) / MAP_HZ
    before = np.minimum((times * fps + 1e-9).astype(np.int64), len(features) - 1)
    after = np.minimum(before + 1, len(features) - 1)
    weight = np.clip(times * fps - before, 0, 1)[:, None]
    # A frame of weight zero must not spread its NaN.
    late = np.where(weight > 1e-6, features[after], 0)
    return np.asarray(features[before] * (1 - weight) + late * weight, np.float64)


def _motion(features: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """Features [F, n] after a high-pass, 0 where they are missing; and where they are present [F]."""
    seen = np.asarray(np.isfinite(features).all(axis=1))
    known = np.where(seen[:, None], features, 0)
    # The low-pass is a weighted mean over the frames that are present: both sums use the same Gaussian.
    weight = gaussian_filter1d(seen.astype(np.float64), HIGH_PASS, mode="constant")
    slow = gaussian_filter1d(known, HIGH_PASS, axis=0, mode="constant") / np.maximum(weight, 1e-6)[:, None]
    return np.where(seen[:, None], known - slow, 0), seen


@dataclass(frozen=True)
class _Prepared:
    """A clip at the map's rate.

    Attributes:
        mouth: [F, M], motion of the mouth; each measure has unit power.
        bands: [F, B], motion of the bands; all together have unit power.
        num_seen: frames with a face.
    """

    mouth: Doubles
    bands: Doubles
    num_seen: int


def _prepare(mouth: Floats, bands: Floats, fps: float) -> _Prepared:
    expect_shape("mouth", mouth, (None, NUM_MEASURES))
    expect_shape("bands", bands, (len(mouth), NUM_BANDS))
    # Divided by the root mean square; a constant becomes 0.
    y, seen = _motion(_at_map_rate(mouth, fps))
    x, _ = _motion(_at_map_rate(bands, fps))
    power = (y**2).sum(axis=0) / max(int(seen.sum()), 1)
    y = y / np.where(power > 1e-12, np.sqrt(power), np.inf)
    rms = np.sqrt((x**2).mean()) if x.size else 0.0
    return _Prepared(y, x / (rms if rms > 1e-6 else np.inf), int(seen.sum()))


def _delayed(features: Doubles, frames: int) -> Doubles:
    """Features [F, n] delayed by `frames`: row t of the result is row t - `frames`, 0 beyond the ends."""
    moved = np.zeros_like(features)
    count = max(len(features) - abs(frames), 0)
    moved[max(frames, 0) : max(frames, 0) + count] = features[max(-frames, 0) : max(-frames, 0) + count]
    return moved


# ---------------------------------------------------------------------------- the map


@dataclass(frozen=True)
class SyncMap:
    """A ridge map from audio to mouth, kept as the sums of products that define it, by source video.

    The sums of two sets of footage add up, so that maps can be added, and a video can be left out exactly.

    Attributes:
        method: name for the records.
        video_ids: V ids, ascending.
        auto: [V, 2 T + 1, B, B], sum over t of bands[t + d] x bands[t], d = 0 ... 2 T, T = `CONTEXT`.
        cross: [V, 2 T + 1, B, M], sum over t of bands[t + k] x mouth[t], k = -T ... T.
        frames: [V], number of frames at `MAP_HZ`.
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
        """A map without footage.

        Args:
            method: name for the records.
        """
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
        """Fit a map to clips. Their order does not matter.

        Args:
            items: the clips.
            fps: their frame rate.
            method: name for the records.
        """
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
        """Load a map.

        Args:
            path: file written by `save`; by default the map that comes with the package.

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
        """Write the sums to a file, as float32.

        Args:
            path: .npz file.
        """
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
        """The map of both maps' footage, named like this one. A video in both counts with both footages."""
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
        """The map as if it had been fitted without some videos.

        Args:
            video_ids: the videos to leave out.
        """
        gone = set(video_ids)
        keep = [index for index, video_id in enumerate(self.video_ids) if video_id not in gone]
        if len(keep) == len(self.video_ids):
            return self
        ids = tuple(self.video_ids[index] for index in keep)
        return SyncMap(self.method, ids, self.auto[keep], self.cross[keep], self.frames[keep])

    @cached_property
    def weights(self) -> Doubles | None:
        """Weights [2 T + 1, B, M] that predict mouth[t] from bands[t + k], k = -T ... T; None without audio.

        With X [F, (2 T + 1) B] the bands of all context frames side by side and Y [F, M] the mouth, they
        minimise |X W - Y|^2 + s |W|^2, so (X^T X + s I) W = X^T Y. X^T Y is `cross`.
        """
        lags = 2 * CONTEXT + 1
        auto, cross = self.auto.sum(axis=0), self.cross.sum(axis=0)
        # Block (k, j) of X^T X is the sum of bands[t + k] x bands[t + j], which depends only on k - j.
        blocks = [[auto[k - j] if k >= j else auto[j - k].T for j in range(lags)] for k in range(lags)]
        gram = np.block(blocks)
        # s, relative to the mean of the diagonal
        strength = RIDGE * float(np.trace(gram)) / len(gram)
        if strength <= 0:
            return None
        gram[np.diag_indices_from(gram)] += strength
        solution = np.linalg.solve(gram, cross.reshape(len(gram), -1))
        return np.asarray(solution.reshape(lags, NUM_BANDS, -1))


def _statistics(clip: _Prepared) -> tuple[Doubles, Doubles, int]:
    """Sums of products of one clip: rows of `SyncMap.auto` and `SyncMap.cross`, and its frames."""
    x, y = clip.bands, clip.mouth
    auto = [_delayed(x, -lag).T @ x for lag in range(2 * CONTEXT + 1)]
    cross = [_delayed(x, -lag).T @ y for lag in range(-CONTEXT, CONTEXT + 1)]
    return np.stack(auto), np.stack(cross), len(x)


def dataset_map(items: Iterable[Item], fps: float, shipped: SyncMap | None = None) -> SyncMap:
    """The map for a data set: the shipped map, plus the data set's own footage if there is enough of it.

    The result's `method` says which. Most clips must be in sync. A minority that is not adds noise to the map
    and does not move its zero. The order of the items does not matter.

    Args:
        items: clips of the data set.
        fps: frame rate of all of them.
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
    """Offset between audio and mouth, and its confidence.

    Args:
        mouth: [F, M] of `features.mouth_measures`.
        bands: [F, B] of `features.audio_bands`.
        fps: frame rate of both.
        sync_map: the map to predict with.
        video_id: source video of the clip, which is left out of the map.

    Returns:
        Offset in frames of the clip, positive where the audio must be delayed, and its confidence. Both are
        None where the confidence is below `SCORED_FROM`. `sync_zero_confidence` is None only with less than
        2 s of face, or without any audio or motion.
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
    """Confidence at every lag.

    Args:
        mouth: as `score`.
        bands: as `score`.
        fps: frame rate of both.
        sync_map: the map to predict with; no video is left out of it.

    Returns:
        float64 [2 SEARCH + 1] for lags -SEARCH ... SEARCH at `MAP_HZ`; None where nothing can be compared.
    """
    clip = _prepare(mouth, bands, fps)
    weights = sync_map.weights
    if clip.num_seen < MIN_FRAMES or weights is None:
        return None
    # Predicted mouth[t] = sum over k of bands[t + k] @ weights[k].
    steps = range(-CONTEXT, CONTEXT + 1)
    expected = np.stack([_delayed(clip.bands, -k) @ w for k, w in zip(steps, weights, strict=True)]).sum(
        axis=0
    )
    null = _null(clip.mouth, expected)
    deviation = float(np.sqrt((null**2).mean()))
    if deviation < 1e-9:
        return None
    count = len(expected)
    # With twice the period nothing wraps around: the comparison is linear.
    linear = _products(clip.mouth, expected, 2 * count)
    lags = np.arange(-SEARCH, SEARCH + 1)
    # At lag l only count - |l| frames overlap. A sum of so many products has a standard deviation smaller by
    # the root of that fraction than the null's, whose sums have `count` products.
    return np.asarray(linear[lags] / np.sqrt(1 - np.abs(lags) / count) / deviation)


def _null(mouth: Doubles, expected: Doubles) -> Doubles:
    """The comparison where nothing can be in sync.

    That is every circular shift of the reversed prediction, and of the prediction itself the shifts beyond
    every lag that is searched.
    """
    count, reach = len(expected), SEARCH + CONTEXT
    far = _products(mouth, expected, count)[reach + 1 : max(count - reach, 0)]
    return np.concatenate([far, _products(mouth, expected[::-1], count)])


def _products(mouth: Doubles, expected: Doubles, period: int) -> Doubles:
    """Entry l: sum over t of the scalar product mouth[t] . expected[t - l], circular over `period` frames.

    Computed by the FFT: a correlation is the inverse transform of one spectrum times the other's conjugate.
    """
    spectrum = np.fft.rfft(mouth, period, axis=0) * np.conj(np.fft.rfft(expected, period, axis=0))
    return np.asarray(np.fft.irfft(spectrum.sum(axis=1), period))


def speaker(scores: Mapping[str, Sync]) -> str | None:
    """Which of the faces in view at the same time speaks.

    The speaker's `sync_zero_confidence` is at least `SPEAKER_FROM` and leads the next one by at least
    `SPEAKER_MARGIN`.

    Args:
        scores: face -> its score; all of the same audio and about the same span.

    Returns:
        Key of the face; None where that is unclear.
    """
    known = [(s.sync_zero_confidence, key) for key, s in scores.items() if s.sync_zero_confidence is not None]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]))
    if not ranked or ranked[0][0] < SPEAKER_FROM:
        return None
    if len(ranked) > 1 and ranked[0][0] - ranked[1][0] < SPEAKER_MARGIN:
        return None
    return ranked[0][1]
