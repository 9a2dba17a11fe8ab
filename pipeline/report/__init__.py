"""The report: one HTML page that opens without a network, and its numbers as JSON.

statistics.py   the numbers, from the tables
people.py       who gives how much, who may be one, and who may be two
quantities.py   each measured quantity: distribution, threshold, what if
charts.py       histograms as inline SVG
page.html.j2    index.html, which runs no script
clips.py        clips.html: a table of clips with filters, charts by uplot/
against.py      against.html: beside another data set
what_if.py      what_if.html: all thresholds at once, live
pages.py        what the pages share, with style.css and common.js
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from talkforge.curation.verdict import REJECTIONS
from talkforge.pipeline.report.charts import histogram_svg
from talkforge.pipeline.report.clips import Shown, clips_page
from talkforge.pipeline.report.pages import environment, span, visible
from talkforge.pipeline.report.statistics import (
    broken_rules,
    clips_table,
    first_broken,
    numbers_of,
    sources_table,
    statistics,
)
from talkforge.pipeline.report.what_if import Repeats, what_if_page
from talkforge.pipeline.store import Store
from talkforge.schemas.dataset import Dataset

__all__ = ["Title", "render", "span", "statistics", "visible", "write_report"]

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

Thumbnails = Callable[[str], bytes | None]
ReadCurves = Callable[[Mapping[str, float]], Mapping[str, dict[str, Any]]]


@dataclass(frozen=True)
class Title:
    """What a report is of.

    Attributes:
        name: of the data set.
        snapshot: its number and date; empty where there is none.
    """

    name: str = "a data set"
    snapshot: str = ""


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
    curves: ReadCurves = lambda _: {},
    title: Title = Title(),
) -> dict[str, Any]:
    """Write `report/statistics.json` and the pages beside it; returns the statistics.

    Args:
        store: the data set.
        ledger: one row per candidate clip.
        sources: one row per input.
        failures: one row per error.
        dataset: description of the data set.
        thumbnails: clip id, or `<clip id>/face` -> JPEG bytes; None or nothing where there is no image.
        people: one row per person; None where the data set has no such table yet.
        audit: what labels say of the rules, see `pipeline.audit`; None where no sample was labelled.
        repeats: near duplicates among the clips that thresholds decide on; None: there are too many clips.
        curves: clips by id, with their frame rates -> answer of `clip_curves.read_curves`.
        title: what the report is of.

    Raises:
        DatasetError: the tables do not add up; nothing is written then.
    """
    clips, inputs = clips_table(ledger), sources_table(sources)
    numbers = numbers_of(clips, inputs, failures, dataset, people, audit)
    sheets = _sheets(clips, thumbnails)
    index = _render(numbers, clips, inputs, failures, sheets, thumbnails, title, True)
    cards = [card for sheet in sheets for card in sheet["cards"]]
    shown = Shown(
        pictures={card["clip_id"]: card["jpeg"] for card in cards if card["jpeg"]},
        curves=curves({card["clip_id"]: card["fps"] for card in cards}),
    )
    text = json.dumps(numbers, indent=2, sort_keys=True, allow_nan=False)
    store.write("report/statistics.json", (text + "\n").encode())
    store.write("report/what_if.html", what_if_page(clips, dataset.config, repeats).encode())
    store.delete("report/against.html")  # it was of an earlier state
    store.write("report/clips.html", clips_page(clips, numbers, shown, title.name).encode())
    store.write("report/index.html", index.encode())
    return numbers


def render(
    numbers: Mapping[str, Any],
    ledger: pd.DataFrame,
    sources: pd.DataFrame,
    failures: pd.DataFrame,
    thumbnails: Thumbnails,
) -> str:
    """The page without scripts, self-contained; the same arguments give the same text.

    Args:
        numbers: answer of `statistics` for the same tables.
        ledger: one row per candidate clip.
        sources: one row per input.
        failures: one row per error.
        thumbnails: clip id, or `<clip id>/face` -> JPEG bytes; None or nothing where there is no image.
    """
    clips, inputs = clips_table(ledger), sources_table(sources)
    sheets = _sheets(clips, thumbnails)
    return _render(numbers, clips, inputs, failures, sheets, thumbnails, Title(), False)


def _render(
    numbers: Mapping[str, Any],
    clips: pd.DataFrame,
    inputs: pd.DataFrame,
    failures: pd.DataFrame,
    sheets: list[dict[str, Any]],
    thumbnails: Thumbnails,
    title: Title,
    has_pages: bool,
) -> str:
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            s=numbers,
            title=title,
            has_pages=has_pages,
            steps=STEPS,
            reasons=REASONS,
            charts={entry["field"]: Markup(histogram_svg(entry)) for entry in numbers["measures"]},
            what_if=_by_field(numbers["what_if"]),
            faces=_faces(numbers["people"], thumbnails),
            sheets=sheets,
            sources=_source_rows(inputs, clips),
            failures=_failure_rows(failures),
            rows_shown=ROWS_SHOWN,
            num_failures=len(failures),
        )
    )


def _by_field(what_if: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    table: dict[str, list[dict[str, Any]]] = {}
    for entry in what_if:
        table.setdefault(entry["field"], []).append(entry)
    return table


def _sheets(clips: pd.DataFrame, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Accepted clips, then the rejected ones by the first rule they break: a fixed, spread choice."""
    broken = broken_rules(clips)
    first = first_broken(broken)
    groups = [("", clips["accepted"], ACCEPTED_SHOWN)]
    fine = clips["failure"].isna()
    groups += [(code, fine & (first == number), REJECTED_SHOWN) for number, code in enumerate(broken.columns)]
    lots = pd.Series(pd.util.hash_array(clips["clip_id"].to_numpy(object), categorize=False), clips.index)
    sheets, room = [], SHEET_BYTES
    for code, belongs, most in groups:
        if not belongs.any():
            continue
        cards = []
        for row in clips.loc[_spread(clips.loc[belongs, "video_id"], lots, most)].itertuples():
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


def _spread(videos: pd.Series, lots: pd.Series, most: int) -> pd.Index:
    """Indices of at most `most` rows, from as many videos as there are.

    Args:
        videos: video of each row.
        lots: number of every row, which decides within a video; a hash of the clip's name.
        most: number of rows.
    """
    order = pd.DataFrame({"video_id": videos, "lot": lots[videos.index]}).sort_values("lot")
    order["turn"] = order.groupby("video_id").cumcount()
    return order.sort_values(["turn", "lot"]).head(most).index


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
        "details": list(row.reason_details) or row.reasons,
        "stopped_by": row.stopped_by,
        "fps": row.fps,
        "jpeg": jpeg,
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
