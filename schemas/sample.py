"""The shard sample: its members, encoded and decoded side by side, and the manifest of a shard.

A sample is a key and some members; in a shard the file `<key>.<member>` holds each. The key is
the clip's id. `decode` reads and checks a whole sample; `read_meta`, `read_lips` and their like read and
check a single member. Video, audio and face crop stay encoded bytes: no codec is needed here.

Legend: F frames of the clip, H x W its size in pixels, P contour points, J joints, L speech
features at 50 Hz, D their width.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator

from talkforge.schemas import units
from talkforge.schemas.arrays import (
    BLENDSHAPES,
    BODY_MOTION_DIMS,
    FACE_MOTION_DIMS,
    INTERPOLATED,
    MEASURED,
    MISSING,
    NUM_LANDMARKS,
    OVAL_POINTS,
    Bytes,
    ClipArrays,
    Floats,
    not_measured,
)
from talkforge.schemas.errors import DatasetError, first_invalid
from talkforge.schemas.npz import npy_bytes, npz_bytes, read_npy, read_npz
from talkforge.schemas.records import Clip, ClipMeasures, Record, Verdict

VERSION = 4
"""Version of the layout of a sample. In version 1 the `json` member had null where nothing was measured. In
versions 1 and 2 `identity.npy` was missing where no face embedding was measured. Now it is empty. Versions 1
to 3 had no `blendshapes.npy`, `face.npz` and `motion.npz`. They are read as not measured."""

VERSIONS = (1, 2, 3, 4)
"""Versions that are read."""

NO_NUMBER, NO_TEXT = -9999.0, ""
"""What stands in the `json` member for a number or a text that is not there. Nothing measured has this value.

Readers such as `load_dataset("webdataset")` take the members, and the type of each key, from the first few
samples. They stop where those differ in their members, and cannot read on where they have null. With these
values every key has one type in every sample.
"""

Members = dict[str, bytes]
"""Member name -> bytes, in the order of `MEMBERS`."""

MEMBERS = (
    "blendshapes.npy",
    "face.jpg",
    "face.npz",
    "flac",
    "identity.npy",
    "joints.npz",
    "json",
    "landmarks.npz",
    "latents.npz",
    "lips.npz",
    "motion.npz",
    "mp4",
    "speech.npy",
    "txt",
)
"""Every member a sample may have, in the order in which they lie in a shard."""

SINCE = {"identity.npy": 3, "blendshapes.npy": 4, "face.npz": 4, "motion.npz": 4}
"""Version from which on every sample has a member. Before, it may be missing."""

OPTIONAL = frozenset({*SINCE, "latents.npz"})
"""Members that may be missing: those of `SINCE` in earlier versions, and the latents."""

ARRAYS: dict[str, tuple[str, ...]] = {
    "lips.npz": ("mask", "valid", "contour"),
    "landmarks.npz": ("points",),
    "joints.npz": ("points",),
    "speech.npy": (),
    "identity.npy": (),
    "blendshapes.npy": (),
    "face.npz": ("contour", "valid"),
    "motion.npz": ("face", "body"),
}
"""Members that hold arrays, and the names of the arrays in an npz file."""

STEPS_PER_PX = 16
"""Contours and landmarks are stored in steps of 1/16 px: finer than they are measured, and
the low bits of a float do not compress."""

POINTS_BYTES = 1 << 16
"""Most bytes that points of a frame may take. Source: ours; ten times the 478 landmarks."""

MAX_MEMBER_BYTES = 4 << 30
"""Most bytes in the arrays of a member, whatever the clip. Source: ours; the masks of 20 s at 60 frames/s and
3840 x 2160 px are 1.2 GB."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Provenance(Record):
    """Where a sample comes from and what measured it."""

    uri: str
    sha256: str
    """Of the source file."""
    source: str
    licence: str
    consent: str
    models: dict[str, str]
    """Name of each model that had a part in the measurements -> sha256 of its weights."""
    config_hash: str
    """sha256 of the measuring configuration, as in `dataset.json`."""
    tool_version: str


