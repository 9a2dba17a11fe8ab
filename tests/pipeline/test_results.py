"""Work is counted once, for the stage that did it."""

from __future__ import annotations

import pytest

from talkforge.pipeline import results
from talkforge.pipeline.parts import Part
from talkforge.pipeline.results import PartResult


def test_a_clock_within_a_clock_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = iter([0.0, 1.0, 4.0, 5.0, 6.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(results.time, "process_time", lambda: next(times_s))
    result = PartResult(Part(name="p", windows=()))
    with result.clock("outer"):
        with result.clock("inner"):
            pass
        with result.clock("inner"):
            pass
    with result.clock("outer"):
        pass
    assert result.cpu_s == {"inner": 4.0, "outer": 7.0}
