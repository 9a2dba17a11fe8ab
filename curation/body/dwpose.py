"""Joints by DWPose, as the paper takes them: its network, run by rtmlib.

The published pipeline finds people with YOLOX-L and hands each box to the pose network. Here the
box is the region around the face that is followed, for three reasons. It says whose body is meant.
The network is trained on boxes of half to one and a half times the person's, shifted, and on upper
bodies, and such a region is one (mmpose, rtmpose-l_8xb32-270e_coco-ubody-wholebody-384x288:
RandomBBoxTransform, RandomHalfBody, UBody). And YOLOX-L would cost eight times what the pose network
does: 78 against 10.1 thousand million multiplications, by their authors' tables.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from rtmlib import RTMPose

from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.errors import ModelError

WIDTH_PX, HEIGHT_PX = 288, 384
NUM_POINTS = 133
BINS_PER_PX = 2
"""Bins of the network's answer for each pixel of its input. Source: DWPose, simcc_split_ratio."""

MIN_JOINT_SCORE = 0.3
"""Source: IDEA-Research/DWPose hides points below it."""

MEAN_LEVELS, STD_LEVELS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green and blue, which the network is trained on in this order. Source: ImageNet's."""

_BODY_POINTS = (*range(23), *range(91, NUM_POINTS))
"""COCO-WholeBody's keypoints that are `curation.body.joints.JOINTS`: all but the face's."""


class _Network(RTMPose):  # type: ignore[misc]  # rtmlib has no types
    """rtmlib's crop, network and decoding, in a session of one thread; its own constructor would
    take all cores, print, and look for a file that is missing on the web."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.backend = "onnxruntime"
        self.model_input_size = (WIDTH_PX, HEIGHT_PX)
        self.mean, self.std = MEAN_LEVELS, STD_LEVELS
        self.to_openpose = False


class DwPose:
    """DWPose for single pictures.

    Args:
        path: the network, see `dwpose` in `curation.weights.registry`.

    Raises:
        ModelError: it is no ONNX model, or its input or outputs are not DWPose's.
    """

    min_score = MIN_JOINT_SCORE

    def __init__(self, path: Path) -> None:
        label = f"dwpose: {path}"
        session = open_onnx(path, label)
        _check(session, label)
        self._network = _Network(session)

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """The one pose [1, 65, 3] that the network sees in the region, see `PoseEstimator`."""
        points, scores = self._network(rgb, [region])
        poses = np.concatenate([points, np.clip(scores, 0, 1)[..., None]], axis=-1)
        return np.asarray(poses[:, _BODY_POINTS], np.float32)


def _check(session: onnxruntime.InferenceSession, label: str) -> None:
    """Run it once: the outputs of some exports have no fixed shape until then."""
    expected = [3, HEIGHT_PX, WIDTH_PX]
    inputs = [value.shape[1:] for value in session.get_inputs()]
    if inputs != [expected]:
        found = ", ".join(str(shape) for shape in inputs)
        raise ModelError(f"{label}: expected input {expected}, found {found}")
    blank = np.zeros((1, *expected), np.float32)
    outputs = [value.shape for value in session.run(None, {session.get_inputs()[0].name: blank})]
    wanted = [(1, NUM_POINTS, BINS_PER_PX * WIDTH_PX), (1, NUM_POINTS, BINS_PER_PX * HEIGHT_PX)]
    if outputs != wanted:
        raise ModelError(f"{label}: expected outputs {wanted}, found {outputs}")
