"""What curation costs, and how near it is to the least it could cost: `python -m benchmarks.curate [FOLDER]`.

Curates a folder of videos in one process of one thread, as `talkforge curate --executor inline`
does, and prints the CPU seconds of every stage. Then, in the same process, measures the floor:

    decode    every frame of every readable video, once
    convert   the frames of the accepted clips at the clip's size, once to RGB and once for the encoder
    landmark  one call of the face landmarker for each of these frames
    encode    the accepted clips, with the settings of the run

No detector, no voice activity, no second pass over anything: nobody could curate with less, because
knowing which clips survive costs something. The ratio of the two is what is worth watching; CPU
seconds by themselves depend on the machine and on who else is using it.

Then the same footage is curated twice more with a threshold that no clip fulfils (`thresholds.max_faces=0`):
as it is, when nothing is traced, and with `run.trace=all`, when everything is that passes the gates. Both are
compared with decoding the footage once.

Importing and loading models is paid once for each process however much footage follows. It is
measured apart and belongs to neither side.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from examples import demo_videos
from talkforge.curation import media
from talkforge.curation.body.pose import PoseTracer
from talkforge.curation.face.landmarks import LANDMARKER_PX, FaceLandmarker
from talkforge.pipeline import jobs, needs, stages
from talkforge.pipeline.cluster import worker_environment
from talkforge.pipeline.dataset import load_ingested
from talkforge.pipeline.executor import Done, InlineExecutor
from talkforge.pipeline.heartbeat import OnRunning
from talkforge.pipeline.intake import IngestRow, Intake
from talkforge.pipeline.ledger import Selection
from talkforge.pipeline.parts import Part, committed_parts
from talkforge.pipeline.store import DEFAULT_LIMITS, FetchLimits, Store
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import Config, ShardConfig, load_config
from talkforge.schemas.records import Clip, Input, LedgerRow, Video

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CONFIG = ROOT / "configs" / "offline.yaml"

FACE_MARGIN = 1.6
"""Side of the floor's crop around the points that were found, in units of their longer side."""

STAGES = (
    "ingest",
    "vad",
    "scan",
    "audio quality",
    "trace",
    "speaker",
    "sync",
    "fingerprint",
    "embed",
    "store",
    "cut",
    "select and report",
)
FLOOR = ("decode", "convert", "landmark", "encode")


@dataclass
class Clock:
    """CPU seconds of this process by name."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin_s = time.process_time()
        try:
            yield
        finally:
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.process_time() - begin_s

    def each(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """The items, their making clocked and their use not."""
        while True:
            with self(name):
                item = next(items, self)
            if item is self:
                return
            yield item


class ClockedExecutor(InlineExecutor):
    """The inline executor with a clock on what it is asked to do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def ingest(
        self, inputs: Iterable[Input], base: str = "", limits: FetchLimits = DEFAULT_LIMITS
    ) -> Iterator[IngestRow]:
        yield from self._clock.each("ingest", super().ingest(inputs, base, limits))

    def run(
        self, parts: Iterable[Part], config: Config, store: Store, on_running: OnRunning | None = None
    ) -> Iterator[Done]:
        yield from self._clock.each("run", super().run(parts, config, store, on_running))

    def isolate(
        self,
        function: Callable[..., Any],
        pieces: Iterable[Any],
        give_up: Callable[[Any, BaseException], Any],
        on_running: OnRunning | None = None,
    ) -> Iterator[Any]:
        yield from self._clock.each("cut", super().isolate(function, pieces, give_up, on_running))


@dataclass(frozen=True)
class Report:
    """CPU seconds by stage and of the floor, and what they were spent on."""

    footage_s: float
    accepted_s: float
    clips: int
    accepted: int
    loading_s: float
    stages_s: dict[str, float]
    floor_s: dict[str, float]
    rejected_s: dict[str, float]
    """CPU seconds of the footage where all of it is rejected, with and without tracing it."""

    @property
    def ratio(self) -> float:
        return sum(self.stages_s.values()) / sum(self.floor_s.values())

    @property
    def hours_a_day(self) -> float:
        """Footage that 16 cores curate in a day, h, if all of them are busy and as fast as this one."""
        return 16 * 24 * self.footage_s / sum(self.stages_s.values())

    def goals(self) -> Iterator[tuple[str, str, float]]:
        """What is aimed at, the aim, and what was found."""
        decode_s = self.floor_s["decode"]
        yield "kept footage, over the floor", "1.6", self.ratio
        yield "rejected footage, over decoding it once", "3", self.rejected_s["needed"] / decode_s
        yield "the same with run.trace=all", "none", self.rejected_s["all"] / decode_s
        yield "imports and models, CPU s", "none", self.loading_s
        yield "hours of footage a day on 16 cores", "none", self.hours_a_day


