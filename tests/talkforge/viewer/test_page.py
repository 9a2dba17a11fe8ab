"""The page in a browser: a clip plays with its marks in time, keys decide, and select follows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from talkforge.local_page import Server
from talkforge.pipeline import jobs, review, tables
from talkforge.pipeline.annotate import TRANSCRIPTS
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.store import Store
from talkforge.schemas.records import ReviewRow, TranscriptRow
from talkforge.viewer.library import Library
from talkforge.viewer.server import Mode, listen
from tests.browser import complaints, press, wait_until
from tests.conftest import Curated

PLAYS = "const v = document.getElementById('video'); return v.readyState > 2 && v.currentTime > 0.5"

SHOWN = "return document.getElementById('clip').textContent"

LIPS = """const c = document.getElementById('marks');
const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});
copy.drawImage(c, 0, 0);
const {data} = copy.getImageData(0, 0, c.width, c.height);
for (let n = 0; n < data.length; n += 4)
  if (data[n] == 255 && data[n + 1] == 64 && data[n + 2] == 129) return true;
return false"""
"""Whether the outline of the lips is drawn."""


def serve(store: Store, folder: Path, mode: Mode, only: list[str] | None = None) -> Iterator[Server]:
    server = listen(Library(store, folder, only), mode)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join()


@pytest.fixture
def page(chromium: Any, curated: Curated, tmp_path: Path) -> Iterator[Any]:
    """The page on a data set with a hostile transcript."""
    store = Store(str(curated.dataset))
    said = [
        TranscriptRow(
            clip_id=key, failure=None, text="<img src=x onerror=alert(1)>", model="m", model_sha256="",
            fingerprint="f", transcript=None, words=(), word_times=None, turns=None, transcriber="t",
            version="1",
        )
        for key in keys(store)
    ]  # fmt: skip
    tables.write(store, f"{TRANSCRIPTS.name}.parquet", TranscriptRow, said)
    complaints(chromium)
    for server in serve(store, tmp_path, Mode("view", "Clips")):
        chromium.get(server.url)
        yield chromium
        chromium.get("about:blank")


def keys(store: Store) -> list[str]:
    rows = tables.from_bytes(store.read("ledger.parquet"), "").to_pylist()
    return sorted(row["clip_id"] for row in rows)


def said_saved(browser: Any, key: str) -> None:
    wait_until(browser, f"return document.getElementById('status').textContent == '{key}: saved'")


def test_a_clip_plays_is_vetoed_by_a_key_and_select_drops_it(page: Any, curated: Curated) -> None:
    store = Store(str(curated.dataset))
    first, second = keys(store)
    wait_until(page, PLAYS)
    assert page.execute_script(SHOWN) == first
    wait_until(page, LIPS)
    frame = "document.getElementById('frame').dataset.frame"
    before = page.execute_script(f"return {frame}")
    wait_until(page, f"return {frame} != '{before}'")

    press(page, " ")  # stands still: the frame that is marked is the frame that is shown
    wait_until(page, "return document.getElementById('video').paused")
    press(page, ".")
    wait_until(
        page,
        "const v = document.getElementById('video');"
        f"return !v.seeking && Number({frame}) == Math.floor(v.currentTime * 25 + 0.001)",
    )
    press(page, "l")
    assert not page.execute_script(LIPS)
    press(page, "l")
    assert page.execute_script(LIPS)

    assert page.execute_script("return document.getElementById('text').textContent").startswith("<img")
    assert page.execute_script("return document.querySelectorAll('#text *').length") == 0

    press(page, "d")
    said_saved(page, first)
    press(page, "b5")  # bad, because it stands still
    wait_until(page, "return document.querySelector('#why [data-number=\"5\"]').ariaPressed == 'true'")
    press(page, "n")
    wait_until(page, f"{SHOWN} == '{second}'")
    press(page, "k")
    said_saved(page, second)
    press(page, "p")
    wait_until(page, f"{SHOWN} == '{first}'")
    wait_until(page, "return document.getElementById('drop').ariaPressed == 'true'")

    rows = review.read(store)
    assert (rows[first].decision, rows[first].label, rows[first].reason) == ("drop", "bad", "frozen")
    assert rows[second].decision == "keep"
    selection = jobs.select(store, load_dataset(store), load_ingested(store))
    assert {row.clip_id: row.reasons for row in selection.rows} == {first: ("reviewed_drop",), second: ()}
    assert complaints(page) == []


def test_filters_leave_what_they_say_and_typing_is_no_command(page: Any, curated: Curated) -> None:
    store = Store(str(curated.dataset))
    first, second = keys(store)
    wait_until(page, f"{SHOWN} == '{first}'")
    page.find_element("id", "begins").send_keys(f"{second[:6]}\n")
    wait_until(page, f"{SHOWN} == '{second}'")
    assert page.execute_script("return document.getElementById('progress').textContent") == "clip 1 of 1"
    page.find_element("id", "begins").send_keys("kd<\n")
    wait_until(page, "return document.getElementById('progress').textContent == 'no clips'")
    assert review.read(store) == {} and complaints(page) == []


def test_a_clip_without_its_source_shows_its_thumbnail_and_says_why(
    chromium: Any, curated: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    first = keys(store)[0]
    review.save(store, ReviewRow(clip_id=first, decision="drop"))
    dataset, ingested = load_dataset(store), load_ingested(store)
    jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    monkeypatch.setattr(Store, "input_uri", lambda _self, uri: f"{uri}.gone")
    for server in serve(store, tmp_path, Mode("view", "Clips", first)):
        chromium.get(server.url)
        wait_until(chromium, "return document.getElementById('image').naturalWidth > 0")
        assert "gone" in chromium.execute_script("return document.getElementById('status').textContent")
        assert chromium.execute_script("return document.getElementById('verdict').textContent") == "rejected"
        chromium.get("about:blank")
        complaints(chromium)  # the video that is not there


def test_an_audit_hides_the_verdict_and_goes_on_with_each_label(
    chromium: Any, curated: Curated, tmp_path: Path
) -> None:
    store = Store(str(curated.dataset))
    drawn = [*reversed(keys(store))]
    complaints(chromium)
    verdict = "return document.getElementById('verdict').textContent"
    for server in serve(store, tmp_path, Mode("audit", "Audit"), drawn):
        chromium.get(server.url)
        wait_until(chromium, f"{SHOWN} == '{drawn[0]}'")
        assert "when the clip has a label" in chromium.execute_script(verdict)
        assert chromium.execute_script("return document.querySelectorAll('#facts tr').length") == 0
        press(chromium, "k")  # decides nothing here
        press(chromium, "g")
        wait_until(chromium, f"{SHOWN} == '{drawn[1]}'")
        press(chromium, "2")
        wait_until(chromium, f"{verdict} == 'accepted'")
        progress = chromium.execute_script("return document.getElementById('progress').textContent")
        assert progress == "clip 2 of 2, 2 labelled"
        chromium.get("about:blank")
    rows = review.read(store)
    assert [(rows[key].decision, rows[key].label, rows[key].reason) for key in drawn] == [
        ("none", "good", ""),
        ("none", "bad", "out_of_sync"),
    ]
    assert complaints(chromium) == []
