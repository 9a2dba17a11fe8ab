"""The tables of docs/models.md: what a line says, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import models as benchmark
from benchmarks.models import Row
from curation import models


def test_a_line_has_the_terms_of_the_registry() -> None:
    ours = benchmark.line("sync", Row(("ridge",), "right", 0.0125))
    assert ours == "| sync | ridge | part of Talkforge | yes | right | 0.013 |"
    two = benchmark.line("body", Row(("pose_detector", "pose_landmark_full"), "found", 1.0))
    assert "| pose_detector, pose_landmark_full | Apache-2.0 | yes | found | 1.000 |" in two
    assert "| no |" in benchmark.line("identity", Row(("mobilefacenet",), "apart", 0.1))


def test_what_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    names = [text.split(" | ")[0].removeprefix("| ") for text in benchmark.not_here()]
    assert names == [name for name in models.MODELS if models.present(name) is None]
    assert "scrfd" in names


def test_cost_is_cpu_seconds_over_footage() -> None:
    spent = benchmark.Spent()
    assert spent.on(2.0, lambda: sum(range(200_000))) == 19_999_900_000
    spent.on(3.0, lambda: None)
    assert spent.footage_s == 5.0
    assert spent.rate == spent.cpu_s / 5.0 > 0
