"""Error curves of the sync scorer on people that it was not fitted on: the figures of docs/sync.md.

    python -m benchmarks.sync FOLDER            # FOLDER has index.csv: file, folder, person_id, may_fit

Every true clip whose row says `may_fit` = no is cut into pieces of 2, 3, 6 and 10 s. Each is scored as it
is, with its audio moved either way, with the voices of other people (from anywhere, and in the rhythm of its
own audio), and with a picture that stands still. Longer pieces are scored with audio that drifts, and with
another's voice for a part of the time. Files in the folder `fake` are scored as they are. With `--covers N`
the mouths of N people are covered, too, and with `--light-asd N` Light-ASD sees N people beside the scorer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from scipy.stats import spearmanr

from benchmarks import judgement
from benchmarks.material import NO_SPEAKER
from benchmarks.sync_fit import footage, talks_of
from talkforge.curation import clips, media, scan, trace
from talkforge.curation.audio import vad
from talkforge.curation.face import detect, landmarks
from talkforge.curation.face.crops import to_asd
from talkforge.curation.media import probe
from talkforge.curation.sync import SPEAKING_FRACTION, active_speaker, contrastive
from talkforge.curation.sync.contrastive import IN_SYNC, LAGS, Scorer
from talkforge.curation.sync.features import SYNC_HZ, audio_bands, mouth_measures
from talkforge.curation.sync.fitting import SHIFTS, Case, Talk, at_instants, cases
from talkforge.curation.sync.phones import PhoneRecogniser
from talkforge.curation.sync.speaker_scorer import speech_mask
from talkforge.curation.verdict import repair_s
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import NUM_LANDMARKS, Bytes, Doubles, Floats, Landmarks
from talkforge.schemas.config import MeasureConfig, Thresholds
from talkforge.schemas.records import Clip, Input, Speaker, Sync
from talkforge.schemas.units import AUDIO_HZ

LENGTHS_S = (2.0, 3.0, 6.0, 10.0)
FAR_SHIFT = 6
"""Frames from which a shift has to be found: 240 ms. Source: ours, twice the offset that `curate` accepts."""


def main(
    folder: Path,
    cache: Path | None = None,
    pictures: Path | None = None,
    weights: Path = contrastive.WEIGHTS_PATH,
    covers: int = 0,
    light_asd: int = 0,
) -> None:
    """Print the tables, and draw the pictures.

    Args:
        folder: people, with `index.csv`.
        cache: folder that keeps the measured features between runs.
        pictures: folder for the pictures; None draws none.
        weights: scorer to measure.
        covers: number of people whose mouths are covered: their videos are read and measured anew.
        light_asd: number of people whom Light-ASD sees; likewise. Needs its weights and torch.
    """
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scorer = Scorer.load(weights)
    held_out = {
        row["file"]: row["person_id"] for row in rows if row["folder"] == "real" and row["may_fit"] == "no"
    }
    talks = footage([folder / "real"], held_out, cache)
    rng = np.random.default_rng(0)
    found = [case for length in LENGTHS_S for case in cases(talks, scorer, length, talks, rng)]
    people, seconds = len({talk.person for talk in talks}), sum(len(talk.mouth) for talk in talks) / SYNC_HZ
    typer.echo(
        f"{scorer.name}: {people} people that it was not fitted on, {len(talks)} clips, {seconds:.0f} s\n"
    )
    by_length(found, scorer)
    by_shift(found, scorer)
    by_threshold(found, scorer)
    by_repair(found, scorer)
    by_drift(talks, scorer)
    by_turn(talks, scorer, np.random.default_rng(0))
    by_person(found, scorer)
    by_cover(folder, covers, scorer)
    by_light_asd(watched(folder / "real", held_out, light_asd), scorer)
    reliable = reliability(found, scorer)
    fakes(folder, [row for row in rows if row["folder"] == "fake"], scorer, cache)
    if pictures:
        draw(pictures, found, scorer, reliable)


def probability(case: Case, scorer: Scorer) -> float:
    """`sync_probability` of a case."""
    return float(contrastive.posterior(scorer.log_ratios(case.evidence)).lags[np.abs(LAGS) <= IN_SYNC].sum())


def _of(found: Sequence[Case], scorer: Scorer, wanted: Callable[[Case], bool]) -> Doubles:
    return np.array([probability(case, scorer) for case in found if wanted(case)])


def _kind(found: Sequence[Case], scorer: Scorer, kind: str) -> Doubles:
    return _of(found, scorer, lambda case: case.kind == kind)


def _off(found: Sequence[Case], scorer: Scorer, late: int) -> Doubles:
    return _of(found, scorer, lambda case: case.lag is not None and abs(case.lag) == late)


def _far(case: Case) -> bool:
    return case.lag is not None and abs(case.lag) >= FAR_SHIFT


def auc(high: Doubles, low: Doubles) -> float:
    """Probability that a random one of `high` is above a random one of `low`; ties count half."""
    return (
        float(((high[:, None] > low) + 0.5 * (high[:, None] == low)).mean())
        if high.size and low.size
        else float("nan")
    )


def by_length(found: Sequence[Case], scorer: Scorer) -> None:
    """AUC, false rejects and false accepts at the shipped threshold, and how well offsets are recovered."""
    least = Thresholds().min_sync_probability or 0.0
    typer.echo(
        "| pieces of | number | AUC: other voice | in the same rhythm | 240 ms and more off | frozen |"
        " true kept | other voice accepted | in the same rhythm | 240 ms off accepted | frozen accepted |"
        " shifts found within 1 frame of the piece's own zero |"
    )
    typer.echo("|---" * 12 + "|")
    for length_s in LENGTHS_S:
        own = [case for case in found if case.length_s == length_s]
        true = _of(own, scorer, lambda case: case.kind == "true")
        wrong = [
            _of(own, scorer, test)
            for test in (
                lambda c: c.kind == "voice",
                lambda c: c.kind == "rhythm",
                _far,
                lambda c: c.kind == "frozen",
            )
        ]
        shown = [f"{auc(true, one):.3f}" for one in wrong] + [f"{(true >= least).mean():.0%}"]
        shown += [f"{(one >= least).mean():.1%}" for one in wrong]
        typer.echo(f"| {length_s:g} s | {len(true)} | {' | '.join(shown)} | {_recovered(own):.0%} |")


def _recovered(own: Sequence[Case]) -> float:
    """Fraction of the pieces moved by 3 to 10 frames whose best lag moves with them, to a frame."""
    right, zero = [], 0
    for case in own:  # the shifts of a piece follow the piece as it is
        best = int(LAGS[case.evidence.by_lag.argmax()])
        if case.kind == "true":
            zero = best
        elif case.lag is not None and 3 <= abs(case.lag) <= 10:
            right.append(abs(best - zero - case.lag) <= 1)
    return float(np.mean(right))


def by_shift(found: Sequence[Case], scorer: Scorer) -> None:
    """How many pieces are accepted whose audio is off by so much."""
    least = Thresholds().min_sync_probability or 0.0
    typer.echo(
        "\n| audio off by | " + " | ".join(f"{1000 * late / SYNC_HZ:.0f} ms" for late in (0, *SHIFTS)) + " |"
    )
    typer.echo("|---" * (len(SHIFTS) + 2) + "|")
    for length_s in LENGTHS_S:
        own = [case for case in found if case.length_s == length_s]
        shown = [(_off(own, scorer, late) >= least).mean() for late in (0, *SHIFTS)]
        typer.echo(f"| {length_s:g} s accepted | " + " | ".join(f"{value:.0%}" for value in shown) + " |")


def by_threshold(found: Sequence[Case], scorer: Scorer) -> None:
    """False rejects and false accepts by threshold."""
    typer.echo(
        "\n| threshold | "
        + " | ".join(f"{length:g} s: true kept, voice, 240 ms" for length in LENGTHS_S)
        + " |"
    )
    typer.echo("|---" * (len(LENGTHS_S) + 1) + "|")
    for least in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        shown = []
        for length_s in LENGTHS_S:
            own = [case for case in found if case.length_s == length_s]
            true, voice = (_kind(own, scorer, kind) for kind in ("true", "voice"))
            far = _of(own, scorer, _far)
            shown.append(
                f"{(true >= least).mean():.0%}, {(voice >= least).mean():.1%}, {(far >= least).mean():.1%}"
            )
        typer.echo(f"| {least:g} | " + " | ".join(shown) + " |")


def by_repair(found: Sequence[Case], scorer: Scorer) -> None:
    """How many pieces `thresholds.repair_sync` moves of those that are off, true and wrong."""
    typer.echo(
        "\n| pieces of | off by 240 to 400 ms: moved | of these not within 1 frame of the piece's own zero |"
        " other voice moved | frozen moved | true moved |\n|---|---|---|---|---|---|"
    )
    thresholds = Thresholds(repair_sync=True)
    for length_s in LENGTHS_S:
        moved: dict[str, list[bool]] = {"off": [], "voice": [], "frozen": [], "true": []}
        wrong, zero = [], 0
        for case in (case for case in found if case.length_s == length_s):
            sync = contrastive.by_evidence(case.evidence, SYNC_HZ, scorer)
            assert sync.sync_offset_frames is not None
            if case.kind == "true":
                zero = sync.sync_offset_frames
            kind = "off" if _far(case) and abs(case.lag or 0) <= 10 else case.kind
            if kind in moved:
                moved[kind].append(repair_s(sync.model_dump() | {"fps": SYNC_HZ}, thresholds) != 0)
                if kind == "off" and moved[kind][-1]:
                    wrong.append(abs(sync.sync_offset_frames - zero - (case.lag or 0)) > 1)
        off, *others = (f"{np.mean(moved[kind]):.1%}" for kind in moved)
        typer.echo(f"| {length_s:g} s | {off} | {sum(wrong)} of {len(wrong)} | {' | '.join(others)} |")


def _long_pieces(talks: Sequence[Talk], length_s: float) -> Iterator[tuple[Talk, int, int]]:
    """Clip, first frame and number of frames of every piece."""
    frames = round(length_s * SYNC_HZ)
    for talk in talks:
        for part in range(len(talk.mouth) // frames):
            yield talk, part * frames, frames


def by_drift(talks: Sequence[Talk], scorer: Scorer) -> None:
    """How well drift is measured: the pieces that tell one, and its error."""
    typer.echo(
        "\n| pieces of | number | drift | true, frames | told | median error, frames | 90 % within, frames |"
        "\n|---|---|---|---|---|---|---|"
    )
    for length_s in (6.0, 10.0, 15.0):
        for rate in (0.0, 0.01, 0.02):
            errors, number, true = [], 0, rate * length_s / 2 * SYNC_HZ
            for talk, first, frames in _long_pieces(talks, length_s):
                heard = np.arange(frames) + rate * (np.arange(frames) - frames / 2)
                instants = np.clip(first + heard, 0, len(talk.bands) - 1)
                mouth, bands = talk.mouth[first : first + frames], at_instants(talk.bands, instants)
                spoken = (
                    None if talk.phones is None else at_instants(talk.phones, instants).astype(np.float16)
                )
                one = contrastive.score(mouth, bands.astype(np.float32), SYNC_HZ, scorer, spoken)
                number += 1
                if one.sync_drift_frames is not None:
                    errors.append(abs(one.sync_drift_frames - true))
            if errors:
                typer.echo(
                    f"| {length_s:g} s | {number} | {rate:.0%} | {true:.2f} | {len(errors) / number:.0%} |"
                    f" {np.median(errors):.2f} | {np.percentile(errors, 90):.2f} |"
                )


def by_turn(talks: Sequence[Talk], scorer: Scorer, rng: np.random.Generator) -> None:
    """Pieces of which a part has another's voice, over a mouth that talks on or that is still."""
    limits = Thresholds()
    typer.echo(
        "\n| pieces of | other voice for | number | `sync_probability` high enough |"
        " and `sync_worst_probability` | the same, mouth still meanwhile |\n|---|---|---|---|---|---|"
    )
    for length_s in (6.0, 10.0):
        for other_s in (0.0, 2.0, 3.0, 4.0, 5.0):
            passed: list[tuple[bool, ...]] = []
            for talk, first, frames in _long_pieces(talks, length_s):
                strangers = [one for one in talks if one.person != talk.person and len(one.bands) >= frames]
                stranger = strangers[int(rng.integers(len(strangers)))]
                own, others = talk.heard(first, frames), stranger.heard(0, frames)
                begin = frames - round(other_s * SYNC_HZ)
                bands, spoken = (
                    np.concatenate([a[:begin], b[begin:]])
                    for a, b in zip(own, others, strict=True)
                    if a is not None and b is not None
                )
                mouth = talk.mouth[first : first + frames]
                still = mouth.copy()
                noise = 1e-3 * rng.normal(size=mouth[begin:].shape)
                still[begin:] = np.nanmedian(mouth, axis=0) + noise
                one, silent = (
                    contrastive.score(shown, bands, SYNC_HZ, scorer, spoken) for shown in (mouth, still)
                )
                passed.append((_likely(one, limits), *(_whole(s, limits) for s in (one, silent))))
            shown_as = " | ".join(f"{value:.0%}" for value in np.mean(passed, axis=0))
            typer.echo(f"| {length_s:g} s | {other_s:g} s | {len(passed)} | {shown_as} |")


