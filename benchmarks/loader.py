"""What the training loader costs: against plain webdataset, by decoder, and against a trainer's pace.

    python -m benchmarks.loader [DATASET/shards/train-{000000..000003}.tar] [--rate 80]

Without shards it makes some: talking heads of 4 s at 256 px. Everything is reported in CPU time, which a
busy machine disturbs least; samples/s are those of one core that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import decord
import numpy as np
import torch
import webdataset as wds
from rich.console import Console
from rich.table import Table

from examples.talking_heads import varied_take
from talkforge.curation.face import lips
from talkforge.curation.media.encode import encode_flac, encode_mp4
from talkforge.pipeline.shards import ShardPlan, write_shard
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.arrays import ClipArrays
from talkforge.schemas.records import Clip, ClipMeasures, Face, Verdict
from talkforge.schemas.sample import Members, Provenance, SampleMeta
from talkforge.schemas.units import features_from_frames, samples_from_frames
from talkforge.training.config import DataConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.loader import SpanLoader, probe
from talkforge.training.data.shards import shard_list
from talkforge.training.data.spans import MEMBERS, DecodedSample, decode_sample
from talkforge.training.data.tar import read_samples

SEED = 0
SHARDS, CLIPS_PER_SHARD, CLIP_S, CLIP_PX = 4, 4, 4.0, 256
ROUNDS = 3
OTHERS = ("landmarks.npz", "joints.npz", "flac", "face.jpg")


@dataclass(frozen=True)
class Row:
    """One way of doing it: what one sample costs."""

    name: str
    cpu_ms: float
    samples: int

    @property
    def per_s(self) -> float:
        """Samples per second of one core."""
        return 1000 / self.cpu_ms


# --------------------------------------------------------------------------- shards to read


def generate(folder: Path) -> str:
    """A small data set of talking heads; returns the pattern of its shards."""
    store = Store(str(folder))
    for number in range(SHARDS):
        clips = [_clip(number * CLIPS_PER_SHARD + k) for k in range(CLIPS_PER_SHARD)]
        plan = ShardPlan(f"train-{number:06d}", tuple(key for key, _ in clips), "")
        write_shard(store, plan, clips)
    return f"{folder}/shards/train-{{000000..{SHARDS - 1:06d}}}.tar"


def _clip(seed: int) -> tuple[str, Members]:
    """A rendered head with its true lips; noise stands for what costs the same whatever it says."""
    take = varied_take(seed, CLIP_PX, CLIP_S)
    frames, rng = take.num_frames, np.random.default_rng(seed)
    contour = take.faces[0].contour
    masks = np.stack([lips.rasterise(points, CLIP_PX, CLIP_PX) for points in contour])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_mp4(path, take.frames(), take.fps, take.samples[:, None].repeat(2, 1), 18, "veryfast")
        mp4 = path.read_bytes()
    arrays = ClipArrays(
        landmarks=rng.normal(128, 60, (frames, 478, 3)).astype(np.float32),
        contour=contour,
        lip_valid=np.full(frames, 2, np.uint8),
        joints=rng.normal(128, 60, (frames, 17, 3)).astype(np.float32),
        face_rgb=np.zeros((112, 112, 3), np.uint8),
        speech=rng.normal(size=(features_from_frames(frames, take.fps), 768)).astype(np.float16),
        identity=np.eye(512, dtype=np.float32)[seed],
    )
    sound = rng.normal(0, 0.05, samples_from_frames(frames, take.fps)).astype(np.float32)
    jpg = cv2.imencode(".jpg", rng.integers(0, 256, (112, 112, 3)).astype(np.uint8))[1].tobytes()
    meta = _meta(f"head{seed:02d}", frames, take.fps)
    bits = sample.pack_mask(masks)
    return meta.clip.clip_id, sample.encode(
        meta, arrays, bits, mp4=mp4, flac=encode_flac(sound), face_jpg=jpg
    )


def _meta(key: str, frames: int, fps: float) -> SampleMeta:
    clip = Clip(
        clip_id=key, video_id=key, uri="", scene=0, track=0, start_s=0, end_s=frames / fps, fps=fps,
        num_frames=frames, width_px=CLIP_PX, height_px=CLIP_PX,
    )  # fmt: skip
    face = Face(source_fps=fps, face_px=128, face_confidence=1, face_confidence_min=1, faces_max=1)
    return SampleMeta(
        measures=ClipMeasures(clip=clip, stopped_by=None, face=face),
        omega_face=0.5,
        omega_body=0.5,
        person_id=None,
        verdict=Verdict(clip_id=key, accepted=True, reasons=()),
        provenance=Provenance(
            uri="", sha256="", source="generated", licence="", consent="", models={}, config_hash="",
            tool_version="",
        ),
    )  # fmt: skip


# --------------------------------------------------------------------------- measuring


def cpu_s() -> float:
    """CPU time of this process and of those that it has seen end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(name: str, work: Callable[[], int]) -> Row:
    """Median over rounds of a piece of work that returns its number of samples."""
    found = []
    for _ in range(ROUNDS):
        begun_s = cpu_s()
        count = work()
        found.append((cpu_s() - begun_s) * 1000 / count)
    return Row(name, statistics.median(found), count)