class SampleMeta(Record):
    """The `json` member: the clip, everything measured of it, the verdict and the provenance."""

    version: Literal[1, 2, 3, 4] = 4
    measures: ClipMeasures
    omega_face: float | None
    """Motion intensity of the face (omega_l), 0 to 1 by the data set's quantiles."""
    omega_body: float | None
    """Motion intensity of the body (omega_b), likewise."""
    person_id: str | None
    verdict: Verdict
    provenance: Provenance
    audio_shift_s: float = 0.0
    """Seconds by which the audio of the sample was moved against its source; positive: delayed. The audio is
    that of the source from `measures.clip.start_s - audio_shift_s` on."""
    source: dict[str, str] = Field(default_factory=dict)
    """Further columns of the list that named the input. Every sample of a data set has the same ones."""

    @model_validator(mode="before")
    @classmethod
    def _from_stored(cls, data: Any) -> Any:
        """Takes the `json` member of any version; see `meta_json`."""
        if not isinstance(data, dict) or data.get("version") not in VERSIONS[1:]:
            return data
        return _with_nulls(cls, data)

    @property
    def clip(self) -> Clip:
        return self.measures.clip


class ShardManifest(Record):
    """`shards/<name>.json`: commits and describes the tar file of the same name."""

    version: Literal[1] = 1
    name: str
    sha256: str
    bytes: int
    count: int
    keys: tuple[str, ...]
    """In the order in which the samples lie in the tar file."""
    fingerprint: str
    """Changes whenever the shard would be written differently; see `pipeline.shards`."""


