"""Each measured quantity: how it is distributed, and what moving its threshold would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from talkforge.curation.verdict import LIKELY_FROM, RULES, Rule, hangs_on_numbers
from talkforge.schemas.columns import unit_of
from talkforge.schemas.config import Config, Thresholds, threshold_source

HISTOGRAM_BINS = 24
"""Bins of a histogram; quantities that are counted in whole numbers may have twice as many."""

WHAT_IF_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Where a threshold is tried: at these quantiles of the clips that it alone decides on."""


TOLD = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
"""Quantiles of each measurement that are told."""

QUANTILES = (*TOLD[:1], 0.01, *TOLD[1:-1], 0.99, *TOLD[-1:])
"""These, and those between which a histogram lies."""


@dataclass(frozen=True)
class Measure:
    """One measured column of the ledger; `scale` is how its histogram is binned."""

    field: str
    label: str
    scale: Literal["linear", "whole", "log"] = "linear"


MEASURES: tuple[Measure, ...] = (
    Measure("duration_s", "Length of the clip"),
    Measure("source_fps", "Frame rate of the source"),
    Measure("speech_fraction", "Fraction of the clip with speech"),
    Measure("loudness_dbfs", "Loudness"),
    Measure("clipped_fraction", "Fraction of clipped samples"),
    Measure("snr_db", "Speech over noise"),
    Measure("bandwidth_hz", "Highest frequency at which there is audio"),
    Measure("dnsmos_signal", "DNSMOS of the voice"),
    Measure("dnsmos_background", "DNSMOS of the background"),
    Measure("dnsmos_overall", "DNSMOS overall"),
    Measure("music_fraction", "Fraction of the clip with music"),
    Measure("face_clip_px", "Height of the face in the clip"),
    Measure("face_px", "Height of the face in the source"),
    Measure("face_confidence", "Mean detector confidence"),
    Measure("face_confidence_min", "Least detector confidence"),
    Measure("faces_max", "Most faces visible at once", "whole"),
    Measure("face_seen_fraction", "Fraction of frames with landmarks"),
    Measure("yaw_p95_deg", "How far the head turns (95th percentile of |yaw|)"),
    Measure("yaw_deg", "Median yaw (to the viewer's right)"),
    Measure("pitch_deg", "Median pitch (up)"),
    Measure("roll_deg", "Median roll (clockwise)"),
    Measure("lip_valid_fraction", "Fraction of frames with a measured lip contour"),
    Measure("lip_interpolated_fraction", "Fraction of frames with an interpolated lip contour"),
    Measure("lip_area_fraction", "Fraction of the frame under the lip mask"),
    Measure("mouth_covered_fraction", "Fraction of frames with a covered mouth"),
    Measure("sync_offset_frames", "Audio offset (positive: delay the audio)", "whole"),
    Measure("sync_probability", "Probability that mouth and audio belong together"),
    Measure("sync_offset_probability", "The same once the audio is moved by its offset"),
    Measure("sync_offset_sd_frames", "Standard deviation of the audio offset"),
    Measure("sync_drift_frames", "Audio offset of the second half minus the first"),
    Measure("sync_worst_probability", "Probability that mouth and audio belong together, worst 3 s"),
    Measure("audio_shift_s", "By how much the audio is moved (positive: delayed)"),
    Measure("sync_confidence", "Significance of the sync peak"),
    Measure("sync_zero_confidence", "Significance of sync at zero lag"),
    Measure("speaking_fraction", "Fraction of the speech in which the face is seen to speak"),
    Measure("sync_c", "Sync-C (SyncNet)"),
    Measure("sync_d", "Sync-D (SyncNet)"),
    Measure("sync_net_offset_frames", "Audio offset by SyncNet (positive: delay it)", "whole"),
    Measure("language_probability", "Probability of the language"),
    Measure("num_words", "Words in the clip", "whole"),
    Measure("words_per_s", "Speech rate"),
    Measure("num_forbidden_words", "Forbidden words in the clip", "whole"),
    Measure("omega_face_raw", "Motion of the face, raw variance", "log"),
    Measure("omega_face", "Motion of the face, normalised"),
    Measure("omega_body_raw", "Motion of the body, raw variance", "log"),
    Measure("omega_body", "Motion of the body, normalised"),
    Measure("joints_valid_fraction", "Fraction of frames with body joints"),
    Measure("frozen_fraction", "Fraction of frames with a frozen face"),
    Measure("mouth_still_fraction", "Fraction of the speech with a still mouth"),
    Measure("camera_motion_per_s", "Motion of the camera"),
    Measure("identity_consistency", "Least similarity to the clip's own face"),
    Measure("face_blur", "Sharpness of the face", "log"),
    Measure("face_detail_px", "Height at which the face has all its detail"),
    Measure("face_luma", "Brightness of the face"),
    Measure("face_dark_fraction", "Fraction of the face in the dark"),
    Measure("face_bright_fraction", "Fraction of the face that is overexposed"),
    Measure("black_bar_fraction", "Fraction of the frame under bars"),
    Measure("face_brisque", "BRISQUE of the face (low is good)"),
    Measure("text_fraction", "Fraction of the frame under text"),
    Measure("mouth_text_fraction", "Fraction of frames with text over the mouth"),
    Measure("mouth_hand_fraction", "Fraction of frames with a hand over the mouth"),
    Measure("voice_similarity", "Similarity to the usual voice of the face"),
    Measure("nsfw_probability", "Largest probability of sexual content"),
    Measure("gaze_yaw_deg", "Median yaw of the gaze (to the viewer's right)"),
    Measure("gaze_pitch_deg", "Median pitch of the gaze (up)"),
    Measure("gaze_camera_fraction", "Fraction of frames with the gaze into the camera"),
    Measure("num_blinks", "Blinks in the clip", "whole"),
    Measure("blinks_per_min", "Rate of blinks"),
)


