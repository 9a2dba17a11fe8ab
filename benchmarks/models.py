"""What each model is good for, and what it costs: the tables of docs/models.md.

    TALKFORGE_MODELS=../shared/weights python -m benchmarks.models [FOLDER] [--only QUESTION ...]

FOLDER holds the clips named below. Each row is one function of `ROWS`; it measures with the code of
the pipeline, on one thread, and is left out where its weights are not on this machine: the second
table names those. CPU seconds are per second of footage (of speech, for what only hears), and depend
on the machine and on who else is using it: compare within the table.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import cv2
import numpy as np
import torch
import typer

from benchmarks import cuts
from curation import (
    active_speaker,
    clips,
    faces,
    identity,
    landmarks,
    media,
    models,
    pose,
    probe,
    scan,
    shots,
    sound_quality,
    speech,
    sync,
    trace,
)
from curation.face_crops import to_asd
from curation.joints import JOINTS
from curation.transnet import TransNet
from pipeline.needs import BODY_MODELS
from schemas.arrays import Bytes, FaceTrack, Floats
from schemas.config import IdentityConfig, MeasureConfig, SoundConfig, SpeechConfig
from schemas.records import Clip, Source, Speaker, Video
from schemas.units import features_from_frames

FOLDER = Path("../shared/clips")

STUDIO = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
TALKING = (*STUDIO, "ls_demo3.mp4", "st_katie.mp4", "vr_1.mp4")
"""One person each, talking; their recordings are taken to be in sync."""

SILENT = "lp_s18.mp4"
"""One person, not talking, on a silent track."""

NOBODY = "sk_bigbuckbunny.mp4"
STAGE = "fr_hamilton.mp4"
GESTURES = "ls_demo3.mp4"

SHIFTS_FRAMES = (-10, -6, 6, 10)
NOISE_DB = 10.0
"""Ratio of a clip's sound to the white noise that is added to it."""

SPEAKER_S = 4.0
"""Of each clip this much is shown to the active-speaker network, beside the silent face, s."""

CONFIG = MeasureConfig()
NO_SPEAKER = Speaker(speaking_fraction=None, sync_c=None, sync_d=None, sync_net_offset_frames=None)

Found = TypeVar("Found")

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Shot:
    """One clip with what was traced of it: `crops` [F, 224, 224, 3], `samples` at 16 kHz."""

    clip: Clip
    found: trace.Trace
    crops: Bytes
    samples: Floats

    @property
    def length_s(self) -> float:
        return self.clip.num_frames / self.clip.fps


@dataclass(frozen=True)
class File:
    """One video with what was found in it."""

    name: str
    path: Path
    video: Video
    seen: scan.Scan
    pairs: list[tuple[Clip, FaceTrack]]
    traced: list[Shot]


@dataclass
class Spent:
    """CPU seconds, and the seconds of footage that they were spent on."""

    cpu_s: float = 0.0
    footage_s: float = 0.0

    def on(self, footage_s: float, work: Callable[[], Found]) -> Found:
        begin_s = time.process_time()
        done = work()
        self.cpu_s += time.process_time() - begin_s
        self.footage_s += footage_s
        return done

    @property
    def rate(self) -> float:
        return self.cpu_s / self.footage_s


@dataclass
class Material:
    """The clips, scanned and traced once for all rows that need it."""

    folder: Path
    scanning: Spent = field(default_factory=Spent)
    tracing: Spent = field(default_factory=Spent)

    @functools.cached_property
    def files(self) -> dict[str, File]:
        """By name; those in `TALKING` and `SILENT` are traced."""
        detector = faces.load_detector(CONFIG.scan)
        landmarker = landmarks.FaceLandmarker(models.weights("face_landmarker"))
        detector.detect(np.zeros((64, 64, 3), np.uint8))  # the first call sets up its graph
        names = (*TALKING, SILENT, NOBODY)
        return {name: self._file(name, detector, landmarker) for name in names}

    @property
    def talking(self) -> list[Shot]:
        return [shot for name in TALKING for shot in self.files[name].traced]

    def _file(self, name: str, detector: faces.Detector, landmarker: landmarks.FaceLandmarker) -> File:
        path, video = opened(self.folder / name)
        seen = self.scanning.on(
            video.end_s - video.start_s,
            lambda: scan.scan(path, video, video.start_s, video.end_s, CONFIG.scan, detector),
        )
        found = clips.candidates(video, seen.tracks, (), CONFIG.clip)
        pairs = [pair for pair in found if pair[0].num_frames >= sync.MIN_FRAMES]
        kept: dict[str, Bytes] = {}

        def watch(clip: Clip, crops: Bytes) -> Speaker:
            kept[clip.clip_id] = crops
            return NO_SPEAKER

        length_s = sum(clip.num_frames / clip.fps for clip, _ in pairs)
        traced = self.tracing.on(
            length_s, lambda: trace.trace(path, video, pairs, landmarker, None, CONFIG, watch)
        )
        kept_shots = []
        for clip, _ in pairs:
            result = traced[clip.clip_id]
            if isinstance(result, Exception):
                raise result
            samples = media.read_audio(path, video, clip.start_s, clip.end_s)
            kept_shots.append(Shot(clip, result, kept[clip.clip_id], samples))
        return File(name, path, video, seen, pairs, kept_shots)


