"""Fitting of the sync networks, and their calibration on pieces of known truth. Needs torch.

The shipped weights are fitted by `benchmarks/sync_fit.py` from nothing. A data set's own are fitted from the
shipped ones by `pipeline/sync_adaptation.py`. Importing this module does not import torch. `fit` does.

In shapes, P is pieces of a batch, F frames of a piece at `SYNC_HZ`, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from talkforge.curation.sync import contrastive
from talkforge.curation.sync.contrastive import LAGS, Calibration, Conv, Evidence, Network, Scorer
from talkforge.curation.sync.features import (
    NUM_BANDS,
    NUM_MEASURES,
    SYNC_HZ,
    audio_input,
    mouth_input,
    phone_input,
)
from talkforge.curation.sync.phones import NUM_PHONES
from talkforge.schemas.arrays import Doubles, Floats, Halves

STEPS, PIECES, PIECE_FRAMES = 400, 20, 75
"""Steps of a fit from nothing, pieces in a batch, and their length (3 s). Source: docs/sync.md."""

RATE, RATE_FROM_SHIPPED = 2e-3, 5e-4
"""Highest learning rate of a fit from nothing, and of one from other weights."""

WIDTH, VECTOR, DROPOUT = 96, 64, 0.2
KERNELS = ((5, 1), (3, 1), (3, 2))
"""Width and dilation of the convolutions of each stack."""

NEIGHBOURS = 2
"""Frames on either side of a frame that count neither as its partner nor as strangers."""

Rng = np.random.Generator


@dataclass(frozen=True)
class Talk:
    """One clip at `SYNC_HZ`, for fitting.

    Attributes:
        name: whatever tells it from others.
        person: who is seen.
        mouth: [frames, M], NaN where no face was found.
        bands: [frames, B].
        phones: [frames, P]; None where networks are fitted that know only bands.
        offset: by how many frames the audio must be delayed, as far as is known.
    """

    name: str
    person: str
    mouth: Floats
    bands: Floats
    phones: Halves | None = None
    offset: int = 0

    def heard(self, first: int, count: int, late: int = 0) -> tuple[Floats, Halves | None]:
        """Bands and phones of `count` frames from `first` on, the offset put right, and `late` frames late.

        Where the audio ends, it begins again.
        """
        frames = (np.arange(first, first + count) - self.offset - late) % len(self.bands)
        return self.bands[frames], None if self.phones is None else self.phones[frames]


# ---------------------------------------------------------------------------- the networks


def fit(talks: Sequence[Talk], seed: int, start: Network | None = None, steps: int = STEPS) -> Network:
    """Fit one network.

    Every frame must find its own audio among all frames of its piece, and the other way round, and every
    piece its own audio among the pieces of a batch.

    Args:
        talks: footage; `offset` is put right. The network takes phones where all of it has them.
        seed: of the weights, the pieces and their augmentation.
        start: weights to begin with; None begins from nothing, with batch norm.
        steps: batches.
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    phonetic = all(talk.phones is not None for talk in talks)
    if start:
        phonetic = start.audio[0].weight.shape[1] > NUM_BANDS
    inputs = (2 * NUM_MEASURES, NUM_BANDS + (NUM_PHONES if phonetic else 0))
    mouth_net, audio_net = map(_begun, (start.mouth, start.audio)) if start else map(_new, inputs)
    log_scale = torch.nn.Parameter(torch.tensor(float(np.log(10.0))))
    learned = [*mouth_net.parameters(), *audio_net.parameters(), log_scale]
    rate = RATE_FROM_SHIPPED if start else RATE
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    time = torch.arange(PIECE_FRAMES)
    apart = (time[:, None] - time[None]).abs()
    ignored = (apart > 0) & (apart <= NEIGHBOURS)
    own, own_piece = time.expand(PIECES, PIECE_FRAMES), torch.arange(PIECES)
    for _ in range(steps):
        seeing, hearing = (torch.from_numpy(one).float() for one in _batch(talks, rng, phonetic))
        mouth = functional.normalize(mouth_net(seeing), dim=1)
        audio = functional.normalize(audio_net(hearing), dim=1)
        scale = log_scale.exp()
        frames = (torch.einsum("pdt,pds->pts", mouth, audio) * scale).masked_fill(ignored, -1e4)
        together = torch.einsum("pdt,qdt->pq", mouth, audio) / PIECE_FRAMES
        pieces = 3 * scale * (together - torch.einsum("pd,qd->pq", mouth.mean(2), audio.mean(2)))
        loss = _both_ways(frames, own) + 0.5 * _both_ways(pieces, own_piece)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Network(_folded(mouth_net.eval()), _folded(audio_net.eval()))


