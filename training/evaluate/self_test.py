"""Does the evaluation rank what is known to be better above what is known to be worse?

The true videos stand in for generated ones, once as they are and once spoiled in a known way. Each check is
one comparison that a sound evaluation must get right. The table of these checks is part of every report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from talkforge.schemas.arrays import Bytes, Doubles, Landmarks
from talkforge.schemas.progress import ProgressCallback, counted, no_progress
from talkforge.schemas.units import AUDIO_HZ
from talkforge.training.evaluate.figures import estimate
from talkforge.training.evaluate.framing import PreparedPair, encoded
from talkforge.training.evaluate.measures import (
    Models,
    Values,
    VideoTrace,
    of_pair,
    trace_frames,
    values_of,
    with_sound,
)
from talkforge.training.evaluate.published import PaperNetworks, distance

SHIFT_S = 0.4
"""How late the sound comes in the shifted videos, s: beyond every delay that passes for in sync."""

WORSE_CRF = 28
"""Of the encoding once more: detail is lost, faces and lips stay."""

NOISE_LEVELS = 12.0
"""Standard deviation of the noise that is added, grey levels."""

VERSIONS = {
    "truth": "the true video itself",
    "re-encoded": f"encoded once more by x264, crf {WORSE_CRF}",
    "shifted": f"its sound {1000 * SHIFT_S:.0f} ms late",
    "swapped": "another person's video under its sound",
    "frozen": "its first frame all the time",
    "noise": f"noise of {NOISE_LEVELS:.0f} grey levels added to each frame",
}
"""What stands in for the generated video, in words."""


@dataclass(frozen=True)
class TestedVideo:
    """One true video for the self-test.

    Attributes:
        pair: the prepared pair, of which the true half is used.
        trace: of the true video.
        values: all measures of the true video.
        features: of the true video, as of `PaperNetworks.of_video`.
    """

    pair: PreparedPair
    trace: VideoTrace
    values: Values
    features: Mapping[str, Doubles]


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        version: what was spoiled, a key of `VERSIONS`.
        metric: name of the metric that must tell.
        expected: in words, with the bound.
        found: the value.
        compared: the value that it is compared with, or None where the bound is a number.
        passed: whether it is as expected; None where it could not be measured.
    """

    version: str
    metric: str
    expected: str
    found: float | None
    compared: float | None
    passed: bool | None


@dataclass(frozen=True)
class Expectation:
    """What a check expects.

    Attributes:
        version: as of `Check`.
        metric: likewise.
        words: likewise.
        holds: from the value, and the one that it is compared with, to whether it is as expected.
        than: the version whose value it is compared with; empty: a number.
    """

    version: str
    metric: str
    words: str
    holds: Callable[[float, float], bool]
    than: str = ""


EXPECTATIONS = (
    Expectation("truth", "lip_aperture_r", "1", lambda v, _: v > 0.9999),
    Expectation("truth", "lip_aperture_ratio", "1", lambda v, _: abs(v - 1) < 1e-4),
    Expectation("truth", "fid", "0", lambda v, _: abs(v) < 0.01),
    Expectation("re-encoded", "lip_aperture_r", "above 0.5", lambda v, _: v > 0.5),
    Expectation("re-encoded", "sync_probability", "more than shifted", lambda v, o: v > o, "shifted"),
    Expectation("re-encoded", "sharpness", "less than the truth", lambda v, o: v < o, "truth"),
    Expectation(
        "shifted", "sync_probability", "less than half of the truth's", lambda v, o: v < o / 2, "truth"
    ),
    Expectation(
        "shifted",
        "av_delay_ms",
        f"{1000 * SHIFT_S:.0f} less than the truth's, to within 80",
        lambda v, o: abs(v - o + 1000 * SHIFT_S) <= 80,
        "truth",
    ),
    Expectation("shifted", "sync_c", "less than the truth", lambda v, o: v < o, "truth"),
    Expectation("swapped", "identity_similarity", "less than re-encoded", lambda v, o: v < o, "re-encoded"),
    Expectation("swapped", "lip_aperture_r", "less than re-encoded", lambda v, o: v < o, "re-encoded"),
    Expectation("swapped", "sync_probability", "less than the truth", lambda v, o: v < o, "truth"),
    Expectation("frozen", "frozen_fraction", "above 0.9", lambda v, _: v > 0.9),
    Expectation("frozen", "lip_aperture_r", "below 0.5", lambda v, _: abs(v) < 0.5),
    Expectation("frozen", "still_fraction", "above 0.9", lambda v, _: v > 0.9),
    Expectation(
        "frozen", "flow_subject", "less than a tenth of the truth's", lambda v, o: v < o / 10, "truth"
    ),
    Expectation(
        "frozen", "head_motion_deg", "less than half of the truth's", lambda v, o: v < o / 2, "truth"
    ),
    Expectation("noise", "jitter", "more than the truth", lambda v, o: v > o, "truth"),
    Expectation("noise", "sharpness", "more than the truth", lambda v, o: v > o, "truth"),
    Expectation("noise", "fid", "more than re-encoded", lambda v, o: v > o, "re-encoded"),
)
"""Every comparison, with its bound. Those of metrics that are not computed are left out."""


