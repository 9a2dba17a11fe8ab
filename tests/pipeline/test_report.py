"""The report's numbers on tables small enough to count by hand, and the page on hostile names."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from talkforge.pipeline.report import Title, render, span, statistics, visible, write_report
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, apply_settings, config_hash
from talkforge.schemas.dataset import Dataset, ModelAbsence, ModelUse
from talkforge.schemas.errors import DatasetError

A, B = "a" * 12, "b" * 12
S = 1 / 3600


def clip(name: str, video: str, seconds: float, reasons: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Ledger row of a clip that passes every rule, except for what is given."""
    row = {
        "clip_id": name, "video_id": video, "uri": f"/in/{video}.mp4", "start_s": 0.0, "end_s": seconds,
        "track": 0, "scene": 0, "fps": 25.0, "num_frames": round(25 * seconds), "width_px": 640,
        "height_px": 480, "accepted": not reasons, "reasons": list(reasons),
        "reason_details": [f"{code} (measured 1, threshold 2)" for code in reasons], "failure": None,
        "stopped_by": None, "person_id": None, "split": None if reasons else "train", "shard": None,
        "source_fps": 25.0, "face_px": 200.0, "face_clip_px": 200.0, "face_confidence": 0.99, "faces_max": 1,
        "speech_fraction": 0.8, "clipped_fraction": 0.0, "lip_valid_fraction": 1.0, "yaw_p95_deg": 10.0,
        "sync_offset_frames": 0, "sync_method": "test-1", "identity_model": None,
        "source": "", "licence": "as the source", "consent": "as the source", "active_speaker": None,
    }  # fmt: skip
    return row | more


def source(uri: str, video: str | None, status: str, seconds: float, **more: Any) -> dict[str, Any]:
    row = {
        "uri": uri, "video_id": video, "status": status, "reason": "", "duration_s": seconds, "width_px": 640,
        "height_px": 480, "fps": 25.0, "source": "", "licence": "CC0", "consent": "signed", "num_bytes": 1,
    }  # fmt: skip
    return row | more


Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Dataset]


@pytest.fixture
def tables() -> Tables:
    """Two accepted clips, four rejected, one failed; two measured inputs and one of each other status."""
    ledger = [
        clip("c0", A, 10.0),
        clip("c1", B, 5.0, split="validation", sync_offset_frames=None, face_clip_px=150.0),
        clip("c2", A, 10.0, ("face_small",), face_clip_px=100.0),
        clip("c3", A, 20.0, ("no_speech", "face_small"), speech_fraction=0.2, face_clip_px=90.0),
        clip(
            "c4", A, 4.0, ("face_small",), face_clip_px=20.0, stopped_by="face_small", sync_offset_frames=None
        ),
        clip("c5", B, 1.0, ("too_short",)),
        clip("c6", B, 8.0, accepted=False, failure="MediaError: packet 7", face_clip_px=None, split=None),
    ]
    sources = [
        source(f"/in/{A}.mp4", A, "measured", 60.0),
        source(f"/in/{B}.mp4", B, "measured", 30.0, licence="", consent=""),
        source("/in/again.mp4", A, "duplicate", 60.0, reason="same content"),
        source("/in/cartoon.mp4", "c" * 12, "no_candidates", 120.0, reason="no_face"),
        source("/in/text.mp4", None, "failed", 0.0, reason="not a video", width_px=None, fps=None),
    ]
    columns = ["stage", "key", "video_id", "uri", "error", "message"]
    failures = [
        ["probe", "/in/text.mp4", "", "/in/text.mp4", "MediaError", "not a video"],
        ["measure", "c6", B, f"/in/{B}.mp4", "MediaError", "packet 7"],
    ]
    return pd.DataFrame(ledger), pd.DataFrame(sources), pd.DataFrame(failures, columns=columns), dataset()


def dataset(config: Config | None = None) -> Dataset:
    free = {"name": "free", "sha256": "ab" * 32, "licence": "MIT", "commercial_use": True}
    research = {"name": "bound", "sha256": "cd" * 32, "licence": "research only", "commercial_use": False}
    return Dataset(
        schema_version=1,
        tool_version="0.1.0",
        config=config or Config(),
        config_hash=config_hash(Config()),
        models=tuple(ModelUse.model_validate(m | {"needed_by": "scan"}) for m in (free, research)),
        joints=(),
        quantiles={"omega_face": (0.1, 0.2)},
    )


