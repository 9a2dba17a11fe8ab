"""The face oval: the outline of the face in every frame, from hairline to chin."""

from __future__ import annotations

import numpy as np

from talkforge.curation.face import lips
from talkforge.schemas.arrays import MEASURED, MISSING, Bytes, Floats

# fmt: off
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)
# fmt: on
"""Landmarks of the face oval, clockwise in the image, from the middle of the forehead. Source: MediaPipe,
FACE_LANDMARKS_FACE_OVAL."""

MAX_GAP_FRAMES = 4
"""Longest gap between two frames with the face that is interpolated. Source: ours, the default of
`measure.lips.max_gap_frames`."""


def trace(points: Floats) -> tuple[Floats, Bytes]:
    """Outline of the face in every frame where it is known.

    A frame is measured where the landmarks were found: the outline is then 36 of them, as they are stored,
    and follows the silhouette when the head turns. Gaps of at most `MAX_GAP_FRAMES` frames are interpolated
    linearly. A covered mouth changes nothing.

    Args:
        points: landmarks [F, 478, 3] in clip pixels, NaN where the face was not seen.

    Returns:
        Contour [F, 36, 2] in clip pixels, NaN where missing, and uint8 [F]: 0 missing, 1 interpolated, 2
        measured.
    """
    contour = points[:, FACE_OVAL, :2].astype(np.float64)
    valid = np.where(np.isfinite(contour).all((1, 2)), MEASURED, MISSING).astype(np.uint8)
    contour[valid == MISSING] = np.nan
    lips.fill_gaps(contour, valid, MAX_GAP_FRAMES)
    return contour.astype(np.float32), valid
