"""Pose estimation by DWPose, as in the paper: a network that finds the joints of one person in a box.

The published pipeline detects people with YOLOX-L and passes each box to the pose network. Here the box is
the region around the tracked face, for three reasons. It belongs to the person who is meant. The network was
trained on shifted boxes of 0.5 to 1.5 times the person's size and on upper bodies, so such a region is in its
range (mmpose, rtmpose-l_8xb32-270e_coco-ubody-wholebody-384x288: RandomBBoxTransform, RandomHalfBody, UBody).
And YOLOX-L would cost eight times as much as the pose network: 78 against 10.1 billion multiplications, by
their authors' tables.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import Bytes, Doubles, Floats
from talkforge.schemas.config import Device
from talkforge.schemas.errors import ModelError

INPUT_WIDTH_PX, INPUT_HEIGHT_PX = 288, 384
NUM_POINTS = 133
BINS_PER_PX = 2
"""Bins of the network's output for each pixel of its input. Source: DWPose, simcc_split_ratio."""

BOX_MARGIN = 1.25
"""Side of the network's crop, in units of the box. Source: mmpose, GetBBoxCenterScale (padding)."""

MIN_JOINT_SCORE = 0.3
"""Least score of a joint that counts as seen. Source: IDEA-Research/DWPose hides points below it."""

MEAN_LEVELS, STD_LEVELS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of red, green and blue in the network's training. Source: ImageNet's."""

_BODY_POINTS = (*range(23), *range(91, NUM_POINTS))
"""Indices of the COCO-WholeBody keypoints that are in `curation.body.joints.JOINTS`: all but the face's."""


class DwPose:
    """DWPose for single frames.

    Args:
        path: the ONNX network, see `dwpose` in `curation.weights.registry`.
        device: `measure.device`.

    Raises:
        ModelError: the file is not an ONNX model with DWPose's input and outputs.
    """

    min_score = MIN_JOINT_SCORE

    def __init__(self, path: Path, device: Device = "cpu") -> None:
        label = f"dwpose: {path}"
        session = open_onnx(path, label, device)
        _check(session, label)
        self._session = session
        self._input = session.get_inputs()[0].name

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """The one pose [1, 65, 3] in the region, see `PoseEstimator`."""
        crop, centre, size_px = _crop(rgb, region)
        batch = ((crop - np.array(MEAN_LEVELS)) / np.array(STD_LEVELS)).transpose(2, 0, 1)[None]
        bins_x, bins_y = self._session.run(None, {self._input: np.ascontiguousarray(batch, np.float32)})
        bins = np.stack([bins_x.argmax(-1), bins_y.argmax(-1)], -1).astype(np.float32)
        scores = 0.5 * (bins_x.max(-1) + bins_y.max(-1))
        points = bins / BINS_PER_PX / (INPUT_WIDTH_PX, INPUT_HEIGHT_PX) * size_px + centre - size_px / 2
        poses = np.concatenate([points, np.clip(scores, 0, 1)[..., None]], axis=-1)
        return np.asarray(poses[:, _BODY_POINTS], np.float32)


def _crop(rgb: Bytes, region: tuple[int, int, int, int]) -> tuple[Bytes, Doubles, Doubles]:
    """Cut the network's input out of a frame: the region with a margin, at the input's aspect ratio.

    Args:
        rgb: frame, uint8 [H, W, 3].
        region: left, top, right and bottom edge in pixels.

    Returns:
        The crop, uint8 RGB [384, 288, 3], black beyond the frame. Its centre (x, y) and its size (width,
        height) in pixels of the frame.
    """
    left, top, right, bottom = region
    centre = np.array([left + right, top + bottom]) * 0.5
    width_px, height_px = np.array([right - left, bottom - top]) * BOX_MARGIN
    aspect = INPUT_WIDTH_PX / INPUT_HEIGHT_PX
    wide = width_px > height_px * aspect
    size_px = np.array([width_px, width_px / aspect] if wide else [height_px * aspect, height_px])
    # Three points of the frame and of the crop: centre, middle of the upper edge, and a corner.
    half = np.array([size_px[0], INPUT_WIDTH_PX]) / 2
    centres = np.array([centre, (INPUT_WIDTH_PX / 2, INPUT_HEIGHT_PX / 2)])
    ups = centres - np.stack([[0, 0], half], 1)
    corners = ups - np.stack([half, [0, 0]], 1)
    points = np.stack([centres, ups, corners], 1).astype(np.float32)
    to_crop = cv2.getAffineTransform(points[0], points[1])
    crop = cv2.warpAffine(rgb, to_crop, (INPUT_WIDTH_PX, INPUT_HEIGHT_PX), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8), centre, size_px


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
