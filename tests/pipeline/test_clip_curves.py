"""Curves of single clips: what the parts keep, drawn to where the measured numbers say."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline import clip_curves, small_arrays
from talkforge.pipeline.clip_curves import read_curves
from talkforge.pipeline.ledger import parts_of_clips
from talkforge.pipeline.store import Store
from tests.conftest import Curated


def test_curves_are_those_of_the_parts_and_peak_at_the_measured_offset(measured: Curated) -> None:
    store = Store(str(measured.dataset))
    rows = pq.read_table(measured.dataset / "ledger.parquet").to_pylist()
    found = read_curves(store, {row["clip_id"]: row["fps"] for row in rows})
    traced = [row for row in rows if row["sync_method"]]
    assert set(found) == {row["clip_id"] for row in traced} and traced
    part_of = parts_of_clips(store)
    for row in traced:
        one = found[row["clip_id"]]
        arrays = small_arrays.read(store, f"parts/{part_of[row['clip_id']]}", ("mouth", "bands"))[
            row["clip_id"]
        ]
        opening = np.array(one["opening"], np.float64)
        assert opening == pytest.approx(arrays["mouth"][:, 0], abs=5e-4, nan_ok=True)
        assert len(one["loudness"]) == row["num_frames"]
        assert max(one["loudness"]) == 0.0 and min(one["loudness"]) >= -60.0
        loud = np.exp(arrays["bands"].astype(np.float64)).sum(axis=1)
        assert int(np.argmax(one["loudness"])) == int(loud.argmax())
        if row["sync_confidence"] is not None:
            at = one["lags_s"].index(round(row["sync_offset_frames"] / row["fps"], 3))
            assert one["sync"][at] == pytest.approx(row["sync_confidence"], abs=0.02)


def test_curves_are_of_the_first_clips_asked_for(measured: Curated, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(measured.dataset))
    rows = pq.read_table(measured.dataset / "ledger.parquet").to_pylist()
    traced = [row["clip_id"] for row in rows if row["sync_method"]]
    monkeypatch.setattr(clip_curves, "MOST", 1)
    assert list(read_curves(store, {"nowhere": 25.0, **dict.fromkeys(traced, 25.0)})) == traced[:1]
