"""How selection, status, people and the report grow with the number of clips: the table of docs/scale.md.

    python -m benchmarks.scale                          # 1,000 to 100,000 candidates
    python -m benchmarks.scale --clips 1000000          # a million: 15 GB of disk
    python -m benchmarks.scale --clips-in-file 1        # every clip is a file of its own
    python -m benchmarks.scale --inputs 10000000        # inputs are listed and planned, nothing else

Parts are synthetic and written by the project's own writers: a hundred candidates of 6 s in ten minutes of
each video, three in five traced, with face embeddings of 512 numbers and fingerprints as dense as those of
speech. One traced clip in fifty is a copy of one in another video. Every command runs in a process of its
own, and finds what those before it have kept: `select` finds people and copies.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray

from talkforge.pipeline import small_arrays, tables
from talkforge.pipeline.dataset import save_dataset, tool_version
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, config_hash
from talkforge.schemas.dataset import SCHEMA_VERSION, Choice, Dataset
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Face,
    FaceQuality,
    Failure,
    Identity,
    Input,
    Lips,
    Motion,
    Outcome,
    Record,
    Scene,
    Speech,
    Sync,
    Track,
    Video,
    clip_id,
)

if TYPE_CHECKING:
    from talkforge.pipeline.executor import Executor

CLIPS_IN_PART, CLIP_S, FPS, DIM = 100, 6.0, 25.0, 512
TRACED = 60
"""Clips of a part that are traced."""

COPY_EVERY = 50
"""One traced clip in so many is a copy of one in the part before."""

VIDEOS_OF_PERSON = 4

FACE_MODEL = "synthetic"

COMMANDS = (
    "status before",
    "read",
    "people",
    "copies",
    "select",
    "status",
    "shard",
    "report",
)

COMMANDS_OF_INPUTS = ("list", "plan", "plan one more")

LIST = "list.parquet"


@dataclass(frozen=True)
class Spent:
    """What one command took: wall and CPU seconds, and the peak of its memory in GB."""

    wall_s: float
    cpu_s: float
    peak_gb: float


# ------------------------------------------------------------------------------ synthetic parts


def template() -> pa.Table:
    """The rows of a part's clips, all alike."""
    clip = Clip(
        clip_id="", video_id="", uri="", scene=0, track=0, start_s=0.0, end_s=CLIP_S, fps=FPS,
        num_frames=round(CLIP_S * FPS), width_px=512, height_px=512,
    )  # fmt: skip
    row = ClipMeasures(
        clip=clip,
        stopped_by=None,
        face=Face(
            source_fps=FPS, face_px=300.0, face_clip_px=300.0, face_confidence=0.95, face_confidence_min=0.9,
            faces_max=1, faces_frame_max=1, face_seen_fraction=1.0, yaw_p95_deg=10.0,
        ),
        speech=Speech(speech_fraction=0.9, loudness_dbfs=-20.0, clipped_fraction=0.0),
        lips=Lips(lip_valid_fraction=1.0, lip_interpolated_fraction=0.0, lip_area_fraction=0.02),
        motion=Motion(omega_face_raw=1.0, omega_body_raw=1.0, joints_valid_fraction=1.0),
        sync=Sync(
            sync_method="synthetic", sync_offset_frames=0, sync_confidence=5.0, sync_zero_confidence=5.0,
            sync_probability=0.99, sync_offset_probability=0.99,
        ),
        identity=Identity(identity_model=FACE_MODEL, identity_consistency=0.9),
        quality=FaceQuality(
            face_blur=100.0, face_luma=120.0, face_dark_fraction=0.0, face_bright_fraction=0.0
        ),
    )  # fmt: skip
    return tables.to_table(ClipMeasures, [row] * CLIPS_IN_PART)


def replaced(table: pa.Table, record: str, values: dict[str, Any], known: NDArray[np.bool_]) -> pa.Table:
    """The table with other values in one of its records, which is null where it is not `known`."""
    struct = table.column(record).combine_chunks()
    columns = [
        pa.array(values[field.name], field.type) if field.name in values else struct.field(field.name)
        for field in struct.type
    ]
    made = pa.StructArray.from_arrays(columns, fields=list(struct.type), mask=pa.array(~known))
    return table.set_column(table.column_names.index(record), table.schema.field(record), made)


