"""Real portraits, framed and varied as wished, and the faces that lie between two of them.

Two are in the public domain and lie in packages that are installed anyway (scikit-image, matplotlib). Four
are frames of the clips in `examples/clips`. Nothing is downloaded. `portraits.json` holds their lip, eye and
face points, annotated once (median of MediaPipe's face landmarker over nine crops and scales, checked by
eye), so that what is known of a generated video does not come from the models that are tested on it. The
people shown never said what the generated videos make them say.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from talkforge.schemas.arrays import Bytes, Floats, expect_shape
from talkforge.schemas.errors import MediaError

PORTRAITS = ("collins", "hopper")

PEOPLE = (*PORTRAITS, "grid_bbaf2n", "grid_brbk7n", "grid_id2_swwp2s", "grid_lrwp9a")
"""Everybody: those in the public domain, and two men and two women of the GRID corpus."""

BLEND_PX = 288
"""Edge of the image of a blended head; its face is 0.55 of it, as large as in the originals."""

_NOSE_TIP = 62
"""Its place in `Face.shape`."""

_GRID_PX = 6
"""The warp of a blend is computed at every so many pixels and interpolated between."""


@dataclass(frozen=True)
class Face:
    """Points of one portrait, pixels of its image.

    Attributes:
        outer: [20, 2] outer lip contour, from the corner on the viewer's left over the upper lip.
        inner_upper, inner_lower: [11, 2] inner edge of each lip, left to right.
        eyes: [2, 2, 9, 2] eyes from the viewer's left, each an upper and a lower lid from left to right.
        box: [2, 2] corners of the box around all face landmarks (forehead to chin).
        chin: [2].
        shape: [68, 2] oval of the face, brows and nose, the same points in the same order for everybody.
    """

    outer: Floats
    inner_upper: Floats
    inner_lower: Floats
    eyes: Floats
    box: Floats
    chin: Floats
    shape: Floats

    def __post_init__(self) -> None:
        expect_shape("outer", self.outer, (20, 2))
        expect_shape("inner_upper", self.inner_upper, (11, 2))
        expect_shape("inner_lower", self.inner_lower, (11, 2))
        expect_shape("eyes", self.eyes, (2, 2, 9, 2))
        expect_shape("box", self.box, (2, 2))
        expect_shape("shape", self.shape, (68, 2))

    @property
    def height_px(self) -> float:
        return float(self.box[1, 1] - self.box[0, 1])

    def mirrored(self, width_px: int) -> Face:
        """The face in the mirrored image, every list again from left to right; `shape` keeps its order."""
        flip = np.array([-1, 1], np.float32)
        shift = np.array([width_px - 1, 0], np.float32)
        order = np.r_[10:-1:-1, 19:10:-1]  # corner, upper lip, corner, lower lip: seen in a mirror
        box = self.box * flip + shift
        return Face(
            self.outer[order] * flip + shift,
            self.inner_upper[::-1] * flip + shift,
            self.inner_lower[::-1] * flip + shift,
            self.eyes[::-1, :, ::-1] * flip + shift,
            np.stack([box.min(0), box.max(0)]),
            self.chin * flip + shift,
            self.shape * flip + shift,
        )

    def moved(self, matrix: np.ndarray) -> Face:
        """The face after an affine `matrix` [2, 3] without shear or mirroring to speak of."""

        def move(points: Floats) -> Floats:
            moved: Floats = (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
            return moved

        eyes, chin = move(self.eyes), move(self.chin)
        outer, upper, lower = move(self.outer), move(self.inner_upper), move(self.inner_lower)
        return Face(outer, upper, lower, eyes, move(self.box), chin, move(self.shape))

    def towards(self, other: Face, share: float) -> Face:
        """The face whose every point lies at `share` of the way to that of `other`."""
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return Face(*(((1 - share) * a + share * b).astype(np.float32) for a, b in pairs))

    @property
    def five(self) -> Floats:
        """Eyes, tip of the nose, corners of the mouth, [5, 2]: by them a face is aligned for its identity."""
        eyes = self.eyes.reshape(2, -1, 2).mean(axis=1)
        return np.stack([*eyes, self.shape[_NOSE_TIP], self.outer[0], self.outer[10]])

    @property
    def landmarks(self) -> Floats:
        """Points by which two faces are laid over each other, [124, 2]."""
        return np.concatenate([self.shape, self.outer, self.eyes.reshape(-1, 2)])


@dataclass(frozen=True)
class Head:
    """An image [H, W, 3] uint8 RGB with one upright face, and that face's points."""

    picture: Bytes
    face: Face


@dataclass(frozen=True)
class Framing:
    """How a portrait fills its image.

    Attributes:
        face_px: height of the face, forehead to chin, in pixels.
        centre: where the centre of the face lies, as shares of width and height.
        mirror: show the mirror image.
        aspect: width of the face relative to its true width.
        gains: factors of red, green and blue.
        gamma: exponent of the tone curve; above 1 darkens.
    """

    face_px: float = 260.0
    centre: tuple[float, float] = (0.5, 0.46)
    mirror: bool = False
    aspect: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0


@cache
def portrait(name: str) -> Head:
    """The portrait `name` of `PEOPLE` as it lies in its package or clip.

    Raises:
        MediaError: the package is not installed, or it holds another image.
    """
    entry = json.loads(Path(__file__).with_name("portraits.json").read_text(encoding="utf-8"))[name]
    image = _of_clip(entry["clip"], entry["frame"]) if "clip" in entry else _of_package(name, entry)
    lists = {key: np.array(value, np.float32) for key, value in entry.items() if isinstance(value, list)}
    eyes = [[lists[f"{side}_eye_{lid}"] for lid in ("upper", "lower")] for side in ("left", "right")]
    lips = (lists["outer"], lists["inner_upper"], lists["inner_lower"])
    return Head(image, Face(*lips, np.array(eyes), lists["face"], lists["chin"][0], lists["shape"]))


