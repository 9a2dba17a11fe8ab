"""The report: one HTML page that opens without a network, and its numbers as JSON.

statistics.py   the numbers, from the tables
people.py       who gives how much, who may be one, and who may be two
quantities.py   each measured quantity: distribution, threshold, what if
what_if.py      a second page: all thresholds at once, live
charts.py       histograms as inline SVG
page.html.j2    the page
"""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from talkforge.curation.verdict import REJECTIONS
from talkforge.pipeline.report.charts import histogram_svg
from talkforge.pipeline.report.statistics import (
    broken_rules,
    clips_table,
    first_broken,
    sources_table,
    statistics,
)
from talkforge.pipeline.report.what_if import Repeats, what_if_page
from talkforge.pipeline.store import Store
from talkforge.schemas.dataset import Dataset

__all__ = ["render", "statistics", "write_report"]

ACCEPTED_SHOWN, REJECTED_SHOWN = 48, 12
"""Most thumbnails of accepted clips, and of rejected clips for each reason."""

SHEET_BYTES = 6_000_000
"""Pictures are left out beyond this, so that the page stays below 10 MB whatever their size."""

FACES_BYTES = 1_500_000
"""The same for the thumbnails of people."""

TROUBLE = ("failed", "duplicate", "no_candidates", "pending", "measured")
"""Order of the inputs in their table, by status."""

ROWS_SHOWN = 200
"""Most rows of the tables of sources and of failures; the rest is in the data set's own tables."""

STEPS = {
    "input": "Given",
    "readable": "Readable",
    "unique": "Not a copy of another input",
    "looked_at": "Measured so far",
    "with_candidates": "With candidate clips",
    "candidates": "Candidate clips",
    "measured": "Measured without an error",
    **{rejection.code: rejection.passed for rejection in REJECTIONS},
    "accepted": "Accepted",
}
"""What is left after each step of the funnel, in words; a step that is a rule has the rule's code."""

REASONS = {rejection.code: rejection.meaning for rejection in REJECTIONS}

PLAIN_UNITS = ("fraction", "0..1", "faces", "see ")
"""Units that begin like this say nothing beside a number."""

Thumbnails = Callable[[str], bytes | None]


def write_report(
    store: Store,
    ledger: pd.DataFrame,
    sources: pd.DataFrame,
    failures: pd.DataFrame,
    dataset: Dataset,
    thumbnails: Thumbnails,
    people: pd.DataFrame | None = None,
    audit: Mapping[str, Any] | None = None,
    repeats: Repeats | None = None,
) -> dict[str, Any]:
    """Write `report/statistics.json`, `report/index.html` and `report/what_if.html`; returns the statistics.

    Args:
        store: the data set.
        ledger: one row per candidate clip.
        sources: one row per input.
        failures: one row per error.
        dataset: description of the data set.
        thumbnails: clip id, or `<clip id>/face` -> JPEG bytes; None or nothing where there is no image.
        people: one row per person; None where the data set has no such table yet.
        audit: what labels say of the rules, see `pipeline.audit`; None where no sample was labelled.
        repeats: near duplicates among the clips that thresholds decide on; None: there is no what-if page.

    Raises:
        DatasetError: the tables do not add up; nothing is written then.
    """
    numbers = statistics(ledger, sources, failures, dataset, people, audit)
    page = render(numbers, ledger, sources, failures, thumbnails, has_what_if=repeats is not None)
    text = json.dumps(numbers, indent=2, sort_keys=True, allow_nan=False)
    store.write("report/statistics.json", (text + "\n").encode())
    if repeats is None:
        store.delete("report/what_if.html")
    else:
        what_if = what_if_page(clips_table(ledger), dataset.config, repeats)
        store.write("report/what_if.html", what_if.encode())
    store.write("report/index.html", page.encode())
    return numbers


def render(
    numbers: Mapping[str, Any],
    ledger: pd.DataFrame,
    sources: pd.DataFrame,
    failures: pd.DataFrame,
    thumbnails: Thumbnails,
    has_what_if: bool = False,
) -> str:
    """The report as one self-contained HTML page; the same arguments give the same text.

    Args:
        numbers: answer of `statistics` for the same tables.
        ledger: one row per candidate clip.
        sources: one row per input.
        failures: one row per error.
        thumbnails: clip id, or `<clip id>/face` -> JPEG bytes; None or nothing where there is no image.
        has_what_if: whether `what_if.html` lies beside it.
    """
    template = importlib.resources.files("talkforge.pipeline.report").joinpath("page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "span": span,
        "visible": visible,
        "num": number,
        "count": count,
        "unit": unit,
        "rate": rate,
    }
    page = environment.from_string(template.read_text(encoding="utf-8"))
    clips, inputs = clips_table(ledger), sources_table(sources)
    return page.render(
        s=numbers,
        steps=STEPS,
        reasons=REASONS,
        charts={entry["field"]: Markup(histogram_svg(entry)) for entry in numbers["measures"]},
        what_if=_by_field(numbers["what_if"]),
        faces=_faces(numbers["people"], thumbnails),
        sheets=_sheets(clips, thumbnails),
        sources=_source_rows(inputs, clips),
        failures=_failure_rows(failures),
        rows_shown=ROWS_SHOWN,
        num_failures=len(failures),
        has_what_if=has_what_if,
    )


