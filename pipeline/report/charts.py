"""Charts as inline SVG that takes its colours from the page, so that one chart serves light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

WIDTH_IN, HEIGHT_IN = 4.4, 1.9

# Matplotlib writes colours as numbers; each of these stands for a variable of the page's style.
KEPT, LOST, MARK, MUTED, GRID = "#010a01", "#010a02", "#010a03", "#010a04", "#010a05"
VARIABLES = {
    KEPT: "var(--kept)",
    LOST: "var(--lost)",
    MARK: "var(--mark)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
}

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def histogram_svg(entry: Mapping[str, Any]) -> str:
    """Stacked histogram of one entry of `statistics["measures"]`, thresholds as dashed lines.

    Returns:
        An `<svg>` element without an XML header; the same entry gives the same text.
    """
    edges = np.array(entry["edges"])
    accepted, others = np.array(entry["accepted"]), np.array(entry["not_accepted"])
    with mpl.rc_context({**STYLE, "svg.hashsalt": entry["field"]}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.11, 0.25, 0.86, 0.7))
        axes.stairs(accepted + others, edges, fill=True, color=LOST, linewidth=0)
        axes.stairs(accepted, edges, fill=True, color=KEPT, linewidth=0)
        if entry["scale"] == "log" and edges[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(edges[::6], [f"{edge:.3g}" for edge in edges[::6]])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=entry["scale"] == "whole"))
        for value in threshold_positions(entry):
            axes.axvline(value, color=MARK, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.margins(x=0.02)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.set_ylabel("clips")
        axes.set_xlabel(entry["unit"])
        return _inline(figure)


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


def _inline(figure: Figure) -> str:
    """The figure's <svg> element: no header, no namespaces, no fixed size, the page's colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None  # matplotlib always writes one
    # Ids of groups would be repeated from chart to chart; those of shapes are salted and referred to.
    rest = re.sub(r'<g id="[^"]*">', "<g>", rest)
    rest = re.sub(r"font: [^;\"]*;?", "", rest)
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, variable)
    return f'<svg {box.group(0)} role="img" aria-hidden="true">{rest.strip()}'
