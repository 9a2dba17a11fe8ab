"""How well, and at what cost, the detectors of cuts do: the tables of docs/scenes.md.

    python -m benchmarks.cuts [FOLDER]     # FOLDER holds the clips named below

Cuts are made where there were none, out of real frames, so that each is known to the frame.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import cv2
import numpy as np
import torch
import typer

from talkforge.curation import media
from talkforge.curation.face.detect import FaceDetector, load_detector
from talkforge.curation.media import probe
from talkforge.curation.shots.jumps import COLOUR_EDGE_PX, CutDetector, pyscenedetect
from talkforge.curation.shots.network import network_frame, transitions
from talkforge.curation.shots.transnet import TransNet
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.records import Input

FOLDER = Path("../shared/clips")
FPS = 25.0
CANVAS_PX = (480, 360)
"""Width and height of joined footage; each clip is scaled to cover it and cropped."""

STUDIO = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
SINGLES = ("st_katie.mp4", "vr_1.mp4", "lp_s18.mp4", "wh_kennedy_low.mp4", "sk_carphone_pristine.mp4")
"""Clips of one shot, beside those of the studio."""

NATIVE = {"fr_hamilton.mp4": (20, 82, 211), "ls_demo3.mp4": (271,)}
"""Clips with cuts of their own, by frame."""

JUMPS_FRAMES = (12, 40)
ZOOMS = (1.15, 1.4)
FLASH = "flash (no cut)"
GRADUAL_FRAMES = 12
NEAR_FRAMES = 2

Found = TypeVar("Found")

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Footage:
    """Frames uint8 [N, H, W, 3], the first frames of new shots, and the spans [a, b) of gradual
    transitions, in which a single cut, anywhere, is right."""

    kind: str
    frames: Bytes
    cuts: tuple[int, ...] = ()
    gradual: tuple[tuple[int, int], ...] = ()


@dataclass
class Score:
    """Counts over footage."""

    found: int = 0
    right: int = 0
    near: int = 0
    true: int = 0

    def add(self, other: Score) -> None:
        self.found += other.found
        self.right += other.right
        self.near += other.near
        self.true += other.true

    def f1(self, right: int) -> float:
        total = self.found + self.true
        return 2 * right / total if total else 1.0


@dataclass
class Tally:
    """What came of one detector."""

    name: str
    cpu_s: float = 0.0
    num_frames: int = 0
    scores: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))


# --- footage ---------------------------------------------------------------------------------------


def loaded(path: Path) -> Bytes:
    """Every frame of a clip on the canvas."""
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    return np.stack([on_canvas(frame.rgb()) for frame in media.read_frames(path, video)])


def on_canvas(rgb: Bytes, zoom: float = 1.0) -> Bytes:
    """Scaled to cover the canvas, `zoom` times over; of an upright frame the upper part is kept."""
    width_px, height_px = CANVAS_PX
    scale = zoom * max(width_px / rgb.shape[1], height_px / rgb.shape[0])
    size = (max(width_px, round(rgb.shape[1] * scale)), max(height_px, round(rgb.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(rgb, size, interpolation=interpolation)
    left, top = (size[0] - width_px) // 2, (size[1] - height_px) // 3
    return np.asarray(scaled[top : top + height_px, left : left + width_px])


def joined(kind: str, shots: Iterable[Bytes]) -> Footage:
    parts = list(shots)
    starts = list(itertools.accumulate(len(part) for part in parts))[:-1]
    return Footage(kind, np.concatenate(parts), tuple(starts))


def different(clips: dict[str, Bytes]) -> Iterator[Footage]:
    """Shots of 20 to 60 frames, each of another clip than the one before."""
    random = np.random.default_rng(0)
    names = [name for name in clips if name not in NATIVE]
    for _ in range(3):
        shots, last = [], ""
        for _ in range(10):
            last = str(random.choice([name for name in names if name != last]))
            length = int(random.integers(20, 60))
            start = int(random.integers(0, len(clips[last]) - length))
            shots.append(clips[last][start : start + length])
        yield joined("different clips", shots)


def one_studio(clips: dict[str, Bytes]) -> Iterator[Footage]:
    """Every speaker of the studio after every other."""
    for a, b in itertools.permutations(STUDIO, 2):
        yield joined("one studio, another speaker", [clips[a][10:45], clips[b][30:65]])


def punched_in(clips: dict[str, Bytes]) -> Iterator[Footage]:
    for name, zoom in itertools.product((*STUDIO, *SINGLES), ZOOMS):
        frames = clips[name][:70]
        yield joined("punch-in", [frames[:35], np.stack([on_canvas(f, zoom) for f in frames[35:]])])


def jumped(clips: dict[str, Bytes]) -> Iterator[Footage]:
    """A span of the same shot left out."""
    for name, left_out in itertools.product((*STUDIO, *SINGLES), JUMPS_FRAMES):
        frames = clips[name]
        if len(frames) >= left_out + 60:
            yield joined("jump cut", [frames[:30], frames[30 + left_out : 60 + left_out]])


def gradual(clips: dict[str, Bytes]) -> Iterator[Footage]:
    """Dissolves, and fades through black."""
    names = [*STUDIO[:2], *SINGLES[:4]]
    for a, b in itertools.pairwise([*names, names[0]]):
        first, second, span = clips[a][:60], clips[b][:60], GRADUAL_FRAMES
        ramp = (np.arange(1, span + 1) / (span + 1))[:, None, None, None]
        mixed = (1 - ramp) * first[-span:] + ramp * second[:span]
        frames = np.concatenate([first[:-span], np.round(mixed).astype(np.uint8), second[span:]])
        yield Footage("dissolve", frames, gradual=((len(first) - span, len(first)),))
        dark = np.concatenate([(1 - ramp) * first[-span:], ramp * second[:span]]).round().astype(np.uint8)
        frames = np.concatenate([first[:-span], dark, second[span:]])
        yield Footage("fade through black", frames, gradual=((len(first) - span, len(first) + span),))


def flashed(clips: dict[str, Bytes]) -> Iterator[Footage]:
    """Photographers' flashes of one and of two frames; no cut."""
    for name in (*STUDIO, *SINGLES):
        frames = clips[name][:75].copy()
        for start, stop in ((25, 26), (50, 52)):
            frames[start:stop] = np.clip(frames[start:stop].astype(np.float32) * 1.5 + 90, 0, 255)
        yield Footage(FLASH, frames)