def hours_of(column: pd.Series) -> float:
    """Sum of a column of hours, unknown ones left out, to a microhour (3.6 ms)."""
    return round(float(column.sum()), 6)


def rounded(value: float) -> float:
    """Six significant digits: enough to read, and the same on every machine."""
    return float(f"{value:.6g}")


def tally(hours: pd.Series) -> dict[str, Any]:
    """How many clips these are, and how long.

    Args:
        hours: length of each, the column of `clips_table`.
    """
    return {"clips": len(hours), "hours": hours_of(hours)}


def carries(reasons: pd.Series, code: str) -> NDArray[np.bool_]:
    """Which clips have a code among their reasons.

    Args:
        reasons: column of `clips_table`.
        code: of a rejection.
    """
    numbers, sets = pd.factorize(reasons)
    has_code = np.array([code in codes for codes in sets], bool)
    return np.asarray(has_code[numbers], bool)


def decided_by_thresholds(clips: pd.DataFrame) -> pd.Series:
    """Which clips thresholds decide on, see `verdict.hangs_on_numbers`.

    Args:
        clips: answer of `clips_table`.
    """
    numbers, sets = pd.factorize(clips["reasons"])
    by_numbers = np.array([hangs_on_numbers(None, None, codes) for codes in sets], bool)
    return clips["failure"].isna() & clips["stopped_by"].isna() & by_numbers[numbers]


def drawn(clips: pd.DataFrame, most: int) -> pd.DataFrame:
    """The clips, or that many of them: those whose ids have the least hashes.

    Args:
        clips: with `clip_id`, in its order.
        most: number of clips.
    """
    if len(clips) <= most:
        return clips.reset_index(drop=True)
    # Every id is another one, so equal ones need not be looked for first.
    lots = pd.util.hash_array(clips["clip_id"].to_numpy(object), categorize=False)
    return clips.iloc[np.sort(np.argsort(lots, kind="stable")[:most])].reset_index(drop=True)


def threshold_of(rule: Rule | None, config: Config) -> dict[str, Any]:
    """A rule's threshold with its unit and source; every value None for a reason without a threshold."""
    if rule is None:
        return dict.fromkeys(
            ("field", "threshold_name", "threshold", "side", "unit", "source", "description")
        )
    info = Thresholds.model_fields[rule.threshold]
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    value = getattr(config.thresholds, rule.threshold)
    return {
        "field": rule.field,
        "threshold_name": rule.threshold,
        "threshold": None if value is None else float(value),
        "side": rule.side,
        "unit": extra.get("unit", ""),
        "source": threshold_source(config, rule.threshold),
        "description": info.description or "",
    }


def what_if(rule: Rule, clips: pd.DataFrame, broken: pd.DataFrame, config: Config) -> dict[str, Any] | None:
    """What is kept where this threshold is moved and all others stay; None: nothing to try it on.

    Args:
        rule: whose threshold is moved.
        clips: rows of `clips_table` that were measured to the end. What else the others break is unknown.
        broken: answer of `broken_rules` for them.
        config: of the last selection.
    """
    open_ = clips.loc[broken["others"] <= broken[rule.code], sorted({rule.field, *rule_inputs(rule)})]
    values = compared(rule, open_).to_numpy()
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    now = getattr(config.thresholds, rule.threshold)
    points = {rounded(q) for q in np.quantile(known, WHAT_IF_QUANTILES, method="nearest")}
    points |= set() if now is None else {float(now)}
    hours = clips.loc[open_.index, "hours"]
    is_kept = clips.loc[open_.index, "reviewed"].eq("keep").to_numpy()
    passes_always = is_kept | (np.isnan(values) & (not rule.needed))

    def kept(threshold: float) -> dict[str, Any]:
        passes = values >= threshold if rule.side == "at_least" else values <= threshold
        return {"threshold": threshold, **tally(hours[passes | passes_always])}

    return {
        "code": rule.code,
        **threshold_of(rule, config),
        "points": [kept(point) for point in sorted(points)],
    }


