"""Spans of a shard sample: frames, lip masks and speech cut to the same span and size.

`decode_sample` reads and checks a sample without its video, which is decoded when a span is cut. Spans of a
clip that is held in memory (`DecodedSample.in_memory`) need no decoding. Suffixes as in
`training.data.batch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from talkforge.curation.body.motion import intensity, span_variance
from talkforge.curation.face.lips import rasterise_all
from talkforge.schemas import sample
from talkforge.schemas.arrays import OVAL_POINTS, Bytes, Floats
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import Clip
from talkforge.schemas.units import (
    CONDITION_CHANNELS,
    LATENT_CHANNELS,
    LATENT_STRIDE_PX,
    features_from_frames,
    latent_frames,
    span_features,
)
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import (
    ClipFrames,
    Crop,
    DecodedVideo,
    EncodedVideo,
    LipMasks,
    Size,
    SkippedSampleError,
    nearest,
)

UNKNOWN_OMEGA = 0.5
"""Motion intensity where none was measured: the middle. Source: FantasyTalking §3.4's neutral value."""

MEMBERS = frozenset(
    {"json", "mp4", "lips.npz", "face.npz", "motion.npz", "speech.npy", "identity.npy", "txt"}
)
"""Members of a sample that training reads. Landmarks, joints, audio and face crop are passed over."""

CACHED_MEMBERS = MEMBERS - {"mp4"}
"""Likewise where cached latents replace the video."""

Quantiles = Mapping[str, Sequence[float]]
"""Percentiles of the raw motion variances of a data set, `quantiles` of its `dataset.json`."""

_NEEDED = ("json", "lips.npz", "speech.npy")

_REASONS: dict[type[DatasetError], str] = {
    sample.VersionError: "other_version",
    sample.OtherClipError: "other_clip",
    sample.ShapeError: "wrong_shape",
}
"""Reason for each kind of error. All other errors are 'unreadable'."""


@dataclass(frozen=True)
class Latents:
    """Cached spans of one clip, n of them, as `training.encode.command` writes them.

    Attributes:
        first_frame: [n], number of each span's first frame in the clip.
        latents: [n, 16, T, h, w] float16.
        condition: [n, 20, T, h, w] float16, zeros where the base takes none.
        text: prompt embedding [S', D] without the zeros beyond the prompt's end, or None.
        empty_text: embedding of the empty prompt, likewise.
        image: CLIP features [n, K, D], or None.
    """

    first_frame: np.ndarray
    latents: np.ndarray
    condition: np.ndarray
    text: np.ndarray | None
    empty_text: np.ndarray | None
    image: np.ndarray | None

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the arrays take."""
        arrays = (self.latents, self.condition, self.text, self.empty_text, self.image)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True)
class ClipMotion:
    """Motion of the face or the body in a clip, from which that of its spans is told.

    Attributes:
        trace: [F, 8] or [F, 20] float16, of the member `motion.npz`.
        raw: `omega_face_raw` or `omega_body_raw` of the clip, over the `span_variance` of its trace.
        quantiles: of the data set.
    """

    trace: np.ndarray
    raw: float
    quantiles: Sequence[float]

    @classmethod
    def of(cls, trace: np.ndarray, raw: float | None, quantiles: Sequence[float]) -> ClipMotion | None:
        """The motion of a clip. None where it was not measured, or was none at all.

        Args:
            trace: as the attribute.
            raw: raw motion variance of the clip.
            quantiles: as the attribute.
        """
        variance = span_variance(trace)
        return cls(trace, raw / variance, quantiles) if raw is not None and quantiles and variance else None

    def omega(self, first: int, last: int) -> float | None:
        """Motion intensity of frames [first, last), 0..1. None where too few of them were measured."""
        variance = span_variance(self.trace[first:last])
        return None if variance is None else intensity(self.raw * variance, self.quantiles)


@dataclass(frozen=True)
class Span:
    """Frames of a clip with their lip masks, speech and conditions.

    Attributes:
        key: `<clip id>+<first frame>`.
        first: number of the first frame in the clip.
        rgb: [F, H, W, 3] uint8, or None where cached latents replace it.
        lips: [F, H, W] uint8 0/1.
        lip_valid: [F] bool.
        speech: [L, D] float32 at 50 Hz.
        identity: [D] float32, or empty.
        omega: motion intensity of face and body, 0..1.
        text: prompt, may be empty.
        latents: cached spans of the clip, or None.
        nth: index of this span among the cached ones.
        face: [F, H, W] uint8 0/1, mask of the face, or None where it is not read.
    """

    key: str
    first: int
    rgb: Bytes | None
    lips: Bytes
    lip_valid: np.ndarray
    speech: Floats
    identity: Floats
    omega: tuple[float, float]
    text: str
    latents: Latents | None
    nth: int
    face: Bytes | None = None


@dataclass(frozen=True)
class DecodedSample:
    """A clip at the size of its bucket. Its arrays are those of `Span`, for the whole clip.

    Attributes:
        key: the clip's id.
        fps: frames per second.
        num_frames: frames of the clip.
        span_frames: frames of a span in its bucket.
        size: height and width of its bucket, px.
        frames: frames and lip masks.
        lip_valid: [F] bool.
        speech: [L, D] float32 at 50 Hz.
        identity: [D] float32, or empty.
        omega: motion intensity of face and body in the clip, 0..1.
        text: prompt, may be empty.
        latents: cached spans, or None.
        motion: of face and body; None where the intensity of a span is that of the clip.
        face_contour: [F, 36, 2], the face oval in px of the bucket, NaN where missing; None where it is not
            read.
    """

    key: str
    fps: float
    num_frames: int
    span_frames: int
    size: Size
    frames: ClipFrames
    lip_valid: np.ndarray
    speech: Floats
    identity: Floats
    omega: tuple[float, float]
    text: str
    latents: Latents | None
    motion: tuple[ClipMotion | None, ClipMotion | None] = (None, None)
    face_contour: Floats | None = None

    def span(self, first: int) -> Span:
        """Frames [first, first + span_frames) with their speech.

        Raises:
            SkippedSampleError: the video cannot be decoded up to the last frame.
        """
        last = first + self.span_frames
        return Span(
            key=f"{self.key}+{first}",
            first=first,
            rgb=self.frames.rgb(first, last) if self.latents is None else None,
            lips=self.frames.lips(first, last),
            lip_valid=self.lip_valid[first:last],
            speech=self.speech[span_features(first, self.span_frames, self.num_frames, self.fps)],
            identity=self.identity,
            omega=self._omega(first, last),
            text=self.text,
            latents=self.latents,
            nth=0 if self.latents is None else self.latents.first_frame.tolist().index(first),
            face=self._face(first, last),
        )

    def _omega(self, first: int, last: int) -> tuple[float, float]:
        of_span = [motion.omega(first, last) if motion else None for motion in self.motion]
        face, body = (clip if span is None else span for clip, span in zip(self.omega, of_span, strict=True))
        return face, body

    def _face(self, first: int, last: int) -> Bytes | None:
        if self.face_contour is None:
            return None
        return rasterise_all(self.face_contour[first:last], *self.size).view(np.uint8)

    def check(self, first: int) -> None:
        """Raise what `span` would raise."""
        if self.latents is None:
            self.frames.check(first + self.span_frames)

    def in_memory(self) -> DecodedSample:
        """The same clip with its video decoded, for the cache."""
        if not isinstance(self.frames, EncodedVideo):
            return self
        if self.latents is None:
            return replace(self, frames=self.frames.decoded())
        no_frames = np.empty((0, *self.size, 3), np.uint8)
        return replace(self, frames=DecodedVideo(no_frames, self.frames.lips(0, self.num_frames), None))

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the clip takes in the cache."""
        planes = 4 if self.latents is None else 1  # RGB and lips, or lips alone
        video = planes * self.num_frames * self.size[0] * self.size[1]
        latents = self.latents.num_bytes if self.latents else 0
        motion = sum(part.trace.nbytes for part in self.motion if part)
        face = 0 if self.face_contour is None else self.face_contour.nbytes
        return video + latents + self.speech.nbytes + self.identity.nbytes + motion + face


