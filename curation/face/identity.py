"""Face identity: alignment, embedders, and when two clips show one person."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from talkforge.curation.weights import registry
from talkforge.curation.weights.onnx import BATCH_IMAGES, open_onnx, runs_on_gpu
from talkforge.schemas import extras
from talkforge.schemas.arrays import NUM_LANDMARKS, Bytes, Floats, expect_shape
from talkforge.schemas.config import Device, IdentityConfig, ShardConfig
from talkforge.schemas.errors import ModelError, one_line

ALIGNED_PX = 112
"""Edge of an aligned face, pixels."""

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float64,
)
"""Positions of the eyes, the tip of the nose and the corners of the mouth in the aligned crop, the viewer's
left first, in pixels. Source: ArcFace's five points, `insightface.utils.face_align.arcface_dst`."""

FIVE_POINTS = (468, 473, 1, 61, 291)
"""Indices of the same five points among MediaPipe's 478."""

EMBEDDERS = ("w600k_r50", "mobilefacenet", "dlib")
"""Face embedders by their name in the model registry, the preferred one first."""

SAME_PERSON_SIMILARITY = {"w600k_r50": 0.5, "mobilefacenet": 0.5, "dlib": 0.94}
"""Least cosine similarity of two clips of one person, for each embedder. See docs/identity.md.

Source for w600k_r50: Immich's default for the same weights (cosine distance 0.5). For mobilefacenet it was
measured: one person has 0.84 or more, different people at most 0.30. dlib's example `face_clustering.py`
joins two faces at a Euclidean distance of 0.5. Vectors of length r at distance d have the cosine
1 - d**2 / (2 * r**2), and r is about 1.45 here.
"""

DLIB_CHIP_PX = 150
"""Edge of the input of dlib's network, pixels."""

_DLIB_UNIT_POINTS = np.array(
    [[0.85957, 0.21350], [0.64606, 0.22897], [0.12058, 0.21373], [0.33409, 0.22906], [0.49011, 0.62780]]
)
DLIB_TEMPLATE = (_DLIB_UNIT_POINTS + 0.25) / 1.5 * DLIB_CHIP_PX
"""Positions of the eye corners (outer and inner of the viewer's right eye, then of the left) and of the base
of the nose in dlib's input, in pixels. Source: dlib, `get_face_chip_details` with padding 0.25."""

DLIB_POINTS = np.array([[80.0, 52.2], [65.2, 52.8], [32.0, 52.2], [46.8, 52.8], [56.0, 77.3]])
"""Positions of the same points in our aligned crop. Source: means over 94 faces of real clips, as dlib's own
landmark model finds them, made symmetric."""

# --------------------------------------------------------------------------- alignment


def align(rgb: Bytes, points: Floats) -> Bytes:
    """The aligned face: upright, with its five points as near to `TEMPLATE` as a similarity can bring them.

    Args:
        rgb: frame, uint8 [H, W, 3].
        points: MediaPipe's landmarks [478, 2 or 3], or five points [5, 2 or 3] in the order of `TEMPLATE`,
            in pixels of `rgb`.

    Returns:
        uint8 [112, 112, 3], black beyond the frame.

    Raises:
        ValueError: the shapes are different, or the points are not finite or coincide.
    """
    expect_shape("frame", rgb, (None, None, 3))
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
    """The similarity (scale, rotation, shift) that maps `source` nearest to `target` in least squares.

    In the plane it has the form [[a, -b, x], [b, a, y]]. Source: Umeyama 1991, eq. 40-43, for the plane
    and without reflection.

    Args:
        source: points [n, 2].
        target: points [n, 2].

    Returns:
        The matrix [2, 3], to be applied to (x, y, 1).

    Raises:
        ValueError: `target` is not finite, or all its points coincide.
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
    """The part of the frame that the crop needs, averaged over `step` x `step` pixels, and its first pixel.

    Without averaging, a face much larger than the crop would alias.
    """
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
    """A face embedder.

    Attributes:
        name: its name in the model registry.
        dim: D, the dimension of its vectors.
        sha256: hash of the weights.
    """

    name: str
    dim: int
    sha256: str

    def embed(self, crops: Bytes) -> Floats:
        """Vectors of unit length, float32 [n, D], of aligned faces, uint8 RGB [n, 112, 112, 3]."""


class ArcFace:
    """An ArcFace-style ONNX model: one crop at a time on a CPU, so that a vector does not depend on the crops
    beside it; on a GPU in batches, where the model takes any number.

    Input is RGB scaled by (x - 127.5) / 127.5, unless the model scales by itself. MobileFaceNet was
    trained with ImageNet's mean and standard deviation, which is nearly the same map, and separates
    people as well under this one.

    Raises:
        ModelError: the file is not an ONNX model with one input [1, 3, 112, 112] and one output [1, D]; or
            the device is not there.
    """

    def __init__(self, name: str, path: Path, sha256: str, device: Device = "cpu") -> None:
        self._session = _session(name, path, device)
        takes_any = not isinstance(self._session.get_inputs()[0].shape[0], int)
        self._batch = BATCH_IMAGES if takes_any and runs_on_gpu(self._session) else 1
        self.name, self.sha256 = name, sha256
        self.dim = int(self._session.get_outputs()[0].shape[1])
        self._input = self._session.get_inputs()[0].name
        self._mean, self._scale = (0.0, 1.0) if _scales_by_itself(path) else (127.5, 1 / 127.5)

    def embed(self, crops: Bytes) -> Floats:
        """See `Embedder.embed`."""
        expect_shape("crops", crops, (None, ALIGNED_PX, ALIGNED_PX, 3))
        if not len(crops):
            return np.zeros((0, self.dim), np.float32)
        starts = range(0, len(crops), self._batch)
        return _unit(np.concatenate([self._vectors(crops[k : k + self._batch]) for k in starts]))

    def _vectors(self, crops: Bytes) -> Floats:
        blob = cv2.dnn.blobFromImages([*np.ascontiguousarray(crops)], self._scale, mean=(self._mean,) * 3)
        return np.asarray(self._session.run(None, {self._input: blob})[0])


def _scales_by_itself(path: Path) -> bool:
    """Whether a model begins with a subtraction and a multiplication, as those exported from MXNet do.
    Source: InsightFace distinguishes them in this way."""
    import onnx

    names = [node.name for node in onnx.load(str(path)).graph.node[:8]]
    return all(any(name.startswith(kind) for name in names) for kind in (("Sub", "_minus"), ("Mul", "_mul")))


class Dlib:
    """dlib's face network (ResNet-29, 128 dimensions) on one thread, one face at a time.

    Its input is cut from the aligned crop by a fixed map. That distinguishes people as well as dlib's own cut
    from the whole frame (docs/identity.md), and all embedders can share the same crops.

    Raises:
        MissingExtraError: dlib is not installed.
        ModelError: it does not take the weights.
    """

    dim = 128

    def __init__(self, name: str, path: Path, sha256: str) -> None:
        extras.require("dlib", "identity.model=dlib")
        import dlib

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
    """Aligned faces [n, 112, 112, 3] as inputs of dlib's network, uint8 [n, 150, 150, 3]."""
    expect_shape("crops", crops, (None, ALIGNED_PX, ALIGNED_PX, 3))
    to_crop = similarity_transform(DLIB_TEMPLATE, DLIB_POINTS)
    size, flags = (DLIB_CHIP_PX, DLIB_CHIP_PX), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    chips = [cv2.warpAffine(crop, to_crop, size, flags=flags) for crop in crops]
    return np.asarray(chips, np.uint8).reshape(-1, DLIB_CHIP_PX, DLIB_CHIP_PX, 3)


