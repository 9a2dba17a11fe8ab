"""Face crops have the position of the published demos, are smoothed, and have the networks' rate."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from talkforge.curation.face.crops import crop_face, nearest_frames, resample_crops, smooth_boxes, to_asd


def test_a_crop_reaches_from_above_the_centre_to_below_it() -> None:
    rows, columns = np.mgrid[0:400, 0:400].astype(np.uint8)
    rgb = np.dstack([rows, columns, np.zeros_like(rows)])
    # Half the edge is 40, its margin 16: rows 160 - 40 ... 160 + 72, columns 200 - 56 ... 200 + 56.
    crop = crop_face(rgb, np.array([180, 120, 220, 200], np.float32))
    expected = cv2.resize(rgb[120:232, 144:256], (224, 224), interpolation=cv2.INTER_LINEAR)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, expected)


def test_a_crop_is_grey_beyond_the_picture() -> None:
    rgb = np.full((100, 100, 3), 255, np.uint8)
    crop = crop_face(rgb, np.array([-40, -40, 40, 40], np.float32))
    # The centre is the picture's corner, at 5 / 14 of the height and the middle of the width.
    assert np.unique(crop[:78]).tolist() == [110]
    assert np.unique(crop[:, :111]).tolist() == [110]
    assert np.unique(crop[82:, 114:]).tolist() == [255]
    outside = crop_face(rgb, np.array([500, 500, 560, 560], np.float32))
    assert np.unique(outside).tolist() == [110]


@pytest.mark.parametrize("box", [[10, 10, 10, 10], [0, 0, np.nan, 5]])
def test_a_box_without_area_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match="face box: expected at least 2 px"):
        crop_face(np.zeros((50, 50, 3), np.uint8), np.array(box, np.float32))


def test_light_asd_sees_the_middle_in_grey() -> None:
    crop = np.zeros((224, 224, 3), np.uint8)
    crop[56:168, 56:168, 0] = 200
    face = to_asd(crop)
    assert face.shape == (112, 112)
    assert np.unique(face).tolist() == [60]  # 0.299 of red


def test_one_bad_box_does_not_move_the_crops() -> None:
    boxes = np.tile(np.array([100, 100, 140, 180], np.float32), (30, 1))
    boxes[0] = boxes[14] = [300, 300, 600, 600]
    assert np.array_equal(smooth_boxes(boxes), np.tile(np.float32([80, 100, 160, 180]), (30, 1)))
    assert smooth_boxes(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_other_rates_take_the_nearest_frames() -> None:
    faces = np.arange(60)
    assert resample_crops(faces, 25.0) is faces
    at_25 = resample_crops(faces, 30.0)
    assert len(at_25) == 50
    assert at_25[:6].tolist() == [0, 1, 2, 4, 5, 6]
    back = nearest_frames(60, 30.0, 50, 25.0)
    assert back[:7].tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert (back[0], back[-1], len(back)) == (0, 49, 60)
    assert [len(resample_crops(faces[:count], 60.0)) for count in (0, 1, 2, 4)] == [0, 1, 1, 2]
