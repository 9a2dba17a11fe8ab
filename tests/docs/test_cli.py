"""docs/cli.md says what the commands say of themselves."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from docs import make_cli
from talkforge.cli import app
from tests.conftest import ROOT

COMMON = {"--help", "--quiet", "-q", "--verbose", "-v", "--log-file"}
"""Options of every command."""


def test_the_page_is_as_it_would_be_written_now() -> None:
    page = Path(make_cli.__file__).with_name("cli.md").read_text(encoding="utf-8")
    assert page == make_cli.page()


def commands(text: str) -> list[list[str]]:
    """Words of every command of ours in a page."""
    text = text.replace("\\\n", " ")  # commands on several lines
    found = re.findall(r"^(?:\$ )?(talkforge [^\n]*)|`(talkforge [^`\n]*)`", text, re.MULTILINE)
    words = [shlex.split(first or second, comments=True) for first, second in found]
    return [list(itertools.takewhile(lambda word: word not in ("|", ">", "<"), line)) for line in words]


def unknown(words: list[str]) -> list[str]:
    """What the command line would not take of a command: its name, or options."""
    command: Any = typer.main.get_command(app)
    names = words[1:]
    while names and names[0] in getattr(command, "commands", {}):
        command = command.commands[names.pop(0)]
    if len(names) == len(words) - 1:
        return [] if not names or names[0].startswith("-") else names[:1]
    options = {option for one in command.params for option in one.opts} | COMMON
    return [name for name in names if re.match("--?[a-z]", name) and name.partition("=")[0] not in options]


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_pages_are_there_with_their_options(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        assert unknown(words) == [], " ".join(words)


def test_a_command_that_is_not_there_is_found() -> None:
    (words,) = commands("text\ntalkforge select set -s a.b=1 --nothing=2  # and so on\n")
    assert unknown(words) == ["--nothing=2"]
    assert unknown(["talkforge", "sleect", "set"]) == ["sleect"]
