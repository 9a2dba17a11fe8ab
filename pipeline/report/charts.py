"""Charts as inline SVG that takes its colours from the page, so that one chart serves light and dark.

They are written here as text: a library draws one in 0.05 CPU seconds and takes 0.7 to import, for fifty of
them in a report that every command makes again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 317.0, 137.0
"""Size of a chart in its own units, CSS pixels where it is shown as it is."""

TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
"""Units of the heights, in seconds: the first of which there are two."""

LEFT, RIGHT, TOP, BOTTOM = 35.0, 308.0, 7.0, 103.0
"""Edges of the plot within it."""


def histogram_svg(entry: Mapping[str, Any], top_s: float = 0.0) -> str:
    """Stacked histogram of one entry of `statistics["measures"]` by length, thresholds as dashed lines.

    Args:
        entry: its edges, lengths in each bin, thresholds and scale.
        top_s: least length that the axis reaches up to, for charts that are compared.

    Returns:
        An `<svg>` element without an XML header; the same entry gives the same text.
    """
    edges = [float(edge) for edge in entry["edges"]]
    both_s = [a + b for a, b in zip(entry["accepted_s"], entry["not_accepted_s"], strict=True)]
    unit_s, unit = next(one for one in TIMES if max([*both_s, top_s]) >= 2 * one[0] or one[0] == 1)
    heights, kept = ([length / unit_s for length in lengths] for lengths in (both_s, entry["accepted_s"]))
    is_log = entry["scale"] == "log" and edges[0] > 0
    lines = threshold_positions(entry)
    x_of = _Axis([*edges, *lines], LEFT, RIGHT, 0.02, is_log)
    y_of = _Axis([0.0, max([*heights, top_s / unit_s]) or 1.0], BOTTOM, TOP)
    ticks = edges[::6] if x_of.is_log else ticks_between(*x_of.span, 6, entry["scale"] == "whole")
    middle = (TOP + BOTTOM) / 2
    parts = [
        *_grid(ticks_between(0.0, y_of.span[1], 3), y_of),
        *_bars(edges, heights, x_of, y_of, "var(--lost)"),
        *_bars(edges, kept, x_of, y_of, "var(--kept)"),
        *(_line(x_of(at), TOP, x_of(at), BOTTOM, "var(--mark)", ' stroke-dasharray="6 3"') for at in lines),
        _line(LEFT, BOTTOM, RIGHT, BOTTOM, "var(--line)"),
        *(_text(x_of(at), BOTTOM + 12, f"{at:.3g}" if x_of.is_log else _number(at)) for at in ticks),
        _text((LEFT + RIGHT) / 2, BOTTOM + 27, str(entry["unit"])),
        _text(9.0, middle, unit, more=f' transform="rotate(-90 9 {middle:g})"'),
    ]
    head = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-hidden="true">'
    return head + "".join(parts) + "</svg>"


def threshold_positions(entry: Mapping[str, Any]) -> list[float]:
    """Where the thresholds lie on the axis.

    Between two whole numbers where those are counted, and on both sides of zero where a rule looks
    at the size.
    """
    positions = set()
    for line in entry["thresholds"]:
        position = float(line["threshold"])
        if entry["scale"] == "whole":
            position = math.floor(position) + 0.5 if line["side"] == "at_most" else math.ceil(position) - 0.5
        positions |= {position, -position} if entry["absolute"] else {position}
    return sorted(positions)


def ticks_between(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` steps of 1, 2, 2.5 or 5 times a power of ten.

    Args:
        low: least number.
        high: greatest number, above `low`.
        most: most steps.
        whole: whether only whole numbers count.
    """
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10, 20)]
    step = next(s for s in steps if s >= least * (1 - 1e-9) and not (whole and s != math.floor(s)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


class _Axis:
    """Maps values to places between two edges of the plot.

    Args:
        values: what it reaches over.
        begin: place of the least of them.
        end: place of the greatest.
        margin: room beside them, as a fraction of their span.
        is_log: whether the axis is logarithmic, which it can be for positive values only.
    """

    def __init__(
        self, values: Sequence[float], begin: float, end: float, margin: float = 0.0, is_log: bool = False
    ) -> None:
        self.span = (min(values), max(values))
        if self.span[0] == self.span[1]:
            self.span = (self.span[0] - 0.5, self.span[0] + 0.5)
        self.is_log = is_log and self.span[0] > 0
        low, high = (self._scaled(value) for value in self.span)
        self._low, self._high = low - margin * (high - low), high + margin * (high - low)
        self._begin, self._end = begin, end

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value

    def __call__(self, value: float) -> float:
        part = (self._scaled(value) - self._low) / (self._high - self._low)
        return self._begin + part * (self._end - self._begin)


def _bars(
    edges: Sequence[float], heights: Sequence[float], x_of: _Axis, y_of: _Axis, colour: str
) -> Iterator[str]:
    """The histogram as one shape."""
    if not any(heights):
        return
    path = f"M{_place(x_of(edges[0]))} {_place(BOTTOM)}"
    for begin, end, height in zip(edges, edges[1:], heights, strict=False):
        path += f"L{_place(x_of(begin))} {_place(y_of(height))}L{_place(x_of(end))} {_place(y_of(height))}"
    yield f'<path d="{path}L{_place(x_of(edges[-1]))} {_place(BOTTOM)}Z" fill="{colour}"/>'


def _grid(ticks: Sequence[float], y_of: _Axis) -> Iterator[str]:
    for at in ticks:
        yield _line(LEFT, y_of(at), RIGHT, y_of(at), "var(--line)", ' stroke-width="0.6"')
        yield _text(LEFT - 4, y_of(at) + 3, _number(at), "end")


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, more: str = "") -> str:
    ends = f'x1="{_place(x0)}" y1="{_place(y0)}" x2="{_place(x1)}" y2="{_place(y1)}"'
    return f'<line {ends} stroke="{colour}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    """Text in the page's colour and size."""
    at = f'x="{_place(x)}" y="{_place(y)}" text-anchor="{anchor}"'
    return f"<text {at}{more}>{escape(text)}</text>"


def _place(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _number(value: float) -> str:
    """A round number as a label, without what its binary form adds."""
    return f"{round(value, 12) + 0.0:.6g}"