def _of_clip(name: str, number: int) -> Bytes:
    with av.open(str(Path(__file__).with_name("clips") / name)) as container:
        found = next(islice(container.decode(video=0), number, None))
    return np.asarray(found.to_ndarray(format="rgb24"), np.uint8)


def _of_package(name: str, entry: dict[str, str]) -> Bytes:
    where = f"portrait {name} ({entry['package']}/{entry['member']})"
    try:
        data = (importlib.resources.files(entry["package"]) / entry["member"]).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MediaError(f"{where}: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise MediaError(f"{where}: expected sha256 {entry['sha256']}, found {found}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise MediaError(f"{where}: not an image that OpenCV reads")
    return np.asarray(image, np.uint8)


@cache
def _before_blending(name: str) -> Head:
    return frame(name, BLEND_PX, BLEND_PX, Framing(face_px=0.55 * BLEND_PX, centre=(0.5, 0.47)))


def blend(one: str, other: str, share: float) -> Head:
    """Somebody who lies between two of `PEOPLE`: shape and colours are those means.

    Both images are warped so that their points fall on the mean ones (thin-plate splines), and mixed.

    Args:
        one: name of a portrait.
        other: of another, or of the same.
        share: how much of the other, 0..1.
    """
    heads = _before_blending(one), _before_blending(other)
    if share == 0 or one == other:
        return heads[0]
    face = heads[0].face.towards(heads[1].face, share)
    warped = [_warped(head, face) for head in heads]
    return Head(cv2.addWeighted(warped[0], 1 - share, warped[1], share, 0), face)


def _warped(head: Head, face: Face) -> Bytes:
    """The image of `head` with its points moved to those of `face`. The image's edge stays."""
    height_px, width_px = head.picture.shape[:2]
    x, y = np.meshgrid(np.linspace(0, width_px - 1, 5), np.linspace(0, height_px - 1, 5))
    edge = np.stack([x, y], -1)[[0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4],
                                [0, 1, 2, 3, 4, 0, 4, 0, 4, 0, 4, 0, 1, 2, 3, 4]]  # fmt: skip
    target = np.concatenate([face.landmarks, edge])
    moves = np.concatenate([head.face.landmarks, edge]) - target
    columns = np.arange(0, width_px + _GRID_PX, _GRID_PX, dtype=np.float64)
    rows = np.arange(0, height_px + _GRID_PX, _GRID_PX, dtype=np.float64)
    at = np.stack(np.meshgrid(columns, rows), -1)
    coarse = RBFInterpolator(target, moves, smoothing=1.0)(at.reshape(-1, 2)).reshape(at.shape)
    x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    move = cv2.remap(coarse.astype(np.float32), x / _GRID_PX, y / _GRID_PX, cv2.INTER_LINEAR)
    lookup = np.stack([x, y], -1) + move
    return np.asarray(
        cv2.remap(head.picture, lookup, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def frame(whom: str | Head, width_px: int, height_px: int, framing: Framing | None = None) -> Head:
    """A portrait of `PEOPLE`, or any head, on a canvas of the given size, its mouth level."""
    framing = framing or Framing(face_px=0.41 * height_px)
    head = portrait(whom) if isinstance(whom, str) else whom
    if framing.mirror:
        mirrored = head.face.mirrored(head.picture.shape[1])
        head = Head(np.ascontiguousarray(head.picture[:, ::-1]), mirrored)
    face = head.face
    along = face.outer[10] - face.outer[0]
    roll = float(np.arctan2(along[1], along[0]))
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    stretch = np.diag([framing.aspect, 1.0]) * framing.face_px / face.height_px
    linear = stretch @ turn
    target = np.array(framing.centre) * [width_px, height_px]
    matrix = np.column_stack([linear, target - linear @ face.box.mean(0)])
    image = cv2.warpAffine(
        head.picture, matrix, (width_px, height_px), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return Head(_graded(image, framing), face.moved(matrix))


def _graded(image: Bytes, framing: Framing) -> Bytes:
    levels = (np.arange(256) / 255) ** framing.gamma
    curves = np.clip(levels[:, None] * np.array(framing.gains), 0, 1) * 255 + 0.5
    graded: Bytes = cv2.LUT(image, curves.astype(np.uint8)[None])
    return graded


def varied(seed: int, size_px: int) -> Head:
    """One of endlessly many heads: either portrait, mirrored or not, in its own framing and light."""
    rng = np.random.default_rng([seed, 1])
    name = PORTRAITS[int(rng.integers(len(PORTRAITS)))]
    framing = Framing(face_px=size_px * rng.uniform(0.42, 0.58), mirror=bool(rng.integers(2)))
    gains = tuple(float(gain) for gain in rng.uniform(0.9, 1.06, 3))
    framing = replace(
        framing,
        centre=(float(rng.uniform(0.44, 0.56)), float(rng.uniform(0.42, 0.5))),
        aspect=float(rng.uniform(0.9, 1.1)),
        gains=(gains[0], gains[1], gains[2]),
        gamma=float(rng.uniform(0.8, 1.25)),
    )
    return frame(name, size_px, size_px, framing)
