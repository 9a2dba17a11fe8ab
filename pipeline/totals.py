"""How much there is and how much was kept: the one place that counts.

`status`, `select`, `curate` and the report take their hours and counts from `count`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from talkforge.schemas.records import LedgerRow, SourceStatus

STATUSES: tuple[SourceStatus, ...] = ("measured", "no_candidates", "pending", "duplicate", "failed")
"""What can become of an input."""

UNTRACED = "not_traced"
"""Code of `curation.verdict.NOT_TRACED`, which takes long to import."""


@dataclass(frozen=True)
class Totals:
    """The figures of a data set.

    Attributes:
        inputs: number of inputs by status; every status is there.
        input_s: footage in all inputs, s; 0 for those that cannot be read.
        accepted, rejected, failed: candidate clips.
        kept_s: accepted clips, s.
        reasons: rejected clips by reason; a clip counts for each of its reasons.
        untraced: rejected clips that may be accepted once they are traced, see `pipeline.untraced`.
        untraced_s: these clips, s.
    """

    inputs: Mapping[SourceStatus, int]
    input_s: float
    accepted: int
    rejected: int
    failed: int
    kept_s: float
    reasons: Mapping[str, int] = field(default_factory=dict)
    untraced: int = 0
    untraced_s: float = 0.0

    @property
    def candidates(self) -> int:
        return self.accepted + self.rejected + self.failed


@dataclass(frozen=True)
class ClipStatus:
    """What `count` needs to know of a candidate clip; a `LedgerRow` says it, too."""

    accepted: bool
    failure: str | None
    duration_s: float
    reasons: Sequence[str] = ()


def count(inputs: Iterable[tuple[SourceStatus, float]], clips: Iterable[ClipStatus | LedgerRow]) -> Totals:
    """The figures of a data set.

    Args:
        inputs: status and length in seconds of each.
        clips: every candidate clip.
    """
    inputs, clips = list(inputs), list(clips)
    by_status = Counter(status for status, _ in inputs)
    rejected = [clip for clip in clips if not clip.accepted and clip.failure is None]
    untraced = [clip for clip in rejected if UNTRACED in clip.reasons]
    return Totals(
        inputs={status: by_status[status] for status in STATUSES},
        input_s=sum(duration_s for _, duration_s in inputs),
        accepted=sum(clip.accepted for clip in clips),
        rejected=len(rejected),
        failed=sum(clip.failure is not None for clip in clips),
        kept_s=sum(clip.duration_s for clip in clips if clip.accepted),
        untraced=len(untraced),
        untraced_s=sum(clip.duration_s for clip in untraced),
        reasons=dict(Counter(code for clip in rejected for code in clip.reasons)),
    )
