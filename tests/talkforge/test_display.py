"""The progress display, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from talkforge import display
from talkforge.display import Display
from talkforge.schemas.progress import Progress, counted, hours


def shown(states: list[Progress], *, terminal: bool = False, quiet: bool = False) -> str:
    text = io.StringIO()
    with Display(Console(file=text, force_terminal=terminal, width=100, quiet=quiet)) as display:
        for state in states:
            display.show(state)
    return text.getvalue()


STATES = [
    *(counted("reading inputs", number, 3) for number in range(4)),
    Progress("selecting"),
    *(counted("cutting", number, 200, "clips") for number in range(201)),
]


def test_elsewhere_a_phase_has_a_line_when_it_begins_and_when_it_is_done() -> None:
    lines = shown(STATES).splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "reading inputs: 0 of 3",
        "reading inputs: 3 of 3",
        "selecting",
        "cutting: 0 of 200 clips",
        "cutting: 200 of 200 clips",
    ]
    assert all(line.startswith("[0:0") for line in lines)


def test_elsewhere_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_S", 0.0)
    assert len(shown([counted("cutting", number, 9) for number in range(5)]).splitlines()) == 5


def test_what_is_done_from_the_start_has_one_line() -> None:
    assert shown([counted("cutting", 2, 2, "clips")] * 3).count("\n") == 1


def test_on_a_terminal_each_phase_has_a_bar() -> None:
    text = shown(STATES, terminal=True)
    for phase in ("reading inputs", "selecting", "cutting", "200 of 200 clips"):
        assert phase in text
    assert "[0:0" not in text


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "talkforge.display"):
        assert shown(STATES, terminal=terminal, quiet=True) == ""
    assert "cutting: 200 of 200 clips" in caplog.messages  # a log file still has it


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (119.94, "119.9 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.00 h")],
)
def test_lengths_of_time_are_readable(seconds: float, text: str) -> None:
    assert hours(seconds) == text
