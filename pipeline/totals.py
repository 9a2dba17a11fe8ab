"""How much there is and how much was kept: the one place that counts.

`status`, `select`, `curate` and the report take their hours and counts from `count`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from talkforge.schemas.records import SourceStatus

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


def count(inputs: pa.Table, clips: pa.Table) -> Totals:
    """The figures of a data set.

    Args:
        inputs: the columns `status` and `duration_s` of every input.
        clips: the columns `accepted`, `failure`, `duration_s` and `reasons` of every candidate clip.
    """
    by_status = Counter(inputs.column("status").to_pylist())
    accepted, failed = clips.column("accepted"), clips.column("failure").is_valid()
    rejected = pc.and_(pc.invert(accepted), pc.invert(failed))
    reasons = clips.column("reasons").filter(rejected)
    flat = pc.list_flatten(reasons)
    # To compare with a Python value pyarrow imports pandas, which a status needs for nothing else.
    is_untraced = pc.match_substring_regex(flat, f"^{UNTRACED}$")
    waiting = pc.list_parent_indices(reasons).filter(is_untraced)
    durations = clips.column("duration_s")
    return Totals(
        inputs={status: by_status[status] for status in STATUSES},
        input_s=float(sum(inputs.column("duration_s").to_pylist())),
        accepted=_number(accepted),
        rejected=_number(rejected),
        failed=_number(failed),
        kept_s=float(sum(durations.filter(accepted).to_pylist())),
        untraced=len(waiting),
        untraced_s=float(sum(durations.filter(rejected).take(waiting).to_pylist())),
        reasons={row["values"]: row["counts"] for row in flat.value_counts().to_pylist()},
    )


def _number(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
