"""The rules that accept or reject a clip, and the table of all reasons for a rejection.

`REJECTIONS` is the one table of reason codes: the report, the documentation and `judge` read it. Most
codes belong to a `Rule`, which compares one measured ledger column with one threshold of
`schemas.config.Thresholds`. Codes are stored in data sets, so they are never renamed.

A clip whose measuring was stopped at a gate is judged by what is known of it. The code of the gate is
then always among its reasons, so such a clip is never accepted. A clip that was not traced, because the
thresholds of then rejected it, is judged likewise; where they would now accept it, its reason is
"not_traced".
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from operator import eq
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.credentials import REMOTE, UNREAD, UNREADABLE
from talkforge.curation.sync import SPEAKING_FRACTION
from talkforge.schemas.config import MeasureConfig, Thresholds
from talkforge.schemas.records import Reason, Verdict

Stage = Literal["list", "probe", "vad", "scan", "audio", "trace", "transcribe", "select"]
"""What measures a column: the list of inputs, the probe of the file, voice activity detection, the sparse
pass, audio quality, the dense pass, speech recognition, or the selection over all clips."""

EARLY: tuple[Stage, ...] = ("probe", "vad", "scan", "audio")
"""Stages before the dense pass."""


LIKELY_FROM = 0.8
"""Least probability from which what a measurement presumes is taken to be so. Source: ours."""


BANDS_ONLY, BANDS_ONLY_FROM = "contrastive-v1", 0.8
"""The sync scorer of earlier versions, and the least `sync_probability` of a clip that it scored, whatever
the threshold: below it, it accepts too many other voices. Source: ours, docs/sync.md."""

REPAIR_FROM = 0.95
"""Least `sync_offset_probability` of audio that is moved. Source: ours, docs/sync.md."""

REPAIR_SD_S = 0.04
"""Largest standard deviation of an offset by which audio is moved, a frame of 25/s. Source: likewise."""

REPAIR_DRIFT_S = 0.08
"""Largest drift of audio that is moved, two frames of 25/s. Source: ours; beyond it none is right."""


@dataclass(frozen=True)
class Rejection:
    """One reason for which a clip is rejected.

    Attributes:
        code: what the ledger holds, such as "too_short".
        field: the ledger column that is judged.
        stage: what measures that column.
        meaning: the reason in words, as the report shows it.
        passed: what is true of the clips that pass, as the report's funnel shows it.
    """

    code: str
    field: str
    stage: Stage
    meaning: str
    passed: str


@dataclass(frozen=True)
class Rule(Rejection):
    """A rejection that is decided by one threshold.

    Attributes:
        threshold: name of the field in `Thresholds`. Where that is None the rule is off.
        side: whether the column must be at least, or at most, the threshold.
        needed: whether a clip without this measurement fails. Otherwise the rule is skipped for it.
        absolute: whether the magnitude of the column is compared, without its sign.
        likely: column of a probability; where it is below `LIKELY_FROM`, the rule is skipped.
    """

    threshold: str
    side: Literal["at_least", "at_most"]
    needed: bool = True
    absolute: bool = False
    likely: str | None = None


RULES: tuple[Rule, ...] = (
    Rule("too_short", "duration_s", "scan",
         "Too short", "Long enough", "min_duration_s", "at_least"),
    Rule("too_long", "duration_s", "scan",
         "Too long", "Not too long", "max_duration_s", "at_most"),
    Rule("low_frame_rate", "source_fps", "probe",
         "Source has too few frames per second", "Enough frames per second", "min_source_fps", "at_least"),
    Rule("no_speech", "speech_fraction", "vad",
         "Too little speech", "Enough speech", "min_speech_fraction", "at_least"),
    Rule("audio_clipped", "clipped_fraction", "vad",
         "Audio is clipped", "Audio not clipped", "max_clipped_fraction", "at_most"),
    Rule("face_small", "face_clip_px", "scan",
         "Face is too small", "Face large enough", "min_face_px", "at_least"),
    Rule("low_confidence", "face_confidence", "scan",
         "Face detector is not sure enough", "Detector sure of the face", "min_face_confidence", "at_least"),
    Rule("multiple_faces", "faces_max", "scan",
         "More than one face in view", "A single face in view", "max_faces", "at_most"),
    Rule("lips_not_traced", "lip_valid_fraction", "trace",
         "Lips could not be traced", "Lips traced", "min_lip_valid_fraction", "at_least"),
    Rule("mouth_covered", "mouth_covered_fraction", "trace",
         "Mouth is covered", "Mouth is seen", "max_mouth_covered_fraction", "at_most", needed=False),
    Rule("picture_frozen", "frozen_fraction", "trace",
         "Frames are frozen", "Frames move", "max_frozen_fraction", "at_most", needed=False),
    Rule("mouth_still", "mouth_still_fraction", "trace",
         "Mouth is still during speech", "Mouth moves during speech, where there is any",
         "max_mouth_still_fraction", "at_most", needed=False),
    Rule("face_turned", "yaw_p95_deg", "trace",
         "Face is turned away", "Face towards the camera", "max_yaw_p95_deg", "at_most"),
    Rule("face_blurred", "face_blur", "trace",
         "Face is blurred", "Face sharp", "min_face_blur", "at_least"),
    Rule("face_unsharp", "face_detail_px", "trace",
         "Face has less detail than its size", "Face has detail", "min_face_detail_px", "at_least",
         needed=False),
    Rule("face_dark", "face_dark_fraction", "trace",
         "Face is in the dark", "Face not in the dark", "max_face_dark_fraction", "at_most", needed=False),
    Rule("face_overexposed", "face_bright_fraction", "trace",
         "Face is overexposed", "Face not overexposed", "max_face_bright_fraction", "at_most", needed=False),
    Rule("black_bars", "black_bar_fraction", "trace",
         "Frame has bars", "No bars", "max_black_bar_fraction", "at_most", needed=False),
    Rule("picture_poor", "face_brisque", "trace",
         "Image quality is poor", "Image quality good, where scored",
         "max_face_brisque", "at_most", needed=False),
    Rule("text_in_picture", "text_fraction", "trace",
         "Text in the frame", "Little text in the frame, where measured",
         "max_text_fraction", "at_most", needed=False),
    Rule("text_over_mouth", "mouth_text_fraction", "trace",
         "Text lies over the mouth", "No text over the mouth, where measured",
         "max_mouth_text_fraction", "at_most", needed=False),
    Rule("hand_over_mouth", "mouth_hand_fraction", "trace",
         "A hand lies over the mouth", "No hand over the mouth, where measured",
         "max_mouth_hand_fraction", "at_most", needed=False),
    Rule("nsfw", "nsfw_probability", "trace",
         "Sexual content in the frame", "No sexual content, where looked for",
         "max_nsfw_probability", "at_most", needed=False),
    Rule("noisy", "snr_db", "audio",
         "Speech is noisy", "Little noise, where measured", "min_snr_db", "at_least", needed=False),
    Rule("sound_poor", "dnsmos_overall", "audio",
         "Audio quality is poor", "Audio quality good, where scored",
         "min_dnsmos_overall", "at_least", needed=False),
    Rule("music", "music_fraction", "audio",
         "There is music", "Little music, where measured", "max_music_fraction", "at_most", needed=False),
    Rule("out_of_sync", "sync_offset_frames", "trace",
         "Audio and mouth are out of sync", "In sync, where the offset is known",
         "max_abs_sync_offset_frames", "at_most", needed=False, absolute=True,
         likely="sync_offset_probability"),
    Rule("sync_unlikely", "sync_probability", "trace",
         "Audio is unlikely to belong to the mouth", "Audio likely to belong to the mouth, where scored",
         "min_sync_probability", "at_least", needed=False),
    Rule("sync_lost", "sync_worst_probability", "trace",
         "For a while the voice is another's", "The voice belongs to the mouth throughout, where scored",
         "min_sync_worst_probability", "at_least", needed=False),
    Rule("sync_weak", "sync_confidence", "trace",
         "Sync evidence is weak", "Sync evidence strong, where scored",
         "min_sync_confidence", "at_least", needed=False),
    Rule("other_voice", "voice_similarity", "select",
         "Another voice than the face's usual one", "The face's usual voice, where it is known",
         "min_voice_similarity", "at_least", needed=False),
    Rule("mouth_idle", "speaking_fraction", "trace",
         "Face is not seen to speak", "Seen to speak, where measured",
         "min_speaking_fraction", "at_least", needed=False),
    Rule("sync_c_low", "sync_c", "trace",
         "Sync-C is low", "Sync-C high enough, where measured", "min_sync_c", "at_least", needed=False),
    Rule("speech_slow", "words_per_s", "transcribe",
         "Speech is slow", "Speech fast enough, where transcribed",
         "min_words_per_s", "at_least", needed=False),
    Rule("speech_fast", "words_per_s", "transcribe",
         "Speech is fast", "Speech slow enough, where transcribed",
         "max_words_per_s", "at_most", needed=False),
)  # fmt: skip
"""The rules with a threshold, in the order of the funnel: what is cheapest to measure comes first."""

NO_CONSENT = Rejection(
    "no_consent", "consent", "list", "No consent is stated", "With a consent, where one is required"
)
OTHER_LICENCE = Rejection(
    "other_licence", "licence", "list", "Not of a licence to keep", "Of a licence to keep"
)
TRAINING_RESERVED = Rejection(
    "training_reserved", "training_mining", "list",
    "Content credentials reserve training or data mining, or were not read",
    "Not reserved by its content credentials",
)  # fmt: skip
GOVERNANCE = (NO_CONSENT.code, OTHER_LICENCE.code, TRAINING_RESERVED.code)
"""Codes of what may not be used, however good it is: nobody's opinion of the clip overrides them."""