def embedder_name(config: IdentityConfig) -> str | None:
    """Name of the embedder that the configuration names, or None for 'none'.

    'auto' is the first of `EMBEDDERS` whose weights are present, and dlib only where it is installed. If no
    weights are present, it is the first of all, so that the error says how to get them.

    Raises:
        ModelError: there is no such embedder, dlib is not installed, or present weights are altered.
    """
    if config.model == "none":
        return None
    if config.model == "auto":
        return next((name for name in EMBEDDERS if _is_here(name)), EMBEDDERS[0])
    if config.model not in EMBEDDERS:
        known = ", ".join(("auto", "none", *EMBEDDERS))
        raise ModelError(f"identity.model {config.model}: expected one of {known}")
    if config.model == "dlib":
        extras.require("dlib", "identity.model=dlib")
    return config.model


def load_embedder(config: IdentityConfig, device: Device = "cpu") -> Embedder | None:
    """The embedder that `embedder_name` gives. None for 'none', and where 'auto' finds no weights.

    Args:
        config: its name.
        device: `measure.device`. dlib's network runs on the CPU on any.

    Raises:
        ModelError: there is no such embedder, its weights are missing or altered, or the device is not there.
    """
    name = embedder_name(config)
    if name is None or (config.model == "auto" and not _is_here(name)):
        return None
    path, sha256 = registry.weights(name), registry.MODELS[name].sha256
    return Dlib(name, path, sha256) if name == "dlib" else ArcFace(name, path, sha256, device)


def same_person_threshold(config: ShardConfig, model: str | None) -> float:
    """Least cosine similarity of two clips of one person: as configured, else the embedder's own.

    Args:
        config: its `same_person` wins, where it is set.
        model: name of the embedder. An unknown one is taken for an ArcFace.
    """
    if config.same_person is not None:
        return config.same_person
    return SAME_PERSON_SIMILARITY.get(model or "", SAME_PERSON_SIMILARITY["w600k_r50"])


def _is_here(name: str) -> bool:
    return (name != "dlib" or extras.missing("dlib") is None) and registry.present(name) is not None


def summarise(vectors: Floats) -> tuple[Floats, float]:
    """One vector for a clip, and how consistent its frames are.

    Args:
        vectors: float32 [n, D] of unit length, n at least 1.

    Returns:
        The median over the frames, scaled to unit length, float32 [D], and the least cosine similarity of a
        frame to it, in -1..1.
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


def _session(name: str, path: Path, device: Device) -> onnxruntime.InferenceSession:
    session = open_onnx(path, f"{name}: {path}", device)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[1:] != [3, ALIGNED_PX, ALIGNED_PX]:
        raise ModelError(f"{name}: {path}: expected input [1, 3, {ALIGNED_PX}, {ALIGNED_PX}], found {shape}")
    shape = list(outputs[0].shape)
    if len(outputs) != 1 or len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(f"{name}: {path}: expected one output [1, D], found {len(outputs)} of {shape}")
    return session