def _likely(sync: Sync, limits: Thresholds) -> bool:
    return (sync.sync_probability or 0.0) >= (limits.min_sync_probability or 0.0)


def _whole(sync: Sync, limits: Thresholds) -> bool:
    worst = sync.sync_worst_probability
    return _likely(sync, limits) and (worst is None or worst >= (limits.min_sync_worst_probability or 0.0))


def by_cover(folder: Path, number: int, scorer: Scorer) -> None:
    """Pieces of 3 s whose mouths are under a drawn cover, landmarks measured anew."""
    if not number:
        return
    landmarker, recogniser = (
        landmarks.FaceLandmarker(registry.weights("face_landmarker")),
        PhoneRecogniser(),
    )
    typer.echo("\n| mouth under | pieces | accepted | mean probability |\n|---|---|---|---|")
    pieces, least = judgement.people(folder, number, 3.0), Thresholds().min_sync_probability or 0.0
    covers = ("surgical mask", "mosaic", "rectangle", "microphone", "fingers")
    for kind in ("nothing", *covers):
        told = []
        for piece in pieces:
            make = judgement.clean if kind == "nothing" else judgement.under(kind)
            frames, samples = make(piece, piece)
            mouth = mouth_measures(_landmarks(frames, piece.points, landmarker))
            heard = (samples, len(mouth), judgement.FPS)
            one = contrastive.score(
                mouth, audio_bands(*heard), judgement.FPS, scorer, recogniser.measure(*heard)
            )
            told.append(one.sync_probability or 0.0)
        accepted = np.mean(np.array(told) >= least)
        typer.echo(f"| {kind} | {len(told)} | {accepted:.0%} | {np.mean(told):.2f} |")


