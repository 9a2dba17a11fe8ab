"""The detail of a face is that of its real resolution, whatever size it was scaled to."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from talkforge.curation.face.detail import _repeated, detail_px, face_crop

SHARP_PX = 240


def natural(seed: int, edge_px: int = SHARP_PX) -> np.ndarray:
    """A square picture whose power falls with the square of the frequency, as that of nature does."""
    rng = np.random.default_rng(seed)
    cycles = np.fft.fftfreq(edge_px) * edge_px
    radius = np.maximum(np.hypot(cycles[None], cycles[:, None]), 1)
    plane = np.fft.ifft2(np.fft.fft2(rng.standard_normal((edge_px, edge_px))) / radius).real
    grey = np.clip(128 + 45 * plane / plane.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


FACES = [natural(seed) for seed in range(4)]


def enlarged(face: np.ndarray, from_px: int, how: int = cv2.INTER_CUBIC) -> np.ndarray:
    small = cv2.resize(face, (from_px, from_px), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, face.shape[1::-1], interpolation=how)


def test_a_sharp_face_has_the_detail_of_its_size() -> None:
    assert detail_px(FACES) == pytest.approx(SHARP_PX, rel=0.1)


@pytest.mark.parametrize("from_px", [48, 64, 96, 128])
@pytest.mark.parametrize("how", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
def test_an_enlarged_face_has_about_the_detail_that_it_had(from_px: int, how: int) -> None:
    """Interpolation leaves images of the spectrum just beyond the old resolution, most of all here."""
    found = detail_px([enlarged(face, from_px, how) for face in FACES])
    assert found is not None and from_px <= found <= 1.6 * from_px


def test_compression_and_noise_of_a_camera_are_no_detail() -> None:
    rng = np.random.default_rng(1)
    harmed = []
    for face in FACES:
        noisy = np.clip(enlarged(face, 64) + rng.normal(0, 1.5, face.shape), 0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 60])
        harmed.append(cv2.imdecode(data, cv2.IMREAD_COLOR))
    found = detail_px(harmed)
    assert found is not None and 64 <= found <= 1.6 * 64


def test_blur_takes_detail() -> None:
    found = [detail_px([cv2.GaussianBlur(face, (0, 0), px) for face in FACES]) for px in (1, 2, 4)]
    assert None not in found
    assert found[0] > 1.5 * found[1] > 2 * found[2]


def test_light_and_contrast_do_not_matter() -> None:
    dim = [(face * 0.3 + 10).astype(np.uint8) for face in FACES]
    assert detail_px(dim) == pytest.approx(detail_px(FACES), rel=0.1)


@pytest.mark.parametrize(
    "faces", [[], [np.full((200, 200, 3), 90, np.uint8)], [np.zeros((8, 200, 3), np.uint8)]]
)
def test_what_shows_nothing_has_no_answer(faces: list[np.ndarray]) -> None:
    assert detail_px(faces) is None


def test_a_crop_that_is_cut_off_by_the_frame_is_measured() -> None:
    rgb = natural(0)
    points = np.zeros((478, 3), np.float32)
    points[1] = (150, 150, 0)
    points[2] = (400, 300, 0)
    points[0] = (160, 160, 0)
    points[3:] = (200, 200, 0)
    crop = face_crop(rgb, points)
    assert crop.shape == (SHARP_PX - 142, SHARP_PX - 137, 3)
    assert np.array_equal(crop, rgb[142:, 137:])


@pytest.mark.parametrize("from_px", [48, 64, 77, 120])
@pytest.mark.parametrize("quality", [None, 80])
def test_repeated_pixels_are_no_detail(from_px: int, quality: int | None) -> None:
    found = detail_px([compressed(enlarged(face, from_px, cv2.INTER_NEAREST), quality) for face in FACES])
    assert found == pytest.approx(from_px, rel=0.03)


@pytest.mark.parametrize("quality", [None, 80, 40])
def test_a_sharp_face_has_no_repeated_pixels(quality: int | None) -> None:
    assert _repeated([compressed(face, quality) for face in FACES]) == np.inf


def compressed(face: np.ndarray, quality: int | None) -> np.ndarray:
    if quality is None:
        return face
    _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
