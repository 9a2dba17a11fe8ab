"""Every rule fails for its own reason, and all reasons are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from talkforge.curation.verdict import (
    BANDS_ONLY,
    CODES,
    GOVERNANCE,
    NOT_TRACED,
    REJECTIONS,
    RULES,
    Columns,
    gate,
    judge,
    judge_columns,
    repair_s,
)
from talkforge.schemas.config import MeasureConfig, Thresholds
from talkforge.schemas.records import LedgerRow

GOOD: dict[str, Any] = {
    "clip_id": "aaaaaaaaaaaa_00000000_00004000_t0",
    "stopped_by": None,
    "active_speaker": None,
    "duration_s": 4.0,
    "source_fps": 25.0,
    "speech_fraction": 0.9,
    "clipped_fraction": 0.0,
    "face_clip_px": 200.0,
    "face_confidence": 0.95,
    "faces_max": 1,
    "lip_valid_fraction": 1.0,
    "mouth_covered_fraction": 0.02,
    "frozen_fraction": 0.0,
    "mouth_still_fraction": 0.1,
    "yaw_p95_deg": 20.0,
    "face_blur": 100.0,
    "face_detail_px": 110.0,
    "face_dark_fraction": 0.01,
    "face_bright_fraction": 0.01,
    "black_bar_fraction": 0.0,
    "face_brisque": 20.0,
    "text_fraction": 0.0,
    "mouth_text_fraction": 0.0,
    "mouth_hand_fraction": 0.0,
    "nsfw_probability": 0.01,
    "voice_similarity": 0.8,
    "snr_db": 30.0,
    "dnsmos_overall": 3.2,
    "music_fraction": 0.0,
    "sync_offset_frames": 0,
    "sync_confidence": 5.0,
    "sync_zero_confidence": 5.0,
    "sync_probability": 0.99,
    "sync_offset_probability": 0.99,
    "speaking_fraction": 0.9,
    "sync_c": 6.0,
    "words_per_s": 3.0,
    "language": "en",
    "language_probability": 0.9,
    "num_forbidden_words": 0,
}

STRICT = Thresholds(
    min_face_confidence=0.9,
    min_face_blur=50.0, min_snr_db=15.0, min_dnsmos_overall=2.5, max_music_fraction=0.1,
    min_sync_confidence=2.0, min_speaking_fraction=0.5, min_sync_c=3.0, require_sync_score=True,
    min_words_per_s=1.0, max_words_per_s=6.0, languages=("en", "de"), forbidden_words=("damn",),
    max_face_dark_fraction=0.2, max_face_bright_fraction=0.2, max_face_brisque=50.0, max_text_fraction=0.02,
    max_nsfw_probability=0.8, min_voice_similarity=0.65,
)  # fmt: skip


def codes(changes: dict[str, Any], thresholds: Thresholds = STRICT) -> list[str]:
    return [reason.code for reason in judge(GOOD | changes, thresholds).reasons]


def test_a_good_clip_is_accepted_without_reasons() -> None:
    verdict = judge(GOOD, STRICT)
    assert verdict.accepted
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("duration_s", 2.96, "too_short"),
        ("duration_s", 20.04, "too_long"),
        ("source_fps", 24.0, "low_frame_rate"),
        ("speech_fraction", 0.29, "no_speech"),
        ("clipped_fraction", 0.02, "audio_clipped"),
        ("face_clip_px", 127.0, "face_small"),
        ("face_confidence", 0.89, "low_confidence"),
        ("faces_max", 2, "multiple_faces"),
        ("lip_valid_fraction", 0.89, "lips_not_traced"),
        ("mouth_covered_fraction", 0.11, "mouth_covered"),
        ("frozen_fraction", 0.11, "picture_frozen"),
        ("mouth_still_fraction", 0.51, "mouth_still"),
        ("yaw_p95_deg", 61.0, "face_turned"),
        ("face_blur", 49.0, "face_blurred"),
        ("face_detail_px", 71.9, "face_unsharp"),
        ("face_dark_fraction", 0.21, "face_dark"),
        ("face_bright_fraction", 0.21, "face_overexposed"),
        ("black_bar_fraction", 0.06, "black_bars"),
        ("face_brisque", 50.1, "picture_poor"),
        ("nsfw_probability", 0.81, "nsfw"),
        ("voice_similarity", 0.64, "other_voice"),
        ("text_fraction", 0.03, "text_in_picture"),
        ("mouth_text_fraction", 0.11, "text_over_mouth"),
        ("mouth_hand_fraction", 0.11, "hand_over_mouth"),
        ("snr_db", 14.9, "noisy"),
        ("dnsmos_overall", 2.4, "sound_poor"),
        ("music_fraction", 0.11, "music"),
        ("sync_offset_frames", -4, "out_of_sync"),
        ("sync_confidence", 1.9, "sync_weak"),
        ("sync_probability", 0.1, "sync_unlikely"),
        ("sync_worst_probability", 0.01, "sync_lost"),
        ("speaking_fraction", 0.49, "mouth_idle"),
        ("sync_c", 2.9, "sync_c_low"),
        ("words_per_s", 0.9, "speech_slow"),
        ("words_per_s", 6.1, "speech_fast"),
        ("language", "fr", "other_language"),
        ("num_forbidden_words", 2, "forbidden_words"),
        ("sync_offset_frames", None, "sync_unscored"),
        ("active_speaker", False, "not_speaking"),
    ],
)
def test_each_rule_has_its_reason(field: str, value: float | str | None, code: str) -> None:
    assert codes({field: value}) == [code]


def test_the_codes_are_those_that_can_occur() -> None:
    transcript, sync = ["other_language", "forbidden_words"], ["sync_unscored", "not_speaking"]
    special = ["no_consent", "other_licence", "training_reserved", *transcript, *sync, "speaker_unclear"]
    special += ["not_traced", "near_duplicate", "reviewed_drop"]
    assert [*(rule.code for rule in RULES), *special] == list(CODES)
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize(
    ("consent", "reason"),
    [
        ("signed release 12", None),
        ("", "no_consent (consent none)"),
        ("Withdrawn ", "no_consent (consent Withdrawn )"),
        ("no", "no_consent (consent no)"),
        (None, None),  # not joined from the list yet
    ],
)
def test_a_required_consent_must_be_stated(consent: str | None, reason: str | None) -> None:
    verdict = judge(GOOD | {"consent": consent}, Thresholds(require_consent=True))
    assert list(map(str, verdict.reasons)) == ([reason] if reason else [])
    assert judge(GOOD | {"consent": consent}, Thresholds()).accepted


@pytest.mark.parametrize(
    ("licence", "reason"),
    [
        ("CC0", None),
        ("cc-by-4.0", None),
        ("CC-BY-NC-4.0", "other_licence (licence CC-BY-NC-4.0)"),
        ("", "other_licence (licence none)"),
        (None, None),
    ],
)
def test_only_listed_licences_are_kept(licence: str | None, reason: str | None) -> None:
    kept = Thresholds(licences=("cc0", "CC-BY-[0-9]*"))
    assert list(map(str, judge(GOOD | {"licence": licence}, kept).reasons)) == ([reason] if reason else [])
    assert judge(GOOD | {"licence": licence}, Thresholds()).accepted


@pytest.mark.parametrize(
    ("said", "is_reserved"),
    [
        ("", False),
        ("ai_generative_training=allowed data_mining=allowed", False),
        ("ai_inference=notAllowed ai_training=notAllowed", False),  # no generative model
        ("ai_generative_training=notAllowed", True),
        ("ai_generative_training=allowed data_mining=constrained", True),
        ("remote", True),
        ("unreadable", True),
        ("unread", True),
        (None, False),  # not joined from the input yet
    ],
)
def test_reserved_training_is_a_gate(said: str | None, is_reserved: bool) -> None:
    verdict = judge(GOOD | {"training_mining": said}, Thresholds(respect_reservations=True))
    expected = [f"training_reserved (training_mining {said})"] if is_reserved else []
    assert list(map(str, verdict.reasons)) == expected
    assert judge(GOOD | {"training_mining": said}, Thresholds()).accepted


def test_what_may_not_be_used_is_named_where_measuring_stopped_as_well() -> None:
    row = GOOD | {"stopped_by": "no_speech", "speech_fraction": 0.01, "consent": ""}
    found = judge(row, Thresholds(require_consent=True)).reasons
    assert [reason.code for reason in found] == ["no_speech", *GOVERNANCE[:1]]


@pytest.mark.parametrize(
    ("crop_width_px", "faces_frame_max", "active_speaker", "reason"),
    [
        (400.0, 2, None, "speaker_unclear"),
        (400.0, 2, True, None),
        (400.0, 2, False, "not_speaking"),
        (400.0, 1, None, None),
        (400.0, None, None, None),
        (None, 2, None, None),  # the whole frame: `multiple_faces` has counted
    ],
)
def test_a_crop_beside_others_must_be_shown_to_speak(
    crop_width_px: float | None, faces_frame_max: int | None, active_speaker: bool | None, reason: str | None
) -> None:
    row = {
        "crop_width_px": crop_width_px,
        "faces_frame_max": faces_frame_max,
        "active_speaker": active_speaker,
    }
    assert codes(row) == ([reason] if reason else [])
    assert codes(row, Thresholds(require_speaker=False)) == []


def test_who_is_beside_the_crop_is_told() -> None:
    (reason,) = judge(GOOD | {"crop_width_px": 400.0, "faces_frame_max": 3}, STRICT).reasons
    assert str(reason) == "speaker_unclear (faces_frame_max 3, threshold 1)"


def test_the_table_of_rejections_names_columns_thresholds_and_distinct_words() -> None:
    assert {one.field for one in REJECTIONS} <= set(LedgerRow.model_fields)
    assert {rule.threshold for rule in RULES} <= set(Thresholds.model_fields)
    for words in ([one.meaning for one in REJECTIONS], [one.passed for one in REJECTIONS]):
        assert "" not in words and len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("duration_s", "speech_fraction", "face_px", "code"),
    [
        (1.0, 0.05, 48.0, None),
        (0.96, 0.0, 0.0, "too_short"),
        (1.0, 0.04, 0.0, "no_speech"),
        (1.0, 0.05, 47.0, "face_small"),
    ],
)
def test_the_first_gate_that_a_clip_fails_ends_its_measuring(
    duration_s: float, speech_fraction: float, face_px: float, code: str | None
) -> None:
    gates = {"min_speech_fraction": 0.05, "min_face_px": 48.0}
    config = MeasureConfig.model_validate({"clip": {"min_s": 1.0}, "gates": gates})
    assert gate(duration_s, speech_fraction, face_px, config) == code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("duration_s", 3.0),
        ("duration_s", 20.0),
        ("face_clip_px", 128.0),
        ("sync_offset_frames", 3),
        ("faces_max", 1),
    ],
)
def test_a_value_on_the_threshold_passes(field: str, value: float) -> None:
    assert codes({field: value}) == []


def test_all_reasons_are_named_with_value_and_threshold() -> None:
    verdict = judge(GOOD | {"duration_s": 1.5, "face_clip_px": 96.25}, STRICT)
    assert [str(reason) for reason in verdict.reasons] == [
        "too_short (duration_s 1.5, threshold 3)",
        "face_small (face_clip_px 96.25, threshold 128)",
    ]


def test_what_was_heard_is_named_with_its_evidence() -> None:
    verdict = judge(GOOD | {"language": "fr", "num_forbidden_words": 2}, STRICT)
    assert [str(reason) for reason in verdict.reasons] == [
        "other_language (language_probability 0.9)",
        "forbidden_words (num_forbidden_words 2, threshold 0)",
    ]


def test_a_needed_measurement_that_is_missing_fails_and_says_so() -> None:
    (reason,) = judge(GOOD | {"lip_valid_fraction": None}, STRICT).reasons
    assert str(reason) == "lips_not_traced (lip_valid_fraction not measured, threshold 0.9)"


def test_a_rule_that_is_off_rejects_nothing() -> None:
    off = Thresholds(min_face_px=None, require_speaker=False)
    assert codes({"face_clip_px": 1.0, "active_speaker": False}, off) == []


@pytest.mark.parametrize(
    ("fraction", "field"),
    [(None, "sync_probability"), (0.9, "sync_probability"), (0.1, "speaking_fraction")],
)
def test_who_does_not_speak_is_told_by_the_evidence(fraction: float | None, field: str) -> None:
    (reason,) = judge(GOOD | {"active_speaker": False, "speaking_fraction": fraction}, Thresholds()).reasons
    assert (reason.code, reason.field) == ("not_speaking", field)


def test_unscored_sync_passes_unless_a_score_is_required() -> None:
    unscored = dict.fromkeys(name for name in GOOD if name.startswith("sync_"))
    assert codes(unscored, Thresholds()) == []


@pytest.mark.parametrize(
    ("method", "probability", "least", "rejected"),
    [
        ("phonetic-v1", 0.2, 0.2, False),
        ("phonetic-v1", 0.19, 0.2, True),
        ("contrastive-v1", 0.79, 0.2, True),
        ("contrastive-v1+own", 0.79, 0.2, True),
        ("contrastive-v1", 0.8, 0.2, False),
        ("contrastive-v1", 0.85, 0.9, True),
        ("contrastive-v1", 0.1, None, False),
    ],
)
def test_a_probability_of_an_earlier_scorer_must_be_as_high_as_it_had_to_be_then(
    method: str, probability: float, least: float | None, rejected: bool
) -> None:
    found = codes(
        {"sync_method": method, "sync_probability": probability}, Thresholds(min_sync_probability=least)
    )
    assert ("sync_unlikely" in found) == rejected


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.79, []), (0.8, ["out_of_sync"]), (None, ["out_of_sync"])]
)
def test_an_offset_counts_where_the_audio_is_likely_to_belong_to_the_mouth(
    probability: float | None, expected: list[str]
) -> None:
    """Audio that belongs to nobody has a best offset too. Earlier versions told only sure offsets."""
    assert codes({"sync_offset_frames": 9, "sync_offset_probability": probability}) == expected


OFF = {
    "fps": 25.0,
    "sync_offset_frames": 6,
    "sync_probability": 0.01,
    "sync_offset_probability": 0.99,
    "sync_offset_sd_frames": 0.4,
    "sync_drift_frames": 0.5,
}
"""Columns of a clip whose audio is 240 ms early beyond doubt."""


@pytest.mark.parametrize(
    ("changes", "expected_s"),
    [
        ({}, 0.24),
        ({"sync_offset_frames": -6}, -0.24),
        ({"sync_offset_frames": 4}, 0.16),
        ({"sync_offset_frames": 3}, 0.0),
        ({"sync_offset_frames": None}, 0.0),
        ({"sync_offset_probability": 0.94}, 0.0),
        ({"sync_offset_probability": None}, 0.0),
        ({"sync_offset_sd_frames": 1.01}, 0.0),
        ({"sync_offset_sd_frames": None}, 0.0),
        ({"sync_drift_frames": -2.1}, 0.0),
        ({"sync_drift_frames": None}, 0.24),
        ({"fps": 50.0, "sync_offset_sd_frames": 1.9, "sync_drift_frames": 3.9}, 0.12),
    ],
)
def test_audio_is_moved_by_an_offset_that_is_large_sure_and_constant(
    changes: dict[str, Any], expected_s: float
) -> None:
    assert repair_s(OFF | changes, Thresholds(repair_sync=True)) == pytest.approx(expected_s)
    assert repair_s(OFF | changes, Thresholds()) == 0.0
    assert repair_s(OFF | changes, Thresholds(repair_sync=True, max_abs_sync_offset_frames=None)) == 0.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"audio_shift_s": 0.24}, []),
        ({"audio_shift_s": None}, ["out_of_sync", "sync_unlikely"]),
        ({"audio_shift_s": 0.24, "sync_offset_probability": 0.19}, ["sync_unlikely"]),
        ({"audio_shift_s": 0.24, "snr_db": 14.9}, ["noisy"]),
    ],
)
def test_a_clip_is_judged_by_its_sync_once_the_audio_is_moved(
    changes: dict[str, Any], expected: list[str]
) -> None:
    assert codes(OFF | changes) == expected


@pytest.mark.parametrize(
    "field",
    [
        "face_detail_px",
        "mouth_covered_fraction",
        "frozen_fraction",
        "mouth_still_fraction",
        "snr_db",
        "dnsmos_overall",
        "music_fraction",
        "speaking_fraction",
        "sync_c",
        "words_per_s",
        "language",
        "num_forbidden_words",
        "face_brisque",
        "mouth_text_fraction",
        "mouth_hand_fraction",
        "nsfw_probability",
        "voice_similarity",
    ],
)
def test_what_was_optional_and_is_missing_passes(field: str) -> None:
    assert codes({field: None}) == []


STOPPED = {
    "stopped_by": "face_small",
    "face_clip_px": 40.0,
    "lip_valid_fraction": None,
    "yaw_p95_deg": None,
    "face_blur": None,
    "sync_offset_frames": None,
    "sync_confidence": None,
}


def test_a_gated_clip_is_rejected_for_what_is_known_of_it() -> None:
    assert codes(STOPPED | {"duration_s": 2.0}) == ["too_short", "face_small"]


def test_a_gate_stays_a_reason_when_its_rule_is_off() -> None:
    (reason,) = judge(GOOD | STOPPED, Thresholds(min_face_px=None)).reasons
    assert str(reason) == "face_small (face_clip_px 40)"


def test_columns_are_judged_as_their_rows_are() -> None:
    """Random rows: unknown values, gates, moved audio, and what lists and transcripts say."""
    random = np.random.default_rng(3)
    named = {
        "stopped_by": [None] * 6 + ["too_short", "face_small", NOT_TRACED.code],
        "language": [None, "en", "fr"], "licence": [None, "", "CC0", "x"], "consent": [None, "", "yes"],
        "active_speaker": [None, True, False], "audio_shift_s": [None, None, 0.24],
        "crop_width_px": [None, 400.0], "faces_frame_max": [None, 1, 3], "faces_max": [1, 1, 2],
        "sync_method": [None, f"{BANDS_ONLY}-1", "x"], "num_forbidden_words": [None, 0, 2],
        "sync_offset_frames": [None, 0, -9],
        "training_mining": [None, "", "data_mining=allowed", "data_mining=notAllowed", "unread"],
    }  # fmt: skip
    measured = [name for name, value in GOOD.items() if isinstance(value, float)]
    rows = []
    for number in range(400):
        drawn = {name: values[random.integers(len(values))] for name, values in named.items()}
        row = GOOD | drawn | {"clip_id": f"{number}"}
        for name in random.choice(measured, 3).tolist():
            row[name] = None if random.random() < 0.3 else float(GOOD[name] * random.choice([0.1, 1.0, 9.0]))
        rows.append(row | {"sync_offset_probability": float(random.random())})
    terms = {"require_consent": True, "licences": ("cc*",), "respect_reservations": True}
    strict = STRICT.model_copy(update=terms | {"languages": ("en",), "require_sync_score": True})
    codes_found: set[str] = set()
    for thresholds in (strict, Thresholds()):
        columns = Columns(len(rows), lambda name: [row[name] for row in rows])
        found = judge_columns(columns, thresholds)
        expected = [(n, reason) for n, row in enumerate(rows) for reason in judge(row, thresholds).reasons]
        assert list(zip(found.rows.tolist(), found.codes, found.details, strict=True)) == [
            (n, reason.code, str(reason)) for n, reason in expected
        ]
        codes_found |= set(found.codes)
    assert codes_found >= {*GOVERNANCE, "other_language", "forbidden_words", "sync_unscored", "not_speaking"}
    assert codes_found >= {"speaker_unclear", NOT_TRACED.code} and len(codes_found) > 18
