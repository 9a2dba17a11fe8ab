"""How good is a clip's picture, beyond its face: black bars, text, hands at the mouth, BRISQUE.

Each is looked for in some of the clip's frames, as often as it may change. Bars cost next to nothing and
are always looked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.picture.black_bars import BlackBarDetector
from talkforge.curation.picture.brisque import Brisque, face_square
from talkforge.curation.picture.hands import HandDetector, paint
from talkforge.curation.picture.text import TextDetector
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import FrameQualityConfig
from talkforge.schemas.records import Clip, FrameQuality

BARS_EVERY_S = 0.5
TEXT_EVERY_S = 1.0
"""Time between two frames in which text is looked for, seconds: a subtitle stands longer. BRISQUE is taken
in the same frames."""

HANDS_EVERY_S = 0.2
"""The same of hands, which come and go."""

TEXT_FRACTION = 0.1
"""Text lies over the mouth if it covers more than this share of the lips' outline. Source: ours; boxes of
text reach a little beyond it."""

HAND_FRACTION = 0.25
"""A hand does from this share on. Source: ours; a finger at the corner of the mouth covers less."""


WEIGHTS = {
    "brisque": ("brisque",),
    "text": ("pp_ocr_v4_det",),
    "hands": ("palm_detector", "hand_landmark_full"),
}
"""What each switch of `measure.picture` needs, by name in the model registry."""


class PictureScorer:
    """The models that are asked for, loaded once.

    Raises:
        ModelError: a model that is asked for cannot be had; one line.
    """

    def __init__(self, config: FrameQualityConfig) -> None:
        self.brisque = Brisque(registry.weights("brisque")) if config.brisque else None
        self.text = TextDetector(registry.weights("pp_ocr_v4_det")) if config.text else None
        self.hands = HandDetector(registry.hand_task()) if config.hands else None


@dataclass
class PictureTracer:
    """What one clip's pictures are like; frames come in rising order."""

    scorer: PictureScorer
    clip: Clip
    _bars: BlackBarDetector = field(default_factory=BlackBarDetector)
    _brisque: list[float] = field(default_factory=list)
    _text: list[float] = field(default_factory=list)
    _mouth_text: list[bool] = field(default_factory=list)
    _mouth_hand: list[bool] = field(default_factory=list)

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
            if self.scorer.brisque is not None and points is not None:
                score = self.scorer.brisque.score(face_square(rgb, points))
                self._brisque += [] if score is None else [score]
        if self._due(shown, HANDS_EVERY_S) and self.scorer.hands is not None and points is not None:
            hands = self.scorer.hands.detect(rgb, points)
            self._mouth_hand.append(_under_hands(rgb.shape[:2], points, hands) >= HAND_FRACTION)

    def finish(self) -> FrameQuality:
        """The measurements; None where nothing was asked for, or no frame could answer."""
        return FrameQuality(
            black_bar_fraction=self._bars.finish(),
            face_brisque=round(float(np.median(self._brisque)), 2) if self._brisque else None,
            text_fraction=_mean(self._text),
            mouth_text_fraction=_mean(self._mouth_text),
            mouth_hand_fraction=_mean(self._mouth_hand),
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
    """Share of the area within an outline [n, 2] that lies under a mask, uint8 [h, w] of 0 and 1."""
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