@dataclass(frozen=True)
class Row:
    """One line of the table: names in the registry, or of what is ours; what was found; the cost."""

    models: tuple[str, ...]
    figures: str
    rate: float


def opened(path: Path) -> tuple[Path, Video]:
    return path, probe.probe(path, Source(uri=path.name), probe.content_hash(path))


# --- rows --------------------------------------------------------------------------------------------


def scenes(material: Material) -> Iterator[Row]:
    names = (*cuts.STUDIO, *cuts.SINGLES, *cuts.NATIVE)
    loaded = {name: cuts.loaded(material.folder / name) for name in names}
    finders = {"adaptive + faces": cuts.by_scene_finder(faces.load_detector(CONFIG.scan))}
    if models.present("transnetv2") is not None:
        network = TransNet(models.weights("transnetv2"))
        finders["transnetv2"] = lambda frames: [
            found.first
            for found in shots.transitions(network.boundaries(np.stack([*map(shots.shrunk, frames)])))
        ]
    for name, find in finders.items():
        spent, score = Spent(), cuts.Score()
        for footage in itertools.chain(cuts.one_studio(loaded), cuts.native(loaded)):
            length_s = len(footage.frames) / cuts.FPS
            score.add(cuts.scored(footage, spent.on(length_s, functools.partial(find, footage.frames))))
        figures = (
            f"{score.near} of {score.true} hard cuts within 2 frames, {score.found - score.near} false: "
            f"F1 {score.f1(score.near):.3f} (all kinds of cuts: scenes.md)"
        )
        yield Row((name,), figures, spent.rate)


def detection(material: Material) -> Iterator[Row]:
    alone = [material.files[name].seen.detections for name in (*TALKING, SILENT)]
    counts = [len(sample.boxes) for samples in alone for sample in samples]
    nobody = [len(sample.boxes) for sample in material.files[NOBODY].seen.detections]
    figures = (
        f"exactly the one face in {counts.count(1)} of {len(counts)} frames; "
        f"none in {nobody.count(0)} of {len(nobody)} frames of an animation"
    )
    yield Row(("centerface",), f"{figures} (cost with decoding and scenes)", material.scanning.rate)


def mesh(material: Material) -> Iterator[Row]:
    traced = [*material.talking, *material.files[SILENT].traced]
    seen = np.concatenate([np.asarray(shot.found.landmarks.seen) for shot in traced])
    lips = np.concatenate([shot.found.lips.valid for shot in traced])
    figures = (
        f"face in {seen.mean():.1%} of {seen.size} frames, lips measured in {(lips == 2).mean():.1%} "
        "(cost with decoding, lips and crops)"
    )
    yield Row(("face_landmarker", "outer lips"), figures, material.tracing.rate)


def body(material: Material) -> Iterator[Row]:
    file = material.files[GESTURES]
    landmarker = landmarks.FaceLandmarker(models.weights("face_landmarker"))
    pair = [JOINTS.index("left_shoulder"), JOINTS.index("right_shoulder")]
    without_s = 0.0
    for choice, names in reversed(BODY_MODELS.items()):  # "none" first: the others cost what they add
        if any(models.present(name) is None for name in names):
            continue
        spent, finder = Spent(), pose.load_model(CONFIG.motion.model_copy(update={"body": choice}))
        traced = spent.on(
            sum(shot.length_s for shot in file.traced),
            functools.partial(trace.trace, file.path, file.video, file.pairs, landmarker, finder, CONFIG),
        )
        if not names:
            without_s = spent.rate
            continue
        joints = [found.joints for found in traced.values() if isinstance(found, trace.Trace)]
        shoulders = np.isfinite(np.concatenate(joints)[:, pair, 0]).all(axis=1)
        figures = f"both shoulders in {shoulders.mean():.1%} of the {shoulders.size} frames of {GESTURES}"
        yield Row(names, figures, max(spent.rate - without_s, 0.0))


