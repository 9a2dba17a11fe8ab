"""What the rows of `benchmarks.models` are measured on: real clips, scanned and traced once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from talkforge.curation import clips, media, scan, trace
from talkforge.curation.face import detect, landmarks
from talkforge.curation.media import probe
from talkforge.curation.sync import contrastive
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.records import Clip, Input, Speaker, Video

STUDIO = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
TALKING = (*STUDIO, "ls_demo3.mp4", "st_katie.mp4", "vr_1.mp4")
"""One person each, talking; their recordings are taken to be in sync."""

SILENT = "lp_s18.mp4"
"""One person, not talking, while music plays."""

NOBODY = "sk_bigbuckbunny.mp4"
STAGE = "fr_hamilton.mp4"
GESTURES = "ls_demo3.mp4"

CONFIG = MeasureConfig()
NO_SPEAKER = Speaker(speaking_fraction=None, sync_c=None, sync_d=None, sync_net_offset_frames=None)

Found = TypeVar("Found")


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
    candidates: list[clips.Candidate]
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
        detector = detect.load_detector(CONFIG.scan)
        landmarker = landmarks.FaceLandmarker(registry.weights("face_landmarker"))
        detector.detect(np.zeros((64, 64, 3), np.uint8))  # the first call sets up its graph
        names = (*TALKING, SILENT, NOBODY)
        return {name: self._file(name, detector, landmarker) for name in names}

    @property
    def traced(self) -> list[tuple[File, Shot]]:
        """Of everybody, the one who is silent as well."""
        files = [self.files[name] for name in (*TALKING, SILENT)]
        return [(file, shot) for file in files for shot in file.traced]

    @property
    def talking(self) -> list[Shot]:
        return [shot for name in TALKING for shot in self.files[name].traced]

    def _file(self, name: str, detector: detect.FaceDetector, landmarker: landmarks.FaceLandmarker) -> File:
        path, video = opened(self.folder / name)
        seen = self.scanning.on(
            video.end_s - video.start_s,
            lambda: scan.scan(path, video, video.start_s, video.end_s, CONFIG.scan, detector),
        )
        found = clips.candidates(video, seen.tracks, (), CONFIG.clip)
        candidates = [one for one in found if one.clip.num_frames >= contrastive.MIN_FRAMES]
        kept: dict[str, Bytes] = {}

        def watch(clip: Clip, crops: Bytes) -> Speaker:
            kept[clip.clip_id] = crops
            return NO_SPEAKER

        length_s = sum(clip.num_frames / clip.fps for clip, _ in candidates)
        traced = self.tracing.on(
            length_s, lambda: trace.trace(path, video, candidates, landmarker, None, CONFIG, watch)
        )
        kept_shots = []
        for clip, _ in candidates:
            result = traced[clip.clip_id]
            if isinstance(result, Exception):
                raise result
            samples = media.read_audio(path, video, clip.start_s, clip.end_s)
            kept_shots.append(Shot(clip, result, kept[clip.clip_id], samples))
        return File(name, path, video, seen, candidates, kept_shots)


@dataclass(frozen=True)
class Row:
    """One line of the table: names of models, what was found, and the cost.

    `licence` is of what is neither in the registry nor ours, and free for commercial use.
    """

    models: tuple[str, ...]
    figures: str
    rate: float
    licence: str = "part of Talkforge"


def opened(path: Path) -> tuple[Path, Video]:
    return path, probe.probe(path, Input(uri=path.name), probe.content_hash(path))


def sound_of(material: Material, name: str) -> Floats:
    """All of a file's audio, at 16 kHz."""
    path, video = opened(material.folder / name)
    return media.read_audio(path, video, video.start_s, video.end_s)
