"""Many videos: a table of jobs, made by processes on Ray that load the model once each.

OUT/NAME.mp4        the video of a job
OUT/.NAME.json      what it was made from: it is not made again
OUT/jobs.parquet    one row for each job: done, failed (and why), or put off
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talkforge.pipeline.cluster import Cluster
from talkforge.schemas import scratch
from talkforge.schemas.errors import CommandError, RunError, TalkforgeError, one_line
from talkforge.schemas.progress import ProgressCallback, counted, no_progress
from talkforge.training.generate.job import Job, fingerprint, is_made, load, make, sample_config
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.savings import Savings

log = logging.getLogger(__name__)

NUMBERS: dict[str, type] = {"omega_face": float, "omega_body": float, "seed": int, "face": int}
COLUMNS = ("name", "image", "audio", "prompt", *NUMBERS)
"""Columns of a table of jobs. `image` and `audio` are needed."""

DONE, FAILED, PUT_OFF = "done", "failed", "put_off"

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Row:
    """One row of a table of jobs.

    Attributes:
        name: of the video.
        image: as the table has it.
        audio: likewise.
        job: what is to be made, or None where the row does not fit.
        reason: why it does not fit.
    """

    name: str
    image: str
    audio: str
    job: Job | None
    reason: str = ""


def read_table(path: Path, out: Path) -> list[Row]:
    """The rows of a table. Names of files are relative to the table's folder.

    Args:
        path: .csv, .tsv or .parquet with the columns of `COLUMNS`.
        out: folder of the videos.

    Raises:
        CommandError: the table cannot be read, has unknown or missing columns, no rows, or a name twice.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows: list[Mapping[str, Any]] = pq.read_table(path).to_pylist()
        elif path.suffix.lower() in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
                rows = list(csv.DictReader(file, delimiter=delimiter, strict=True))
        else:
            raise CommandError(f"--batch {path}: expected a .csv, .tsv or .parquet file")
    except CommandError:
        raise
    except Exception as error:  # damaged Parquet makes pyarrow raise almost anything
        raise CommandError(f"--batch {path}: cannot be read ({one_line(error)})") from None
    if not rows:
        raise CommandError(f"--batch {path}: expected jobs, found none")
    found = {str(name) for row in rows for name in row}
    if wrong := sorted(found - {*COLUMNS}) or sorted({"image", "audio"} - found):
        raise CommandError(
            f"--batch {path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(wrong)}"
            if found - {*COLUMNS}
            else f"--batch {path}: expected a column {wrong[0]}"
        )
    made = [_row(number, row, path.parent, out) for number, row in enumerate(rows, 1)]
    names = [row.name for row in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise CommandError(
            f"--batch {path}: expected every name once, found {twice[0]} {names.count(twice[0])} times"
        )
    return made


def _row(number: int, row: Mapping[str, Any], folder: Path, out: Path) -> Row:
    values = {key: "" if row.get(key) is None else str(row[key]).strip() for key in COLUMNS}
    name = values["name"] or f"job-{number:06d}"
    try:
        if not _NAME.fullmatch(name):
            raise CommandError(f"name: expected letters, digits, '-', '_' and '.', found {name!r}")
        for key in ("image", "audio"):
            if not values[key]:
                raise CommandError(f"{key}: expected a file, found nothing")
        given = {key: _number(key, values[key], kind) for key, kind in NUMBERS.items() if values[key]}
        job = Job(
            folder / values["image"], folder / values["audio"], out / f"{name}.mp4", values["prompt"], **given
        )
        job.check()
    except CommandError as error:
        safe = name if _NAME.fullmatch(name) else f"job-{number:06d}"
        return Row(safe, values["image"], values["audio"], None, str(error))
    return Row(name, values["image"], values["audio"], job)


def _number(key: str, text: str, kind: type) -> Any:
    try:
        value = float(text)
        return kind(value) if kind is float or value.is_integer() else kind(text)
    except (ValueError, OverflowError):
        raise CommandError(
            f"{key}: expected a {'whole ' if kind is int else ''}number, found {text!r}"
        ) from None


@dataclass(frozen=True)
class Making:
    """How all jobs of a table are made.

    Attributes:
        source: the model.
        changes: other values of the run's `sample` section, by name.
        device: 'auto', 'cpu' or a torch device.
        saving: of memory and time.
        prompts: of all jobs.
    """

    source: Source
    changes: Mapping[str, Any]
    device: str
    saving: Savings
    prompts: tuple[str, ...]


class Maker:
    """Makes jobs one after the other, with a model that is loaded once."""

    def __init__(self, making: Making) -> None:
        some = Path("any")
        self._making = making
        self._pipeline: GenerationPipeline = load(
            making.source, [Job(some, some, some, prompt) for prompt in making.prompts], making.changes,
            making.device, making.saving,
        )  # fmt: skip

    def make(self, job: Job) -> str:
        """Make one video. Returns what is wrong with the job, or nothing where the video is there."""
        try:
            settings = sample_config(self._pipeline, self._making.changes)
            made = fingerprint(self._making.source, job, settings, self._making.saving)
            marker = job.out.with_name(f".{job.out.stem}.json")
            if job.out.exists() and is_made(marker, made):
                return ""
            make(self._pipeline, self._making.source, job, settings, saving=self._making.saving)
            marker.write_text(json.dumps(made), encoding="utf-8")
        except RunError:
            raise
        except (TalkforgeError, OSError) as error:
            return one_line(error)
        return ""


def run_table(
    table: Path,
    out: Path,
    making: Callable[[tuple[str, ...]], Making],
    *,
    workers: int | None = None,
    address: str | None = None,
    inline: bool = False,
    show: ProgressCallback = no_progress,
) -> dict[str, int]:
    """Make the videos of a table. What was made before by the same options is left as it is.

    Args:
        table: see `read_table`.
        out: folder of the videos, which is made where it is not there.
        making: how they are made, for the prompts of all jobs.
        workers: processes. None means one for each GPU of the cluster, or one.
        address: of a Ray cluster. None starts Ray on this machine.
        inline: make them in this process, without Ray.
        show: gets the progress.

    Returns:
        How many jobs are done, failed and put off.

    Raises:
        CommandError: the table or the model cannot be used.
        RunError: Ray cannot be used, or `out` cannot be written to.
    """
    scratch.make_out(out)
    rows = read_table(table, out)
    states = {row.name: (FAILED, row.reason) for row in rows if row.job is None}
    jobs = [row.job for row in rows if row.job is not None]
    if jobs:
        made = making(tuple(dict.fromkeys(job.prompt for job in jobs)))
        results = _inline(made, jobs) if inline else _on_ray(made, jobs, workers, address)
        for job, state, reason in results:
            states[job.out.stem] = (state, reason)
            show(counted("generating", len(states), len(rows), "videos"))
            _write_states(out / "jobs.parquet", rows, states)
    _write_states(out / "jobs.parquet", rows, states)
    found = [state for state, _ in states.values()]
    return {state: found.count(state) for state in (DONE, FAILED, PUT_OFF)}


def _inline(making: Making, jobs: Sequence[Job]) -> Iterator[tuple[Job, str, str]]:
    maker = Maker(making)
    for job in jobs:
        yield job, *_state(maker.make(job))


def _on_ray(
    making: Making, jobs: Sequence[Job], workers: int | None, address: str | None
) -> Iterator[tuple[Job, str, str]]:
    """Results as they come. A job whose worker dies is put off, and another worker goes on."""
    cluster = Cluster(workers or 1, address)
    try:
        gpus = cluster.num_gpus() if making.device != "cpu" else 0
        remote = cluster.ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Maker)
        answers = cluster.share(
            jobs,
            workers or max(1, gpus),
            lambda: remote.remote(making),
            lambda maker, job: maker.make.remote(job),
        )
        for job, reason in answers:
            if not isinstance(reason, Exception):
                yield job, *_state(reason)
            elif isinstance(reason, RunError):
                yield job, PUT_OFF, one_line(reason)
            else:
                raise reason  # the model cannot be loaded
    finally:
        cluster.close()


def _state(reason: str) -> tuple[str, str]:
    return (FAILED, reason) if reason else (DONE, "")


def _write_states(path: Path, rows: Sequence[Row], states: Mapping[str, tuple[str, str]]) -> None:
    """Write a row for each job whose state is known, under another name first."""
    known = [row for row in rows if row.name in states]
    table = pa.table(
        {
            "name": [row.name for row in known],
            "image": [row.image for row in known],
            "audio": [row.audio for row in known],
            "video": [f"{row.name}.mp4" if states[row.name][0] == DONE else None for row in known],
            "status": [states[row.name][0] for row in known],
            "reason": [states[row.name][1] or None for row in known],
        },
        schema=pa.schema(
            [(name, pa.string()) for name in ("name", "image", "audio", "video", "status", "reason")]
        ),
    )
    with scratch.replacing(path) as part:
        pq.write_table(table, part)
