"""Dense face landmarks: MediaPipe's 478 points, detected in a crop that follows one face.

The landmarker misses small faces in whole frames, so it gets a square crop of fixed size. Its cost then does
not depend on the frame size either. It runs in image mode. Video mode would save the detector, about a tenth
of the time. But it filters the points over time, which delays them by a quarter of a frame and makes them
depend on the frames before the clip.

The crop stays in place while the face is well inside, so that a still head is measured through a still crop.
Once the face has drifted, the crop is placed anew around its last landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from talkforge.curation.media import to_clip_px
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import NUM_LANDMARKS, Bytes, FaceTrack, Floats, Landmarks
from talkforge.schemas.records import Clip, Video
from talkforge.schemas.units import seconds_from_frames

NUM_BLENDSHAPES = 52

LANDMARKER_PX = 256
"""Edge of the crop that the landmarker gets. Source: the input size of its mesh network."""

FOLLOW_MARGIN = 1.6
"""Edge of a crop around the last landmarks, in units of the longer side of their box."""

ANCHOR_MARGINS = (1.8, 1.2)
"""Edges of the crops that are tried around the track's box when the face is lost, in units of its longer
side."""

DRIFT_SHIFT, DRIFT_SCALE = 0.08, 1.15
"""A crop is placed anew once the face has moved by this fraction of the crop's edge, or has grown or shrunk
by this factor, since the crop was placed."""

STRAY_SHIFT, STRAY_SCALE = 0.6, 2.0
"""Landmarks belong to another face if their centre is farther from the track's box than this fraction of the
larger of both sizes, or if the sizes differ by more than this factor."""

PATIENCE_FRAMES, RETRY_FRAMES = 5, 3
"""A face that was not found in this many consecutive frames is lost. From then on it is searched only in
every `RETRY_FRAMES`-th frame, so a face that is turned away costs little and is found again at most two
frames late. Source: ours. Gaps longer than `lips.max_gap_frames` (4) are not interpolated anyway."""

MOUTH = (61, 291, 0, 17)
"""Landmarks of the corners and of the upper and lower edge of the lips."""


class DetectedFace(NamedTuple):
    """One face that the landmarker found.

    Attributes:
        points: float32 [478, 3] in pixels of the image.
        blendshapes: float32 [52] in 0..1.
        angles_deg: float32 [3], yaw, pitch and roll, see `head_angles`.
    """

    points: Floats
    blendshapes: Floats
    angles_deg: Floats


class FaceLandmarker:
    """MediaPipe's face landmarker for single images. It keeps no state between them.

    Raises:
        ModelError: the file is not the task bundle of a face landmarker.
    """

    def __init__(self, path: Path) -> None:
        self._detect = load_task(
            "FaceLandmarker",
            path,
            num_faces=1,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )

    def detect(self, rgb: Bytes) -> DetectedFace | None:
        """The most prominent face of an image uint8 [H, W, 3], or None.

        Pixel centres are whole numbers. z has the scale of x and is negative towards the viewer.
        """
        result = self._detect(rgb)
        if not result.face_landmarks:
            return None
        height_px, width_px = rgb.shape[:2]
        points = np.array([(p.x, p.y, p.z) for p in result.face_landmarks[0]], np.float32)
        points *= np.array([width_px, height_px, width_px], np.float32)
        # MediaPipe measures from the image's edge, where pixel centres lie at k + 0.5. With this shift a
        # mirrored crop gives mirrored points within 0.03 px.
        points[:, :2] -= 0.5
        shapes = np.array([shape.score for shape in result.face_blendshapes[0]], np.float32)
        return DetectedFace(points, shapes, head_angles(result.facial_transformation_matrixes[0]))


def head_angles(matrix: np.ndarray) -> Floats:
    """Yaw, pitch and roll float32 [3], in degrees, of a facial transformation matrix [4, 4].

    Yaw is positive when the face turns to the viewer's right, pitch when it looks up, and roll when the head
    leans clockwise in the image. Source: MediaPipe's metric space has x to the right, y up and z towards the
    viewer. The rotation is yaw about y, then pitch about x, then roll about z.
    """
    # The third column is where the face's own z axis points. Its x and z give the yaw, its y the pitch. The
    # second row holds the vertical parts of the face's axes, which give the roll.
    side, up = matrix[:3, 2], matrix[1, :3]
    yaw = np.arctan2(side[0], side[2])
    pitch = np.arctan2(side[1], np.hypot(side[0], side[2]))
    roll = -np.arctan2(up[0], up[1])
    return np.degrees([yaw, pitch, roll]).astype(np.float32)


@dataclass(frozen=True)
class _SquareCrop:
    """A square of the frame: left and top edge and side in whole clip pixels."""

    left_px: int
    top_px: int
    side_px: int

    @classmethod
    def around(cls, box: Floats, margin: float) -> _SquareCrop:
        side = max(round(margin * _size(box)), 2)
        x, y = _centre(box)
        return cls(round(x - side / 2), round(y - side / 2), side)

    def cut(self, rgb: Bytes) -> Bytes:
        """The square scaled to `LANDMARKER_PX`, black where it lies outside of the frame."""
        height, width = rgb.shape[:2]
        x0, y0 = max(self.left_px, 0), max(self.top_px, 0)
        x1, y1 = min(self.left_px + self.side_px, width), min(self.top_px + self.side_px, height)
        if x1 - x0 == y1 - y0 == self.side_px:
            whole = rgb[y0:y1, x0:x1]
        else:
            whole = np.zeros((self.side_px, self.side_px, 3), np.uint8)
            if x1 > x0 and y1 > y0:
                top, left = y0 - self.top_px, x0 - self.left_px
                whole[top : top + y1 - y0, left : left + x1 - x0] = rgb[y0:y1, x0:x1]
        # Area averaging costs up to 2 ms, and below a factor of two it changes nothing measurable.
        how = cv2.INTER_AREA if self.side_px > 2 * LANDMARKER_PX else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(whole, (LANDMARKER_PX, LANDMARKER_PX), interpolation=how), np.uint8)

    def to_frame(self, points: Floats) -> Floats:
        """Points [n, 3] of the scaled square, in pixels of the frame.

        Pixel k has its centre at k and its edges at k - 0.5 and k + 0.5, so the edges are what is mapped.
        """
        scale = self.side_px / LANDMARKER_PX
        corner = np.array([self.left_px - 0.5 + 0.5 * scale, self.top_px - 0.5 + 0.5 * scale, 0])
        return np.asarray(points * scale + corner, np.float32)


def _centre(box: Floats) -> Floats:
    return np.asarray((box[:2] + box[2:]) / 2, np.float32)


def _size(box: Floats) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _box(points: Floats) -> Floats:
    return np.concatenate([points[:, :2].min(0), points[:, :2].max(0)]).astype(np.float32)


class LandmarkTracer:
    """Landmarks of one track through one clip, frame by frame.

    Args:
        landmarker: may be shared by any number of tracers.
        track: boxes of the face in source pixels, where the search starts and restarts.
        clip: gives the number, rate, size and crop of the frames.
        video: gives the size of the source frames, in which the track's boxes are.
    """

    def __init__(self, landmarker: FaceLandmarker, track: FaceTrack, clip: Clip, video: Video) -> None:
        self._landmarker = landmarker
        self._track = track
        self._clip = clip
        self._video = video
        self._crop: _SquareCrop | None = None
        self._anchor: Floats | None = None  # box of the landmarks around which the crop was placed
        self._missed_frames = 0
        frames = clip.num_frames
        self._points = np.full((frames, NUM_LANDMARKS, 3), np.nan, np.float32)
        self._blendshapes = np.full((frames, NUM_BLENDSHAPES), np.nan, np.float32)
        self._angles_deg = np.full((frames, 3), np.nan, np.float32)

    def push(self, k: int | range, rgb: Bytes) -> Floats | None:
        """Measure one decoded frame. Frames must come in ascending order.

        Args:
            k: index or indices of the clip's frames that show it.
            rgb: uint8 [clip height, clip width, 3].

        Returns:
            The landmarks [478, 3] in clip pixels. None if the face was not found, or not searched because
            it is lost.
        """
        frames = range(k, k + 1) if isinstance(k, int) else k
        if not frames:
            return None
        found = self._find(rgb, self.box_at(frames[0])) if self._is_due(len(frames)) else None
        if found is None:
            self._missed_frames += len(frames)
            self._crop = self._anchor = None
            return None
        self._missed_frames = 0
        self._points[frames.start : frames.stop] = found.points
        self._blendshapes[frames.start : frames.stop] = found.blendshapes
        self._angles_deg[frames.start : frames.stop] = found.angles_deg
        self._follow(_box(found.points))
        return found.points

    @property
    def lost(self) -> bool:
        """Whether the face has not been found in the last `PATIENCE_FRAMES` frames."""
        return self._missed_frames >= PATIENCE_FRAMES

    def _is_due(self, num_frames: int) -> bool:
        """Whether to search the face in a decoded frame that is shown in the next `num_frames`."""
        lost_frames = self._missed_frames - PATIENCE_FRAMES + 1
        return not self.lost or any((lost_frames + i) % RETRY_FRAMES == 0 for i in range(num_frames))

    def box_at(self, k: int) -> Floats:
        """Box [4] of the track at frame `k`, in clip pixels."""
        start_s = self._clip.start_s + seconds_from_frames(k, self._clip.fps)
        return to_clip_px(self._track.box_at(start_s), self._clip, self._video)

    def finish(self) -> Landmarks:
        """The landmarks of the clip, NaN in frames that were not pushed or do not show the face."""
        return Landmarks(self._points, self._blendshapes, self._angles_deg)

    def _find(self, rgb: Bytes, track_box: Floats) -> DetectedFace | None:
        crops = [_SquareCrop.around(track_box, margin) for margin in ANCHOR_MARGINS]
        if self._crop is not None:
            crops.insert(0, self._crop)
        for crop in crops:
            found = self._landmarker.detect(crop.cut(rgb))
            if found is not None:
                points = crop.to_frame(found.points)
                if _same_face(_box(points), track_box) and _mouth_inside(points, rgb):
                    return found._replace(points=points)
        return None

    def _follow(self, box: Floats) -> None:
        if self._crop is not None and self._anchor is not None:
            shift = float(np.abs(_centre(box) - _centre(self._anchor)).max()) / self._crop.side_px
            growth = _size(box) / _size(self._anchor)
            if shift <= DRIFT_SHIFT and 1 / DRIFT_SCALE <= growth <= DRIFT_SCALE:
                return
        self._crop, self._anchor = _SquareCrop.around(box, FOLLOW_MARGIN), box


def _same_face(box: Floats, track_box: Floats) -> bool:
    larger, ratio = max(_size(box), _size(track_box)), _size(box) / max(_size(track_box), 1e-6)
    shift = float(np.linalg.norm(_centre(box) - _centre(track_box))) / max(larger, 1e-6)
    return shift <= STRAY_SHIFT and 1 / STRAY_SCALE <= ratio <= STRAY_SCALE


def _mouth_inside(points: Floats, rgb: Bytes) -> bool:
    """Whether the mouth's centre lies inside the frame. Landmarks outside of it are guesses."""
    x, y = points[list(MOUTH), :2].mean(0)
    height, width = rgb.shape[:2]
    return bool(-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5)
