"""How well, and at what cost, near duplicates are found: the tables of docs/duplicates.md.

    python -m benchmarks.duplicates [FOLDER]     # FOLDER holds real clips

Every span of a real clip is written to a file of its own, changed as copies are, and read back.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from talkforge.curation import media
from talkforge.curation.duplicates import near_duplicates
from talkforge.curation.fingerprint import Fingerprint, FrameHasher, hash_audio
from talkforge.curation.media import probe
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.records import Input
from talkforge.schemas.units import AUDIO_HZ

FOLDER = Path("../shared/clips")
FPS = 25.0
EDGE_PX = 480
SPAN_S = 3.0
MP4_HZ = 48_000
FACE = np.array([0.3, 0.2, 0.7, 0.8], np.float32)
"""Box of the face in every clip, as fraction of the frame: nothing is found or missed by it."""


@dataclass(frozen=True)
class Change:
    """What is done to a copy before it is encoded."""

    picture: Callable[[Bytes], Bytes] = lambda rgb: rgb
    sound: Callable[[Floats], Floats] = lambda samples: samples
    crf: int = 23
    skip_s: float = 0.0
    container: str = "mp4"


def even(rgb: Bytes) -> Bytes:
    """Cut to an even size, as the encoder wants it."""
    return np.ascontiguousarray(rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2])


def cropped(fraction: float) -> Callable[[Bytes], Bytes]:
    """Takes this fraction away at every edge."""

    def crop(rgb: Bytes) -> Bytes:
        y, x = (round(fraction * size) for size in rgb.shape[:2])
        return rgb[y : rgb.shape[0] - y, x : rgb.shape[1] - x]

    return crop


def halved(rgb: Bytes) -> Bytes:
    return np.asarray(cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)


def brighter(rgb: Bytes) -> Bytes:
    changed: Bytes = np.clip(rgb * 1.2 + 15, 0, 255).astype(np.uint8)
    return changed


def noisy(samples: Floats) -> Floats:
    """With noise 20 dB below it, of its own: one noise over two silent clips would make them one."""
    random = np.random.default_rng(int(np.abs(samples).sum() * 1000))
    noise = random.standard_normal(len(samples)) * samples.std() * 10 ** (-20 / 20)
    changed: Floats = (samples + noise).astype(np.float32)
    return changed


CHANGES = {
    "encoded again, crf 35": Change(crf=35),
    "half the size": Change(picture=halved),
    "2% cropped at every edge": Change(picture=cropped(0.02)),
    "5% cropped at every edge": Change(picture=cropped(0.05)),
    "begins 0.37 s later": Change(skip_s=0.37),
    "begins 1.2 s later": Change(skip_s=1.2),
    "Matroska": Change(container="mkv"),
    "brighter, quieter": Change(picture=brighter, sound=lambda samples: samples * np.float32(0.5)),
    "noise at 20 dB": Change(sound=noisy),
}

Span = tuple[list[Bytes], Floats]
"""Frames at `FPS`, and audio at 16 kHz."""


def read(path: Path) -> Span:
    """The whole file; without frames or audio where it has none of one."""
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    if not video.has_audio:
        return [], np.zeros(0, np.float32)
    frames: list[Bytes] = []
    for frame in media.read_frames(path, video):
        while video.start_s + len(frames) / FPS < frame.until_s - 1e-3:
            frames.append(even(frame.rgb(longest_edge_px=EDGE_PX)))
    return frames, media.read_audio(path, video, video.start_s, video.end_s)


def spans(span: Span) -> list[Span]:
    """Pieces of `SPAN_S` that do not overlap and have audio."""
    frames, samples = span
    count = int(min(len(frames) / FPS, len(samples) / AUDIO_HZ) / SPAN_S)
    num_frames, num_samples = round(SPAN_S * FPS), round(SPAN_S * AUDIO_HZ)
    pieces = [
        (frames[k * num_frames : (k + 1) * num_frames], samples[k * num_samples : (k + 1) * num_samples])
        for k in range(count)
    ]
    return [piece for piece in pieces if np.abs(piece[1]).max() > 0.01]


def copied(span: Span, change: Change, folder: Path) -> Span:
    """A changed copy, through a file."""
    frames, samples = span
    frames = [even(change.picture(rgb)) for rgb in frames[round(change.skip_s * FPS) :]]
    sound = np.repeat(change.sound(samples[round(change.skip_s * AUDIO_HZ) :]), MP4_HZ // AUDIO_HZ)
    path = folder / "copy.mp4"
    media.encode_mp4(path, frames, FPS, np.stack([sound, sound], 1), change.crf, "veryfast")
    if change.container == "mp4":
        return read(path)
    other = folder / f"copy.{change.container}"
    with av.open(str(path)) as old, av.open(str(other), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return read(other)


@dataclass
class Spent:
    """CPU seconds by what they were spent on, and the seconds of clips that they were spent for."""

    cpu_s: dict[str, float] = field(default_factory=lambda: {"pictures": 0.0, "sound": 0.0})
    footage_s: float = 0.0


def printed(span: Span, spent: Spent) -> Fingerprint:
    """Fingerprint of a span; adds what it costs."""
    frames, samples = span
    begin_s = time.process_time()
    hasher = FrameHasher(len(frames), FPS)
    for k, rgb in enumerate(frames):
        hasher.push(range(k, k + 1), rgb, FACE * np.array([rgb.shape[1], rgb.shape[0]] * 2, np.float32))
    between_s = time.process_time()
    sound = hash_audio(samples)
    end_s = time.process_time()
    spent.cpu_s["pictures"] += between_s - begin_s
    spent.cpu_s["sound"] += end_s - between_s
    spent.footage_s += len(frames) / FPS
    return Fingerprint(len(frames) / FPS, hasher.hashes, hasher.face_boxes, sound)


def made(count: int, duration_s: int = 8) -> list[tuple[str, Fingerprint]]:
    """Clips of random landmarks, as dense as those of speech; every twentieth comes again with four in
    ten of its landmarks. Two clips share a token by chance as often as two clips of speech at most."""
    random = np.random.default_rng(0)
    pictures = np.zeros((2 * duration_s, 8), np.uint8)
    faces = np.tile(FACE, (2 * duration_s, 1))

    def landmarks() -> NDArray[np.uint64]:
        peaks = np.sort(random.integers(0, 250 * duration_s, 50 * duration_s)) << 20
        peaks |= random.integers(0, 128, len(peaks)) << 12
        return np.unique(peaks | random.integers(0, 700, (3, len(peaks)))).astype(np.uint64)

    sounds = [landmarks() for _ in range(count)]
    for k in range(count // 20):
        old, new = sounds[k], landmarks()
        kept = (old[random.random(len(old)) < 0.4], new[random.random(len(new)) < 0.6])
        sounds[count - 1 - k] = np.unique(np.concatenate(kept))
    return [(str(k), Fingerprint(float(duration_s), pictures, faces, s)) for k, s in enumerate(sounds)]


def originals(folder: Path) -> dict[str, Span]:
    """The spans of the clips in a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".mp4", ".mpg"))
    return {f"{p.name}@{k}": span for p in files for k, span in enumerate(spans(read(p)))}


