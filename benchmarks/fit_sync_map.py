"""Makes `curation/sync/sync_map.npz` from clips, and measures how well the estimator does on them.

    python benchmarks/fit_sync_map.py fit FOLDER        # writes the map that comes with the package
    python benchmarks/fit_sync_map.py evaluate FOLDER   # prints the figures of docs/sync.md

FOLDER holds the clips named in `FITTED` and `HELD_OUT`; each is one person talking. Features come
from the same detector, landmarker and sync code as in the pipeline. Figures are leave-one-person-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from talkforge.curation import clips, media, scan
from talkforge.curation.face import detect, landmarks
from talkforge.curation.media import probe
from talkforge.curation.sync import ridge
from talkforge.curation.sync.features import NUM_BANDS, audio_bands, mouth_measures
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Floats
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.records import Input

FITTED = (
    "grid_bbaf2n.mpg",
    "grid_brbk7n.mpg",
    "grid_id2_swwp2s.mpg",
    "grid_lrwp9a.mpg",
    "ls_demo3.mp4",
    "st_katie.mp4",
    "vr_1.mp4",
)
"""Footage whose licence lets the map be shipped; see docs/sync.md."""

HELD_OUT = ("wh_kennedy_low.mp4", "fr_hamilton.mp4")
"""A dub and a noisy stage: only looked at."""

FPS = ridge.MAP_HZ
REPORT_WITHIN = 2
"""Error of an offset that counts as right, frames."""

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Talk:
    """Features of one clip."""

    name: str
    video_id: str
    mouth: Floats
    bands: Floats


@app.command()
def fit(folder: Path, out: Path = ridge.MAP_PATH) -> None:
    """Fit the shipped map on the clips of `FITTED`."""
    talks = [t for name in FITTED for t in talks_of(folder / name)]
    fitted = ridge.SyncMap.fit(((t.video_id, t.mouth, t.bands) for t in talks), FPS, ridge.SHIPPED)
    fitted.save(out)
    length_s, size_kb = fitted.frames.sum() / FPS, out.stat().st_size / 1e3
    typer.echo(f"{out}: {len(fitted.video_ids)} videos, {length_s:.1f} s, {size_kb:.0f} kB")


@app.command()
def evaluate(folder: Path) -> None:
    """Print offsets, separation and false alarms, each clip scored by a map without its person."""
    talks = [t for name in FITTED for t in talks_of(folder / name)]
    held_out = [t for name in HELD_OUT for t in talks_of(folder / name)]
    full = ridge.SyncMap.fit(((t.video_id, t.mouth, t.bands) for t in talks), FPS, ridge.SHIPPED)
    typer.echo(f"clip                    s  offset  peak  at zero  (peak counts from {ridge.SCORED_FROM})")
    for t in (*talks, *held_out):
        curve = ridge.confidence_by_lag(t.mouth, t.bands, FPS, full.without([t.video_id]))
        if curve is None:
            typer.echo(f"{t.name:20s} {len(t.mouth) / FPS:5.1f}  too little")
            continue
        lag, zero = int(curve.argmax()) - ridge.SEARCH, curve[ridge.SEARCH]
        typer.echo(f"{t.name:20s} {len(t.mouth) / FPS:5.1f} {lag:+7d} {curve.max():5.2f} {zero:8.2f}")
    audios = (*talks, held_out[0])
    for length_s in (3.0, 6.0, 10.0):
        typer.echo(f"\npieces of about {length_s:g} s (shorter clips whole)")
        _evaluate_pieces(talks, audios, full, round(length_s * FPS))
    typer.echo("\nGRID clips")
    _evaluate_pieces([t for t in talks if t.name.startswith("grid")], audios, full, 10**6)


def talks_of(path: Path) -> list[Talk]:
    """Features of every candidate clip of a video that is long enough to say anything."""
    config = MeasureConfig.model_validate({"clip": {"crop": "none"}})  # as the fit that ships was made
    video = probe.probe(path, Input(uri=str(path)), probe.content_hash(path))
    detector = detect.load_detector(config.scan)
    seen = scan.scan(path, video, video.start_s, video.end_s, config.scan, detector)
    candidates = clips.candidates(video, seen.tracks, (), config.clip)
    long_enough = [one for one in candidates if one.clip.num_frames >= ridge.MIN_FRAMES]
    landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
    found = []
    for number, (clip, track) in enumerate(long_enough):
        tracer = landmarks.LandmarkTracer(landmarker, track, clip, video)
        for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
            shown = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
            if shown:
                tracer.push(shown, frame.of_clip(clip))
        samples = media.read_audio(path, video, clip.start_s, clip.end_s)
        mouth = mouth_measures(tracer.finish())
        bands = audio_bands(samples, clip.num_frames, clip.fps)
        found.append(Talk(f"{path.stem} {number}", video.video_id, mouth, bands))
    return found


def _pieces(count: int, length: int) -> Iterator[slice]:
    parts = max(round(count / length), 1)
    for index in range(parts):
        yield slice(index * count // parts, (index + 1) * count // parts)


@dataclass(frozen=True)
class _Curves:
    """Confidence by lag of one piece: as it is, with its audio late by `shifts`, with others' audio."""

    true: np.ndarray
    shifted: dict[int, np.ndarray]
    swapped: list[np.ndarray]


