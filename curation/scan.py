"""The sparse pass over a window of a video: its scenes, and the faces in samples of its frames.

Every frame is decoded once and scaled to a small size for shot boundary detection. Faces are detected in
larger frames, the samples: at regular instants, in the first and the last frame, and on both sides of every
possible cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.crop import in_view
from talkforge.curation.face.detect import FaceDetector, link
from talkforge.curation.media import Frame, read_frames
from talkforge.curation.media.timeline_files import timeline_of
from talkforge.curation.shots.jumps import COLOUR_EDGE_PX, NEIGHBOUR_FRAMES, Cut, CutDetector, scenes
from talkforge.curation.shots.network import ShotNetwork, TransitionDetector
from talkforge.schemas.arrays import Bytes, Detections, FaceTrack, Floats
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Rectangle, Scene, Video

TRACK_IMAGE_EDGE_PX = 320
"""Longest edge of the image that is kept of each track."""

_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 90)
_EPSILON_S = 1e-6


@dataclass(frozen=True)
class TrackImage:
    """The sample of a track that is nearest to its middle.

    Attributes:
        time_s: its time in source seconds.
        rgb: uint8 [H, W, 3], longest edge at most 320 px.
        box: [4] x0, y0, x1, y1 of the face in pixels of `rgb`.
    """

    time_s: float
    rgb: Bytes
    box: Floats


@dataclass(frozen=True)
class Scan:
    """The result of the sparse pass. Scenes and tracks are numbered from 0 within the window.

    Attributes:
        scenes: cover the decoded part of the window without gap or overlap.
        tracks: face tracks of all scenes, with boxes in source display pixels.
        detections: faces of every sample, in order of time, with boxes in source display pixels.
        images: one for each track, by the track's number.
    """

    scenes: tuple[Scene, ...]
    tracks: tuple[FaceTrack, ...]
    detections: tuple[Detections, ...]
    images: dict[int, TrackImage]


def scan(
    path: Path,
    video: Video,
    start_s: float,
    end_s: float,
    config: ScanConfig,
    detector: FaceDetector,
    network: ShotNetwork | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Scan:
    """Scenes and face tracks of [start_s, end_s) of a video.

    It holds a dozen decoded frames, and about 30 kB for each second of footage, or 130 kB with a network.

    Args:
        path: local copy of the video.
        video: what the probe found of it.
        start_s: start of the window in source seconds.
        end_s: end of the window in source seconds, exclusive.
        config: distance of the samples, size of the frames, detectors.
        detector: detects the faces.
        network: detects dissolves and fades, see `curation.shots.network`. None: they are not detected.
        on_progress: called for each frame with its time, source seconds.

    Raises:
        MediaError: no frame of the window can be decoded.
    """
    samples = _Samples(video, config, detector)
    cut_detector = CutDetector(config, lambda number: samples.detect(number).boxes, video.width_px)
    transition_detector = TransitionDetector(network) if network else None
    breaks = _Breaks(timeline_of(path, video.uri, video.audio_track).breaks_s)
    grid = 0
    begin_s = until_s = None
    for frame in read_frames(path, video, start_s, end_s):
        time_s = max(frame.time_s, start_s)
        begin_s = time_s if begin_s is None else begin_s
        until_s = frame.until_s
        on_progress(time_s)
        number = samples.push(time_s, frame)
        breaks.push(number, time_s, frame)
        small = frame.rgb(longest_edge_px=COLOUR_EDGE_PX)
        cut_detector.push(time_s, small)
        if transition_detector is not None:
            transition_detector.push(time_s, small)
        if start_s + grid * config.sample_s < until_s - _EPSILON_S:
            samples.detect(number)
            grid = int((until_s - _EPSILON_S - start_s) // config.sample_s) + 1
    if begin_s is None or until_s is None:
        raise MediaError(f"{video.uri!r}: expected frames in {start_s:g}..{end_s:g} s, found none")
    samples.detect(samples.num_frames - 1)
    cuts = transition_detector.finish(cut_detector.finish()) if transition_detector else cut_detector.finish()
    cuts = breaks.merged(cuts)
    found = scenes(video.video_id, begin_s, min(until_s, end_s), cuts)
    detections = samples.detections()
    tracks = link(detections, found, detector.name)
    return Scan(found, tracks, detections, {t.track: samples.image(t) for t in tracks})


class _Breaks:
    """Cuts that need no look at the frames: joins of the clock, gaps in the video, changes of frame size."""

    def __init__(self, breaks_s: Sequence[float]) -> None:
        self._waiting = list(breaks_s)
        self._size: tuple[int, int] | None = None
        self._cuts: list[Cut] = []

    def push(self, index: int, time_s: float, frame: Frame) -> None:
        """Take the next frame."""
        passed = [at for at in self._waiting if at <= time_s + _EPSILON_S]
        self._waiting = self._waiting[len(passed) :]
        if self._size not in (None, frame.coded_size):
            self._cuts.append(Cut(index, time_s, "frame_size"))
        elif passed and index:
            self._cuts.append(Cut(index, time_s, "join"))
        self._size = frame.coded_size

    def merged(self, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
        """These cuts and those of `cuts` that lie elsewhere, in order."""
        own = {cut.frame for cut in self._cuts}
        return tuple(sorted([*self._cuts, *(c for c in cuts if c.frame not in own)], key=lambda c: c.frame))


class _Samples:
    """The last few frames, and the faces in those that became samples.

    A frame is named by its number within the window.
    """

    def __init__(self, video: Video, config: ScanConfig, detector: FaceDetector) -> None:
        self.num_frames = 0
        self._video = video
        self._edge_px = config.longest_edge_px
        self._detector = detector
        self._recent: dict[int, tuple[float, Frame]] = {}
        self._detections: dict[int, Detections] = {}
        self._jpegs: dict[float, Bytes] = {}

    def push(self, time_s: float, frame: Frame) -> int:
        """Take the next frame. Returns its number."""
        number = self.num_frames
        self._recent[number] = (time_s, frame)
        self._recent.pop(number - NEIGHBOUR_FRAMES - 2, None)
        self.num_frames += 1
        return number

    def detect(self, number: int) -> Detections:
        """The faces in a recent frame, which becomes a sample by that."""
        if number not in self._detections:
            time_s, frame = self._recent[number]
            rgb = frame.rgb(longest_edge_px=self._edge_px)
            boxes, scores = self._detector.detect(rgb)
            self._detections[number] = Detections(time_s, boxes * self._scale(rgb.shape), scores)
            if len(boxes):
                self._jpegs[time_s] = _jpeg(rgb)
        return self._detections[number]

    def detections(self) -> tuple[Detections, ...]:
        return tuple(self._detections[number] for number in sorted(self._detections))

    def image(self, track: FaceTrack) -> TrackImage:
        """The sample of the track that is nearest to its middle."""
        middle = int(np.argmin(np.abs(track.times_s - (track.start_s + track.end_s) / 2)))
        time_s = float(track.times_s[middle])
        rgb = cv2.cvtColor(cv2.imdecode(self._jpegs[time_s], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return TrackImage(time_s, np.asarray(rgb), track.boxes[middle] / self._scale(rgb.shape))

    def _scale(self, shape: tuple[int, ...]) -> Floats:
        """Factor [4] from pixels of an image [H, W, ...] to source display pixels, for boxes."""
        x, y = self._video.width_px / shape[1], self._video.height_px / shape[0]
        return np.array([x, y, x, y], np.float32)


def _jpeg(rgb: Bytes) -> Bytes:
    """The frame as JPEG, at the size of a `TrackImage`."""
    height_px, width_px = rgb.shape[:2]
    scale = min(1.0, TRACK_IMAGE_EDGE_PX / max(height_px, width_px))
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), _JPEG)
    return np.asarray(data)


def faces_visible(
    detections: Sequence[Detections], start_s: float, end_s: float, crop: Rectangle | None = None
) -> int:
    """Most faces visible at once in the samples of [start_s, end_s), in a crop or in the whole frame.

    A number of faces counts only if two consecutive samples reach it, so that one false detection in a long
    clip does not count. If the span holds a single sample, that one decides.
    """
    counts = [in_view(d, crop) for d in detections if start_s - _EPSILON_S <= d.time_s < end_s - _EPSILON_S]
    if len(counts) < 2:
        return sum(counts)
    return max(min(pair) for pair in itertools.pairwise(counts))
