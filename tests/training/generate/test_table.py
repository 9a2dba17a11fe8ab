"""Tables of jobs: reading them, making their videos, and going on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from talkforge.cli import main
from talkforge.schemas.errors import CommandError
from talkforge.training.generate import table as tables
from talkforge.training.generate.job import Job
from talkforge.training.generate.pipeline import Source
from talkforge.training.generate.savings import Savings
from talkforge.training.generate.table import Making, read_table, run_table
from tests.training.batches import some_info
from tests.training.generate.test_job import calls_of
from tests.training.speakers import a_run, portrait, shown, tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a portrait and two tones: 9 and 5 frames."""
    root = tmp_path_factory.mktemp("table")
    a_run(root / "run", some_info(speech_dim=80, identity_dim=0))
    portrait(root / "face.png")
    tone(root / "long.wav", 0.36)
    tone(root / "short.wav", 0.2)
    (root / "broken.png").write_bytes(b"broken")
    return root


def table(folder: Path, text: str) -> Path:
    path = folder / "jobs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_a_job(folder: Path, tmp_path: Path) -> None:
    path = table(folder, "image,audio,name,omega_face,seed,face,prompt\nface.png,long.wav,one,0.9,3,1,a man\n"
                 "face.png,short.wav,,,,,\n")  # fmt: skip
    expected = [
        Job(folder / "face.png", folder / "long.wav", tmp_path / "one.mp4", "a man", 0.9, 0.5, 3, 1),
        Job(folder / "face.png", folder / "short.wav", tmp_path / "job-000002.mp4"),
    ]
    assert [row.job for row in read_table(path, tmp_path)] == expected
    pq.write_table(
        pa.table(
            {
                "image": ["face.png"] * 2,
                "audio": ["long.wav", "short.wav"],
                "name": ["one", None],
                "omega_face": [0.9, None],
                "seed": [3, None],
                "face": [1.0, None],
                "prompt": ["a man", None],
            }
        ),
        folder / "jobs.parquet",
    )
    assert [row.job for row in read_table(folder / "jobs.parquet", tmp_path)] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    (
        (
            "face.png,long.wav,../out,,",
            r"^name: expected letters, digits, '-', '_' and '\.', found '\.\./out'$",
        ),
        (",long.wav,a,,", "^image: expected a file, found nothing$"),
        ("face.png,long.wav,a,1.5,", "^--omega-face 1.5: expected 0 to 1$"),
        ("face.png,long.wav,a,much,", "^omega_face: expected a number, found 'much'$"),
        ("face.png,long.wav,a,,1.5", "^seed: expected a whole number, found '1.5'$"),
        ("face.png,long.wav,a,,inf", "^seed: expected a whole number, found 'inf'$"),
    ),
)
def test_a_row_that_does_not_fit_says_why(folder: Path, tmp_path: Path, row: str, reason: str) -> None:
    (found,) = read_table(table(folder, f"image,audio,name,omega_face,seed\n{row}\n"), tmp_path)
    assert found.job is None and pytest.raises(CommandError, match=reason)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    (
        ("jobs.csv", "image,audio\n", "expected jobs, found none$"),
        ("jobs.csv", "image,sound\na,b\n", "expected the columns name, image, audio, .*, found sound$"),
        ("jobs.csv", "image\na\n", "expected a column audio$"),
        ("jobs.csv", "image,audio,name\na,b,x\na,b,x\n", "expected every name once, found x 2 times$"),
        ("jobs.parquet", "words", "cannot be read \\("),
        ("jobs.txt", "a", "expected a .csv, .tsv or .parquet file$"),
        ("none.csv", None, "cannot be read \\(No such file or directory\\)$"),
    ),
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CommandError, match=f"^--batch .*{name}: {message}") as caught:
        read_table(tmp_path / name, tmp_path)
    assert "\n" not in str(caught.value)


JOBS = """image,audio,name
face.png,long.wav,long
broken.png,long.wav,broken
face.png,short.wav,short
,,nothing
"""


