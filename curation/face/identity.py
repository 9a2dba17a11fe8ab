"""Whose face it is, as far as an embedding can tell."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import open_onnx
from talkforge.schemas.arrays import NUM_LANDMARKS, Bytes, Floats, expect_shape
from talkforge.schemas.config import IdentityConfig, ShardConfig
from talkforge.schemas.errors import ModelError, one_line

ALIGNED_PX = 112
"""Edge of an aligned face, pixels."""

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float64,
)
"""Where the eyes, the tip of the nose and the corners of the mouth go, the viewer's left first, in
pixels of the crop. Source: ArcFace's five points, `insightface.utils.face_align.arcface_dst`."""

FIVE_POINTS = (468, 473, 1, 61, 291)
"""The same five among MediaPipe's 478: centres of the irises, tip of the nose, corners of the mouth."""

EMBEDDERS = ("w600k_r50", "mobilefacenet", "dlib")
"""Names in the model registry that embed faces, the preferred one first."""

SAME_PERSON_SIMILARITY = {"w600k_r50": 0.5, "mobilefacenet": 0.5, "dlib": 0.94}
"""Cosine similarity from which two clips show one person, for each embedder; see docs/identity.md.

Source: w600k_r50, Immich's default for the same weights (cosine distance 0.5). mobilefacenet, measured:
one person 0.84 and more, different people at most 0.30. dlib, the distance of 0.5 at which its own
example `face_clustering.py` joins two faces, at the usual length of its vectors (1.45):
1 - 0.5**2 / (2 * 1.45**2).
"""

DLIB_CHIP_PX = 150
"""Edge of a face as dlib's network wants it, pixels."""

_DLIB_UNIT_POINTS = np.array(
    [[0.85957, 0.21350], [0.64606, 0.22897], [0.12058, 0.21373], [0.33409, 0.22906], [0.49011, 0.62780]]
)
DLIB_TEMPLATE = (_DLIB_UNIT_POINTS + 0.25) / 1.5 * DLIB_CHIP_PX
"""Where dlib puts the corners of the eyes (outer and inner of the viewer's right, then of the left) and
the base of the nose, in pixels of its chip. Source: dlib, `get_face_chip_details` with padding 0.25."""

DLIB_POINTS = np.array([[80.0, 52.2], [65.2, 52.8], [32.0, 52.2], [46.8, 52.8], [56.0, 77.3]])
"""Where the same points lie in an aligned face. Source: means over 94 faces of the shared clips, as
dlib's own landmark model finds them, made symmetric."""

# --------------------------------------------------------------------------- alignment


def align(rgb: Bytes, points: Floats) -> Bytes:
    """The face cut out upright at a standard size and place; black beyond the picture.

    Args:
        rgb: picture, uint8 [H, W, 3].
        points: [478, 2 or 3] MediaPipe landmarks, or [5, 2 or 3] in the order of `TEMPLATE`, in
            pixels of `rgb`.

    Returns:
        uint8 [112, 112, 3].

    Raises:
        ValueError: other shapes, points that are not finite, or that fall together.
    """
    expect_shape("picture", rgb, (None, None, 3))
    five = np.asarray(points, np.float64)[..., :2]
    if len(five) == NUM_LANDMARKS:
        five = five[list(FIVE_POINTS)]
    expect_shape("points", five, (5, 2))
    to_source = similarity_transform(TEMPLATE, five)
    step = max(1, int(np.hypot(*to_source[:, 0])))
    small, origin = _shrink(rgb, to_source, step)
    to_small = to_source.copy()
    to_small[:, 2] -= origin + (step - 1) / 2
    to_small /= step
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, to_small, (ALIGNED_PX, ALIGNED_PX), flags=flags), np.uint8)


def similarity_transform(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The [2, 3] similarity (scale, rotation, shift) that takes `source` [n, 2] nearest to `target`.

    Least squares over a, b, x, y of [[a, -b, x], [b, a, y]]. Source: Umeyama 1991, eq. 40-43, of
    which this is the plane case without reflection.

    Raises:
        ValueError: `target` is not finite or one single point.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    p, q = source - source_mean, target - target_mean
    a = float((p * q).sum()) / float((p * p).sum())
    b = float((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()) / float((p * p).sum())
    if not np.isfinite([a, b]).all() or a * a + b * b < 1e-12:
        raise ValueError(f"face points: expected five different points, found {target.tolist()}")
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, target_mean - turn @ source_mean])


def _shrink(rgb: Bytes, to_source: NDArray[np.float64], step: int) -> tuple[Bytes, NDArray[np.float64]]:
    """The part of the picture that the crop needs, averaged over `step` x `step` pixels, and the
    place of its first pixel: a face much larger than the crop would alias otherwise."""
    if step == 1:
        return rgb, np.zeros(2)
    edge = float(ALIGNED_PX)
    corners = np.array([[-1, -1, 1], [edge, -1, 1], [-1, edge, 1], [edge, edge, 1]]) @ to_source.T
    limits = np.array([rgb.shape[1], rgb.shape[0]])
    low = np.clip(np.floor(corners.min(0)).astype(int) - step, 0, limits - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + step, low + 1, limits)
    width, height = np.maximum(1, (high - low) // step)
    part = rgb[low[1] : low[1] + height * step, low[0] : low[0] + width * step]
    small = cv2.resize(part, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), low.astype(np.float64)


# --------------------------------------------------------------------------- embedding


class Embedder(Protocol):
    """Face embedding.

    Attributes:
        name: its name in the model registry. dim: D, numbers in one vector.
        sha256: of the weights.
    """

    name: str
    dim: int
    sha256: str

    def embed(self, crops: Bytes) -> Floats:
        """Vectors of unit length, float32 [n, D], of aligned faces, uint8 RGB [n, 112, 112, 3]."""


class ArcFace:
    """An ArcFace-style ONNX model behind InsightFace's own class, one crop and one thread at a time.

    Input is RGB scaled by (x - 127.5) / 127.5, unless the model scales by itself: InsightFace's
    class tells which. MobileFaceNet was trained with ImageNet's mean and deviation, which is
    nearly the same map, and separates people as well under this one.

    Raises:
        ModelError: not an ONNX model with one input [1, 3, 112, 112] and one output [1, D].
    """

    def __init__(self, name: str, path: Path, sha256: str) -> None:
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX  # takes a second to import

        session = _session(name, path)
        self.name, self.sha256 = name, sha256
        self.dim = int(session.get_outputs()[0].shape[1])
        self._model = ArcFaceONNX(str(path), session)

    def embed(self, crops: Bytes) -> Floats:
        """See `Embedder.embed`."""
        expect_shape("crops", crops, (None, ALIGNED_PX, ALIGNED_PX, 3))
        if not len(crops):
            return np.zeros((0, self.dim), np.float32)
        bgr = [np.ascontiguousarray(crop[..., ::-1]) for crop in crops]
        return _unit(np.concatenate([self._model.get_feat(crop) for crop in bgr]))


class Dlib:
    """dlib's face network (ResNet-29, 128 numbers), one face and one thread at a time.

    It sees its own cut of the face out of the aligned crop, always the same one: that tells people
    apart as well as dlib's cut out of the whole picture does (docs/identity.md), and every embedder
    is fed by the same crops.

    Raises:
        ModelError: dlib is not installed, or does not take the weights.
    """

    dim = 128

    def __init__(self, name: str, path: Path, sha256: str) -> None:
        if not _has_dlib():
            raise ModelError(f"{name}: expected the package dlib-bin, found none: install talkforge[dlib]")
        import dlib  # an extra

        self.name, self.sha256 = name, sha256
        try:
            self._net = dlib.face_recognition_model_v1(str(path))
        except RuntimeError as error:
            reason = one_line(error)
            raise ModelError(f"{name}: {path}: is no face network of dlib: {reason}") from None

    def embed(self, crops: Bytes) -> Floats:
        """See `Embedder.embed`."""
        if not len(crops):
            return np.zeros((0, self.dim), np.float32)
        return _unit(np.stack([self._net.compute_face_descriptor(chip) for chip in dlib_chips(crops)]))


def dlib_chips(crops: Bytes) -> Bytes:
    """Aligned faces [n, 112, 112, 3] as dlib cuts faces out: uint8 [n, 150, 150, 3]."""
    expect_shape("crops", crops, (None, ALIGNED_PX, ALIGNED_PX, 3))
    to_crop = similarity_transform(DLIB_TEMPLATE, DLIB_POINTS)
    size, flags = (DLIB_CHIP_PX, DLIB_CHIP_PX), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    chips = [cv2.warpAffine(crop, to_crop, size, flags=flags) for crop in crops]
    return np.asarray(chips, np.uint8).reshape(-1, DLIB_CHIP_PX, DLIB_CHIP_PX, 3)


def embedder_name(config: IdentityConfig) -> str | None:
    """Name of the embedder to use, here or not; None for 'none'.

    'auto' is the first of `EMBEDDERS` whose weights are here, dlib only where it is installed; where
    none are, the first of all.

    Raises:
        ModelError: no such embedder, no dlib for it, or weights are here and are not what they should be.
    """
    if config.model == "none":
        return None
    if config.model == "auto":
        return next((name for name in EMBEDDERS if _is_here(name)), EMBEDDERS[0])
    if config.model not in EMBEDDERS:
        known = ", ".join(("auto", "none", *EMBEDDERS))
        raise ModelError(f"identity.model {config.model}: expected one of {known}")
    if config.model == "dlib" and not _has_dlib():
        raise ModelError("dlib: expected the package dlib-bin, found none: install talkforge[dlib]")
    return config.model


def load_embedder(config: IdentityConfig) -> Embedder | None:
    """The embedder that `embedder_name` names; None for 'none', or where 'auto' finds no weights.

    Raises:
        ModelError: no such embedder, its weights are missing, or they are not what they should be.
    """
    name = embedder_name(config)
    if name is None or (config.model == "auto" and not _is_here(name)):
        return None
    kind = Dlib if name == "dlib" else ArcFace
    return kind(name, registry.weights(name), registry.MODELS[name].sha256)


def same_person_threshold(config: ShardConfig, model: str | None) -> float:
    """Cosine similarity from which two clips show one person: as configured, else the embedder's own.

    Args:
        config: its `same_person` wins, where it is set.
        model: name of the embedder. An unknown one is taken for an ArcFace.
    """
    if config.same_person is not None:
        return config.same_person
    return SAME_PERSON_SIMILARITY.get(model or "", SAME_PERSON_SIMILARITY["w600k_r50"])


def _is_here(name: str) -> bool:
    return (name != "dlib" or _has_dlib()) and registry.present(name) is not None


def _has_dlib() -> bool:
    return importlib.util.find_spec("dlib") is not None


def summarise(vectors: Floats) -> tuple[Floats, float]:
    """One vector for a clip, and how well its frames agree.

    Args:
        vectors: float32 [n, D] of unit length, n at least 1.

    Returns:
        The median over the frames at unit length [D], and the least cosine similarity of a frame
        to it, in -1..1.
    """
    expect_shape("vectors", vectors, (None, None))
    if not len(vectors):
        raise ValueError("vectors: expected at least one, found none")
    median = _unit(np.median(vectors, axis=0)[None].astype(np.float32))[0]
    cosines = (vectors.astype(np.float64) * median.astype(np.float64)).sum(axis=1)
    return median, round(float(np.clip(cosines.min(), -1.0, 1.0)), 4)


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _session(name: str, path: Path) -> onnxruntime.InferenceSession:
    session = open_onnx(path, f"{name}: {path}")
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[1:] != [3, ALIGNED_PX, ALIGNED_PX]:
        raise ModelError(f"{name}: {path}: expected input [1, 3, {ALIGNED_PX}, {ALIGNED_PX}], found {shape}")
    shape = list(outputs[0].shape)
    if len(outputs) != 1 or len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(f"{name}: {path}: expected one output [1, D], found {len(outputs)} of {shape}")
    return session
