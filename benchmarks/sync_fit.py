"""Fits the sync scorer that comes with the package, `curation/sync/phonetic.npz`, and its calibration.

    python -m benchmarks.sync_fit FOLDER FOLDER     # folders that hold the files of FITTED

Needs torch. Mouth measures, audio bands and phones come from the code of the pipeline. Networks are fitted
by folds of people first. What they say of the people that they were not fitted on tells how far the audio of
each file is off at its source. With that put right, networks are fitted by folds once more, which gives the
calibration, and those that ship are fitted on all people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from talkforge.curation import clips, media, scan
from talkforge.curation.face import detect, landmarks
from talkforge.curation.media import probe
from talkforge.curation.sync import contrastive, fitting
from talkforge.curation.sync.contrastive import LAGS, Scorer
from talkforge.curation.sync.features import SYNC_HZ, audio_bands, mouth_measures
from talkforge.curation.sync.fitting import Talk
from talkforge.curation.sync.phones import PhoneRecogniser
from talkforge.curation.weights import registry
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import Input

FITTED = {
    "grid_bbaf2n.mpg": "bbaf2n",
    "grid_brbk7n.mpg": "brbk7n",
    "grid_id2_swwp2s.mpg": "id2",
    "grid_lrwp9a.mpg": "lrwp9a",
    "ls_demo3.mp4": "demo3",
    "st_katie.mp4": "katie",
    "vr_1.mp4": "vr_1",
    "dfrf_cnn2.mp4": "cnn2",
    "grid_bbab8n.mpg": "bbab8n",
    "grid_sbwe5n.mpg": "sbwe5n",
    "hdtf_markey.mp4": "markey",
    "hdtf_menendez.mp4": "menendez",
    "ls_demo2.mp4": "demo2",
    "misc_beard_old.mp4": "beard_old",
    "misc_leah.mp4": "leah",
    "misc_ron_home.mp4": "ron_home",
    "misc_sunglasses.mp4": "sunglasses",
    "sn_lemon.avi": "lemon",
    "vr_aoc.mp4": "aoc",
    "vr_woman5.mp4": "woman5",
}
"""File -> person of the footage whose licence lets weights fitted on it be shipped, see docs/sync.md."""

NAME = "phonetic-v1"
FOLDS, NETWORKS = 4, 3

CLEAR, MOST_OFF = 4.0, 6
"""Least height of a file's best lag, in deviations of the null, and the largest lag, that are believed."""

DOUBTFUL_S = 6.0
"""Seconds from which a file whose best lag is not believed is left out."""


