from __future__ import annotations

import cv2
import numpy as np
import pytest

from curation import quality


def test_a_flat_face_has_no_edges_and_its_own_luma() -> None:
    row = quality.measure(np.full((112, 112, 3), 90, np.uint8))
    assert row.face_blur == 0
    assert row.face_luma == 90


def test_luma_weighs_the_channels_as_bt_601() -> None:
    green = np.zeros((112, 112, 3), np.uint8)
    green[..., 1] = 200
    assert quality.measure(green).face_luma == pytest.approx(0.587 * 200, abs=0.6)


def test_blurring_lowers_the_figure_and_keeps_the_luma() -> None:
    sharp = np.random.default_rng(0).integers(60, 180, (112, 112, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2)
    assert quality.measure(blurred).face_blur < 0.02 * quality.measure(sharp).face_blur
    assert quality.measure(blurred).face_luma == pytest.approx(quality.measure(sharp).face_luma, abs=1)


def test_a_checkerboard_has_the_variance_of_its_laplacian() -> None:
    board = (np.indices((112, 112)).sum(0) % 2 * 10).astype(np.uint8)
    # Every pixel differs from its four neighbours by ten: the Laplacian is +40 or -40, and OpenCV
    # mirrors the edge without repeating it, so the border is no exception.
    assert quality.measure(np.repeat(board[..., None], 3, axis=2)).face_blur == 1600


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"face_rgb: expected shape \[112, 112, 3\], found \[64, 64, 3\]"):
        quality.measure(np.zeros((64, 64, 3), np.uint8))