def voice(material: Material) -> Iterator[Row]:
    spent, shares = Spent(), {}
    for name in (*TALKING, SILENT, NOBODY):
        file = material.files[name]
        samples = media.read_audio(file.path, file.video, file.video.start_s, file.video.end_s)
        length_s = len(samples) / 16_000
        spans = spent.on(length_s, functools.partial(speech.segments, samples, 0.0))
        shares[name] = sum(b - a for a, b in spans) / length_s
    talking = [shares[name] for name in TALKING]
    figures = (
        f"speech in {min(talking):.0%} to {max(talking):.0%} of clips of people talking, "
        f"{shares[SILENT]:.0%} of a silent one, {shares[NOBODY]:.0%} of an animation with music"
    )
    yield Row(("silero_vad",), figures, spent.rate)


def speech_features(material: Material) -> Iterator[Row]:
    names = ["logmel-80"]
    if models.present("wav2vec2-base-960h") is not None:
        names.append("facebook/wav2vec2-base-960h")
    for name in names:
        encoder, spent = speech.load_encoder(SpeechConfig(embedding=name, device="cpu")), Spent()
        for shot in material.talking:
            count = features_from_frames(shot.clip.num_frames, shot.clip.fps)
            spent.on(shot.length_s, functools.partial(encoder.encode, [shot.samples], [count]))
        yield Row((encoder.name,), f"{encoder.dim} numbers at 50 Hz", spent.rate)


def mouth_and_sound(material: Material) -> Iterator[Row]:
    shipped, spent = sync.SyncMap.load(), Spent()
    near, scored, wrong = [], [], []
    for shot in material.talking:
        clip = shot.clip
        mouth = sync.mouth_measures(shot.found.landmarks)
        bands = sync.audio_bands(shot.samples, clip.num_frames, clip.fps)
        own = shipped.without([clip.video_id])
        for late in (0, *SHIFTS_FRAMES):
            late_bands = np.roll(bands, late, axis=0)
            curve = spent.on(
                shot.length_s,
                functools.partial(sync.confidence_by_lag, mouth, late_bands, clip.fps, own),
            )
            if curve is None:
                continue
            error = abs(int(curve.argmax()) - sync.SEARCH + late)
            if late == 0:
                near.append(error <= 3)
            if curve.max() >= sync.SCORED_FROM:
                scored.append(late)
                wrong.append(error > 2)
    figures = (
        f"best lag within 3 frames of the file's own on {sum(near)} of {len(near)} shots; of these and of "
        f"their sounds shifted by 6 and 10 frames {len(scored)} of {5 * len(near)} are scored, "
        f"{sum(wrong)} of them off by more than 2 (more in sync.md)"
    )
    yield Row((shipped.method,), figures, spent.rate)


def who_speaks(material: Material) -> Iterator[Row]:
    network = active_speaker.LightAsd(models.weights("light_asd"))
    frames = round(SPEAKER_S * CONFIG.clip.fps)
    still = np.stack([to_asd(crop) for crop in material.files[SILENT].traced[0].crops[:frames]])
    spent, named, shares = Spent(), [], []
    for shot in material.talking:
        length = min(frames, shot.clip.num_frames)
        samples = shot.samples[: round(length / shot.clip.fps * 16_000)]
        spans = speech.segments(samples, 0.0)
        at_s = np.arange(length) / shot.clip.fps
        heard = np.any([(at_s >= a) & (at_s < b) for a, b in spans], axis=0)
        own = np.stack([to_asd(crop) for crop in shot.crops[:length]])
        scores = spent.on(
            2 * length / shot.clip.fps,
            lambda own=own, samples=samples, length=length: [  # type: ignore[misc]
                network.score(crops, samples) for crops in (own, still[:length])
            ],
        )
        speaking, silent = (active_speaker.speaking_fraction(s, heard) for s in scores)
        shares.append((speaking, silent))
        named.append(active_speaker.speaker({"own": speaking, "still": silent}))
    figures = (
        f"beside a still face the one that talks is named in {named.count('own')} of {len(named)} shots, "
        f"{named.count(None)} unclear, {named.count('still')} wrong"
    )
    yield Row((network.name,), figures, spent.rate)


