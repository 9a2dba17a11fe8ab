"""Imports between folders, rooms and files point one way, without circles, and by one name."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = ("schemas", "curation", "pipeline", "training", "talkforge")
"""The folders, from the ground up: each may import itself and those before it."""

ROOMS = {
    "curation": ("weights", "media", "face", "body", "picture", "audio", "shots", "sync"),
    "training": ("evaluate", "data", "wan", "objective", "run", "encode", "generate"),
    "pipeline": ("report", "exports"),
    "talkforge": ("viewer", "studio", "cli"),
}
"""The rooms inside a folder, from the ground up. Files beside the rooms stand above them, but for
those of GROUND."""

GROUND = {
    "training/config.py", "pipeline/snapshots.py", "pipeline/store.py", "pipeline/tables.py",
    "pipeline/totals.py", "talkforge/local_page.py",
}  # fmt: skip
"""Files beside the rooms that rooms may import."""

EVERYWHERE = {"talkforge/display.py"}
"""Files that only need schemas, and that every folder but schemas may import."""

AT_HOME_ONLY = {"ray": "pipeline", "accelerate": "training", "diffusers": "training", "typer": "talkforge"}

OTHERS = frozenset({*FLOORS[:-1], "examples", "benchmarks", "tests"})
"""Top-level names that nothing installed may import: ours are below `talkforge`."""

FILES = {
    str(path.relative_to(ROOT)): path
    for folder in FLOORS
    for path in sorted((ROOT / folder).rglob("*.py"))  # rglob does not follow the links in talkforge/
}

OUTSIDE = {
    str(path.relative_to(ROOT)): path
    for folder in ("tests", "examples", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
"""Files that are not installed. They, too, know the installed modules by their one name."""

ALIASES = frozenset(FLOORS[:-1])
"""Folders whose modules would be loaded a second time if they were imported as top-level packages."""


def imported(source: str) -> set[str]:
    """Dotted names of everything that a file imports, wherever in the file it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def aliases(source: str) -> set[str]:
    """Names of our modules, without `talkforge.` before them, that a file imports or has in its strings.

    Strings are dotted names, as `monkeypatch.setattr` takes them, and code for another interpreter.
    """
    names = imported(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = file_of(f"talkforge.{node.value}")
            if found and found not in {f"{folder}/__init__.py" for folder in ALIASES}:
                names.add(node.value)
            names |= set(re.findall(r"^\s*(?:import|from)\s+([\w.]+)", node.value, re.MULTILINE))
    return {name for name in names if name.partition(".")[0] in ALIASES}


def file_of(name: str) -> str | None:
    """The file that `talkforge.a.b.c` names, where c may be a module or something in one."""
    parts = name.split(".")
    if parts[0] != "talkforge":
        return None
    inner = parts[1:] if len(parts) > 1 and parts[1] in FLOORS else parts
    for end in (len(inner), len(inner) - 1):
        for path in ("/".join(inner[:end]) + ".py", "/".join([*inner[:end], "__init__.py"])):
            if path in FILES:
                return path
    return None


def arrows(file: str) -> set[str]:
    """Files of ours that `file` imports."""
    found = {file_of(name) for name in imported(FILES[file].read_text(encoding="utf-8"))}
    return {path for path in found if path is not None} - {file}


def height(file: str) -> tuple[int, int]:
    """Floor of the file's folder, and of its room inside it; files beside the rooms stand above them."""
    if file in EVERYWHERE:
        return FLOORS.index("schemas"), 1
    folder, *rest = file.split("/")
    rooms = ROOMS.get(folder, ())
    if file in GROUND:
        return FLOORS.index(folder), -1
    inside = rooms.index(rest[0]) if len(rest) > 1 else len(rooms)
    return FLOORS.index(folder), inside


def test_imports_are_seen_wherever_they_are() -> None:
    source = "import ray.util as r\ndef f():\n    from curation.media import x\n    from . import y\n"
    assert imported(source) == {"ray.util", "curation.media.x"}


def test_second_names_are_seen_in_imports_and_in_strings() -> None:
    patched = 'patch("pipeline.executor.ingest")\npatch("talkforge.pipeline.executor.ingest")\n'
    child = 'run("import sys\\nfrom schemas.config import load_config\\n")\n'
    words = '"""Training goes on. pipeline.md tells how."""\nx = "training.md"\n'
    source = words + "from curation import media\nimport schemas as s\n" + patched + child
    assert aliases(source) == {"curation.media", "schemas", "pipeline.executor.ingest", "schemas.config"}


def test_names_are_found_as_files() -> None:
    assert file_of("talkforge.curation.media.frames.read_frames") == "curation/media/frames.py"
    assert file_of("talkforge.curation.media.read_audio") == "curation/media/__init__.py"
    assert file_of("talkforge.cli.main") == "talkforge/cli/__init__.py"
    assert file_of("numpy.typing.NDArray") is None


def test_every_room_has_its_floor() -> None:
    found = {(file.split("/")[0], file.split("/")[1]) for file in FILES if file.count("/") > 1}
    assert found == {(folder, room) for folder, rooms in ROOMS.items() for room in rooms}


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_lies_below_it(file: str) -> None:
    assert [path for path in arrows(file) if height(path) > height(file)] == []
    tops = {name.partition(".")[0] for name in imported(FILES[file].read_text(encoding="utf-8"))}
    assert tops & OTHERS == set()
    assert [name for name, home in AT_HOME_ONLY.items() if name in tops and file.split("/")[0] != home] == []


@pytest.mark.parametrize("file", OUTSIDE)
def test_what_is_not_installed_knows_modules_by_their_one_name(file: str) -> None:
    if file != "tests/test_imports.py":  # which has second names for its own tests
        assert aliases(OUTSIDE[file].read_text(encoding="utf-8")) == set()


def test_no_imports_go_round_in_a_circle() -> None:
    # A room's __init__ names what is in it; a file of the room may import another of the room past it.
    graph = {file: {path for path in arrows(file) if not path.endswith("__init__.py")} for file in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", FLOORS)
def test_no_two_classes_of_a_folder_have_one_name(folder: str) -> None:
    where: dict[str, list[str]] = {}
    for file, path in FILES.items():
        if file.split("/")[0] == folder:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(file)
    assert {name: files for name, files in where.items() if len(files) > 1} == {}
