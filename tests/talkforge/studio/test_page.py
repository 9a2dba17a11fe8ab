"""The studio in a browser: files and microphone in, a video out, cancelled and made again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from talkforge.studio.server import listen
from talkforge.studio.studio import Studio
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.savings import Savings
from tests.browser import complaints, wait_until
from tests.training.batches import some_info
from tests.training.generate.test_portrait import two_faces
from tests.training.speakers import a_run, shown, tone

STATUS = "return document.getElementById('status').textContent"


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    info = some_info(speech_dim=80, identity_dim=0)
    run = a_run(tmp_path / "run", info, data__prefix_frames=5)
    for name in ("given", "videos"):
        (tmp_path / name).mkdir()
    pipeline = GenerationPipeline.load(run, "cpu")
    return Studio(pipeline, Source(run), Savings(), tmp_path / "given", tmp_path / "videos")


@pytest.fixture
def page(chromium: Any, studio: Studio) -> Iterator[Any]:
    complaints(chromium)
    server = listen(studio, "Studio: <b>run</b>")
    thread = threading.Thread(target=server.run)
    thread.start()
    chromium.get(server.url)
    yield chromium
    chromium.get("about:blank")
    server.stop()
    thread.join()
    studio.close()


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def said(page: Any, beginning: str) -> None:
    wait_until(page, f"{STATUS}.startsWith({beginning!r})")


def set_to(page: Any, name: str, value: object) -> None:
    page.execute_script(
        "const field = document.getElementById('settings').elements[arguments[0]];"
        "field.value = arguments[1]; field.dispatchEvent(new Event('input'))",
        name,
        str(value),
    )


def test_a_portrait_speaks_on_the_page(page: Any, studio: Studio, tmp_path: Path) -> None:
    """One visit, because starting everything costs more than looking at it."""
    wait_until(page, "return document.querySelectorAll('#settings label').length == 8")
    assert page.title == find(page, "h1").text == "Studio: <b>run</b>"
    assert not find(page, "#make").is_enabled() and not find(page, "#cancel").is_enabled()

    # What is no image is said, and a portrait shows its faces, of which another one can be chosen.
    (tmp_path / "words.png").write_text("words")
    find(page, "#portrait-file").send_keys(str(tmp_path / "words.png"))
    said(page, "portrait: expected an image, found a file that is none")
    find(page, "#portrait-file").send_keys(str(two_faces(tmp_path / "two.png")))
    wait_until(page, "return document.querySelectorAll('#faces button').length == 2")
    chosen = "return document.querySelector('#faces [aria-pressed=true]').dataset.face"
    assert page.execute_script(chosen) == "2"
    loaded = "const f = document.getElementById('frame'); return f.complete && f.naturalWidth == 32"
    wait_until(page, f"{loaded} && f.src.endsWith('face=2')")
    find(page, "#faces [data-face='1']").click()
    assert page.execute_script(chosen) == "1"
    wait_until(page, f"{loaded} && f.src.endsWith('face=1')")

    # A file of audio, and settings.
    find(page, "#audio-file").send_keys(str(tone(tmp_path / "tone.wav", 0.9)))
    wait_until(page, "return document.getElementById('audio-text').textContent != ''")
    assert find(page, "#audio-text").text == "0.90 s: a video of 23 frames"
    wait_until(page, "return document.getElementById('audio').duration > 0.8")
    set_to(page, "omega_face", 0.9)
    assert find(page, "#settings output").text == "0.9"
    set_to(page, "sample.steps", 0)
    find(page, "#make").click()
    said(page, "Steps: ")
    assert studio.state.status == "idle"

    # A video that would take long is cancelled, with progress on the page before.
    set_to(page, "sample.steps", 5000)
    find(page, "#make").click()
    said(page, "generating: step ")
    wait_until(page, "const p = document.getElementById('progress'); return p.value > 0 && p.value < 0.5")
    assert not find(page, "#make").is_enabled()
    find(page, "#cancel").click()
    said(page, "cancelled: ")

    # One that is made plays. Its settings are those of the page.
    set_to(page, "sample.steps", 2)
    find(page, "#make").click()
    said(page, "done")
    wait_until(
        page, "const v = document.getElementById('video'); return v.readyState > 2 && v.currentTime > 0.3"
    )
    assert page.execute_script("return document.getElementById('video').videoWidth") == 32
    link = find(page, "#videos a")
    assert link.get_attribute("href").endswith("/video/1")
    assert link.get_attribute("download") == "video-0001.mp4"
    assert len(shown(studio.state.videos[0])[0]) == 23

    # The microphone, which beeps here.
    page.execute_script("document.getElementById('audio-text').textContent = ''")
    find(page, "#record").click()
    wait_until(page, "return document.getElementById('record').textContent == 'Stop'")
    page.execute_async_script("setTimeout(arguments[0], 700)")
    find(page, "#record").click()
    wait_until(page, "return document.getElementById('audio-text').textContent != ''")
    assert 0.3 < studio.speech.sound.duration_s < 60 and studio.speech.sound.mono.std() > 0.001

    # Nothing is lost when the page is loaded again.
    page.refresh()
    wait_until(page, "return document.querySelectorAll('#faces button').length == 2")
    wait_until(page, "return document.querySelectorAll('#videos li').length == 1")
    assert find(page, "#make").is_enabled()
    allowed = ("409 (CONFLICT)",)  # the file that is no image
    assert [line for line in complaints(page) if not any(word in line for word in allowed)] == []


def test_without_a_microphone_the_page_says_so(page: Any) -> None:
    wait_until(page, "return document.querySelectorAll('#settings label').length == 8")
    page.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('Requested device not found'))"
    )
    find(page, "#record").click()
    said(page, "no microphone: Requested device not found")
    assert find(page, "#record").get_attribute("aria-pressed") == "false"


def test_the_page_fits_every_width(page: Any, tmp_path: Path) -> None:
    wait_until(page, "return document.querySelectorAll('#settings label').length == 8")
    find(page, "#portrait-file").send_keys(str(two_faces(tmp_path / "two.png")))
    wait_until(page, "return document.querySelectorAll('#faces button').length == 2")
    wait_until(page, "return document.getElementById('portrait').naturalWidth == 600")
    try:
        for width_px in (390, 800, 1280):
            page.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            assert page.execute_script("return document.documentElement.scrollWidth") <= width_px
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
