"""The what-if page: in a browser it comes to the numbers of `talkforge select`, to the last clip."""

from __future__ import annotations

import math
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from talkforge.pipeline import jobs, near_duplicates, tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.ledger import Selection, ledger_tables, select
from talkforge.pipeline.measured import Measured
from talkforge.pipeline.report import what_if
from talkforge.pipeline.report.quantities import decided_by_thresholds, drawn
from talkforge.pipeline.report.statistics import clips_table
from talkforge.pipeline.report.what_if import document, what_if_page
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, apply_settings, load_config
from talkforge.schemas.records import Failure, ReviewRow
from tests.browser import complaints, wait_until
from tests.conftest import Curated
from tests.pipeline.test_ledger import committed, measured, planned

VIDEOS = 12


def clips(seed: int) -> Measured:
    """96 clips: values around the thresholds and beyond, some missing, every third pair a copy."""
    chance = random.Random(seed)
    found = []
    for number in range(1, VIDEOS + 1):
        for place in range(8):
            failure = Failure(stage="trace", key="", video_id="", uri="", error="E", message="m")
            found.append(
                measured(
                    number,
                    start_s=10.0 * place,
                    sync=chance.choice([None, None, chance.uniform(0.7, 1)]),
                    speaking=chance.choice([None, chance.random()]),
                    identity=tuple(chance.gauss(0, 1) for _ in range(8)),
                    failure=failure if chance.random() < 0.05 else None,
                    heard=place if chance.random() < 0.6 else 100 + len(found),
                    face_px=chance.uniform(110, 300),
                    face_confidence=chance.uniform(0.65, 1),
                    faces_max=chance.choice([1] * 8 + [2, 3]),
                    yaw_p95_deg=chance.choice([None, *[chance.uniform(0, 70)] * 6]),
                )
            )
    return committed(*found)


def chosen(found: Measured, config: Config, reviews: dict[str, ReviewRow]) -> Selection:
    return select(found, [planned(number) for number in range(1, VIDEOS + 1)], config, reviews)


def ledger_of(selection: Selection) -> pa.Table:
    return tables.from_bytes(ledger_tables(selection)["ledger.parquet"], "")


def frame_of(selection: Selection) -> pd.DataFrame:
    return clips_table(ledger_of(selection).to_pandas())


def reviews_of(found: Measured) -> dict[str, ReviewRow]:
    """One clip in ten is kept, one in ten dropped."""
    keys = found.clips.column("clip_id").to_pylist()
    said: dict[str, Any] = dict.fromkeys(keys[::10], "keep") | dict.fromkeys(keys[5::10], "drop")
    return {key: ReviewRow(clip_id=key, decision=decision) for key, decision in said.items()}


def shown(browser: Any) -> dict[str, float]:
    names = ("clips", "seconds", "sources", "people")
    return {
        name: float(browser.execute_script(f"return document.getElementById('{name}').dataset.value"))
        for name in names
    }


def expected(selection: Selection) -> dict[str, Any]:
    kept = [row for row in selection.rows if row.accepted]
    return {
        "clips": len(kept),
        "seconds": pytest.approx(selection.totals.kept_s),
        "sources": len({row.video_id for row in kept}),
        "people": len({row.person_id for row in kept if row.person_id}),
    }


MOVE = """const [name, what, value] = arguments;
const [isOn, slider, number] = document.getElementById(name).querySelectorAll('input');
if (what == 'off') { if (isOn.checked) isOn.click(); return; }
if (!isOn.checked) isOn.click();
const input = what == 'slide' ? slider : number;
input.value = value;
input.dispatchEvent(new Event(what == 'slide' ? 'input' : 'change'));"""


def test_sliders_come_to_the_numbers_of_select(chromium: Any, tmp_path: Path) -> None:
    found, config = clips(4), Config()
    reviews = reviews_of(found)
    selection = chosen(found, config, reviews)
    frame = frame_of(selection)
    pairs = selection.repeats or ()
    (tmp_path / "page.html").write_text(what_if_page(frame, config, pairs), encoding="utf-8")
    complaints(chromium)
    chromium.get((tmp_path / "page.html").as_uri())
    wait_until(chromium, "return document.getElementById('page').dataset.ready == 'true'")
    assert len(pairs) > 20 and any("near_duplicate" in row.reasons for row in selection.rows)
    assert shown(chromium) == expected(selection)
    chance, seen = random.Random(1), set()
    names = ("min_face_px", "min_face_confidence", "max_yaw_p95_deg", "min_sync_probability", "max_faces",
             "min_speaking_fraction", "min_duration_s", "min_speech_fraction")  # fmt: skip
    for _ in range(8):
        for name in chance.sample(names, 4):
            what = chance.choice(["slide", "slide", "type", "off"])
            value = {"slide": chance.randint(0, 1000), "type": chance.choice([0.5, 2, 60]), "off": 0}[what]
            chromium.execute_script(MOVE, name, what, value)
        command = chromium.execute_script("return document.getElementById('command').value")
        words = shlex.split(command)
        assert words[:3] == ["talkforge", "select", "DATASET"]
        changed = apply_settings(config.model_dump(mode="json"), [word for word in words[3:] if word != "-s"])
        then = chosen(found, changed, reviews)
        assert shown(chromium) == expected(then), command
        yaml = chromium.execute_script("return document.getElementById('yaml').value")
        (tmp_path / "chosen.yaml").write_text(yaml, encoding="utf-8")
        named = load_config(str(tmp_path / "chosen.yaml"))
        assert (named.thresholds, named.shards) == (changed.thresholds, changed.shards)
        seen.add(shown(chromium)["clips"])
    assert len(seen) > 4  # the scenarios differ
    chromium.execute_script("document.getElementById('reset').click()")
    assert shown(chromium) == expected(selection)
    assert complaints(chromium) == []
    chromium.get("about:blank")


