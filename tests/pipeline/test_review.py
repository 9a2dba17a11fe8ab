"""What people said of clips: written whole, taken into account by the selection, and lost by nothing."""

from __future__ import annotations

import json
from typing import Any

import filelock
import pytest

from talkforge.pipeline import jobs, review, snapshots, tables
from talkforge.pipeline.dataset import LOCK, load_dataset, load_ingested
from talkforge.pipeline.ledger import select
from talkforge.pipeline.repair import repair
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import Config, apply_settings
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.records import LedgerRow, Reason, ReviewRow, Verdict
from tests.conftest import Curated, kill_at
from tests.pipeline.test_ledger import committed, measured, planned


def rows(store: Store) -> dict[str, dict[str, Any]]:
    table = tables.from_bytes(store.read("ledger.parquet"), "ledger.parquet")
    return {row["clip_id"]: row for row in table.to_pylist()}


def verdict(*codes: str) -> Verdict:
    reasons = tuple(Reason(code=code, field="f", value=1.0, threshold=2.0) for code in codes)
    return Verdict(clip_id="c", accepted=not codes, reasons=reasons)


@pytest.mark.parametrize(
    ("decision", "codes", "is_traced", "left", "columns"),
    [
        (None, ("noisy",), True, ["noisy"], {}),
        ("none", ("noisy",), True, ["noisy"], {}),
        ("none", (), True, [], {}),
        ("keep", ("noisy", "music"), True, [], {"reviewed": "keep", "overruled": ("noisy", "music")}),
        ("keep", (), True, [], {"reviewed": "keep", "overruled": ()}),
        ("keep", ("no_speech",), False, ["no_speech"], {"reviewed": "keep"}),
        (
            "keep", ("noisy", "no_consent", "other_licence", "forbidden_words"), True,
            ["no_consent", "other_licence", "forbidden_words"], {"reviewed": "keep", "overruled": ("noisy",)},
        ),
        ("drop", (), True, ["reviewed_drop"], {"reviewed": "drop"}),
        ("drop", ("noisy",), False, ["noisy", "reviewed_drop"], {"reviewed": "drop"}),
    ],
)  # fmt: skip
def test_a_decision_stands_above_the_rules(
    decision: Any, codes: tuple[str, ...], is_traced: bool, left: list[str], columns: dict[str, Any]
) -> None:
    row = None if decision is None else ReviewRow(clip_id="c", decision=decision)
    found, named = review.decide(verdict(*codes), row, is_traced)
    assert [reason.code for reason in found.reasons] == left
    assert (found.accepted, named) == (not left, columns)


def selected(*clips: Any, decisions: dict[int, Any], **thresholds: Any) -> list[LedgerRow]:
    found = committed(*clips)
    settings = [f"thresholds.{name}={value}" for name, value in thresholds.items()]
    config = apply_settings(Config().model_dump(mode="json"), settings)
    keys = found.clips.column("clip_id").to_pylist()
    said = {keys[n]: ReviewRow(clip_id=keys[n], decision=what) for n, what in decisions.items()}
    ingested = [planned(number) for number in (1, 2)]
    return list(select(found, ingested, config, said).rows)


def test_the_ledger_names_decisions_and_what_they_overrule() -> None:
    turned = {"yaw_p95_deg": 80.0}
    kept, dropped, left = selected(
        measured(start_s=0, **turned), measured(start_s=10), measured(start_s=20, **turned),
        decisions={0: "keep", 1: "drop"},
    )  # fmt: skip
    assert (kept.accepted, kept.reasons, kept.reviewed, kept.overruled) == (
        True,
        (),
        "keep",
        ("face_turned",),
    )
    assert (dropped.accepted, dropped.reasons, dropped.reviewed) == (False, ("reviewed_drop",), "drop")
    assert dropped.reason_details == ("reviewed_drop (reviewed not measured)",)
    assert dropped.split is None and kept.split is not None
    assert (left.reasons, left.reviewed, left.overruled) == (("face_turned",), None, ())


def test_a_dropped_clip_makes_room_for_its_copy_and_a_kept_copy_stays() -> None:
    first, second = measured(1, heard=1), measured(2, heard=1)
    assert [row.accepted for row in selected(first, second, decisions={})] == [True, False]
    assert [row.accepted for row in selected(first, second, decisions={0: "drop"})] == [False, True]
    assert [row.accepted for row in selected(first, second, decisions={1: "keep"})] == [True, True]