OUR_USES = ("ai_generative_training", "data_mining")
"""Uses of a file that making training data for a video model is. Source: CAWG Training and Data Mining
Assertion 1.1, by which `constrained` is `notAllowed` unless somebody knows more."""

NO = frozenset({
    "", "0", "denied", "false", "n", "no", "none", "not given", "pending", "refused", "revoked", "unknown",
    "withdrawn",
})  # fmt: skip
"""What a list says of a consent that there is not, in lower case."""

OTHER_LANGUAGE = Rejection(
    "other_language", "language_probability", "transcribe",
    "In another language", "In a language to keep, where transcribed",
)  # fmt: skip
FORBIDDEN_WORDS = Rejection(
    "forbidden_words", "num_forbidden_words", "transcribe",
    "A forbidden word is said", "Without forbidden words, where transcribed",
)  # fmt: skip
SYNC_UNSCORED = Rejection(
    "sync_unscored", "sync_offset_frames", "trace", "Sync could not be scored", "Sync scored"
)
NOT_SPEAKING = Rejection(
    "not_speaking", "sync_probability", "trace", "Another face in view speaks", "The one who speaks"
)
SPEAKER_UNCLEAR = Rejection(
    "speaker_unclear", "faces_frame_max", "scan",
    "Others are in view beside the crop, and sync does not show that this one speaks",
    "Nobody beside the crop, or shown to speak",
)  # fmt: skip
"""Given to a crop that leaves other people out. It must then be known who speaks: the crop of a listener
shows a single face, like that of a speaker."""
NOT_TRACED = Rejection(
    "not_traced", "lip_valid_fraction", "trace",
    "Not traced yet, which the next `talkforge curate` does", "Traced, or rejected before",
)  # fmt: skip
"""Given to a clip that the dense pass has left out, and that no rule rejects any more, see `is_open`."""
NEAR_DUPLICATE = Rejection(
    "near_duplicate", "duplicate_of", "select",
    "Shows the same moment as a better clip", "Not a copy of a better clip",
)  # fmt: skip
"""Given by the selection to a clip that passes every rule and repeats a better one, see
`curation.duplicates`."""

