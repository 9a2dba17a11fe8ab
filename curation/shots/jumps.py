"""Detection of hard cuts, exact to the frame, by jumps of the colours and of the faces.

Two kinds of evidence open a scene:

* `picture`: PySceneDetect's detector finds that the colours of the whole frame change.
* `face_jump`: between two adjacent frames the image changes far more than in the frames around them, and so
  does the face. It is at another position, of another size, gone, or its own pixels change. This finds cuts
  inside one studio and jump cuts of one speaker, which leave the colours as they are. Both changes are
  needed: a change of the image alone may be a slide behind the speaker, and a change of the face alone may be
  motion.

Two things look like these and are none. A nod, a blink, or a frame that a conversion dropped changes the face
suddenly, but the change goes on in the frames around it, or is explained by motion. A photographer's flash
makes everything brighter, and a frame or two later all is as before.

Dissolves and fades are not detected here. `curation.shots.network` adds them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import cv2
import numpy as np

from talkforge.curation.face.detect import displacements
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.records import OpenedBy, Scene

ADAPTIVE_THRESHOLD = 3.5
"""Least ratio of a frame's colour change to the mean around it. Source: ours. PySceneDetect's default of 3.0
with a window of 2 takes a swaying head in film converted from 24 frames/s for a cut (ratio 3.1). With a
window of 3 that ratio is 2.7, while true cuts have 5.8 to 17. On PySceneDetect's own benchmark the adaptive
detector is the best of five (F1 91.6 on BBC and 73.9 on AutoShot, for exact frames)."""

CONTENT_THRESHOLD = 27.0
"""Least mean change of hue, saturation and luma, 0..255, for the content detector. Source: PySceneDetect's
default."""

ADAPTIVE_WINDOW_FRAMES = 3
"""Frames on either side that the adaptive detector compares with. Source: as above."""

COLOUR_EDGE_PX = 256
"""Longest edge of the frames whose colours are compared. Source: PySceneDetect scales to about this."""

CHANGE_EDGE_PX = 64
"""Longest edge of the grey frames whose mean absolute difference is the change between two frames."""

NEIGHBOUR_FRAMES = 6
"""Frames on either side that a spike is compared with. This is longer than the cycles of five or six frames
in which converted frame rates repeat or drop a frame, which makes spikes too."""

SPIKE = 2.0
"""Least ratio of a spike to the second largest change around it. It is the second largest, so that two cuts
close together do not hide each other. Source: ours. 2200 frames of continuous real footage stay below 1.7,
and the four cuts between them reach 2.3 to 13."""

QUIET = 0.5
"""Smaller changes count as this much, in grey levels of 0..255, because they are coding noise."""

FACE_QUIET = 2.0
"""The same for changes within the face, where fewer pixels are averaged and the lips move."""

FACE_STEP = 0.1
"""Least distance that a face jumps in a cut, in face sizes. Source: ours. Between adjacent frames of
continuous real footage faces move by up to 0.07, and a wildly swaying profile by 0.15."""

FACE_GROWTH = 1.15
"""Least ratio of a face's sizes in a cut. Source: ours. Continuous footage stays below 1.05."""

REGION_MARGIN = 0.25
"""Growth of the face boxes on each side to the region that is looked at for motion, in their size."""

MOTION_GOES_ON = 1.18
"""In motion the face differs over three steps by more than this times what it differs over the step in the
middle, because the motion goes on. In a cut both are alike. Source: ours. Twenty nods, blinks and dropped
frames of real speakers have 1.21 and more, 13 true cuts 0.92 to 1.15 (docs/scenes.md)."""

SURE_SPIKE = 4.0
"""A spike from this ratio on is too abrupt for a camera that shakes. Source: ours; shakes have up to 2.4."""

MOTION_UNEXPLAINED = 2.0
"""Where a weaker spike is motion, what optical flow leaves of it is less than this times what flow leaves of
the steps around. Source: ours. A camera that shakes has 1.2 to 1.5, the same true cuts 2.9 and more."""

ONE_PLACE = 0.9
"""Least intersection of the histograms of grey, six frames before and after, of one place. Source: ours.
Where colours of the dark flicker behind a face that moves it is 0.98, over true cuts and fades up to 0.80."""

