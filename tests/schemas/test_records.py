"""Records: immutable, closed, and faithful through JSON; arrays that check their shapes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from talkforge.schemas import arrays, records, sample
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Face,
    Input,
    Reason,
    Record,
    Speech,
    Verdict,
    Video,
    clip_id,
)

CLIP = Clip(
    clip_id="0123456789ab_00001000_00004000_t2",
    video_id="0123456789ab",
    uri="a b.mp4",
    scene=1,
    track=2,
    start_s=1.0,
    end_s=4.0,
    fps=25.0,
    num_frames=75,
    width_px=640,
    height_px=360,
)
FACE = Face(source_fps=29.97, face_px=133.5, face_confidence=0.98, face_confidence_min=0.91, faces_max=1)


def video(**changes: Any) -> Video:
    facts: dict[str, Any] = {
        "video_id": "0123456789ab",
        "sha256": "0" * 64,
        "uri": "a.mp4",
        "num_bytes": 10,
        "container": "mov,mp4",
        "video_codec": "h264",
        "pixel_format": "yuv420p",
        "width_px": 640,
        "height_px": 360,
        "coded_width_px": 640,
        "coded_height_px": 360,
        "rotation_deg": 0,
        "sample_aspect_ratio": 1.0,
        "fps": 25.0,
        "fps_nominal": 25.0,
        "start_s": 0.5,
        "end_s": 10.25,
    }
    return Video.model_validate({**facts, **changes})


# ------------------------------------------------------------------------------ keys


def test_clip_ids() -> None:
    assert clip_id("0123456789ab", 1.0, 4.0, 2) == CLIP.clip_id
    assert clip_id("0123456789ab", 3599.9996, 3605.12, 0) == "0123456789ab_03600000_03605120_t0"


@pytest.mark.parametrize("fps", [25.0, 23.976])
@pytest.mark.parametrize("trim", [(0, 0), (6, 0), (0, 5), (10, 20)])
def test_a_trimmed_clip_shows_the_frames_that_are_left(trim: tuple[int, int], fps: float) -> None:
    clip = CLIP.model_copy(update={"fps": fps, "end_s": 1.0 + 75 / fps})
    left = clip.trimmed(trim)
    assert left.num_frames == 75 - sum(trim)
    assert left.start_s == pytest.approx(1.0 + trim[0] / fps)
    assert left.end_s == pytest.approx(left.start_s + left.duration_s)
    assert clip.trim_of(left.start_s, left.num_frames) == trim
    where = {"start_s", "end_s", "num_frames"}
    assert left.model_dump(exclude=where) == clip.model_dump(exclude=where)


def test_clip_ids_sort_by_time_and_have_no_dots() -> None:
    starts_s = [0.0, 0.04, 9.96, 10.0, 99.999, 100.0, 5000.5, 90_000.0]
    ids = [clip_id("0123456789ab", start_s, start_s + 3, 0) for start_s in starts_s]
    assert sorted(ids) == ids
    assert all("." not in key and "/" not in key for key in ids)


# ------------------------------------------------------------------------------ records


def all_records() -> list[type[Record]]:
    return [
        value
        for value in vars(records).values()
        if isinstance(value, type) and issubclass(value, Record) and value is not Record
    ]


def test_every_record_is_frozen_and_closed() -> None:
    assert len(all_records()) >= 15
    for record in all_records():
        assert record.model_config["frozen"] is True, record
        assert record.model_config["extra"] == "forbid", record
        assert record.model_config["allow_inf_nan"] is False, record


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        CLIP.fps = 30.0  # type: ignore[misc]


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="colour\n  Extra inputs are not permitted"):
        Input.model_validate({"uri": "a", "colour": "red"})
    with pytest.raises(ValidationError, match="uri\n  Field required"):
        Input.model_validate({})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_not_a_measurement(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Speech(speech_fraction=value, loudness_dbfs=-20.0, clipped_fraction=0.0)


def test_json_round_trip() -> None:
    measures = ClipMeasures(
        clip=CLIP,
        stopped_by="no_speech",
        face=FACE,
        speech=Speech(speech_fraction=0.1, loudness_dbfs=-31.25, clipped_fraction=0.0),
    )
    assert ClipMeasures.model_validate_json(measures.model_dump_json()) == measures
    verdict = Verdict(
        clip_id=CLIP.clip_id,
        accepted=False,
        reasons=(Reason(code="face_small", field="face_px", value=100.0, threshold=128.0),),
    )
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_measurements_have_names_of_their_own() -> None:
    """They become columns of one table."""
    names = [
        name
        for field in ClipMeasures.model_fields.values()
        for record in all_records()
        if record in (field.annotation, *getattr(field.annotation, "__args__", ()))
        for name in record.model_fields
    ]
    assert len(names) > 30
    assert len(names) == len(set(names))


def test_derived_values() -> None:
    assert CLIP.duration_s == 3.0
    assert video().duration_s == 9.75
    assert not video().has_audio
    assert video(audio_start_s=0.0).has_audio


@pytest.mark.parametrize(
    ("value", "threshold", "text"),
    [
        (2.04, 3.0, "too_short (duration_s 2.04, threshold 3)"),
        (None, 3.0, "too_short (duration_s not measured, threshold 3)"),
        (1234567.0, None, "too_short (duration_s 1.235e+06)"),
    ],
)
def test_a_reason_in_words(value: float | None, threshold: float | None, text: str) -> None:
    assert str(Reason(code="too_short", field="duration_s", value=value, threshold=threshold)) == text


# ------------------------------------------------------------------------------ arrays


def track(**changes: Any) -> arrays.FaceTrack:
    given: dict[str, Any] = {
        "scene": 0,
        "track": 0,
        "start_s": 0.0,
        "end_s": 2.0,
        "times_s": np.array([0.5, 1.5]),
        "boxes": np.array([[0, 0, 10, 10], [10, 20, 30, 40]], np.float32),
        "scores": np.array([0.9, 0.8], np.float32),
        "detector": "d",
    }
    return arrays.FaceTrack(**{**given, **changes})


def test_a_box_is_linear_between_samples_and_held_beyond() -> None:
    np.testing.assert_array_equal(track().box_at(1.0), [5, 10, 20, 25])
    np.testing.assert_array_equal(track().box_at(0.0), [0, 0, 10, 10])
    np.testing.assert_array_equal(track().box_at(9.0), [10, 20, 30, 40])


def test_audio_knows_its_end() -> None:
    assert arrays.Audio(1.5, np.zeros(8000, np.float32)).end_s == 2.0


def test_seen_is_where_landmarks_are_finite() -> None:
    points = np.zeros((3, 478, 3), np.float32)
    points[1] = np.nan
    found = arrays.Landmarks(points, np.zeros((3, 52), np.float32), np.zeros((3, 3), np.float32))
    np.testing.assert_array_equal(found.seen, [True, False, True])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: arrays.Audio(0.0, np.zeros((2, 5), np.float32)),
            "audio: expected shape [any], found [2, 5]",
        ),
        (lambda: track(scores=np.zeros(3, np.float32)), "scores: expected shape [2], found [3]"),
        (lambda: track(boxes=np.zeros((2, 5), np.float32)), "boxes: expected shape [2, 4], found [2, 5]"),
        (
            lambda: arrays.Detections(0.0, np.zeros((2, 4), np.float32), np.zeros(1, np.float32)),
            "scores: expected shape [2], found [1]",
        ),
        (
            lambda: arrays.LipTrace(np.zeros((4, 8, 2), np.float32), np.zeros(5, np.uint8)),
            "valid: expected shape [4], found [5]",
        ),
        (
            lambda: arrays.Landmarks(
                np.zeros((4, 468, 3), np.float32), np.zeros((4, 52), np.float32), np.zeros((4, 3), np.float32)
            ),
            "landmarks: expected shape [any, 478, 3], found [4, 468, 3]",
        ),
    ],
)
def test_wrong_shapes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


# ------------------------------------------------------------------------------ documentation


def test_the_documentation_names_every_column_and_member() -> None:
    text = (Path(__file__).parents[2] / "docs/dataset.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`\n]+)`", text))
    rows = (records.LedgerRow, records.SourceRow, records.Failure, sample.ShardManifest, sample.SampleMeta)
    fields = {name for row in rows for name in row.model_fields}
    assert sorted((fields | set(sample.Provenance.model_fields) | set(sample.MEMBERS)) - named) == []
