"""`make demo`: generates videos with known truth, curates them beside real ones, and checks what came out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from examples import demo_videos

OUT = Path("demo-out")
CONFIG = Path("configs/offline.yaml")


def outcomes(dataset: Path) -> dict[str, tuple[str, list[list[str]]]]:
    """File name -> status of the source, and reason codes of each of its clips in order."""
    clips: dict[str, list[list[str]]] = {}
    for row in pq.read_table(dataset / "ledger.parquet").to_pylist():
        clips.setdefault(row["uri"], []).append(row["reasons"])
    return {
        Path(row["uri"]).name: (row["status"], clips.get(row["uri"], []) if row["num_clips"] else [])
        for row in pq.read_table(dataset / "sources.parquet").to_pylist()
    }


def main() -> int:
    """Run the demo in the current folder; returns the exit code."""
    console = Console()
    videos, dataset = OUT / "videos", OUT / "dataset"
    shutil.rmtree(OUT, ignore_errors=True)
    begin_s = time.monotonic()
    console.print(f"1. generating talking videos with known truth in {videos}, beside four real ones")
    demo_videos.make(videos)
    everything = ("--set", "run.trace=all")  # to see every reason, where one would do
    console.print(f"2. talkforge curate {videos} --out {dataset} --config {CONFIG} {' '.join(everything)}")
    talkforge = Path(sys.executable).with_name("talkforge")
    subprocess.run(
        [talkforge, "curate", videos, "--out", dataset, "--config", CONFIG, *everything], check=True
    )
    console.print("3. what was expected of each file, and what came out")
    truth = json.loads((videos / "truth.json").read_text())
    found = outcomes(dataset)
    table = Table("file", "what it shows", "status", "clips", "as expected", box=None)
    wrong = 0
    for name, row in truth.items():
        status, clips = found.get(name, ("missing", []))
        as_expected = (status, clips) == (row["status"], [list(codes) for codes in row["expected"]])
        wrong += not as_expected
        fates = "; ".join(", ".join(codes) or "accepted" for codes in clips)
        table.add_row(name, row["what"], status, fates, "yes" if as_expected else "NO")
    console.print(table)
    console.print(f"report: {(dataset / 'report' / 'index.html').absolute()}", soft_wrap=True)
    console.print(f"{time.monotonic() - begin_s:.0f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