def warm_up(config: Config, clock: Clock) -> None:
    """Load every model, and run each once: the first call sets up its graph."""
    with clock("loading"):
        settings = needs.gather(config.measure).config.model_dump_json()
        models = stages.load_models(settings)
        stages.load_encoders(settings)
        blank = np.zeros((LANDMARKER_PX, LANDMARKER_PX, 3), np.uint8)
        models.landmarker.detect(blank)
        models.detector.detect(blank)
        if models.pose_estimator is not None:
            clip = Clip(
                clip_id="blank", video_id="", uri="", scene=0, track=0, start_s=0.0, end_s=0.04, fps=25.0,
                num_frames=1, width_px=LANDMARKER_PX, height_px=LANDMARKER_PX,
            )  # fmt: skip
            PoseTracer(models.pose_estimator, clip, 1).push(
                0, blank, np.array([96, 64, 160, 128], np.float32)
            )


def run(folder: Path, out: Path, config: Config) -> tuple[Selection, dict[str, float]]:
    """Curate the folder into `out`; CPU seconds by stage."""
    clock, store = Clock(), Store(str(out))
    with clock("all"):
        selection = jobs.curate([str(folder)], store, config, lambda: ClockedExecutor(clock))
    spent = {name: clock.cpu_s.get(name, 0.0) for name in ("ingest", "cut")}
    for part in committed_parts(store):
        for stage, cpu_s in json.loads(store.read(f"parts/{part}/part.json"))["cpu_s"].items():
            spent[stage] = spent.get(stage, 0.0) + cpu_s
    measured = STAGES[1 : STAGES.index("store")]
    spent["store"] = clock.cpu_s.get("run", 0.0) - sum(spent.get(s, 0.0) for s in measured)
    spent["select and report"] = clock.cpu_s["all"] - sum(
        clock.cpu_s.get(s, 0) for s in ("ingest", "run", "cut")
    )
    return selection, {stage: spent.get(stage, 0.0) for stage in STAGES}


def floor(
    store: Store, accepted: Sequence[LedgerRow], landmarker: FaceLandmarker, config: ShardConfig
) -> dict[str, float]:
    """CPU seconds of the least work that would give the same clips."""
    clock = Clock()
    intake = Intake(load_ingested(store))
    videos = {row.video.video_id: row.video for row in intake.planned if row.video}
    for video in videos.values():
        with clock("decode"):
            for _ in media.read_frames(Path(video.uri), video):
                pass
    for row in accepted:
        path, video = Path(row.uri), videos[row.video_id]
        stereo = media.read_audio(path, video, row.start_s, row.end_s, 48_000, 2)
        frames = _landmarked(path, video, row, _points(store, row.clip_id), landmarker, clock)
        aside_s = sum(clock.cpu_s.get(name, 0.0) for name in ("aside", "convert", "landmark"))
        with clock("encode"), tempfile.TemporaryDirectory() as scratch:
            media.encode_mp4(Path(scratch) / "clip.mp4", frames, row.fps, stereo, config.crf, config.preset)
        # The encoder pulls the frames, so its time holds theirs.
        clock.cpu_s["encode"] -= sum(clock.cpu_s[name] for name in ("aside", "convert", "landmark")) - aside_s
    return {name: clock.cpu_s.get(name, 0.0) for name in FLOOR}


def _landmarked(
    path: Path, video: Video, row: LedgerRow, points: Floats, landmarker: FaceLandmarker, clock: Clock
) -> Iterator[Any]:
    """The clip's frames for the encoder, each converted and landmarked once; other work is `aside`."""
    clip = Clip.model_validate({name: getattr(row, name) for name in Clip.model_fields})
    for frame in clock.each("aside", media.read_frames(path, video, row.start_s, row.end_s)):
        shown = media.clip_indices(frame, row.start_s, row.fps, row.num_frames)
        if not shown:
            continue
        with clock("convert"):
            rgb = frame.of_clip(clip)
        with clock("aside"):
            crop = _crop(rgb, points[shown[0]])
        with clock("landmark"):
            landmarker.detect(crop)
        with clock("convert"):
            picture = frame.to_encode(clip)
        for _ in shown:
            yield picture


