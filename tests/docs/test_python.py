"""The examples of docs/python.md, run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Curated

PAGE = Path(__file__).parents[2] / "docs" / "python.md"

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_has_its_examples() -> None:
    assert len(BLOCKS) == 5


@pytest.fixture
def folder(measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds the data set that the page reads."""
    shutil.copytree(measured.dataset, tmp_path / "set")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", BLOCKS[1:], ids=range(1, len(BLOCKS)))
def test_an_example_reads_a_data_set(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert shown if "print(" in block else names["rejected"].to_dict() == {}  # type: ignore[attr-defined]


def test_the_example_curates(measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "footage").mkdir()
    shutil.copy(measured.videos / "a.mp4", tmp_path / "footage")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], str(PAGE), "exec"), names)
    assert len(names["curated"].ledger) == 1  # type: ignore[attr-defined]