FLASH_FRAMES, FLASH_REST, FLASH_ONE_SIDED = 2, 0.35, 0.95
"""Longest flash; largest fraction of its change that is left when it is over; and least fraction of the
change that is brighter. Source: ours."""

FACE_MARGIN = 0.15
"""Fraction of the face box that is left out on each side when the face's pixels are compared, because it
shows background."""


@dataclass(frozen=True)
class Cut:
    """The start of a new shot.

    Attributes:
        frame: number of its first frame, counted from 0 for the first frame pushed.
        time_s: time of that frame in source seconds.
        opened_by: the evidence.
    """

    frame: int
    time_s: float
    opened_by: OpenedBy


class CutDetector:
    """Detects the hard cuts of a video from all its frames in order. It holds a few small frames.

    Args:
        config: names PySceneDetect's detector and its threshold. With `scene_detector` "none" there are no
            cuts.
        detect_faces: from a frame number to the boxes [n, 4] of the faces in that frame. It is called
            for the last frame before and the first frame after a possible cut, at most `NEIGHBOUR_FRAMES + 1`
            frames after that frame was pushed.
        width_px: width of the frame, in the pixels in which `detect_faces` gives boxes.
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
            # The adaptive detector compares with the frames before. The first frame is repeated, so that
            # it does not miss early cuts.
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
        """Add a cut at `frame` if there is evidence for one."""
        if frame < 1:
            return
        by_picture = frame in self._picture_cuts
        if not by_picture and _peak_ratio(self._changes, frame, QUIET) < SPIKE:
            return
        before, after = self._detect_faces(frame - 1), self._detect_faces(frame)
        if self._is_flash(frame):
            return
        if by_picture:
            if not self._is_one_place(frame):
                self._cuts.append(Cut(frame, self._times_s[frame], "picture"))
            return
        jumped = (
            _face_jumped(before, after)
            or self._face_changed(frame, before)
            or self._face_changed(frame, after)
        )
        if jumped and not self._is_motion(frame, before, after):
            self._cuts.append(Cut(frame, self._times_s[frame], "face_jump"))

    def _index(self, frame: int) -> int:
        """Index of a frame in `_greys`."""
        return frame - (len(self._times_s) - len(self._greys))

    def _is_flash(self, frame: int) -> bool:
        """Whether a flash begins or ends at `frame`."""
        greys, k = list(self._greys), self._index(frame)
        change = greys[k] - greys[k - 1]
        size = float(np.abs(change).sum())
        brighter = float(np.maximum(change, 0).sum()) / size if size else 0.5
        if 1 - FLASH_ONE_SIDED < brighter < FLASH_ONE_SIDED:
            return False
        # It begins where all is brighter and soon like the frame before; it ends the other way round.
        at, towards = (k - 1, 1) if brighter >= FLASH_ONE_SIDED else (k, -1)
        others = [at + towards * (1 + n) for n in range(1, FLASH_FRAMES + 1)]
        rests = [float(np.abs(greys[at] - greys[i]).sum()) for i in others if 0 <= i < len(greys)]
        return any(rest < FLASH_REST * size for rest in rests)

    def _is_one_place(self, frame: int) -> bool:
        """Whether colours change at `frame` without a spike, and the greys around are those of one place."""
        if _peak_ratio(self._changes, frame, QUIET) >= SPIKE:
            return False
        k = self._index(frame)
        before, after = self._greys[max(k - 6, 0)], self._greys[min(k + 5, len(self._greys) - 1)]
        one, other = (
            cv2.GaussianBlur(cv2.calcHist([grey], [0], None, [64], [0, 256]), (1, 5), 0) / grey.size
            for grey in (before, after)
        )
        return bool(np.minimum(one, other).sum() >= ONE_PLACE)

    def _is_motion(self, frame: int, before: Floats, after: Floats) -> bool:
        """Whether the change of the largest face at `frame` is one of its motion or of the camera's."""
        boxes = [boxes[np.argmax(_areas(boxes))] for boxes in (before, after) if len(boxes)]
        scale = self._greys[-1].shape[1] / self._width_px
        low, high = np.min([b[:2] for b in boxes], 0) * scale, np.max([b[2:] for b in boxes], 0) * scale
        margin = REGION_MARGIN * (high - low)
        x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int)
        x1, y1 = np.maximum(np.ceil(high + margin), 0).astype(int)
        greys, k = np.stack(self._greys), self._index(frame)
        faces = greys[:, y0:y1, x0:x1]
        if not faces.size:
            return False
        step = float(np.abs(faces[k] - faces[k - 1]).mean())
        if 2 <= k < len(faces) - 1:
            over_three = float(np.abs(faces[k + 1] - faces[k - 2]).mean())
            if over_three > MOTION_GOES_ON * step:
                return True
        if _peak_ratio(self._changes, frame, QUIET) >= SURE_SPIKE:
            return False
        around = [i for i in range(max(k - 3, 1), min(k + 4, len(greys))) if i != k]
        left = [float(_unexplained(greys[i - 1], greys[i])[y0:y1, x0:x1].mean()) for i in (k, *around)]
        return bool(around) and left[0] < MOTION_UNEXPLAINED * float(np.median(left[1:]))

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
        if not faces.size:  # a sliver of a face at the frame's edge
            return False
        changes = np.abs(np.diff(faces, axis=0)).mean(axis=(1, 2))
        index = len(changes) - len(self._times_s) + frame
        return _peak_ratio(changes.tolist(), index, FACE_QUIET) >= SPIKE