def native(clips: dict[str, Bytes]) -> Iterator[Footage]:
    for name, cuts in NATIVE.items():
        yield Footage("own cuts of two clips", clips[name], cuts)
    for name in (*STUDIO, *SINGLES):
        yield Footage("one shot (no cut)", clips[name])


MAKERS = (different, one_studio, punched_in, jumped, native, gradual, flashed)


# --- detectors ---------------------------------------------------------------------------------------


def by_scenedetect(name: str) -> Callable[[Bytes], list[int]]:
    def find(frames: Bytes) -> list[int]:
        detector, cuts = getattr(pyscenedetect(), name)(), []
        for index, rgb in enumerate(frames):
            small = cv2.resize(rgb, (COLOUR_EDGE_PX, COLOUR_EDGE_PX * rgb.shape[0] // rgb.shape[1]))
            cuts += detector.process_frame(index, small[..., ::-1].copy())
        return [int(cut) for cut in cuts]

    return find


def by_cut_detector(detector: FaceDetector) -> Callable[[Bytes], list[int]]:
    def find(frames: Bytes) -> list[int]:
        cut_detector = CutDetector(ScanConfig(), lambda k: detector.detect(frames[k])[0], frames.shape[2])
        for index, rgb in enumerate(frames):
            cut_detector.push(index / FPS, rgb)
        return [cut.frame for cut in cut_detector.finish()]

    return find


def either(cuts: list[int], more: list[int]) -> list[int]:
    """The cuts, and those of `more` that lie apart from them."""
    return sorted(cuts + [m for m in more if all(abs(m - cut) > GRADUAL_FRAMES for cut in cuts)])


def timed(find: Callable[[Bytes], Found], frames: Bytes) -> tuple[Found, float]:
    """What was found, and the CPU seconds it took."""
    start_s = time.process_time()
    found = find(frames)
    return found, time.process_time() - start_s


class Detectors:
    """All ways to find cuts; what one of them computes serves those that are built on it."""

    def __init__(self) -> None:
        self._network = TransNet(registry.weights("transnetv2"))
        self._with_faces = by_cut_detector(load_detector(ScanConfig()))

    def find(self, frames: Bytes) -> dict[str, tuple[list[int], float]]:
        """Name -> first frames of new shots, and CPU seconds."""
        faces, faces_s = timed(self._with_faces, frames)
        marks, network_s = timed(self._probabilities, frames)
        at = {t: [change.first for change in transitions(marks, t)] for t in (0.5, 0.4, 0.2)}
        return {
            "PySceneDetect content": timed(by_scenedetect("ContentDetector"), frames),
            "PySceneDetect adaptive": timed(by_scenedetect("AdaptiveDetector"), frames),
            "adaptive + faces": (faces, faces_s),
            **{f"TransNet V2 at {threshold}": (cuts, network_s) for threshold, cuts in at.items()},
            "adaptive + faces + TransNet V2 at 0.5": (either(faces, at[0.5]), faces_s + network_s),
        }

    def _probabilities(self, frames: Bytes) -> Floats:
        return self._network.boundaries(np.stack([network_frame(rgb) for rgb in frames]))


# --- figures ---------------------------------------------------------------------------------------


def scored(footage: Footage, found: list[int]) -> Score:
    """Each true cut is met once, by the nearest found one; what is left over is false."""
    score = Score(found=len(found), true=len(footage.cuts) + len(footage.gradual))
    left = set(found)
    for cut in footage.cuts:
        nearest = min(left, key=lambda f: (abs(f - cut), f), default=None)
        if nearest is not None and abs(nearest - cut) <= NEAR_FRAMES:
            left.remove(nearest)
            score.near += 1
            score.right += nearest == cut
    for start, stop in footage.gradual:
        inside = [f for f in left if start <= f <= stop]
        score.near += bool(inside)
        score.right += bool(inside)
    return score


def measured(clips: dict[str, Bytes]) -> list[Tally]:
    detectors = Detectors()
    tallies: dict[str, Tally] = {}
    for footage in itertools.chain.from_iterable(make(clips) for make in MAKERS):
        for name, (found, cpu_s) in detectors.find(footage.frames).items():
            tally = tallies.setdefault(name, Tally(name))
            tally.cpu_s += cpu_s
            tally.num_frames += len(footage.frames)
            tally.scores[footage.kind].add(scored(footage, found))
    return list(tallies.values())


def summed(tally: Tally, kinds: Iterable[str]) -> Score:
    total = Score()
    for kind in kinds:
        total.add(tally.scores[kind])
    return total


def cell(score: Score) -> str:
    """Cuts found within two frames, and false ones."""
    false = score.found - score.near
    return f"{score.near} +{false}" if false else str(score.near)


def table(everything: list[Tally]) -> str:
    kinds = list(everything[0].scores)
    lines = ["| footage | cuts | " + " | ".join(f.name for f in everything) + " |"]
    lines.append("|---|---|" + "---|" * len(everything))
    for kind in kinds:
        cells = [cell(detector.scores[kind]) for detector in everything]
        lines.append(f"| {kind} | {everything[0].scores[kind].true} | " + " | ".join(cells) + " |")
    everywhere = [summed(t, kinds) for t in everything]
    unlit = [summed(t, [kind for kind in kinds if kind != FLASH]) for t in everything]
    rows = {
        "F1, exact frame": [t.f1(t.right) for t in everywhere],
        "F1, within 2": [t.f1(t.near) for t in everywhere],
        "F1 without flashes, exact": [t.f1(t.right) for t in unlit],
        "F1 without flashes, within 2": [t.f1(t.near) for t in unlit],
    }
    for name, values in rows.items():
        lines.append(f"| **{name}** | | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    costs = [f"{1000 * f.cpu_s / f.num_frames:.1f}" for f in everything]
    lines.append("| **CPU ms per frame** | | " + " | ".join(costs) + " |")
    return "\n".join(lines)


@app.command()
def main(folder: Annotated[Path, typer.Argument()] = FOLDER) -> None:
    """Print the table for the clips in FOLDER."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clips = {name: loaded(folder / name) for name in (*STUDIO, *SINGLES, *NATIVE)}
    typer.echo(table(measured(clips)))


if __name__ == "__main__":
    app()
