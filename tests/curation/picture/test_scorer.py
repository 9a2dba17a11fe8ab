"""How often each measurement is made, and how its results are combined."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from examples.portraits import frame
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.picture import scorer
from talkforge.curation.picture.scorer import PictureScorer, PictureTracer, covered
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Floats
from talkforge.schemas.config import FrameQualityConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import FrameQuality
from tests.records import clip_of

WIDTH, HEIGHT = 480, 270

NOTHING = FrameQuality(
    black_bar_fraction=0.0,
    face_brisque=None,
    text_fraction=None,
    mouth_text_fraction=None,
    mouth_hand_fraction=None,
)


@pytest.fixture(scope="module")
def face() -> tuple[np.ndarray, Floats]:
    rgb = frame("collins", WIDTH, HEIGHT).picture
    found = FaceLandmarker(registry.weights("face_landmarker")).detect(rgb)
    assert found is not None
    return rgb, found.points


def titled(rgb: np.ndarray, baseline_px: float) -> np.ndarray:
    out = rgb.copy()
    for colour, thick in (((0, 0, 0), 5), ((255, 255, 255), 1)):
        cv2.putText(out, "we went home", (130, round(baseline_px)), 0, 0.9, colour, thick, cv2.LINE_AA)
    return out


class CountingDetector:
    """Stands for a network, and says what it is told to."""

    def __init__(self, answers: list[object]) -> None:
        self.answers = answers
        self.calls = 0

    def detect(self, *_: object) -> object:
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


def test_no_model_is_fetched_unless_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise AssertionError(name)

    monkeypatch.setattr(registry, "weights", refuse)
    tracer = PictureTracer(PictureScorer(FrameQualityConfig()), clip_of(2, 96, 64))
    noise = np.random.default_rng(0).integers(40, 200, (64, 96, 3), dtype=np.uint8)
    tracer.push(range(2), noise, np.ones((478, 3), np.float32))
    assert tracer.finish() == NOTHING


def test_every_switch_names_its_weights() -> None:
    switches = FrameQualityConfig.model_fields.keys() - {"optional"}
    assert scorer.WEIGHTS.keys() == switches
    assert {name for names in scorer.WEIGHTS.values() for name in names} <= set(registry.MODELS)


def test_no_picture_no_answer() -> None:
    tracer = PictureTracer(PictureScorer(FrameQualityConfig()), clip_of(2, 96, 64))
    assert tracer.finish() == NOTHING.model_copy(update={"black_bar_fraction": None})


@pytest.mark.parametrize(("fps", "held_frames"), [(25.0, 1), (25.0, 2), (30.0, 1), (23.0, 1)])
def test_text_is_detected_once_a_second_and_hands_five_times(fps: float, held_frames: int) -> None:
    scorer = PictureScorer(FrameQualityConfig())
    text, hand = CountingDetector([np.zeros((32, 32), np.uint8)]), CountingDetector([[]])
    scorer.text, scorer.hands = text, hand  # type: ignore[assignment]
    count = round(4 * fps)
    tracer = PictureTracer(scorer, clip_of(count, 64, 64, fps=fps))
    points = np.random.default_rng(0).uniform(10, 50, (478, 3)).astype(np.float32)
    for k in range(0, count, held_frames):
        tracer.push(range(k, k + held_frames), np.full((64, 64, 3), 90, np.uint8), points)
    assert text.calls == 4
    assert hand.calls == pytest.approx(20, abs=1)


def test_the_worst_frame_of_one_a_second_says_whether_it_is_safe_for_work() -> None:
    class Classifier:
        answers = [0.1, 0.9, 0.2]  # noqa: RUF012

        def probability(self, rgb: np.ndarray) -> float:
            assert rgb.shape == (64, 64, 3)
            return self.answers.pop(0)

    scorer = PictureScorer(FrameQualityConfig())
    scorer.nsfw = Classifier()  # type: ignore[assignment]
    tracer = PictureTracer(scorer, clip_of(75, 64, 64))
    for k in range(75):
        tracer.push(range(k, k + 1), np.full((64, 64, 3), 90, np.uint8), None)
    assert tracer.finish().nsfw_probability == 0.9
    assert not Classifier.answers


def test_a_hand_counts_where_it_covers_a_quarter_of_the_lips(face: tuple[np.ndarray, Floats]) -> None:
    rgb, points = face
    lips = points[list(OUTER_LIPS), :2]
    low, high = lips.min(0), lips.max(0)

    def hand(share: float) -> Floats:
        """A fist whose right edge covers this share of the mouth's width."""
        width, edge = 10.0, low[0] + share * (high[0] - low[0])
        out = np.tile([edge - width, (low[1] + high[1]) / 2], (21, 1)).astype(np.float32)
        out[5:9], out[17:] = (edge - width, low[1] - 30), (edge - width, high[1] + 30)
        out[[1, 9, 13]] = edge - 1 - 0.15 * np.linalg.norm(out[5] - out[17]), out[0, 1]
        return out

    scorer = PictureScorer(FrameQualityConfig())
    scorer.hands = CountingDetector([[], [hand(0.9)], [hand(-0.4)], [hand(-0.4), hand(0.9)]])  # type: ignore[assignment]
    tracer = PictureTracer(scorer, clip_of(20, WIDTH, HEIGHT))
    for k in range(20):
        tracer.push(range(k, k + 1), rgb, points)
    assert tracer.finish().mouth_hand_fraction == 0.5