def decode_sample(
    key: str,
    members: Mapping[str, bytes],
    sizes: Iterable[Size],
    lengths: Sequence[int],
    info: DatasetInfo,
    *,
    cached: bool = False,
    quantiles: Quantiles | None = None,
    faces: bool = False,
    decoder: str = "pyav",
) -> DecodedSample:
    """A sample, checked and ready to be cut into spans. Its video is not decoded yet.

    Frames are scaled to cover the size and cropped around the median of the lips, so that a face stays in
    view where aspect ratios differ. An identity is left out where the data set has none.

    Args:
        key: the clip's id.
        members: contents of the sample's members.
        sizes: height and width of each bucket, px. The one with the nearest aspect ratio is used.
        lengths: frames of a span in each bucket. The longest that fits into the clip is used.
        info: of the data set.
        cached: take latents from the member `latents.npz` in place of the video.
        quantiles: of the data set, by which the motion intensity of a span is told. None: it is that of the
            clip.
        faces: read the face oval, for the mask of the face.
        decoder: of the video, see `frames.EncodedVideo`.

    Raises:
        SkippedSampleError: 'other_version', 'other_clip', 'other_fps', 'too_short', 'no_latents',
            'wrong_shape' or 'unreadable'.
    """
    try:
        if missing := [name for name in (*_NEEDED, *(() if cached else ("mp4",))) if name not in members]:
            raise SkippedSampleError("unreadable", f"{key}: no {', '.join(missing)}")
        meta = sample.read_meta(key, members["json"])
        sample.check_version_members(meta, members, MEMBERS)
        clip = meta.clip
        span_frames = _span_frames(key, clip, lengths, info)
        size = nearest(sizes, (clip.height_px, clip.width_px))
        latents = _latents(key, members, size, span_frames) if cached else None
        masks = _masks(sample.read_lips(key, members["lips.npz"], clip), clip, size)
        return DecodedSample(
            key=key,
            fps=clip.fps,
            num_frames=clip.num_frames,
            span_frames=span_frames,
            size=size,
            frames=EncodedVideo(key, b"" if cached else members["mp4"], clip.num_frames, masks, decoder),
            lip_valid=masks.valid,
            speech=_speech(key, members, clip, info.speech_dim),
            identity=_identity(key, members, clip, info.identity_dim),
            omega=(_omega(meta.omega_face), _omega(meta.omega_body)),
            text=sample.read_text(key, members.get("txt", b"")),
            latents=latents,
            motion=_motion(key, members, meta, quantiles or {}),
            face_contour=_face_contour(key, members, clip, masks.crop) if faces else None,
        )
    except SkippedSampleError:
        raise
    except DatasetError as error:
        reason = next((name for kind, name in _REASONS.items() if isinstance(error, kind)), "unreadable")
        raise SkippedSampleError(reason, str(error).removeprefix("sample ")) from None


