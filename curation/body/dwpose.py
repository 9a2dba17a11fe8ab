"""Pose estimation by DWPose, as in the paper. rtmlib runs its network.

The published pipeline detects people with YOLOX-L and passes each box to the pose network. Here the box is
the region around the tracked face, for three reasons. It belongs to the person who is meant. The network was
trained on shifted boxes of 0.5 to 1.5 times the person's size and on upper bodies, so such a region is in its
range (mmpose, rtmpose-l_8xb32-270e_coco-ubody-wholebody-384x288: RandomBBoxTransform, RandomHalfBody, UBody).
And YOLOX-L would cost eight times as much as the pose network: 78 against 10.1 billion multiplications, by
their authors' tables.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from rtmlib import RTMPose

from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.errors import ModelError

INPUT_WIDTH_PX, INPUT_HEIGHT_PX = 288, 384
NUM_POINTS = 133
BINS_PER_PX = 2
"""Bins of the network's output for each pixel of its input. Source: DWPose, simcc_split_ratio."""

MIN_JOINT_SCORE = 0.3
"""Least score of a joint that counts as seen. Source: IDEA-Research/DWPose hides points below it."""

MEAN_LEVELS, STD_LEVELS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of red, green and blue in the network's training. Source: ImageNet's."""

_BODY_POINTS = (*range(23), *range(91, NUM_POINTS))
"""Indices of the COCO-WholeBody keypoints that are in `curation.body.joints.JOINTS`: all but the face's."""


class _PoseNetwork(RTMPose):  # type: ignore[misc]  # rtmlib has no types
    """rtmlib's crop, network and decoding, in a session on one thread.

    rtmlib's own constructor is not called: it takes all cores, prints, and downloads a missing file.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.backend = "onnxruntime"
        self.model_input_size = (INPUT_WIDTH_PX, INPUT_HEIGHT_PX)
        self.mean, self.std = MEAN_LEVELS, STD_LEVELS
        self.to_openpose = False


class DwPose:
    """DWPose for single frames.

    Args:
        path: the ONNX network, see `dwpose` in `curation.weights.registry`.

    Raises:
        ModelError: the file is not an ONNX model with DWPose's input and outputs.
    """

    min_score = MIN_JOINT_SCORE

    def __init__(self, path: Path) -> None:
        label = f"dwpose: {path}"
        session = open_onnx(path, label)
        _check(session, label)
        self._network = _PoseNetwork(session)

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """The one pose [1, 65, 3] in the region, see `PoseEstimator`."""
        points, scores = self._network(rgb, [region])
        poses = np.concatenate([points, np.clip(scores, 0, 1)[..., None]], axis=-1)
        return np.asarray(poses[:, _BODY_POINTS], np.float32)


def _check(session: onnxruntime.InferenceSession, label: str) -> None:
    """Check the input and, by running the network once, the outputs, whose shapes some exports leave open."""
    expected = [3, INPUT_HEIGHT_PX, INPUT_WIDTH_PX]
    inputs = [value.shape[1:] for value in session.get_inputs()]
    if inputs != [expected]:
        found = ", ".join(str(shape) for shape in inputs)
        raise ModelError(f"{label}: expected input {expected}, found {found}")
    blank = np.zeros((1, *expected), np.float32)
    outputs = [value.shape for value in session.run(None, {session.get_inputs()[0].name: blank})]
    wanted = [(1, NUM_POINTS, BINS_PER_PX * INPUT_WIDTH_PX), (1, NUM_POINTS, BINS_PER_PX * INPUT_HEIGHT_PX)]
    if outputs != wanted:
        raise ModelError(f"{label}: expected outputs {wanted}, found {outputs}")