def test_a_subtitle_is_over_the_mouth_only_where_it_is(face: tuple[np.ndarray, Floats]) -> None:
    rgb, points = face
    try:
        scorer = PictureScorer(FrameQualityConfig(text=True, brisque=True))
    except ModelError as error:
        pytest.skip(str(error))
    mouth_y = float(points[list(OUTER_LIPS), 1].max())
    clean, below, across = rgb, titled(rgb, HEIGHT - 12), titled(rgb, mouth_y + 4)
    rows = []
    for shown in ([clean] * 4, [below] * 4, [below, across, clean, across]):
        tracer = PictureTracer(scorer, clip_of(100, WIDTH, HEIGHT))
        for second, seen in enumerate(shown):
            tracer.push(range(25 * second, 25 * second + 25), seen, points)
        rows.append(tracer.finish())
    assert [row.mouth_text_fraction for row in rows] == [0.0, 0.0, 0.5]
    assert rows[0].text_fraction == 0.0
    assert all(0.02 < (row.text_fraction or 0) < 0.15 for row in rows[1:])
    assert rows[0].face_brisque is not None and rows[0].face_brisque < 40


def test_without_a_face_text_is_measured_and_the_mouth_is_unknown() -> None:
    scorer = PictureScorer(FrameQualityConfig())
    mask = np.zeros((32, 32), np.uint8)
    mask[:8] = 1
    scorer.text, scorer.hands = CountingDetector([mask]), CountingDetector([[]])  # type: ignore[assignment]
    tracer = PictureTracer(scorer, clip_of(50, 64, 64))
    tracer.push(range(50), np.full((64, 64, 3), 90, np.uint8), None)
    row = tracer.finish()
    assert row == NOTHING.model_copy(update={"text_fraction": 0.25})


# --- covered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corner", "expected"), [((10, 10), 1.0), ((0, 10), 0.5), ((30, 30), 0.0), ((-5, 10), 0.0)]
)
def test_the_fraction_of_an_outline_under_a_mask(corner: tuple[int, int], expected: float) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[10:20, 5:20] = 1
    x, y = corner
    outline = np.array([(x, y), (x + 9, y), (x + 9, y + 9), (x, y + 9)], np.float32)
    assert covered(mask, outline) == pytest.approx(expected)
    assert covered(mask, outline + 500) == 0.0
    assert covered(mask, outline - 500) == 0.0
