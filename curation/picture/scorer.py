"""Picture quality of a clip: black bars, text, hands over the mouth, and BRISQUE of the face.

Each is measured in some of the clip's frames, as often as it can change. Black bars cost next to nothing and
are always measured. The others are switched on in `measure.picture`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.picture.black_bars import BlackBarDetector
from talkforge.curation.picture.brisque import Brisque, face_square
from talkforge.curation.picture.hands import HandDetector, paint
from talkforge.curation.picture.nsfw import NsfwClassifier
from talkforge.curation.picture.text import TextDetector
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import FrameQualityConfig
from talkforge.schemas.records import Clip, FrameQuality

BARS_EVERY_S = 0.5
TEXT_EVERY_S = 1.0
"""Time between two frames in which text is detected, seconds. A subtitle is shown for longer. BRISQUE and
sexual content are measured in the same frames."""

HANDS_EVERY_S = 0.2
"""Time between two frames in which hands are detected, seconds. They move faster."""

TEXT_FRACTION = 0.1
"""Text lies over the mouth if it covers more than this fraction of the area within the lips. Source: ours.
Boxes of text reach a little beyond the text."""

HAND_FRACTION = 0.25
"""A hand lies over the mouth if it covers at least this fraction of the area within the lips. Source: ours. A
finger at the corner of the mouth covers less."""


WEIGHTS = {
    "brisque": ("brisque",),
    "text": ("pp_ocr_v4_det",),
    "hands": ("palm_detector", "hand_landmark_full"),
    "nsfw": ("open_nsfw",),
}
"""Models that each switch of `measure.picture` needs, by their names in the model registry."""


class PictureScorer:
    """The models of the measurements that are switched on, loaded once.

    Raises:
        ModelError: a model is not available. The message is one line.
    """

    def __init__(self, config: FrameQualityConfig) -> None:
        self.brisque = Brisque(registry.weights("brisque")) if config.brisque else None
        self.text = TextDetector(registry.weights("pp_ocr_v4_det")) if config.text else None
        self.hands = HandDetector(registry.hand_task()) if config.hands else None
        self.nsfw = NsfwClassifier(registry.weights("open_nsfw")) if config.nsfw else None


@dataclass
class PictureTracer:
    """Picture quality of one clip. Frames must come in ascending order."""

    scorer: PictureScorer
    clip: Clip
    _bars: BlackBarDetector = field(default_factory=BlackBarDetector)
    _brisque: list[float] = field(default_factory=list)
    _text: list[float] = field(default_factory=list)
    _mouth_text: list[bool] = field(default_factory=list)
    _mouth_hand: list[bool] = field(default_factory=list)
    _nsfw: list[float] = field(default_factory=list)

    def push(self, shown: range, rgb: Bytes, points: Floats | None) -> None:
        """Measure one decoded frame, where a measurement is due.

        Args:
            shown: indices of the clip's frames that show it.
            rgb: uint8 [clip height, clip width, 3].
            points: landmarks of the face [478, 3] in clip pixels. None: the face was not found.
        """
        if self._due(shown, BARS_EVERY_S):
            self._bars.push(rgb)
        if self._due(shown, TEXT_EVERY_S):
            self._detect_text(rgb, points)
            if self.scorer.nsfw is not None:
                self._nsfw.append(self.scorer.nsfw.probability(rgb))
            if self.scorer.brisque is not None and points is not None:
                score = self.scorer.brisque.score(face_square(rgb, points))
                self._brisque += [] if score is None else [score]
        if self._due(shown, HANDS_EVERY_S) and self.scorer.hands is not None and points is not None:
            hands = self.scorer.hands.detect(rgb, points)
            self._mouth_hand.append(_under_hands(rgb.shape[:2], points, hands) >= HAND_FRACTION)

    def finish(self) -> FrameQuality:
        """The measurements. Each is None if it is switched off or no frame could be measured."""
        return FrameQuality(
            black_bar_fraction=self._bars.finish(),
            face_brisque=round(float(np.median(self._brisque)), 2) if self._brisque else None,
            text_fraction=_mean(self._text),
            mouth_text_fraction=_mean(self._mouth_text),
            mouth_hand_fraction=_mean(self._mouth_hand),
            nsfw_probability=round(max(self._nsfw), 4) if self._nsfw else None,
        )

    def _due(self, shown: range, every_s: float) -> bool:
        stride = max(1, round(every_s * self.clip.fps))
        return any(k % stride == 0 for k in shown)

    def _detect_text(self, rgb: Bytes, points: Floats | None) -> None:
        if self.scorer.text is None:
            return
        mask = self.scorer.text.detect(rgb)
        self._text.append(float(mask.mean()))
        if points is not None:
            scale = np.array([mask.shape[1] / rgb.shape[1], mask.shape[0] / rgb.shape[0]], np.float32)
            lips = (points[list(OUTER_LIPS), :2] + 0.5) * scale - 0.5
            self._mouth_text.append(covered(mask, lips) > TEXT_FRACTION)


def covered(mask: Bytes, outline: Floats) -> float:
    """Fraction of the area within an outline that a mask covers, 0..1.

    Args:
        mask: uint8 [h, w] of 0 and 1.
        outline: polygon [n, 2] in pixels of the mask. It may reach beyond the mask, which is 0 there.
    """
    low = np.floor(outline.min(0)).astype(int)
    width, height = np.ceil(outline.max(0)).astype(int) - low + 1
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [np.round(outline - low).astype(np.int32)], 1)
    x0, y0 = np.clip(-low, 0, (width, height))
    part = mask[max(low[1], 0) : max(low[1] + height, 0), max(low[0], 0) : max(low[0] + width, 0)]
    under = inside[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] * part
    return float(under.sum()) / float(inside.sum())


def _under_hands(size: tuple[int, ...], points: Floats, hands: list[Floats]) -> float:
    if not hands:
        return 0.0
    mask = np.zeros(size, np.uint8)
    for hand in hands:
        paint(mask, hand)
    return covered(mask, points[list(OUTER_LIPS), :2])


def _mean(values: list[float] | list[bool]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