def _landmarks(
    frames: Iterable[Bytes], places: Sequence[Floats | None], landmarker: landmarks.FaceLandmarker
) -> Landmarks:
    """Landmarks of the frames, looked for around where the face is known to be."""
    points, shapes = [np.full((NUM_LANDMARKS, 3), np.nan)], [np.full(52, np.nan)]
    place = next(at for at in places if at is not None)
    for rgb, at in zip(frames, places, strict=True):
        place = place if at is None else at
        low, high = place[:, :2].min(0), place[:, :2].max(0)
        left, top = np.maximum(low - (high - low) / 2, 0).astype(int)
        right, bottom = (high + (high - low) / 2).astype(int)
        found = landmarker.detect(np.ascontiguousarray(rgb[top:bottom, left:right]))
        points.append(points[0] if found is None else found.points)
        shapes.append(shapes[0] if found is None else found.blendshapes)
    rows = len(points) - 1
    arrays = (np.stack(points[1:]), np.stack(shapes[1:]), np.full((rows, 3), np.nan))
    return Landmarks(*(array.astype(np.float32) for array in arrays))


@dataclass(frozen=True)
class Watched:
    """The first seconds of a person, as both networks see and hear them.

    Attributes:
        person: who is seen.
        clip: the piece.
        mouth: [F, M] of `mouth_measures`.
        faces: uint8 [F, 112, 112] of `to_asd`.
        samples: float32 [N] at 16 kHz.
    """

    person: str
    clip: Clip
    mouth: Floats
    faces: Bytes
    samples: Floats


