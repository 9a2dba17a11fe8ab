"""Dense face landmarks: MediaPipe's 478 points, detected in a crop that follows one face.

The landmarker misses small faces in whole frames, so it gets a square crop of fixed size. Its cost then does
not depend on the frame size either. It keeps no state between frames, as MediaPipe does in image mode. Video
mode filters the points over time, which delays them by a quarter of a frame and makes them depend on the
frames before the clip.

The crop stays in place while the face is well inside, so that a still head is measured through a still crop.
Once the face has drifted, the crop is placed anew around its last landmarks.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from talkforge.curation.face.head_pose import HeadPose
from talkforge.curation.media import longer_edge_px, to_clip_px
from talkforge.curation.weights.blaze import MIN_SCORE, BlazeDetector, Region, TfliteNetwork, sigmoid
from talkforge.schemas.arrays import NUM_LANDMARKS, Bytes, FaceTrack, Floats, Landmarks
from talkforge.schemas.errors import ModelError, one_line
from talkforge.schemas.records import Clip, Video
from talkforge.schemas.units import seconds_from_frames

NUM_BLENDSHAPES = 52

_MEMBERS = (
    "face_detector.tflite",
    "face_landmarks_detector.tflite",
    "face_blendshapes.tflite",
    "geometry_pipeline_metadata_landmarks.binarypb",
)
"""What is in the task bundle."""

_BLENDSHAPE_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67,
    70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146,
    148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181,
    185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293,
    295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361,
    362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398,
    400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
)  # fmt: skip
"""Landmarks that the network of blendshapes takes. Source: MediaPipe, face_blendshapes_graph.cc."""

REGION_MARGIN = 1.5
"""Sides of the rectangle that the mesh network sees, in sides of the detector's box. Source: MediaPipe,
face_detector_graph.cc."""

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
        angles_deg: float32 [3], yaw, pitch and roll, see `head_pose.head_angles`.
    """

    points: Floats
    blendshapes: Floats
    angles_deg: Floats


class FaceLandmarker:
    """MediaPipe's face landmarker for single images. It keeps no state between them.

    A detector gives the region of the face, a mesh network the points in it, and a third network the
    blendshapes. The points are those of MediaPipe's own graph, to a few hundredths of a pixel.

    The detector looks at every image, although a crop that follows the face knows where the face is. The
    points depend on the region, and one that is kept measures a moving head 2 to 9 times worse
    (docs/performance.md).

    Args:
        path: the task bundle.

    Raises:
        ModelError: the file is not the task bundle of a face landmarker.
    """

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as bundle:
                detector, mesh, blendshapes, geometry = map(bundle.read, _MEMBERS)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            reason = one_line(error, 200)
            raise ModelError(f"{path}: expected a bundle for FaceLandmarker: {reason}") from None
        self._detector = BlazeDetector(
            TfliteNetwork(detector, f"{path}: face detector", ((1, 896, 16), (1, 896, 1))), {8: 2, 16: 6}
        )
        self._mesh = TfliteNetwork(mesh, f"{path}: face mesh", ((1, 1, 1, 3 * NUM_LANDMARKS), (1, 1, 1, 1)))
        self._blendshapes = TfliteNetwork(blendshapes, f"{path}: blendshapes", ((NUM_BLENDSHAPES,),))
        self._pose = HeadPose(geometry)

    def detect(self, rgb: Bytes) -> DetectedFace | None:
        """The most prominent face of an image uint8 [H, W, 3], or None.

        Pixel centres are whole numbers. z has the scale of x and is negative towards the viewer.
        """
        region = self._region(rgb)
        if region is None:
            return None
        pixels = region.cut(rgb, LANDMARKER_PX, border=cv2.BORDER_REPLICATE)
        raw, presence = self._mesh(np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)[None])
        if sigmoid(presence).item() < MIN_SCORE:
            return None
        points = raw.reshape(NUM_LANDMARKS, 3) / np.float32(LANDMARKER_PX)
        points[:, :2] = region.to_image(points[:, :2])
        points[:, 2] *= region.width_px
        (shapes,) = self._blendshapes(np.ascontiguousarray(points[None, _BLENDSHAPE_POINTS, :2]))
        angles_deg = self._pose.angles_deg(points, rgb.shape[1], rgb.shape[0])
        # The networks measure from the image's edge, where pixel centres lie at k + 0.5. With this shift a
        # mirrored crop gives mirrored points within 0.03 px.
        points[:, :2] -= 0.5
        return DetectedFace(points, shapes, angles_deg)

    def _region(self, rgb: Bytes) -> Region | None:
        """The region around the most prominent face, turned so that the eyes are level."""
        found = self._detector.detect(rgb, max_detections=1)
        if not found:
            return None
        (x0, y0, x1, y1), (right_eye, left_eye) = found[0].box.tolist(), found[0].keypoints[:2].tolist()
        return Region(
            (x0 + x1) / 2,
            (y0 + y1) / 2,
            REGION_MARGIN * (x1 - x0),
            REGION_MARGIN * (y1 - y0),
            math.atan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0]),
        )


@dataclass(frozen=True)
class _SquareCrop:
    """A square of the frame: left and top edge and side in whole clip pixels."""

    left_px: int
    top_px: int
    side_px: int

    @classmethod
    def around(cls, box: Floats, margin: float) -> _SquareCrop:
        side = max(round(margin * longer_edge_px(box)), 2)
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
            growth = longer_edge_px(box) / longer_edge_px(self._anchor)
            if shift <= DRIFT_SHIFT and 1 / DRIFT_SCALE <= growth <= DRIFT_SCALE:
                return
        self._crop, self._anchor = _SquareCrop.around(box, FOLLOW_MARGIN), box


def _same_face(box: Floats, track_box: Floats) -> bool:
    edge_px, track_px = longer_edge_px(box), longer_edge_px(track_box)
    shift = float(np.linalg.norm(_centre(box) - _centre(track_box))) / max(edge_px, track_px, 1e-6)
    ratio = edge_px / max(track_px, 1e-6)
    return shift <= STRAY_SHIFT and 1 / STRAY_SCALE <= ratio <= STRAY_SCALE


def _mouth_inside(points: Floats, rgb: Bytes) -> bool:
    """Whether the mouth's centre lies inside the frame. Landmarks outside of it are guesses."""
    x, y = points[list(MOUTH), :2].mean(0)
    height, width = rgb.shape[:2]
    return bool(-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5)