def no_pictures(_: str) -> bytes | None:
    return None


MEASURED = [
    "source_fps", "face_clip_px", "face_px", "face_confidence", "faces_max", "speech_fraction",
    "clipped_fraction", "lip_valid_fraction", "yaw_p95_deg", "sync_offset_frames",
]  # fmt: skip


def page(tables: Tables) -> str:
    """The page without most of its histograms, which take most of the time."""
    tables = (tables[0].drop(columns=MEASURED, errors="ignore"), *tables[1:])
    return render(statistics(*tables), *tables[:3], no_pictures)


def test_models_that_were_asked_for_and_absent_are_named(tables: Tables) -> None:
    assert statistics(*tables)["models_absent"] == []
    absent = {"name": "syncnet_v2", "needed_by": "trace: Sync-C", "why": "no <package> carries it"}
    about = dataset().model_copy(update={"models_absent": (ModelAbsence.model_validate(absent),)})
    tables = (*tables[:3], about)
    assert statistics(*tables)["models_absent"] == [absent]
    text = page(tables)
    assert "Not measured, because optional weights were not available: trace: Sync-C" in text
    assert '<span title="no &lt;package&gt; carries it">syncnet_v2</span>' in text


def test_the_funnel_counts_clips_and_hours_at_every_step(tables: Tables) -> None:
    steps = {step["step"]: step for step in statistics(*tables)["funnel"]}
    counted = {
        name: (s["kind"], s["count"], s["lost"]) for name, s in steps.items() if s["lost"] or s["count"]
    }
    assert counted == {
        "input": ("sources", 5, 0),
        "readable": ("sources", 4, 1),
        "unique": ("sources", 3, 1),
        "with_candidates": ("sources", 2, 1),
        "candidates": ("clips", 7, 0),
        "measured": ("clips", 6, 1),
        "too_short": ("clips", 5, 1),
        "too_long": ("clips", 5, 0),
        "low_frame_rate": ("clips", 5, 0),
        "no_speech": ("clips", 4, 1),
        "audio_clipped": ("clips", 4, 0),
        "face_small": ("clips", 2, 2),
        "low_confidence": ("clips", 2, 0),
        "multiple_faces": ("clips", 2, 0),
        "lips_not_traced": ("clips", 2, 0),
        "mouth_covered": ("clips", 2, 0),
        "picture_frozen": ("clips", 2, 0),
        "mouth_still": ("clips", 2, 0),
        "face_turned": ("clips", 2, 0),
        "face_unsharp": ("clips", 2, 0),
        "black_bars": ("clips", 2, 0),
        "text_over_mouth": ("clips", 2, 0),
        "hand_over_mouth": ("clips", 2, 0),
        "noisy": ("clips", 2, 0),
        "music": ("clips", 2, 0),
        "out_of_sync": ("clips", 2, 0),
        "sync_unlikely": ("clips", 2, 0),
        "sync_lost": ("clips", 2, 0),
        "accepted": ("clips", 2, 0),
    }
    seconds = {name: round(step["hours"] * 3600, 1) for name, step in steps.items()}
    assert [seconds[n] for n in ("input", "readable", "unique", "with_candidates")] == [270, 270, 210, 90]
    wanted = {
        "candidates": 58,
        "measured": 50,
        "too_short": 49,
        "no_speech": 29,
        "face_small": 15,
        "accepted": 15,
    }
    assert {name: seconds[name] for name in wanted} == wanted
    assert steps["face_small"]["lost_hours"] == pytest.approx(14 * S, abs=1e-6)