def _span_frames(key: str, clip: Clip, lengths: Sequence[int], info: DatasetInfo) -> int:
    if clip.fps != info.fps:
        raise SkippedSampleError("other_fps", f"{key}: expected {info.fps:g} frames/s, found {clip.fps:g}")
    if clip.num_frames < min(lengths):
        raise SkippedSampleError(
            "too_short", f"{key}: expected {min(lengths)} frames, found {clip.num_frames}"
        )
    return max(frames for frames in lengths if frames <= clip.num_frames)


def _motion(
    key: str, members: Mapping[str, bytes], meta: sample.SampleMeta, quantiles: Quantiles
) -> tuple[ClipMotion | None, ClipMotion | None]:
    row = meta.measures.motion
    if row is None or not quantiles or "motion.npz" not in members:
        return None, None
    face, body = sample.read_motion(key, members["motion.npz"], meta.clip)
    return (
        ClipMotion.of(face, row.omega_face_raw, quantiles.get("omega_face", ())),
        ClipMotion.of(body, row.omega_body_raw, quantiles.get("omega_body", ())),
    )


def _face_contour(key: str, members: Mapping[str, bytes], clip: Clip, crop: Crop) -> Floats:
    """The face oval in px of the bucket; NaN in samples of earlier versions, which have none."""
    if "face.npz" not in members:
        return np.full((clip.num_frames, OVAL_POINTS, 2), np.nan, np.float32)
    return crop.moved(sample.read_face(key, members["face.npz"], clip).contour)


def _omega(value: float | None) -> float:
    return UNKNOWN_OMEGA if value is None else value


def _masks(lips: sample.LipArrays, clip: Clip, size: Size) -> LipMasks:
    own = (clip.height_px, clip.width_px)
    seen = lips.contour[lips.valid > 0].reshape(-1, 2)
    x, y = np.median(seen, axis=0) if len(seen) else (own[1] / 2, own[0] / 2)
    return LipMasks(lips.mask_bits, lips.valid > 0, Crop.around(own, size, (float(y), float(x))))


def _speech(key: str, members: Mapping[str, bytes], clip: Clip, dim: int) -> Floats:
    speech = sample.read_speech(key, members["speech.npy"], clip).astype(np.float32)
    _expect(key, "speech.npy", speech, (features_from_frames(clip.num_frames, clip.fps), dim))
    return speech


def _identity(key: str, members: Mapping[str, bytes], clip: Clip, dim: int) -> Floats:
    if "identity.npy" not in members or not dim:
        return np.zeros(0, np.float32)
    identity = sample.read_identity(key, members["identity.npy"], clip)
    if len(identity):
        _expect(key, "identity.npy", identity, (dim,))
    return identity


def _latents(key: str, members: Mapping[str, bytes], size: Size, num_frames: int) -> Latents:
    if "latents.npz" not in members:
        raise SkippedSampleError("no_latents", f"{key}: no cached latents")
    needed = ("first_frame", "latents")
    arrays = read_npz(members["latents.npz"], f"{key}: latents.npz")
    if lacking := [name for name in needed if name not in arrays]:
        raise SkippedSampleError("unreadable", f"{key}: latents.npz: no {', '.join(lacking)}")
    spans, grid = len(arrays["first_frame"]), [edge // LATENT_STRIDE_PX for edge in size]
    if not spans:
        raise SkippedSampleError("no_latents", f"{key}: latents.npz: no spans")
    shape = (latent_frames(num_frames), *grid)
    # Missing where the base takes no condition: `latent_cache.usable` sees to that.
    condition = arrays.get("condition", np.broadcast_to(np.float16(0), (spans, CONDITION_CHANNELS, *shape)))
    _expect(key, "latents", arrays["latents"], (spans, LATENT_CHANNELS, *shape))
    _expect(key, "condition", condition, (spans, CONDITION_CHANNELS, *shape))
    return Latents(
        arrays["first_frame"],
        arrays["latents"],
        condition,
        arrays.get("text"),
        arrays.get("empty_text"),
        arrays.get("image"),
    )


def _expect(key: str, name: str, found: np.ndarray, expected: tuple[int, ...]) -> None:
    if found.shape != expected:
        raise SkippedSampleError("wrong_shape", f"{key}: {name}: expected {expected}, found {found.shape}")