def test_a_veto_is_saved_selected_and_taken_back(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    key, other = (key for key, row in rows(store).items() if row["accepted"])
    saved = review.save(store, ReviewRow(clip_id=key, decision="drop", note="<b>no</b>"))
    assert saved.reviewed_at.endswith("+00:00") and saved.tool_version
    review.save(store, ReviewRow(clip_id=other, label="bad", reason="frozen"))
    assert [row.clip_id for row in review.read(store).values()] == sorted([key, other])
    assert review.read(store)[key] == saved
    assert review.waiting(store) == 1

    reselect(store)
    found = rows(store)
    assert (found[key]["accepted"], found[key]["reasons"]) == (False, ["reviewed_drop"])
    assert found[other]["accepted"]  # a label decides nothing
    assert review.waiting(store) == 0

    review.save(store, saved.model_copy(update={"decision": "none"}))
    assert review.waiting(store) == 1
    reselect(store)
    assert rows(store)[key]["accepted"] and rows(store)[key]["reviewed"] is None


def reselect(store: Store) -> None:
    jobs.select(store, load_dataset(store), load_ingested(store))


def test_a_run_at_work_or_an_unfinished_erasure_refuses(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    with (
        filelock.FileLock(curated.dataset / LOCK),
        pytest.raises(CommandError, match="another run is at work"),
    ):
        review.save(store, ReviewRow(clip_id="c", decision="keep"))
    store.write("erasing.json", b"{}")
    with pytest.raises(CommandError, match="an erasure was not finished"):
        review.save(store, ReviewRow(clip_id="c", decision="keep"))
    assert not store.exists(review.TABLE)


def test_a_write_that_is_killed_leaves_what_was_there(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    first = review.save(store, ReviewRow(clip_id="c", decision="keep"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 0)
        review.save(store, ReviewRow(clip_id="d", decision="drop"))
    assert review.read(store) == {"c": first}


def test_damage_is_told_and_never_taken_for_no_decision(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    review.save(store, ReviewRow(clip_id="c", decision="drop"))
    data = bytearray(store.read(review.TABLE))
    data[30] ^= 1
    store.write(review.TABLE, bytes(data))
    (problem,) = verify(store)
    assert problem.path == review.TABLE and "put a copy in its place" in problem.what
    assert repair(store, [problem]) == [] and store.exists(review.TABLE)
    with pytest.raises(DatasetError, match=r"review\.parquet: not the bytes"):
        reselect(store)


def test_going_back_to_a_snapshot_leaves_decisions_alone(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    key = next(key for key, row in rows(store).items() if row["accepted"])
    review.save(store, ReviewRow(clip_id=key, decision="drop"))
    dataset, ingested = load_dataset(store), load_ingested(store)
    jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    assert key not in jobs.shards_of(store)
    earlier = snapshots.roll_back(store, 1)
    assert key in {one for shard in earlier.shards for one in shard.keys}
    assert rows(store)[key]["accepted"] and review.waiting(store) == 1
    assert review.read(store)[key].decision == "drop"
    reselect(store)
    assert not rows(store)[key]["accepted"]


def test_a_kept_clip_is_cut_and_the_report_adds_up(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    config = load_dataset(store).config.model_dump(mode="json")
    dataset = load_dataset(store).model_copy(
        update={"config": apply_settings(config, ["thresholds.min_duration_s=100"])}
    )
    key = next(key for key, row in rows(store).items() if row["accepted"])
    review.save(store, ReviewRow(clip_id=key, decision="keep"))
    ingested = load_ingested(store)
    selection = jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    assert [row.clip_id for row in selection.rows if row.accepted] == [key]
    assert rows(store)[key]["overruled"] == ["too_short"]
    assert list(jobs.shards_of(store)) == [key] and verify(store) == []
    numbers = json.loads(store.read("report/statistics.json"))
    (entry,) = [entry for entry in numbers["what_if"] if entry["code"] == "too_short"]
    assert [point["clips"] for point in entry["points"] if point["threshold"] == 100.0] == [1]


@pytest.mark.parametrize(
    ("given", "found"),
    [("ab", "abc"), ("abc", "abc"), ("b1", "b1"), ("b", "3 clips begin with 'b': b1, b10, b2"),
     ("x", "no clip 'x'"), ("", "no clip ''")],
)  # fmt: skip
def test_a_clip_is_named_by_how_it_begins(given: str, found: str) -> None:
    clips = ["b2", "abc", "b1", "b10"]
    if found in clips:
        assert review.find_clip(clips, given, Store("/set")) == found
    else:
        with pytest.raises(CommandError, match=found):
            review.find_clip(clips, given, Store("/set"))