def test_each_rule_tells_whom_it_stops_first_at_all_and_alone(tables: Tables) -> None:
    rules = {rule["code"]: rule for rule in statistics(*tables)["rules"]}
    small = rules["face_small"]
    assert {key: small[key]["clips"] for key in ("first", "any", "only", "only_unmeasured")} == {
        "first": 2, "any": 3, "only": 1, "only_unmeasured": 1,
    }  # fmt: skip
    assert small["any"]["hours"] == pytest.approx(34 * S, abs=1e-6)
    assert small["only"]["hours"] == pytest.approx(10 * S, abs=1e-6)
    assert (small["threshold"], small["unit"], small["side"]) == (128.0, "px", "at_least")
    assert (rules["no_speech"]["first"]["clips"], rules["no_speech"]["only"]["clips"]) == (1, 0)
    assert sum(rule["first"]["clips"] for rule in rules.values()) == 4, "all that was rejected"
    assert "face_blurred" not in rules, "a rule that is off and breaks nothing is not listed"


def test_what_if_moves_one_threshold_and_leaves_unknown_clips_out(tables: Tables) -> None:
    what_if = {entry["code"]: entry for entry in statistics(*tables)["what_if"]}
    kept = {p["threshold"]: p["clips"] for p in what_if["face_small"]["points"]}
    assert kept == {100.0: 3, 128.0: 2, 150.0: 2, 200.0: 1}
    assert what_if["too_short"]["points"][0] == {"threshold": 1.0, "clips": 3, "hours": round(16 * S, 6)}
    in_sync = {p["threshold"]: p["clips"] for p in what_if["out_of_sync"]["points"]}
    assert in_sync == {0.0: 2, 3.0: 2}, "a clip that was not scored passes, wherever the threshold lies"


def test_what_if_takes_a_clip_whose_audio_is_moved_as_it_is_then(tables: Tables) -> None:
    ledger, *others = tables
    off = {"sync_offset_frames": 6, "sync_probability": 0.01, "sync_offset_probability": 0.97}
    moved = clip("c7", A, 6.0, audio_shift_s=0.24, **off)
    ledger = pd.concat([ledger, pd.DataFrame([moved])], ignore_index=True)
    what_if = {entry["code"]: entry for entry in statistics(ledger, *others)["what_if"]}
    kept = {p["threshold"]: p["clips"] for p in what_if["out_of_sync"]["points"]}
    assert kept == {0.0: 3, 3.0: 3}
    kept = {p["threshold"]: p["clips"] for p in what_if["sync_unlikely"]["points"]}
    assert kept == {0.2: 3, 0.97: 3}


def test_what_if_at_the_threshold_in_force_is_what_was_accepted(tables: Tables) -> None:
    for entry in statistics(*tables)["what_if"]:
        at_threshold = [p["clips"] for p in entry["points"] if p["threshold"] == entry["threshold"]]
        assert at_threshold == ([] if entry["threshold"] is None else [2]), entry["code"]


def test_histograms_count_every_known_value_once(tables: Tables) -> None:
    measures = {entry["field"]: entry for entry in statistics(*tables)["measures"]}
    face = measures["face_clip_px"]
    assert (face["known"], face["unknown"], sum(face["accepted"]), sum(face["not_accepted"])) == (6, 1, 2, 4)
    assert len(face["edges"]) == len(face["accepted"]) + 1
    assert [line["threshold"] for line in measures["duration_s"]["thresholds"]] == [3.0, 20.0]
    assert "face_luma" not in measures, "what was never measured has no histogram"