REVIEWED_DROP = Rejection(
    "reviewed_drop", "reviewed", "select", "Dropped by a reviewer", "Not dropped by a reviewer"
)
"""Given by the selection to a clip that a person has looked at and dropped, see `pipeline.review`."""

REJECTIONS: tuple[Rejection, ...] = (
    *RULES, NO_CONSENT, OTHER_LICENCE, TRAINING_RESERVED, OTHER_LANGUAGE, FORBIDDEN_WORDS, SYNC_UNSCORED,
    NOT_SPEAKING, SPEAKER_UNCLEAR, NOT_TRACED, NEAR_DUPLICATE, REVIEWED_DROP,
)  # fmt: skip
"""Every reason for a rejection, in the order of the funnel."""

BINDING = frozenset({*GOVERNANCE, FORBIDDEN_WORDS.code})
"""Codes of what the owner of the data set does not allow: a reviewer's `keep` does not overrule them."""

CODES: tuple[str, ...] = tuple(rejection.code for rejection in REJECTIONS)


_WITH_A_NUMBER = frozenset(rule.code for rule in RULES) | {NEAR_DUPLICATE.code}


def hangs_on_numbers(failure: str | None, stopped_by: str | None, reasons: Iterable[str]) -> bool:
    """Whether thresholds with a number decide on a clip: it was measured to the end, and is not rejected for
    anything else, such as its licence, another speaker, or a reviewer's `drop`.

    Args:
        failure: column of the ledger.
        stopped_by: likewise.
        reasons: likewise.
    """
    return failure is None and stopped_by is None and _WITH_A_NUMBER.issuperset(reasons)


