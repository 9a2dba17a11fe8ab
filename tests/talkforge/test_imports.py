"""Commands that answer at once import nothing large."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = (
    "pandas",
    "ray",
    "torch",
    "mediapipe",
    "scenedetect",
    "matplotlib",
    "transformers",
    "diffusers",
    "onnxruntime",
)

PROGRAM = """
import json, sys
from talkforge.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    found = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
    print("\\n" + json.dumps([int(end.code or 0), found]))
"""


def imported(*command: object) -> tuple[int, list[str]]:
    """Exit code of a command in a process of its own, and which of HEAVY it imported."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, names


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["models"], 0),
        (["config", "list"], 0),
        (["curate", "x", "-o", "y", "-s", "thresholds.colour=1"], 2),
        (["train", "tiny-stage1", "-s", "optim.colour=1"], 2),
        (["encode", "x", "-s", "optim.colour=1"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_nothing_large_is_imported(command: list[str], code: int) -> None:
    assert imported(*command) == (code, [])


def test_status_imports_nothing_large(curated: Any) -> None:
    assert imported("status", curated.dataset) == (0, [])
    assert imported("select", curated.dataset, "-s", "thresholds.colour=1") == (2, [])
    (marker,) = curated.dataset.glob("parts/*/part.json")
    marker.unlink()  # the ledger does not fit any more, and the parts are read
    assert imported("status", curated.dataset) == (0, ["pandas"])  # by pyarrow, for arrays of values
