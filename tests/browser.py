"""The distribution's Chromium without a window, for tests of pages; they are skipped where it is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--window-size=1280,1000",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",  # a microphone that beeps
)  # fmt: skip

PATIENCE_S = 120
"""How long a page may take on a busy machine."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser driven by Selenium, of the packages `chromium` and `chromium-driver`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the packages of [dev] are not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ARGUMENTS:
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(PATIENCE_S)
    yield browser
    browser.quit()


def wait_until(browser: Any, script: str) -> Any:
    """What a script returns as soon as that is true.

    Args:
        browser: what `chromium` gives.
        script: JavaScript that begins with `return`.
    """
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE_S, 0.2).until(
        lambda driver: driver.execute_script(script), f"never true: {script}"
    )


def press(browser: Any, keys: str) -> None:
    """Press keys on the page, one after the other."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(keys).perform()


def complaints(browser: Any) -> list[str]:
    """What the page has written to the console since the last call: errors, refused loads, logs."""
    return [entry["message"] for entry in browser.get_log("browser")]
