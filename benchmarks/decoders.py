"""PyAV against decord on given clips: streaming, and random access to short clips.

    python -m benchmarks.decoders FILE...

Prints CPU milliseconds per frame, each a median over rounds that take turns, and the ratios
within the run. Spans are 25 frames at random places. `curation.media` opens the file for each
of them; decord opens it once and seeks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import decord
import numpy as np

from talkforge.curation.media import read_frames
from talkforge.curation.media.probe import probe
from talkforge.schemas.records import Input, Video

ROUNDS = 3
SEED = 0
NUM_SPANS = 6


def streamed(path: Path, video: Video) -> int:
    """Every frame through `curation.media`, as RGB."""
    return sum(1 for frame in read_frames(path, video) if frame.rgb() is not None)


def streamed_av(path: Path, thread_count: int, thread_type: str) -> int:
    """Every frame through bare PyAV, as RGB, with the given threads."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = thread_count
        stream.thread_type = thread_type
        return sum(1 for f in container.decode(stream) if f.to_ndarray(format="rgb24", threads=1) is not None)


def streamed_decord(path: Path) -> int:
    """Every frame through decord, one after the other."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return sum(1 for k in range(len(reader)) if reader[k].asnumpy() is not None)


def starts(num_frames: int, span: int) -> Iterator[int]:
    rng = np.random.default_rng(SEED)
    for _ in range(NUM_SPANS):
        yield int(rng.integers(0, max(1, num_frames - span)))


def random_av(path: Path, video: Video, num_frames: int, span: int) -> int:
    """Spans of `span` frames at random places through `curation.media`."""
    count = 0
    for first in starts(num_frames, span):
        start_s = video.start_s + (first + 0.5) / video.fps
        for frame in read_frames(path, video, start_s, start_s + (span - 1) / video.fps):
            frame.rgb()
            count += 1
    return count


def random_decord(path: Path, num_frames: int, span: int) -> int:
    """The same spans through decord's get_batch, the file opened once."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return sum(
        len(reader.get_batch(range(s, min(s + span, num_frames))).asnumpy()) for s in starts(num_frames, span)
    )


def cpu_ms(work: Callable[[], int]) -> float:
    """CPU milliseconds per frame."""
    begun = time.process_time()
    count = work()
    return (time.process_time() - begun) * 1000 / max(count, 1)


def measured(path: Path) -> dict[str, float]:
    video = probe(path, Input(uri=path.name), "0" * 64)
    num_frames = streamed_av(path, 1, "SLICE")
    span = min(25, num_frames // 2)
    ways: dict[str, Callable[[], int]] = {
        "media": lambda: streamed(path, video),
        "av 1 thread": lambda: streamed_av(path, 1, "SLICE"),
        "av auto": lambda: streamed_av(path, 0, "AUTO"),
        "decord": lambda: streamed_decord(path),
        "media spans": lambda: random_av(path, video, num_frames, span),
        "decord spans": lambda: random_decord(path, num_frames, span),
        "media single": lambda: random_av(path, video, num_frames, 1),
        "decord single": lambda: random_decord(path, num_frames, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            times[name].append(cpu_ms(work))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    rows = {path.name: measured(path) for path in parser.parse_args().clips}
    out = sys.stdout.write
    names = list(next(iter(rows.values())))
    out(f"{'CPU ms per frame':26}" + "".join(f"{name:>15}" for name in names) + "\n")
    for clip, row in rows.items():
        out(f"{clip:26}" + "".join(f"{row[name]:15.2f}" for name in names) + "\n")
    out(f"{'ratio to media, median':26}")
    for name in names:
        kind = name.split()[-1]
        base = f"media {kind}" if kind in ("spans", "single") else "media"
        out(f"{statistics.median(row[name] / row[base] for row in rows.values()):15.2f}")
    out("\n")


if __name__ == "__main__":
    main()