def gate(duration_s: float, speech_fraction: float, face_px: float, config: MeasureConfig) -> str | None:
    """The code of the gate that ends the measuring of a clip before the dense pass, or None.

    Args:
        duration_s: length of the clip.
        speech_fraction: fraction of the clip with speech, 0..1.
        face_px: median height of the face in pixels of the clip as it is written.
        config: its `clip.min_s` and `gates` are the limits.
    """
    if duration_s < config.clip.min_s:
        return "too_short"
    if speech_fraction < config.gates.min_speech_fraction:
        return "no_speech"
    if face_px < config.gates.min_face_px:
        return "face_small"
    return None


def is_open(row: Mapping[str, Any], thresholds: Thresholds) -> bool:
    """Whether a clip that was not traced may still be accepted: no rule rejects it by what is known.

    Known is what costs little: probe, voice activity, sparse pass and, where it was measured, audio quality.

    Args:
        row: the clip's ledger row; columns that were not measured are missing or None.
        thresholds: limits of the rules.
    """
    return not any(_broken(rule, row, thresholds, NOT_TRACED.code) for rule in RULES if rule.stage in EARLY)


def repair_s(row: Mapping[str, Any], thresholds: Thresholds) -> float:
    """By how many seconds the audio of a clip is to be moved so that it fits the mouth; positive: delayed.

    Zero where `thresholds.repair_sync` is off, where the offset is within
    `thresholds.max_abs_sync_offset_frames` or that rule is off, and where the offset is not sure or drifts.

    Args:
        row: the clip's ledger row; the columns of the sync are read, and `fps`.
        thresholds: limits of the rules.
    """
    limit, frames = thresholds.max_abs_sync_offset_frames, row.get("sync_offset_frames")
    if not thresholds.repair_sync or limit is None or frames is None or abs(frames) <= limit:
        return 0.0
    probability, deviation = row.get("sync_offset_probability"), row.get("sync_offset_sd_frames")
    drift = abs(row.get("sync_drift_frames") or 0.0)
    sure = (
        probability is not None
        and probability >= REPAIR_FROM
        and deviation is not None
        and deviation <= REPAIR_SD_S * row["fps"]
        and drift <= REPAIR_DRIFT_S * row["fps"]
    )
    return float(frames / row["fps"]) if sure else 0.0


