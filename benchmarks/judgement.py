"""What the offline preset does with good footage and with faults of known kind, as docs/judgement.md tells.

    python -m benchmarks.judgement [FOLDER] [--people 8] [--seconds 5] [--fault NAME]... [--out judgement-out]

FOLDER holds `index.csv` and `real/`. Only rows that nothing was fitted on are used (`may_fit` is not "yes"),
with a face of 110 px and more and less than 40 degrees of yaw. Every fault is made of every person and
written to a file of its own, and the files of one fault are one data set. A row of the table is printed as
Markdown as soon as it is known. Run it again, and it goes on with the faults that are missing.
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pyarrow.parquet as pq
import typer

from benchmarks.covers import Mouth, cover
from talkforge.curation import clips, media, scan
from talkforge.curation.face import covered, detect, landmarks
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.pipeline import jobs
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.store import Store
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import Config, MeasureConfig, load_config
from talkforge.schemas.records import Input
from talkforge.schemas.units import AUDIO_HZ

FPS = 25.0
MP4_HZ = 48_000
EDGE_PX = 960
"""Longest edge of the files that are made, pixels; a 4K source is made at its own size."""

MIN_FACE_PX, MAX_YAW_DEG = 110.0, 40.0


@dataclass(frozen=True)
class Piece:
    """The beginning of a video.

    Attributes:
        person: name of the person.
        frames: at `FPS`, uint8 [H, W, 3].
        sound: float32 [N] at 16 kHz.
        points: for each frame the landmarks [478, 3], or None where the face was not found.
    """

    person: str
    frames: list[Bytes]
    sound: Floats
    points: list[Floats | None]

    @property
    def face_px(self) -> float:
        """Median height of the landmarks, pixels; a detector's box is about as tall."""
        return float(np.median([np.ptp(at[:, 1]) for at in self.points if at is not None]) * 1.1)


Made = tuple[Iterator[Bytes], Floats]
"""Frames and sound of one file."""

Fault = Callable[[Piece, Piece], Made]
"""Makes a file from a piece, and from one of another person."""


Models = tuple[detect.FaceDetector, landmarks.FaceLandmarker]


def read(path: Path, person: str, seconds: float, models: Models) -> Piece | None:
    """The first candidate of a video, at most `seconds` of it; None where there is none that is 3 s long."""
    config = MeasureConfig.model_validate({"clip": {"longest_edge_px": EDGE_PX, "crop": "none"}})
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    seen = scan.scan(
        path, video, video.start_s, min(video.end_s, video.start_s + 2 * seconds), config.scan, models[0]
    )
    found = [one for one in clips.candidates(video, seen.tracks, (), config.clip) if one.clip.duration_s >= 3]
    if not found:
        return None
    clip, track = max(found, key=lambda one: one.clip.duration_s)
    tracer, frames, points = landmarks.LandmarkTracer(models[1], track, clip, video), [], []
    count = min(clip.num_frames, round(seconds * FPS))
    for frame in media.read_frames(path, video, clip.start_s, clip.start_s + count / FPS):
        shown = media.clip_indices(frame, clip.start_s, FPS, count)
        if shown:
            rgb = frame.of_clip(clip)
            at = tracer.push(shown, rgb)
            frames += [rgb] * len(shown)
            points += [at] * len(shown)
    sound = media.read_audio(path, video, clip.start_s, clip.start_s + len(frames) / FPS)
    return Piece(person, frames, sound, points)


# --- faults --------------------------------------------------------------------------------------------


def clean(piece: Piece, _: Piece) -> Made:
    return iter(piece.frames), piece.sound


def other_voice(piece: Piece, other: Piece) -> Made:
    return iter(piece.frames), np.resize(other.sound, len(piece.sound))


def frozen(piece: Piece, _: Piece) -> Made:
    return (piece.frames[0] for _ in piece.frames), piece.sound


def stalled(piece: Piece, _: Piece) -> Made:
    """The picture stands still in the second half."""
    middle = len(piece.frames) // 2
    return (piece.frames[min(k, middle)] for k in range(len(piece.frames))), piece.sound


def zoomed_photo(piece: Piece, _: Piece) -> Made:
    height, width = piece.frames[0].shape[:2]

    def shown(k: int) -> Bytes:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, 1 + 0.15 * k / len(piece.frames))
        return np.asarray(cv2.warpAffine(piece.frames[0], matrix, (width, height)), np.uint8)

    return (shown(k) for k in range(len(piece.frames))), piece.sound


