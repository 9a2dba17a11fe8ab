"""Whatever lies in the folder, whatever the command: a row with its reason, or one clear line."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.talking_heads import varied_take
from examples.talking_heads import write as write_head
from talkforge import cli
from talkforge.pipeline.ingest import find_inputs, ingest
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from tests.media_files import Pictures, Sounds, steady, write_media

Row = dict[str, Any]
Run = tuple[Path, subprocess.CompletedProcess[str]]

TALKFORGE = Path(sys.executable).with_name("talkforge")
CONFIG = Path(__file__).parents[2] / "configs" / "offline.yaml"
SMALL = ("--config", str(CONFIG), "--set", "thresholds.min_face_px=64")

SECOND = Sounds([(0, 1)], clicks_s=[0.5], codec="aac")
NOT_UTF8 = os.fsdecode(b"not utf-8 \xff.mp4")
TALK = "talk  \u00fc \u65e5\u672c.v2\nsecond line.mp4"


def no_video(what: str) -> Callable[[str], str]:
    return lambda uri: f"MediaError: {' '.join(repr(uri).split())}: {what}"


def exactly(text: str) -> Callable[[str], str]:
    return lambda _: text


NO_FORMAT = no_video("expected a video file, found data in no known media format")

FATES: dict[str, tuple[str, Callable[[str], str]]] = {
    TALK: ("measured", exactly("")),
    "talk again.mp4": ("duplicate", lambda uri: f"same content as {Path(uri).with_name(TALK)}"),
    "talk cut short.mp4": ("measured", exactly("")),
    "talk without its index.mp4": ("failed", NO_FORMAT),
    "empty.mp4": ("failed", no_video("expected a video file, found an empty file (0 bytes)")),
    "text.mp4": ("failed", NO_FORMAT),
    "noise.mkv": ("failed", NO_FORMAT),
    "still.mp4": ("failed", no_video("expected a video file, found a still image")),
    "sound only.mp4": ("failed", no_video("expected a video stream, found audio only")),
    "no pictures.mkv": ("failed", no_video("expected frames, found none that can be decoded")),
    "absurd.mkv": (
        "failed",
        no_video("expected a frame size of at most 141557760 pixels, found none, or one larger than that"),
    ),
    "pipe.mp4": ("failed", no_video("expected a regular file, found a named pipe")),
    "dangling.mp4": ("failed", no_video("expected a readable file, found no such file or directory")),
    "loop.mp4": ("failed", no_video("expected a readable file, found too many levels of symbolic links")),
    NOT_UTF8: (
        "failed",
        exactly("MediaError: the name is not UTF-8 and cannot be recorded; rename the file"),
    ),
    "no sound.mp4": ("no_candidates", exactly("no_audio")),
    "nobody.dots.in.name.mp4": ("no_candidates", exactly("no_face")),
    "one picture.mp4": ("no_candidates", exactly("no_face")),
}


def fill(folder: Path) -> None:
    """Everything bad that can lie in one folder, and one good talking head."""
    write_head(folder / TALK, varied_take(3, size_px=256, duration_s=4))
    whole = (folder / TALK).read_bytes()
    shutil.copyfile(folder / TALK, folder / "talk again.mp4")
    (folder / "talk cut short.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    index = whole.index(b"moov") - 4
    end = index + int.from_bytes(whole[index : index + 4], "big")
    (folder / "talk without its index.mp4").write_bytes(whole[:index] + whole[end:])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is a text that calls itself a video.\n" * 100)
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / "still.mp4").write_bytes(cv2.imencode(".png", np.full((48, 64, 3), 90, np.uint8))[1].tobytes())
    write_media(folder / "sound only.mp4", SECOND)
    write_media(folder / "no pictures.mkv", Pictures([]), SECOND)
    _absurd(folder / "absurd.mkv")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / NOT_UTF8).write_bytes(whole)
    write_media(folder / "no sound.mp4", Pictures(steady(25)))
    write_media(folder / "nobody.dots.in.name.mp4", Pictures(steady(25)), SECOND)
    write_media(folder / "one picture.mp4", Pictures(steady(1)), SECOND)
    (folder / "a folder.mp4").mkdir()
    (folder / "notes.md").write_text("no video, and it does not say so")


def _absurd(path: Path) -> None:
    """A Matroska file that says its picture has 60,000 x 60,000 pixels."""
    write_media(path, Pictures(steady(3), width_px=300, height_px=260, codec="ffv1"))
    sizes = [b"\xb0\x82" + struct.pack(">H2sH", w, b"\xba\x82", h) for w, h in [(300, 260), (60_000, 60_000)]]
    path.write_bytes(path.read_bytes().replace(*sizes))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad videos")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The one run over all of them, through Ray; the videos must be as they were."""
    out = tmp_path_factory.mktemp("out") / "data set"
    before = state(videos)
    done = subprocess.run(
        [TALKFORGE, "curate", videos, "--out", out, "--executor", "ray", *SMALL],
        capture_output=True, text=True, errors="replace", timeout=1800, check=False,
    )  # fmt: skip
    assert state(videos) == before
    return out, done