def judge(row: Mapping[str, Any], thresholds: Thresholds) -> Verdict:
    """The verdict on one clip, with all its reasons in the order of the funnel.

    Args:
        row: the clip's ledger row, from column name to value (None: not measured). Besides the columns of
            the rules, these are read: `clip_id`, `stopped_by` (the code of the gate that ended measuring, or
            "not_traced"),
            `active_speaker` (False where another face in view speaks), `crop_width_px`, `language`,
            `num_forbidden_words`, `audio_shift_s`, and `consent`, `licence` and `training_mining` (None: not
            joined from the input yet). A clip whose audio is moved is judged by what its sync is then: its
            offset is none, and its probability is `sync_offset_probability`.
        thresholds: limits of the rules. None switches a rule off.
    """
    row = _as_moved(row)
    least = thresholds.min_sync_probability
    if (row.get("sync_method") or "").startswith(BANDS_ONLY) and least is not None:
        thresholds = thresholds.model_copy(update={"min_sync_probability": max(least, BANDS_ONLY_FROM)})
    stopped = row.get("stopped_by")
    reasons = [reason for rule in RULES if (reason := _broken(rule, row, thresholds, stopped))]
    if stopped == NOT_TRACED.code:
        reasons += [] if reasons else [_reason(NOT_TRACED, row)]
    elif stopped and all(reason.code != stopped for reason in reasons):
        reasons.append(_reason(next(rule for rule in RULES if rule.code == stopped), row))
    reasons += _further_reasons(row, thresholds)
    return Verdict(clip_id=row["clip_id"], accepted=not reasons, reasons=tuple(reasons))


@dataclass(frozen=True)
class Reasons:
    """The reasons of many clips, in the order of the clips and, of each, of the funnel.

    Attributes:
        rows: int64 [R], number of the clip that each reason is of.
        codes: [R], code of each.
        details: [R], the same with measured value and threshold, for people.
    """

    rows: NDArray[np.int64]
    codes: list[str]
    details: list[str]

    def with_more(self, rows: Sequence[int], codes: Sequence[str], details: Sequence[str]) -> Reasons:
        """The same and further reasons, each the last of its clip."""
        if not len(rows):
            return self
        merged = np.append(self.rows, np.asarray(rows, np.int64))
        order = np.argsort(merged, kind="stable").tolist()
        codes, details = [*self.codes, *codes], [*self.details, *details]
        return Reasons(merged[order], [codes[i] for i in order], [details[i] for i in order])

    def without(self, rows: NDArray[np.int64]) -> Reasons:
        """The same without any reason of some clips."""
        if not len(rows):
            return self
        left = np.flatnonzero(~np.isin(self.rows, rows)).tolist()
        return Reasons(self.rows[left], [self.codes[i] for i in left], [self.details[i] for i in left])


def judge_columns(columns: Columns, thresholds: Thresholds) -> Reasons:
    """What `judge` says of many clips at once; a clip without a reason is accepted.

    Args:
        columns: those of the ledger that `judge` reads.
        thresholds: limits of the rules. None switches a rule off.
    """
    found: list[tuple[NDArray[np.int64], int, Sequence[str], Sequence[str]]] = []
    stopped = columns.where("stopped_by", bool)
    moved = np.nan_to_num(columns.floats("audio_shift_s")) != 0
    for order, rule in enumerate(RULES):
        broken, values = _broken_rows(rule, columns, thresholds, stopped, moved)
        rows = np.flatnonzero(broken)
        limits = _limits(rule, columns, thresholds)
        found.append((rows, order, *_told(rule, values[rows], None if limits is None else limits[rows])))
        # The code of the gate that ended measuring is always among the reasons.
        rows = np.flatnonzero(columns.where("stopped_by", partial(eq, rule.code)) & ~broken)
        found.append((rows, len(RULES), *_told(rule, values[rows], None)))
    unbroken = np.ones(columns.num_rows, bool)
    unbroken[np.concatenate([one[0] for one in found])] = False
    rows = np.flatnonzero(unbroken & columns.where("stopped_by", partial(eq, NOT_TRACED.code)))
    found.append((rows, len(RULES), *_told(NOT_TRACED, columns.floats(NOT_TRACED.field)[rows], None)))
    for order, further in enumerate(_further_columns(columns, thresholds, stopped, moved), len(RULES) + 1):
        found.append((further.rows, order, further.codes, further.details))
    rows = np.concatenate([one[0] for one in found])
    orders = np.concatenate([np.full(len(one[0]), one[1]) for one in found])
    by_row = np.lexsort((np.arange(len(rows)), orders, rows))
    flat_codes = [code for one in found for code in one[2]]
    flat_details = [detail for one in found for detail in one[3]]
    return Reasons(rows[by_row], [flat_codes[i] for i in by_row], [flat_details[i] for i in by_row])