def talks_of(path: Path, person: str, cache: Path | None = None) -> list[Talk]:
    """Features of every candidate clip of a video that is long enough to say anything.

    Args:
        path: video file.
        person: who is seen.
        cache: folder that keeps the features between runs; None measures again.
    """
    kept = cache / f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.npz" if cache else None
    if kept and kept.is_file():
        with np.load(kept) as file:
            found = [tuple(file[f"{i}/{name}"] for name in _KEPT) for i in range(len(file.files) // 3)]
    else:
        found = _measure(path)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, NDArray[Any]] = {
                f"{i}/{name}": array
                for i, one in enumerate(found)
                for name, array in zip(_KEPT, one, strict=True)
            }
            kept.write_bytes(npz_bytes(**arrays))
    return [Talk(f"{path.stem} {i}", person, *one) for i, one in enumerate(found)]


_KEPT = ("mouth", "bands", "phones")


def _measure(path: Path) -> list[tuple[NDArray[Any], ...]]:
    config = MeasureConfig()
    video = probe.probe(path, Input(uri=str(path)), probe.content_hash(path))
    detector = detect.load_detector(config.scan)
    seen = scan.scan(path, video, video.start_s, video.end_s, config.scan, detector)
    landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
    recogniser = PhoneRecogniser()
    found: list[tuple[NDArray[Any], ...]] = []
    for clip, track in clips.candidates(video, seen.tracks, (), config.clip):
        if clip.num_frames < 2 * SYNC_HZ:
            continue
        tracer = landmarks.LandmarkTracer(landmarker, track, clip, video)
        for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
            shown = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
            if shown:
                tracer.push(shown, frame.of_clip(clip))
        samples = media.read_audio(path, video, clip.start_s, clip.end_s)
        heard = (samples, clip.num_frames, clip.fps)
        found.append((mouth_measures(tracer.finish()), audio_bands(*heard), recogniser.measure(*heard)))
    return found


def aligned(held: Sequence[Talk], scorer: Scorer) -> list[Talk]:
    """The clips with the offset of their file put right: its best lag over all clips, where that is clear.

    A file is left out that is long enough to show its lag and does not: nobody knows that its audio belongs
    to the mouth.

    Args:
        held: clips of people that the scorer was not fitted on.
        scorer: gives the evidence.
    """
    found = []
    for name in sorted({_file(talk) for talk in held}):
        own = [talk for talk in held if _file(talk) == name]
        seen = [
            e
            for talk in own
            if (e := scorer.evidence(talk.mouth, talk.bands, SYNC_HZ, talk.phones)) is not None
        ]
        total = np.sum([e.by_lag * e.seen_s for e in seen], axis=0) if seen else np.zeros(len(LAGS))
        null = np.sqrt(sum((e.deviation * e.seen_s) ** 2 for e in seen))
        lag, height = int(LAGS[total.argmax()]), float(total.max() / max(null, 1e-9))
        clear, doubtful = height >= CLEAR and abs(lag) <= MOST_OFF, sum(e.seen_s for e in seen) >= DOUBTFUL_S
        said = "" if clear else ", left out" if doubtful else ", kept as it is"
        typer.echo(f"{name:20s} {lag:+3d} frames, {height:4.1f} deviations{said}")
        if clear or not doubtful:
            found += [replace(talk, offset=lag if clear else 0) for talk in own]
    return found


def _file(talk: Talk) -> str:
    return talk.name.rsplit(" ", 1)[0]


def main(folders: list[Path], cache: Path | None = None, out: Path = contrastive.WEIGHTS_PATH) -> None:
    """Fit, calibrate and write the scorer.

    Args:
        folders: where the files of `FITTED` are.
        cache: folder that keeps the measured features between runs.
        out: file to write.
    """
    began = fitting.by_folds(footage(folders, FITTED, cache), FOLDS)
    talks = [talk for held, scorer in began for talk in aligned(held, scorer)]
    write(fitting.by_folds(talks, FOLDS), out)


def write(folds: Sequence[tuple[list[Talk], Scorer]], out: Path) -> None:
    """Calibrate on the folds, fit on all of them, and write the scorer."""
    talks = [talk for held, _ in folds for talk in held]
    rng = np.random.default_rng(0)
    unseen = [
        case
        for held, scorer in folds
        for length_s in (2.0, 3.0, 4.0, 6.0, 10.0)
        for case in fitting.cases(held, scorer, length_s, talks, rng)
    ]
    calibration = fitting.calibrate(unseen)
    typer.echo(f"{len(unseen)} cases of people not fitted on: {calibration}")
    networks = tuple(fitting.fit(talks, 100 + number) for number in range(NETWORKS))
    seconds = sum(len(talk.mouth) for talk in talks) / SYNC_HZ
    files = sorted(name for name in FITTED if any(_file(talk) == Path(name).stem for talk in talks))
    about = {"files": files, "people": len({t.person for t in talks}), "seconds": round(seconds, 1)}
    out.write_bytes(Scorer(NAME, networks, calibration).to_bytes(about))
    typer.echo(f"{out}: {about['people']} people, {seconds:.0f} s, {out.stat().st_size / 1e3:.0f} kB")


def footage(folders: Sequence[Path], people: dict[str, str], cache: Path | None) -> list[Talk]:
    """Features of files, wherever in the folders they are."""
    found = []
    for name, person in people.items():
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            raise typer.BadParameter(f"{name}: in none of the folders")
        found += talks_of(path, person, cache)
    # A face that is hardly seen teaches nothing.
    return [talk for talk in found if np.isfinite(talk.mouth).all(axis=1).mean() > 0.8]


if __name__ == "__main__":
    typer.run(main)