SHIFTS = (-15, -10, -6, 6, 10, 15)


def _curves(t: Talk, piece: slice, audios: tuple[Talk, ...], full: ridge.SyncMap) -> _Curves:
    fitted = full.without([t.video_id])

    def curve(bands: Floats) -> np.ndarray:
        found = ridge.confidence_by_lag(t.mouth[piece], bands, FPS, fitted)
        assert found is not None, t.name
        return found

    frames = piece.stop - piece.start
    return _Curves(
        curve(t.bands[piece]),
        {late: curve(np.roll(t.bands, late, axis=0)[piece]) for late in SHIFTS},
        [curve(np.resize(o.bands, (frames, NUM_BANDS))) for o in audios if o.video_id != t.video_id],
    )


def _evaluate_pieces(talks: list[Talk], audios: tuple[Talk, ...], full: ridge.SyncMap, length: int) -> None:
    found = [(t, _curves(t, p, audios, full)) for t in talks for p in _pieces(len(t.mouth), length)]
    true = np.array([c.true[ridge.SEARCH] for _, c in found])
    shifted = [np.array([c.shifted[late][ridge.SEARCH] for late in (-15, 15)]) for _, c in found]
    swapped = [np.array([s[ridge.SEARCH] for s in c.swapped]) for _, c in found]
    alarms = np.array([s.max() for _, c in found for s in c.swapped])
    typer.echo(f"  {len(found)} pieces; at lag zero: true {true.mean():.2f} on average")
    typer.echo(
        f"  AUC true over shifted by 600 ms {_auc(true, shifted):.3f}, over swapped {_auc(true, swapped):.3f}"
    )
    typer.echo(f"  own pairs in order: shifted {_order(true, shifted)}, swapped {_order(true, swapped)}")
    for threshold in (3.0, 3.25, 3.5, 3.75, 4.0):
        peaks = [(c.true, 0) for _, c in found]
        peaks += [(c.shifted[late], -late) for _, c in found for late in (-10, -6, 6, 10)]
        scored = [(int(z.argmax()) - ridge.SEARCH - want) for z, want in peaks if z.max() >= threshold]
        passed = np.mean([c.true.max() >= threshold for _, c in found])
        wrong = [error for error in scored if abs(error) > REPORT_WITHIN]
        typer.echo(
            f"  from {threshold:.2f}: {passed:4.0%} of true, {np.mean(alarms >= threshold):5.1%} of swapped;"
            f" {len(wrong)} of {len(scored)} offsets off by more than {REPORT_WITHIN} {wrong}"
        )
    _evaluate_speakers(found, audios)


def _evaluate_speakers(found: list[tuple[Talk, _Curves]], audios: tuple[Talk, ...]) -> None:
    """Two faces in view, one audio: the first face's own, the second's a stranger's."""
    gaps = []
    for t, own in found:
        for other, theirs in found:
            if other.video_id != t.video_id:
                other_audio = [o for o in audios if o.video_id != other.video_id].index(t)
                gaps.append((own.true[ridge.SEARCH], theirs.swapped[other_audio][ridge.SEARCH]))
    a, b = np.array(gaps).T
    typer.echo(f"  speaker: own face ahead in {np.mean(a > b):.1%} of {len(a)} pairs")
    for least, margin in ((1.0, 0.5), (1.5, 1.0), (2.0, 1.5)):
        right = np.mean((a >= least) & (a - b >= margin))
        wrong = np.mean((b >= least) & (b - a >= margin))
        typer.echo(f"    from {least:g}, margin {margin:g}: named {right:.0%} right, {wrong:.1%} wrong")


def _auc(high: np.ndarray, low: list[np.ndarray]) -> float:
    return float((high[:, None] > np.concatenate(low)[None]).mean())


def _order(high: np.ndarray, low: list[np.ndarray]) -> str:
    """How often a piece is above its own alternatives."""
    right = sum(int((own > others).sum()) for own, others in zip(high, low, strict=True))
    return f"{right} of {sum(map(len, low))}"


if __name__ == "__main__":
    app()
