"""Where one shot ends and the next begins, exact to the frame.

Two kinds of evidence open a scene:

* `picture`: PySceneDetect's detectors see the colours of the whole picture change.
* `face_jump`: between two adjacent frames the picture changes far more than in the frames
  around them, and so does the face: it is elsewhere, of another size, gone, or changed where it
  stands. Cuts inside one studio and jump cuts of one speaker leave colours as they are; this
  is what gives them away. Neither half is enough: a spike alone may be a slide that changes
  behind the speaker, a face that moves is just a face that moves.

Dissolves and fades are seen by neither: `curation.shots.network` adds those, where a network is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import cv2
import numpy as np

from talkforge.curation.face.detect import displacements
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.records import Scene

ADAPTIVE_THRESHOLD = 3.5
"""Least ratio of a frame's colour change to that around it. Source: ours; PySceneDetect's default of
3.0 with a window of 2 takes a swaying head in film converted from 24 frames/s for a cut (3.1; with a
window of 3 it is 2.7, and true cuts are 5.8 to 17). On PySceneDetect's own benchmark this detector
is the best of five (F1 91.6 on BBC, 73.9 on AutoShot, exact frames)."""

CONTENT_THRESHOLD = 27.0
"""Least mean change of hue, saturation and luma, 0..255. Source: PySceneDetect's default."""

ADAPTIVE_WINDOW_FRAMES = 3
"""Frames on either side that the adaptive detector compares with. Source: as above."""

COLOUR_EDGE_PX = 256
"""Longest edge of the pictures compared by colour. Source: PySceneDetect scales to about this."""

CHANGE_EDGE_PX = 64
"""Longest edge of the grey pictures whose mean absolute difference is the change of a frame."""

NEIGHBOUR_FRAMES = 6
"""Frames on either side that a spike must stand out from; longer than the cycles of five or six
in which converted frame rates repeat or drop frames, which make spikes of their own."""

SPIKE = 2.0
"""Least ratio of a spike to the second largest change around it (the second, so that two cuts
close together do not hide each other). Source: ours; 2200 frames of continuous real footage stay
below 1.7, the four cuts between them reach 2.3 to 13."""

QUIET = 0.5
"""Change below which everything counts as equally still, grey levels of 255 (coding noise)."""

FACE_QUIET = 2.0
"""The same within the face, where fewer pixels are averaged and lips move."""

FACE_STEP = 0.1
"""Least distance that a face jumps in a cut, in face sizes. Source: ours; between adjacent frames
of continuous real footage faces move up to 0.07, a wildly swaying profile 0.15."""

FACE_GROWTH = 1.15
"""Least change of a face's size in a cut. Source: ours; continuous footage stays below 1.05."""

FACE_MARGIN = 0.15
"""Share of the face box left away on each side where the face itself is compared: background."""

OpenedBy = Literal["start", "picture", "face_jump", "transnet"]


@dataclass(frozen=True)
class Cut:
    """A new shot begins with frame number `frame` (0 is the first pushed), at `time_s`."""

    frame: int
    time_s: float
    opened_by: OpenedBy


class CutDetector:
    """Takes every frame of a video in order and gives the cuts; holds a few small pictures.

    Args:
        config: `scene_detector` "none" finds no cuts at all.
        detect_faces: boxes [n, 4] of the faces in a frame, by frame number. Asked for the last frame
            before and the first frame after a possible cut, at most `NEIGHBOUR_FRAMES + 1` frames
            after that frame was pushed.
        width_px: width of the picture in the pixels in which `detect_faces` gives boxes.
    """

    def __init__(self, config: ScanConfig, detect_faces: Callable[[int], Floats], width_px: int) -> None:
        self._detect_faces = detect_faces
        self._width_px = width_px
        self._detector = _picture_detector(config)
        self._num_detected = 0
        self._picture_cuts: set[int] = set()
        self._times_s: list[float] = []
        self._changes: list[float] = []
        self._greys: deque[Floats] = deque(maxlen=2 * NEIGHBOUR_FRAMES + 2)
        self._last_bgr: Bytes | None = None
        self._cuts: list[Cut] = []

    def push(self, time_s: float, rgb: Bytes) -> None:
        """The next frame: its instant in source seconds, and RGB uint8 [H, W, 3] of any size."""
        if self._detector is None:
            return
        bgr = cv2.cvtColor(_downscaled(rgb, COLOUR_EDGE_PX), cv2.COLOR_RGB2BGR)
        grey = _downscaled(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), CHANGE_EDGE_PX).astype(np.float32)
        if self._last_bgr is None:
            # The detector compares with frames before; without any it would miss early cuts.
            for _ in range(ADAPTIVE_WINDOW_FRAMES):
                self._detect(bgr)
        self._detect(bgr)
        self._changes.append(float(np.abs(grey - self._greys[-1]).mean()) if self._greys else 0.0)
        self._times_s.append(time_s)
        self._greys.append(grey)
        self._last_bgr = bgr
        self._decide(len(self._times_s) - 1 - NEIGHBOUR_FRAMES)

    def finish(self) -> tuple[Cut, ...]:
        """All cuts in order, after the last frame."""
        if self._last_bgr is not None:
            for _ in range(ADAPTIVE_WINDOW_FRAMES):
                self._detect(self._last_bgr)
            for frame in range(len(self._times_s) - NEIGHBOUR_FRAMES, len(self._times_s)):
                self._decide(frame)
        self._last_bgr = None
        return tuple(self._cuts)

    def _detect(self, bgr: Bytes) -> None:
        assert self._detector is not None
        index = self._num_detected
        self._num_detected += 1
        for cut in self._detector.process_frame(index, bgr):
            self._picture_cuts.add(int(cut) - ADAPTIVE_WINDOW_FRAMES)

    def _decide(self, frame: int) -> None:
        """Place a cut at `frame` if there is evidence for one."""
        if frame < 1:
            return
        by_picture = frame in self._picture_cuts
        if not by_picture and _peak_ratio(self._changes, frame, QUIET) < SPIKE:
            return
        before, after = self._detect_faces(frame - 1), self._detect_faces(frame)
        if by_picture:
            self._cuts.append(Cut(frame, self._times_s[frame], "picture"))
        elif (
            _face_jumped(before, after)
            or self._face_changed(frame, before)
            or self._face_changed(frame, after)
        ):
            self._cuts.append(Cut(frame, self._times_s[frame], "face_jump"))

    def _face_changed(self, frame: int, boxes: Floats) -> bool:
        """Whether the largest face changes at `frame` far more than around it."""
        if not len(boxes):
            return False
        scale = self._greys[-1].shape[1] / self._width_px
        x0, y0, x1, y1 = boxes[np.argmax(_areas(boxes))] * scale
        inset_x, inset_y = FACE_MARGIN * (x1 - x0), FACE_MARGIN * (y1 - y0)
        rows = slice(int(y0 + inset_y), int(np.ceil(y1 - inset_y)))
        columns = slice(int(x0 + inset_x), int(np.ceil(x1 - inset_x)))
        faces = np.stack(self._greys)[:, rows, columns]
        if not faces.size:  # a sliver of a face at the picture's edge
            return False
        changes = np.abs(np.diff(faces, axis=0)).mean(axis=(1, 2))
        index = len(changes) - len(self._times_s) + frame
        return _peak_ratio(changes.tolist(), index, FACE_QUIET) >= SPIKE


