"""Thumbnails and overlays: what is drawn where, and that the bytes do not change."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from talkforge.curation.draw import (
    BOX_RGB,
    INK_RGB,
    JOINTS_RGB,
    LIPS_RGB,
    TINT,
    VALIDITY_RGB,
    Curves,
    Marks,
    draw_marks,
    loudness_dbfs,
    mouth_opening,
    overlay,
    thumbnail,
)
from talkforge.schemas.arrays import INTERPOLATED, MEASURED, MISSING

GREY = 90
SQUARE = np.array([[60, 40], [80, 40], [80, 60], [60, 60]], np.float32)
TINTED = tuple(int(GREY * (1 - TINT) + c * TINT + 0.5) for c in LIPS_RGB)


def off(pixel: np.ndarray, colour: tuple[int, ...]) -> int:
    """Largest difference of a channel; anti-aliased lines come within 30 of their colour."""
    return int(np.abs(pixel.astype(int) - colour).max())


def grey(height: int = 100, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def curves(frames: int = 10) -> Curves:
    opening = np.linspace(0, 1, frames, dtype=np.float32)
    valid = np.full(frames, MEASURED, np.uint8)
    valid[0], valid[1] = MISSING, INTERPOLATED
    return Curves(opening, np.full(frames, -20, np.float32), valid, 25.0)


def test_the_mask_is_tinted_inside_its_contour_only_and_the_picture_is_not_changed() -> None:
    rgb = grey()
    drawn = draw_marks(rgb, Marks(contour=SQUARE))
    assert tuple(drawn[50, 70]) == TINTED
    assert off(drawn[50, 60], LIPS_RGB) < 30
    assert (drawn[50, [50, 90]] == GREY).all()
    assert (rgb == GREY).all()


def test_a_missing_contour_is_not_drawn_and_an_interpolated_one_has_its_own_edge() -> None:
    assert (draw_marks(grey(), Marks(contour=SQUARE, valid=MISSING)) == GREY).all()
    drawn = draw_marks(grey(), Marks(contour=SQUARE, valid=INTERPOLATED))
    assert off(drawn[50, 60], VALIDITY_RGB[INTERPOLATED]) < 30


def test_points_that_are_not_known_are_left_out() -> None:
    unseen = np.full((478, 3), np.nan, np.float32)
    joints = np.array([[20, 50, 0.3], [np.nan, np.nan, np.nan]], np.float32)
    nowhere = np.full(4, np.nan, np.float32)
    drawn = draw_marks(grey(), Marks(box=nowhere, landmarks=unseen, contour=SQUARE * np.nan, joints=joints))
    assert off(drawn[50, 23], JOINTS_RGB) < 30
    assert (drawn[:, 30:] == GREY).all()


def test_coordinates_far_outside_the_picture_do_not_break_it() -> None:
    far = np.array([-1e12, -1e12, 1e12, 1e12], np.float32)
    assert (draw_marks(grey(), Marks(box=far)) == GREY).all()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"contour: expected shape \[any, 2\], found \[4, 3\]"):
        Marks(contour=np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="valid: expected a code"):
        Marks(valid=7)


def test_a_thumbnail_is_scaled_down_with_its_marks_and_has_stable_bytes() -> None:
    box = np.array([160, 80, 480, 320], np.float32)
    jpeg = thumbnail(grey(400, 640), box, None, SQUARE * 5, longest_edge_px=320)
    assert jpeg == thumbnail(grey(400, 640), box, None, SQUARE * 5, longest_edge_px=320)
    picture = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert picture.shape == (200, 320, 3)
    assert min(off(pixel, BOX_RGB) for pixel in picture[100, 78:82]) < 50, (
        "the box's left edge lies at x = 160 / 2"
    )
    assert off(picture[125, 175], TINTED) < 12, "the mask's middle, (350, 250) / 2"


def test_a_thumbnail_is_never_scaled_up() -> None:
    assert Image.open(io.BytesIO(thumbnail(grey(50, 80)))).size == (80, 50)


@pytest.mark.parametrize(("height", "width"), [(100, 160), (101, 161), (1, 1)])
def test_an_overlay_has_even_edges_and_keeps_the_picture_above(height: int, width: int) -> None:
    drawn = overlay(grey(height, width), Marks(), curves(), 3)
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert drawn.shape[0] >= height + 72
    assert (drawn[:height, :width] == GREY).all()


def test_the_cursor_moves_from_the_first_to_the_last_frame() -> None:
    def cursor(frame: int) -> int:
        row = overlay(grey(), Marks(), curves(), frame)[113]  # just below the labels, above the curves
        return int(np.flatnonzero((row == INK_RGB).all(axis=1))[-1])

    assert cursor(0) == 2
    assert cursor(9) == 157
    assert cursor(3) < cursor(6)


def test_the_ribbon_tells_measured_from_interpolated_from_missing() -> None:
    ribbon = overlay(grey(), Marks(), curves(), 9)[-2]
    assert tuple(ribbon[0]) == VALIDITY_RGB[MISSING]
    assert tuple(ribbon[round(160 / 9)]) == VALIDITY_RGB[INTERPOLATED]
    assert tuple(ribbon[100]) == VALIDITY_RGB[MEASURED]


def test_a_frame_outside_the_curves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frame: expected 0\.\.9, found 10"):
        overlay(grey(), Marks(), curves(), 10)


def test_a_clip_without_a_face_still_has_its_strip() -> None:
    unseen = Curves(np.full(5, np.nan, np.float32), np.full(5, -60, np.float32), np.zeros(5, np.uint8), 25.0)
    assert overlay(grey(), Marks(), unseen, 4).shape == (172, 160, 3)


def test_loudness_is_the_level_under_each_frame() -> None:
    samples = np.zeros(640 * 4, np.float32)
    samples[640:1280] = 1
    samples[1280:1920] = 0.1
    assert loudness_dbfs(samples, 4, 25.0).tolist() == pytest.approx([-60, 0, -20, -60], abs=1e-4)
    assert loudness_dbfs(samples[:1000], 4, 25.0)[2:].tolist() == [-60, -60]


def test_mouth_opening_is_relative_to_the_eyes_and_unknown_without_a_face() -> None:
    landmarks = np.zeros((3, 478, 3), np.float32)
    landmarks[:, 33, 0], landmarks[:, 263, 0] = 10, 60
    landmarks[:, 13, 1], landmarks[:, 14, 1] = 100, 110
    landmarks[1] *= 3
    landmarks[2] = np.nan
    opening = mouth_opening(landmarks)
    assert opening[:2].tolist() == pytest.approx([0.2, 0.2])
    assert np.isnan(opening[2])


def test_the_opening_of_the_mouth_is_measured_by_the_eyes() -> None:
    landmarks = np.zeros((3, 478, 3), np.float32)
    landmarks[:, 263, 0] = 50
    landmarks[:, 14, 1] = [0, 5, np.nan]
    assert mouth_opening(landmarks)[:2].tolist() == pytest.approx([0, 0.1])
    assert np.isnan(mouth_opening(landmarks)[2])
    assert np.isnan(mouth_opening(np.zeros((1, 478, 3), np.float32))).all()


def test_loudness_is_that_of_each_frame() -> None:
    audio = np.repeat(np.array([1.0, 0.1, 0.0], np.float32), 640)
    assert loudness_dbfs(audio, 3, 25.0, -120.0).tolist() == pytest.approx([0, -20, -120])