def _both_ways(similarity: Any, own: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return (cross_entropy(similarity, own) + cross_entropy(similarity.transpose(-1, -2), own)) / 2


def _new(inputs: int) -> Any:
    """A stack with random weights."""
    from torch import nn

    layers: list[Any] = []
    for width, dilation in KERNELS:
        padding = (width // 2) * dilation
        layers += [
            nn.Conv1d(inputs, WIDTH, width, padding=padding, dilation=dilation),
            nn.BatchNorm1d(WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
        ]
        inputs = WIDTH
    return nn.Sequential(*layers, nn.Conv1d(WIDTH, VECTOR, 1))


def _begun(stack: Sequence[Conv]) -> Any:
    """A stack with the weights of another, whose batch norms are folded in already."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for conv in stack:
        outputs, inputs, width = conv.weight.shape
        layer = nn.Conv1d(
            inputs, outputs, width, padding=(width // 2) * conv.dilation, dilation=conv.dilation
        )
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(conv.weight))
            layer.bias.copy_(torch.from_numpy(conv.bias))
        layers += [layer, nn.GELU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*layers[:-2])


def _folded(stack: Any) -> tuple[Conv, ...]:
    """The stack for numpy, with each batch norm in the convolution before it."""
    from torch import nn

    found = []
    layers = list(stack)
    for index, layer in enumerate(layers):
        if not isinstance(layer, nn.Conv1d):
            continue
        weight, bias = (part.detach().double().numpy().copy() for part in (layer.weight, layer.bias))
        norm = layers[index + 1] if index + 1 < len(layers) else None
        if isinstance(norm, nn.BatchNorm1d):
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
            weight = weight * scale[:, None, None]
            mean, shift = (part.detach().double().numpy() for part in (norm.running_mean, norm.bias))
            bias = (bias - mean) * scale + shift
        found.append(Conv(weight, bias, int(layer.dilation[0])))
    return tuple(found)


def _batch(talks: Sequence[Talk], rng: Rng, phonetic: bool) -> tuple[Doubles, Doubles]:
    """Pieces of random clips, augmented.

    A clip is drawn by the root of its length, so that one speaker with much footage does not crowd out
    others.
    """
    chance = np.sqrt([min(len(talk.mouth), 500) for talk in talks])
    mouths, audios = [], []
    for index in rng.choice(len(talks), PIECES, p=chance / chance.sum()).tolist():
        mouth, bands, phones = _piece(talks[index], rng, phonetic)
        mouths.append(_spoilt_mouth(mouth, rng).T)
        heard = _spoilt_audio(bands, talks[int(rng.integers(len(talks)))].bands, rng)
        audios.append((heard if phones is None else _with_phones(heard, phones, rng)).T)
    return np.stack(mouths), np.stack(audios)


def _piece(talk: Talk, rng: Rng, phonetic: bool = False) -> tuple[Doubles, Doubles, Doubles | None]:
    """Mouth, bands and, for a phonetic network, phones of a piece at a speed of 0.84 to 1.2."""
    speed, last = np.exp(rng.uniform(-0.18, 0.18)), len(talk.mouth) - 1
    start = rng.uniform(0, max(last - (PIECE_FRAMES - 1) * speed, 0))
    instants = np.clip(start + np.arange(PIECE_FRAMES) * speed, 0, last)
    seen = np.asarray(np.isfinite(talk.mouth).all(axis=1))
    mouth = np.where(seen[:, None], talk.mouth, np.nanmean(talk.mouth, axis=0))
    heard = np.clip(instants - talk.offset, 0, last)
    phones = (
        at_instants(talk.phones.astype(np.float64), heard) if phonetic and talk.phones is not None else None
    )
    return at_instants(mouth, instants), at_instants(talk.bands, heard), phones


def at_instants(rows: NDArray[np.floating], instants: Doubles) -> Doubles:
    """Rows [F, n] at instants between frames, interpolated linearly.

    Args:
        rows: one a frame.
        instants: [T], 0 to F - 1.
    """
    before = np.floor(instants).astype(int)
    weight = (instants - before)[:, None]
    return np.asarray(
        rows[before] * (1 - weight) + rows[np.minimum(before + 1, len(rows) - 1)] * weight, np.float64
    )


def _spoilt_mouth(mouth: Doubles, rng: Rng) -> Doubles:
    """The network's input, each measure louder or softer, a tenth missing, with noise."""
    found, _ = mouth_input(mouth)
    gain = np.exp(0.3 * rng.normal(size=NUM_MEASURES)) * (rng.random(NUM_MEASURES) > 0.1)
    return np.asarray(found * np.tile(gain, 2) + 0.2 * rng.uniform(0, 1.5) * rng.normal(size=found.shape))


def _spoilt_audio(bands: Doubles, other: Floats, rng: Rng) -> Doubles:
    """The network's input, with another voice or noise beneath, another vocal tract, and holes."""
    if rng.random() < 0.25:
        start = rng.integers(0, max(len(other) - len(bands), 1))
        below = np.resize(other[start : start + len(bands)], bands.shape)
        bands = np.logaddexp(bands, below - rng.uniform(1, 8))
    if rng.random() < 0.4:
        level = np.percentile(bands, 95) - rng.uniform(1.5, 8)
        tilt = np.linspace(0, 2 * rng.normal(), NUM_BANDS)
        bands = np.logaddexp(bands, level + tilt + 0.7 * rng.normal(size=bands.shape))
    places = np.clip(np.arange(NUM_BANDS) * np.exp(rng.uniform(-0.1, 0.1)), 0, NUM_BANDS - 1)
    found = audio_input(at_instants(bands.T, places).T)
    found += 0.2 * rng.normal(size=found.shape)
    for axis, longest in ((0, 12), (1, 5)):
        length = rng.integers(0, longest + 1)
        start = rng.integers(0, found.shape[axis] - length + 1)
        hole = (slice(start, start + length), slice(None))
        found[hole[::-1] if axis else hole] = 0
    return found


def _with_phones(heard: Doubles, phones: Doubles, rng: Rng) -> Doubles:
    """Spoilt bands beside phones of which each is louder or softer, a tenth missing, with noise and a hole.

    Now and then one of the two is missing altogether, so that the network can do with either.
    """
    spoken = phone_input(phones) + 0.3 * rng.uniform(0, 1.5) * rng.normal(size=phones.shape)
    spoken *= np.exp(0.3 * rng.normal(size=NUM_PHONES)) * (rng.random(NUM_PHONES) > 0.1)
    length = rng.integers(0, 13)
    start = rng.integers(0, len(spoken) - length + 1)
    spoken[start : start + length] = 0
    chance = rng.random()
    return np.concatenate([heard * (chance >= 0.15), spoken * (not 0.15 <= chance < 0.3)], axis=1)


# ---------------------------------------------------------------------------- pieces of known truth


@dataclass(frozen=True)
class Case:
    """A piece of known truth: its evidence, and the lag at which it is in sync, None where at none."""

    person: str
    kind: str
    length_s: float
    lag: int | None
    evidence: Evidence


SHIFTS = (2, 3, 4, 5, 6, 8, 10, 12, 15)
"""Frames by which the audio of a piece is moved either way: 80 to 600 ms."""

STRANGERS = 3
"""Other people's voices that each piece is given."""


def cases(
    talks: Sequence[Talk], scorer: Scorer, length_s: float, others: Sequence[Talk], rng: Rng
) -> list[Case]:
    """Every piece as it is, shifted, with the voices of other people, and with a picture that stands still.

    The voices are taken from anywhere ("voice"), and from where their loudness is most like that of the
    piece's own audio, at one of three speeds ("rhythm"): speech and pauses come at the same times then, as in
    a dub.

    Args:
        talks: clips whose audio belongs to the mouth.
        scorer: gives the evidence.
        length_s: length of a piece; clips between 0.93 of it and twice as long give one piece.
        others: where strange voices come from.
        rng: draws the voices, and the tracker's noise on a still face.
    """
    frames, found = round(length_s * SYNC_HZ), []

    def add(kind: str, lag: int | None, mouth: Floats, heard: tuple[Floats, Halves | None]) -> None:
        evidence = scorer.evidence(mouth, heard[0], SYNC_HZ, heard[1])
        if evidence is not None:
            found.append(Case(talk.person, kind, length_s, lag, evidence))

    for talk in talks:
        count = len(talk.mouth)
        parts = max(count // frames, 1) if count >= 0.93 * frames else 0
        strangers = [
            other for other in others if other.person != talk.person and len(other.bands) >= frames / 2
        ]
        for part in range(parts):
            start = part * count // parts
            mouth = talk.mouth[start : min(start + frames, count)]
            add("true", 0, mouth, talk.heard(start, len(mouth)))
            for late in SHIFTS:
                sign = int(rng.choice((-1, 1)))
                add(f"shift {late}", -sign * late, mouth, talk.heard(start, len(mouth), sign * late))
            for index in rng.choice(len(strangers), min(STRANGERS, len(strangers)), replace=False):
                voice = strangers[index]
                first = rng.integers(0, max(len(voice.bands) - len(mouth), 0) + 1)
                add("voice", None, mouth, voice.heard(int(first), len(mouth)))
                add("rhythm", None, mouth, _in_rhythm(talk.heard(start, len(mouth))[0], voice))
            still = np.nanmedian(mouth, axis=0) + 1e-3 * rng.normal(size=mouth.shape)
            add("frozen", None, still.astype(np.float32), talk.heard(start, len(mouth)))
    return found


SPEEDS = (0.85, 1.0, 1.18)
"""Speeds at which a strange voice is tried for the rhythm of the piece's own audio. Source: ours."""


def _in_rhythm(own: Floats, voice: Talk) -> tuple[Floats, Halves | None]:
    """Bands and phones of as many frames of a voice as `own` [F, B] has, in its rhythm as far as it goes."""
    wanted, best = _loudness(own), (-np.inf, np.zeros(len(own)))
    for speed in SPEEDS:
        instants = np.arange(0, len(voice.bands) - 1, speed)
        if len(instants) < len(own):
            instants = np.resize(instants, len(own))
        windows = np.lib.stride_tricks.sliding_window_view(
            _loudness(at_instants(voice.bands, instants)), len(own)
        )
        spread = np.maximum(windows.std(axis=1) * wanted.std(), 1e-9)
        alike = ((windows - windows.mean(axis=1, keepdims=True)) * wanted).mean(axis=1) / spread
        place = int(alike.argmax())
        if alike[place] > best[0]:
            best = (float(alike[place]), instants[place : place + len(own)])
    bands = at_instants(voice.bands, best[1]).astype(np.float32)
    return bands, None if voice.phones is None else at_instants(voice.phones, best[1]).astype(np.float16)


def _loudness(bands: NDArray[np.floating]) -> Doubles:
    """Log power over all bands [F], minus its mean."""
    found = np.logaddexp.reduce(bands.astype(np.float64), axis=1)
    return np.asarray(found - found.mean())


def calibrate(found: Sequence[Case]) -> Calibration:
    """The calibration under which the truth of the cases is most likely, weighted as the prior has it.

    Args:
        found: cases of people that their networks were not fitted on.
    """
    by_lag = np.stack([case.evidence.by_lag for case in found])
    root = np.sqrt([case.evidence.seen_s for case in found])[:, None]
    significance = by_lag / np.maximum([case.evidence.deviation for case in found], 1e-9)[:, None]
    # A true offset is known to a frame; the last entry of a row stands for "unrelated".
    truth = np.zeros((len(found), len(LAGS) + 1), bool)
    for row, case in zip(truth, found, strict=True):
        row[:-1] = case.lag is not None and np.abs(LAGS - (case.lag or 0)) <= 1
        row[-1] = case.lag is None
    groups = {"true": 0.4, "shift": 0.1, "voice": 0.2, "rhythm": 0.2, "frozen": 0.1}
    kinds = np.array([case.kind.split()[0] for case in found])
    weight = sum((kinds == kind) * share / max((kinds == kind).sum(), 1) for kind, share in groups.items())
    prior = np.append(np.log(contrastive._PRIOR), np.log(1 - contrastive.PRIOR_TOGETHER))

    def loss(numbers: Doubles) -> float:
        ratios = root * (numbers[0] * by_lag - numbers[2]) + numbers[1] * significance - numbers[3]
        joint = np.concatenate([ratios, np.zeros((len(found), 1))], axis=1) + prior
        joint -= joint.max(axis=1, keepdims=True)
        weights = np.exp(joint)
        likely = (weights * truth).sum(axis=1) / weights.sum(axis=1)
        return float(-(weight * np.log(np.maximum(likely, 1e-12))).sum())

    best = minimize(loss, np.array([20.0, 0.5, 1.0, 1.0]), method="L-BFGS-B", bounds=[(0, None)] * 4)
    return Calibration(*(round(float(number), 4) for number in best.x))


NOT_CALIBRATED = Calibration(20.0, 0.5, 1.0, 1.0)
"""Evidence does not depend on it."""


def by_folds(
    talks: Sequence[Talk], folds: int, start: Sequence[Network] = (), steps: int = STEPS
) -> list[tuple[list[Talk], Scorer]]:
    """The clips of each fold of people, with a scorer whose new network was fitted on the other people.

    Args:
        talks: footage.
        folds: number of folds.
        start: networks that stay in the scorer, and of which the first is where the new one begins.
        steps: batches of each fit.
    """
    people = sorted({talk.person for talk in talks}, key=lambda name: hashlib.sha256(name.encode()).digest())
    found = []
    for fold in range(folds):
        held = set(people[fold::folds])
        others = [talk for talk in talks if talk.person not in held]
        network = fit(others, fold, start[0] if start else None, steps)
        scorer = Scorer("fold", (*start, network), NOT_CALIBRATED)
        found.append(([talk for talk in talks if talk.person in held], scorer))
    return found
