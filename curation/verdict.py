"""Is this clip good enough? Applies every rule and names every one that fails.

A rule looks at one measured field and one threshold of `schemas.config.Thresholds`. A clip whose
measuring was stopped at a gate is judged by what is known of it; the rest is unknown, and the
gate's own code is among the reasons, so such a clip is never accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from talkforge.curation.sync.active_speaker import SPEAKING_FRACTION
from talkforge.schemas.config import Thresholds
from talkforge.schemas.records import Reason, Verdict


@dataclass(frozen=True)
class Rule:
    """`field` must be `at_least` or `at_most` the threshold named `threshold`.

    `needed`: a clip without this measurement fails; otherwise the rule is passed over.
    """

    code: str
    field: str
    threshold: str
    side: Literal["at_least", "at_most"]
    needed: bool = True
    absolute: bool = False


RULES: tuple[Rule, ...] = (
    Rule("too_short", "duration_s", "min_duration_s", "at_least"),
    Rule("too_long", "duration_s", "max_duration_s", "at_most"),
    Rule("low_frame_rate", "source_fps", "min_source_fps", "at_least"),
    Rule("no_speech", "speech_fraction", "min_speech_fraction", "at_least"),
    Rule("audio_clipped", "clipped_fraction", "max_clipped_fraction", "at_most"),
    Rule("face_small", "face_px", "min_face_px", "at_least"),
    Rule("low_confidence", "face_confidence", "min_face_confidence", "at_least"),
    Rule("multiple_faces", "faces_max", "max_faces", "at_most"),
    Rule("lips_not_traced", "lip_valid_fraction", "min_lip_valid_fraction", "at_least"),
    Rule("face_turned", "yaw_p95_deg", "max_yaw_p95_deg", "at_most"),
    Rule("face_blurred", "face_blur", "min_face_blur", "at_least"),
    Rule("face_dark", "face_dark_fraction", "max_face_dark_fraction", "at_most", needed=False),
    Rule("face_overexposed", "face_bright_fraction", "max_face_bright_fraction", "at_most", needed=False),
    Rule("black_bars", "black_bar_fraction", "max_black_bar_fraction", "at_most", needed=False),
    Rule("picture_poor", "face_brisque", "max_face_brisque", "at_most", needed=False),
    Rule("text_in_picture", "text_fraction", "max_text_fraction", "at_most", needed=False),
    Rule("text_over_mouth", "mouth_text_fraction", "max_mouth_text_fraction", "at_most", needed=False),
    Rule("hand_over_mouth", "mouth_hand_fraction", "max_mouth_hand_fraction", "at_most", needed=False),
    Rule("noisy", "snr_db", "min_snr_db", "at_least", needed=False),
    Rule("sound_poor", "dnsmos_overall", "min_dnsmos_overall", "at_least", needed=False),
    Rule("music", "music_fraction", "max_music_fraction", "at_most", needed=False),
    Rule(
        "out_of_sync", "sync_offset_frames", "max_abs_sync_offset_frames", "at_most",
        needed=False, absolute=True,
    ),
    Rule("sync_weak", "sync_confidence", "min_sync_confidence", "at_least", needed=False),
    Rule("mouth_idle", "speaking_fraction", "min_speaking_fraction", "at_least", needed=False),
    Rule("sync_c_low", "sync_c", "min_sync_c", "at_least", needed=False),
    Rule("speech_slow", "words_per_s", "min_words_per_s", "at_least", needed=False),
    Rule("speech_fast", "words_per_s", "max_words_per_s", "at_most", needed=False),
)  # fmt: skip
"""In the order of the funnel: the cheapest question first."""

REPEATED = "near_duplicate"
"""Code of a clip that fulfils every rule and repeats a better one; see `curation.duplicates`."""

CODES: tuple[str, ...] = (
    *(rule.code for rule in RULES), "other_language", "forbidden_words", "sync_unscored", "not_speaking",
    REPEATED,
)  # fmt: skip


def judge(row: Mapping[str, Any], thresholds: Thresholds) -> Verdict:
    """Verdict on one ledger row (a mapping from column name to value; None: not measured).

    Besides the rules' fields, `clip_id`, `stopped_by` (the code of the gate that ended measuring,
    or None), `active_speaker` (False where another face in view speaks), `language` and
    `num_forbidden_words` are read.
    """
    stopped = row.get("stopped_by")
    reasons = [reason for rule in RULES if (reason := _broken(rule, row, thresholds, stopped))]
    if stopped and all(reason.code != stopped for reason in reasons):
        field = next(rule.field for rule in RULES if rule.code == stopped)
        reasons.append(Reason(code=stopped, field=field, value=row.get(field), threshold=None))
    if not stopped:
        reasons += _text_reasons(row, thresholds)
        reasons += _sync_reasons(row, thresholds)
    return Verdict(clip_id=row["clip_id"], accepted=not reasons, reasons=tuple(reasons))


def _broken(rule: Rule, row: Mapping[str, Any], thresholds: Thresholds, stopped: str | None) -> Reason | None:
    threshold = getattr(thresholds, rule.threshold)
    if threshold is None:
        return None
    value = row.get(rule.field)
    if value is None:
        fails = rule.needed and not stopped
    else:
        size = abs(value) if rule.absolute else value
        fails = size < threshold if rule.side == "at_least" else size > threshold
    if not fails:
        return None
    return Reason(
        code=rule.code,
        field=rule.field,
        value=None if value is None else float(value),
        threshold=float(threshold),
    )


def _text_reasons(row: Mapping[str, Any], thresholds: Thresholds) -> list[Reason]:
    """Where there is a transcript; one without speech is in no language."""
    reasons = []
    language, forbidden = row.get("language"), row.get("num_forbidden_words")
    if thresholds.languages and language is not None and language not in thresholds.languages:
        field = "language_probability"
        reasons.append(Reason(code="other_language", field=field, value=row.get(field), threshold=None))
    if forbidden:
        reasons.append(
            Reason(code="forbidden_words", field="num_forbidden_words", value=forbidden, threshold=0)
        )
    return reasons


def _sync_reasons(row: Mapping[str, Any], thresholds: Thresholds) -> list[Reason]:
    reasons = []
    if thresholds.require_sync_score and row.get("sync_offset_frames") is None:
        reasons.append(Reason(code="sync_unscored", field="sync_offset_frames", value=None, threshold=None))
    if thresholds.require_speaker and row.get("active_speaker") is False:
        seen = row.get("speaking_fraction")
        silent = seen is not None and seen <= SPEAKING_FRACTION
        field = "speaking_fraction" if silent else "sync_zero_confidence"
        reasons.append(Reason(code="not_speaking", field=field, value=row.get(field), threshold=None))
    return reasons
