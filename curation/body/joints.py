"""The body joints and their order, which is the same for every pose estimator.

The order is that of COCO-WholeBody, which DWPose follows, without its 68 points of the face. The face
landmarks are more exact and cover every frame. MediaPipe Pose gives 27 of these 65 joints, and the others are
NaN.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from talkforge.schemas.arrays import Bytes, Floats

_HEAD = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_TRUNK_AND_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_FOOT = ("big_toe", "small_toe", "heel")
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_HAND = ("hand_root", *(f"{finger}{knuckle}" for finger in _FINGERS for knuckle in (1, 2, 3, 4)))

JOINTS = (
    *_HEAD,
    *(f"{side}_{name}" for name in _TRUNK_AND_LIMBS for side in ("left", "right")),
    *(f"{side}_{name}" for side in ("left", "right") for name in _FOOT),
    *(f"{side}_{name}" for side in ("left", "right") for name in _HAND),
)
"""Names of the 65 joints: 17 of the body, 6 of the feet and 21 of each hand, where each finger goes from its
root to its tip. Left is the person's left. Source: COCO-WholeBody's keypoints 0 to 22 and 91 to 132."""

HEAD = tuple(range(len(_HEAD)))
"""Indices of the joints whose mean is the centre of the head."""


class PoseEstimator(Protocol):
    """Detects the joints of the people in a region of a frame. It keeps no state between frames."""

    @property
    def min_score(self) -> float:
        """Least score, 0..1, of a joint that counts as seen."""

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """The poses of the people in a region.

        Args:
            rgb: frame, uint8 [H, W, 3].
            region: left, top, right and bottom in whole pixels, inside the frame.

        Returns:
            float32 [n, 65, 3]: x, y in pixels of `rgb`, and score 0..1. A joint that the model does not
            know is NaN.
        """


def no_joints(num_frames: int) -> Floats:
    """Joints [F, 65, 3] of a clip whose body was not measured: NaN."""
    return np.full((num_frames, len(JOINTS), 3), np.nan, np.float32)
