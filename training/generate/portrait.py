"""The portrait: reading it, its faces, and the frame that is cut from it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from talkforge.curation.crop import REACH
from talkforge.curation.face import detect, identity
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.media import longer_edge_px
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import IdentityConfig, ScanConfig
from talkforge.schemas.errors import CommandError, ModelError, one_line
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import Crop, Size, nearest

log = logging.getLogger(__name__)

FACE_MARGIN = 0.6
"""Margin around a detected face for the landmarker, on each side, in face sizes."""

DETECTION_EDGE_PX = 1280
"""Faces are detected in an image of at most this longest edge. Source: ours. A face that is as small in a
photo as the detector can see has 0.8 % of its edge."""

WHITE = (255, 255, 255, 255)
"""Colour behind transparent pixels. Their own colour is hidden and may be anything."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a face, px."""


@dataclass(frozen=True)
class Portrait:
    """An image and the face in it that speaks.

    Attributes:
        rgb: uint8 [H, W, 3], upright.
        box: of the face, or None where there is no face.
        points: its landmarks [478, 3] in pixels, or None where none were found.
    """

    rgb: Bytes
    box: Box | None
    points: Floats | None

    def framed(self, sizes: Sequence[Size]) -> Bytes:
        """The image at the size whose aspect is nearest, around the face, uint8 [H, W, 3].

        The frame shows as much as the image has. Where the face would be small in it, it shows the face with
        hair, shoulders and chest as far as the image has pixels for that.

        Args:
            sizes: heights and widths of the run's buckets, px.
        """
        own = self.rgb.shape[:2]
        size = nearest(sizes, own)
        return cropped(self.rgb, framing(own, size, self.box, self.points))

    def identity(self, info: DatasetInfo) -> Floats | None:
        """Identity embedding [D] by the model of the data set, or None without one or without a face.

        Args:
            info: of the data set.

        Raises:
            ModelError: the model's weights are missing or have another width.
        """
        if not info.identity_dim or self.points is None:
            return None
        embedder = identity.load_embedder(IdentityConfig(model=info.identity_model))
        if embedder is None or embedder.dim != info.identity_dim:
            raise ModelError(f"identity model {info.identity_model}: expected width {info.identity_dim}")
        found: Floats = embedder.embed(identity.align(self.rgb, self.points)[None])[0]
        return found


def read_portrait(path: Path, face: int | None = None) -> Portrait:
    """The portrait in an image file. Where several faces are in it, the log names them.

    Args:
        path: of the image.
        face: number of the face that speaks, from 1 on, left to right. None means the largest.

    Raises:
        CommandError: the file holds no image, or there is no such face.
    """
    rgb = read_image(path)
    boxes = faces(rgb)
    if face is not None and not 1 <= face <= len(boxes):
        named = f": {_named(boxes, rgb.shape[1])}" if boxes else ""
        raise CommandError(f"--face {face}: {path} has {_count(len(boxes))}{named}")
    if not boxes:
        log.warning("%s: no face was found in it, so its middle is taken", path)
    elif face is None and len(boxes) > 1:
        log.warning(
            "%s: %s, of which the largest, %d, speaks (--face takes another): %s",
            path,
            _count(len(boxes)),
            largest(boxes),
            _named(boxes, rgb.shape[1]),
        )
    return portrait_of(rgb, boxes, face)


def portrait_of(rgb: Bytes, boxes: Sequence[Box], face: int | None = None) -> Portrait:
    """An image with the face that speaks.

    Args:
        rgb: uint8 [H, W, 3], upright.
        boxes: of its faces, from left to right.
        face: number of the face that speaks, from 1 on. None means the largest.
    """
    if not boxes:
        return Portrait(rgb, None, None)
    box = boxes[(face or largest(boxes)) - 1]
    return Portrait(rgb, box, _landmarks(rgb, box))


def largest(boxes: Sequence[Box]) -> int:
    """Number of the largest face, from 1 on."""
    return 1 + max(range(len(boxes)), key=lambda k: _area(boxes[k]))