def test_the_next_rule_is_the_one_that_alone_costs_most(chromium: Any, tmp_path: Path) -> None:
    small, turned = {"face_px": 50.0}, {"yaw_p95_deg": 80.0}
    found = committed(
        measured(1), measured(2, **small), measured(3, **small), measured(4, **turned),
        measured(5, **small, **turned),
    )  # fmt: skip
    frame = frame_of(chosen(found, Config(), {}))
    (tmp_path / "page.html").write_text(what_if_page(frame, Config(), []), encoding="utf-8")
    chromium.get((tmp_path / "page.html").as_uri())
    wait_until(chromium, "return document.getElementById('page').dataset.ready == 'true'")
    line = chromium.execute_script("return document.getElementById('next').textContent")
    assert line == "Next: “Face is too small” alone rejects 8.0 s in 2 clips."
    chromium.get("about:blank")


def test_what_no_threshold_decides_is_left_out() -> None:
    found = clips(2)
    reviews = reviews_of(found)
    frame = frame_of(chosen(found, Config(), reviews))
    about = document(frame, Config(), [])
    fixed = frame["failure"].notna() | frame["reasons"].map(lambda codes: "reviewed_drop" in codes)
    assert about["num_fixed"] == int(fixed.sum()) > 5
    assert about["num_clips"] + about["num_fixed"] == len(frame)
    kept = frame[~fixed].reset_index(drop=True)
    assert about["kept"] == kept.index[kept["reviewed"].eq("keep")].tolist()


def test_where_audio_is_moved_its_offset_is_no_slider() -> None:
    frame = frame_of(chosen(clips(2), Config(), {}))
    repaired = apply_settings(Config().model_dump(mode="json"), ["thresholds.repair_sync=true"])
    for config, is_there in ((Config(), True), (repaired, False)):
        rules = {rule["name"] for rule in document(frame, config, [])["rules"]}
        assert ("max_abs_sync_offset_frames" in rules) is is_there


def test_the_page_runs_its_own_script_alone_and_loads_nothing() -> None:
    frame = frame_of(chosen(clips(2), Config(), {}))
    page = what_if_page(frame, Config(), [])
    assert page == what_if_page(frame, Config(), [])
    assert re.findall(r"<script[^>]*>", page) == [
        '<script type="application/json" id="data">', "<script>", "<script>",
    ]  # fmt: skip
    assert "default-src 'none'" in page
    assert re.search(r"script-src 'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'\"", page)
    assert not re.search(r"https?://|<iframe|@import|url\(|innerHTML|onclick=", page)


def test_the_report_reads_the_pairs_that_the_selection_found(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    found, config = clips(4), load_dataset(store).config
    selection = chosen(found, config, {})
    monkeypatch.setattr(jobs, "read_measured", lambda *_, **__: found)
    table = tables.from_bytes(ledger_tables(selection)["ledger.parquet"], "")
    assert jobs._repeats(store, table, config) == selection.repeats
    assert selection.repeats and len(selection.repeats) > 20


def test_of_too_many_clips_a_sample_estimates(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of the clips stand for all: what is shown is their number times what each stands for."""
    monkeypatch.setattr(what_if, "MOST_CLIPS", 40)
    config = Config()
    frame = frame_of(chosen(clips(4), config, {}))
    is_open = decided_by_thresholds(frame) & ~frame["reasons"].map(lambda codes: "near_duplicate" in codes)
    sample = drawn(frame[is_open], 40)
    scale = int(is_open.sum()) / 40
    assert scale > 1.5
    (tmp_path / "page.html").write_text(what_if_page(frame, config, None), encoding="utf-8")
    chromium.get((tmp_path / "page.html").as_uri())
    wait_until(chromium, "return document.getElementById('page').dataset.ready == 'true'")
    for limit in (128, 200):
        chromium.execute_script(MOVE, "min_face_px", "type", limit)
        passes = sample["reasons"].map(lambda codes: set(codes) <= {"face_small"})
        kept = sample[passes & sample["face_clip_px"].ge(limit)]
        seen = shown(chromium)
        assert seen["clips"] == round(len(kept) * scale)
        assert seen["seconds"] == pytest.approx(kept["duration_s"].sum() * scale)
        length = sample["duration_s"].where(sample.index.isin(kept.index), 0.0)
        reach = 1.96 * 40 * scale * math.sqrt((1 - 1 / scale) * length.var(ddof=1) / 40)
        note = chromium.execute_script("return document.querySelector('#seconds small').textContent")
        assert note.endswith(f"± {reach:.1f} s" if reach < 100 else f"± {reach / 60:.1f} min")
    text = chromium.execute_script("return document.getElementById('sample').textContent")
    assert text.startswith("An estimate: this page holds 40 of the") and "Near duplicates stay" in text
    chromium.get("about:blank")


def test_the_report_links_it_whatever_the_number_of_clips(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    for most, is_known in ((near_duplicates.MAX_CLIPS, b"true"), (1, b"false")):
        monkeypatch.setattr(near_duplicates, "MAX_CLIPS", most)
        jobs.report(store)
        assert b'href="what_if.html"' in store.read("report/index.html")
        page = store.read("report/what_if.html")
        assert b'"knows_repeats": ' + is_known in page and page.rstrip().endswith(b"</html>")
