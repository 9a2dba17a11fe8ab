"""BRISQUE, a quality score without a reference: about 0 to 100, where low is good.

OpenCV computes the 36 features. The regression is the one that the authors trained on the LIVE database. The
score rises with blur, compression and strong noise. A little noise on a soft image lowers it.
Source: Mittal, Moorthy, Bovik, No-Reference Image Quality Assessment in the Spatial Domain (TIP 2012).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from talkforge.schemas.arrays import Bytes, Doubles, Floats, expect_shape
from talkforge.schemas.errors import ModelError

NUM_FEATURES = 36

FACE_SQUARE = 1.3
"""Edge of the square that is scored, in units of the longer side of the landmarks' box. Source: ours. The
background is left out, because it may be out of focus."""

MIN_EDGE_PX = 32
"""Least edge of an image that is scored. At half of it the statistics have too few pixels."""

# fmt: off
_LEAST = np.array([
    0.336999, 0.019667, 0.230000, -0.125959, 0.000167, 0.000616, 0.231000, -0.125873, 0.000165,
    0.000600, 0.241000, -0.128814, 0.000179, 0.000386, 0.243000, -0.133080, 0.000182, 0.000421,
    0.436998, 0.016929, 0.247000, -0.200231, 0.000104, 0.000834, 0.257000, -0.200017, 0.000112,
    0.000876, 0.257000, -0.155072, 0.000112, 0.000356, 0.258000, -0.154374, 0.000117, 0.000351,
])
_MOST = np.array([
    9.999411, 0.807472, 1.644021, 0.202917, 0.712384, 0.468672, 1.644021, 0.169548, 0.713132,
    0.467896, 1.553016, 0.101368, 0.687324, 0.533087, 1.554016, 0.101000, 0.689177, 0.533133,
    3.639918, 0.800955, 1.096995, 0.175286, 0.755547, 0.399270, 1.095995, 0.155928, 0.751488,
    0.402398, 1.041992, 0.093209, 0.623516, 0.532925, 1.042992, 0.093714, 0.621958, 0.534484,
])
# fmt: on
"""Least and largest value of each feature over the training images. Source: the authors' C++ release,
computescore.cpp."""


class Brisque:
    """The support vector regression of BRISQUE, read from LIBSVM's text format.

    Raises:
        ModelError: the file is not an epsilon regression over 36 features with a radial kernel.
    """

    def __init__(self, path: Path) -> None:
        try:
            header, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
            facts = dict(line.split(" ", 1) for line in header.splitlines())
            if (facts["svm_type"], facts["kernel_type"]) != ("epsilon_svr", "rbf"):
                raise ValueError(f"found {facts['svm_type']} with {facts['kernel_type']}")
            self._gamma, self._rho = float(facts["gamma"]), float(facts["rho"])
            self._weights, self._vectors = _vectors(body)
        except (OSError, ValueError, KeyError, IndexError) as error:
            wanted = f"an epsilon_svr with rbf over {NUM_FEATURES} features"
            raise ModelError(f"brisque: {path}: expected {wanted}: {error}") from None

    def score(self, rgb: Bytes) -> float | None:
        """BRISQUE of an image, uint8 [H, W, 3]. None if it is too small or of one colour."""
        expect_shape("image", rgb, (None, None, 3))
        if min(rgb.shape[:2]) < MIN_EDGE_PX:
            return None
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        features = np.ravel(cv2.quality.QualityBRISQUE.computeFeatures(bgr)[0]).astype(np.float64)
        if not np.isfinite(features).all():
            return None
        return self.regress(features)

    def regress(self, features: Doubles) -> float:
        """Score of the features [36] of an image.

        The features are scaled to -1..1. The score is the sum of w_i exp(-gamma |v_i - x|^2) over the support
        vectors v_i, minus rho.
        """
        scaled = 2 * (features - _LEAST) / (_MOST - _LEAST) - 1
        kernel = np.exp(-self._gamma * np.square(self._vectors - scaled).sum(axis=1))
        return float(self._weights @ kernel) - self._rho


def _vectors(body: str) -> tuple[Doubles, Doubles]:
    """Weights [n] and support vectors [n, 36]. Features that a line leaves out are 0."""
    lines = [line.split() for line in body.splitlines() if line.strip()]
    vectors = np.zeros((len(lines), NUM_FEATURES))
    for row, (_, *pairs) in zip(vectors, lines, strict=True):
        for index, value in (pair.split(":") for pair in pairs):
            row[int(index) - 1] = float(value)
    return np.array([float(line[0]) for line in lines]), vectors


def face_square(rgb: Bytes, points: Floats) -> Bytes:
    """The square of a frame, uint8 [H, W, 3], around the landmarks [478, 3], clipped at the frame's edges."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    middle, half = (low + high) / 2, FACE_SQUARE * float((high - low).max()) / 2
    x0, y0 = np.maximum(np.round(middle - half), 0).astype(int)
    x1, y1 = np.maximum(np.round(middle + half), 0).astype(int)
    return rgb[y0:y1, x0:x1]