def rows(dataset: Path, name: str) -> list[Row]:
    return pq.read_table(dataset / f"{name}.parquet").to_pylist()


def test_a_run_with_failures_is_a_finished_run(videos: Path, run: Run) -> None:
    _, done = run
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    # Progress, one line on what was passed over, and nothing of what Ray and the models have to say.
    told = [line for line in done.stderr.splitlines() if not re.match(r"\[\d+:\d\d:\d\d\] \w", line)]
    assert told == [f"WARNING {videos}: passed over what is no video by its name: 1 .md"]
    assert done.stdout.startswith(f"{len(FATES)} inputs")
    assert "1 duplicate, 12 failed, 2 measured, 3 no candidates" in done.stdout


def test_every_input_is_a_row_with_its_reason(videos: Path, run: Run) -> None:
    found = {row["uri"]: (row["status"], row["reason"]) for row in rows(run[0], "sources")}
    wanted = {}
    for name, (status, reason) in FATES.items():
        uri = str(videos / name).encode("utf-8", "backslashreplace").decode()
        wanted[uri] = (status, reason(uri))
    assert found == wanted


def test_every_failed_input_is_a_failure(run: Run) -> None:
    failed = [row for row in rows(run[0], "sources") if row["status"] == "failed"]
    failures = rows(run[0], "failures")
    assert [row["uri"] for row in failures] == [row["uri"] for row in failed]
    assert {row["stage"] for row in failures} == {"probe"}
    assert [f"{row['error']}: {row['message']}" for row in failures] == [row["reason"] for row in failed]


def test_no_clip_is_lost(run: Run) -> None:
    clips = rows(run[0], "ledger")
    counts = Counter(Path(row["uri"]).name for row in clips)
    assert counts == {TALK: 1, "talk cut short.mp4": 1}
    assert {row["uri"]: row["num_clips"] for row in rows(run[0], "sources") if row["num_clips"]} == Counter(
        row["uri"] for row in clips
    )
    verdicts = {Path(row["uri"]).name: (row["accepted"], row["reasons"], row["failure"]) for row in clips}
    assert verdicts == {TALK: (True, [], None), "talk cut short.mp4": (False, ["too_short"], None)}


def test_what_came_of_it_is_sound(run: Run) -> None:
    ended = main("verify", run[0])
    assert (ended.code, ended.stderr) == (0, "")


