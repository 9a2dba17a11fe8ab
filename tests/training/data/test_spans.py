"""A sample of a shard to spans: everything belongs to the same frames, or the sample is named."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.units import features_from_frames
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import Crop, SkippedSampleError
from talkforge.training.data.spans import CACHED_MEMBERS, MEMBERS, DecodedSample, decode_sample
from tests.training.batches import some_info
from tests.training.shard_files import (
    IDENTITY_DIM,
    MOTION_QUANTILES,
    SPEECH_DIM,
    Shown,
    members_of,
    number_and_frame,
)

INFO = some_info(SPEECH_DIM, IDENTITY_DIM)
SIZES = ((32, 32), (32, 48))
SHOWN = Shown(3, text="a person speaks")


def prepared(
    shown: Shown = SHOWN, frames: int = 9, info: DatasetInfo = INFO, **changes: bytes
) -> DecodedSample:
    members = {name: data for name, data in members_of(shown).items() if name in MEMBERS}
    return decode_sample(shown.key, members | changes, SIZES, (frames,), info)


def reason(**options: Any) -> tuple[str, str]:
    with pytest.raises(SkippedSampleError) as caught:
        prepared(**options)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("kept", (False, True))
@pytest.mark.parametrize("fps", (25.0, 23.0, 29.97))
@pytest.mark.parametrize("shown", (SHOWN, Shown(4, width_px=96), Shown(5, height_px=48, width_px=64)))
def test_everything_in_a_span_belongs_to_its_frames(shown: Shown, fps: float, kept: bool) -> None:
    shown = replace(shown, fps=fps)
    clip = prepared(shown, info=replace(INFO, fps=fps))
    clip = clip.in_memory() if kept else clip
    size = (32, 32) if shown.width_px == shown.height_px else (32, 48)
    for first in (0, 2, 10, 21):
        span = clip.span(first)
        frames = range(first, first + 9)
        assert (span.key, span.first) == (f"{shown.key}+{first}", first)
        assert span.rgb is not None and span.rgb.shape == (9, *size, 3)
        clips, numbers = number_and_frame(span.rgb)
        assert set(clips.tolist()) == {shown.number} and numbers.tolist() == list(frames)
        valid = [k % 7 != 3 for k in frames]
        assert span.lip_valid.tolist() == valid
        assert span.lips.shape == (9, *size) and set(np.unique(span.lips)) == {0, 1}
        widths = [round((k + 1) / 31 * size[1]) * ok for k, ok in zip(frames, valid, strict=True)]
        assert np.abs(span.lips[:, -1].sum(axis=1) - widths).max() <= 1  # the left part of the last row
        assert not span.lips[:, 0].any()
        features = span.speech[:, 0]
        assert len(features) == features_from_frames(9, fps)
        late_s = np.abs(features / 50 - first / fps - np.arange(len(features)) / 50).max()
        assert late_s <= (0.0101 if first + 9 < 30 else 0.02)  # at the clip's end there may be none left
        assert np.ptp(np.diff(features)) == 0 and set(span.speech[:, 1].tolist()) == {shown.number}
        assert span.identity.tolist() == np.eye(IDENTITY_DIM)[shown.number].tolist()
        assert (span.omega, span.text, span.latents) == ((0.25, 0.75), shown.text, None)


@pytest.mark.parametrize(("num_frames", "span_frames"), ((30, 9), (9, 9), (8, 5), (5, 5)))
def test_a_clip_is_trained_at_the_longest_span_that_it_holds(num_frames: int, span_frames: int) -> None:
    shown = Shown(3, num_frames=num_frames)
    clip = decode_sample(shown.key, members_of(shown), SIZES, (5, 9), INFO)
    assert (clip.num_frames, clip.span_frames) == (num_frames, span_frames)


def test_a_clip_that_holds_none_is_too_short() -> None:
    with pytest.raises(SkippedSampleError, match=r"^clip03: expected 33 frames, found 30$") as caught:
        decode_sample(SHOWN.key, members_of(SHOWN), SIZES, (49, 33), INFO)
    assert caught.value.reason == "too_short"


def test_what_is_not_known() -> None:
    clip = prepared(Shown(1, omega=(None, 0.1), identity=False))
    assert clip.omega == (0.5, 0.1)
    assert clip.identity.shape == (0,)
    no_identity = prepared(info=some_info(SPEECH_DIM, identity_dim=0))
    assert no_identity.identity.shape == (0,)  # a data set that is taken to have none has none


def test_a_clip_is_cropped_around_its_lips() -> None:
    """A tall clip in a square bucket: from the top, from the bottom, and in the middle without lips."""
    shown = Shown(2, height_px=128, width_px=64, num_frames=9)
    with np.load(io.BytesIO(members_of(shown)["lips.npz"])) as stored:
        lips = dict(stored)
    for y, first_row in ((100, 0), (4, 32), (None, 16)):
        contour = np.where(np.isnan(lips["contour"]), np.nan, 0 if y is None else y).astype(np.float32)
        valid = lips["valid"] if y is not None else np.zeros_like(lips["valid"])
        changed = npz_bytes(
            mask=lips["mask"] * np.uint8(y is not None),
            valid=np.where(valid, 2, 0).astype(np.uint8),
            contour=contour if y is not None else np.full_like(contour, np.nan),
        )
        clip = prepared(shown, **{"lips.npz": changed})
        found = clip.span(0).lips[0, :, 0]
        expected = np.arange(32) >= first_row if y is not None else np.zeros(32)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("frames", (29, 33))
def test_a_clip_must_hold_a_span(frames: int) -> None:
    if frames <= 30:
        assert number_and_frame(prepared(frames=29).span(1).rgb)[1].tolist() == list(range(1, 30))  # type: ignore[arg-type]
    else:
        assert reason(frames=33) == ("too_short", "clip03: expected 33 frames, found 30")


def changed_json(**changes: Any) -> bytes:
    return json.dumps(json.loads(members_of(SHOWN)["json"]) | changes).encode()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_nan(array: np.ndarray) -> np.ndarray:
    array[3, 1] = np.nan
    return array


SPEECH = np.zeros((60, SPEECH_DIM), np.float16)
LIPS = {"valid": SHOWN.valid(), "contour": np.zeros((30, 4, 2), np.float32)}

BROKEN: tuple[tuple[str, bytes, str, str], ...] = (
    ("json", changed_json(version=5), "other_version", "json: expected version 1 to 4, found 5"),
    ("json", b"{", "unreadable", "json: expected JSON, found Expecting property name"),
    ("json", b"[]", "other_version", "json: expected version 1 to 4, found None"),
    ("json", changed_json(measures=None), "unreadable", "json: measures: "),
    ("json", members_of(Shown(4))["json"], "other_clip", "json clip_id: expected clip03, found clip04"),
    ("json", members_of(replace(SHOWN, fps=30.0))["json"], "other_fps", "expected 25 frames/s, found 30"),
    ("speech.npy", npy(SPEECH[:59]), "wrong_shape", r"float16 \[60, any\] .*found float16 \[59, 6\]"),
    ("speech.npy", npy(SPEECH[:, :5]), "wrong_shape", r"expected \(60, 6\), found \(60, 5\)"),
    ("speech.npy", npy(with_nan(SPEECH.copy())), "unreadable", "speech.npy: expected numbers, found NaN"),
    ("speech.npy", b"", "unreadable", "speech.npy: expected an array, found EOF"),
    ("speech.npy", npy(SPEECH)[:200], "unreadable", "speech.npy: expected an array, found "),
    ("speech.npy", npy(np.array([{}], object)), "unreadable", "found Object arrays cannot be loaded"),
    ("identity.npy", npy(np.eye(8, dtype=np.float32)[0]), "wrong_shape", r"expected \(16,\), found \(8,\)"),
    ("identity.npy", npy(np.full(16, np.inf, np.float32)), "unreadable", "identity.npy: expected length 1"),
    ("lips.npz", npz_bytes(mask=np.zeros((30, 511), np.uint8), **LIPS), "wrong_shape", r"uint8 \[30, 511"),
    ("lips.npz", npz_bytes(mask=np.zeros((29, 512), np.uint8), **LIPS), "wrong_shape", r"uint8 \[29, 512"),
    ("lips.npz", npz_bytes(valid=LIPS["valid"]), "unreadable", "lips.npz: expected mask, valid, contour"),
    ("lips.npz", b"PK", "unreadable", "lips.npz: expected mask, valid, contour, found "),
    ("txt", b"\xff\xfe", "unreadable", "txt: expected UTF-8, found other bytes"),
)  # fmt: skip


@pytest.mark.parametrize(("member", "data", "expected", "words"), BROKEN)
def test_a_damaged_member_names_the_sample(member: str, data: bytes, expected: str, words: str) -> None:
    members = {name: data for name, data in members_of(SHOWN).items() if name in MEMBERS}
    with pytest.raises(SkippedSampleError, match=words) as caught:
        decode_sample(SHOWN.key, members | {member: data}, SIZES, (9,), INFO)
    assert caught.value.reason == expected
    assert str(caught.value).startswith("clip03: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("member", ("json", "mp4", "lips.npz", "speech.npy"))
def test_a_missing_member_names_the_sample(member: str) -> None:
    members = dict(members_of(SHOWN))
    del members[member]
    with pytest.raises(SkippedSampleError, match=f"^clip03: no {member}$") as caught:
        decode_sample(SHOWN.key, members, SIZES, (9,), INFO)
    assert caught.value.reason == "unreadable"


def test_members_that_training_does_not_read_are_not_looked_at() -> None:
    members = members_of(SHOWN) | {"landmarks.npz": b"", "joints.npz": b"", "flac": b"", "face.jpg": b""}
    assert decode_sample(SHOWN.key, members, SIZES, (9,), INFO).num_frames == 30


def test_pictures_are_not_decoded_before_they_are_needed() -> None:
    clip = prepared(mp4=b"nothing")
    with pytest.raises(SkippedSampleError) as caught:
        clip.span(0)
    with pytest.raises(SkippedSampleError) as checked:
        clip.check(0)
    assert caught.value.reason == "unreadable" and str(caught.value) == str(checked.value)


@pytest.mark.parametrize("shown", (SHOWN, Shown(4, width_px=96)))
def test_a_kept_clip_takes_the_memory_that_it_says(shown: Shown) -> None:
    clip = prepared(shown)
    span = clip.in_memory().span(0)
    assert span.rgb is not None
    per_frame = span.rgb[0].nbytes + span.lips[0].nbytes
    assert (
        clip.memory_bytes
        == clip.in_memory().memory_bytes
        == 30 * per_frame + 60 * SPEECH_DIM * 4 + IDENTITY_DIM * 4
    )


# --------------------------------------------------------------------------- cached latents


def latents(spans: int = 3, **changes: np.ndarray | None) -> bytes:
    arrays: dict[str, np.ndarray | None] = {
        "first_frame": np.array([2, 11, 20][:spans], np.int32),
        "latents": np.arange(spans * 16 * 3 * 4 * 4).reshape(spans, 16, 3, 4, 4).astype(np.float16),
        "condition": np.ones((spans, 20, 3, 4, 4), np.float16),
        "text": np.ones((2, 5), np.float16),
        "empty_text": np.ones((1, 5), np.float16),
        "image": np.ones((spans, 7, 3), np.float16),
    }
    return npz_bytes(**{name: array for name, array in (arrays | changes).items() if array is not None})


def with_latents(data: bytes | None = None, frames: int = 9) -> DecodedSample:
    members = {name: data for name, data in members_of(SHOWN).items() if name in CACHED_MEMBERS}
    return decode_sample(
        SHOWN.key, members | {"latents.npz": data or latents()}, SIZES, (frames,), INFO, cached=True
    )


@pytest.mark.parametrize("kept", (False, True))
def test_latents_stand_for_pictures(kept: bool) -> None:
    clip = with_latents().in_memory() if kept else with_latents()
    span = clip.span(11)
    assert span.rgb is None and span.nth == 1
    assert span.latents is not None and span.latents.latents[1].flatten()[0] == 16 * 3 * 16
    assert np.array_equal(span.lips, prepared().span(11).lips)
    assert np.array_equal(span.speech, prepared().span(11).speech)
    clip.check(11)
    stored = 3 * (16 + 20) * 48 * 2 + (2 * 5 + 5 + 3 * 21) * 2
    assert clip.memory_bytes == 30 * 32 * 32 + 60 * SPEECH_DIM * 4 + IDENTITY_DIM * 4 + stored


def test_latents_without_text_or_image() -> None:
    found = with_latents(latents(text=None, empty_text=None, image=None)).latents
    assert found is not None and found.text is None and found.empty_text is None and found.image is None


def test_latents_that_do_not_fit_are_refused() -> None:
    cases = {
        r"latents: expected \(3, 16, 3, 4, 4\), found \(3, 16, 3, 4, 5\)": latents(
            latents=np.zeros((3, 16, 3, 4, 5), np.float16)
        ),
        r"condition: expected \(3, 20, 3, 4, 4\), found \(3, 16, 3, 4, 4\)": latents(
            condition=np.zeros((3, 16, 3, 4, 4), np.float16)
        ),
    }
    for words, data in cases.items():
        with pytest.raises(SkippedSampleError, match=words) as caught:
            with_latents(data)
        assert caught.value.reason == "wrong_shape"
    for members in ({}, {"latents.npz": latents(0)}):
        with pytest.raises(SkippedSampleError) as caught:
            decode_sample(SHOWN.key, members_of(SHOWN) | members, SIZES, (9,), INFO, cached=True)
        assert caught.value.reason == "no_latents"
    with pytest.raises(SkippedSampleError) as caught:  # the reason that they are not there
        decode_sample(SHOWN.key, members_of(SHOWN), SIZES, (33,), INFO, cached=True)
    assert caught.value.reason == "too_short"


@pytest.mark.parametrize("version", (2, 3))
def test_earlier_samples_may_have_no_identity_and_later_ones_must(version: int) -> None:
    """Up to version 2 the member was missing where none was measured. Now a missing one is damage."""
    members = dict(members_of(replace(SHOWN, identity=False)))
    assert decode_sample(SHOWN.key, members, SIZES, (9,), INFO).identity.shape == (0,)
    del members["identity.npy"]
    members["json"] = members["json"].replace(b'"version":4', b'"version":%d' % version)
    if version == 2:
        assert decode_sample(SHOWN.key, members, SIZES, (9,), INFO).identity.shape == (0,)
        return
    with pytest.raises(
        SkippedSampleError, match=f"^{SHOWN.key}: expected its members, found no identity.npy$"
    ):
        decode_sample(SHOWN.key, members, SIZES, (9,), INFO)


# ------------------------------------------------------------------------------ motion and face


def test_a_span_has_the_motion_intensity_of_its_own_frames() -> None:
    members = members_of(Shown(3, moving=True))
    clip = decode_sample("clip03", members, SIZES, (9,), INFO, quantiles=MOTION_QUANTILES)
    for clips in (clip, clip.in_memory()):
        # Variances 1 and 9 lie at 0.1 and 0.9 of the quantiles. Nine frames that alternate have 80/81 of it.
        assert clips.span(0).omega == (pytest.approx(0.1 * 80 / 81, abs=1e-3), 0.75)
        assert clips.span(21).omega == (pytest.approx(0.9 * 80 / 81, abs=1e-3), 0.75)
        mixed = (5 * 9 + 4 * 1 - 9 * (1 / 9) ** 2) / 9  # frames 11 to 19: 1 -1 1 -1 3 -3 3 -3 3, as signs go
        assert 0.1 < clips.span(11).omega[0] < mixed / 10 + 0.05
    whole = decode_sample("clip03", members, SIZES, (30,), INFO, quantiles=MOTION_QUANTILES)
    assert whole.span(0).omega == (0.5, 0.75)  # a span that is the clip has omega_face_raw


@pytest.mark.parametrize(
    ("shown", "quantiles"),
    [
        (Shown(3), MOTION_QUANTILES),
        (Shown(3, moving=True), None),
        (Shown(3, moving=True), {}),
        (Shown(3, moving=True), {"omega_face": ()}),
    ],
)
def test_without_motion_or_quantiles_it_is_that_of_the_clip(shown: Shown, quantiles: Any) -> None:
    clip = decode_sample(shown.key, members_of(shown), SIZES, (9,), INFO, quantiles=quantiles)
    assert {clip.span(first).omega for first in range(22)} == {(0.25, 0.75)}


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (32, 48)])
def test_the_mask_of_the_face_goes_with_the_frames(size: tuple[int, int]) -> None:
    members = members_of(SHOWN)
    clip = decode_sample("clip03", members, (size,), (9,), INFO, faces=True)
    crop = Crop.around((64, 64), size, (32.0, 32.0))
    for first in (0, 21):
        span = clip.span(first)
        assert span.face is not None and span.face.dtype == np.uint8
        wanted = SHOWN.face()[first : first + 9].astype(np.uint8) * 255
        for found, mask in zip(span.face, wanted, strict=True):
            scaled = cv2.resize(mask, crop.scaled[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(found.astype(int) - (crop.of(scaled) > 127)).sum() <= 32  # half a column or row
    assert decode_sample("clip03", members, (size,), (9,), INFO).span(0).face is None


def test_samples_of_earlier_versions_have_no_face_and_no_motion() -> None:
    members = dict(members_of(Shown(3, moving=True)))
    del members["face.npz"], members["motion.npz"]
    with pytest.raises(SkippedSampleError, match=r"found no face\.npz"):
        decode_sample(SHOWN.key, members, SIZES, (9,), INFO)
    members["json"] = members["json"].replace(b'"version":4', b'"version":3')
    clip = decode_sample(SHOWN.key, members, SIZES, (9,), INFO, quantiles=MOTION_QUANTILES, faces=True)
    assert clip.span(0).omega == (0.25, 0.75)
    assert clip.span(0).face is not None and not clip.span(0).face.any()