def reading(urls: list[str], config: DataConfig, info: DatasetInfo, count: int) -> Iterator[Row]:
    """From bytes that nobody decodes to batches."""

    def plain() -> int:
        return sum(1 for _ in wds.WebDataset(urls, shardshuffle=False))

    def wanted() -> int:
        return sum(1 for url in urls for _ in read_samples(url, MEMBERS))

    def prepared() -> int:
        return sum(1 for _ in _prepared(urls, config, info))

    def drawn() -> int:
        return _drawn(config, info, count)

    yield measured("plain webdataset, nothing decoded", plain)
    yield measured("the members that training reads", wanted)
    yield measured("checked, all but frames decoded", prepared)
    yield measured("spans in batches", drawn)
    for workers in (0, 1):
        changed = config.model_copy(update={"workers": workers, "cache_mb": 8192})
        yield _kept(changed, info, 50 * count)


def _drawn(config: DataConfig, info: DatasetInfo, count: int) -> int:
    batches = iter(SpanLoader(config, info, seed=SEED))
    found = sum(next(batches).size for _ in range(max(1, count // config.batch_size)))
    del batches
    gc.collect()  # ends the loader's processes, whose CPU time is known only then
    return found


def _kept(config: DataConfig, info: DatasetInfo, count: int) -> Row:
    """Spans of clips in memory: the cost of many spans minus that of the first ones."""
    name = f"spans of clips in memory, {config.workers} workers"
    first = config.shuffle + 2 * sum(manifest.count for _, manifest in shard_list(config.shards))
    begun_s = cpu_s()
    few = _drawn(config, info, first)
    between_s = cpu_s()
    many = _drawn(config, info, first + count)
    return Row(name, ((cpu_s() - between_s) - (between_s - begun_s)) * 1000 / (many - few), many - few)


def _prepared(
    urls: list[str], config: DataConfig, info: DatasetInfo
) -> Iterator[tuple[DecodedSample, Members]]:
    for key, members in itertools.chain.from_iterable(read_samples(url, MEMBERS) for url in urls):
        try:
            yield decode_sample(key, members, config.sizes, config.lengths, info), members
        except SkippedSampleError as error:
            sys.stderr.write(f"left out: {error}\n")


def decoding(urls: list[str], config: DataConfig, info: DatasetInfo) -> Iterator[Row]:
    """The same spans at the size of their bucket, from MP4 files in memory."""
    clips = [(clip, members["mp4"]) for clip, members in _prepared(urls, config, info)]
    rng = np.random.default_rng(SEED)
    firsts = [int(rng.integers(0, clip.num_frames - config.num_frames + 1)) for clip, _ in clips]
    ways: Mapping[str, Callable[[DecodedSample, bytes, int], np.ndarray]] = {
        "PyAV, scaled in YUV (the loader's)": lambda clip, _, first: clip.frames.rgb(
            first, first + config.num_frames
        ),
        "decord, scaled by its decoder": lambda clip, mp4, first: _decord(
            clip, mp4, first, config.num_frames
        ),
        "decord, scaled by OpenCV": lambda clip, mp4, first: _decord_cv2(clip, mp4, first, config.num_frames),
    }
    for name, way in ways.items():

        def spans(way: Callable[[DecodedSample, bytes, int], np.ndarray] = way) -> int:
            for (clip, mp4), first in zip(clips, firsts, strict=True):
                assert len(way(clip, mp4, first)) == config.num_frames
            return len(clips)

        yield measured(name, spans)


def _decord(clip: DecodedSample, mp4: bytes, first: int, frames: int) -> np.ndarray:
    height_px, width_px = clip.size
    reader = decord.VideoReader(
        io.BytesIO(mp4), ctx=decord.cpu(0), num_threads=1, width=width_px, height=height_px
    )
    found: np.ndarray = reader.get_batch(range(first, first + frames)).asnumpy()
    return found


def _decord_cv2(clip: DecodedSample, mp4: bytes, first: int, frames: int) -> np.ndarray:
    reader = decord.VideoReader(io.BytesIO(mp4), ctx=decord.cpu(0), num_threads=1)
    full = reader.get_batch(range(first, first + frames)).asnumpy()
    return np.stack([cv2.resize(rgb, clip.size[::-1], interpolation=cv2.INTER_AREA) for rgb in full])


# --------------------------------------------------------------------------- report


def show(title: str, rows: list[Row], rate: float) -> None:
    """A table, with the fraction of a core that `rate` samples/s take."""
    table = Table("", "CPU ms a sample", "samples/s of a core", f"cores for {rate:g} samples/s", title=title)
    for row in rows:
        needed = f"{rate * row.cpu_ms / 1000:.3f}"
        table.add_row(row.name, f"{row.cpu_ms:.3g}", f"{row.per_s:.0f}", needed)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="?", help="pattern of shards; without, some are made")
    parser.add_argument("--frames", type=int, default=21, help="frames of a span")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"), help="px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=96, help="samples in each measurement")
    parser.add_argument("--rate", type=float, default=80.0, help="samples/s that a trainer consumes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = given.shards or generate(Path(folder))
        config = DataConfig(
            shards=shards, num_frames=given.frames, sizes=(tuple(given.size),), batch_size=given.batch,
            shuffle=16, workers=0,
        )  # fmt: skip
        info = probe(shards)
        urls = [url for url, _ in shard_list(shards)]
        begun_s = time.monotonic()
        rows = list(reading(urls, config, info, given.samples))
        show(f"Reading {info.num_samples} clips, spans of {given.frames} frames", rows, given.rate)
        show("Decoding a span", list(decoding(urls, config, info)), given.rate)
        sys.stdout.write(f"{time.monotonic() - begun_s:.0f} s\n")


if __name__ == "__main__":
    main()