def _further_columns(
    columns: Columns, thresholds: Thresholds, stopped: NDArray[np.bool_], moved: NDArray[np.bool_]
) -> Iterator[Reasons]:
    """What `_further_reasons` says of many clips, one kind of reason after the other in the same order."""
    for rejection, forbids in _governance(thresholds):
        values, numbers = columns.distinct(rejection.field)
        forbidden = np.array([*map(forbids, values), False], bool)  # the last one stands for none
        rows = np.flatnonzero(forbidden[numbers])
        details = [str(_stated(rejection, value)) for value in values]
        yield Reasons(rows, [rejection.code] * len(rows), [details[n] for n in numbers[rows].tolist()])

    def reasons(
        rejection: Rejection,
        broken: NDArray[np.bool_],
        values: str,
        limits: NDArray[np.float64] | None = None,
    ) -> Reasons:
        rows = np.flatnonzero(broken & ~stopped)
        limits = None if limits is None else limits[rows]
        return Reasons(rows, *_told(rejection, columns.floats(values)[rows], limits))

    if thresholds.languages:
        is_other = columns.where(
            "language", lambda said: said is not None and said not in thresholds.languages
        )
        yield reasons(OTHER_LANGUAGE, is_other, OTHER_LANGUAGE.field)
    forbidden_words = np.nan_to_num(columns.floats("num_forbidden_words")) != 0
    yield reasons(FORBIDDEN_WORDS, forbidden_words, FORBIDDEN_WORDS.field, np.zeros(columns.num_rows))
    if thresholds.require_sync_score:
        unscored = np.isnan(columns.floats("sync_offset_frames")) & ~moved
        yield reasons(SYNC_UNSCORED, unscored, SYNC_UNSCORED.field)
    if thresholds.require_speaker:
        listens = columns.where("active_speaker", lambda speaks: speaks is False)
        silent = columns.floats("speaking_fraction") <= SPEAKING_FRACTION
        by_network = replace(NOT_SPEAKING, field="speaking_fraction")
        yield reasons(by_network, listens & silent, by_network.field)
        yield reasons(NOT_SPEAKING, listens & ~silent & ~moved, NOT_SPEAKING.field)
        yield reasons(NOT_SPEAKING, listens & ~silent & moved, "sync_offset_probability")
        most = columns.floats("faces_max")
        beside = ~np.isnan(columns.floats("crop_width_px")) & (columns.floats("faces_frame_max") > most)
        unclear = columns.where("active_speaker", lambda speaks: speaks is None)
        yield reasons(SPEAKER_UNCLEAR, unclear & beside, SPEAKER_UNCLEAR.field, most)


