"""Text drawn at known places, and frames without any."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from examples.portraits import PORTRAITS, frame
from talkforge.curation.picture import text
from talkforge.curation.picture.text import TextDetector
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from tests.conftest import Packaged


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    try:
        return TextDetector(registry.weights("pp_ocr_v4_det"))
    except ModelError as error:
        pytest.skip(str(error))


def scores(rectangles: list[tuple[int, int, int, int]], level: float = 0.9) -> np.ndarray:
    out = np.zeros((96, 160), np.float32)
    for x0, y0, x1, y1 in rectangles:
        out[y0:y1, x0:x1] = level
    return out


# --- boxes -----------------------------------------------------------------------------------------


def test_a_line_grows_by_what_its_core_was_shrunk() -> None:
    mask = text.boxes_mask(scores([(40, 40, 101, 51)]))  # 60 x 10 between pixel centres
    grown = 60 * 10 * 1.6 / (2 * (60 + 10))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1]) == (round(40 - grown), round(50 + grown))
    assert (columns[0], columns[-1]) == (round(40 - grown), round(100 + grown))
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(
    ("rectangles", "level"),
    [
        ([], 0.9),
        ([(40, 40, 70, 60)], 0.9),  # twice as long as high: teeth, a leaf
        ([(40, 40, 101, 42)], 0.9),  # hardly higher than a pixel
        ([(40, 40, 101, 51)], 0.4),  # the network is not sure
        ([(40, 40, 101, 51)], 0.2),
    ],
)
def test_boxes_that_are_no_line_of_text_are_left_out(
    rectangles: list[tuple[int, int, int, int]], level: float
) -> None:
    assert not text.boxes_mask(scores(rectangles, level)).any()


def test_two_lines_are_two_boxes() -> None:
    mask = text.boxes_mask(scores([(20, 10, 81, 19), (20, 60, 121, 69)]))
    assert cv2.connectedComponents(mask)[0] - 1 == 2


# --- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORTRAITS)
def test_a_portrait_has_no_text_until_some_is_drawn_on_it(detector: TextDetector, name: str) -> None:
    rgb = frame(name, 640, 360).picture
    assert not detector.detect(rgb).any()
    for place in ((150, 330), (150, 200)):  # below the face, and across it
        titled = rgb.copy()
        cv2.putText(titled, "and then we went home", place, 0, 0.9, (0, 0, 0), 6, cv2.LINE_AA)
        cv2.putText(titled, "and then we went home", place, 0, 0.9, (255, 255, 255), 2, cv2.LINE_AA)
        mask = cv2.resize(detector.detect(titled), (640, 360), interpolation=cv2.INTER_NEAREST)
        drawn = np.abs(titled.astype(int) - rgb).max(2) > 40
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        assert mask[drawn].mean() > 0.9
        box = (rows[-1] - rows[0]) * (columns[-1] - columns[0]) / mask.size
        assert box * 0.8 < mask.mean() < box * 2.5


def test_a_small_picture_keeps_its_size_and_a_large_one_does_not(detector: TextDetector) -> None:
    assert detector.detect(np.zeros((64, 96, 3), np.uint8)).shape == (64, 96)
    assert detector.detect(np.zeros((1080, 1920, 3), np.uint8)).shape == (256, 480)


def test_another_model_is_refused(packaged: Packaged, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"text detector: \S+sig_bak_ovr\.onnx: expected input \[any, 3, any, any\]"
    ):
        TextDetector(packaged("dnsmos"))
    page = tmp_path / "page.onnx"
    page.write_text("<html>")
    with pytest.raises(ModelError, match=r"text detector: \S+page\.onnx: is not an ONNX model that runs"):
        TextDetector(page)
