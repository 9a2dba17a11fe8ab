"""What a report says first, and the thresholds that would keep some clips where none is accepted."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd
import pytest

from talkforge.pipeline.report.statistics import statistics
from talkforge.schemas.config import Config, apply_settings
from tests.pipeline.test_ledger import committed, measured
from tests.pipeline.test_report import clip, dataset, source
from tests.pipeline.test_what_if import chosen, frame_of

V = [f"{n:012x}" for n in range(4)]
FINE = {"snr_db": 20.0, "sync_probability": 0.9, "licence": "CC0", "consent": "signed"}


def told(rows: list[dict[str, Any]], config: Config | None = None, failed: int = 0) -> dict[str, str]:
    """Code -> text of the alerts of a ledger."""
    sources = [source(f"/in/{video}.mp4", video, "measured", 60.0) for video in V]
    sources += [source(f"/in/{n}", None, "failed", 0.0) for n in range(failed)]
    found = statistics(pd.DataFrame(rows), pd.DataFrame(sources), pd.DataFrame(), dataset(config))
    return {alert["code"]: alert["text"] for alert in found["alerts"] if alert["code"] != "unmeasured"}


def test_a_balanced_set_has_no_alert() -> None:
    rows = [
        clip(f"c{n}", V[n], 5.0, person_id=f"p{n}", split=["train", "validation"][n % 2], **FINE)
        for n in range(4)
    ]
    assert told(rows) == {}


def test_one_person_and_one_source_that_give_most_are_named() -> None:
    seconds = [14.0, 3.0, 3.0]
    rows = [clip(f"c{n}", V[n], seconds[n], person_id=f"p{n}", **FINE) for n in range(3)]
    rows[1]["split"] = "validation"
    assert told(rows) == {
        "one_person": "One person gives 70 % of the kept hours: p0.",
        "one_source": f"One source gives 70 % of the kept hours: /in/{V[0]}.mp4.",
    }


def test_what_is_missing_or_costly_is_told() -> None:
    rows = [clip(f"c{n}", V[n], 5.0, **FINE) for n in range(4)]
    rows += [clip(f"r{n}", V[n], 20.0, ("face_small",), **FINE) for n in range(2)]
    rows += [clip("w", V[0], 1.0, ("not_traced",), stopped_by="not_traced", **FINE)]
    rows[0]["licence"] = ""
    assert told(rows, failed=1) == {
        "no_validation": "No validation clip: nothing falls into shards.validation_fraction=0.02.",
        "costly_rule": "face_small alone costs 40.0 s of 61.0 s of candidate clips.",
        "untraced": "Clips that wait to be traced by the next talkforge curate: 1.",
        "many_sources_failed": "1 of 5 inputs failed.",
        "no_licence": "1 of 4 accepted clips come without a stated licence.",
    }
    assert "no_validation" not in told(rows, apply_settings({}, ["shards.validation_fraction=0"]))


def test_rules_that_accepted_clips_pass_unmeasured_are_told_together() -> None:
    rows = [clip(f"c{n}", V[n % 4], 5.0, person_id=f"p{n}", **FINE) for n in range(8)]
    for n in range(6):
        rows[n]["snr_db"] = None
    off = [f"thresholds.{name}=null" for name in (
        "max_mouth_covered_fraction", "max_frozen_fraction", "max_mouth_still_fraction", "min_face_detail_px",
        "max_black_bar_fraction", "max_mouth_text_fraction", "max_mouth_hand_fraction", "max_music_fraction",
        "min_sync_worst_probability",
    )]  # fmt: skip
    sources = pd.DataFrame([source(f"/in/{video}.mp4", video, "measured", 60.0) for video in V])
    found = statistics(pd.DataFrame(rows), sources, pd.DataFrame(), dataset(apply_settings({}, off)))
    assert [alert["text"] for alert in found["alerts"] if alert["code"] == "unmeasured"] == [
        "6 of 8 accepted clips have no snr_db, and pass noisy unseen."
    ]
    rows[6]["snr_db"] = rows[7]["snr_db"] = None
    for row in rows:
        row["sync_probability"] = row["sync_offset_frames"] = None
    found = statistics(pd.DataFrame(rows), sources, pd.DataFrame(), dataset(apply_settings({}, off)))
    assert [alert["text"] for alert in found["alerts"] if alert["code"] == "unmeasured"] == [
        "8 of 8 accepted clips have no snr_db, sync_offset_frames or sync_probability, and pass noisy, "
        "out_of_sync or sync_unlikely unseen."
    ]


def ways(selection: Any, config: Config) -> list[dict[str, Any]]:
    frame = frame_of(selection)
    sources = pd.DataFrame([source("", video, "measured", 60.0) for video in frame["video_id"].unique()])
    found: list[dict[str, Any]] = statistics(frame, sources, pd.DataFrame(), dataset(config))["nearest"]
    return found


def test_the_nearest_thresholds_keep_what_they_promise() -> None:
    """Twelve small faces, four of which are turned as well: `select` with the command keeps as many."""
    config = Config()
    parts = committed(
        *(measured(n, face_px=60.0 + n) for n in range(1, 9)),
        *(measured(n, face_px=120.0, yaw_p95_deg=70.0) for n in range(9, 13)),
    )
    selection = chosen(parts, config, {})
    assert selection.totals.accepted == 0
    (way,) = ways(selection, config)
    assert way["settings"] == [{"name": "min_face_px", "now": 128.0, "then": 65.0}]
    assert (way["clips"], way["command"]) == (4, "talkforge select DATASET -s thresholds.min_face_px=65")
    settings = [word for word in shlex.split(way["command"])[3:] if word != "-s"]
    then = chosen(parts, apply_settings(config.model_dump(mode="json"), settings), {})
    assert then.totals.accepted == 4
    assert ways(then, config) == []


def test_where_every_clip_breaks_two_rules_both_are_moved() -> None:
    config = Config()
    parts = committed(*(measured(n, face_px=100.0 + n, yaw_p95_deg=60.0 + n) for n in range(1, 5)))
    (way,) = ways(chosen(parts, config, {}), config)
    names = {one["name"]: one["then"] for one in way["settings"]}
    assert set(names) == {"min_face_px", "max_yaw_p95_deg"} and way["clips"] >= 2
    settings = [word for word in shlex.split(way["command"])[3:] if word != "-s"]
    then = chosen(parts, apply_settings(config.model_dump(mode="json"), settings), {})
    assert then.totals.accepted == way["clips"]


@pytest.mark.parametrize("rows", [[], [clip("c", V[0], 5.0, accepted=False, failure="E: m", split=None)]])
def test_without_a_clip_to_loosen_for_nothing_is_proposed(rows: list[dict[str, Any]]) -> None:
    sources = pd.DataFrame([source(f"/in/{V[0]}.mp4", V[0], "measured", 60.0)])
    found = statistics(pd.DataFrame(rows), sources, pd.DataFrame(), dataset())
    assert found["nearest"] == []
    assert found["alerts"][0]["code"] == "nothing_accepted"