def test_a_run_that_is_interrupted_goes_on(videos: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "data set"
    command = [TALKFORGE, "curate", videos, "--out", out, *SMALL]
    ours = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever started the tests in the background may have had SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline_s = time.monotonic() + 600
    while not (out / "plan.parquet").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    os.killpg(ours.pid, signal.SIGINT)  # as a terminal does it
    stdout, stderr = ours.communicate(timeout=600)
    assert (ours.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in stderr
    assert alive(ours.pid) == []
    assert not (out / "ledger.parquet").exists()
    assert main(*command[1:], "--executor", "inline").code == 0
    found, expected = results(out), results(run[0])
    tables = ("intake.parquet", "failures.parquet")
    assert {key: found[key] for key in found if Path(key).name not in tables} == {
        key: expected[key] for key in expected if Path(key).name not in tables
    }
    # What storage failed was tried by both runs; all else in these tables is the same.
    assert attempts(out) == {"dangling.mp4": 2}
    assert attempts(run[0]) == {"dangling.mp4": 1}
    for name in tables:
        assert without_attempts(out / name) == without_attempts(run[0] / name)


def attempts(dataset: Path) -> dict[str, int]:
    """How often each input was tried that another try may help."""
    rows = pq.read_table(dataset / "failures.parquet").to_pylist()
    return {Path(row["key"]).name: row["attempts"] for row in rows if row["kind"] != "video"}


def without_attempts(table: Path) -> list[dict[str, Any]]:
    """Rows of a table without the number of attempts of a failure, in the row or nested in it."""
    rows = pq.read_table(table).to_pylist()
    for row in rows:
        for failure in (row, row.get("failure")):
            if failure is not None:
                failure.pop("attempts", None)
    return rows


def alive(session: int) -> list[str]:
    """Command lines of the processes that a session has left running."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == session and " Z " not in (entry / "stat").read_text():
                found.append((entry / "cmdline").read_bytes().decode())
    return found


def results(dataset: Path) -> dict[str, str]:
    """sha256 of what must not depend on how the work was done."""
    hold_times = ("part.json", "snapshot.json", "state.json", "copies.json", "people.json", ".lock")
    return {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name not in hold_times
    }


# ------------------------------------------------------------------------ bad commands


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def main(*arguments: object) -> Ended:
    """The command line, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["talkforge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Ended(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one tiny video, a regular file and a folder without videos."""
    write_media(tmp_path / "a.mp4", Pictures(steady(5)))
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    (tmp_path / "colour.yaml").write_text("thresholds:\n  colour: red\n")
    (tmp_path / "odd.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "number.csv").write_text("path,colour\na.mp4,red\n")
    return tmp_path


BAD_COMMANDS = {
    "curate none.mp4 --out out": "no such file, folder or list: 'none.mp4'",
    "curate none*.mp4 --out out": "nothing matches 'none*.mp4'",
    "curate empty --out out": "no videos in folder 'empty'",
    "curate number.csv --out out": "list number.csv: expected a column uri; found path, colour",
    "curate a.mp4 --out file/out": "cannot be written to",
    "curate a.mp4 --out file": "cannot be written to",
    "curate a.mp4 --out /proc/out": "cannot be written to",
    "curate a.mp4 --out full": "not empty, and no data set (dataset.json is missing)",
    "curate a.mp4 --out out --config none.yaml": "config none.yaml: ",
    "curate a.mp4 --out out --config odd.yaml": "config odd.yaml: expected sections, found a list",
    "curate a.mp4 --out out --config broken.yaml": "config broken.yaml: line 2: expected ',' or ']', but got",
    "curate a.mp4 --out out --config colour.yaml": "colour.yaml: line 2, thresholds.colour: unknown key",
    "curate a.mp4 --out out --set fps": "--set fps: expected section.key=value",
    "curate a.mp4 --out out --set clip.fps=fast": "measure.clip.fps: ",
    "curate a.mp4 --out out --set clip.fps=1000": "--set measure.clip.fps: expected at most 60, found 1000",
    "curate a.mp4 --out out --set clip.colour=red": "measure.clip.colour: unknown key",
    "curate a.mp4 --out out --executor slurm": "--executor slurm: expected ray or inline",
    "curate a.mp4 --out out --executor inline --address auto": "--address: goes with --executor ray",
    "curate a.mp4 --out out --limit 0": "Invalid value for '--limit'",
    "curate a.mp4 --out out --colour red": "No such option: --colour",
    "curate a.mp4": "Missing option '--out'",
    "curate": "Missing argument 'INPUT...'",
    "paint": "No such command 'paint'",
    "status full": "no data set here (dataset.json is missing)",
    "select full": "no data set here (dataset.json is missing)",
    "shard full": "no data set here (dataset.json is missing)",
    "report full": "no data set here (dataset.json is missing)",
    "verify full": "no data set here (dataset.json is missing)",
    "inspect full x --out x.mp4": "no data set here (dataset.json is missing)",
    "status none": "no data set here (dataset.json is missing)",
    "verify none": "no data set here (dataset.json is missing)",
}


@pytest.mark.parametrize("line", BAD_COMMANDS)
def test_a_bad_command_is_one_line_and_exit_2(
    place: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    ended = main(*line.split())
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("talkforge: ")
    assert BAD_COMMANDS[line] in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "clip.fps=23"], "another configuration: clip.fps: 25.0 -> 23.0. Use that"),
        (["--set", "thresholds.min_face_px=200"], "other thresholds: min_face_px: 64.0 -> 200.0. Change"),
        (["--set", "shards.crf=30"], "other thresholds: crf: 18 -> 30. Change"),
    ],
)
def test_another_configuration_is_refused_and_named(
    videos: Path, run: Run, settings: list[str], message: str
) -> None:
    before = state(run[0])
    ended = main("curate", videos, "--out", run[0], "--executor", "inline", *SMALL, *settings)
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert message in ended.stderr
    assert state(run[0]) == before


def test_a_clip_that_is_not_there_cannot_be_inspected(run: Run, tmp_path: Path) -> None:
    ended = main("inspect", run[0], "nobody", "--out", tmp_path / "x.mp4")
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert "no clip 'nobody'; ledger.parquet lists them" in ended.stderr
    assert not (tmp_path / "x.mp4").exists()


# ------------------------------------------------------------------------- permissions


@contextmanager
def somebody_else() -> Iterator[None]:
    """Whoever runs this, the superuser may read everything: be nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that everybody may enter, with a file and a folder that nobody may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_media(folder / "secret.mp4", Pictures(steady(5))).chmod(0)
        (folder / "attic").mkdir()
        write_media(folder / "attic" / "b.mp4", Pictures(steady(5)))
        (folder / "attic").chmod(0)
        yield folder
        (folder / "attic").chmod(0o755)


def test_what_may_not_be_read_is_a_row_and_not_forgotten(locked: Path) -> None:
    with somebody_else():
        rows = {Path(row.input.uri).name: row for row in map(ingest, find_inputs([str(locked)]))}
    assert {name: row.status for name, row in rows.items()} == {"secret.mp4": "failed", "attic": "failed"}
    failures = {name: row.failure.message for name, row in rows.items() if row.failure}
    assert failures["secret.mp4"].endswith("expected a readable file, found permission denied")
    assert failures["attic"].endswith("expected a regular file, found a folder")


def test_a_data_set_that_may_not_be_written(locked: Path) -> None:
    (locked / "sealed").mkdir(mode=0o555)
    with somebody_else(), pytest.raises(CommandError, match=r"cannot be written to .*Permission denied"):
        Store(str(locked / "sealed" / "set")).check_writable()