def video(number: int, num_clips: int) -> Video:
    """So many clips of one person."""
    return Video(
        video_id=f"{number:012x}", sha256=f"{number:064x}", uri=f"/footage/{number:06d}.mp4",
        num_bytes=100_000_000, container="mp4", video_codec="h264", pixel_format="yuv420p", width_px=512,
        height_px=512, coded_width_px=512, coded_height_px=512, rotation_deg=0, sample_aspect_ratio=1.0,
        fps=FPS, fps_nominal=FPS, start_s=0.0, end_s=num_clips * CLIP_S, audio_codec="aac",
        audio_hz=48_000, audio_channels=2, audio_start_s=0.0, audio_end_s=num_clips * CLIP_S,
    )  # fmt: skip


def sounds(random: np.random.Generator) -> list[NDArray[np.uint64]]:
    """Audio hashes of the traced clips of a part.

    Two keys of different clips are equal by chance as often as those of speech: one pair in 3.4e9 of four
    keys a hash, and in 1.8e9 of two. In 77 clips of 55 people it is one in 3.2e9 and 1.7e9.
    """
    num_peaks = round(51 * CLIP_S)
    times = np.sort(random.integers(0, round(250 * CLIP_S), (TRACED, num_peaks)), axis=1)
    peaks = (times << 20) | (random.integers(0, 128, times.shape) << 12)
    return list(
        np.sort(
            np.repeat(peaks, 3, axis=1) | random.integers(0, 142, (TRACED, 3 * num_peaks)), axis=1
        ).astype(np.uint64)
    )


