"""The page `report/against.html`: a data set beside another one, or beside an earlier state of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from talkforge.curation.verdict import REJECTIONS
from talkforge.pipeline.report.charts import histogram_svg
from talkforge.pipeline.report.pages import environment
from talkforge.pipeline.report.quantities import MEASURES, histogram
from talkforge.schemas.config import Config

MEANINGS = {rejection.code: rejection.meaning for rejection in REJECTIONS}


def against_page(found: Mapping[str, Any], before: pd.DataFrame, after: pd.DataFrame, config: Config) -> str:
    """The page; the same arguments give the same one. It runs no script, and names no clip.

    Args:
        found: answer of `compare.compare`.
        before: clips of the one that is compared with, as `clips_table` gives them.
        after: those of the data set.
        config: of the data set; its thresholds are marked.
    """
    changes = {key: _by_reason(found[key]) for key in ("came", "went")}
    charts = [chart for measure in MEASURES if (chart := _pair(measure, before, after, config))]
    template = environment().get_template("against.html.j2")
    return template.render(d=found, changes=changes, charts=charts, meanings=MEANINGS)


def _by_reason(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Clips and hours of each reason, the longest first."""
    lengths: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        lengths[row["why"]].append(row["duration_s"])
    found = [{"why": why, "clips": len(s), "hours": sum(s) / 3600} for why, s in lengths.items()]
    return sorted(found, key=lambda row: (-row["hours"], row["why"]))


def _pair(measure: Any, before: pd.DataFrame, after: pd.DataFrame, config: Config) -> dict[str, Any] | None:
    """Two histograms of the accepted clips with one scale; None where neither was measured."""
    names = list(dict.fromkeys([measure.field, "duration_s"]))
    sides = [side.loc[side["accepted"], names].assign(accepted=side is after) for side in (before, after)]
    both = histogram(measure, pd.concat(sides, ignore_index=True), config)
    if both is None:
        return None
    nothing = [0.0] * len(both["accepted_s"])
    top_s = max([*both["accepted_s"], *both["not_accepted_s"]])
    drawn = [
        Markup(histogram_svg({**both, "accepted_s": heights, "not_accepted_s": nothing}, top_s))
        for heights in (both["not_accepted_s"], both["accepted_s"])
    ]
    return {"field": both["field"], "label": both["label"], "drawn": drawn}