def states(out: Path) -> dict[str, tuple[str, str | None]]:
    rows = pq.read_table(out / "jobs.parquet").to_pylist()
    assert all(row["video"] == (f"{row['name']}.mp4" if row["status"] == "done" else None) for row in rows)
    return {row["name"]: (row["status"], row["reason"]) for row in rows}


def test_every_job_has_a_row_and_what_is_made_is_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = table(folder, JOBS), tmp_path / "videos"

    def run(*more: str) -> tuple[int, str]:
        given = [
            "generate",
            str(folder / "run"),
            "--batch",
            str(path),
            "-o",
            str(out),
            "--device",
            "cpu",
            "-q",
        ]
        with pytest.raises(SystemExit) as ended:
            main([*given, "--executor", "inline", *more])
        return int(ended.value.code or 0), capsys.readouterr().out

    seen = calls_of(monkeypatch)
    assert run() == (0, f"{out}/jobs.parquet: 2 done, 2 failed, 0 put off\n")
    found = states(out)
    assert found["long"] == found["short"] == ("done", None)
    assert found["broken"][0] == "failed" and "broken.png: expected an image, found" in str(
        found["broken"][1]
    )
    assert found["nothing"] == ("failed", "image: expected a file, found nothing")
    assert [len(shown(out / f"{name}.mp4")[0]) for name in ("long", "short")] == [9, 5]
    assert len(seen) == 2
    assert run()[0] == 0 and len(seen) == 2 and states(out) == found
    # Other options make all of them again, and a video that is gone is made again.
    assert run("--steps", "2")[0] == 0 and len(seen) == 6
    (out / "short.mp4").unlink()
    assert run("--steps", "2")[0] == 0 and len(seen) == 8


def test_an_interrupted_table_goes_on_with_the_job_that_it_was_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(folder, JOBS)

    def making(prompts: tuple[str, ...]) -> Making:
        return Making(Source(folder / "run"), {"steps": 3}, "cpu", Savings(), prompts)

    with monkeypatch.context() as patch:
        calls_of(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run_table(path, tmp_path, making, inline=True)
    assert {name: state for name, (state, _) in states(tmp_path).items()} == {
        "long": "done", "broken": "failed", "nothing": "failed",
    }  # fmt: skip
    seen = calls_of(monkeypatch)
    assert run_table(path, tmp_path, making, inline=True) == {"done": 2, "failed": 2, "put_off": 0}
    assert len(seen) == 2  # of the second job: its second and third step


def test_what_is_a_column_is_no_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "generate",
                str(folder / "run"),
                "--batch",
                "x.csv",
                "-o",
                "y",
                "--seed",
                "3",
                "--omega-face",
                "1",
            ]
        )
    assert ended.value.code == 2
    assert capsys.readouterr().err == "talkforge: --seed, --omega-face: is a column of the table of --batch\n"


def test_a_worker_that_dies_costs_its_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ray: the job is put off, and another process goes on. A worker without a model says why."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(tables, "Maker", StandIn)
    jobs: Any = [SimpleNamespace(out=tmp_path / f"{name}.mp4") for name in ("a", "dies", "b", "refused")]
    making: Any = SimpleNamespace(device="cpu", model="")
    found = {job.out.stem: (state, reason) for job, state, reason in tables._on_ray(making, jobs, 1, None)}
    assert found == {
        "a": ("done", ""),
        "dies": ("put_off", "Ray failed (ActorDiedError)"),
        "b": ("done", ""),
        "refused": ("failed", "no face"),
    }
    made = [(tmp_path / f"{name}.mp4").read_text() for name in ("a", "b")]
    assert made[0] != made[1]  # by two processes


class StandIn:
    """Makes files with the number of its process. It needs no module of ours, and no torch."""

    def __init__(self, making: Any) -> None:
        assert making.device == "cpu"

    def make(self, job: Any) -> str:
        import os

        if job.out.stem == "dies":
            os._exit(9)
        if job.out.stem == "refused":
            return "no face"
        job.out.write_text(str(os.getpid()))
        return ""
