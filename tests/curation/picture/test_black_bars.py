"""Black bars of known size, and dark frames without any."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from examples.portraits import frame
from talkforge.curation.picture.black_bars import BlackBarDetector

WIDTH, HEIGHT = 160, 120


def scene(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).integers(30, 220, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def barred(picture: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, luma: int = 0):
    out = picture.copy()
    out[:top] = out[HEIGHT - bottom :] = luma
    out[:, :left] = out[:, WIDTH - right :] = luma
    return out


def share(pictures: Sequence[np.ndarray]) -> float | None:
    detector = BlackBarDetector()
    for picture in pictures:
        detector.push(picture)
    return detector.finish()


@pytest.mark.parametrize(
    ("bars", "expected"),
    [
        ({}, 0.0),
        ({"top": 12, "bottom": 12}, 24 / 120),
        ({"left": 20, "right": 20}, 40 / 160),
        ({"top": 10, "bottom": 14, "left": 8, "right": 8}, 1 - (96 * 144) / (120 * 160)),
        ({"bottom": 30}, 30 / 120),
        ({"top": 12, "bottom": 12, "luma": 24}, 24 / 120),
        ({"top": 12, "bottom": 12, "luma": 25}, 0.0),
        ({"top": 1, "bottom": 1}, 0.0),
        ({"bottom": 60}, 0.0),  # half a picture is no bar
    ],
)
def test_the_fraction_of_the_picture_under_bars(bars: dict[str, int], expected: float) -> None:
    assert share([barred(scene(k), **bars) for k in range(3)]) == pytest.approx(expected, abs=1e-4)


def test_a_subtitle_in_the_bar_is_still_in_the_bar() -> None:
    picture = barred(scene(), top=18, bottom=24)
    cv2.putText(picture, "so it goes", (50, 112), 0, 0.4, (255, 255, 255), 1)
    assert share([picture, barred(scene(1), top=18, bottom=24)]) == pytest.approx(42 / 120, abs=1e-4)


def test_a_border_that_is_black_for_a_while_is_no_bar() -> None:
    assert share([barred(scene(), top=12, bottom=12), scene(1)]) == 0


def test_a_dark_stage_with_a_lit_head_has_no_bars() -> None:
    pictures = []
    for x in (70, 80, 90):
        dark = np.random.default_rng(x).integers(0, 12, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.ellipse(dark, (x, 60), (18, 26), 0, 0, 360, (200, 170, 150), -1)
        cv2.rectangle(dark, (x - 40, 86), (x + 40, 119), (60, 60, 70), -1)
        pictures.append(dark)
    assert share(pictures) == 0
    assert share([barred(p) * 0 for p in pictures]) == 0  # nothing but black has no edge


def test_no_picture_no_answer() -> None:
    assert BlackBarDetector().finish() is None


def test_bars_around_a_portrait() -> None:
    picture = frame("hopper", 320, 180).picture
    assert share([picture]) == 0
    boxed = cv2.copyMakeBorder(picture, 30, 30, 0, 0, cv2.BORDER_CONSTANT)
    boxed = cv2.imdecode(cv2.imencode(".jpg", boxed, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    assert share([boxed]) == pytest.approx(60 / 240, abs=0.01)
