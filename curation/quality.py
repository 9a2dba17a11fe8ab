"""How good is the picture of the face?"""

from __future__ import annotations

import cv2
import numpy as np

from schemas.arrays import Bytes, expect_shape
from schemas.records import Quality


def measure(face_rgb: Bytes) -> Quality:
    """Blur and luma of an aligned face, uint8 [112, 112, 3].

    Blur is the variance of the Laplacian of the grey picture: a sharp face has hundreds, a
    blurred one tens. Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy
    (ICPR 2000), LAPV; luma: ITU-R BT.601.
    """
    expect_shape("face_rgb", face_rgb, (112, 112, 3))
    grey = cv2.cvtColor(face_rgb, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_64F)
    return Quality(face_blur=float(np.var(laplacian)), face_luma=float(np.mean(grey)))