WATCHED_S, WATCHED_LEAST_S = 3.0, 2.0
"""Length of the pieces that Light-ASD sees, and of the shortest of them."""


def watched(folder: Path, person_of: Mapping[str, str], number: int) -> list[Watched]:
    """The first `WATCHED_S` of as many people, one piece each.

    Args:
        folder: the videos.
        person_of: file -> who is seen.
        number: people wanted.
    """
    config, found = MeasureConfig(), dict[str, Watched]()
    if not number:
        return []
    detector = detect.load_detector(config.scan)
    landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
    for name, person in person_of.items():
        if person in found or len(found) == number:
            continue
        video = probe.probe(folder / name, Input(uri=name), probe.content_hash(folder / name))
        end_s = min(video.end_s, video.start_s + WATCHED_S)
        seen = scan.scan(folder / name, video, video.start_s, end_s, config.scan, detector)
        candidates = clips.candidates(video, seen.tracks, (), config.clip)
        candidates = [one for one in candidates if one.clip.duration_s >= WATCHED_LEAST_S][:1]
        crops: list[Bytes] = []

        def keep(_: Clip, faces: Bytes, crops: list[Bytes] = crops) -> Speaker:
            crops.extend(to_asd(face) for face in faces)
            return NO_SPEAKER

        for result in trace.trace(folder / name, video, candidates, landmarker, None, config, keep).values():
            if isinstance(result, Exception):
                raise result
            clip = candidates[0].clip
            samples = media.read_audio(folder / name, video, clip.start_s, clip.end_s)
            found[person] = Watched(person, clip, mouth_measures(result.landmarks), np.stack(crops), samples)
    return list(found.values())