def _broken_rows(
    rule: Rule,
    columns: Columns,
    thresholds: Thresholds,
    stopped: NDArray[np.bool_],
    moved: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which clips break a rule, and what was measured of each, NaN where nothing was."""
    values = columns.floats(rule.field)
    if rule.field == "sync_offset_frames":
        values = np.where(moved, 0.0, values)
    elif rule.field == "sync_probability":
        values = np.where(moved, columns.floats("sync_offset_probability"), values)
    threshold = _limits(rule, columns, thresholds)
    if threshold is None:
        return np.zeros(len(values), bool), values
    size, unknown = np.abs(values) if rule.absolute else values, np.isnan(values)
    fails = size < threshold if rule.side == "at_least" else size > threshold
    if rule.needed:
        fails = fails | (unknown & ~stopped)
    if rule.likely:
        fails = fails & ~(columns.floats(rule.likely) < LIKELY_FROM)
    return fails, values


def _limits(rule: Rule, columns: Columns, thresholds: Thresholds) -> NDArray[np.float64] | None:
    """Threshold of a rule for each clip; None where it is off."""
    threshold = getattr(thresholds, rule.threshold)
    if threshold is None:
        return None
    limits = np.full(columns.num_rows, threshold, np.float64)
    if rule.threshold == "min_sync_probability":
        of_bands = columns.where("sync_method", lambda method: (method or "").startswith(BANDS_ONLY))
        limits[of_bands] = max(threshold, BANDS_ONLY_FROM)
    return limits


def _told(
    rule: Rejection, values: NDArray[np.float64], thresholds: NDArray[np.float64] | None
) -> tuple[list[str], list[str]]:
    """Code and details of a rule for each of some clips that break it."""
    limits = [None] * len(values) if thresholds is None else thresholds.tolist()
    before = {limit: _around(rule, limit) for limit in set(limits)}
    shown = []
    for value, limit in zip(values.tolist(), limits, strict=True):
        first, last = before[limit]
        shown.append(f"{first}not measured{last}" if np.isnan(value) else f"{first}{value:.4g}{last}")
    return [rule.code] * len(values), shown


def _around(rule: Rejection, threshold: float | None) -> list[str]:
    """What a reason says before and after the measured value."""
    reason = Reason(code=rule.code, field=rule.field, value=None, threshold=threshold, found="{}")
    return str(reason).split("{}")


class Columns:
    """Columns of the ledger, as `judge_columns` reads them.

    Args:
        num_rows: how many clips there are.
        read: gives the values of a column by its name, None where there is none; raises KeyError for a column
            that there is not.
    """

    def __init__(self, num_rows: int, read: Callable[[str], list[Any]]) -> None:
        self.num_rows = num_rows
        self._read = read
        self._distinct: dict[str, tuple[list[Any], NDArray[np.int64]]] = {}

    def values(self, name: str) -> list[Any]:
        """Values of a column [n], None where there is none."""
        try:
            return self._read(name)
        except KeyError:
            return [None] * self.num_rows

    def distinct(self, name: str) -> tuple[list[Any], NDArray[np.int64]]:
        """The different values of a column, and the number [n] of each clip's among them; -1 for none."""
        if name not in self._distinct:
            self._distinct[name] = self._find_distinct(name)
        return self._distinct[name]

    def _find_distinct(self, name: str) -> tuple[list[Any], NDArray[np.int64]]:
        values = self.values(name)
        number_of = {value: n for n, value in enumerate(dict.fromkeys(v for v in values if v is not None))}
        return list(number_of), np.array([number_of.get(value, -1) for value in values], np.int64)

    def where(self, name: str, is_so: Callable[[Any], Any]) -> NDArray[np.bool_]:
        """Whether something is true of each clip's value of a column [n].

        Args:
            name: of the column.
            is_so: asked once for each different value, and for None.
        """
        values, numbers = self.distinct(name)
        return np.array([is_so(value) for value in (*values, None)], bool)[numbers]

    def forget(self, name: str) -> None:
        """Read a column again, because it has changed."""
        self._distinct.pop(name, None)

    def floats(self, name: str) -> NDArray[np.float64]:
        """The same as `values`, as float64 [n], NaN where there is none."""
        return np.array(self.values(name), np.float64)


def _broken(rule: Rule, row: Mapping[str, Any], thresholds: Thresholds, stopped: str | None) -> Reason | None:
    threshold = getattr(thresholds, rule.threshold)
    if threshold is None or not _likely(rule, row):
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


def _likely(rule: Rule, row: Mapping[str, Any]) -> bool:
    """Whether the rule's column means anything in this row."""
    probability = row.get(rule.likely) if rule.likely else None
    return probability is None or probability >= LIKELY_FROM


def _reason(
    rejection: Rejection, row: Mapping[str, Any], field: str | None = None, threshold: float | None = None
) -> Reason:
    """The reason with the value of the column `field` as evidence, by default the rejection's own column."""
    field = field or rejection.field
    return Reason(code=rejection.code, field=field, value=row.get(field), threshold=threshold)


def _as_moved(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the sync that it has once its audio is moved, where it is."""
    if not row.get("audio_shift_s"):
        return row
    then = {"sync_offset_frames": 0, "sync_probability": row["sync_offset_probability"]}
    return ChainMap(then, cast(dict[str, Any], row))


def _further_reasons(row: Mapping[str, Any], thresholds: Thresholds) -> list[Reason]:
    """Reasons that are no `Rule`."""
    reasons = []
    for rejection, forbids in _governance(thresholds):
        if (found := row.get(rejection.field)) is not None and forbids(found):
            reasons.append(_stated(rejection, found))
    if not row.get("stopped_by"):
        reasons += _transcript_reasons(row, thresholds)
        reasons += _sync_reasons(row, thresholds)
    return reasons


def _governance(thresholds: Thresholds) -> list[tuple[Rejection, Callable[[str], bool]]]:
    """Rejections by what the list of inputs says of the footage, and which words of it they are for.

    None is for clips that the list was not joined to yet.
    """
    kept = [pattern.strip().lower() for pattern in thresholds.licences]

    def is_other(licence: str) -> bool:
        said = licence.strip().lower()
        return not said or not any(fnmatchcase(said, pattern) for pattern in kept)

    found: list[tuple[Rejection, Callable[[str], bool]]] = []
    if thresholds.require_consent:
        found.append((NO_CONSENT, lambda consent: consent.strip().lower() in NO))
    if kept:
        found.append((OTHER_LICENCE, is_other))
    if thresholds.respect_reservations:
        found.append((TRAINING_RESERVED, reserves))
    return found


def reserves(said: str) -> bool:
    """Whether content credentials reserve a use of ours, or were not read.

    Args:
        said: value of the ledger's `training_mining`.
    """
    if said in (REMOTE, UNREADABLE, UNREAD):
        return True
    answers = dict(one.split("=") for one in said.split())
    return any(answers.get(use, "allowed") != "allowed" for use in OUR_USES)


def _stated(rejection: Rejection, found: str) -> Reason:
    found = found or "none"
    return Reason(code=rejection.code, field=rejection.field, value=None, threshold=None, found=found)


def _transcript_reasons(row: Mapping[str, Any], thresholds: Thresholds) -> list[Reason]:
    """Reasons from the transcript. A clip without one, or without speech, has no language and passes."""
    reasons = []
    language = row.get("language")
    if thresholds.languages and language is not None and language not in thresholds.languages:
        reasons.append(_reason(OTHER_LANGUAGE, row))
    if row.get("num_forbidden_words"):
        reasons.append(_reason(FORBIDDEN_WORDS, row, threshold=0))
    return reasons


def _sync_reasons(row: Mapping[str, Any], thresholds: Thresholds) -> list[Reason]:
    reasons = []
    if thresholds.require_sync_score and row.get("sync_offset_frames") is None:
        reasons.append(_reason(SYNC_UNSCORED, row))
    if thresholds.require_speaker and row.get("active_speaker") is False:
        # The evidence is the network's where it saw no speech, else that of the sync at zero lag.
        speaking = row.get("speaking_fraction")
        silent = speaking is not None and speaking <= SPEAKING_FRACTION
        reasons.append(_reason(NOT_SPEAKING, row, "speaking_fraction" if silent else None))
    if thresholds.require_speaker and row.get("active_speaker") is None and _others_beside(row):
        reasons.append(_reason(SPEAKER_UNCLEAR, row, threshold=float(row["faces_max"])))
    return reasons


def _others_beside(row: Mapping[str, Any]) -> bool:
    """Whether the crop leaves out a face that is in the frame."""
    return row.get("crop_width_px") is not None and (row.get("faces_frame_max") or 0) > row["faces_max"]
