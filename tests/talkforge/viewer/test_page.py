"""The page in a browser: a clip plays with its marks in time, keys decide, and select follows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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


def ledger_of(store: Store) -> list[dict[str, Any]]:
    return tables.from_bytes(store.read("ledger.parquet"), "").to_pylist()


def keys(store: Store) -> list[str]:
    return sorted(row["clip_id"] for row in ledger_of(store))


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


DRAWN = """const c = document.getElementById('marks');
const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});
copy.drawImage(c, 0, 0);
const {data, width} = copy.getImageData(0, 0, c.width, c.height);
const found = {};
const colours = {lips: [255, 64, 129], joints: [120, 230, 90], box: [255, 196, 61]};
for (const [name, rgb] of Object.entries(colours)) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let n = 0; n < data.length; n += 4)
    if (data[n + 3] == 255 && rgb.every((value, k) => data[n + k] == value)) {
      const [x, y] = [(n / 4) % width, Math.floor(n / 4 / width)];
      [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
    }
  if (x1 >= x0) found[name] = [(x0 + x1 + 1) / 2 / c.width, (y0 + y1 + 1) / 2 / c.height];
}
const frame = Number(document.getElementById('frame').dataset.frame);
return {frame, found}"""
"""Which frame is marked, and the middle of what is drawn in each colour, in fractions of the picture."""


def test_marks_lie_where_they_were_measured_in_the_frame_that_is_shown(
    page: Any, curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = min(ledger_of(Store(str(curated.dataset))), key=lambda row: row["clip_id"])
    frames, width, height = row["num_frames"], row["width_px"], row["height_px"]

    def marks(*_: object) -> dict[str, np.ndarray]:
        """Everything moves to the right: lips and a joint by one pixel a frame, the face by half."""
        found = {
            "landmarks": np.full((frames, 478, 2), np.nan, np.float32),
            "contour": np.zeros((frames, 4, 2), np.float32),
            "joints": np.full((frames, 65, 3), np.nan, np.float32),
            "valid": np.full(frames, 2, np.float32),
            "opening": np.zeros(frames, np.float32),
        }
        at = np.arange(frames)
        for corner, (x, y) in enumerate(((-20, -10), (20, -10), (20, 10), (-20, 10))):
            found["contour"][:, corner] = np.stack([at + 60 + x, np.full(frames, 80 + y)], axis=1)
        found["landmarks"][:, :2, 0] = at[:, None] / 2 + [20, 120]
        found["landmarks"][:, :2, 1] = [30, 130]
        found["joints"][:, 0] = np.stack([at + 30, np.full(frames, 150), np.ones(frames)], axis=1)
        found["joints"][:, 1] = 10, 10, 0.1  # too unsure to be drawn
        found["contour"][1::7], found["valid"][1::7] = np.nan, 0
        return found

    monkeypatch.setattr(Library, "marks", marks)
    page.refresh()
    wait_until(page, PLAYS)
    press(page, " ")
    wait_until(page, "return document.getElementById('video').paused")
    seen = set()
    for _ in range(8):
        press(page, ".")
        wait_until(
            page,
            "const v = document.getElementById('video');"
            "return !v.seeking && Number(document.getElementById('frame').dataset.frame)"
            " == Math.floor(v.currentTime * 25 + 0.001)",
        )
        drawn = page.execute_script(DRAWN)
        frame, found = drawn["frame"], drawn["found"]
        seen.add(frame)
        true = {"box": (frame / 2 + 70, 80), "joints": (frame + 30, 150), "lips": (frame + 60, 80)}
        if frame % 7 == 1:
            del true["lips"]
        assert set(found) == set(true), frame
        for name, (x, y) in true.items():
            middle = ((x + 0.5) / width, (y + 0.5) / height)
            assert found[name] == pytest.approx(middle, abs=1.5 / min(width, height)), (frame, name)
    assert len(seen) == 8 and any(frame % 7 == 1 for frame in seen)
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