class Said(NamedTuple):
    """What is said of one piece: the scorer's probability, Light-ASD's mean logit over the frames with
    speech, and the fraction of these in which it sees the face speak."""

    probability: float
    logit: float
    speaking: float


def by_light_asd(pieces: Sequence[Watched], scorer: Scorer) -> None:
    """What Light-ASD and the scorer say of the same pieces, and how often they say the same."""
    if pieces:
        said = opinions(pieces, scorer)
        typer.echo(f"\nLight-ASD beside the scorer, {len(pieces)} people, pieces of {WATCHED_S:g} s\n")
        agreement(said)


def opinions(pieces: Sequence[Watched], scorer: Scorer) -> dict[str, list[Said]]:
    """By kind of piece, what both say of it.

    Pieces whose audio has no speech are left out: Light-ASD has no say there.

    Args:
        pieces: answer of `watched`.
        scorer: scorer to compare with.
    """
    network, recogniser = active_speaker.LightAsd(registry.weights("light_asd")), PhoneRecogniser()
    rng = np.random.default_rng(0)
    said: dict[str, list[Said]] = {}
    for index, piece in enumerate(pieces):
        own, count = piece.samples, len(piece.mouth)
        strangers = [n for n in range(len(pieces)) if n != index]
        others = rng.choice(strangers, min(2, len(strangers)), replace=False)
        late = round(rng.choice((-1, 1)) * 0.4 * AUDIO_HZ)
        noise = 1e-3 * rng.normal(size=piece.mouth.shape)
        still = (np.nanmedian(piece.mouth, axis=0) + noise).astype(np.float32)
        made = [("own voice", piece.mouth, piece.faces, own)]
        made += [
            ("other voice", piece.mouth, piece.faces, np.resize(pieces[n].samples, len(own))) for n in others
        ]
        made += [("400 ms off", piece.mouth, piece.faces, np.roll(own, late))]
        made += [("still face", still, np.repeat(piece.faces[:1], count, axis=0), own)]
        for kind, mouth, faces, samples in made:
            is_speech = speech_mask(piece.clip, vad.segments(samples, piece.clip.start_s))
            heard = (samples, count, piece.clip.fps)
            one = contrastive.score(
                mouth, audio_bands(*heard), piece.clip.fps, scorer, recogniser.measure(*heard)
            )
            logits = network.score(faces, samples, piece.clip.fps)
            speaking = active_speaker.speaking_fraction(logits, is_speech)
            if one.sync_probability is not None and speaking is not None:
                row = Said(one.sync_probability, float(logits[is_speech].mean()), speaking)
                said.setdefault(kind, []).append(row)
    return said


def agreement(said: Mapping[str, Sequence[Said]]) -> None:
    """Decisions of both by kind of piece, how often they are the same, AUC, and rank correlation."""
    least = Thresholds().min_sync_probability or 0.0
    typer.echo(
        "| pieces | number | accepted by the scorer | Light-ASD sees speaking | the same decision |"
        " AUC of own voices over these: scorer | Light-ASD |\n|---|---|---|---|---|---|---|"
    )
    true = np.array(said["own voice"])
    for kind, rows in said.items():
        found = np.array(rows)
        accepted, speaks = found[:, 0] >= least, found[:, 2] > SPEAKING_FRACTION
        apart = ["", ""] if kind == "own voice" else [f"{auc(true[:, k], found[:, k]):.3f}" for k in (0, 1)]
        typer.echo(
            f"| {kind} | {len(rows)} | {accepted.mean():.0%} | {speaks.mean():.0%} |"
            f" {(accepted == speaks).mean():.0%} | {' | '.join(apart)} |"
        )
    typer.echo()
    for kinds in (("own voice",), ("own voice", "other voice")):
        both = np.array([row for kind in kinds for row in said[kind]])
        typer.echo(f"rank correlation over {', '.join(kinds)}: {spearmanr(both[:, 0], both[:, 1])[0]:+.2f}")


