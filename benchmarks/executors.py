"""How much faster Ray is than one process: `python -m benchmarks.executors [FOLDER] [--rounds 3]`.

Curates a folder of videos by the command line, start-up included, in turn:

    inline       one process on one core
    ray          a Ray of its own on `--cores` cores
    two raylets  a cluster of two nodes on this machine that runs already, one core each

and prints wall seconds, and how many times as fast as inline each is in the same round. All data sets must
have the same bytes. Wall seconds mean something on a machine that does nothing else: the load is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples import demo_videos
from talkforge.schemas import telemetry

RESULTS = ("shards/*", "ledger.parquet", "sources.parquet", "failures.parquet", "parts/*/*.npz")
"""Files that must not depend on where the work was done."""


@contextmanager
def two_raylets() -> Iterator[str]:
    """Address of a cluster of two nodes on this machine, each with one core."""
    os.environ.update(telemetry.as_set())
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def curate(folder: Path, out: Path, cores: int, *arguments: str) -> float:
    """Wall seconds of `talkforge curate` on the first so many cores.

    Raises:
        SystemExit: the command failed; with what it said.
    """
    ours = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, "-m", "talkforge", "curate", str(folder), "-o", str(out), "-c", "offline"]
    begin_s = time.monotonic()
    done = subprocess.run(
        [*command, *arguments],
        preexec_fn=lambda: os.sched_setaffinity(0, ours),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - begin_s


def digest(dataset: Path) -> dict[str, str]:
    """sha256 of every result of a data set, by its path."""
    return {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in RESULTS
        for path in sorted(dataset.glob(pattern))
    }


def measure(folder: Path, scratch: Path, cores: int, rounds: int) -> Iterator[dict[str, float]]:
    """Wall seconds of each way, round by round.

    Raises:
        SystemExit: a command failed, or two ways gave other bytes.
    """
    with two_raylets() as address:
        ways = {
            "inline": (1, "--executor", "inline"),
            "ray": (cores, "--workers", str(cores)),
            "two raylets": (cores, "--address", address),
        }
        for number in range(rounds):
            wall_s, found = {}, {}
            for way, (on, *arguments) in ways.items():
                out = scratch / f"{number} {way}"
                wall_s[way] = curate(folder, out, on, *arguments)
                found[way] = digest(out)
            if other := [way for way in found if found[way] != found["inline"]]:
                raise SystemExit(f"other bytes than inline: {', '.join(other)}")
            yield wall_s


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.executors", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, nargs="?", help="videos (default: those of the demo)")
    parser.add_argument("--cores", type=int, default=2, help="of the Ray of its own (2)")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is run (1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="talkforge-bench-") as scratch:
        folder = arguments.folder or Path(scratch) / "videos"
        if arguments.folder is None:
            demo_videos.make(folder)
        sys.stdout.write(f"load before: {os.getloadavg()[0]:.2f}\n")
        rows = []
        for wall_s in measure(folder, Path(scratch), arguments.cores, arguments.rounds):
            rows.append(wall_s)
            times = (f"{way} {s:.1f} s ({wall_s['inline'] / s:.2f} times)" for way, s in wall_s.items())
            sys.stdout.write(", ".join(times) + "\n")
            sys.stdout.flush()
    for way in rows[0]:
        median = statistics.median(row["inline"] / row[way] for row in rows)
        sys.stdout.write(f"{way}: {median:.2f} times as fast as inline (median of {len(rows)}), same bytes\n")


if __name__ == "__main__":
    main()