def scored(
    originals: dict[str, Span], first: list[tuple[str, Fingerprint]], change: Change, spent: Spent
) -> tuple[int, int]:
    """How many changed copies are found, and how many other pairs are called the same.

    `first` are the originals' fingerprints.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copies = [
            (f"{name} copy", printed(copied(span, change, Path(scratch)), spent))
            for name, span in originals.items()
        ]
    found = near_duplicates([*first, *copies])
    right = sum(found.get(f"{name} copy") == name for name in originals)
    return right, len(found) - right


def main(folder: Annotated[Path, typer.Argument()] = FOLDER, clips: int = 20_000) -> None:
    """Copies found, pairs that are none, and what it costs."""
    spent, all_spans = Spent(), originals(folder)
    first = [(name, printed(span, spent)) for name, span in all_spans.items()]
    typer.echo(f"{len(first)} spans; repeats among them: {near_duplicates(first)}")
    for title, change in CHANGES.items():
        right, wrong = scored(all_spans, first, change, spent)
        typer.echo(f"| {title} | {right} of {len(first)} | {wrong} |")
    for what, cpu_s in spent.cpu_s.items():
        typer.echo(f"{what}: {1000 * cpu_s / spent.footage_s:.2f} CPU ms for each second of a clip")
    many = made(clips)
    begin_s = time.process_time()
    found = near_duplicates(many)
    typer.echo(
        f"{clips} made clips: {len(found)} of {clips // 20} found, {time.process_time() - begin_s:.1f} CPU s"
    )


if __name__ == "__main__":
    cv2.setNumThreads(1)
    typer.run(main)
