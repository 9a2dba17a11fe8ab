"""`talkforge export` on the command line: what it prints, and commands that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command_line import run
from tests.pipeline.exports.published_set import publish


def test_an_export_says_where_it_is_and_what_it_holds(tmp_path: Path) -> None:
    publish(tmp_path / "set")
    code, output, error = run(
        "export", tmp_path / "set", "--as", "videox", "--out", tmp_path / "out", "-j", "1"
    )
    assert (code, output) == (0, f"{tmp_path}/out: 3 train, 1 validation clips for VideoX-Fun\n")
    assert "2 clips have no text: their prompt is 'a person is talking' (--prompt)" in error
    code, output, _ = run("export", tmp_path / "set", "--as", "wids", "--json")
    found = json.loads(output)
    assert (code, found["format"], found["complete"], found["clips"]) == (
        0, "wids", True, {"train": 3, "validation": 1},
    )  # fmt: skip


def test_commands_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    publish(tmp_path / "set")
    for arguments, said in (
        ((tmp_path / "set",), f"{tmp_path}/set: is a data set; expected a format for it (--as)"),
        ((tmp_path / "run", "--split", "train"), "--split: expected a data set and --as FORMAT"),
        ((tmp_path / "run",), "--out: expected a name in .safetensors, .ckpt or .pt, or a new folder"),
        ((tmp_path / "set", "--as", "musubi"), "--as musubi: expected a folder to write to (--out DIR)"),
        (
            (tmp_path / "run", "--as", "musubi", "-o", "x"),
            f"{tmp_path}/run: no data set here (dataset.json is missing)",
        ),
    ):
        code, _, error = run("export", *arguments)
        assert (code, " ".join(error.split())) == (2, f"talkforge: {said}")