def scenes(video_id: str, start_s: float, end_s: float, cuts: Sequence[Cut]) -> tuple[Scene, ...]:
    """The span [start_s, end_s) divided at the cuts; scenes numbered from 0."""
    inside = [cut for cut in cuts if start_s < cut.time_s < end_s]
    starts = [start_s, *(cut.time_s for cut in inside)]
    ends = [*(cut.time_s for cut in inside), end_s]
    reasons: list[OpenedBy] = ["start", *(cut.opened_by for cut in inside)]
    return tuple(
        Scene(video_id=video_id, index=i, start_s=start, end_s=end, opened_by=reason)
        for i, (start, end, reason) in enumerate(zip(starts, ends, reasons, strict=True))
    )


def pyscenedetect() -> Any:
    """The package scenedetect, imported so that it starts no program.

    Its import runs `ffmpeg` to see whether there is one. That program reads the terminal, and the
    system stops a background job that does. Nothing here needs it: we only hand over frames.
    """
    with mock.patch("subprocess.call", return_value=0):
        import scenedetect
    return scenedetect


def _picture_detector(config: ScanConfig) -> Any:
    """PySceneDetect's detector. No least length of a scene: a cut left out would lie inside a
    clip, while a scene that is too short only gives a clip that is too short."""
    if config.scene_detector == "none":
        return None
    if config.scene_detector == "content":
        threshold = CONTENT_THRESHOLD if config.scene_threshold is None else config.scene_threshold
        return pyscenedetect().ContentDetector(threshold=threshold, min_scene_len=0)
    threshold = ADAPTIVE_THRESHOLD if config.scene_threshold is None else config.scene_threshold
    return pyscenedetect().AdaptiveDetector(threshold, min_scene_len=0, window_width=ADAPTIVE_WINDOW_FRAMES)


def _peak_ratio(changes: Sequence[float], index: int, quiet: float) -> float:
    """Ratio of a change to the second largest within `NEIGHBOUR_FRAMES`, at least `quiet`; near the
    ends, where there is less to compare with, to the largest."""
    around = [
        *changes[max(0, index - NEIGHBOUR_FRAMES) : index],
        *changes[index + 1 : index + 1 + NEIGHBOUR_FRAMES],
    ]
    around.sort()
    second_largest = around[-2] if len(around) == 2 * NEIGHBOUR_FRAMES else max(around, default=0.0)
    return changes[index] / max(second_largest, quiet)


def _face_jumped(before: Floats, after: Floats) -> bool:
    """Whether the largest face of either frame has no near counterpart in the other."""
    if not len(before) or not len(after):
        return len(before) != len(after)
    distance, growth = displacements(before, after)
    apart = (distance >= FACE_STEP) | (growth >= FACE_GROWTH)
    return bool(apart[np.argmax(_areas(before))].all() or apart[:, np.argmax(_areas(after))].all())


def _areas(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.float32)


def _downscaled(picture: Bytes, longest_edge_px: int) -> Bytes:
    """[H, W] or [H, W, 3] scaled down to a longest edge, never up."""
    height_px, width_px = picture.shape[:2]
    scale = longest_edge_px / max(height_px, width_px)
    if scale >= 1:
        return picture
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
