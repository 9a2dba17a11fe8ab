"""Black bars of known size, and dark frames without any."""

from __future__ import annotations

from collections.abc import Sequence

import av
import cv2
import numpy as np
import pytest

from examples.portraits import frame
from talkforge.curation.picture.black_bars import BlackBarDetector
from tests.conftest import RealClip

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
        ({"top": 12, "bottom": 12, "luma": 25}, 24 / 120),
        ({"top": 12, "bottom": 12, "luma": 255}, 24 / 120),
        ({"left": 20, "luma": 128}, 20 / 160),
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


def test_bars_of_one_colour_are_found_through_a_codec() -> None:
    pictures = []
    for k in range(3):
        picture = barred(cv2.GaussianBlur(scene(k), (0, 0), 1.5), top=16, bottom=16, luma=90)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        pictures.append(cv2.imdecode(data, cv2.IMREAD_COLOR))
    assert share(pictures) == pytest.approx(32 / 120, abs=2 / 120)


def test_a_plain_wall_behind_a_head_is_no_bar() -> None:
    pictures = []
    for x in (70, 80, 90):
        wall = np.full((HEIGHT, WIDTH, 3), 140, np.uint8)
        cv2.ellipse(wall, (x, 60), (18, 26), 0, 0, 360, (200, 170, 150), -1)
        cv2.rectangle(wall, (x - 40, 86), (x + 40, 119), (60, 60, 70), -1)
        pictures.append(wall)
    assert share(pictures) == 0


def test_a_strip_whose_colour_changes_is_no_bar() -> None:
    assert share([barred(scene(k), top=12, luma=90 + 20 * k) for k in range(3)]) == 0


def with_blurred_bars(picture: np.ndarray, depth: int, upright: bool) -> np.ndarray:
    """A picture over its own enlarged and blurred copy."""
    out = cv2.GaussianBlur(cv2.resize(picture, None, fx=2, fy=2)[60:180, 80:240], (0, 0), 8) // 2
    if upright:
        out[:, depth : WIDTH - depth] = picture[:, depth : WIDTH - depth]
    else:
        out[depth : HEIGHT - depth] = picture[depth : HEIGHT - depth]
    return out


def with_detail(number: int) -> np.ndarray:
    """A soft picture with edges in it, brighter than its surroundings."""
    picture = 60 + cv2.GaussianBlur(scene(number).astype(np.float32), (0, 0), 4)
    for k in range(12):
        cv2.circle(picture, (35 + 8 * k, 20 + 7 * k), 9, (90 + 10 * k + number,) * 3, 2)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("upright", "size"), [(True, WIDTH), (False, HEIGHT)])
def test_bars_that_move_because_they_are_the_blurred_picture(upright: bool, size: int) -> None:
    pictures = [with_detail(k) for k in range(3)]
    found = share([with_blurred_bars(picture, 30, upright) for picture in pictures])
    assert found == pytest.approx(60 / size, abs=2 / size)
    assert share(pictures) == 0


def test_a_sharp_speaker_before_a_blurred_wall_has_no_bars() -> None:
    pictures = []
    for k in range(3):
        wall = cv2.GaussianBlur(scene(k), (0, 0), 8)
        wall[48:, 50:110] = scene(k)[48:, 50:110]  # not over the whole height
        pictures.append(wall)
    assert share(pictures) == 0


def test_the_sides_of_a_telephone_video(real_clip: RealClip) -> None:
    """Each side of 276 of 960 px is the blurred picture."""
    with av.open(str(real_clip("misc_sunglasses.mp4"))) as container:
        pictures = [
            f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(3), strict=False)
        ]
    assert share(pictures) == pytest.approx(2 * 276 / 960, abs=0.02)
