"""Drift and seams of long videos: `python -m benchmarks.long_video RUN` generates and measures them.

Portraits and speech are synthetic (`examples/learn_videos.py`, `SEEDS`). Sentences, framing and colours were
never trained on. The people were.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from examples import learn_videos
from examples.learn_measures import luma
from examples.portraits import frame
from examples.speech import SPEECH_HZ
from talkforge.curation.face.identity import Embedder, align, load_embedder
from talkforge.curation.media.encode import decode_mp4
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import IdentityConfig
from talkforge.schemas.units import LATENT_STRIDE_FRAMES
from talkforge.training.generate.job import Job, load, make, sample_config
from talkforge.training.generate.long_video import Window
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.portrait import Portrait, faces, framing, portrait_of, read_portrait

SEEDS = (3_000_002, 3_000_003)

STRANGER = "hopper"
"""Portrait of `examples/portraits.py` that none of the videos shows."""

ENLARGED = 4
"""Frames are enlarged so much before a face in them is embedded."""

COMPARED_S = 5
"""The first and the last so many seconds are compared."""


@dataclass(frozen=True)
class Drift:
    """How the last seconds of a video differ from the first.

    Attributes:
        colour: largest difference of the mean colour of a second from that of the first ones, grey levels.
        last_colour: the same of the last seconds.
        sharpness: variance of the Laplacian in the last seconds over that in the first ones.
        likeness: least correlation of a second's mean frame with that of the first second.
    """

    colour: float
    last_colour: float
    sharpness: float
    likeness: float


def drift(rgb: Bytes, fps: int) -> Drift:
    """Drift of a video, second by second.

    Args:
        rgb: frames, uint8 [F, H, W, 3], at least two seconds.
        fps: frames per second.
    """
    seconds = [rgb[first : first + fps] for first in range(0, len(rgb) - fps + 1, fps)]
    colour = np.stack([second.mean(axis=(0, 1, 2)) for second in seconds])
    sharp = np.array([np.mean([cv2.Laplacian(one, cv2.CV_32F).var() for one in luma(s)]) for s in seconds])
    means = [second.mean(axis=0).ravel() for second in seconds]
    few = max(1, min(COMPARED_S, len(seconds) // 2))
    begin = colour[:few].mean(axis=0)
    return Drift(
        colour=float(np.abs(colour - begin).max()),
        last_colour=float(np.abs(colour[-few:].mean(axis=0) - begin).max()),
        sharpness=float(sharp[-few:].mean() / sharp[:few].mean()),
        likeness=float(min(np.corrcoef(means[0], mean)[0, 1] for mean in means)),
    )


def frame_points(portrait: Portrait, size_px: int) -> Floats:
    """Landmarks of a portrait in the square frame that a model of `size_px` gets, [478, 2] px.

    Args:
        portrait: with a face.
        size_px: edge of the frame.
    """
    assert portrait.points is not None
    own = portrait.rgb.shape[:2]
    crop = framing(own, (size_px, size_px), portrait.box, portrait.points)
    scale = np.array(crop.scaled[::-1]) / own[::-1]
    return np.asarray(portrait.points[:, :2] * scale - (crop.left, crop.top), np.float32)


def embedding(rgb: Bytes, points: Floats, embedder: Embedder) -> Floats:
    """Identity embedding of some frames, of unit length, [D].

    The face is looked for at given landmarks: in frames of 64 px a detector finds too few.

    Args:
        rgb: uint8 [F, H, W, 3].
        points: landmarks of the face in all of them, [478, 2] px.
        embedder: of faces.
    """
    size = (rgb.shape[2] * ENLARGED, rgb.shape[1] * ENLARGED)
    large = [np.asarray(cv2.resize(one, size, interpolation=cv2.INTER_CUBIC), np.uint8) for one in rgb]
    mean = embedder.embed(np.stack([align(one, points * ENLARGED) for one in large])).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def identity(
    rgb: Bytes, fps: int, points: Floats, stranger: Floats, embedder: Embedder
) -> tuple[float, float]:
    """Similarity of the face in the last seconds to that in the first ones, and to a stranger's.

    Args:
        rgb: frames, uint8 [F, H, W, 3].
        fps: frames per second. One frame of each second is looked at.
        points: see `embedding`.
        stranger: embedding of another person, at the same size.
        embedder: of faces.
    """
    looked = rgb[::fps]
    few = max(1, min(COMPARED_S, len(looked) // 2))
    first, last = (embedding(part, points, embedder) for part in (looked[:few], looked[-few:]))
    return float(first @ last), float(stranger @ last)


def borders(windows: list[Window], latents: int) -> list[int]:
    """Frames, each the last one before the first new latent frame of a window.

    Args:
        windows: of the video.
        latents: latent frames of the video.
    """
    covered, found = len(windows[0]), []
    for window in windows[1:]:
        # With overlap the first frame that a window has a say in; with context the first that it makes anew.
        found += [LATENT_STRIDE_FRAMES * (first - 1) for first in (window[1], covered) if first < latents]
        covered = window[-1] + 1
    return sorted({*found})


@dataclass(frozen=True)
class Seams:
    """Mean brightness difference of neighbouring frames, grey levels: mean and 95th percentile.

    Attributes:
        at_borders: across the borders of windows.
        elsewhere: across the other borders of latent frames. A codec that encodes four frames at a time shows
            these borders in any video.
    """

    at_borders: tuple[float, float]
    elsewhere: tuple[float, float]


def seams(rgb: Bytes, at: list[int]) -> Seams:
    """Differences at the borders of windows beside those elsewhere.

    Args:
        rgb: frames, uint8 [F, H, W, 3].
        at: see `borders`.
    """
    change = np.abs(np.diff(luma(rgb), axis=0)).mean(axis=(1, 2))
    inside = np.zeros(len(change), bool)
    inside[[k for k in at if k < len(change)]] = True
    latent = np.zeros(len(change), bool)
    latent[LATENT_STRIDE_FRAMES::LATENT_STRIDE_FRAMES] = True
    return Seams(_spread(change[inside]), _spread(change[latent & ~inside]))


def _spread(change: Floats) -> tuple[float, float]:
    return (float(change.mean()), float(np.percentile(change, 95))) if len(change) else (0.0, 0.0)


def subject(seed: int, duration_s: float, folder: Path) -> tuple[Path, Path]:
    """A portrait and speech that were never trained on, as files."""
    scene = learn_videos.scene(seed, duration_s)
    image, audio = folder / f"{seed}.png", folder / f"{seed}-{duration_s:g}.wav"
    cv2.imwrite(str(image), scene.head.picture[..., ::-1])
    with wave.open(str(audio), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_HZ)
        file.writeframes((np.clip(scene.take.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return image, audio


def measure(
    pipeline: GenerationPipeline, source: Source, way: str, duration_s: float, out: Path
) -> list[Bytes]:
    """Print the figures of the videos of one way. Returns the videos."""
    settings = sample_config(pipeline, {"windows": way})
    embedder = load_embedder(IdentityConfig(model="dlib"))
    assert embedder is not None
    size_px = pipeline.config.data.sizes[0][0]
    picture = frame(STRANGER, learn_videos.SIZE_PX, learn_videos.SIZE_PX).picture
    other = portrait_of(picture, faces(picture))
    stranger = embedding(other.framed([(size_px, size_px)])[None], frame_points(other, size_px), embedder)
    videos = []
    for seed in SEEDS:
        image, audio = subject(seed, duration_s, out)
        begin_s = time.process_time()
        job = Job(image, audio, out / f"{seed}-{way}.mp4")
        make(pipeline, source, job, settings)
        spent_s = time.process_time() - begin_s
        rgb = decode_mp4(job.out.read_bytes())
        windows = pipeline.windows(-(-(len(rgb) - 1) // LATENT_STRIDE_FRAMES) + 1, settings)
        found, jumps = drift(rgb, round(pipeline.info.fps)), seams(rgb, borders(windows, windows[-1][-1] + 1))
        points = frame_points(read_portrait(image), size_px)
        alike = identity(rgb, round(pipeline.info.fps), points, stranger, embedder)
        changes = (f"{mean:.1f} / {high:.1f}" for mean, high in (jumps.at_borders, jumps.elsewhere))
        cells = (
            way, str(seed), f"{len(rgb)}", f"{found.colour:.1f}", f"{found.last_colour:.1f}",
            f"{found.sharpness:.2f}", f"{found.likeness:.3f}",
            f"{alike[0]:.3f} / {alike[1]:.3f}", *changes, f"{spent_s:.0f}",
        )  # fmt: skip
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        videos.append(rgb)
    return videos


def strip(videos: list[Bytes], columns: int = 12) -> Bytes:
    """Frames of each video in a row, evenly spaced, uint8 [H, W, 3]."""
    rows = [np.hstack(list(rgb[:: max(1, len(rgb) // columns)][:columns])) for rgb in videos]
    return np.asarray(
        cv2.resize(np.vstack(rows), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC), np.uint8
    )


def main() -> None:
    """Print a row for each video, then the peak of memory; write `strip.jpg`."""
    parser = argparse.ArgumentParser(prog="benchmarks.long_video", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--windows", nargs="+", default=["overlap"], help="overlap, continue")
    parser.add_argument("--out", type=Path, default=Path("long-video"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    source = Source(options.run)
    pipeline = load(source, [], {}, "cpu")
    videos = [
        rgb for way in options.windows for rgb in measure(pipeline, source, way, options.seconds, options.out)
    ]
    cv2.imwrite(str(options.out / "strip.jpg"), strip(videos)[..., ::-1])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"peak of memory: {peak_mb:.0f} MB\n")


if __name__ == "__main__":
    main()