def under(kind: str) -> Fault:
    """A cover of `benchmarks.covers` that follows the mouth, of one shape and colour through the file."""

    def make(piece: Piece, _: Piece) -> Made:
        def frames() -> Iterator[Bytes]:
            latest = next(at for at in piece.points if at is not None)
            for rgb, at in zip(piece.frames, piece.points, strict=True):
                latest = latest if at is None else at
                lips = latest[list(OUTER_LIPS), :2]
                x, y = (lips.min(0) + lips.max(0)) / 2
                mouth = Mouth(float(x), float(y), 2 * covered.mouth_square(latest).half / 1.9, lips)
                yield cover(rgb, mouth, kind, np.random.default_rng(len(piece.person)), 0, 0).rgb

        return frames(), piece.sound

    return make


def late_sound(by_s: float) -> Fault:
    """Sound that comes later by `by_s`, or earlier where that is negative."""
    return lambda piece, _: (iter(piece.frames), np.roll(piece.sound, round(by_s * AUDIO_HZ)))


def drifting(piece: Piece, _: Piece) -> Made:
    """Sound that runs faster by one in a hundred."""
    times = np.arange(len(piece.sound)) * 1.01
    return iter(piece.frames), np.interp(times, np.arange(len(piece.sound)), piece.sound).astype(np.float32)


def enlarged(piece: Piece, _: Piece) -> Made:
    """The whole frame scaled down until the face has 64 px, and up again."""
    scale = 64 / piece.face_px

    def shown(rgb: Bytes) -> Bytes:
        small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, rgb.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)

    return map(shown, piece.frames), piece.sound


def small_in_4k(piece: Piece, _: Piece) -> Made:
    """A frame of 3840x2160 in which the face has 146 px. Scaled down whole it would have 39 in the clip.

    No fault where `clip.crop` cuts the person out of it: all of these are to be kept then.
    """
    scale = 146 / piece.face_px
    rows, columns = piece.frames[0].shape[:2]
    height, width = min(round(scale * rows), 2160), min(round(scale * columns), 3840)

    def shown(rgb: Bytes) -> Bytes:
        canvas = np.full((2160, 3840, 3), (70, 74, 80), np.uint8)
        top, left = (2160 - height) // 2, (3840 - width) // 2
        canvas[top : top + height, left : left + width] = cv2.resize(rgb, (width, height))
        return canvas

    return map(shown, piece.frames), piece.sound


def with_noise(piece: Piece, _: Piece) -> Made:
    """White noise as loud as the voice."""
    noise = np.random.default_rng(0).standard_normal(len(piece.sound)) * piece.sound.std()
    return iter(piece.frames), (0.7 * (piece.sound + noise)).astype(np.float32)


def with_music(piece: Piece, _: Piece) -> Made:
    """Chords, a bass and a beat, as loud as the voice."""
    time_s = np.arange(len(piece.sound)) / AUDIO_HZ
    roots = 220 * 2 ** (np.array([0, -4, 3, -2])[(time_s / 2).astype(int) % 4] / 12)
    phase = 2 * np.pi * np.cumsum(roots) / AUDIO_HZ
    tones = sum(np.sin(phase * ratio) / (1 + k) for k, ratio in enumerate((1, 1.26, 1.5, 2, 0.5)))
    beat = np.exp(-12 * (time_s % 0.5)) * np.random.default_rng(0).standard_normal(len(time_s))
    music = tones * (0.6 + 0.4 * np.exp(-3 * (time_s % 0.5))) + 0.7 * beat
    loud = np.sqrt(np.mean(piece.sound**2) / np.mean(music**2))
    return iter(piece.frames), (0.7 * (piece.sound + loud * music)).astype(np.float32)


FAULTS: dict[str, Fault] = {
    "none": clean,
    "voice of another person": other_voice,
    "frozen picture": frozen,
    "picture stalls in the middle": stalled,
    "photo, slowly zoomed": zoomed_photo,
    "mouth under a surgical mask": under("surgical mask"),
    "mouth under a mosaic": under("mosaic"),
    "mouth under a dark bar": under("rectangle"),
    "mouth behind a microphone": under("microphone"),
    "mouth behind fingers": under("fingers"),
    "sound 200 ms early": late_sound(-0.2),
    "sound 240 ms early": late_sound(-0.24),
    "sound drifts by 1 %": drifting,
    "enlarged from a face of 64 px": enlarged,
    "face small in 4K": small_in_4k,
    "music as loud as the voice": with_music,
    "noise as loud as the voice": with_noise,
}


GOOD = ("none", "face small in 4K")
"""What is to be kept."""


# --- the run -------------------------------------------------------------------------------------------


