"""Curves of single clips for the report: mouth opening, loudness, sync by lag, from what the parts keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from talkforge.curation.sync.contrastive import BANDS_ONLY_PATH, LAGS, Scorer
from talkforge.curation.sync.features import SYNC_HZ
from talkforge.pipeline import small_arrays
from talkforge.pipeline.ledger import parts_of_clips
from talkforge.pipeline.store import Store

QUIET_DB = -60.0
"""Bottom of the loudness curve, relative to the loudest frame."""

MOST = 96
"""Most clips with curves. Sync by lag takes 15 CPU ms for a clip of 5 s."""


def read_curves(
    store: Store, fps_of: Mapping[str, float], part_of: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The curves of clips that were traced, by id, for JSON; at most `MOST` of them.

    Args:
        store: the data set.
        fps_of: the clips by id, most wanted first, with the frame rate of each.
        part_of: answer of `parts_of_clips`, where it is known already; None looks.

    Returns:
        `fps`; `opening` [F], gap of the lips over the distance of the eyes, None without a face; `loudness`
        [F], dB relative to the loudest frame; `lags_s` and `sync` [31], similarity of mouth and audio at each
        delay of the audio in standard deviations of what is out of sync, empty where it cannot be told. All
        are of the span that was measured.

    Raises:
        DatasetError: a file of a part is missing or damaged; names it.
    """
    part_of = parts_of_clips(store) if part_of is None else part_of
    wanted: dict[str, list[str]] = {}
    for clip_id in [key for key in fps_of if key in part_of]:
        wanted.setdefault(part_of[clip_id], []).append(clip_id)
    found: dict[str, dict[str, Any]] = {}
    scorers: dict[bool, Scorer] = {}
    for part, keys in wanted.items():
        stored = small_arrays.read(store, f"parts/{part}", (small_arrays.OPENING, *small_arrays.SCORED))
        for key in [key for key in keys if "bands" in stored.get(key, {})]:
            if len(found) == MOST:
                return found
            arrays = stored[key]
            has_phones = "phones" in arrays
            if has_phones not in scorers:
                scorers[has_phones] = Scorer.load() if has_phones else Scorer.load(BANDS_ONLY_PATH)
            found[key] = _curves(arrays, fps_of[key], scorers[has_phones])
    return found


def _curves(arrays: Mapping[str, NDArray[Any]], fps: float, scorer: Scorer) -> dict[str, Any]:
    power = np.logaddexp.reduce(np.asarray(arrays["bands"], np.float64), axis=1)
    loudness_db = (power - power.max(initial=-np.inf)) * (10 / math.log(10))
    with threadpool_limits(1):  # on a busy machine threads that wait cost twenty times what they save
        evidence = scorer.evidence(arrays["mouth"], arrays["bands"], fps, arrays.get("phones"))
    sync: Any = [] if evidence is None else evidence.by_lag / max(evidence.deviation, 1e-9)
    return {
        "fps": fps,
        "opening": _rounded(arrays["mouth"][:, 0], 3),
        "loudness": _rounded(np.maximum(loudness_db, QUIET_DB), 1),
        "lags_s": _rounded(LAGS / SYNC_HZ, 3),
        "sync": _rounded(sync, 2),
    }


def _rounded(values: Sequence[float] | NDArray[Any], digits: int) -> list[float | None]:
    plain = np.asarray(values, np.float64).round(digits).tolist()
    return [value if math.isfinite(value) else None for value in plain]
