"""Distributions weighted by length, and the ledger as a frame for a million clips."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from talkforge.pipeline import tables
from talkforge.pipeline.report.quantities import Measure, histogram, weighted_median
from talkforge.pipeline.report.statistics import clips_table, frame_of, statistics
from talkforge.schemas.config import Config
from talkforge.schemas.records import LedgerRow
from tests.pipeline.test_report import clip, dataset, source
from tests.pipeline.test_what_if import chosen, clips, ledger_of


def test_bars_add_up_the_lengths_of_their_clips() -> None:
    rows = [clip(f"c{n}", "a" * 12, seconds, face_px=height) for n, (seconds, height) in enumerate(
        [(1.0, 100.0), (2.0, 100.0), (4.0, 300.0), (8.0, 300.0)]
    )]  # fmt: skip
    rows[3] |= {"accepted": False, "reasons": ["face_small"]}
    found = histogram(Measure("face_px", "Height"), clips_table(pd.DataFrame(rows)), Config())
    assert found is not None
    assert (found["accepted_s"][0], found["accepted_s"][-1]) == (3.0, 4.0)
    assert (sum(found["accepted_s"]), sum(found["not_accepted_s"])) == (7.0, 8.0)
    assert found["not_accepted_s"][-1] == 8.0
    assert found["median_of_accepted_s"] == 300.0, "four of seven seconds"


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([3, 1, 2], [1, 1, 1], 2),
        ([3, 1, 2], [1, 5, 1], 1),
        ([1, 2], [1, 1], 1),
        ([], [], None),
        ([1], [0], None),
    ],
)
def test_half_of_the_weight_lies_up_to_the_median(
    values: list[float], weights: list[float], expected: float | None
) -> None:
    assert weighted_median(np.array(values, float), np.array(weights, float)) == expected


def test_a_frame_with_shared_objects_gives_the_numbers_of_a_plain_one() -> None:
    table = ledger_of(chosen(clips(3), Config(), {}))
    shared, plain = frame_of(table), table.to_pandas()
    assert shared["reasons"].map(len).gt(1).any() and shared["failure"].isna().any()
    same = {id(codes) for codes in shared["reasons"]}
    assert len(same) == shared["reasons"].nunique() < len(shared) / 3
    inputs = pd.DataFrame([source("", video, "measured", 60.0) for video in plain["video_id"].unique()])
    numbers = [statistics(frame, inputs, pd.DataFrame(), dataset()) for frame in (shared, plain)]
    assert numbers[0] == numbers[1]
    details = [clips_table(frame)["reason_details"] for frame in (shared, plain)]
    assert [list(one) for one in details[0]] == [list(one) for one in details[1]]


def test_an_empty_ledger_is_an_empty_frame() -> None:
    table = tables.to_table(LedgerRow, [])
    assert isinstance(table, pa.Table) and len(frame_of(table)) == 0
    assert list(frame_of(table).columns) == table.column_names