def run(
    tested: Sequence[TestedVideo],
    models: Models,
    networks: PaperNetworks,
    folder: Path,
    show: ProgressCallback = no_progress,
) -> tuple[list[Check], dict[str, Values]]:
    """Measure every version of the videos, and check how they rank.

    Args:
        tested: true videos; a few suffice.
        models: the networks of the measures that need no download.
        networks: those of the paper's metrics.
        folder: for the spoiled videos.
        show: gets the progress.

    Returns:
        The checks, and the mean of each measure for each version.
    """
    rows: dict[str, list[Values]] = {version: [] for version in VERSIONS}
    features: dict[str, list[Mapping[str, Doubles]]] = {version: [] for version in VERSIONS}
    for number, one in enumerate(tested):
        show(counted("self-test", number, len(tested), "videos"))
        for version, values, found in _versions(one, _partner(tested, number), models, networks, folder):
            rows[version].append(values)
            features[version].append(found)
    show(counted("self-test", len(tested), len(tested), "videos"))
    means: dict[str, Values] = {}
    for version, measured in rows.items():
        if measured:
            names = dict.fromkeys(name for row in measured for name in row)
            means[version] = {name: estimate([row.get(name) for row in measured]).mean for name in names}
            for name in ("fid", "fvd"):
                sides = [[one[name] for one in group if name in one] for group in (
                    features[version], [one.features for one in tested])]  # fmt: skip
                means[version][name] = distance(name, *sides)
    return checks(means), means


def checks(means: Mapping[str, Values]) -> list[Check]:
    """The comparisons that must come out as they should.

    Args:
        means: mean of each measure for each version that was measured.
    """
    found = []
    for one in EXPECTATIONS:
        if one.version not in means or (one.than and one.than not in means):
            continue
        if means["truth"].get(one.metric) is None and one.metric in ("fid", "sync_c"):
            continue
        value = means[one.version].get(one.metric)
        other = means[one.than].get(one.metric) if one.than else None
        known = value is not None and (not one.than or other is not None)
        passed = one.holds(value or 0.0, other or 0.0) if known else None
        found.append(Check(one.version, one.metric, one.words, value, other, passed))
    return found


def _partner(tested: Sequence[TestedVideo], number: int) -> TestedVideo | None:
    """The video of the person who is least like that of a video, at its rate; None where it is alone."""
    own = tested[number]
    others = [one for k, one in enumerate(tested) if k != number and one.trace.fps == own.trace.fps]
    if not len(own.trace.identities):
        return others[0] if others else None
    known = [one for one in others if len(one.trace.identities)]
    return min(known, key=lambda one: float(one.trace.identities[0] @ own.trace.identities[0]), default=None)


def _versions(
    one: TestedVideo, partner: TestedVideo | None, models: Models, networks: PaperNetworks, folder: Path
) -> Iterator[tuple[str, Values, Mapping[str, Doubles]]]:
    """Each version of a video with its measures and features."""
    pair, sound = one.pair, one.pair.true_sound
    itself = {**one.values, **of_pair(one.trace, one.trace)}
    yield "truth", itself, one.features
    if sound is not None:
        late = np.concatenate([np.zeros(round(SHIFT_S * AUDIO_HZ), np.float32), sound])[: len(sound)]
        heard = with_sound(one.trace, late, models)
        values, features = networks.of_video(pair.truth, one.trace, late)
        yield "shifted", {**itself, **heard, **values}, features
    if partner is not None:
        frames = min(pair.num_frames, partner.pair.num_frames)
        other, own = _shortened(partner.trace, frames), _shortened(one.trace, frames)
        short = None if sound is None else sound[: round(frames / pair.fps * AUDIO_HZ)]
        yield "swapped", values_of(other, own, short, models), {}
    first = next(iter(pair.truth))
    spoiled: dict[str, tuple[Iterable[Bytes], int | None]] = {
        "re-encoded": (pair.truth, WORSE_CRF),
        "frozen": ((first for _ in range(pair.num_frames)), None),
        "noise": (_noisy(pair.truth), None),
    }
    for version, (frames_of, crf) in spoiled.items():
        path = folder / f"{version}.mp4"
        file = encoded(frames_of, pair.fps, path, *([] if crf is None else [crf]))
        trace = trace_frames(file, pair.num_frames, pair.fps, models, one.trace.boxes)
        values, features = networks.of_video(file, trace, sound)
        yield version, {**values_of(trace, one.trace, sound, models), **values}, features


def _shortened(trace: VideoTrace, frames: int) -> VideoTrace:
    """The first frames of a trace. Measures of the whole video stay."""
    marks = trace.landmarks
    short = Landmarks(marks.points[:frames], marks.blendshapes[:frames], marks.angles_deg[:frames])
    return replace(trace, landmarks=short)


def _noisy(frames: Iterable[Bytes]) -> Iterator[Bytes]:
    generator = np.random.default_rng(0)
    for rgb in frames:
        noise = generator.normal(0, NOISE_LEVELS, rgb.shape)
        yield np.clip(rgb + noise + 0.5, 0, 255).astype(np.uint8)