def who_it_is(material: Material) -> Iterator[Row]:
    for name in identity.EMBEDDERS:
        if models.present(name) is None:
            continue
        embedder, spent = identity.load_embedder(IdentityConfig(model=name)), Spent()
        assert embedder is not None
        people: dict[str, list[Floats]] = {}
        for shot in material.talking:
            vectors = spent.on(shot.length_s, functools.partial(embedder.embed, shot.found.crops))
            half = len(vectors) // 2
            parts = (identity.summarise(vectors[:half])[0], identity.summarise(vectors[half:])[0])
            people.setdefault(shot.clip.video_id, []).extend(parts)
        same = [float(a @ b) for own in people.values() for a, b in itertools.combinations(own, 2)]
        other = [
            float(a @ b)
            for one, two in itertools.combinations(people.values(), 2)
            for a, b in itertools.product(one, two)
        ]
        figures = (
            f"{len(people)} people: cosines of one person {min(same):.2f} to {max(same):.2f}, of two "
            f"{min(other):.2f} to {max(other):.2f}"
        )
        yield Row((name,), figures, spent.rate)


def sound(material: Material) -> Iterator[Row]:
    meter, spent = sound_quality.SoundMeter(SoundConfig(dnsmos=True)), Spent()

    def scores(samples: Floats) -> tuple[float, float]:
        found = spent.on(len(samples) / 16_000, lambda: meter.measure(samples, [], 0.0))
        assert found.dnsmos_overall is not None and found.dnsmos_background is not None
        return found.dnsmos_overall, found.dnsmos_background

    studio = [shot.samples for name in STUDIO for shot in material.files[name].traced]
    path, video = opened(material.folder / STAGE)
    stage, _ = scores(media.read_audio(path, video, video.start_s, video.end_s))
    random = np.random.default_rng(0)
    clean, noisy = [], []
    for samples in studio:
        noise = random.normal(0, np.sqrt(np.mean(samples**2) / 10 ** (NOISE_DB / 10)), len(samples))
        clean.append(scores(samples))
        noisy.append(scores((samples + noise).astype(np.float32)))
    overall, background = np.mean(clean, axis=0)
    figures = (
        f"overall {overall:.2f} in a studio, {stage:.2f} on a stage; background {background:.2f} in the "
        f"studio, {np.mean(noisy, axis=0)[1]:.2f} with white noise {NOISE_DB:g} dB below the voice"
    )
    yield Row(("dnsmos",), figures, spent.rate)


ROWS: dict[str, Callable[[Material], Iterator[Row]]] = {
    "scenes": scenes,
    "faces": detection,
    "landmarks, lips": mesh,
    "body": body,
    "speech activity": voice,
    "speech features": speech_features,
    "sync": mouth_and_sound,
    "active speaker": who_speaks,
    "identity": who_it_is,
    "sound quality": sound,
}
"""Question -> what answers it."""


# --- tables ------------------------------------------------------------------------------------------


def line(question: str, row: Row) -> str:
    known = [models.MODELS[name] for name in row.models if name in models.MODELS]
    licences = " / ".join(dict.fromkeys(model.licence for model in known)) or "part of Talkforge"
    commercial = "yes" if all(model.commercial_use for model in known) else "no"
    name = ", ".join(row.models)
    cost = f"{row.rate:.3f}" if row.rate >= 0.001 else "under 0.001"
    return f"| {question} | {name} | {licences} | {commercial} | {row.figures} | {cost} |"


def not_here() -> Iterator[str]:
    for model in models.MODELS.values():
        if models.present(model.name) is None:
            commercial = "yes" if model.commercial_use else "no"
            yield f"| {model.name} | {model.needed_by} | {model.licence} | {commercial} | {model.source} |"


@app.command()
def main(
    folder: Annotated[Path, typer.Argument()] = FOLDER,
    only: Annotated[list[str], typer.Option(help="Only these questions.")] = [],  # noqa: B006
) -> None:
    """Print both tables."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    material = Material(folder)
    typer.echo(
        "| question | model | licence | commercial use | measured | CPU s per s |\n|---|---|---|---|---|---|"
    )
    for question, measure in ROWS.items():
        if not only or question in only:
            for row in measure(material):
                typer.echo(line(question, row))
    typer.echo("\n| not here | needed by | licence | commercial use | from |\n|---|---|---|---|---|")
    for text in not_here():
        typer.echo(text)


if __name__ == "__main__":
    app()