def people(folder: Path, most: int, seconds: float) -> list[Piece]:
    """Pieces of people that nothing was fitted on, one of each, in the order of the index."""
    config = MeasureConfig()
    models = (
        detect.load_detector(config.scan),
        landmarks.FaceLandmarker(registry.weights("face_landmarker")),
    )
    found: dict[str, Piece] = {}
    with (folder / "index.csv").open(newline="") as rows:
        for row in csv.DictReader(rows):
            usable = row["folder"] == "real" and row["may_fit"] != "yes"
            turned = abs(float(row["yaw_deg"] or 90)) > MAX_YAW_DEG
            small = float(row["face_px"] or 0) < MIN_FACE_PX
            if not usable or turned or small or row["person_id"] in found:
                continue
            piece = read(folder / "real" / row["file"], row["person_id"], seconds, models)
            if piece is not None:
                found[piece.person] = piece
            if len(found) == most:
                break
    return list(found.values())


def write(path: Path, made: Made) -> None:
    """One file with sound, H.264 at a good quality."""
    frames, sound = made
    even = (rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2] for rgb in frames)
    stereo = np.repeat(sound, MP4_HZ // AUDIO_HZ)[:, None].repeat(2, axis=1)
    media.encode_mp4(path, even, FPS, stereo, 20, "veryfast")


@dataclass(frozen=True)
class Row:
    """What became of the files of one fault.

    Attributes:
        files: number of the files.
        kept: number of those of which a clip was accepted.
        seconds: length of all candidates.
        kept_s: length of those that were accepted.
        reasons: the most frequent reasons of the others.
    """

    files: int
    kept: int
    seconds: float
    kept_s: float
    reasons: str


def outcome(dataset: Path, files: int) -> Row:
    """What a data set says of its clips."""
    rows = pq.read_table(dataset / "ledger.parquet").to_pylist()
    reasons = Counter(code for row in rows for code in row["reasons"]).most_common(4)
    return Row(
        files,
        len({row["uri"] for row in rows if row["accepted"]}),
        sum(row["duration_s"] for row in rows),
        sum(row["duration_s"] for row in rows if row["accepted"]),
        ", ".join(f"`{code}` {count}" for code, count in reasons),
    )


def curated(name: str, pieces: list[Piece], out: Path, config: Config) -> Row:
    """The files of one fault, made and judged; only judged where the data set is there already."""
    folder = out / f"{list(FAULTS).index(name):02d}"
    dataset, videos = folder / "set", folder / "videos"
    if not (dataset / "ledger.parquet").exists():
        videos.mkdir(parents=True, exist_ok=True)
        for k, piece in enumerate(pieces):
            other = pieces[(k + 1) % len(pieces)]
            write(videos / f"{piece.person}.mp4", FAULTS[name](piece, other))
        jobs.curate([str(videos)], Store(str(dataset)), config, InlineExecutor)
    return outcome(dataset, len(pieces))


def main(
    folder: Annotated[Path, typer.Argument(help="Holds index.csv and real/.")] = Path("../shared/people"),
    number: Annotated[int, typer.Option("--people", help="Most people.")] = 8,
    seconds: Annotated[float, typer.Option(help="Longest piece of each, s.")] = 5.0,
    fault: Annotated[list[str] | None, typer.Option(help="Only these faults.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="section.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Where videos and the data sets are written.")] = Path(
        "judgement-out"
    ),
) -> None:
    """Make the faults, curate them with the offline preset, print the table."""
    # Near duplicates are off, because all files of a person are copies.
    config = load_config("offline", ["thresholds.near_duplicates=false", *(setting or ())])
    pieces = people(folder, number, seconds)
    typer.echo(f"{len(pieces)} people: {', '.join(piece.person for piece in pieces)}\n")
    typer.echo("| fault | files | files accepted | seconds kept | reasons of what was rejected |")
    typer.echo("|---|---|---|---|---|")
    found: dict[str, Row] = {}
    before_s = time.process_time()
    for name in fault or FAULTS:
        found[name] = row = curated(name, pieces, out, config)
        cells = (name, row.files, row.kept, f"{row.kept_s:.0f} of {row.seconds:.0f}", row.reasons)
        typer.echo(f"| {' | '.join(map(str, cells))} |")
    bad = [row for name, row in found.items() if name not in GOOD]
    typer.echo(
        f"\nof the faults {sum(row.kept for row in bad)} of {sum(row.files for row in bad)} files accepted; "
        f"{time.process_time() - before_s:.0f} CPU seconds"
    )


if __name__ == "__main__":
    typer.run(main)
