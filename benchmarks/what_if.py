"""How fast the what-if page is in a browser: `python -m benchmarks.what_if DATASET --clips 100000`.

Clips are drawn from the ledger of a data set, with every measurement changed by up to a fifth. It needs
Chromium and its driver (`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from selenium import webdriver

from talkforge.pipeline import tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.report.statistics import clips_table
from talkforge.pipeline.report.what_if import what_if_page
from talkforge.pipeline.store import Store

SLIDE = """const slider = document.querySelector('#min_face_px input[type=range]');
const times = [];
for (let n = 0; n < 100; n++) {
  slider.value = (n * 37) % 1000;
  const begin = performance.now();
  slider.dispatchEvent(new Event('input'));
  times.push(performance.now() - begin);
}
return times"""


def clips_like(ledger: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows drawn from a ledger, all decided by thresholds.

    Args:
        ledger: of a data set.
        count: number of rows.
    """
    chance = np.random.default_rng(0)
    rows = ledger.iloc[chance.integers(0, len(ledger), count)].reset_index(drop=True)
    for name in rows.select_dtypes(float).columns:
        rows[name] *= chance.uniform(0.8, 1.2, count)
    keys = [f"{n:08x}" for n in range(count)]
    return clips_table(rows.assign(clip_id=keys, failure=None, stopped_by=None))


def measure(page: Path) -> tuple[float, list[float]]:
    """Wall seconds until a page is ready, and milliseconds of each move of a slider."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser: Any = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        browser.get("about:blank")
        begin_s = time.monotonic()
        browser.get(page.as_uri())
        while browser.execute_script("return document.getElementById('page').dataset.ready") != "true":
            time.sleep(0.02)
        return time.monotonic() - begin_s, sorted(browser.execute_script(SLIDE))
    finally:
        browser.quit()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--clips", type=int, default=100_000)
    given = parser.parse_args()
    store = Store(given.dataset)
    ledger = tables.from_bytes(store.read("ledger.parquet"), "ledger.parquet").to_pandas()
    clips = clips_like(ledger, given.clips)
    keys = clips["clip_id"].tolist()
    repeats = list(zip(keys[: len(keys) // 10 : 2], keys[1 : len(keys) // 10 : 2], strict=True))
    begin_s = time.process_time()
    page = what_if_page(clips, load_dataset(store).config, repeats)
    print(f"written: {time.process_time() - begin_s:.2f} CPU s, {len(page) / 1e6:.1f} MB")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "what_if.html"
        path.write_text(page, encoding="utf-8")
        open_s, moves_ms = measure(path)
    print(f"ready after {open_s:.2f} s")  # noqa: T201
    print(f"slider: median {moves_ms[len(moves_ms) // 2]:.1f} ms, slowest {moves_ms[-1]:.1f} ms")  # noqa: T201


if __name__ == "__main__":
    main()
