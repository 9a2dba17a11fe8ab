"""The page of clips: filters, sorting and groups come to what the tables say; no name becomes markup."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from talkforge.pipeline.report.clips import GROUPED, Shown, clips_page, document
from talkforge.pipeline.report.quantities import drawn
from talkforge.pipeline.report.statistics import clips_table, statistics
from tests.browser import complaints, wait_until
from tests.pipeline.test_report import clip, dataset, source

EVIL = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def ledger(count: int = 300) -> pd.DataFrame:
    """Clips of made measurements: some rejected for one or two rules, some failed, some values missing."""
    chance = np.random.default_rng(7)
    rows = []
    for n in range(count):
        reasons = tuple(code for code in ("too_short", "face_small") if chance.random() < 0.3)
        failed = chance.random() < 0.05
        rows.append(
            clip(
                f"{n % 20:012x}_{n:08d}", f"{n % 20:012x}", float(chance.integers(1, 20)),
                () if failed else reasons,
                face_clip_px=None if chance.random() < 0.1 else float(chance.uniform(50, 400)),
                snr_db=float(chance.normal(20, 8)), person_id=f"p{n % 7}", language=["en", "de", None][n % 3],
                licence=EVIL if n % 20 == 3 else "CC0", failure="MediaError: packet 7" if failed else None,
                **({"accepted": False, "split": None} if failed else {}),
            )
        )  # fmt: skip
    return pd.DataFrame(rows)


def tables() -> tuple[pd.DataFrame, dict[str, Any]]:
    found = ledger()
    sources = pd.DataFrame([source(f"/in/{n:012x}.mp4", f"{n:012x}", "measured", 600.0) for n in range(20)])
    return clips_table(found), statistics(found, sources, pd.DataFrame(), dataset())


CURVES = {
    "fps": 25.0, "opening": [0.1, None, 0.3], "loudness": [-60.0, -3.0, 0.0], "lags_s": [-0.04, 0.0, 0.04],
    "sync": [0.0, 9.0, 1.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, pd.DataFrame]:
    """The page in a browser, below `<tmp>/a set/report`, and the clips in it."""
    clips, numbers = tables()
    first = clips["clip_id"][0]
    shown = Shown({first: b"\xff\xd8\xff"}, {first: CURVES})
    path = tmp_path_factory.mktemp("clips") / "a set" / "report" / "clips.html"
    path.parent.mkdir(parents=True)
    path.write_text(clips_page(clips, numbers, shown, "a set"), encoding="utf-8")
    complaints(chromium)
    chromium.get(path.as_uri())
    ready(chromium)
    return chromium, clips


def ready(browser: Any) -> None:
    wait_until(browser, "return document.getElementById('page').dataset.ready == 'true'")


@pytest.fixture
def page(opened: tuple[Any, pd.DataFrame]) -> tuple[Any, pd.DataFrame]:
    opened[0].execute_script("document.getElementById('reset').click()")
    return opened


ASK = """const input = document.querySelector(`[data-filter=${arguments[0]}]`);
const option = [...(input.options ?? [])].find((one) => one.textContent === arguments[1]);
input.value = input.options ? option.value : arguments[1];
input.dispatchEvent(new Event('input'));"""


def shown(browser: Any) -> dict[str, float]:
    names = ("clips", "seconds", "accepted", "sources", "people")
    script = "return arguments[0].map((name) => Number(document.getElementById(name).dataset.value))"
    return dict(zip(names, browser.execute_script(script, names), strict=True))


def expected(clips: pd.DataFrame) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "seconds": pytest.approx(clips["duration_s"].sum(), rel=1e-6),
        "accepted": int(clips["accepted"].sum()),
        "sources": clips["video_id"].nunique(),
        "people": clips["person_id"].nunique(),
    }


def elements(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def column(browser: Any, name: str) -> list[str]:
    """What the table shows below a heading, on its first page."""
    script = """const heads = [...document.querySelectorAll('#head button')];
    const place = heads.findIndex((one) => one.textContent.split(' ')[0] === arguments[0]);
    return [...document.getElementById('rows').children].map((row) => row.children[place].textContent);"""
    found: list[str] = browser.execute_script(script, name)
    return found


def test_filters_leave_what_the_table_has(page: tuple[Any, pd.DataFrame]) -> None:
    browser, clips = page
    assert shown(browser) == expected(clips)
    left = clips
    for name, value, passes in (
        ("state", "rejected", lambda c: ~c["accepted"] & c["failure"].isna()),
        ("reason", "face_small", lambda c: c["reasons"].map(lambda codes: "face_small" in codes)),
        ("language", "(none)", lambda c: c["language"].isna()),
        ("begins", "00000000000", lambda c: c["clip_id"].str.startswith("00000000000")),
        ("licence", EVIL, lambda c: c["licence"].eq(EVIL)),
    ):
        browser.execute_script(ASK, name, value)
        left = left[passes(left)]
        assert shown(browser) == expected(left), name
    assert len(left) > 0
    browser.execute_script("document.getElementById('reset').click()")
    assert shown(browser) == expected(clips)
    browser.execute_script(ASK, "begins", clips["clip_id"][7])
    assert column(browser, "clip") == [clips["clip_id"][7]]


def test_dragging_over_a_histogram_keeps_the_bins_under_it(page: tuple[Any, pd.DataFrame]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    browser, clips = page
    chart = browser.find_element(By.CSS_SELECTOR, "#chart-face_clip_px .u-over")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    width = chart.size["width"]
    ActionChains(browser).move_to_element_with_offset(chart, -width // 6, 0).click_and_hold().move_by_offset(
        width // 3, 0
    ).release().perform()
    script = "return [...document.querySelectorAll('#chart-face_clip_px input')].map((one) => one.value)"
    low, high, _ = browser.execute_script(script)
    (edges,) = (m["edges"] for m in tables()[1]["measures"] if m["field"] == "face_clip_px")
    assert float(low) in edges[4:13] and float(high) in edges[13:21]
    left = clips[clips["face_clip_px"].between(float(low), float(high))]
    assert shown(browser) == expected(left) and 20 < len(left) < 200
    label = "return document.querySelector('#chart-face_clip_px [role=img]').getAttribute('aria-label')"
    known = clips["face_clip_px"].notna().sum()
    assert f"{known} clips from" in browser.execute_script(label), "a histogram leaves its own range out"
    snr = "return document.querySelector('#chart-snr_db [role=img]').getAttribute('aria-label')"
    assert f"{len(left)} clips from" in browser.execute_script(snr)


def test_a_range_is_typed_and_clips_without_a_value_are_found(page: tuple[Any, pd.DataFrame]) -> None:
    browser, clips = page
    script = """const [low, , none] = document.querySelectorAll('#chart-face_clip_px input');
    if (arguments[0] === null) none.click();
    else { low.value = arguments[0]; low.dispatchEvent(new Event('change')); }"""
    browser.execute_script(script, 128.5)
    assert shown(browser) == expected(clips[clips["face_clip_px"] >= 128.5])
    browser.execute_script(script, None)
    assert shown(browser) == expected(clips[clips["face_clip_px"].isna()])


def test_rows_are_sorted_either_way_and_those_without_a_value_come_last(
    page: tuple[Any, pd.DataFrame],
) -> None:
    browser, clips = page
    click = """[...document.querySelectorAll('#head button')].find(
        (one) => one.textContent.startsWith(arguments[0])).click()"""
    for ascending in (True, False):
        browser.execute_script(click, "face_clip_px")
        order = clips.sort_values(["face_clip_px", "clip_id"], ascending=[ascending, True])
        assert column(browser, "clip") == order["clip_id"].head(50).tolist()
    assert float(column(browser, "face_clip_px")[0]) == pytest.approx(clips["face_clip_px"].max(), rel=1e-3)
    browser.execute_script("document.getElementById('on').click()")
    assert column(browser, "clip") == order["clip_id"].iloc[50:100].tolist()
    browser.execute_script(click, "clip")


def test_groups_add_up_to_what_is_left(page: tuple[Any, pd.DataFrame]) -> None:
    browser, clips = page
    browser.execute_script(ASK, "state", "accepted")
    browser.execute_script(
        "const by = document.getElementById('by'); by.value = 'person_id';"
        "by.dispatchEvent(new Event('change'))"
    )
    script = """return [...document.getElementById('groups').children].map(
        (row) => [...row.children].map((cell) => cell.textContent))"""
    rows = browser.execute_script(script)
    kept = clips[clips["accepted"]].groupby("person_id")["duration_s"]
    longest = kept.sum().sort_values(ascending=False, kind="stable")
    assert [row[0] for row in rows] == longest.index.tolist()
    assert [int(row[1]) for row in rows] == [int(kept.size()[name]) for name in longest.index]


def test_a_clip_shows_its_values_reasons_curves_and_the_command(page: tuple[Any, pd.DataFrame]) -> None:
    browser, clips = page
    browser.execute_script("document.querySelector('#rows button').click()")
    first = clips.iloc[0]
    heading = "return document.getElementById('id-heading').textContent"
    assert browser.execute_script(heading) == first["clip_id"]
    labels = [one.get_attribute("aria-label") for one in elements(browser, "#clip [role=img]")]
    ranges = ["from 0.1 to 0.3", "from -60 to 0", "from 0 to 9"]
    assert [label.rpartition(": ")[2] for label in labels] == ranges
    assert browser.execute_script("return document.querySelectorAll('#clip canvas').length") == 3
    command = browser.execute_script("return document.querySelector('#clip textarea').value")
    assert re.fullmatch(rf"talkforge view '/.*/a set' --clip {first['clip_id']}", command)
    pairs = [one.text.split("\n") for one in elements(browser, "#clip dl div")]
    values = dict(pairs)
    assert float(values["Length of the clip, s"]) == first["duration_s"]
    failed = clips[clips["failure"].notna()].iloc[0]
    browser.execute_script(ASK, "begins", failed["clip_id"])
    browser.execute_script("document.querySelector('#rows button').click()")
    listed = browser.execute_script(
        "return [...document.querySelectorAll('#clip li')].map((one) => one.textContent)"
    )
    assert listed == ["MediaError: packet 7"]


def test_names_stay_text_and_the_console_stays_empty(page: tuple[Any, pd.DataFrame]) -> None:
    browser, _ = page
    browser.execute_script(ASK, "licence", EVIL)
    browser.execute_script("document.querySelector('#rows button').click()")
    assert EVIL in browser.execute_script("return document.getElementById('clip').textContent")
    assert browser.title == "Clips of a set"
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert complaints(browser) == []


def test_an_address_begins_with_a_filter(opened: tuple[Any, pd.DataFrame]) -> None:
    browser, clips = opened
    address = browser.current_url.partition("#")[0]
    browser.get("about:blank")
    browser.get(f"{address}#reason=too_short&state=rejected")
    ready(browser)
    assert shown(browser)["clips"] == clips["reasons"].map(lambda codes: "too_short" in codes).sum()
    browser.get("about:blank")


def test_the_page_runs_only_scripts_that_its_policy_names() -> None:
    clips, numbers = tables()
    page = clips_page(clips, numbers, Shown(), EVIL)
    assert page == clips_page(clips, numbers, Shown(), EVIL)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 3
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    named = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy and policy[1] == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {named}"
    )
    own = scripts[1] + scripts[2]
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", own)
    assert re.findall(r"https?://[\w./-]+", page) == ["https://github.com/leeoniya/uPlot"], "its banner"


def test_the_charting_library_is_what_its_authors_publish() -> None:
    """dist/ and LICENSE of the package uplot 1.6.32 of npm, whose integrity is sha512-KIMVnG68zvu5XXUb..."""
    folder = importlib.resources.files("talkforge.pipeline.report").joinpath("uplot")
    found = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()[:16]
        for entry in folder.iterdir()
        if entry.is_file()
    }
    assert found == {
        "LICENSE": "8f989229699b4fe2",
        "uPlot.iife.min.js": "19c8d4c6ad88929a",
        "uPlot.min.css": "df630c6a8d6f8eea",
    }


def test_of_too_many_clips_the_same_are_drawn_in_any_order() -> None:
    clips = clips_table(ledger())
    few = drawn(clips, 100)
    assert len(few) == 100 and few["clip_id"].is_monotonic_increasing
    assert drawn(clips[clips["clip_id"].isin(few["clip_id"])], 100)["clip_id"].equals(few["clip_id"])
    assert set(drawn(clips, 50)["clip_id"]) < set(few["clip_id"])
    assert len(drawn(clips, 300)) == 300


def test_nothing_at_all_has_a_page() -> None:
    clips = clips_table(ledger(0))
    sources = pd.DataFrame([source("/in/a.mp4", "a" * 12, "no_candidates", 1.0)])
    numbers = statistics(pd.DataFrame(), sources, pd.DataFrame(), dataset())
    about = document(clips, numbers, Shown(), "empty")
    assert (about["num_clips"], about["measures"], about["groups"]) == (0, [], [])
    assert json.dumps(about, allow_nan=False)
    assert set(GROUPED) >= {"uri", "person_id", "language", "licence", "split"}