def by_person(found: Sequence[Case], scorer: Scorer) -> None:
    """Whose true pieces of 3 s are not kept."""
    least = Thresholds().min_sync_probability or 0.0
    lost: dict[str, list[bool]] = {}
    for case in found:
        if case.kind == "true" and case.length_s == 3.0:
            lost.setdefault(case.person, []).append(probability(case, scorer) < least)
    worst = sorted(((sum(v), len(v), k) for k, v in lost.items() if any(v)), reverse=True)
    typer.echo(f"\nlost at 3 s, of {len(lost)} people: " + ", ".join(f"{k} {a} of {n}" for a, n, k in worst))


def reliability(found: Sequence[Case], scorer: Scorer) -> list[tuple[float, float, int]]:
    """Mean probability, fraction in sync and number of the pieces in each tenth.

    Weighted as the prior has it: as many pieces of another voice as of the own, one in five of the own off.
    """
    own = [case for case in found if case.kind == "true" or case.kind == "voice" or _far(case)]
    kinds = np.array(["off" if _far(case) else case.kind for case in own])
    share = {"true": 0.4, "off": 0.1, "voice": 0.5}
    weight = np.array([share[kind] / (kinds == kind).sum() for kind in kinds])
    predicted, rows = np.array([probability(case, scorer) for case in own]), []
    for low in np.arange(0, 1, 0.1):
        inside = (predicted >= low) & ((predicted < low + 0.1) | (low > 0.85))
        if inside.any():
            w = weight[inside]
            rows.append(
                (
                    float((predicted[inside] * w).sum() / w.sum()),
                    float((w * (kinds[inside] == "true")).sum() / w.sum()),
                    int(inside.sum()),
                )
            )
    typer.echo("\n| mean probability | " + " | ".join(f"{mean:.2f}" for mean, _, _ in rows) + " |")
    typer.echo("|---" * (len(rows) + 1) + "|")
    typer.echo("| in sync | " + " | ".join(f"{true:.2f}" for _, true, _ in rows) + " |")
    typer.echo("| pieces | " + " | ".join(str(count) for _, _, count in rows) + " |")
    return rows


def fakes(folder: Path, rows: Sequence[dict[str, str]], scorer: Scorer, cache: Path | None) -> None:
    """What is said of files that are lip-synced, dubbed or moved."""
    typer.echo(
        "\n| file | what it is | s | probability | at the offset | offset, frames |"
        "\n|---|---|---|---|---|---|"
    )
    for row in rows:
        for talk in talks_of(folder / "fake" / row["file"], row["person_id"], cache):
            one = contrastive.score(talk.mouth, talk.bands, SYNC_HZ, scorer, talk.phones)
            if one.sync_probability is not None:
                typer.echo(
                    f"| {talk.name} | {row['note']} | {len(talk.mouth) / SYNC_HZ:.1f} |"
                    f" {one.sync_probability:.2f} | {one.sync_offset_probability:.2f} |"
                    f" {one.sync_offset_frames:+d} ± {one.sync_offset_sd_frames:.1f} |"
                )


def draw(
    folder: Path, found: Sequence[Case], scorer: Scorer, reliable: Sequence[tuple[float, float, int]]
) -> None:
    """`sync-errors.png` and `sync-reliability.png`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), dpi=90, layout="constrained")
    errors, reliability_axes = figure.subplots(1, 2)
    for length_s in LENGTHS_S:
        own = [case for case in found if case.length_s == length_s]
        true, voice = (_kind(own, scorer, kind) for kind in ("true", "voice"))
        at = np.linspace(0, 1, 201)
        errors.plot(
            [(voice >= t).mean() for t in at], [(true < t).mean() for t in at], label=f"{length_s:g} s"
        )
    errors.set(xlabel="other voices accepted", ylabel="true pieces rejected", xlim=(0, 0.2), ylim=(0, 0.4))
    errors.legend()
    reliability_axes.plot([0, 1], [0, 1], color="0.8")
    reliability_axes.plot([mean for mean, _, _ in reliable], [true for _, true, _ in reliable], marker="o")
    reliability_axes.set(xlabel="sync_probability", ylabel="fraction in sync")
    figure.savefig(folder / "sync.png")


if __name__ == "__main__":
    typer.run(main)
