"""Histograms: bars and thresholds lie where their numbers say, in the page's colours."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from talkforge.pipeline.report.charts import BOTTOM, LEFT, RIGHT, TOP, histogram_svg, ticks_between

ENTRY = {
    "field": "face_px", "edges": [0.0, 1.0, 2.0, 4.0], "accepted_s": [0.5, 1.0, 0.0],
    "not_accepted_s": [0.0, 1.0, 1.5], "scale": "linear", "unit": "px <1>",
    "absolute": False, "thresholds": [],
}  # fmt: skip


def drawn(**changes: Any) -> ElementTree.Element:
    return ElementTree.fromstring(histogram_svg(ENTRY | changes))


def corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d", ""))]


def texts(svg: ElementTree.Element) -> list[str | None]:
    return [text.text for text in svg.iter("text")]


def test_bars_are_as_high_as_their_numbers_and_stacked() -> None:
    everyone, kept = drawn().iter("path")
    assert (everyone.get("fill"), kept.get("fill")) == ("var(--lost)", "var(--kept)")
    unit = (BOTTOM - TOP) / 4
    heights = [[round((BOTTOM - y) / unit, 2) for _, y in corners(path)] for path in (everyone, kept)]
    assert heights == [[0, 1, 1, 4, 4, 3, 3, 0], [0, 1, 1, 2, 2, 0, 0, 0]]
    room = 0.02 * 4 / 4.16 * (RIGHT - LEFT)
    whole = RIGHT - LEFT - 2 * room
    places = [x for x, _ in corners(everyone)]
    expected = [LEFT + room + whole * part for part in (0, 0, 0.25, 0.25, 0.5, 0.5, 1, 1)]
    assert places == pytest.approx(expected, abs=0.01)


def test_thresholds_are_dashed_lines_at_their_place_and_ticks_are_round() -> None:
    svg = drawn(thresholds=[{"threshold": 2.0, "side": "at_least"}])
    (mark,) = (line for line in svg.iter("line") if line.get("stroke") == "var(--mark)")
    assert float(mark.get("x1", "")) == pytest.approx((LEFT + RIGHT) / 2, abs=0.01)
    assert texts(svg) == ["0", "1", "2", "0", "1", "2", "3", "4", "px <1>", "s"]


def test_a_logarithmic_axis_names_edges_and_turns_linear_where_a_threshold_is_zero() -> None:
    edges = [10.0**k for k in range(-2, 2)]
    log = {"edges": edges, "scale": "log"}
    places = [x for x, _ in corners(next(drawn(**log).iter("path")))][1::2]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    assert texts(drawn(**log))[3:-2] == ["0.01"]
    linear = drawn(**log, thresholds=[{"threshold": 0.0, "side": "at_least"}])
    assert texts(linear)[3:-2] == ["0", "2", "4", "6", "8", "10"]


def test_nothing_at_all_is_a_chart_without_bars() -> None:
    svg = drawn(accepted_s=[0, 0, 0], not_accepted_s=[0, 0, 0])
    assert list(svg.iter("path")) == []


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "expected"),
    [
        (0, 1, 6, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7, 3, True, [0, 5]),
        (0, 1, 3, True, [0, 1]),
        (-3, 3, 6, True, [-3, -2, -1, 0, 1, 2, 3]),
        (0.1, 0.1001, 5, False, [0.1, 0.10002, 0.10004, 0.10006, 0.10008, 0.1001]),
        (37, 1912, 6, False, [500, 1000, 1500]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, whole: bool, expected: list[float]) -> None:
    assert ticks_between(low, high, most, whole) == pytest.approx(expected)
