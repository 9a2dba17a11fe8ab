"""Audio-visual sync by a contrastive network: the probability that a mouth and its audio belong together.

Two small stacks of convolutions turn mouth measures and audio bands into one vector of unit length for each
frame. Vectors of the same instant are similar where audio and mouth are in sync. The mean similarity at every
lag is the evidence, and a calibrated model turns it into probabilities. numpy scores; torch is needed only
to fit the weights (`benchmarks/sync_fit.py`). docs/sync.md has the figures.

In shapes, F is frames at `SYNC_HZ`, M mouth measures, B audio bands, D numbers of a vector, L lags.

**Sign**: a positive offset says by how many frames the audio must be delayed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from talkforge.curation.sync.features import (
    NUM_BANDS,
    NUM_MEASURES,
    SYNC_HZ,
    at_sync_rate,
    audio_input,
    mouth_input,
)
from talkforge.curation.sync.phones import NUM_PHONES
from talkforge.schemas.arrays import Doubles, Floats, Halves, expect_shape
from talkforge.schemas.errors import DatasetError, ModelError, one_line
from talkforge.schemas.npz import npz_bytes, read_npz
from talkforge.schemas.records import Sync

SEARCH = 15
"""Largest lag searched, in frames of `SYNC_HZ` (0.6 s)."""

IN_SYNC = 3
"""Lags up to this count as in sync, in frames of `SYNC_HZ` (120 ms). Source: ITU-R BT.1359-1, where 125 ms of
delay begin to be noticed; and files from the web agree only to within this."""

LAGS = np.arange(-SEARCH, SEARCH + 1)

MIN_FRAMES = 38
"""Least frames with a face, at `SYNC_HZ` (1.5 s). With fewer, a clip is not scored."""

DRIFT_MIN_S = 6.0
"""Least seconds of a clip whose two halves are compared for drift. Source: ours, each half is then 3 s."""

WINDOW_S, WINDOW_STEP_S = 3.0, 0.5
"""Length and step of the windows of which the least likely one is told. Source: ours, docs/sync.md."""

VOICE_RANGE = 4.6
"""Largest distance of a frame with voice from the loud frames of the clip (95th percentile), in natural log
power (20 dB). Source: ours."""

VOICED_FRACTION = 0.6
"""Least fraction of a window with voice: a pause is no evidence against a mouth. Source: ours."""

PRIOR_TOGETHER, PRIOR_IN_SYNC = 0.5, 0.8
"""Before anything is measured: the probability that audio and mouth belong together at all, and of those that
do, the fraction within `IN_SYNC` of zero. The other lags share the rest evenly."""

SPEAKER_FROM, SPEAKER_MARGIN = 0.5, 3.0
"""Least probability of a speaker, and the least lead over the next face in natural log odds (odds of 20 to
1). Source: ours, docs/sync.md."""

WEIGHTS_PATH = Path(__file__).with_name("phonetic.npz")
"""The scorer of what is measured now."""

BANDS_ONLY_PATH = Path(__file__).with_name("contrastive.npz")
"""The scorer of clips that an earlier version measured, which have no phones."""

_FORMAT = 1


class Conv(NamedTuple):
    """One convolution, with its batch norm folded in: weight [out, in, K], bias [out], step, dilation."""

    weight: Doubles
    bias: Doubles
    dilation: int


@dataclass(frozen=True)
class Network:
    """The two stacks: all but the last convolution of each are followed by a GELU."""

    mouth: tuple[Conv, ...]
    audio: tuple[Conv, ...]


@dataclass(frozen=True)
class Calibration:
    """How similarity becomes evidence, see `Scorer.log_ratios`.

    Attributes:
        similarity: weight of the mean similarity, for each root of a second.
        significance: weight of the similarity in standard deviations of the clip's own null.
        second: subtracted for each root of a second: evidence that is expected and missing.
        constant: subtracted once.
    """

    similarity: float
    significance: float
    second: float
    constant: float


class Evidence(NamedTuple):
    """Similarity of a mouth and its audio.

    Attributes:
        by_lag: [L], mean similarity at each lag of `LAGS`, minus the mean over all pairs of frames.
        deviation: root mean square of the same where nothing can be in sync.
        seen_s: seconds with a face.
    """

    by_lag: Doubles
    deviation: float
    seen_s: float


class Pairs(NamedTuple):
    """What the networks say of every pair of frames.

    Attributes:
        similarity: [F, F] of each frame of the mouth with each frame of the audio, mean of the networks.
        seen: [F], where a face was found.
        voiced: [F], where the audio is about as loud as the loud frames of the clip.
    """

    similarity: Doubles
    seen: NDArray[np.bool_]
    voiced: NDArray[np.bool_]

    def cut(self, begin: int, end: int) -> Pairs:
        """The frames from `begin` to before `end`."""
        part = slice(begin, end)
        return Pairs(self.similarity[part, part], self.seen[part], self.voiced[part])

    def evidence(self) -> Evidence | None:
        """Similarity at every lag; None with less than 1.5 s of face."""
        return _evidence(self.similarity, self.seen) if self.seen.sum() >= MIN_FRAMES else None


class Posterior(NamedTuple):
    """What the evidence says. `lags` [L] are probabilities, which with `unrelated` add up to 1."""

    lags: Doubles
    unrelated: float


@dataclass(frozen=True)
class Scorer:
    """Networks whose similarities are averaged, and their calibration.

    Attributes:
        name: name for the records.
        networks: at least one.
        calibration: fitted on people that the networks were not fitted on.
    """

    name: str
    networks: tuple[Network, ...]
    calibration: Calibration

    @property
    def phonetic(self) -> bool:
        """Whether the networks take phones beside the audio bands."""
        return any(one.audio[0].weight.shape[1] > NUM_BANDS for one in self.networks)

    @classmethod
    def load(cls, path: Path = WEIGHTS_PATH) -> Scorer:
        """Load a scorer.

        Args:
            path: a file of `to_bytes`; by default the scorer that comes with the package.

        Raises:
            ModelError: the file is missing or is not such a scorer.
        """
        try:
            return cls.from_bytes(path.read_bytes(), path.name)
        except OSError as error:
            raise ModelError(f"sync weights {path.name}: {one_line(error)}") from None

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Scorer:
        """The scorer in a file.

        Args:
            data: answer of `to_bytes`.
            name: what messages call the file.

        Raises:
            ModelError: it is not such a scorer.
        """
        try:
            arrays = read_npz(data, name)
            about = json.loads(arrays["about"].item())
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}")
            networks = tuple(
                Network(
                    *(_read_stack(arrays, f"{number}/{side}", dilations) for side, dilations in one.items())
                )
                for number, one in enumerate(about["networks"])
            )
            return cls(about["name"], networks, Calibration(**about["calibration"]))
        except (DatasetError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"sync weights {name}: expected those of this version: {error}") from None

    @staticmethod
    def about(data: bytes) -> dict[str, Any]:
        """What else a file of `to_bytes` says.

        Args:
            data: its content.
        """
        return dict(json.loads(read_npz(data, "sync weights", ("about",))["about"].item()))

    def to_bytes(self, about: Mapping[str, Any] | None = None) -> bytes:
        """The npz file of the scorer, weights as float16.

        Args:
            about: what else is worth knowing: on which footage it was fitted, and how.
        """
        stacks = [{"mouth": one.mouth, "audio": one.audio} for one in self.networks]
        arrays = {
            f"{number}/{side}/{index}/{part}": np.asarray(getattr(conv, part), np.float16)
            for number, one in enumerate(stacks)
            for side, stack in one.items()
            for index, conv in enumerate(stack)
            for part in ("weight", "bias")
        }
        header = {
            "format": _FORMAT,
            "name": self.name,
            "calibration": vars(self.calibration),
            "networks": [
                {side: [c.dilation for c in stack] for side, stack in one.items()} for one in stacks
            ],
        }
        return npz_bytes(about=np.array(json.dumps({**(about or {}), **header})), **arrays)

    def evidence(
        self, mouth: Floats, bands: Floats, fps: float, phones: Halves | None = None
    ) -> Evidence | None:
        """Similarity of mouth and audio at every lag.

        Args:
            mouth: [frames, M] of `features.mouth_measures`.
            bands: [frames, B] of `features.audio_bands`.
            fps: frame rate of all.
            phones: [frames, P] of `phones.PhoneRecogniser`; a scorer that is not phonetic leaves them out.

        Returns:
            The evidence; None with less than 1.5 s of face, or without any audio or motion.
        """
        pairs = self.pairs(mouth, bands, fps, phones)
        return pairs.evidence() if pairs else None

    def pairs(self, mouth: Floats, bands: Floats, fps: float, phones: Halves | None = None) -> Pairs | None:
        """Similarity of every frame of the mouth with every frame of the audio.

        Args:
            mouth: as of `evidence`.
            bands: likewise.
            fps: likewise.
            phones: likewise.

        Returns:
            The similarities; None with less than 1.5 s of face, or without any audio or motion.
        """
        expect_shape("mouth", mouth, (None, NUM_MEASURES))
        expect_shape("bands", bands, (len(mouth), NUM_BANDS))
        spoken = None
        if self.phonetic:
            expect_shape("phones", np.zeros(0) if phones is None else phones, (len(mouth), NUM_PHONES))
            spoken = at_sync_rate(np.asarray(phones, np.float32), fps)
        seeing, seen = mouth_input(at_sync_rate(mouth, fps))
        heard = at_sync_rate(bands, fps)
        hearing = audio_input(heard, spoken)
        if seen.sum() < MIN_FRAMES or not seeing.any() or not hearing.any():
            return None
        found = [_run(one.mouth, seeing) @ _run(one.audio, hearing).T for one in self.networks]
        loudness = np.logaddexp.reduce(heard, axis=1)
        voiced = loudness > np.percentile(loudness, 95) - VOICE_RANGE
        return Pairs(np.mean(found, axis=0), seen, voiced)

    def log_ratios(self, evidence: Evidence) -> Doubles:
        """Log likelihood ratio [L] of "in sync at this lag" over "unrelated".

        Evidence grows with the root of the time rather than with the time, because the frames of one person
        share what is particular about this person.

        Args:
            evidence: answer of `evidence`.
        """
        c, root = self.calibration, np.sqrt(evidence.seen_s)
        significance = evidence.by_lag / max(evidence.deviation, 1e-9)
        found = (
            root * (c.similarity * evidence.by_lag - c.second) + c.significance * significance - c.constant
        )
        return np.asarray(found, np.float64)


def posterior(log_ratios: Doubles) -> Posterior:
    """Probability of every lag, and of audio that does not belong to the mouth, by Bayes' rule.

    Args:
        log_ratios: [L] of `Scorer.log_ratios`.
    """
    joint = np.append(np.log(_PRIOR) + log_ratios, np.log(1 - PRIOR_TOGETHER))
    weights = np.exp(joint - joint.max())
    weights /= weights.sum()
    return Posterior(weights[:-1], float(weights[-1]))


def _prior() -> Doubles:
    near = np.abs(LAGS) <= IN_SYNC
    fractions = np.where(near, PRIOR_IN_SYNC / near.sum(), (1 - PRIOR_IN_SYNC) / (~near).sum())
    return np.asarray(PRIOR_TOGETHER * fractions)


_PRIOR = _prior()


def score(mouth: Floats, bands: Floats, fps: float, scorer: Scorer, phones: Halves | None = None) -> Sync:
    """Whether audio and mouth belong together, and how far they are apart.

    Args:
        mouth: [frames, M] of `features.mouth_measures`.
        bands: [frames, B] of `features.audio_bands`.
        fps: frame rate of all.
        scorer: weights and calibration.
        phones: [frames, P] of `phones.PhoneRecogniser`, for a phonetic scorer.

    Returns:
        Every number but the drift is None only with less than 1.5 s of face, or without any audio or motion.
    """
    pairs = scorer.pairs(mouth, bands, fps, phones)
    evidence = pairs.evidence() if pairs else None
    if pairs is None or evidence is None:
        return Sync(
            sync_method=scorer.name, sync_offset_frames=None, sync_confidence=None, sync_zero_confidence=None
        )
    return by_evidence(evidence, fps, scorer).model_copy(
        update={
            "sync_drift_frames": _drift(pairs, fps, scorer),
            "sync_worst_probability": _worst(pairs, evidence, scorer),
        }
    )


def by_evidence(evidence: Evidence, fps: float, scorer: Scorer) -> Sync:
    """What `score` says of a clip, without the drift.

    Args:
        evidence: of the clip, by the scorer.
        fps: frame rate of the clip.
        scorer: weights and calibration.
    """
    found = posterior(scorer.log_ratios(evidence))
    offset, deviation = _offset(found.lags)
    moved = posterior(np.roll(scorer.log_ratios(evidence), -round(offset)))
    significance = evidence.by_lag / max(evidence.deviation, 1e-9)
    frames = fps / SYNC_HZ
    return Sync(
        sync_method=scorer.name,
        sync_offset_frames=int(np.floor(offset * frames + 0.5)),
        sync_confidence=round(float(significance[round(offset) + SEARCH]), 3),
        sync_zero_confidence=round(float(significance[SEARCH]), 3),
        sync_probability=round(float(found.lags[np.abs(LAGS) <= IN_SYNC].sum()), 4),
        sync_offset_probability=round(float(moved.lags[np.abs(LAGS) <= IN_SYNC].sum()), 4),
        sync_offset_sd_frames=round(deviation * frames, 2),
    )


def speaker(scores: Mapping[str, Sync]) -> str | None:
    """Which of the faces in view at the same time speaks.

    The speaker's `sync_probability` is at least `SPEAKER_FROM` and leads the next one by `SPEAKER_MARGIN`.

    Args:
        scores: face -> its score; all of the same audio and about the same span.

    Returns:
        Key of the face; None where that is unclear.
    """
    known = [(s.sync_probability, key) for key, s in scores.items() if s.sync_probability is not None]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]))
    if not ranked or ranked[0][0] < SPEAKER_FROM:
        return None
    if len(ranked) > 1 and _log_odds(ranked[0][0]) - _log_odds(ranked[1][0]) < SPEAKER_MARGIN:
        return None
    return ranked[0][1]


def _log_odds(probability: float) -> float:
    within = min(max(probability, 1e-4), 1 - 1e-4)
    return float(np.log(within / (1 - within)))


def _offset(lags: Doubles) -> tuple[float, float]:
    """Offset and its standard deviation in frames of `SYNC_HZ`, if audio and mouth belong together.

    The offset is the mean of the posterior within `IN_SYNC` of its peak. The deviation is that of all lags
    from it, so that a second peak shows.
    """
    peak = int(np.argmax(lags))
    near = slice(max(peak - IN_SYNC, 0), peak + IN_SYNC + 1)
    offset = float((lags[near] * LAGS[near]).sum() / lags[near].sum())
    return offset, float(np.sqrt((lags * (LAGS - offset) ** 2).sum() / lags.sum()))


def _drift(pairs: Pairs, fps: float, scorer: Scorer) -> float | None:
    """Offset of the second half minus that of the first, in frames of the clip.

    None in clips shorter than `DRIFT_MIN_S`, and unless both halves are likely to be in sync somewhere and
    their offsets are known to a frame.
    """
    count = len(pairs.seen)
    if count < DRIFT_MIN_S * SYNC_HZ:
        return None
    offsets = []
    for half in (pairs.cut(0, count // 2), pairs.cut(count // 2, count)):
        evidence = half.evidence()
        if evidence is None:
            return None
        found = posterior(scorer.log_ratios(evidence))
        offset, deviation = _offset(found.lags)
        if found.unrelated > 0.5 or deviation > 1.0:
            return None
        offsets.append(offset)
    return round((offsets[1] - offsets[0]) * fps / SYNC_HZ, 2)


def _worst(pairs: Pairs, evidence: Evidence, scorer: Scorer) -> float | None:
    """Least probability, over windows of `WINDOW_S` with voice, of the clip's own offset within `IN_SYNC`.

    None in clips that are not longer than a window, and without a window with enough voice and face.
    """
    count, width = len(pairs.seen), round(WINDOW_S * SYNC_HZ)
    own = round(_offset(posterior(scorer.log_ratios(evidence)).lags)[0])
    found = []
    for begin in range(0, count - width + 1, round(WINDOW_STEP_S * SYNC_HZ)):
        window = pairs.cut(begin, begin + width)
        inside = window.evidence()
        if inside is not None and (window.voiced & window.seen).mean() >= VOICED_FRACTION:
            lags = posterior(np.roll(scorer.log_ratios(inside), -own)).lags
            found.append(float(lags[np.abs(LAGS) <= IN_SYNC].sum()))
    return round(min(found), 4) if found and count > width else None


# ---------------------------------------------------------------------------- the network


def _read_stack(arrays: Mapping[str, Floats], prefix: str, dilations: list[int]) -> tuple[Conv, ...]:
    read = [
        [arrays[f"{prefix}/{i}/{part}"].astype(np.float64) for part in ("weight", "bias")]
        for i in range(len(dilations))
    ]
    return tuple(
        Conv(weight, bias, dilation) for (weight, bias), dilation in zip(read, dilations, strict=True)
    )


def _run(stack: tuple[Conv, ...], features: Doubles) -> Doubles:
    """Vectors [F, D] of unit length of the features [F, n]."""
    x = features
    for index, conv in enumerate(stack):
        x = _convolve(conv, x if index == 0 else x * 0.5 * (1 + erf(x / np.sqrt(2))))
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _convolve(conv: Conv, x: Doubles) -> Doubles:
    """[F, in] -> [F, out], with zeros beyond the ends."""
    width = conv.weight.shape[2]
    reach = (width // 2) * conv.dilation
    padded = np.pad(x, ((reach, reach), (0, 0)))
    taps = [padded[k * conv.dilation : k * conv.dilation + len(x)] for k in range(width)]
    return np.asarray(sum(tap @ conv.weight[:, :, k].T for k, tap in enumerate(taps)) + conv.bias)


def _evidence(pairs: Doubles, seen: NDArray[np.bool_]) -> Evidence:
    """Evidence from the similarities [F, F] of every mouth with every audio frame."""
    count = pairs.shape[1]
    rows = np.flatnonzero(seen)
    pairs = pairs - pairs[rows].mean()
    by_lag = []
    for lag in LAGS:
        inside = rows[(rows - lag >= 0) & (rows - lag < count)]
        by_lag.append(pairs[inside, inside - lag].mean() if len(inside) else 0.0)
    # Nothing is in sync with audio that runs backwards, at any circular shift.
    # Shift k pairs mouth frame t with audio frame k - t, so that sums over k are sums over t + audio frame.
    shift = (rows[:, None] + np.arange(count)) % count
    backwards = np.bincount(shift.ravel(), pairs[rows].ravel(), minlength=count) / len(rows)
    deviation = float(np.sqrt(np.mean(np.square(backwards))))
    return Evidence(np.array(by_lag), deviation, len(rows) / SYNC_HZ)