def scenes(video_id: str, start_s: float, end_s: float, cuts: Sequence[Cut]) -> tuple[Scene, ...]:
    """The span [start_s, end_s) divided into scenes at the cuts, numbered from 0."""
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
    """PySceneDetect's detector, None for "none".

    It has no least length of a scene. A cut that is left out would lie inside a clip, while a scene that is
    too short only gives a clip that is rejected.
    """
    if config.scene_detector == "none":
        return None
    if config.scene_detector == "content":
        threshold = CONTENT_THRESHOLD if config.scene_threshold is None else config.scene_threshold
        return pyscenedetect().ContentDetector(threshold=threshold, min_scene_len=0)
    threshold = ADAPTIVE_THRESHOLD if config.scene_threshold is None else config.scene_threshold
    return pyscenedetect().AdaptiveDetector(threshold, min_scene_len=0, window_width=ADAPTIVE_WINDOW_FRAMES)


def _peak_ratio(changes: Sequence[float], index: int, quiet: float) -> float:
    """Ratio of one change to the second largest of the changes around it.

    Near the ends, where there are fewer to compare with, it is the ratio to the largest.

    Args:
        changes: one for each frame.
        index: the change in question.
        quiet: the change that it is compared with is at least this.
    """
    around = [
        *changes[max(0, index - NEIGHBOUR_FRAMES) : index],
        *changes[index + 1 : index + 1 + NEIGHBOUR_FRAMES],
    ]
    around.sort()
    second_largest = around[-2] if len(around) == 2 * NEIGHBOUR_FRAMES else max(around, default=0.0)
    return changes[index] / max(second_largest, quiet)


def _unexplained(before: Floats, after: Floats) -> Floats:
    """What optical flow leaves of the difference of two grey images [H, W], [H, W]."""
    flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 9, 3, 5, 1.1, 0)
    y, x = np.mgrid[: before.shape[0], : before.shape[1]].astype(np.float32)
    moved = cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    return np.asarray(np.abs(moved - before), np.float32)


def _face_jumped(before: Floats, after: Floats) -> bool:
    """Whether the largest face of either frame has no near counterpart in the other."""
    if not len(before) or not len(after):
        return len(before) != len(after)
    distance, growth = displacements(before, after)
    apart = (distance >= FACE_STEP) | (growth >= FACE_GROWTH)
    return bool(apart[np.argmax(_areas(before))].all() or apart[:, np.argmax(_areas(after))].all())


def _areas(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.float32)


def _downscaled(image: Bytes, longest_edge_px: int) -> Bytes:
    """An image [H, W] or [H, W, 3] scaled down to a longest edge, never up."""
    height_px, width_px = image.shape[:2]
    scale = longest_edge_px / max(height_px, width_px)
    if scale >= 1:
        return image
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