@dataclass(frozen=True)
class ShardSample:
    """A decoded sample; checks its shapes and clocks when made and raises DatasetError.

    Attributes:
        key: the clip's id.
        meta: the clip with everything known of it.
        mp4, flac, face_jpg: encoded bytes; `flac` is 16 kHz mono.
        mask_bits: [F, ceil(H*W/8)] uint8, see `pack_mask`.
        contour: [F, P, 2] float32 in clip pixels, NaN where `lip_valid` is 0.
        lip_valid: [F] uint8: 0 missing, 1 interpolated, 2 measured.
        landmarks: [F, 478, 3] float32, NaN where the face was not seen.
        joints: [F, J, 3] float32: x, y in clip pixels, score 0..1; NaN where not seen.
        speech: [L, D] float16 at 50 Hz.
        identity: [D] float32 of unit length, or empty where none was measured.
        text: prompt or transcript, may be empty.
        blendshapes: [F, 52] float16 in 0..1 in the order of `schemas.arrays.BLENDSHAPES`, NaN where not seen.
        face_contour: [F, 36, 2] float32 in clip pixels, the face oval, NaN where `face_valid` is 0.
        face_valid: [F] uint8, with the codes of `lip_valid`.
        face_motion: [F, 8] float16, principal components of the face without its pose; NaN where not seen.
        body_motion: [F, 20] float16, x and y of ten joints in shoulder widths; NaN where not measured.

    What samples of earlier versions lack is NaN, and 0 in `face_valid`, however many frames they have.
    """

    key: str
    meta: SampleMeta
    mp4: bytes
    flac: bytes
    face_jpg: bytes
    mask_bits: Bytes
    contour: Floats
    lip_valid: Bytes
    landmarks: Floats
    joints: Floats
    speech: np.ndarray
    blendshapes: np.ndarray
    face_contour: Floats
    face_valid: Bytes
    face_motion: np.ndarray
    body_motion: np.ndarray
    identity: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    text: str = ""

    def __post_init__(self) -> None:
        check_key(self.key)
        _expect(self.key, "json clip_id", self.meta.clip.clip_id, self.key)
        _expect(self.key, "json verdict clip_id", self.meta.verdict.clip_id, self.key)
        arrays: dict[str, np.ndarray] = {
            "lips.npz mask": self.mask_bits,
            "lips.npz valid": self.lip_valid,
            "lips.npz contour": self.contour,
            "landmarks.npz points": self.landmarks,
            "joints.npz points": self.joints,
            "speech.npy": self.speech,
            "identity.npy": self.identity,
            "blendshapes.npy": self.blendshapes,
            "face.npz contour": self.face_contour,
            "face.npz valid": self.face_valid,
            "motion.npz face": self.face_motion,
            "motion.npz body": self.body_motion,
        }
        _check_arrays(self.key, arrays, self.meta.clip)
        _check_encoded(self)

    def masks(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Lip masks of frames [first, last): bool [n, H, W].

        Args:
            first: the first frame.
            last: the frame after the last one; None means the end.
        """
        clip = self.meta.clip
        return unpack_mask(self.mask_bits[first:last], clip.height_px, clip.width_px)


def encode(
    meta: SampleMeta,
    arrays: ClipArrays,
    mask_bits: Bytes,
    *,
    mp4: bytes,
    flac: bytes,
    face_jpg: bytes,
    text: str = "",
) -> Members:
    """Members of one sample; the same arguments give the same bytes.

    Args:
        meta: its `clip.clip_id` becomes the key.
        arrays: of the clip; contours and landmarks are rounded to 1/16 px.
        mask_bits: [F, ceil(H*W/8)] uint8 from `pack_mask`.
        mp4: encoded video with its audio.
        flac: encoded audio, 16 kHz mono.
        face_jpg: encoded face crop.
        text: prompt or transcript, may be empty.

    Raises:
        DatasetError: a shape or a clock does not fit the clip; names key, expected and found.
    """
    sample = ShardSample(
        key=meta.clip.clip_id,
        meta=meta,
        mp4=mp4,
        flac=flac,
        face_jpg=face_jpg,
        mask_bits=mask_bits,
        contour=_on_grid(arrays.contour),
        lip_valid=arrays.lip_valid,
        landmarks=_on_grid(arrays.landmarks),
        joints=arrays.joints,
        speech=arrays.speech,
        identity=arrays.identity,
        text=text,
        blendshapes=arrays.blendshapes,
        face_contour=_on_grid(arrays.face_contour),
        face_valid=arrays.face_valid,
        face_motion=arrays.face_motion,
        body_motion=arrays.body_motion,
    )
    return {
        "blendshapes.npy": npy_bytes(sample.blendshapes),
        "face.jpg": face_jpg,
        "face.npz": npz_bytes(contour=sample.face_contour, valid=sample.face_valid),
        "flac": flac,
        "identity.npy": npy_bytes(sample.identity),
        "joints.npz": npz_bytes(points=sample.joints),
        "json": meta_json(meta),
        "landmarks.npz": npz_bytes(points=sample.landmarks),
        "lips.npz": npz_bytes(mask=mask_bits, valid=sample.lip_valid, contour=sample.contour),
        "motion.npz": npz_bytes(face=sample.face_motion, body=sample.body_motion),
        "mp4": mp4,
        "speech.npy": npy_bytes(sample.speech),
        "txt": text.encode("utf-8"),
    }


class VersionError(DatasetError):
    """A sample is of another layout than `VERSION`."""


class OtherClipError(DatasetError):
    """The key of a sample and its member `json` name two clips."""


class ShapeError(DatasetError):
    """An array of a sample has another shape or type than its clip needs."""


class FaceOval(NamedTuple):
    """What `face.npz` holds; see `ShardSample`."""

    contour: Floats
    valid: Bytes


class MotionArrays(NamedTuple):
    """What `motion.npz` holds; see `ShardSample`."""

    face: np.ndarray
    body: np.ndarray


class LipArrays(NamedTuple):
    """What `lips.npz` holds; see `ShardSample`."""

    mask_bits: Bytes
    valid: Bytes
    contour: Floats


def decode(key: str, members: Mapping[str, bytes]) -> ShardSample:
    """The sample in `members`.

    Raises:
        VersionError: it is of another version.
        ShapeError: an array does not fit the clip.
        DatasetError: a member is missing, unknown or unreadable, or a clock does not fit the clip;
            names key, expected and found.
    """
    check_members(key, members)
    meta = read_meta(key, members["json"])
    check_version_members(meta, members)
    arrays = _not_measured(meta.clip.num_frames)
    for member in ARRAYS:
        if member in members:
            arrays |= _stored_arrays(key, member, members[member], meta.clip)
    return ShardSample(
        key=key,
        meta=meta,
        mp4=members["mp4"],
        flac=members["flac"],
        face_jpg=members["face.jpg"],
        mask_bits=arrays["lips.npz mask"],
        contour=arrays["lips.npz contour"],
        lip_valid=arrays["lips.npz valid"],
        landmarks=arrays["landmarks.npz points"],
        joints=arrays["joints.npz points"],
        speech=arrays["speech.npy"],
        identity=arrays["identity.npy"],
        text=read_text(key, members["txt"]),
        blendshapes=arrays["blendshapes.npy"],
        face_contour=arrays["face.npz contour"],
        face_valid=arrays["face.npz valid"],
        face_motion=arrays["motion.npz face"],
        body_motion=arrays["motion.npz body"],
    )


def read_meta(key: str, data: bytes) -> SampleMeta:
    """The member `json`.

    Args:
        key: of the sample.
        data: content of the member.

    Raises:
        VersionError: it is of another version.
        OtherClipError: it speaks of another clip.
        DatasetError: it is not readable.
    """
    try:
        described = json.loads(data)
        version = described.get("version") if isinstance(described, dict) else None
        if version not in VERSIONS:
            expected = f"{VERSIONS[0]} to {VERSIONS[-1]}"
            raise VersionError(f"sample {key}: json: expected version {expected}, found {version}")
        meta = SampleMeta.model_validate_json(data)
    except ValidationError as error:
        raise DatasetError(f"sample {key}: json: {first_invalid(error)}") from None
    except ValueError as error:
        raise DatasetError(f"sample {key}: json: expected JSON, found {error}") from None
    for what, clip_id in (("clip_id", meta.clip.clip_id), ("verdict clip_id", meta.verdict.clip_id)):
        if clip_id != key:
            raise OtherClipError(f"sample {key}: json {what}: expected {key}, found {clip_id}")
    return meta


def read_lips(key: str, data: bytes, clip: Clip) -> LipArrays:
    """The member `lips.npz`.

    Args:
        key: of the sample.
        data: content of the member.
        clip: from the member `json`.

    Raises:
        ShapeError: an array does not fit the clip.
        DatasetError: it is not readable, or contour and mask are not there where `valid` says so.
    """
    return LipArrays(*_read_arrays(key, "lips.npz", data, clip))


def read_face(key: str, data: bytes, clip: Clip) -> FaceOval:
    """The member `face.npz`.

    Args:
        key: of the sample.
        data: content of the member.
        clip: from the member `json`.

    Raises:
        ShapeError: an array does not fit the clip.
        DatasetError: it is not readable, or the contour is not there where `valid` says so.
    """
    return FaceOval(*_read_arrays(key, "face.npz", data, clip))


def read_motion(key: str, data: bytes, clip: Clip) -> MotionArrays:
    """The member `motion.npz`.

    Args:
        key: of the sample.
        data: content of the member.
        clip: from the member `json`.

    Raises:
        ShapeError: an array does not fit the clip.
        DatasetError: it is not readable.
    """
    return MotionArrays(*_read_arrays(key, "motion.npz", data, clip))


def read_speech(key: str, data: bytes, clip: Clip) -> np.ndarray:
    """The member `speech.npy`, [L, D] float16.

    Args:
        key: of the sample.
        data: content of the member.
        clip: from the member `json`.

    Raises:
        ShapeError: it does not fit the clip.
        DatasetError: it is not readable, or not of numbers.
    """
    (speech,) = _read_arrays(key, "speech.npy", data, clip)
    return speech


def read_identity(key: str, data: bytes, clip: Clip) -> Floats:
    """The member `identity.npy`, [D] float32 of unit length, or empty where none was measured.

    Args:
        key: of the sample.
        data: content of the member.
        clip: from the member `json`.

    Raises:
        ShapeError: it is no vector.
        DatasetError: it is not readable, or not of unit length.
    """
    (identity,) = _read_arrays(key, "identity.npy", data, clip)
    return identity


def read_text(key: str, data: bytes) -> str:
    """The member `txt`.

    Args:
        key: of the sample.
        data: content of the member.

    Raises:
        DatasetError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DatasetError(f"sample {key}: txt: expected UTF-8, found other bytes") from None


def read_manifest(data: bytes, file: str) -> ShardManifest:
    """The manifest of a shard.

    Args:
        data: content of `shards/<name>.json`.
        file: what messages call it.

    Raises:
        DatasetError: it is no manifest, or one of another version.
    """
    return ShardManifest.from_json(data, file, "a shard manifest")


def check_key(key: str) -> None:
    """Raise DatasetError unless `key` is letters, digits, '_' and '-' only.

    A dot would end the key early in every WebDataset reader; a slash would make a folder.
    """
    if not _KEY.fullmatch(key):
        raise DatasetError(f"sample {key!r}: expected a key of 1 to 80 letters, digits, '_' and '-' only")


def check_version_members(
    meta: SampleMeta, members: Collection[str], wanted: Collection[str] = tuple(SINCE)
) -> None:
    """Raise DatasetError where a member is missing from a sample of a version that always has it.

    Args:
        meta: of the sample.
        members: names of its members.
        wanted: names of the members that the reader looks at.
    """
    for name, version in SINCE.items():
        if name in wanted and meta.version >= version and name not in members:
            raise DatasetError(f"sample {meta.clip.clip_id}: expected its members, found no {name}")


def check_members(key: str, members: Mapping[str, bytes]) -> None:
    """Raise DatasetError unless every required member is there and none is unknown."""
    check_key(key)
    missing = [name for name in MEMBERS if name not in members and name not in OPTIONAL]
    unknown = sorted(set(members) - set(MEMBERS))
    if missing or unknown:
        found = [f"no {name}" for name in missing] + [f"an unknown {name}" for name in unknown]
        raise DatasetError(f"sample {key}: expected its members, found {', '.join(found)}")


def pack_mask(mask: np.ndarray) -> Bytes:
    """Bool [..., H, W] -> uint8 [..., ceil(H*W/8)], one row of bits for each frame.

    Pixels are taken row by row. The first pixel is the highest bit of the first byte (`numpy.packbits`,
    bitorder "big"). The bits beyond the last pixel are 0.
    """
    flat = mask.astype(np.bool_).reshape(*mask.shape[:-2], mask.shape[-2] * mask.shape[-1])
    return np.packbits(flat, axis=-1, bitorder="big")


def unpack_mask(bits: Bytes, height_px: int, width_px: int) -> np.ndarray:
    """uint8 [..., ceil(H*W/8)] -> bool [..., H, W]: undoes `pack_mask`."""
    flat = np.unpackbits(bits, axis=-1, count=height_px * width_px, bitorder="big")
    return flat.view(np.bool_).reshape(*bits.shape[:-1], height_px, width_px)


def flac_facts(data: bytes) -> tuple[int, int, int]:
    """(sample rate in Hz, channels, samples per channel) from a FLAC file's STREAMINFO.

    Source: RFC 9639, section 8.2.

    Raises:
        ValueError: not a FLAC file.
    """
    if len(data) < 42 or data[:4] != b"fLaC" or data[4] & 0x7F or data[5:8] != b"\x00\x00\x22":
        raise ValueError("not a FLAC file")
    packed = int.from_bytes(data[18:26], "big")
    return packed >> 44, (packed >> 41 & 0b111) + 1, packed & (1 << 36) - 1


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def meta_json(meta: SampleMeta) -> bytes:
    """The `json` member: every key is there, and has one type in every sample.

    A number that is not there is `NO_NUMBER`, a text `NO_TEXT`, and a section that was not measured has
    nothing else. `provenance.models` is a list of names with sha256, because its names differ. `source` is
    left out where the data set has no such columns.
    """
    return _canonical(_without_nulls(SampleMeta, meta.model_dump(mode="json")) | {"version": VERSION})


def _without_nulls(model: type[Record], data: dict[str, Any] | None) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind, value = _kind(info.annotation), data.get(name) if data else None
        if isinstance(kind, type) and issubclass(kind, Record):
            stored[name] = _without_nulls(kind, value)
        elif name == "models":
            stored[name] = [{"name": key, "sha256": sha256} for key, sha256 in sorted((value or {}).items())]
        elif kind == dict[str, str]:
            stored |= {name: value} if value else {}
        elif value is None:
            stored[name] = {float: NO_NUMBER, int: int(NO_NUMBER)}.get(kind, NO_TEXT)
        else:
            stored[name] = value
    return stored


def _with_nulls(model: type[Record], stored: dict[str, Any]) -> dict[str, Any]:
    """Undoes `_without_nulls`; keys that the model does not know stay, to be refused by it."""
    found = dict(stored)
    for name, info in model.model_fields.items():
        kind, optional, value = _kind(info.annotation), _is_optional(info.annotation), stored.get(name)
        if isinstance(kind, type) and issubclass(kind, Record) and isinstance(value, dict):
            found[name] = None if optional and _nowhere(value) else _with_nulls(kind, value)
        elif name == "models" and isinstance(value, list):
            found[name] = {entry["name"]: entry["sha256"] for entry in value}
        elif optional and value in (NO_NUMBER, NO_TEXT):
            found[name] = None
    return found


def _nowhere(section: dict[str, Any]) -> bool:
    return all(_nowhere(v) if isinstance(v, dict) else v in (NO_NUMBER, NO_TEXT) for v in section.values())


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _kind(annotation: Any) -> Any:
    """The annotation without its None."""
    if not _is_optional(annotation):
        return annotation
    (kind,) = (inner for inner in typing.get_args(annotation) if inner is not type(None))
    return kind


def _expect(key: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise DatasetError(f"sample {key}: {what}: expected {expected}, found {found}")


def _expected_arrays(clip: Clip) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
    """Type and shape of every array of the clip's sample; None stands for any length."""
    frames = clip.num_frames
    mask_bytes = -(-clip.height_px * clip.width_px // 8)
    return {
        "lips.npz mask": (np.uint8, (frames, mask_bytes)),
        "lips.npz valid": (np.uint8, (frames,)),
        "lips.npz contour": (np.float32, (frames, None, 2)),
        "landmarks.npz points": (np.float32, (frames, NUM_LANDMARKS, 3)),
        "joints.npz points": (np.float32, (frames, None, 3)),
        "speech.npy": (np.float16, (units.features_from_frames(frames, clip.fps), None)),
        "identity.npy": (np.float32, (None,)),
        "blendshapes.npy": (np.float16, (frames, len(BLENDSHAPES))),
        "face.npz contour": (np.float32, (frames, OVAL_POINTS, 2)),
        "face.npz valid": (np.uint8, (frames,)),
        "motion.npz face": (np.float16, (frames, FACE_MOTION_DIMS)),
        "motion.npz body": (np.float16, (frames, BODY_MOTION_DIMS)),
    }


def _not_measured(frames: int) -> dict[str, np.ndarray]:
    """Arrays of members that samples of earlier versions lack, by the names of `_expected_arrays`."""
    return {
        "identity.npy": np.zeros(0, np.float32),
        "blendshapes.npy": not_measured(frames, len(BLENDSHAPES)),
        "face.npz contour": np.full((frames, OVAL_POINTS, 2), np.nan, np.float32),
        "face.npz valid": np.full(frames, MISSING, np.uint8),
        "motion.npz face": not_measured(frames, FACE_MOTION_DIMS),
        "motion.npz body": not_measured(frames, BODY_MOTION_DIMS),
    }


def _check_arrays(key: str, arrays: Mapping[str, np.ndarray], clip: Clip) -> None:
    """Check shapes and types first, then what the arrays hold; names as in `_expected_arrays`."""
    expected = _expected_arrays(clip)
    for name, array in arrays.items():
        dtype, shape = expected[name]
        fits = array.dtype == dtype and array.ndim == len(shape)
        if not fits or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
            sizes = ", ".join("any" if n is None else str(n) for n in shape)
            raise ShapeError(
                f"sample {key}: {name}: expected {np.dtype(dtype)} [{sizes}] for {clip.num_frames} frames at "
                f"{clip.fps:g} fps, found {array.dtype} {list(array.shape)}"
            )
    if "lips.npz mask" in arrays:
        _check_lips(key, LipArrays(*(arrays[f"lips.npz {name}"] for name in ARRAYS["lips.npz"])))
    if "face.npz contour" in arrays:
        _check_contour(key, "face.npz", arrays["face.npz contour"], arrays["face.npz valid"])
    if "blendshapes.npy" in arrays:
        _check_blendshapes(key, arrays["blendshapes.npy"])
    for name in ("motion.npz face", "motion.npz body"):
        if name in arrays and np.isinf(arrays[name]).any():
            _expect(key, name, "infinity", "numbers")
    if "speech.npy" in arrays and not np.isfinite(arrays["speech.npy"]).all():
        _expect(key, "speech.npy", "NaN or infinity", "numbers")
    if "identity.npy" in arrays and len(identity := arrays["identity.npy"]):
        length = float(np.linalg.norm(identity.astype(np.float64)))
        if not abs(length - 1) < 1e-3:
            _expect(key, "identity.npy", f"length {length:.4g}", "length 1")


def _check_blendshapes(key: str, shapes: np.ndarray) -> None:
    unseen = np.isnan(shapes).all(axis=1)
    fits = (shapes >= 0) & (shapes <= 1)
    if (wrong := np.flatnonzero(~(unseen | fits.all(axis=1)))).size:
        _expect(key, f"blendshapes.npy of frame {int(wrong[0])}", "others", "numbers of 0 to 1, or NaN")


def _check_contour(key: str, member: str, contour: Floats, valid: Bytes) -> None:
    if not np.isin(valid, (MISSING, INTERPOLATED, MEASURED)).all():
        _expect(key, f"{member} valid", f"{int(valid.max())}", "0, 1 or 2 in every frame")
    finite = np.isfinite(contour).all(axis=(1, 2))
    nowhere = np.isnan(contour).all(axis=(1, 2))
    if (wrong := np.flatnonzero(np.where(valid == MISSING, ~nowhere, ~finite))).size:
        frame = int(wrong[0])
        expected = "NaN" if valid[frame] == MISSING else "numbers"
        _expect(key, f"{member} contour of frame {frame} (valid {valid[frame]})", "others", expected)


def _check_lips(key: str, lips: LipArrays) -> None:
    valid = lips.valid
    _check_contour(key, "lips.npz", lips.contour, valid)
    if (wrong := np.flatnonzero(lips.mask_bits.any(axis=1) & (valid == MISSING))).size:
        _expect(key, f"lips.npz mask of frame {int(wrong[0])} (valid 0)", "pixels", "no pixels")


def _check_encoded(sample: ShardSample) -> None:
    clip, key = sample.meta.clip, sample.key
    try:
        found = flac_facts(sample.flac)
    except ValueError as error:
        raise DatasetError(f"sample {key}: flac: expected a FLAC file, found {error}") from None
    expected = (units.AUDIO_HZ, 1, units.samples_from_frames(clip.num_frames, clip.fps))
    words = "{} Hz, {} channels, {} samples"
    _expect(key, "flac", words.format(*found), words.format(*expected))
    if sample.mp4[4:8] != b"ftyp":
        _expect(key, "mp4", f"{len(sample.mp4)} other bytes", "an MP4 file")
    if sample.face_jpg[:3] != b"\xff\xd8\xff":
        _expect(key, "face.jpg", f"{len(sample.face_jpg)} other bytes", "a JPEG file")


def _on_grid(array: np.ndarray) -> Floats:
    rounded: Floats = np.round(array.astype(np.float32) * STEPS_PER_PX) / np.float32(STEPS_PER_PX)
    return rounded + np.float32(0)  # -0 and +0 are one position, and should be the same bytes


def _read_arrays(key: str, member: str, data: bytes, clip: Clip) -> tuple[np.ndarray, ...]:
    """The arrays of a member in the order of `ARRAYS`, checked."""
    stored = _stored_arrays(key, member, data, clip)
    _check_arrays(key, stored, clip)
    return tuple(stored.values())


def _stored_arrays(key: str, member: str, data: bytes, clip: Clip) -> dict[str, np.ndarray]:
    """The arrays of a member by the names of `_expected_arrays`, not checked yet."""
    file, names = f"sample {key}: {member}", ARRAYS[member]
    if names:
        stored = read_npz(data, file, names, max_bytes=_max_bytes(clip))
        return {f"{member} {name}": stored[name] for name in names}
    return {member: read_npy(data, file)}


def _max_bytes(clip: Clip) -> int:
    """Most bytes that a member with arrays of the clip may hold: its masks, and room for points."""
    mask_bytes = -(-clip.height_px * clip.width_px // 8)
    return min(clip.num_frames * (mask_bytes + POINTS_BYTES), MAX_MEMBER_BYTES)