def _points(store: Store, clip_id: str) -> Floats:
    """Landmarks [F, 478, 3] as the run found them."""
    name = next(name for name in store.list("parts") if name.endswith(f"/{clip_id}.npz"))
    with np.load(io.BytesIO(store.read(name)), allow_pickle=False) as arrays:
        return np.asarray(arrays["landmarks"])


def _crop(rgb: Bytes, points: Floats) -> Bytes:
    """What the landmarker sees: a square around the face, or the frame's middle where there is none."""
    height, width = rgb.shape[:2]
    low, high = np.zeros(2), np.array([width, height], float)
    if np.isfinite(points).all():
        low, high = points[:, :2].min(0), points[:, :2].max(0)
    half = FACE_MARGIN * (high - low).max() / 2
    x, y = (low + high) / 2
    rows = slice(max(int(y - half), 0), max(int(y + half), 1))
    columns = slice(max(int(x - half), 0), max(int(x + half), 1))
    return np.asarray(cv2.resize(rgb[rows, columns], (LANDMARKER_PX, LANDMARKER_PX)), np.uint8)


def measure(folder: Path, config: Config, out: Path) -> Report:
    """Load, curate, and measure the floor."""
    clock = Clock({"loading": time.process_time()})
    warm_up(config, clock)
    selection, spent = run(folder, out, config)
    store = Store(str(out))
    accepted = [row for row in selection.rows if row.accepted]
    landmarker = stages.load_models(config.measure.model_dump_json()).landmarker
    rejected_s = {}
    for mode in ("needed", "all"):
        strict = {"thresholds": {"max_faces": 0}, "run": {"trace": mode}}
        settings = {name: getattr(config, name).model_copy(update=new) for name, new in strict.items()}
        _, of_rejected = run(folder, out.with_name(f"rejected-{mode}"), config.model_copy(update=settings))
        rejected_s[mode] = sum(of_rejected.values())
    return Report(
        footage_s=sum(row.video.duration_s for row in load_ingested(store) if row.video is not None),
        accepted_s=sum(row.end_s - row.start_s for row in accepted),
        clips=len(selection.rows),
        accepted=len(accepted),
        loading_s=clock.cpu_s["loading"],
        stages_s=spent,
        floor_s=floor(store, accepted, landmarker, config.shards),
        rejected_s=rejected_s,
    )


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    yield (
        f"{report.footage_s:.1f} s of footage, {report.clips} candidate clips, {report.accepted} accepted"
        f" ({report.accepted_s:.1f} s); imports and models: {report.loading_s:.1f} CPU s, once"
    )
    for title, rows in (("stage", report.stages_s), ("floor", report.floor_s)):
        total_s = sum(rows.values())
        yield ""
        yield f"{title:20}{'CPU s':>10}{'per s of footage':>20}{'fraction':>9}"
        for name, cpu_s in [*rows.items(), ("total", total_s)]:
            yield f"{name:20}{cpu_s:10.2f}{cpu_s / report.footage_s:20.3f}{cpu_s / total_s:9.1%}"
    yield ""
    yield f"{'':45}{'goal, at most':>15}{'found':>10}"
    for what, goal, found in report.goals():
        yield f"{what:45}{goal:>15}{found:10.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="videos; by default ../shared/clips, else demo videos"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="configuration (configs/offline.yaml)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="talkforge-bench-") as scratch:
        folder = arguments.folder or SHARED / "clips"
        if arguments.folder is None and not folder.is_dir():
            folder = Path(scratch) / "videos"
            demo_videos.make(folder)
        report = measure(folder, load_config(arguments.config, arguments.settings), Path(scratch) / "dataset")
    text = json.dumps(asdict(report) | {"ratio": report.ratio}, indent=1)
    sys.stdout.write((text if arguments.json else "\n".join(lines(report))) + "\n")


if __name__ == "__main__":
    wanted = worker_environment()
    if (SHARED / "weights").is_dir():
        wanted.setdefault("TALKFORGE_MODELS", str(SHARED / "weights"))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # Thread counts are read when libraries load, which has happened by now: start afresh.
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.curate", *sys.argv[1:]], os.environ | wanted
        )
    main()
