"""The page `report/what_if.html`: all thresholds at once, and what would be kept, while they are moved.

It holds the judged values of every clip that thresholds decide on, so that the browser applies the rules as
`talkforge select` does, near duplicates too, and comes to the same numbers. One file, which opens without a
network and runs no script but its own.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from talkforge.curation.verdict import NEAR_DUPLICATE, RULES, Rule
from talkforge.pipeline.report.clips import MOST_CLIPS
from talkforge.pipeline.report.pages import packed, page
from talkforge.pipeline.report.quantities import carries, compared, decided_by_thresholds, drawn, threshold_of
from talkforge.schemas.config import Config, Thresholds

Repeats = Sequence[tuple[str, str]]
"""(clip, clip that repeats it) of near duplicates, the better one first, see `all_repeats`."""


def what_if_page(clips: pd.DataFrame, config: Config, repeats: Repeats | None) -> str:
    """The page; the same arguments give the same text.

    Args:
        clips: answer of `clips_table`.
        config: of the last selection.
        repeats: near duplicates among the clips that thresholds decide on. None: too many clips to know; near
            duplicates then stay what they are, and of more than `MOST_CLIPS` clips the page holds as many and
            estimates.
    """
    return page("what_if.html.j2", ["common.js", "what_if.js"], document(clips, config, repeats))


def document(clips: pd.DataFrame, config: Config, repeats: Repeats | None) -> dict[str, Any]:
    """What the page knows, for JSON."""
    is_open, most = decided_by_thresholds(clips), len(clips)
    if repeats is None:
        is_open &= ~carries(clips["reasons"], NEAR_DUPLICATE.code)
        most = MOST_CLIPS
    open_ = drawn(clips[is_open], most)
    rules = [rule for rule in RULES if _is_offered(rule, open_, config)]
    columns = [
        open_["duration_s"],
        *(_numbered(open_[name]) for name in ("video_id", "person_id", "language")),
        *(compared(rule, open_) for rule in rules),
    ]
    table = np.stack([np.asarray(column, "<f8") for column in columns])
    place = {key: n for n, key in enumerate(open_["clip_id"])}
    return {
        "num_clips": len(open_),
        "of": int(is_open.sum()),
        "num_fixed": len(clips) - int(is_open.sum()),
        "knows_repeats": repeats is not None,
        # One column after the other: duration, source, person, language, then those of the rules.
        "table": packed(table.tobytes()),
        "rules": [
            _described(rule, values, config)
            for rule, values in zip(rules, table[len(columns) - len(rules) :], strict=True)
        ],
        "kept": np.flatnonzero(open_["reviewed"].eq("keep")).tolist(),
        "repeats": [[place[a], place[b]] for a, b in repeats or () if a in place and b in place]
        if config.thresholds.near_duplicates
        else [],
        "config": {
            "thresholds": config.thresholds.model_dump(mode="json"),
            "shards": config.shards.model_dump(mode="json"),
        },
    }


def _is_offered(rule: Rule, clips: pd.DataFrame, config: Config) -> bool:
    """Whether the page can move a threshold. Where audio is moved, its offsets hang on the threshold."""
    if rule.field == "sync_offset_frames" and config.thresholds.repair_sync:
        return False
    is_on = getattr(config.thresholds, rule.threshold) is not None
    return bool(is_on or compared(rule, clips).notna().any())


def _numbered(names: pd.Series) -> pd.Series:
    """Each name as a number from 0; NaN where there is none."""
    codes, _ = pd.factorize(names, sort=True)
    return pd.Series(codes, names.index, dtype=float).where(codes >= 0)


def _described(rule: Rule, values: Any, config: Config) -> dict[str, Any]:
    about = threshold_of(rule, config)
    known = values[np.isfinite(values)]
    ends = [*known[[known.argmin(), known.argmax()]]] if len(known) else []
    if about["threshold"] is not None:
        ends.append(about["threshold"])
    return {
        "code": rule.code,
        "meaning": rule.meaning,
        "name": rule.threshold,
        "description": about["description"],
        "unit": about["unit"],
        "at_least": rule.side == "at_least",
        "needed": rule.needed,
        "threshold": about["threshold"],
        "whole": int in typing.get_args(Thresholds.model_fields[rule.threshold].annotation),
        "low": float(min(ends)),
        "high": float(max(ends)),
    }