def span(hours: float | None) -> str:
    """A length of time as people say it."""
    if hours is None or pd.isna(hours):
        return "unknown"
    if hours * 3600 < 99.95:
        return f"{hours * 3600:.1f} s"
    if hours * 60 < 99.95:
        return f"{hours * 60:.1f} min"
    return f"{hours:,.1f} h" if hours < 999.5 else f"{hours:,.0f} h"


def number(value: float | None) -> str:
    """A measured value with four digits that mean something."""
    return "–" if value is None or pd.isna(value) else f"{value:.4g}"


def rate(found: Mapping[str, Any]) -> str:
    """A fraction with its confidence interval, in percent."""
    value = "–" if found["value"] is None else f"{100 * found['value']:.0f} %"
    return f"{value} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"


def count(value: int) -> str:
    """A count with thousands apart."""
    return f"{value:,}"


def unit(name: str) -> str:
    """A unit worth printing after a number, else nothing."""
    return "" if name.startswith(PLAIN_UNITS) else name


def visible(text: object) -> str:
    """Text with every character that would not show (line breaks, direction marks, bad bytes) spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _by_field(what_if: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    table: dict[str, list[dict[str, Any]]] = {}
    for entry in what_if:
        table.setdefault(entry["field"], []).append(entry)
    return table


def _sheets(clips: pd.DataFrame, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Accepted clips, then the rejected ones by the first rule they break: a fixed, spread choice."""
    first = first_broken(broken_rules(clips))
    groups = [("", clips["accepted"], ACCEPTED_SHOWN)]
    codes = broken_rules(clips).columns
    groups += [(code, first.eq(code) & clips["failure"].isna(), REJECTED_SHOWN) for code in codes]
    sheets, room = [], SHEET_BYTES
    for code, belongs, most in groups:
        cards = []
        for row in _spread(clips[belongs], most).itertuples():
            jpeg = thumbnails(str(row.clip_id))
            if jpeg and len(jpeg) * 4 // 3 > room:
                jpeg = None
            room -= len(jpeg or b"") * 4 // 3
            cards.append(_card(row, jpeg))
        if cards:
            sheets.append({"code": code, "total": int(belongs.sum()), "cards": cards})
    return sheets


def _faces(people: Mapping[str, Any] | None, thumbnails: Thumbnails) -> dict[str, str]:
    """Clip id -> thumbnail of its face, as far as they fit, of all whom the page shows."""
    if people is None:
        return {}
    shown = [person["face_clip_id"] for pair in people["near"] for person in pair["people"]]
    shown += [person[key] for person in people["mixed"] for key in ("face_clip_id", "odd_clip_id")]
    shown += [person["face_clip_id"] for person in people["largest"]]
    found: dict[str, str] = {}
    room = FACES_BYTES
    for clip_id in sorted(set(shown), key=shown.index):
        jpeg = thumbnails(f"{clip_id}/face") or thumbnails(clip_id)
        if jpeg and (room := room - len(jpeg) * 4 // 3) >= 0:
            found[clip_id] = _data_uri(jpeg)
    return found


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _spread(clips: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` rows, from as many videos as there are, chosen by a hash of the clip's name."""
    order = clips.assign(lot=pd.util.hash_array(clips["clip_id"].to_numpy(object))).sort_values("lot")
    order = order.assign(turn=order.groupby("video_id").cumcount())
    return order.sort_values(["turn", "lot"]).head(most)


def _card(row: Any, jpeg: bytes | None) -> dict[str, Any]:
    return {
        "clip_id": row.clip_id,
        "name": str(row.uri).rsplit("/", 1)[-1],
        "uri": row.uri,
        "start_s": row.start_s,
        "end_s": row.end_s,
        "track": row.track,
        "face_px": row.face_clip_px,
        "speech_fraction": row.speech_fraction,
        "sync_offset_frames": row.sync_offset_frames,
        "details": row.reason_details or row.reasons,
        "stopped_by": row.stopped_by,
        "image": _data_uri(jpeg) if jpeg else None,
    }


def _source_rows(inputs: pd.DataFrame, clips: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Inputs with trouble first, then those that gave most."""
    kept = clips[clips["accepted"]].groupby("video_id")["hours"].sum()
    found = clips.groupby("video_id").size()
    own = inputs["status"].isin(["measured", "failed"])  # a copy's clips are those of the first
    table = inputs.assign(
        kept=inputs["video_id"].map(kept).where(own).fillna(0.0),
        found=inputs["video_id"].map(found).where(own).fillna(0).astype(int),
        trouble=inputs["status"].map({status: rank for rank, status in enumerate(TROUBLE)}),
    )
    table = table.sort_values(["trouble", "kept", "uri"], ascending=[True, False, True]).head(ROWS_SHOWN)
    return _records(table)


def _failure_rows(failures: pd.DataFrame) -> list[dict[Hashable, Any]]:
    columns = ["stage", "error", "key", "video_id", "uri", "message"]
    return _records(failures.reindex(columns=columns).sort_values(columns).head(ROWS_SHOWN))


def _records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    rows: list[dict[Hashable, Any]] = table.to_dict("records")
    return rows
