"""Reading portraits, their faces, and the frame that is cut from them."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from examples.portraits import frame
from talkforge.schemas.errors import CommandError
from talkforge.training.data.frames import Crop
from talkforge.training.generate.portrait import cropped, faces, framing, read_image, read_portrait


def quarters() -> np.ndarray:
    """Red, green, blue and grey."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[:10, :20], image[:10, 20:], image[10:, :20], image[10:, 20:] = (
        (200, 0, 0),
        (0, 200, 0),
        (0, 0, 200),
        (90, 90, 90),
    )
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_says(tmp_path: Path, orientation: int) -> None:
    upright = quarters()
    undo = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: np.fliplr(np.rot90(x, -1)),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.fliplr(np.rot90(x, 1)),
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), upright)


def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[:4, :, 3], rgba[4:6, :, 3] = 255, 128
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    found = read_image(tmp_path / "alpha.png")
    assert found[:4].reshape(-1, 3).tolist() == [[255, 0, 0]] * 32
    assert found[4:6].reshape(-1, 3).tolist() == [[255, 127, 127]] * 16
    assert (found[6:] == 255).all()
    palette = Image.fromarray(quarters()).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "palette.png")[0, 0].tolist() == [255, 255, 255]


def test_images_of_other_kinds_are_read(tmp_path: Path) -> None:
    grey = (np.arange(64 * 64).reshape(64, 64) * 16 % 65536).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "16bit.png"), grey)
    found = read_image(tmp_path / "16bit.png")
    assert found.shape == (64, 64, 3) and found.max() == 255
    assert np.abs(found[..., 0].astype(int) - grey // 257).max() <= 1
    Image.fromarray(quarters()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "cmyk.jpg")[2:8, 2:18].astype(int) - [200, 0, 0]).max() < 12
    Image.fromarray(quarters()).save(
        tmp_path / "moves.gif", save_all=True, append_images=[Image.new("RGB", (40, 20))]
    )
    assert read_image(tmp_path / "moves.gif")[2, 2, 0] > 150


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("none.png", r"^--image .*none\.png: no such file$"),
        ("empty.png", r"^--image .*empty\.png: expected an image, found an empty file$"),
        ("words.png", r"^--image .*words\.png: expected an image, found a file that is none$"),
        ("cut.png", r"^--image .*cut\.png: expected an image, found "),
        ("bomb.png", r"^--image .*bomb\.png: expected an image, found Image size \(\d+ pixels\) exceeds"),
        (".", r"^--image .*: expected an image, found Is a directory$"),
    ),
)
def test_what_is_no_image_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("words")
    whole = frame("hopper", 96, 96).picture
    Image.fromarray(whole).save(tmp_path / "bomb.png")
    data = (tmp_path / "bomb.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    if name == "bomb.png":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CommandError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def two_faces(path: Path) -> Path:
    """A small face on the left, a larger one on the right."""
    image = np.full((300, 600, 3), 110, np.uint8)
    image[90:250, 20:180] = frame("hopper", 160, 160).picture
    image[20:280, 320:580] = frame("hopper", 260, 260).picture
    Image.fromarray(image).save(path)
    return path


def test_the_largest_of_several_faces_speaks_unless_another_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_faces(tmp_path / "two.png")
    left, right = faces(read_image(path))
    assert left[2] < 200 and right[0] > 300
    with caplog.at_level(logging.WARNING, "talkforge.training.generate.portrait"):
        found = read_portrait(path)
        assert found.box == right and found.points is not None and found.points[:, 0].min() > 300
        (text,) = caplog.messages
        assert "2 faces, of which the largest, 2, speaks (--face takes another): 1 left (x " in text
        assert ", 2 right (x " in text
        caplog.clear()
        found = read_portrait(path, face=1)
        assert found.box == left and found.points is not None and found.points[:, 0].max() < 200
        assert not caplog.messages
    for number in (0, 3):
        with pytest.raises(CommandError, match=rf"^--face {number}: .*two\.png has 2 faces: 1 left \(x "):
            read_portrait(path, face=number)


def test_a_portrait_without_a_face_is_said_to_be_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (96, 64), (128, 128, 128)).save(tmp_path / "grey.png")
    with caplog.at_level(logging.WARNING, "talkforge.training.generate.portrait"):
        found = read_portrait(tmp_path / "grey.png")
    assert (found.box, found.points) == (None, None)
    assert "grey.png: no face was found in it, so its middle is taken" in caplog.text
    assert found.framed([(32, 32)]).shape == (32, 32, 3)
    with pytest.raises(CommandError, match=r"^--face 1: .*grey\.png has no faces$"):
        read_portrait(tmp_path / "grey.png", face=1)


def test_a_face_that_fills_the_image_is_framed_with_all_of_it() -> None:
    """A wide image is scaled to cover the frame, and cropped around the face."""
    crop = framing((240, 480), (32, 32), (290.0, 60.0, 430.0, 200.0), None)
    assert (crop.scaled, crop.top, crop.left) == ((32, 64), 0, 32)


def test_a_small_face_is_framed_with_its_shoulders_and_never_enlarged() -> None:
    """A face of 100 px in a photo of 2000 px: with 150 px beside, 80 above and 300 below it is 400 x 480."""
    box = (950.0, 500.0, 1050.0, 600.0)
    crop = framing((2000, 2000), (256, 256), box, None)
    scale = crop.scaled[0] / 2000
    assert scale == pytest.approx(256 / 480, rel=1e-3)
    middle = (crop.left + 128) / scale, (crop.top + 128) / scale
    assert middle == pytest.approx((1000, 660), abs=2)
    assert framing((2000, 2000), (512, 512), box, None).scaled == (2000, 2000)
    # At the edge of the image there is nothing beyond it.
    corner = framing((2000, 2000), (256, 256), (0.0, 0.0, 100.0, 100.0), None)
    assert (corner.top, corner.left) == (0, 0)


def test_an_image_is_scaled_and_cut() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    left = cropped(image, Crop.around((40, 80), (16, 16), (20.0, 0.0)))
    right = cropped(image, Crop.around((40, 80), (16, 16), (20.0, 79.0)))
    assert left.shape == right.shape == (16, 16, 3)
    assert not left.any() and (right == 200).all()
    assert cropped(image[:8, :8], Crop.around((8, 8), (16, 16), (4.0, 4.0))).shape == (16, 16, 3)
