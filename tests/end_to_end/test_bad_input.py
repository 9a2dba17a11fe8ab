"""Whatever lies in the folder, whatever the command: a row with its reason, or one clear line."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.talking_heads import varied_take
from examples.talking_heads import write as write_head
from pipeline import cli
from pipeline.intake import take_in
from schemas.records import Source
from tests.media_files import Pictures, Sounds, steady, write_media

Row = dict[str, Any]

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
    "talk without its index.mp4": (
        "failed",
        no_video("expected a video file, found data in no known media format"),
    ),
    "empty.mp4": ("failed", no_video("expected a video file, found an empty file (0 bytes)")),
    "text.mp4": ("failed", NO_FORMAT),
    "noise.mkv": ("failed", NO_FORMAT),
    "still.mp4": ("failed", no_video("expected a video file, found a still picture")),
    "sound only.mp4": ("failed", no_video("expected a video stream, found sound only")),
    "no pictures.mkv": ("failed", no_video("expected pictures, found none that can be decoded")),
    "absurd.mkv": (
        "failed",
        no_video(
            "expected a picture size of at most 141557760 pixels, found none, or one larger than that"
        ),
    ),
    "pipe.mp4": ("failed", no_video("expected a regular file, found a named pipe")),
    "dangling.mp4": ("failed", no_video("expected a readable file, found no such file or directory")),
    "loop.mp4": ("failed", no_video("expected a readable file, found too many levels of symbolic links")),
    NOT_UTF8: ("failed", exactly("MediaError: the name is not UTF-8 and cannot be recorded; rename the file")),
    "no sound.mp4": ("no_candidates", exactly("no_audio")),
    "nobody.dots.in.name.mp4": ("no_candidates", exactly("no_face")),
    "one picture.mp4": ("no_candidates", exactly("no_face")),
}


def fill(folder: Path) -> None:
    """Everything bad that can lie in one folder, and one good talking head."""
    write_head(folder / TALK, varied_take(3, size_px=256, duration_s=4))
    whole = (folder / TALK).read_bytes()
    shutil.copyfile(folder / TALK, folder / "talk again.mp4")
    _cut_short(folder / TALK, folder / "talk cut short.mp4")
    (folder / "talk without its index.mp4").write_bytes(whole[: whole.index(b"moov") - 4][:20_000])
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


def _cut_short(whole: Path, out: Path) -> None:
    """The file with its index in front, but only six tenths of its pictures and sound."""
    with tempfile.TemporaryDirectory() as folder:
        front = Path(folder) / "front.mp4"
        import av

        with av.open(str(whole)) as old, av.open(
            str(front), "w", container_options={"movflags": "faststart"}
        ) as new:
            streams = {stream: new.add_stream_from_template(stream) for stream in old.streams}
            for packet in old.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream]
                    new.mux(packet)
        data = front.read_bytes()
        out.write_bytes(data[: len(data) * 6 // 10])


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
def run(
    videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The one run over all of them, through Ray; the videos must be as they were."""
    out = tmp_path_factory.mktemp("out") / "data set"
    before = state(videos)
    done = subprocess.run(
        [TALKFORGE, "curate", videos, "--out", out, "--executor", "ray", *SMALL],
        capture_output=True, text=True, errors="replace", timeout=200, check=False,
    )  # fmt: skip
    assert state(videos) == before
    return out, done


def rows(dataset: Path, name: str) -> list[Row]:
    return pq.read_table(dataset / f"{name}.parquet").to_pylist()


def test_a_run_with_failures_is_a_finished_run(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = run
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "18 inputs" in done.stdout
    assert "1 duplicate, 12 failed, 2 measured, 3 no candidates" in done.stdout


def test_every_input_is_a_row_with_its_reason(
    videos: Path, run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    found = {row["uri"]: (row["status"], row["reason"]) for row in rows(run[0], "sources")}
    wanted = {}
    for name, (status, reason) in FATES.items():
        uri = str(videos / name).encode("utf-8", "backslashreplace").decode()
        wanted[uri] = (status, reason(uri))
    assert found == wanted


def test_every_failed_input_is_a_failure(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    failed = [row for row in rows(run[0], "sources") if row["status"] == "failed"]
    failures = rows(run[0], "failures")
    assert [row["uri"] for row in failures] == [row["uri"] for row in failed]
    assert {row["stage"] for row in failures} == {"probe"}
    assert [f"{row['error']}: {row['message']}" for row in failures] == [row["reason"] for row in failed]


def test_no_clip_is_lost(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    clips = rows(run[0], "ledger")
    counts = Counter(Path(row["uri"]).name for row in clips)
    assert counts == {TALK: 1, "talk cut short.mp4": 1}
    assert {row["uri"]: row["num_clips"] for row in rows(run[0], "sources") if row["num_clips"]} == Counter(
        row["uri"] for row in clips
    )
    fates = {Path(row["uri"]).name: (row["accepted"], row["reasons"], row["failure"]) for row in clips}
    assert fates == {TALK: (True, [], None), "talk cut short.mp4": (False, ["too_short"], None)}


def test_what_came_of_it_is_sound(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = command("verify", run[0])
    assert (done.code, done.stderr) == (0, "")


# ------------------------------------------------------------------------ bad commands


class Ended:
    """Exit code and output of a command that ran in this process."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr
