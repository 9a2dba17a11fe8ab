"""Usage reports are off before a library that has them is imported, and idle warnings too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from talkforge.pipeline.cluster import worker_environment
from talkforge.schemas import telemetry

ROOT = Path(__file__).parents[2]


def python(code: str, home: Path, **environment: str) -> str:
    """Output of a program in a process of its own, which finds nothing in its home."""
    env = {name: value for name, value in os.environ.items() if name not in telemetry.SWITCHES}
    env = {name: value for name, value in env.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"HOME": str(home)} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_importing_talkforge_sets_the_switches(tmp_path: Path) -> None:
    found = python("import os, talkforge; print(dict(os.environ))", tmp_path)
    assert {name: eval(found)[name] for name in telemetry.SWITCHES} == telemetry.SWITCHES


def test_what_the_user_set_stands(tmp_path: Path) -> None:
    code = "import os, talkforge; print(os.environ['DO_NOT_TRACK'])"
    assert python(code, tmp_path, DO_NOT_TRACK="0") == "0\n"


def test_onnxruntime_leaves_nothing_at_home(tmp_path: Path) -> None:
    python("import onnxruntime", tmp_path)
    if not any(tmp_path.rglob("*onnxruntime*")):
        pytest.skip("this build of onnxruntime has no telemetry")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    python("import talkforge, onnxruntime", fresh)
    assert list(fresh.rglob("*onnxruntime*")) == []


def test_libraries_warn_only_where_the_user_asks_for_it(tmp_path: Path) -> None:
    code = (
        "import logging; logging.getLogger('transformers').setLevel(logging.INFO); import talkforge, os\n"
        "names = 'transformers', 'torchao', 'diffusers'\n"
        "print([logging.getLogger(name).getEffectiveLevel() for name in names])\n"
        "print(os.environ['DIFFUSERS_VERBOSITY'])"
    )
    assert python(code, tmp_path).splitlines() == ["[20, 40, 30]", "error"]
    assert python(code, tmp_path, DIFFUSERS_VERBOSITY="info").splitlines()[1] == "info"


def test_workers_are_given_the_switches() -> None:
    telemetry.switch_off()
    given = worker_environment()
    assert {name: given[name] for name in telemetry.SWITCHES} == {
        name: os.environ[name] for name in telemetry.SWITCHES
    }


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_the_cluster_file_sets_them_before_ray_starts(commands: str) -> None:
    described = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    (start,) = [command for command in described[commands] if "ray start" in command]
    exports, _, rest = start.partition("; ")
    assert set(exports.removeprefix("export ").split()) == {
        f"{name}={value}" for name, value in telemetry.SWITCHES.items()
    }
    assert rest.startswith("ray start")
