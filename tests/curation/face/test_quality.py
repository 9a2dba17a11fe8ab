from __future__ import annotations

import cv2
import numpy as np
import pytest

from examples.portraits import portrait
from talkforge.curation.face import quality


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


# --- exposure --------------------------------------------------------------------------------------


def flat(luma: int) -> np.ndarray:
    return np.full((112, 112, 3), luma, np.uint8)


@pytest.mark.parametrize(
    ("luma", "dark", "bright"),
    [(0, 1, 0), (24, 1, 0), (25, 0, 0), (128, 0, 0), (244, 0, 0), (245, 0, 1), (255, 0, 1)],
)
def test_dark_and_bright_begin_at_their_lumas(luma: int, dark: float, bright: float) -> None:
    row = quality.measure(flat(luma))
    assert (row.face_dark_fraction, row.face_bright_fraction) == (dark, bright)


def test_half_a_face_in_shadow_is_half() -> None:
    face = flat(120)
    face[:, :56] = 5
    assert quality.measure(face).face_dark_fraction == pytest.approx(0.5, abs=0.01)


def test_hair_and_background_in_the_corners_do_not_count() -> None:
    face = flat(0)
    face[quality.FACE_MASK] = 120
    assert quality.measure(face).face_dark_fraction == 0


def test_the_darker_a_portrait_the_more_of_it_is_dark() -> None:
    head = portrait("collins")
    (x0, y0), (x1, y1) = head.face.box.round().astype(int)
    face = cv2.resize(head.picture[y0:y1, x0:x1], (112, 112), interpolation=cv2.INTER_AREA)

    def darkened(gamma: float) -> np.ndarray:
        return np.asarray(cv2.LUT(face, np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)))

    shares = [quality.measure(darkened(gamma)).face_dark_fraction for gamma in (1.0, 4.0, 8.0)]
    assert shares[0] < 0.01 < 0.03 < shares[1] < 0.5 * shares[2]
    glaring = quality.measure(cv2.convertScaleAbs(face, alpha=3.0)).face_bright_fraction
    assert quality.measure(face).face_bright_fraction < 0.05 < 0.6 < glaring


def test_a_clips_exposure_is_that_of_all_its_crops_and_its_blur_that_of_the_best() -> None:
    board = (np.indices((112, 112)).sum(0) % 2 * 10 + 100).astype(np.uint8)
    rows = [quality.measure(face) for face in (flat(0), np.repeat(board[..., None], 3, axis=2), flat(255))]
    row = quality.of_clip(rows, best=1)
    assert (row.face_blur, row.face_luma) == (1600, 105)
    assert (row.face_dark_fraction, row.face_bright_fraction) == (0.3333, 0.3333)
