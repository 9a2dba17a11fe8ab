"""How long the report takes, and how fast its pages are in a browser: `python -m benchmarks.report DATASET`.

Clips are drawn from the ledger of a data set, with every measurement changed by up to a fifth, a hundred
clips to a video. The pages of all of them are written, without pictures, and opened in headless Chromium
(`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from selenium import webdriver

from talkforge.pipeline import near_duplicates, tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.report import write_report
from talkforge.pipeline.report.statistics import frame_of
from talkforge.pipeline.store import Store

MOVES = {
    "what_if": """const input = document.querySelector('#min_face_px input[type=range]');
        const move = (n) => { input.value = (n * 37) % 1000; input.dispatchEvent(new Event('input')); };""",
    "clips": """const input = document.querySelector('#chart-duration_s input');
        const move = (n) => {
            input.value = (n * 37) % 100 / 10;
            input.dispatchEvent(new Event('change'));
        };""",
}
"""What moves a threshold, and a filter."""

TIMED = """const times = [];
for (let n = 0; n < 50; n++) {
  const begin = performance.now();
  move(n);
  times.push(performance.now() - begin);
}
return times"""

CLIPS_OF_VIDEO, CLIPS_OF_PERSON = 100, 40

UNCHANGED = {"fps", "start_s", "end_s", "duration_s"}


def ledger_like(ledger: pa.Table, count: int) -> pa.Table:
    """Rows drawn from a ledger, with ids, videos and people of their own.

    Args:
        ledger: of a data set.
        count: number of rows.
    """
    chance = np.random.default_rng(0)
    rows = ledger.take(pa.array(chance.integers(0, len(ledger), count))).combine_chunks()
    videos = np.arange(count) // CLIPS_OF_VIDEO
    made: dict[str, Any] = {
        "clip_id": [f"{video:012x}_{n % CLIPS_OF_VIDEO:08d}_t0" for n, video in enumerate(videos)],
        "video_id": [f"{video:012x}" for video in videos],
        "uri": [f"s3://bucket/{video:012x}.mp4" for video in videos],
        "person_id": [f"p{n // CLIPS_OF_PERSON:07d}" for n in chance.permutation(count)],
    }
    for field in rows.schema:
        if pa.types.is_floating(field.type) and field.name not in UNCHANGED:
            values = rows.column(field.name).to_numpy(zero_copy_only=False)
            made[field.name] = pa.array(values * chance.uniform(0.8, 1.2, count), from_pandas=True)
    for name, column in made.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(column))
    return rows


def sources_of(ledger: pa.Table) -> pa.Table:
    """One measured input of ten minutes for each video of a ledger."""
    videos = ledger.column("video_id").unique().to_pylist()
    sizes = {"duration_s": 600.0, "width_px": 1280, "height_px": 720, "fps": 25.0, "num_bytes": 10**8}
    named = {"reason": "", "source": "", "licence": "CC0", "consent": "", "status": "measured", **sizes}
    columns: dict[str, Any] = {name: [value] * len(videos) for name, value in named.items()}
    return pa.table({"uri": [f"s3://bucket/{key}.mp4" for key in videos], "video_id": videos, **columns})


def measure(page: Path) -> tuple[float, list[float]]:
    """Wall seconds until a page is ready, and milliseconds of each move, sorted."""
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
        ready_s = time.monotonic() - begin_s
        return ready_s, sorted(browser.execute_script(MOVES[page.stem] + TIMED))
    finally:
        browser.quit()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--clips", type=int, default=100_000)
    given = parser.parse_args()
    store = Store(given.dataset)
    dataset = load_dataset(store)
    ledger = ledger_like(tables.from_bytes(store.read("ledger.parquet"), "ledger.parquet"), given.clips)
    sources = sources_of(ledger).to_pandas()
    failures = tables.from_bytes(store.read("failures.parquet"), "failures.parquet").slice(0, 0).to_pandas()
    keys = ledger.column("clip_id").to_pylist()
    few = len(keys) <= near_duplicates.MAX_CLIPS
    some = keys[: len(keys) // 10]
    repeats = list(zip(some[::2], some[1::2], strict=False)) if few else None
    with tempfile.TemporaryDirectory() as folder:
        begin_s = time.process_time()
        frame = frame_of(ledger)
        write_report(Store(folder), frame, sources, failures, dataset, lambda _: None, repeats=repeats)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"written: {time.process_time() - begin_s:.1f} CPU s, peak {peak_gb:.1f} GB")  # noqa: T201
        for name in MOVES:
            page = Path(folder) / "report" / f"{name}.html"
            ready_s, moves_ms = measure(page)
            median_ms = moves_ms[len(moves_ms) // 2]
            print(  # noqa: T201
                f"{page.name}: {page.stat().st_size / 1e6:.1f} MB, ready after {ready_s:.2f} s; "
                f"a move takes {median_ms:.0f} ms (median), {moves_ms[-1]:.0f} ms (slowest)"
            )


if __name__ == "__main__":
    main()
