"""How much memory a worker needs; that a video's length makes no difference: `python -m benchmarks.memory`.

Every case runs in a process of its own, which does what a Ray worker does: measures, embeds and
commits one part after the other. Long videos are made by looping a short one; their packets are
copied, not encoded again. Dense tracing of half an hour takes long, so the long loop is compared
with shorter ones with the gate on small faces raised until nothing is traced, and one whole window
(the most footage that a worker ever holds) is traced by itself.

    tall      frames of 1080 x 1920, everything
    short     2 minutes, listened to and scanned
    middle    10 minutes, likewise: one whole window
    long      30 minutes, listened to and scanned, in windows of at most 10 minutes
    traced    2 minutes, everything
    window    10 minutes, everything
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av

from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline.cluster import worker_environment
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.parts import plan
from talkforge.pipeline.store import Store
from talkforge.pipeline.tables import from_bytes
from talkforge.schemas.config import load_config
from talkforge.schemas.records import Input

ROOT = Path(__file__).parents[1]
CLIPS = ROOT.parent / "shared" / "clips"
CONFIG = ROOT / "configs" / "offline.yaml"

UNTRACED = "measure.gates.min_face_px=100000"
"""No face is this large: everything is listened to and scanned, and nothing is traced."""

LIMIT_MB = 1500
"""What a worker may take on a video of 1080 x 1920."""


@dataclass(frozen=True)
class Case:
    """One run: a file of the folder, looped to a length (0: as it is), with settings."""

    file: str
    length_s: int = 0
    settings: tuple[str, ...] = ()


CASES = {
    "tall": Case("ls_demo3.mp4"),
    "short": Case("st_katie.mp4", 120, (UNTRACED,)),
    "middle": Case("st_katie.mp4", 590, (UNTRACED,)),
    "long": Case("st_katie.mp4", 1800, (UNTRACED,)),
    "traced": Case("st_katie.mp4", 120),
    "window": Case("st_katie.mp4", 590),
}


@dataclass(frozen=True)
class Figures:
    """What one process took. `loaded_mb` is its peak before the first part, `peak_mb` at the end."""

    footage_s: float
    width_px: int
    height_px: int
    parts: int
    clips: int
    traced: int
    loaded_mb: float
    peak_mb: float
    cpu_s: float


def loop(source: Path, out: Path, length_s: float) -> None:
    """Repeat a file's packets, with later timestamps each time, until it is at least that long."""
    with av.open(str(out), "w", format="matroska") as target:
        with av.open(str(source)) as file:
            templates = [*file.streams.video, *file.streams.audio]
            streams = {s.index: target.add_stream_from_template(s) for s in templates}
        start_s = Fraction(0)
        while start_s < length_s:
            with av.open(str(source)) as file:
                packets = file.demux(*file.streams.video, *file.streams.audio)
                lap = [packet for packet in packets if packet.dts is not None and packet.pts is not None]
                first_s = min(packet.dts * packet.time_base for packet in lap)
                end_s = max((packet.pts + (packet.duration or 0)) * packet.time_base for packet in lap)
                for packet in lap:
                    shift = round((start_s - first_s) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
            start_s += end_s - first_s


def peak_mb() -> float:
    """Peak resident memory of this process so far, megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def work(path: Path, out: Path, settings: list[str]) -> Figures:
    """Measure, embed and commit every part of one video in this process."""
    from benchmarks.curate import Clock, warm_up

    config = load_config(CONFIG, settings)
    warm_up(config, Clock())
    loaded_mb, begin_s = peak_mb(), time.process_time()
    video = probe(path, Input(uri=str(path)), content_hash(path))
    parts, store = plan([video], config.run.part_s), Store(str(out))
    clips = traced = 0
    for done in InlineExecutor().run(parts, config, store):
        name = f"parts/{done.part.name}/clips.parquet"
        rows = from_bytes(store.read(name), name).to_pylist()
        clips += len(rows)
        traced += sum(row["stopped_by"] is None for row in rows)
    return Figures(
        footage_s=video.duration_s,
        width_px=video.width_px,
        height_px=video.height_px,
        parts=len(parts),
        clips=clips,
        traced=traced,
        loaded_mb=loaded_mb,
        peak_mb=peak_mb(),
        cpu_s=time.process_time() - begin_s,
    )


def run(case: Case, folder: Path) -> Figures:
    """The case in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="talkforge-bench-") as scratch:
        path = folder / case.file
        if case.length_s:
            path = Path(scratch) / "loop.mkv"
            loop(folder / case.file, path, case.length_s)
        command = [sys.executable, "-m", "benchmarks.memory", "--work", str(path), str(Path(scratch) / "out")]
        command += [f"--set={setting}" for setting in case.settings]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | worker_environment()
        )
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def line(name: str, figures: Figures) -> str:
    size = f"{figures.width_px}x{figures.height_px}"
    return (
        f"{name:8}{size:>11}{figures.footage_s:9.0f} s{figures.parts:7}{figures.clips:7}{figures.traced:8}"
        f"{figures.loaded_mb:11.0f}{figures.peak_mb:9.0f}{figures.cpu_s:9.0f}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--folder", type=Path, default=CLIPS, help="where the clips are (../shared/clips)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = sys.stdout.write
    if arguments.work:
        path, dataset = map(Path, arguments.cases)
        out(json.dumps(asdict(work(path, dataset, arguments.settings))) + "\n")
        return
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    out(
        f"{'case':8}{'frame':>11}{'footage':>11}{'parts':>7}{'clips':>7}{'traced':>8}"
        f"{'loaded MB':>11}{'peak MB':>9}{'CPU s':>9}\n"
    )
    found = {}
    for name in arguments.cases or CASES:
        found[name] = run(CASES[name], arguments.folder)
        out(line(name, found[name]) + "\n")
        sys.stdout.flush()
    if "tall" in found:
        out(f"\ntall frames: {found['tall'].peak_mb:.0f} MB of at most {LIMIT_MB} MB\n")
    for longer, shorter in (("long", "middle"), ("middle", "short"), ("window", "traced")):
        if {longer, shorter} <= found.keys():
            times = found[longer].footage_s / found[shorter].footage_s
            ratio = found[longer].peak_mb / found[shorter].peak_mb
            out(f"{longer} over {shorter}: {times:.0f} times the footage, {ratio:.2f} times the memory\n")


if __name__ == "__main__":
    main()