def test_headline_sync_identity_and_licences(tables: Tables) -> None:
    numbers = statistics(*tables)
    assert numbers["headline"] == {
        "input": {"sources": 5, "hours": 0.075, "unknown_length": 1},
        "candidates": {"clips": 7, "hours": round(58 * S, 6)},
        "accepted": {"clips": 2, "hours": round(15 * S, 6)},
        "people": None,
        "videos": 2,
        "splits": {
            "train": {"clips": 1, "hours": round(10 * S, 6)},
            "validation": {"clips": 1, "hours": round(5 * S, 6)},
        },
    }
    sync = {key: numbers["sync"][key]["clips"] for key in ("scored", "unscored", "not_measured")}
    assert sync == {"scored": 4, "unscored": 1, "not_measured": 2}
    assert numbers["identity"] == {"models": [], "clips": 0, "people": 0, "split_by": "source video"}
    assert [(row["licence"], row["sources"], row["accepted"]["clips"]) for row in numbers["provenance"]] == [
        ("", 1, 1),
        ("CC0", 4, 1),
    ]
    assert numbers["failures"] == [
        {"stage": "measure", "error": "MediaError", "count": 1},
        {"stage": "probe", "error": "MediaError", "count": 1},
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reasons": []}, "clip c2 is neither accepted, rejected nor failed"),
        ({"accepted": True}, "clip c2 has more than one status"),
        ({"clip_id": "c0"}, "clip c0 is in the ledger twice"),
        ({"video_id": "d" * 12}, "clip c2 belongs to no measured source"),
    ],
)
def test_a_lost_clip_is_an_error(tables: Tables, change: dict[str, Any], complaint: str) -> None:
    rows = tables[0].to_dict("records")
    rows[2] |= change
    with pytest.raises(DatasetError, match=complaint):
        statistics(pd.DataFrame(rows), *tables[1:])


def test_an_input_without_a_status_is_an_error(tables: Tables) -> None:
    tables[1].loc[0, "status"] = "planned"
    with pytest.raises(DatasetError, match=r"source '/in/a+\.mp4': expected a status of .* found 'planned'"):
        statistics(*tables)


def test_nothing_is_written_where_the_tables_do_not_add_up(tables: Tables, tmp_path: Path) -> None:
    tables[0].loc[0, "accepted"] = False
    with pytest.raises(DatasetError):
        write_report(Store(str(tmp_path)), *tables, no_pictures)
    assert not list(tmp_path.rglob("*"))


