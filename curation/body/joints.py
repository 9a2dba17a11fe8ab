"""The joints of a person's body: one order, whichever model finds them.

It is COCO-WholeBody's, which DWPose gives, without its 68 points of the face: those are in the
landmarks, better and in every frame. MediaPipe Pose gives 27 of these 65; the others are NaN.
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
"""Names of the 65 joints: 17 of the body, 6 of the feet, 21 of each hand, each finger from its root
to its tip. Left is the person's. Source: COCO-WholeBody's keypoints 0 to 22 and 91 to 132."""

HEAD = tuple(range(len(_HEAD)))
"""Joints whose mean is the head's centre."""


class PoseEstimator(Protocol):
    """Finds the joints of the people in a region of a picture; keeps nothing between pictures."""

    @property
    def min_score(self) -> float:
        """Joints that score less are not seen."""

    def detect(self, rgb: Bytes, region: tuple[int, int, int, int]) -> Floats:
        """Poses [n, 65, 3] in uint8 [H, W, 3]: x, y in its pixels, score 0..1; a joint that the model
        does not give is NaN. `region`: left, top, right, bottom, whole pixels within the picture."""


def no_joints(num_frames: int) -> Floats:
    """Joints [F, 65, 3] of a clip whose body was not measured: NaN."""
    return np.full((num_frames, len(JOINTS), 3), np.nan, np.float32)
