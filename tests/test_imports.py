"""The arrows between the folders point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OURS = frozenset({"schemas", "curation", "pipeline", "training", "examples", "benchmarks", "tests"})

MAY_IMPORT = {
    "schemas": {"schemas"},
    "curation": {"schemas", "curation"},
    "pipeline": {"schemas", "curation", "pipeline"},
    "training": {"schemas", "curation", "pipeline", "training"},
}

COMMAND_LINE = "pipeline/cli.py"
"""The one file that reaches everything."""

AT_HOME_ONLY = {"ray": "pipeline", "accelerate": "training", "diffusers": "training"}

FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Top-level names of everything that a file imports, wherever in the file it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names


def test_imports_are_seen_wherever_they_are() -> None:
    source = "import ray.util as r\ndef f():\n    from curation.media import x\n    from . import y\n"
    assert imported(source) == {"ray", "curation"}


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"schemas", "curation", "pipeline"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    names = imported(path.read_text(encoding="utf-8"))
    reaches = {"training"} if path == ROOT / COMMAND_LINE else set()
    assert names & OURS <= MAY_IMPORT[folder] | reaches
    assert [name for name, home in AT_HOME_ONLY.items() if name in names and folder != home] == []