def test_the_order_of_rows_changes_no_byte(tables: Tables, tmp_path: Path) -> None:
    def picture(name: str) -> bytes:
        return b"\xff\xd8" + name.encode()

    ledger, sources, failures = (table.sample(frac=1, random_state=3) for table in tables[:3])
    write_report(Store(str(tmp_path / "a")), *tables, picture)
    write_report(Store(str(tmp_path / "b")), ledger, sources, failures, tables[3], picture)
    for name in ("report/index.html", "report/statistics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    written = json.loads((tmp_path / "a" / "report/statistics.json").read_text())
    assert written == statistics(*tables)


def test_the_title_names_the_data_set_its_snapshot_and_the_version(tables: Tables, tmp_path: Path) -> None:
    title = Title("talks <2026>", "snapshot 3 of 2026-11-27")
    write_report(Store(str(tmp_path)), *tables, no_pictures, repeats=[], title=title)
    text = (tmp_path / "report/index.html").read_text()
    assert "<h1>talks &lt;2026&gt;</h1>" in text
    assert "<p>Data set report, snapshot 3 of 2026-11-27, Talkforge 0.1.0</p>" in text
    links = set(re.findall(r'href="([^"#]+)', text))
    assert links == {"clips.html", "what_if.html"}
    assert all((tmp_path / "report" / name).exists() for name in links)


def test_the_page_loads_nothing_and_runs_nothing(tables: Tables) -> None:
    text = render(statistics(*tables), *tables[:3], no_pictures)
    assert not re.search(r"https?://|<script|<link|<iframe|@import|url\(\s*['\"]?(?!#)", text)
    assert not re.search(r"\son\w+=", text)
    assert set(re.findall(r'(?:src|href)="([^"#]*)', text)) == {""}, "only places within the page"
    assert "default-src 'none'" in text
    assert text.count("<svg") == len(statistics(*tables)["measures"])


def test_hostile_names_are_shown_and_not_obeyed(tables: Tables) -> None:
    evil = "/in/<script>alert(1)</script>\n\"onload='x'\u202egnp.{{ 7 * 7 }}.mp4"
    tables[1].loc[4, "uri"] = tables[2].loc[0, "key"] = tables[2].loc[0, "message"] = evil
    tables[1].loc[1, ["licence", "consent"]] = evil
    tables[0].loc[:, "uri"] = evil
    text = page(tables)
    assert text.encode()
    assert "<script" not in text
    assert "\u202e" not in text
    shown = "/in/<script>alert(1)</script>\\n\"onload='x'\\u202egnp.{{ 7 * 7 }}.mp4"
    assert html.unescape(text).count(shown) >= 5, "sources, failures, licences, cards"


def test_the_page_says_what_people_need_to_know(tables: Tables) -> None:
    text = html.unescape(page(tables))
    assert "5 inputs = 2 measured + 1 without candidates + 1 copy + 1 failed" in text
    assert "7 candidate clips = 2 accepted + 4 rejected + 1 failed" in text
    assert "No identity weights" in text
    assert "split by source video" in text
    assert "no_speech (measured 1, threshold 2)" in text
    assert re.search(r"bound.*?research only.*?not allowed", text, re.DOTALL)


def test_people_are_counted_where_they_are_known(tables: Tables) -> None:
    tables[0].loc[[0, 1], "person_id"] = ["p1", "p2"]
    tables[0]["identity_model"] = "net"
    numbers = statistics(*tables)
    assert numbers["headline"]["people"] == 2
    assert numbers["identity"]["split_by"] == "person"
    assert "No identity weights" not in page(tables)


def crowd(tables: Tables, hours: list[float], splits: str = "") -> Tables:
    """Tables whose ledger has a clip of 3600 s for each hour of each person p0, p1, ..."""
    rows = [
        clip(f"c{who}{part}", A, 3600.0 * hours_of_clip, person_id=f"p{who}", identity_model="net",
             split="validation" if who < len(splits) and splits[who] == "v" else "train")
        for who, total in enumerate(hours)
        for part, hours_of_clip in enumerate([total / 2, total / 2])
    ]  # fmt: skip
    rows.append(clip("r", A, 5.0, ("face_small",), person_id="p9", identity_model="net"))
    return pd.DataFrame(rows), *tables[1:]


def person(
    name: str, nearest: str | None = None, similarity: float | None = None, odd: float | None = None
) -> dict[str, Any]:
    clip_id = name.replace("p", "c") + "0"
    return {
        "person_id": name, "num_clips": 2, "num_videos": 1, "duration_s": 1.0, "face_clip_id": clip_id,
        "odd_clip_id": clip_id[:-1] + "1", "odd_similarity": odd, "nearest_person_id": nearest,
        "nearest_similarity": similarity,
    }  # fmt: skip


def test_how_evenly_people_share_the_hours(tables: Tables) -> None:
    tables = crowd(tables, [6.0, 2.0, 1.0, 1.0])
    found = statistics(*tables)["people"]
    assert (found["found"], found["kept"], found["kept_without_identity"]["clips"]) == (5, 4, 0)
    assert found["balance"] == {
        "top_share": 0.6,
        "top_ten_share": 1.0,
        "gini": 0.4,  # mean absolute difference of all pairs 2.0, over twice the mean of 2.5
        "effective": 2.38,  # 1 / (0.36 + 0.04 + 0.01 + 0.01)
        "median_hours": 1.5,
    }
    assert [(p["person_id"], p["hours"], p["clips"], p["share"]) for p in found["largest"]] == [
        ("p0", 6.0, 2, 0.6), ("p1", 2.0, 2, 0.2), ("p2", 1.0, 2, 0.1), ("p3", 1.0, 2, 0.1),
    ]  # fmt: skip
    assert statistics(*crowd(tables, [3.0, 3.0]))["people"]["balance"]["gini"] == 0.0


def test_people_who_may_be_one_or_two_are_named(tables: Tables) -> None:
    rows = [
        person("p0", "p1", 0.48, odd=0.44),
        person("p1", "p0", 0.48, odd=0.9),
        person("p2", "p0", 0.41, odd=0.41),
        person("p3", "p2", 0.2),
    ]
    ledger, *rest = crowd(tables, [1.0, 1.0, 1.0, 1.0], splits="tvtt")
    found = statistics(ledger, *rest, people=pd.DataFrame(rows))["people"]
    assert (found["same_person"], found["closest"], found["near_count"], found["near_in_both_splits"]) == (
        0.5, 0.48, 2, 1,
    )  # fmt: skip
    assert [
        ([p["person_id"] for p in pair["people"]], pair["similarity"], pair["in_both_splits"])
        for pair in found["near"]
    ] == [(["p0", "p1"], 0.48, True), (["p0", "p2"], 0.41, False)]
    assert [(p["person_id"], p["similarity"], p["odd_clip_id"]) for p in found["mixed"]] == [
        ("p2", 0.41, "c21"), ("p0", 0.44, "c01"),
    ]  # fmt: skip
    about = dataset(apply_settings({}, ["shards.same_person=0.8"]))
    stricter = statistics(ledger, rest[0], rest[1], about, people=pd.DataFrame(rows))["people"]
    assert (stricter["same_person"], stricter["near_count"], stricter["mixed_count"]) == (0.8, 0, 2)


def test_the_page_shows_people_and_obeys_no_name(tables: Tables) -> None:
    evil = "<script>alert(1)</script>\u202e"
    ledger, *rest = crowd(tables, [1.0, 1.0], splits="vt")
    ledger.loc[ledger["person_id"] == "p1", ["person_id", "split"]] = evil
    rows = pd.DataFrame([person("p0", evil, 0.48, odd=0.1), person(evil, "p0", 0.48)])
    rows["odd_clip_id"] = evil
    ledger = ledger.drop(columns=MEASURED)
    shown: list[str] = []

    def picture(name: str) -> bytes | None:
        shown.append(name)
        return b"\xff\xd8" if name == "c00/face" else None

    text = render(statistics(ledger, *rest, people=rows), ledger, rest[0], rest[1], picture)
    assert "<script" not in text and "\u202e" not in text
    assert text.count("data:image/jpeg;base64,/9g=") == 3, "in a pair, as one of two, and among the largest"
    assert "1 pair of people who may be one has one half in training" in text
    assert evil in shown, "where there is no face, the whole picture is asked for"
    nobody = render(statistics(*tables), *tables[:3], no_pictures)
    assert "no clip has a face embedding" in nobody


def test_the_contact_sheet_is_bounded_spread_over_videos_and_small(tables: Tables) -> None:
    many = [clip(f"n{i:03d}", f"{i % 40:012x}", 5.0) for i in range(200)]
    many += [clip(f"r{i:03d}", f"{i % 40:012x}", 5.0, ("face_small",)) for i in range(100)]
    sources = [source(f"/in/{i}.mp4", f"{i:012x}", "measured", 60.0) for i in range(40)]
    shown: list[str] = []

    def picture(name: str) -> bytes:
        shown.append(name)
        return bytes(60_000)

    ledger, inputs = pd.DataFrame(many).drop(columns=MEASURED), pd.DataFrame(sources)
    text = render(statistics(ledger, inputs, *tables[2:]), ledger, inputs, tables[2], picture)
    accepted = [name for name in shown if name.startswith("n")]
    assert (len(accepted), len(shown)) == (48, 60)
    assert len({int(name[1:]) % 40 for name in accepted}) == 40, "every video is there before any comes twice"
    assert text.count("data:image/jpeg;base64,") == 60
    few = (ledger[:3], inputs, tables[2])
    assert len(render(statistics(*few, tables[3]), *few, lambda _: bytes(4_000_000))) < 7_000_000


def test_an_empty_data_set_has_a_report(tables: Tables) -> None:
    nothing = (tables[0].iloc[:0], tables[1].iloc[2:2], tables[2].iloc[:0], tables[3])
    numbers = statistics(*nothing)
    assert numbers["conservation"]["candidates"] == numbers["conservation"]["sources"] == 0
    assert "No clip was accepted." in page(nothing)
    bare = (pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), tables[3])
    assert statistics(*bare) == numbers


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0, "0.0 s"),
        (12 * S, "12.0 s"),
        (0.1, "6.0 min"),
        (2.5, "2.5 h"),
        (12345.6, "12,346 h"),
        (None, "unknown"),
    ],
)
def test_lengths_are_said_as_people_say_them(hours: float | None, text: str) -> None:
    assert span(hours) == text


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert visible("Überstunde 3 – ½.mp4") == "Überstunde 3 – ½.mp4"
    assert visible("not UTF-8: \udcff\t") == "not UTF-8: \\udcff\\t"