@dataclass
class Maker:
    """Writes one part after the other.

    Attributes:
        folder: of the data set.
        clips_in_file: candidates of each file; `CLIPS_IN_PART` or a divisor of it.
    """

    folder: Path
    clips_in_file: int

    def __post_init__(self) -> None:
        self.template = template()
        self.before: list[NDArray[np.uint64]] = []

    def write(self, number: int) -> None:
        """Write the files of a part."""
        random = np.random.default_rng(number)
        videos = self.videos(number)
        of = [shown for shown in videos for _ in range(self.clips_in_file)]
        starts = CLIP_S * np.tile(np.arange(self.clips_in_file), len(videos))
        ids = [clip_id(v.video_id, s, s + CLIP_S, 0) for v, s in zip(of, starts.tolist(), strict=True)]
        traced = np.arange(CLIPS_IN_PART) < TRACED
        everyone = np.ones(CLIPS_IN_PART, bool)
        clips = replaced(
            self.template, "clip",
            {"clip_id": ids, "video_id": [v.video_id for v in of], "uri": [v.uri for v in of],
             "start_s": starts, "end_s": starts + CLIP_S}, everyone,
        )  # fmt: skip
        heights = np.where(traced, random.uniform(100, 500, CLIPS_IN_PART), 50.0)
        faces = {
            "face_px": heights,
            "face_clip_px": heights,
            "yaw_p95_deg": random.uniform(0, 60, CLIPS_IN_PART),
        }
        clips = replaced(clips, "face", faces, everyone)
        motion = {f"omega_{what}_raw": random.exponential(1.0, CLIPS_IN_PART) for what in ("face", "body")}
        for record, values in (
            ("motion", motion),
            ("sync", {}),
            ("lips", {}),
            ("identity", {}),
            ("quality", {}),
        ):
            clips = replaced(clips, record, values, traced)
        stopped = pa.array([None if known else "face_small" for known in traced], pa.string())
        clips = clips.set_column(
            clips.column_names.index("stopped_by"), clips.schema.field("stopped_by"), stopped
        )
        arrays = dict(zip(ids, self.arrays(number, random), strict=False))
        outcomes = [
            Outcome(
                video_id=v.video_id, start_s=v.start_s, end_s=v.end_s, outcome="candidates",
                speech_s=0.8 * v.duration_s, face_s=v.duration_s,
            )
            for v in videos
        ]  # fmt: skip
        files = {
            "clips.parquet": tables.to_bytes(clips),
            "windows.parquet": encoded(Window, *map(whole, videos)),
            "outcomes.parquet": encoded(Outcome, *outcomes),
            **{f"{name}.parquet": encoded(kind) for name, kind in EMPTY.items()},
            "thumbnails.npz": npz_bytes(**{ids[0]: np.zeros(1000, np.uint8)}),
            **small_arrays.files(arrays),
        }
        folder = self.folder / "parts" / f"{number:06d}"
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "part.json").write_text(
            json.dumps({"name": folder.name, "files": dict.fromkeys(files, "")})
        )

    def videos(self, number: int) -> list[Video]:
        """The videos of a part."""
        count = CLIPS_IN_PART // self.clips_in_file
        return [video(number * count + n, self.clips_in_file) for n in range(count)]

    def arrays(self, number: int, random: np.random.Generator) -> list[dict[str, NDArray[Any]]]:
        """Small arrays of the traced clips of a part."""
        heard = sounds(random)
        for n in range(0, TRACED if self.before else 0, COPY_EVERY):
            kept = self.before[n][random.random(len(self.before[n])) < 0.4]
            heard[n] = np.unique(np.concatenate([kept, heard[n][random.random(len(heard[n])) < 0.6]]))
        self.before = heard
        person = np.random.default_rng(10**9 + number // VIDEOS_OF_PERSON).normal(size=DIM)
        centre = person + 0.35 * random.normal(size=DIM)
        faces = centre + 0.3 * random.normal(size=(TRACED, DIM))
        box = np.tile(np.array([0.3, 0.2, 0.7, 0.8], np.float32), (round(2 * CLIP_S), 1))
        frames = np.zeros((len(box), 8), np.uint8)
        return [
            {"identity": face.astype(np.float32), "sound": sound, "pictures": frames, "faces": box}
            for face, sound in zip(faces, heard, strict=True)
        ]


EMPTY: dict[str, type[Record]] = {"scenes": Scene, "tracks": Track, "failures": Failure}


def whole(of: Video) -> Window:
    return Window(video=of, start_s=of.start_s, end_s=of.end_s)


def encoded(model: type[Record], *rows: Record) -> bytes:
    return tables.to_bytes(tables.to_table(model, rows))


def make(folder: Path, num_clips: int, clips_in_file: int) -> None:
    """Write a data set of so many candidates that was measured and never selected."""
    maker, store, config = Maker(folder, clips_in_file), Store(str(folder)), Config()
    numbers = range(num_clips // CLIPS_IN_PART)
    for number in numbers:
        maker.write(number)
    rows = (
        IngestRow(input=Input(uri=v.uri), stamp="", status="planned", video=v)
        for number in numbers
        for v in maker.videos(number)
    )
    parts = (Part(name=f"{n:06d}", windows=tuple(map(whole, maker.videos(n)))) for n in numbers)
    tables.write(store, "intake.parquet", IngestRow, rows)
    tables.write(store, "plan.parquet", Part, parts)
    described = Dataset(
        schema_version=SCHEMA_VERSION, tool_version=tool_version(), config=config,
        config_hash=config_hash(config.measure), models=(), models_absent=(), joints=(),
        speech_encoder="synthetic", speech_dim=80, original=Choice.of(config),
    )  # fmt: skip
    save_dataset(store, described)


def make_list(folder: Path, num_inputs: int) -> None:
    """Write a list of so many inputs."""
    folder.mkdir(parents=True)
    schema = pa.schema([("uri", pa.string()), ("licence", pa.string())])
    with pq.ParquetWriter(folder / LIST, schema) as writer:
        for start in range(0, num_inputs, 100_000):
            uris = [video(n, 1).uri for n in range(start, min(num_inputs, start + 100_000))]
            writer.write_table(pa.table([uris, ["CC0"] * len(uris)], schema=schema))


# ------------------------------------------------------------------------------ commands


def run_of_inputs(what: str, folder: Path) -> int:
    """One of `COMMANDS_OF_INPUTS`; number of inputs or parts."""
    from talkforge.pipeline.dataset import extend_plan
    from talkforge.pipeline.ingest import find_inputs

    if what == "list":
        return len(find_inputs([str(folder / LIST)]))
    (folder / "set").mkdir(exist_ok=True)
    count = pq.read_metadata(folder / LIST).num_rows
    numbers = range(count) if what == "plan" else range(count, count + 1)
    videos = (video(number, 1) for number in numbers)
    rows = (IngestRow(input=Input(uri=v.uri), stamp="1-1", status="planned", video=v) for v in videos)
    return len(extend_plan(Store(str(folder / "set")), rows, 600.0)[1])


def cuts_nothing() -> Executor:
    """Takes every task of cutting, and answers with the manifest of a shard that was never written."""
    from talkforge.pipeline.cut import CutShard
    from talkforge.pipeline.executor import InlineExecutor
    from talkforge.schemas.sample import ShardManifest

    class CutsNothing(InlineExecutor):
        def isolate(self, *given: Any, **_: Any) -> Iterator[Any]:
            _function, pieces, *_rest = given
            for task in pieces:
                manifest = ShardManifest(
                    name=task.shard.name, sha256="", bytes=0, count=len(task.orders), keys=task.shard.keys,
                    fingerprint=task.shard.fingerprint,
                )  # fmt: skip
                yield CutShard(task.shard.name, manifest)

    return CutsNothing()


def run(what: str, root: str) -> Any:
    """One command, as it is named in `COMMANDS` or `COMMANDS_OF_INPUTS`; what it found."""
    if what in COMMANDS_OF_INPUTS:
        return run_of_inputs(what, Path(root))
    from talkforge.pipeline import standing
    from talkforge.pipeline.dataset import load_dataset, load_ingested
    from talkforge.pipeline.intake import Intake

    store = Store(root)
    if what.startswith("status"):  # imports no more than the command does
        return standing.standing(store, load_dataset(store)).totals.candidates
    from talkforge.curation.face import identity
    from talkforge.pipeline import jobs
    from talkforge.pipeline.measured import read_measured, rows_of_inputs

    if what == "report":
        (store.local_root or Path()).joinpath("report").mkdir(exist_ok=True)
        return jobs.report(store)
    if what == "read":
        return len(read_measured(store).clips)
    if what == "shard":
        dataset, ingested = load_dataset(store), load_ingested(store)
        selection = jobs.choose(store, dataset.config, ingested, read_measured(store))
        results = jobs.cut_accepted(store, dataset, selection, Intake(ingested), cuts_nothing())
        return sum(len(result.keys) for result in results)
    if what == "people":
        measured = read_measured(store)
        rows, _ = rows_of_inputs(measured.clips, Intake(load_ingested(store)), Config().thresholds)
        same_person = identity.same_person_threshold(Config().shards, FACE_MODEL)  # as a selection has it
        found = measured.people(rows.table, same_person)
        return len(found["people"])
    if what == "copies":
        return len(read_measured(store).read_copies())
    selection = jobs.select(store, load_dataset(store), load_ingested(store))
    return selection.totals.accepted


def spent(what: str, folder: Path) -> tuple[Spent, Any]:
    """What a command takes in a process of its own."""
    before, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "benchmarks.scale", "--run", what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    wall_s, after = time.monotonic() - begin_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = json.loads(done.stdout.splitlines()[-1])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall_s, cpu_s, answer["peak_gb"]), answer["found"]


def main(
    clips: Annotated[list[int], typer.Option(help="Numbers of candidates.")] = [1_000, 10_000, 100_000],  # noqa: B006
    folder: Annotated[Path | None, typer.Option(help="Where the sets are made, and kept.")] = None,
    clips_in_file: Annotated[
        int, typer.Option("--clips-in-file", help="Candidates of each file: a divisor of 100.")
    ] = 100,
    inputs: Annotated[int, typer.Option("--inputs", help="List and plan so many, and nothing else.")] = 0,
    run_: Annotated[tuple[str, str] | None, typer.Option("--run", hidden=True)] = None,
) -> None:
    """Wall and CPU seconds and peak memory of each command, for each number of candidates."""
    if run_ is not None:
        found = run(*run_)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        typer.echo(json.dumps({"found": found, "peak_gb": peak_gb}))
        return
    commands = COMMANDS_OF_INPUTS if inputs else COMMANDS
    typer.echo(f"| {'inputs' if inputs else 'candidates'} | " + " | ".join(commands) + " |")
    typer.echo("|---" * (len(commands) + 1) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in [inputs] if inputs else clips:
            place = (folder or Path(scratch)) / str(count)
            if not place.exists():
                make_list(place, count) if inputs else make(place, count, clips_in_file)
            cells = []
            for what in commands:
                used, found = spent(what, place)
                cells.append(f"{used.wall_s:.1f} s, {used.cpu_s:.1f} CPU s, {used.peak_gb:.2f} GB")
                typer.echo(f"{count} {what}: {cells[-1]}, found {found}", err=True)
            typer.echo(f"| {count:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    typer.run(main)
