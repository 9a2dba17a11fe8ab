"""The shard sample: round trips, determinism, and every check that guards it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import fields
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin

import av
import numpy as np
import pyarrow as pa
import pytest

from talkforge.schemas import sample, units
from talkforge.schemas.arrays import BLENDSHAPES, PER_FRAME, ClipArrays
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import Clip, ClipMeasures, Face, Reason, Record, Speaker, Sync, Verdict
from talkforge.schemas.sample import (
    Provenance,
    SampleMeta,
    decode,
    encode,
    meta_json,
    pack_mask,
    unpack_mask,
)

KEY = "0123456789ab_00001000_00001400_t0"
FRAMES, WIDTH_PX, HEIGHT_PX, FPS = 10, 22, 14, 25.0
SAMPLES = 6400
MP4 = b"\x00\x00\x00\x18ftypisom"
JPG = b"\xff\xd8\xff\xe0"


def flac_header(samples: int, hz: int = 16_000, channels: int = 1) -> bytes:
    packed = (hz << 44) | (channels - 1 << 41) | (15 << 36) | samples
    return b"fLaC\x80\x00\x00\x22" + bytes(10) + packed.to_bytes(8, "big") + bytes(16)


def meta(key: str = KEY, fps: float = FPS) -> SampleMeta:
    clip = Clip(
        clip_id=key,
        video_id="0123456789ab",
        uri="a video.mp4",
        scene=0,
        track=0,
        start_s=1.0,
        end_s=1.4,
        fps=fps,
        num_frames=FRAMES,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
    )
    face = Face(source_fps=30.0, face_px=200.0, face_confidence=0.97, face_confidence_min=0.9, faces_max=1)
    return SampleMeta(
        measures=ClipMeasures(clip=clip, stopped_by=None, face=face),
        omega_face=0.25,
        omega_body=None,
        person_id="p0",
        verdict=Verdict(
            clip_id=key,
            accepted=False,
            reasons=(Reason(code="too_short", field="duration_s", value=0.4, threshold=3.0),),
        ),
        provenance=Provenance(
            uri="a video.mp4",
            sha256="00" * 32,
            source="Müller’s set",
            licence="CC BY 4.0",
            consent="",
            models={"detector": "ab"},
            config_hash="cd",
            tool_version="1",
        ),
    )


def arrays(identity: bool = True) -> ClipArrays:
    rng = np.random.default_rng(0)
    contour = rng.uniform(-2, 22, (FRAMES, 8, 2)).astype(np.float32)
    valid = np.full(FRAMES, 2, np.uint8)
    valid[3], valid[4:6] = 1, 0
    contour[4:6] = np.nan
    landmarks = rng.normal(10, 5, (FRAMES, 478, 3)).astype(np.float32)
    landmarks[4] = np.nan
    vector = rng.normal(size=512 if identity else 0).astype(np.float32)
    oval, shapes = rng.uniform(-2, 22, (FRAMES, 36, 2)).astype(np.float32), rng.random((FRAMES, 52))
    oval[4], shapes[4] = np.nan, np.nan
    return ClipArrays(
        landmarks=landmarks,
        contour=contour,
        lip_valid=valid,
        joints=rng.uniform(0, 1, (FRAMES, 65, 3)).astype(np.float32),
        face_rgb=np.zeros((112, 112, 3), np.uint8),
        speech=rng.normal(size=(20, 80)).astype(np.float16),
        identity=vector / np.linalg.norm(vector) if identity else vector,
        blendshapes=shapes.astype(np.float16),
        face_motion=rng.normal(size=(FRAMES, 8)).astype(np.float16),
        body_motion=np.full((FRAMES, 20), np.nan, np.float16),
        face_contour=oval,
        face_valid=np.where(np.arange(FRAMES) == 4, 0, 2).astype(np.uint8),
    )


def test_trimmed_arrays_lose_frames_in_all_that_has_frames_and_nowhere_else() -> None:
    whole = arrays()
    left = whole.trimmed(2, 3)
    of_frames = {f.name for f in fields(ClipArrays) if len(getattr(whole, f.name)) == FRAMES}
    assert of_frames == set(PER_FRAME)
    for f in fields(ClipArrays):
        kept = slice(2, FRAMES - 3) if f.name in PER_FRAME else slice(None)
        np.testing.assert_array_equal(getattr(left, f.name), getattr(whole, f.name)[kept])
    np.testing.assert_array_equal(whole.trimmed(0, 0).landmarks, whole.landmarks)


def mask() -> np.ndarray:
    pixels = np.random.default_rng(1).random((FRAMES, HEIGHT_PX, WIDTH_PX)) < 0.3
    pixels[4:6] = False
    return pixels


def members(identity: bool = True, text: str = "grüß dich") -> dict[str, bytes]:
    return encode(
        meta(),
        arrays(identity),
        pack_mask(mask()),
        mp4=MP4,
        flac=flac_header(SAMPLES),
        face_jpg=JPG,
        text=text,
    )


def npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(stored)


def repacked(data: bytes, **changes: np.ndarray) -> bytes:
    return npz_bytes(**{**npz(data), **changes})


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# ------------------------------------------------------------------------------ round trips


def test_round_trip() -> None:
    found, given = decode(KEY, members()), arrays()
    assert found.meta == meta()
    assert (found.mp4, found.flac, found.face_jpg) == (MP4, flac_header(SAMPLES), JPG)
    assert found.text == "grüß dich"
    np.testing.assert_array_equal(found.masks(), mask())
    np.testing.assert_array_equal(found.masks(2, 5), mask()[2:5])
    np.testing.assert_array_equal(found.lip_valid, given.lip_valid)
    np.testing.assert_array_equal(found.joints, given.joints)
    np.testing.assert_array_equal(found.speech, given.speech)
    np.testing.assert_array_equal(found.identity, given.identity)
    np.testing.assert_array_equal(found.blendshapes, given.blendshapes)
    np.testing.assert_array_equal(found.face_valid, given.face_valid)
    np.testing.assert_array_equal(found.face_motion, given.face_motion)
    np.testing.assert_array_equal(found.body_motion, given.body_motion)


def test_contour_and_landmarks_are_stored_in_sixteenths_of_a_pixel() -> None:
    found, given = decode(KEY, members()), arrays()
    for stored, exact in [
        (found.contour, given.contour),
        (found.landmarks, given.landmarks),
        (found.face_contour, given.face_contour),
    ]:
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(stored), np.isnan(exact))
        assert np.nanmax(np.abs(stored - exact)) <= 1 / 32
        steps = stored[np.isfinite(stored)] * 16
        np.testing.assert_array_equal(steps, np.round(steps))
    again = encode(
        found.meta,
        ClipArrays(
            landmarks=found.landmarks,
            contour=found.contour,
            lip_valid=found.lip_valid,
            joints=found.joints,
            face_rgb=given.face_rgb,
            speech=given.speech,
            identity=found.identity,
            blendshapes=found.blendshapes,
            face_motion=found.face_motion,
            body_motion=found.body_motion,
            face_contour=found.face_contour,
            face_valid=found.face_valid,
        ),
        found.mask_bits,
        mp4=found.mp4,
        flac=found.flac,
        face_jpg=found.face_jpg,
        text=found.text,
    )
    assert again == members()


def test_members_are_in_the_documented_order_and_the_same_bytes_each_time() -> None:
    first, second = members(), members()
    assert list(first.items()) == list(second.items())
    assert list(first) == [name for name in sample.MEMBERS if name != "latents.npz"]
    assert sorted(sample.MEMBERS) == list(sample.MEMBERS)
    for name in ("lips.npz", "landmarks.npz", "joints.npz"):
        with zipfile.ZipFile(io.BytesIO(first[name])) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_plain_numpy_and_json_read_the_members() -> None:
    data = members()
    lips = npz(data["lips.npz"])
    assert {name: (a.dtype.name, a.shape) for name, a in lips.items()} == {
        "mask": ("uint8", (FRAMES, 39)),  # 14 * 22 = 308 bits
        "valid": ("uint8", (FRAMES,)),
        "contour": ("float32", (FRAMES, 8, 2)),
    }
    assert npz(data["landmarks.npz"])["points"].shape == (FRAMES, 478, 3)
    assert np.load(io.BytesIO(data["speech.npy"])).dtype == np.float16
    shapes = np.load(io.BytesIO(data["blendshapes.npy"]))
    assert (shapes.dtype, shapes.shape) == (np.float16, (FRAMES, len(BLENDSHAPES)))
    document = json.loads(data["json"])
    assert document["measures"]["clip"]["clip_id"] == KEY
    assert document["provenance"]["source"] == "Müller’s set"
    assert document["verdict"]["reasons"][0]["code"] == "too_short"


def test_identity_is_an_empty_vector_where_there_is_none() -> None:
    """Every sample has the same members, for readers that take them from the first few."""
    data = members(identity=False)
    assert list(data) == list(members())
    stored = np.load(io.BytesIO(data["identity.npy"]))
    assert (stored.shape, stored.dtype) == ((0,), np.float32)
    assert decode(KEY, data).identity.shape == (0,)
    assert sample.read_identity(KEY, data["identity.npy"], meta().clip).shape == (0,)


@pytest.mark.parametrize("version", (1, 2))
def test_samples_of_earlier_versions_may_have_no_identity(version: int) -> None:
    data = members(identity=False)
    del data["identity.npy"]
    stored = json.loads(data["json"]) if version == 2 else meta().model_dump(mode="json")
    data["json"] = json.dumps(stored | {"version": version}).encode()
    assert decode(KEY, data).identity.shape == (0,)
    assert decode(KEY, data).meta.version == version


@pytest.mark.parametrize("version", (1, 2, 3))
def test_what_samples_of_earlier_versions_lack_is_not_measured(version: int) -> None:
    data = members()
    for name in ("blendshapes.npy", "face.npz", "motion.npz"):
        del data[name]
    stored = json.loads(data["json"]) if version > 1 else meta().model_dump(mode="json")
    data["json"] = json.dumps(stored | {"version": version}).encode()
    found = decode(KEY, data)
    assert found.blendshapes.shape == (FRAMES, 52)
    assert found.face_contour.shape == (FRAMES, 36, 2)
    assert (found.face_motion.shape, found.body_motion.shape) == ((FRAMES, 8), (FRAMES, 20))
    for array in (found.blendshapes, found.face_contour, found.face_motion, found.body_motion):
        assert np.isnan(array).all()
    assert not found.face_valid.any()


def test_arrays_of_an_earlier_version_are_not_measured() -> None:
    """A clip that an earlier version traced is cut with the members of this one."""
    given = arrays()
    old = ClipArrays(
        given.landmarks, given.contour, given.lip_valid, given.joints, given.face_rgb, given.speech
    )
    data = encode(meta(), old, pack_mask(mask()), mp4=MP4, flac=flac_header(SAMPLES), face_jpg=JPG)
    assert list(data) == list(members())
    found = decode(KEY, data)
    assert np.isnan(found.blendshapes).all()
    assert np.isnan(found.face_motion).all()
    assert not found.face_valid.any()


def test_latents_may_be_added_later() -> None:
    data = members()
    assert decode(KEY, {**data, "latents.npz": b"anything"}).key == KEY


# ------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("shape", [(3, 14, 22), (1, 1, 1), (2, 8, 8), (5, 3, 3), (0, 4, 4), (7, 9)])
def test_pack_and_unpack_undo_each_other(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(2).random(shape) < 0.5
    bits = pack_mask(pixels)
    assert bits.dtype == np.uint8
    assert bits.shape == (*shape[:-2], -(-shape[-2] * shape[-1] // 8))
    np.testing.assert_array_equal(unpack_mask(bits, *shape[-2:]), pixels)


def test_the_first_pixel_is_the_highest_bit() -> None:
    pixels = np.zeros((1, 2, 5), bool)
    pixels[0, 0, 0] = pixels[0, 0, 1] = pixels[0, 1, 4] = True
    np.testing.assert_array_equal(pack_mask(pixels), [[0b11000000, 0b01000000]])


# ------------------------------------------------------------------------------ FLAC


@pytest.mark.parametrize("samples", [1, 6400, 320_000])
def test_flac_facts_of_a_real_file(samples: int) -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="flac") as container:
        track = container.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    assert sample.flac_facts(stream.getvalue()) == (16_000, 1, samples)


@pytest.mark.parametrize("data", [b"", b"RIFF" + bytes(60), b"fLaC", b"fLaC\x84\x00\x00\x22" + bytes(60)])
def test_flac_facts_refuses_other_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a FLAC file$"):
        sample.flac_facts(data)


# ------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a b", "ä", "a\n", "a" * 81, "a\\b"])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(DatasetError, match="expected a key of 1 to 80 letters"):
        sample.check_key(key)
    with pytest.raises(DatasetError, match="expected a key of 1 to 80 letters"):
        decode(key, members())


def test_a_sample_under_another_key_is_refused() -> None:
    with pytest.raises(DatasetError, match=rf"^sample other: json clip_id: expected other, found {KEY}$"):
        decode("other", members())


# ------------------------------------------------------------------------------ checks


@pytest.mark.parametrize("name", [name for name in sample.MEMBERS if name not in sample.OPTIONAL])
def test_a_missing_member_is_named(name: str) -> None:
    data = members()
    del data[name]
    with pytest.raises(DatasetError, match=rf"^sample {KEY}: expected its members, found no {name}$"):
        decode(KEY, data)


def test_an_unknown_member_is_named() -> None:
    with pytest.raises(DatasetError, match=r"found an unknown pickle$"):
        decode(KEY, {**members(), "pickle": b""})


def changed(name: str, **arrays: np.ndarray) -> dict[str, bytes]:
    data = members()
    data[name] = repacked(data[name], **arrays)
    return data


def with_pixels_in_a_missing_frame() -> dict[str, bytes]:
    pixels = mask()
    pixels[5, 0, 0] = True
    return changed("lips.npz", mask=pack_mask(pixels))


def with_contour(frame: int, value: float) -> dict[str, bytes]:
    contour = npz(members()["lips.npz"])["contour"]
    contour[frame, 2, 0] = value
    return changed("lips.npz", contour=contour)


BROKEN = {
    "one audio sample short": (
        lambda: {**members(), "flac": flac_header(SAMPLES - 1)},
        "flac: expected 16000 Hz, 1 channels, 6400 samples, found 16000 Hz, 1 channels, 6399 samples",
    ),
    "other sample rate": (
        lambda: {**members(), "flac": flac_header(SAMPLES, hz=48_000)},
        "flac: expected 16000 Hz, 1 channels, 6400 samples, found 48000 Hz",
    ),
    "stereo": (
        lambda: {**members(), "flac": flac_header(SAMPLES, channels=2)},
        "found 16000 Hz, 2 channels",
    ),
    "no flac": (
        lambda: {**members(), "flac": b"RIFF"},
        "flac: expected a FLAC file, found not a FLAC file",
    ),
    "no mp4": (lambda: {**members(), "mp4": b""}, "mp4: expected an MP4 file, found 0 other bytes"),
    "no jpeg": (lambda: {**members(), "face.jpg": b"GIF8"}, "face.jpg: expected a JPEG file, found 4"),
    "mask of another size": (
        lambda: changed("lips.npz", mask=np.zeros((FRAMES, 38), np.uint8)),
        "lips.npz mask: expected uint8 [10, 39] for 10 frames at 25 fps, found uint8 [10, 38]",
    ),
    "a mask frame short": (
        lambda: changed("lips.npz", mask=np.zeros((FRAMES - 1, 39), np.uint8)),
        "lips.npz mask: expected uint8 [10, 39] for 10 frames at 25 fps, found uint8 [9, 39]",
    ),
    "an unpacked mask": (
        lambda: changed("lips.npz", mask=mask()),
        "lips.npz mask: expected uint8 [10, 39] for 10 frames at 25 fps, found bool [10, 14, 22]",
    ),
    "valid of another length": (
        lambda: changed("lips.npz", valid=np.zeros(9, np.uint8)),
        "lips.npz valid: expected uint8 [10] for 10 frames at 25 fps, found uint8 [9]",
    ),
    "unknown validity": (
        lambda: changed("lips.npz", valid=np.full(FRAMES, 3, np.uint8)),
        "lips.npz valid: expected 0, 1 or 2 in every frame, found 3",
    ),
    "contour of another shape": (
        lambda: changed("lips.npz", contour=np.zeros((FRAMES, 8, 3), np.float32)),
        "lips.npz contour: expected float32 [10, any, 2] for 10 frames at 25 fps, found float32 [10, 8, 3]",
    ),
    "contour in doubles": (
        lambda: changed("lips.npz", contour=np.zeros((FRAMES, 8, 2))),
        "found float64 [10, 8, 2]",
    ),
    "contour where missing": (
        lambda: with_contour(4, 1.0),
        "lips.npz contour of frame 4 (valid 0): expected NaN, found others",
    ),
    "no contour where measured": (
        lambda: with_contour(7, np.nan),
        "lips.npz contour of frame 7 (valid 2): expected numbers, found others",
    ),
    "mask where missing": (
        with_pixels_in_a_missing_frame,
        "lips.npz mask of frame 5 (valid 0): expected no pixels, found pixels",
    ),
    "landmarks of another model": (
        lambda: changed("landmarks.npz", points=np.zeros((FRAMES, 468, 3), np.float32)),
        "landmarks.npz points: expected float32 [10, 478, 3] for 10 frames at 25 fps, "
        "found float32 [10, 468, 3]",
    ),
    "joints flat": (
        lambda: changed("joints.npz", points=np.zeros((FRAMES, 65, 2), np.float32)),
        "joints.npz points: expected float32 [10, any, 3]",
    ),
    "a speech feature short": (
        lambda: {**members(), "speech.npy": npy(np.zeros((19, 80), np.float16))},
        "speech.npy: expected float16 [20, any] for 10 frames at 25 fps, found float16 [19, 80]",
    ),
    "speech in singles": (
        lambda: {**members(), "speech.npy": npy(np.zeros((20, 80), np.float32))},
        "found float32 [20, 80]",
    ),
    "speech not finite": (
        lambda: {**members(), "speech.npy": npy(np.full((20, 80), np.inf, np.float16))},
        "speech.npy: expected numbers, found NaN or infinity",
    ),
    "identity not of unit length": (
        lambda: {**members(), "identity.npy": npy(np.full(4, 1, np.float32))},
        "identity.npy: expected length 1, found length 2",
    ),
    "no identity": (
        lambda: {name: data for name, data in members().items() if name != "identity.npy"},
        "expected its members, found no identity.npy",
    ),
    "identity of no vector": (
        lambda: {**members(), "identity.npy": npy(np.zeros((0, 4), np.float32))},
        "identity.npy: expected float32 [any] for",
    ),
    "no blendshapes": (
        lambda: {name: data for name, data in members().items() if name != "blendshapes.npy"},
        "expected its members, found no blendshapes.npy",
    ),
    "blendshapes of another model": (
        lambda: {**members(), "blendshapes.npy": npy(np.zeros((FRAMES, 51), np.float16))},
        "blendshapes.npy: expected float16 [10, 52] for 10 frames at 25 fps, found float16 [10, 51]",
    ),
    "blendshapes beyond one": (
        lambda: {**members(), "blendshapes.npy": npy(np.full((FRAMES, 52), 1.5, np.float16))},
        "blendshapes.npy of frame 0: expected numbers of 0 to 1, or NaN, found others",
    ),
    "face contour where missing": (
        lambda: changed("face.npz", valid=np.zeros(FRAMES, np.uint8)),
        "face.npz contour of frame 0 (valid 0): expected NaN, found others",
    ),
    "face contour of other landmarks": (
        lambda: changed("face.npz", contour=np.zeros((FRAMES, 35, 2), np.float32)),
        "face.npz contour: expected float32 [10, 36, 2]",
    ),
    "motion not finite": (
        lambda: changed("motion.npz", face=np.full((FRAMES, 8), np.inf, np.float16)),
        "motion.npz face: expected numbers, found infinity",
    ),
    "array missing": (
        lambda: {**members(), "lips.npz": npz_bytes(mask=np.zeros(1))},
        "lips.npz: expected mask, valid, contour, found",
    ),
    "damaged npz": (
        lambda: {**members(), "joints.npz": b"PK\x03\x04"},
        "joints.npz: expected points, found",
    ),
    "pickled array": (
        lambda: {**members(), "speech.npy": npy(np.array([{}], object))},
        "speech.npy: expected an array, found Object arrays cannot be loaded when allow_pickle=False",
    ),
    "text in another encoding": (
        lambda: {**members(), "txt": b"gr\xfc\xdf"},
        "txt: expected UTF-8, found other bytes",
    ),
    "no json": (lambda: {**members(), "json": b"{"}, "json: expected JSON, found "),
    "json with an unknown field": (
        lambda: {**members(), "json": members()["json"][:-1] + b',"more":1}'},
        "json: more: Extra inputs are not permitted",
    ),
    "json of another version": (
        lambda: {**members(), "json": members()["json"].replace(b'"version":4', b'"version":5')},
        "json: expected version 1 to 4, found 5",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_refused_with_the_reason(name: str) -> None:
    make, message = BROKEN[name]
    with pytest.raises(DatasetError) as caught:
        decode(KEY, make())
    assert str(caught.value).startswith(f"sample {KEY}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_encode_makes_the_same_checks() -> None:
    with pytest.raises(DatasetError, match=r"flac: expected .* 6400 samples, found .* 6401 samples"):
        encode(meta(), arrays(), pack_mask(mask()), mp4=MP4, flac=flac_header(SAMPLES + 1), face_jpg=JPG)
    with pytest.raises(DatasetError, match=r"lips.npz mask: expected uint8 \[10, 39\]"):
        encode(meta(), arrays(), pack_mask(mask()[:, 1:]), mp4=MP4, flac=flac_header(SAMPLES), face_jpg=JPG)
    with pytest.raises(DatasetError, match=r"expected float16 \[22, any\] for 10 frames at 23 fps"):
        encode(
            meta(fps=23.0),
            arrays(),
            pack_mask(mask()),
            mp4=MP4,
            flac=flac_header(units.samples_from_frames(FRAMES, 23)),
            face_jpg=JPG,
        )
    with pytest.raises(DatasetError, match="expected a key"):
        encode(meta("a.b"), arrays(), pack_mask(mask()), mp4=MP4, flac=flac_header(SAMPLES), face_jpg=JPG)


# --------------------------------------------------------------------------- the json member


def full(kind: Any, number: int = 1) -> Any:
    """A value for every field of a record, optional ones included."""
    values: dict[Any, Any] = {str: f"t{number}", int: number, float: number + 0.5, bool: True}
    if kind in values:
        return values[kind]
    arguments = [inner for inner in get_args(kind) if inner is not type(None)]
    if get_origin(kind) is Literal:
        return arguments[-1]
    if kind == dict[str, str]:
        return {f"m{number}": "ab"}
    if get_origin(kind) is tuple:
        return ()
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.model_validate(
            {name: full(field.annotation, number) for name, field in kind.model_fields.items()}
        )
    (inner,) = arguments
    return full(inner, number)


EVERYTHING = full(SampleMeta)
NOTHING = EVERYTHING.model_copy(
    update={
        "measures": ClipMeasures(clip=EVERYTHING.clip, stopped_by=None, face=meta().measures.face),
        "omega_face": None,
        "omega_body": None,
        "person_id": None,
        "provenance": full(Provenance, 2),
    }
)
PARTLY = EVERYTHING.model_copy(
    update={
        "measures": EVERYTHING.measures.model_copy(
            update={
                "sync": Sync(
                    sync_method="x",
                    sync_offset_frames=None,
                    sync_confidence=None,
                    sync_zero_confidence=0.0,
                ),
                "speaker": None,
            }
        )
    }
)


@pytest.mark.parametrize("written", [EVERYTHING, NOTHING, PARTLY])
def test_the_json_member_is_read_as_it_was_written(written: SampleMeta) -> None:
    assert SampleMeta.model_validate_json(meta_json(written)) == written
    assert SampleMeta.model_validate(json.loads(meta_json(written))) == written
    assert b"null" not in meta_json(written)


def test_every_key_of_the_json_member_has_one_type_from_the_first_sample_on() -> None:
    """What `load_dataset("webdataset")` does: the types are those of the first five samples."""
    tables = [
        pa.Table.from_pylist([json.loads(meta_json(written))]) for written in (NOTHING, EVERYTHING, PARTLY)
    ]
    first = pa.concat_tables([tables[0]] * 5, promote_options="default").schema
    assert [table.schema for table in tables] == [first] * 3
    # Accepted clips have no reasons; no type that is unknown is left beside theirs.
    leaves = pa.concat_tables(tables).flatten().flatten().flatten().schema
    assert [field.name for field in leaves if "null" in str(field.type)] == ["verdict.reasons"]


def test_what_was_not_measured_is_a_number_that_nothing_measures() -> None:
    stored = json.loads(meta_json(NOTHING))
    assert stored["version"] == 4
    assert stored["measures"]["sync"] == {
        "sync_method": "",
        "sync_offset_frames": -9999,
        "sync_confidence": -9999.0,
        "sync_zero_confidence": -9999.0,
        "sync_probability": -9999.0,
        "sync_offset_probability": -9999.0,
        "sync_offset_sd_frames": -9999.0,
        "sync_drift_frames": -9999.0,
        "sync_worst_probability": -9999.0,
    }
    assert (stored["omega_face"], stored["person_id"], stored["measures"]["stopped_by"]) == (-9999.0, "", "")
    assert stored["provenance"]["models"] == [{"name": "m2", "sha256": "ab"}]


def test_columns_of_lists_are_in_the_json_member_where_there_are_any() -> None:
    assert json.loads(meta_json(EVERYTHING))["source"] == {"m1": "ab"}
    without = EVERYTHING.model_copy(update={"source": {}})
    assert "source" not in json.loads(meta_json(without))
    assert SampleMeta.model_validate_json(meta_json(without)) == without


def test_a_section_of_which_nothing_could_be_measured_is_read_as_none() -> None:
    nothing = Speaker(speaking_fraction=None, sync_c=None, sync_d=None, sync_net_offset_frames=None)
    measures = EVERYTHING.measures.model_copy(update={"speaker": nothing})
    written = meta_json(EVERYTHING.model_copy(update={"measures": measures}))
    assert SampleMeta.model_validate_json(written).measures.speaker is None


def test_the_json_member_of_version_1_is_still_read() -> None:
    old = NOTHING.model_dump(mode="json") | {"version": 1}
    assert old["measures"]["sync"] is None and old["provenance"]["models"] == {"m2": "ab"}
    text = json.dumps(old)
    assert SampleMeta.model_validate_json(text) == NOTHING.model_copy(update={"version": 1})
    changed = {**members(), "json": json.dumps(meta().model_dump(mode="json") | {"version": 1}).encode()}
    assert decode(KEY, changed).meta == meta().model_copy(update={"version": 1})