def read_image(path: Path) -> Bytes:
    """An image file as upright RGB, uint8 [H, W, 3]. Transparent pixels are white.

    Args:
        path: of any still image that Pillow reads; of an animation, its first frame.

    Raises:
        CommandError: it cannot be read, is damaged, or claims more pixels than Pillow takes for honest.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith(("I", "F")):  # 16 bits and more
                    values = np.asarray(image, np.float64)
                    image = Image.fromarray(np.uint8(255 * values / max(1.0, float(values.max()))))
                layer = image.convert("RGBA")
    except FileNotFoundError:
        raise CommandError(f"--image {path}: no such file") from None
    except UnidentifiedImageError:
        found = "a file that is none" if path.stat().st_size else "an empty file"
        raise CommandError(f"--image {path}: expected an image, found {found}") from None
    except Exception as error:  # damaged images make Pillow raise almost anything
        raise CommandError(f"--image {path}: expected an image, found {one_line(error)}") from None
    behind = Image.new("RGBA", layer.size, WHITE)
    return np.asarray(Image.alpha_composite(behind, layer).convert("RGB"), np.uint8)


def faces(rgb: Bytes) -> list[Box]:
    """Boxes of the faces in an image, from left to right, px."""
    scale = min(1.0, DETECTION_EDGE_PX / max(rgb.shape[:2]))
    small = rgb
    if scale < 1:
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    found, _ = detect.load_detector(ScanConfig()).detect(small)
    boxes: list[Box] = [tuple(box) for box in (found / scale).tolist()]
    return sorted(boxes, key=lambda box: box[0] + box[2])


def _landmarks(rgb: Bytes, box: Box) -> Floats | None:
    x0, y0, x1, y1 = box
    margin = FACE_MARGIN * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    part = np.ascontiguousarray(rgb[top : int(y1 + margin) + 1, left : int(x1 + margin) + 1])
    found = FaceLandmarker(registry.weights("face_landmarker")).detect(part)
    return None if found is None else found.points + np.array([left, top, 0], np.float32)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _count(number: int) -> str:
    return f"{number or 'no'} face{'' if number == 1 else 's'}"


def _named(boxes: Sequence[Box], width_px: int) -> str:
    """Each face with its number and place."""
    named = []
    for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
        name = place((x0, y0, x1, y1), width_px)
        named.append(f"{number} {name} (x {(x0 + x1) / 2:.0f}, y {(y0 + y1) / 2:.0f}, {x1 - x0:.0f} px)")
    return ", ".join(named)


def place(box: Box, width_px: int) -> str:
    """In which third of an image a face is: left, middle or right."""
    third = int(np.clip(3 * (box[0] + box[2]) / 2 / width_px, 0, 2))
    return ("left", "middle", "right")[third]


def framing(own: Size, size: Size, box: Box | None, points: Floats | None) -> Crop:
    """The crop of an image. See `Portrait.framed`.

    Args:
        own: height and width of the image, px.
        size: height and width of the frame, px.
        box: of the face, or None for the middle of the image.
        points: landmarks of the face, [n, 2 or 3] px, or None.
    """
    if box is None:
        return Crop.around(own, size, (own[0] / 2, own[1] / 2))
    x, y = np.median(points[:, :2], axis=0) if points is not None else np.add(box[:2], box[2:]) / 2
    reach, unit_px = REACH["person"], longer_edge_px(box)
    corner = np.maximum(0, np.array(box[:2]) - unit_px * np.array([reach.beside, reach.above]))
    end = np.minimum(own[::-1], np.array(box[2:]) + unit_px * np.array([reach.beside, reach.below]))
    person_scale = float(min(size[1] / (end[0] - corner[0]), size[0] / (end[1] - corner[1]), 1.0))
    whole_scale = max(size[0] / own[0], size[1] / own[1])
    if person_scale <= whole_scale:
        return Crop.around(own, size, (float(y), float(x)))
    return Crop.around(own, size, (float(corner[1] + end[1]) / 2, float(x)), person_scale)


def cropped(image: Bytes, crop: Crop) -> Bytes:
    """An image scaled and cropped, uint8 [H, W, 3]."""
    height_px, width_px = crop.scaled
    shrinking = height_px < image.shape[0]
    flags = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    scaled = cv2.resize(image, (width_px, height_px), interpolation=flags)
    return np.ascontiguousarray(crop.of(scaled))
