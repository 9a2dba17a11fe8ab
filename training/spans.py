"""One shard sample to a span of frames with everything cut to the same span and size.

A clip is decoded, scaled and cropped once (`prepare`), then cut (`Prepared.span`), so that a clip that
is kept in memory gives another span for nothing.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import av
import cv2
import numpy as np

from schemas import sample
from schemas.arrays import Bytes, Floats
from schemas.errors import DatasetError
from schemas.sample import SampleMeta
from schemas.units import features_from_frames
from training.alignment import span_features
from training.batch import Facts

Size = tuple[int, int]
"""Height and width, px."""

UNKNOWN_OMEGA = 0.5
"""Motion intensity where none was measured: the middle. Source: FantasyTalking §3.4's neutral value."""


class BadSampleError(DatasetError):
    """A sample that cannot be used; `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Latents:
    """Cached spans of one clip, as `training.encode` writes them: n spans.

    Attributes:
        first_frame: [n]. latents: [n, 16, T, h, w]. condition: [n, 20, T, h, w].
        text, empty_text: [S', D] without the zeros beyond the prompt's end, or None.
        image: [n, K, D], or None.
    """

    first_frame: np.ndarray
    latents: np.ndarray
    condition: np.ndarray
    text: np.ndarray | None
    empty_text: np.ndarray | None
    image: np.ndarray | None


@dataclass(frozen=True)
class Prepared:
    """A clip at the size of its bucket; F frames of the clip.

    Attributes:
        rgb: [F, H, W, 3] uint8, or None where cached latents stand for it.
        lips: [F, H, W] uint8 0/1. lip_valid: [F] bool. speech: [L, D] float32 at 50 Hz.
        identity: [D] float32, or empty.
    """

    key: str
    fps: float
    size: Size
    rgb: Bytes | None
    lips: Bytes
    lip_valid: np.ndarray
    speech: Floats
    identity: Floats
    omega: tuple[float, float]
    text: str
    latents: Latents | None

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return len(self.lips)

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(array.nbytes for array in (self.rgb, self.lips, self.speech) if array is not None)

    def span(self, first_frame: int, num_frames: int) -> Span:
        """Frames [first_frame, first_frame + num_frames) with their speech."""
        cut = slice(first_frame, first_frame + num_frames)
        heard = span_features(first_frame, num_frames, self.num_frames, self.fps)
        return Span(
            key=f"{self.key}+{first_frame}",
            clip=replace(
                self,
                rgb=None if self.rgb is None else self.rgb[cut],
                lips=self.lips[cut],
                lip_valid=self.lip_valid[cut],
                speech=self.speech[heard],
            ),
            cached=None
            if self.latents is None
            else int(np.flatnonzero(self.latents.first_frame == first_frame)[0]),
        )


@dataclass(frozen=True)
class Span:
    """A span of a clip: `clip` cut to it, and the place of its latents among the cached ones."""

    key: str
    clip: Prepared
    cached: int | None


def prepare(
    key: str, members: Mapping[str, bytes], sizes: Iterable[Size], num_frames: int, facts: Facts
) -> Prepared:
    """Decode what training needs of a sample, at the nearest of `sizes`.

    Members that training does not use are not looked at. Pictures are scaled to cover the size and
    cropped around the middle of the lips.

    Raises:
        BadSampleError: 'other_version', 'other_fps', 'too_short', 'wrong_shape' or 'unreadable'.
    """
    try:
        meta = _meta(key, members)
        clip = meta.clip
        if clip.fps != facts.fps:
            raise BadSampleError("other_fps", f"{key}: expected {facts.fps:g} frames/s, found {clip.fps:g}")
        if clip.num_frames < num_frames:
            raise BadSampleError("too_short", f"{key}: expected {num_frames} frames, found {clip.num_frames}")
        latents = _latents(members)
        size = _nearest(sizes, clip.height_px, clip.width_px)
        lips, valid, crop = _lips(key, members, meta, size)
        return Prepared(
            key=key,
            fps=clip.fps,
            size=size,
            rgb=_pictures(key, members["mp4"], clip.num_frames, crop) if latents is None else None,
            lips=lips,
            lip_valid=valid,
            speech=_speech(key, members, features_from_frames(clip.num_frames, clip.fps), facts.speech_dim),
            identity=_identity(key, members, facts.identity_dim),
            omega=(_omega(meta.omega_face), _omega(meta.omega_body)),
            text=members.get("txt", b"").decode("utf-8"),
            latents=latents,
        )
    except BadSampleError:
        raise
    except Exception as error:  # damaged bytes make the libraries raise almost anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadSampleError("unreadable", f"{key}: {type(error).__name__}: {what}") from None


def _meta(key: str, members: Mapping[str, bytes]) -> SampleMeta:
    data: dict[str, Any] = json.loads(members["json"])
    if data.get("version") != sample.VERSION:
        raise BadSampleError(
            "other_version", f"{key}: expected sample version {sample.VERSION}, found {data.get('version')}"
        )
    return SampleMeta.model_validate(data)


def _omega(value: float | None) -> float:
    return UNKNOWN_OMEGA if value is None else value


def _nearest(sizes: Iterable[Size], height_px: int, width_px: int) -> Size:
    """The size whose aspect is nearest, the larger one where two are."""
    wanted = np.log(width_px / height_px)
    return min(sizes, key=lambda size: (abs(np.log(size[1] / size[0]) - wanted), -size[0] * size[1]))


@dataclass(frozen=True)
class _Crop:
    """Scale a picture to `scaled`, then take `size` from (`top`, `left`)."""

    scaled: Size
    size: Size
    top: int
    left: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        return picture[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


def _crop(size: Size, height_px: int, width_px: int, middle: tuple[float, float]) -> _Crop:
    """`middle` is y and x of what the crop should be centred on, as shares of the picture."""
    scale = max(size[0] / height_px, size[1] / width_px)
    scaled = (max(round(height_px * scale), size[0]), max(round(width_px * scale), size[1]))
    top, left = (
        int(np.clip(round(share * full - part / 2), 0, full - part))
        for share, full, part in zip(middle, scaled, size, strict=True)
    )
    return _Crop(scaled, size, top, left)


def _lips(
    key: str, members: Mapping[str, bytes], meta: SampleMeta, size: Size
) -> tuple[Bytes, np.ndarray, _Crop]:
    clip = meta.clip
    with np.load(io.BytesIO(members["lips.npz"]), allow_pickle=False) as stored:
        bits, valid, contour = stored["mask"], stored["valid"], stored["contour"]
    expected = (clip.num_frames, (clip.height_px * clip.width_px + 7) // 8)
    if bits.shape != expected or valid.shape != expected[:1]:
        raise BadSampleError(
            "wrong_shape", f"{key}: lips.npz: expected {expected}, found {bits.shape} and {valid.shape}"
        )
    seen = contour[valid > 0].reshape(-1, 2)
    x, y = np.median(seen, axis=0) if len(seen) else (clip.width_px / 2, clip.height_px / 2)
    crop = _crop(size, clip.height_px, clip.width_px, (y / clip.height_px, x / clip.width_px))
    lips = np.zeros((clip.num_frames, *size), np.uint8)
    for k in np.flatnonzero(valid):
        mask = sample.unpack_mask(bits[k : k + 1], clip.height_px, clip.width_px)[0].astype(np.float32)
        small = cv2.resize(mask, crop.scaled[::-1], interpolation=cv2.INTER_AREA)
        lips[k] = crop.of(small) >= 0.5
    return lips, valid > 0, crop


def _pictures(key: str, mp4: bytes, num_frames: int, crop: _Crop) -> Bytes:
    height_px, width_px = crop.scaled
    rgb = np.empty((num_frames, *crop.size, 3), np.uint8)
    count = 0
    with av.open(io.BytesIO(mp4)) as container:
        container.streams.video[0].thread_count = 1
        for frame in itertools.islice(container.decode(video=0), num_frames):
            small = frame.to_ndarray(format="rgb24", width=width_px, height=height_px, interpolation="AREA")
            rgb[count] = crop.of(small)
            count += 1
    if count != num_frames:
        raise BadSampleError("wrong_shape", f"{key}: mp4: expected {num_frames} frames, found {count}")
    return rgb


def _speech(key: str, members: Mapping[str, bytes], length: int, dim: int) -> Floats:
    speech = np.load(io.BytesIO(members["speech.npy"]), allow_pickle=False)
    if speech.shape != (length, dim):
        raise BadSampleError(
            "wrong_shape", f"{key}: speech.npy: expected {(length, dim)}, found {speech.shape}"
        )
    return np.asarray(speech, np.float32)


def _identity(key: str, members: Mapping[str, bytes], dim: int) -> Floats:
    if "identity.npy" not in members:
        return np.zeros(0, np.float32)
    identity = np.load(io.BytesIO(members["identity.npy"]), allow_pickle=False)
    if identity.shape != (dim,):
        raise BadSampleError("wrong_shape", f"{key}: identity.npy: expected {(dim,)}, found {identity.shape}")
    return np.asarray(identity, np.float32)


def _latents(members: Mapping[str, bytes]) -> Latents | None:
    if "latents.npz" not in members:
        return None
    with np.load(io.BytesIO(members["latents.npz"]), allow_pickle=False) as stored:
        names = set(stored.files)
        return Latents(
            first_frame=stored["first_frame"],
            latents=stored["latents"],
            condition=stored["condition"],
            text=stored["text"] if "text" in names else None,
            empty_text=stored["empty_text"] if "empty_text" in names else None,
            image=stored["image"] if "image" in names else None,
        )
