"""What the pages name is there: links, files, programs, targets of make, settings, pages in the index."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from talkforge.schemas.config import Config
from talkforge.schemas.settings import key_paths
from talkforge.training.config import TrainConfig

ROOT = Path(__file__).parents[2]

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])

FOLDERS = (
    "schemas",
    "curation",
    "pipeline",
    "training",
    "talkforge",
    "configs",
    "examples",
    "benchmarks",
    "tests",
    "docs",
)

NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages that speak of what is; the changes speak of what was."""

ENDINGS = {"npy", "npz", "json", "py", "md", "safetensors", "yaml"}
"""Of files whose names look like settings."""


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in headings(there), target


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def missing_programs(text: str) -> list[str]:
    """What is not there of the `python -m ROOM.MODULE --option` in a text: modules, options."""
    found = []
    rooms = "|".join(FOLDERS)
    for module, rest in re.findall(rf"python -m ((?:{rooms})(?:\.\w+)*)([^`\n|]*)", text):
        file = ROOT / f"{module.replace('.', '/')}.py"
        if not file.is_file():
            found.append(module)
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        options = re.findall(r"--[a-z][\w-]*", rest.partition("#")[0])
        found += [f"{module} {option}" for option in options if option not in texts]
    return found


def missing_targets(text: str) -> list[str]:
    """Targets of `make TARGET` in a text that the Makefile lacks."""
    there = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return [name for name in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE) if name not in there]


def missing_settings(text: str) -> list[str]:
    """Settings of `section.key` or `--set section.key=value` in a text that no configuration has."""
    known = {*key_paths(Config), *key_paths(TrainConfig)}
    known |= {key.removeprefix("measure.") for key in known}
    sections = "|".join({key.partition(".")[0] for key in known})
    named = re.findall(rf"(?:--set |-s |`)((?:{sections})(?:\.[a-z]\w*)+)(?=[`=])", text)
    return [name for name in named if name not in known and name.rpartition(".")[2] not in ENDINGS]


def missing_tests(text: str) -> list[str]:
    """Files and folders of `pytest PATH` in a text that are not there."""
    words = [
        word for line in re.findall(r"pytest ([^`\n]+)", text) for word in shlex.split(line, posix=False)
    ]
    return [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()]


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_targets_settings_and_tests_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    assert missing_programs(text) == []
    assert missing_targets(text) == []
    assert missing_settings(text) == []
    assert missing_tests(text) == []


def test_what_is_not_there_is_found() -> None:
    text = "`python -m benchmarks.none`\npython -m examples.learn --short --long  # --not\n"
    assert missing_programs(text) == ["benchmarks.none", "examples.learn --long"]
    assert missing_targets("`make demo`, `make nothing`\nmake none   # one\nto make sure") == [
        "nothing",
        "none",
    ]
    text = "`thresholds.min_sync`, `scan.sample_s`, `lips.npz`, `talkforge select set --set run.fps=1`"
    assert missing_settings(text) == ["thresholds.min_sync", "run.fps"]
    assert missing_tests("`pytest -x tests/docs tests/none.py -k one`") == ["tests/none.py"]


def broken_rows(text: str) -> list[str]:
    """Rows of the tables in a text that have another number of cells than the table's first row.

    A bar within a cell divides it, also within backticks, unless a backslash stands before it.
    """
    found, wanted, code = [], 0, False
    for line in text.splitlines():
        code ^= line.startswith("```")
        if code or not line.lstrip().startswith("|"):
            wanted = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        wanted = wanted or cells
        found += [line] if cells != wanted else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_have_as_many_cells_in_every_row(page: Path) -> None:
    assert broken_rows(page.read_text(encoding="utf-8")) == []


def test_a_row_with_a_bar_too_many_is_found() -> None:
    text = "| a | b |\n|---|---|\n| `x|y` | 1 |\n| `x\\|y` | 2 |\n\n| c |\n```\n| d | e |\n```\n| f | g |"
    text += "\n| h |"
    assert broken_rows(text) == ["| `x|y` | 1 |", "| h |"]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_the_page_of_the_architecture_names_every_module_of_the_pipeline() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in ROOT.glob("pipeline/*.py")} - {"__init__.py"}
    assert len(modules) > 30
    assert {name for name in modules if f"`{name}`" not in page and f"/{name}`" not in page} == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
