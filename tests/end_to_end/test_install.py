"""What is built is whole, and works for a user who has nothing of the repository.

Built and installed without a network: setuptools and all that Talkforge needs are borrowed from this
environment, Talkforge itself is not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from talkforge.curation.weights import registry

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "curation", "pipeline", "schemas", "training")
"""Linked into talkforge/."""

LEFT_OUT = {"__pycache__"}

SCRIPT = '''\
"""A user's own program."""

import talkforge
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config


def samples(path: str) -> int:
    curated = talkforge.open(path)
    return sum(len(sample.frames()) for sample in curated.samples(split=None))


store: Store = Store("set")
config: Config = Config()
count: int = samples("set")
rate: float = config.measure.clip.fps
'''


def build(tree: Path, out: Path, what: str) -> Path:
    """`sdist` or `wheel` of a tree, into `out`, by the build backend itself."""
    code = f"from setuptools import build_meta as b; print(b.build_{what}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout + done.stderr
    assert "absent from the `packages` configuration" not in told
    assert "Deprecat" not in told
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel, and the wheel that is made from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    names = (*FOLDERS, "talkforge", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md",
             "CITATION.cff", "tests")  # fmt: skip
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True,
                            ignore=shutil.ignore_patterns(*LEFT_OUT))  # fmt: skip
        else:
            shutil.copy(ROOT / name, tree)
    sdist = build(tree, folder, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (folder / "second").mkdir()
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return {
        "sdist": sdist,
        "wheel": build(tree, folder, "wheel"),
        "wheel of the sdist": build(unpacked, folder / "second", "wheel"),
    }


def source_files() -> set[str]:
    """Everything below talkforge/ and the folders linked there, as installed."""
    found: set[str] = {"talkforge/py.typed"}
    for folder, prefix in (("talkforge", ""), *((name, "talkforge/") for name in FOLDERS)):
        # Links in talkforge/ are not followed: what they lead to comes by its own folder.
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not set(path.parts) & LEFT_OUT:
                found.add(prefix + path.relative_to(ROOT).as_posix())
    return found


def members(archive: Path) -> dict[str, bytes]:
    """File name -> content; an sdist's without its top folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        files = {entry.name: sdist.extractfile(entry) for entry in sdist.getmembers() if entry.isfile()}
    return {name.partition("/")[2]: b"" for name, file in files.items() if file}


def tops(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("kind", ["wheel", "wheel of the sdist"])
def test_a_wheel_holds_the_package_and_nothing_else(built: dict[str, Path], kind: str) -> None:
    found = members(built[kind])
    info = "talkforge-0.1.0.dist-info"
    assert tops(found) == {"talkforge", info}
    assert {name for name in found if name.startswith("talkforge/")} == source_files()
    weights = ("curation/sync/contrastive.npz", "curation/face/covered_mouth.onnx")
    for name in (*(f"talkforge/{file}" for file in weights), "talkforge/configs/offline.yaml"):
        assert found[name] == (ROOT / name).read_bytes()
    assert found[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    charts = "talkforge/pipeline/report/uplot/LICENSE"
    assert found[f"{info}/licenses/{charts}"] == found[charts]
    metadata = found[f"{info}/METADATA"].decode()
    assert "License-Expression: Apache-2.0 AND MIT\n" in metadata


def test_an_sdist_holds_the_package_and_what_builds_it(built: dict[str, Path]) -> None:
    found = members(built["sdist"])
    assert {name for name in found if name.startswith("talkforge/")} == source_files()
    assert tops(found) == {
        *("talkforge", "talkforge.egg-info", "pyproject.toml", "setup.cfg", "PKG-INFO", "MANIFEST.in"),
        *("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"),
    }


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel, which borrows everything else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scheme = sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)})
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    # A path file adds folders without reading the path files in them: an editable Talkforge is not seen.
    (Path(scheme) / "borrowed.pth").write_text("\n".join(borrowed))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet",
         "--no-deps", "--no-index", built["wheel"]],
        check=True,
    )  # fmt: skip
    return folder / "bin"


def run(command: list[object], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that must succeed, in another folder, where nothing of the repository can be imported."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_it_is_the_wheel_that_is_imported(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "curation").mkdir()
    (tmp_path / "curation" / "__init__.py").write_text("raise RuntimeError('the user s own')")
    code = "import talkforge.curation.scan as m; print(m.__file__)"
    found = run([installed / "python", "-c", code], tmp_path).stdout.strip()
    assert Path(found).is_relative_to(installed.parent)


def test_commands_answer(installed: Path, tmp_path: Path) -> None:
    assert "curate" in run([installed / "talkforge", "--help"], tmp_path).stdout
    assert "centerface" in run([installed / "talkforge", "models"], tmp_path).stdout


def test_it_curates_and_leaves_nothing_at_home(installed: Path, tmp_path: Path, measured: Any) -> None:
    home = tmp_path / "home"
    home.mkdir()
    fresh = {name: "" for name in os.environ if name.startswith("XDG_")} | {"HOME": str(home)}
    run(
        [installed / "talkforge", "curate", measured.videos / "a.mp4", "--out", "set", "--config", "offline",
         "--set", "thresholds.min_face_px=64", "--set", "motion.body=none", "--executor", "inline"],
        tmp_path, TALKFORGE_CACHE=str(registry.cache_dir()), **fresh,
    )  # fmt: skip
    ledger = pq.read_table(tmp_path / "set" / "ledger.parquet").to_pylist()
    assert [row["accepted"] for row in ledger] == [True]
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert {name for name in left if "/matplotlib/" not in name} == set()  # its list of fonts


def test_a_users_program_is_checked_against_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python",
         "--config-file", os.devnull, "program.py"],
        tmp_path,
    )  # fmt: skip
