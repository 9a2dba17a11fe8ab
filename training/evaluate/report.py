"""The files of an evaluation's report: an HTML page, tables in CSV, and the paper's table in LaTeX."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from talkforge.schemas.package_files import package_text
from talkforge.training.evaluate.metrics import FREE, METRICS, PAPER

STRIPS_SHOWN = 40
"""Most pairs whose frames the page shows."""

PAPER_ROWS: dict[str, tuple[float | None, ...]] = {
    "FantasyTalking, tame": (27.695, 301.173, 4.226, 9.251, 0.9612, 0.9892, 11.745, None, 0.5362),
    "FantasyTalking, wild": (43.137, 483.108, 3.154, 9.689, 0.9589, 0.9754, 13.783, 7.9624, 0.6183),
}
"""Rows of the paper's table, in the order of `PAPER`. Source: FantasyTalking, tables of section 4.2."""

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def number(value: float | None) -> str:
    """A value as tables show it: four digits that count, an en dash for what could not be measured."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"


def interval(estimate: Mapping[str, Any] | None) -> str:
    """Mean and interval of an `Estimate` as a dictionary."""
    if estimate is None or estimate["mean"] is None:
        return "–"
    if estimate["low"] is None:
        return number(estimate["mean"])
    return f"{number(estimate['mean'])} ({number(estimate['low'])} to {number(estimate['high'])})"


def videos_csv(document: Mapping[str, Any]) -> str:
    """One row for each video: key, status, reason, and every measure of the generated and the true one.

    Args:
        document: content of report.json.
    """
    names = [name for name, metric in METRICS.items() if metric.of != "set"]
    single = [name for name in names if METRICS[name].of == "video"]
    header = ["key", "status", "reason", *names, *(f"true_{name}" for name in single)]
    rows: list[list[Any]] = []
    for row in document["rows"]:
        values = [row["generated"].get(name) for name in names]
        rows.append([row["key"], "measured", "", *values, *(row["truth"].get(name) for name in single)])
    empty = [None] * (len(names) + len(single))
    rows += [[key, "failed", why, *empty] for key, why in document["failed"].items()]
    rows += [[name, "unpaired", why, *empty] for name, why in document["unpaired"].items()]
    return csv_text(header, rows)


def metrics_csv(document: Mapping[str, Any]) -> str:
    """One row for each metric: means with intervals, of generated and true videos and their differences.

    Args:
        document: content of report.json.
    """
    sides = ("generated", "truth", "difference")
    parts = ("mean", "low", "high", "count")
    header = ["metric", "unit", "better", *(f"{side}_{part}" for side in sides for part in parts), "why_not"]
    rows = []
    for one in document["metrics"]:
        cells = [(one[side] or {}).get(part) for side in sides for part in parts]
        rows.append([one["name"], one["unit"], one["better"], *cells, one["why_not"]])
    return csv_text(header, rows)


def latex(document: Mapping[str, Any]) -> str:
    """The paper's table with a row for these videos, and a second table of the metrics without download.

    Args:
        document: content of report.json.
    """
    means = {one["name"]: one["generated"]["mean"] for one in document["metrics"]}
    truth = {one["name"]: (one["truth"] or {}).get("mean") for one in document["metrics"]}
    name = _tex(str(document["generated"]))
    lines = [
        f"% {document['videos']} videos; settings and numbers in report.json.",
        "% The paper's rows are of its own videos: they stand here for the scale, not for a comparison.",
        r"\begin{tabular}{l" + "r" * len(PAPER) + "}",
        " & ".join(["", *(_tex(metric.label) for metric in PAPER)]) + r" \\ \hline",
    ]
    for row, values in PAPER_ROWS.items():
        lines.append(" & ".join([_tex(row), *map(tex_cell, values)]) + r" \\")
    own = [means.get(metric.name) for metric in PAPER]
    lines += [" & ".join([name, *map(tex_cell, own)]) + r" \\", r"\end{tabular}", ""]
    lines += [
        r"\begin{tabular}{lrrr}",
        r" & " + name + r" & truth & unit \\ \hline",
        *(
            " & ".join(
                [
                    _tex(metric.label),
                    tex_cell(means.get(metric.name)),
                    tex_cell(truth.get(metric.name)),
                    _tex(metric.unit),
                ]
            )
            + r" \\"
            for metric in FREE
        ),
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def html(document: Mapping[str, Any], strips: Mapping[str, bytes]) -> str:
    """The page. It opens without a network.

    Args:
        document: content of report.json.
        strips: JPEG by key.
    """
    template = package_text("talkforge.training.evaluate", "report.html.j2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "interval": interval}
    by_name = {one["name"]: one for one in document["metrics"]}
    images = {
        key: "data:image/jpeg;base64," + base64.b64encode(strip).decode()
        for key, strip in list(strips.items())[:STRIPS_SHOWN]
    }
    return environment.from_string(template).render(
        d=document,
        metrics=METRICS,
        paper=[by_name[metric.name] for metric in PAPER],
        free=[by_name[metric.name] for metric in FREE],
        images=images,
        directions=DIRECTIONS,
    )


DIRECTIONS = {"high": "↑", "low": "↓", "zero": "→ 0", "truth": "→ truth"}
"""Which way is better, as tables show it."""


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A CSV file; None is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return stream.getvalue()


def tex_cell(value: float | None) -> str:
    """A value as a cell of a LaTeX table."""
    return "--" if value is None else number(value)


def _tex(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text).replace("‰", r"\textperthousand{}")