def rule_inputs(rule: Rule) -> set[str]:
    """Columns that `compared` reads beside that of the rule."""
    moved = {"audio_shift_s", "sync_offset_probability"} if rule.field in MOVED else set()
    return moved | ({rule.likely} if rule.likely else set())


MOVED = ("sync_offset_frames", "sync_probability")
"""Columns whose values are others once the audio is moved."""


def compared(rule: Rule, clips: pd.DataFrame) -> pd.Series:
    """What the rule compares in each clip; NaN where it has no value, or is skipped.

    Args:
        rule: a rule with a threshold.
        clips: rows of `clips_table`.
    """
    values = judged(rule.field, clips)
    values = values.abs() if rule.absolute else values
    return values.where(~(clips[rule.likely] < LIKELY_FROM)) if rule.likely else values


def judged(field: str, clips: pd.DataFrame) -> pd.Series:
    """What a rule compares: the measurement, or what it is once the audio is moved (see `verdict.judge`)."""
    if field == "sync_offset_frames":
        return clips[field].where(clips["audio_shift_s"].isna(), 0.0)
    if field == "sync_probability":
        return clips[field].where(clips["audio_shift_s"].isna(), clips["sync_offset_probability"])
    return clips[field]


def histogram(measure: Measure, clips: pd.DataFrame, config: Config) -> dict[str, Any] | None:
    """Clips in each bin, accepted and not, with quantiles and thresholds; None: never measured.

    Values beyond the outermost edges are counted in the outermost bins.
    """
    column = clips[measure.field].to_numpy()
    is_known = ~np.isnan(column)
    known = column[is_known]
    if not len(known):
        return None
    rules = [rule for rule in RULES if rule.field == measure.field]
    lines = [threshold_of(rule, config) for rule in rules]
    quantiles = dict(zip(QUANTILES, np.quantile(known, QUANTILES).tolist(), strict=True))
    thresholds = [line["threshold"] for line in lines if line["threshold"] is not None]
    edges = _edges(measure, known, quantiles, thresholds)
    bins = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(edges) - 2)
    accepted = clips["accepted"].to_numpy()[is_known]
    seconds = np.nan_to_num(clips["duration_s"].to_numpy()[is_known])

    def heights(mask: NDArray[np.bool_]) -> tuple[list[int], list[float]]:
        counts = np.bincount(bins[mask], minlength=len(edges) - 1)
        lengths_s = np.bincount(bins[mask], seconds[mask], len(edges) - 1)
        return counts.tolist(), [round(length, 3) for length in lengths_s.tolist()]

    (kept, kept_s), (left, left_s) = heights(accepted), heights(~accepted)
    return {
        "field": measure.field,
        "label": measure.label,
        "unit": unit_of(measure.field),
        "scale": measure.scale,
        "known": len(known),
        "unknown": len(column) - len(known),
        "mean": rounded(known.mean()),
        "quantiles": {f"{q:g}": rounded(value) for q, value in quantiles.items() if q in TOLD},
        "thresholds": [line for line in lines if line["threshold"] is not None],
        "absolute": any(rule.absolute for rule in rules),
        "edges": [rounded(edge) for edge in edges],
        "accepted": kept,
        "not_accepted": left,
        "accepted_s": kept_s,
        "not_accepted_s": left_s,
        "median_of_accepted_s": weighted_median(known[accepted], seconds[accepted]),
    }


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """The least value up to which half of the weight lies; None without any weight."""
    if not weights.sum() > 0:
        return None
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return rounded(float(values[order][np.searchsorted(reached, reached[-1] / 2)]))


def _edges(
    measure: Measure, known: NDArray[np.float64], quantiles: Mapping[float, float], thresholds: list[float]
) -> NDArray[np.float64]:
    """Edges of the bins: the middle 98 % of the values and the thresholds; the rest goes to the ends."""
    low, high = quantiles[0.01], quantiles[0.99]
    low, high = min([low, *thresholds]), max([high, *thresholds])
    if measure.scale == "whole":
        low, high = np.floor(low), np.ceil(high)
        step = max(1, int(np.ceil((high - low + 1) / (2 * HISTOGRAM_BINS))))
        return np.arange(low - 0.5, high + 0.5 + step, step)
    if measure.scale == "log" and (known > 0).any():
        least = max(low, float(known[known > 0].min()))
        if high < least * 1.1:
            least, high = least / 2, least * 2
        return np.geomspace(least, high, HISTOGRAM_BINS + 1)
    if high - low < 1e-9 + 1e-6 * abs(high):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, HISTOGRAM_BINS + 1)
