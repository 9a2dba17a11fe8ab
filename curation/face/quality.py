"""Image quality of the face: sharpness, brightness and exposure."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from talkforge.schemas.arrays import Bytes, expect_shape
from talkforge.schemas.records import FaceQuality

DARK_LUMA, BRIGHT_LUMA = 24, 245
"""Luma, 0 to 255, up to which and from which a pixel shows hardly any detail. Source: ours. Of well-lit
speakers in real clips at most 0.05 of the face is that dark, and 0.01 that bright."""

_Y, _X = np.mgrid[:112, :112]
FACE_MASK = np.square((_X - 56) / 36) + np.square((_Y - 66) / 44) <= 1
"""bool [112, 112]: the ellipse of a frontal face in the aligned crop. It leaves out most of the hair and of
the background."""


def measure(face_rgb: Bytes) -> FaceQuality:
    """Blur, luma and exposure of an aligned face, uint8 [112, 112, 3].

    Blur is the variance of the Laplacian of the grey image. It is some hundreds for a sharp face and some
    tens for a blurred one. Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (ICPR
    2000), LAPV. Luma is that of ITU-R BT.601.
    """
    expect_shape("face_rgb", face_rgb, (112, 112, 3))
    grey = cv2.cvtColor(face_rgb, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_64F)
    face = grey[FACE_MASK]
    return FaceQuality(
        face_blur=float(np.var(laplacian)),
        face_luma=float(np.mean(grey)),
        face_dark_fraction=round(float(np.mean(face <= DARK_LUMA)), 4),
        face_bright_fraction=round(float(np.mean(face >= BRIGHT_LUMA)), 4),
    )


def of_clip(rows: Sequence[FaceQuality], best: int) -> FaceQuality:
    """A clip's quality from that of its face crops.

    Args:
        rows: quality of each crop.
        best: index of the crop whose blur and luma are taken. Exposure is the mean over all crops.
    """
    dark = np.mean([row.face_dark_fraction for row in rows])
    bright = np.mean([row.face_bright_fraction for row in rows])
    return rows[best].model_copy(
        update={"face_dark_fraction": round(float(dark), 4), "face_bright_fraction": round(float(bright), 4)}
    )
