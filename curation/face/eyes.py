"""Gaze and blinks, from the blendshapes of the eyes that the face landmarker gives with the landmarks.

The eye blendshapes are no angles. What they are in degrees was measured: irises of real faces were moved by
known amounts in the image (`python -m benchmarks.gaze`). An eye that turns by an angle moves its iris by the
sine of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.arrays import BLENDSHAPES, Doubles, Landmarks
from talkforge.schemas.records import Eyes

IRIS_MM, CENTRE_MM = 11.7, 10.5
"""Diameter of the iris, and distance of its plane from the point about which the eye turns. Source: textbook
values; the point lies 13.5 mm behind the cornea, and the iris 3.0 mm."""

YAW_PER_IRIS, PITCH_PER_IRIS = 1.43, 0.85
"""What the horizontal and the vertical measure rise by where the irises move by their diameter. Source: ours,
the mean of five faces (docs/models.md)."""

OPEN_BELOW = 0.35
"""Eyes whose `eyeBlink` is at least this much are closed, or nearly, and their gaze is not measured. Source:
ours."""

BLINK_HEIGHT, BLINK_PROMINENCE, BLINK_MAX_S = 0.35, 0.25, 0.5
"""A blink is a peak of `eyeBlink` of this height and prominence at least, at most so wide at half its height.
Source: ours. Of 39 real people the peaks have a prominence of 0.25 to 0.7 and are 0.05 to 0.46 s wide."""

CAMERA_DEG = 15.0
"""A gaze within this angle of the direction to the camera counts as into it. Source: ours, about twice the
error."""


def _shape(name: str) -> tuple[int, int]:
    """Indices of a blendshape of the left and of the right eye. Left is the person's."""
    return BLENDSHAPES.index(f"{name}Left"), BLENDSHAPES.index(f"{name}Right")


_BLINK, _UP, _DOWN, _IN, _OUT = map(
    _shape, ("eyeBlink", "eyeLookUp", "eyeLookDown", "eyeLookIn", "eyeLookOut")
)


def gaze_deg(landmarks: Landmarks) -> Doubles:
    """Direction of the gaze against that to the camera, float64 [F, 2]: yaw and pitch in degrees.

    It is the head's angle plus that of the eyes in the head. Yaw is positive to the viewer's right, pitch
    upwards. NaN where the face was not seen or the eyes are closed.

    Args:
        landmarks: of F frames. Their head angles are those against the direction to the camera.
    """
    shapes = landmarks.blendshapes.astype(np.float64)
    left, right = _OUT[0], _IN[0]
    to_right = shapes[:, left] - shapes[:, right] + shapes[:, _IN[1]] - shapes[:, _OUT[1]]
    upwards = shapes[:, _UP].sum(1) - shapes[:, _DOWN].sum(1)
    moved = np.stack([to_right / 2 / YAW_PER_IRIS, upwards / 2 / PITCH_PER_IRIS], axis=1)
    in_head = np.degrees(np.arcsin(np.clip(moved * IRIS_MM / CENTRE_MM, -1, 1)))
    gaze = landmarks.angles_deg[:, :2].astype(np.float64) + in_head
    return np.asarray(np.where(_closed(landmarks)[:, None] < OPEN_BELOW, gaze, np.nan))


def blinks(landmarks: Landmarks, fps: float) -> NDArray[np.int64]:
    """Frames in which the eyes are most closed, one for each blink.

    Args:
        landmarks: of F frames.
        fps: their rate.
    """
    # Where the face is not seen, the eyes are taken to be open: a gap is no blink.
    closed = np.nan_to_num(_closed(landmarks), nan=0.0)
    from scipy.signal import find_peaks  # takes 0.3 s, because it imports scipy.stats

    found, _ = find_peaks(
        closed, height=BLINK_HEIGHT, prominence=BLINK_PROMINENCE, width=(None, BLINK_MAX_S * fps)
    )
    return np.asarray(found, np.int64)


def measure(landmarks: Landmarks, fps: float) -> Eyes | None:
    """Gaze and blinks of a clip. None where the face was never seen.

    Args:
        landmarks: of the clip's F frames.
        fps: their rate.
    """
    seen = int(landmarks.seen.sum())
    if not seen:
        return None
    count = len(blinks(landmarks, fps))
    gaze = gaze_deg(landmarks)
    gaze = gaze[np.isfinite(gaze[:, 0])]
    known = len(gaze) > 0
    yaw, pitch = np.median(gaze, axis=0) if known else (0.0, 0.0)
    into = np.hypot(*gaze.T) <= CAMERA_DEG
    return Eyes(
        gaze_yaw_deg=round(float(yaw), 2) if known else None,
        gaze_pitch_deg=round(float(pitch), 2) if known else None,
        gaze_camera_fraction=round(float(into.mean()), 4) if known else None,
        num_blinks=count,
        blinks_per_min=round(count / (seen / fps / 60), 2),
    )


def _closed(landmarks: Landmarks) -> Doubles:
    """How far the eyes are closed, float64 [F]: mean `eyeBlink` of both."""
    return np.asarray(landmarks.blendshapes[:, _BLINK].astype(np.float64).mean(1))
