"""Every column of the tables that people read is described, with the unit that its name promises."""

from __future__ import annotations

import pytest

from talkforge.schemas.columns import SUFFIXES, Column, columns, unit_of
from talkforge.schemas.records import (
    AuditRow,
    CaptionRow,
    Clip,
    Failure,
    Input,
    LedgerRow,
    PersonRow,
    Reason,
    Record,
    ReviewRow,
    SourceRow,
    TranscriptRow,
    Video,
)

TABLES = (LedgerRow, PersonRow, SourceRow, Failure, Reason, TranscriptRow, CaptionRow, Input, Video, Clip,
          ReviewRow, AuditRow)  # fmt: skip


@pytest.mark.parametrize("model", TABLES)
def test_every_column_is_described(model: type[Record]) -> None:
    found = columns(model)
    assert list(found) == list(model.model_fields)
    assert [name for name, column in found.items() if not column.description.endswith(".")] == []
    assert [name for name, column in found.items() if "None" in column.description] == []


def test_a_column_of_the_ledger_is_described_by_its_measurement() -> None:
    found = columns(LedgerRow)
    assert found["yaw_deg"] == Column("Median yaw of the head, positive to the viewer's right.", "degrees")
    assert found["consent"] == Column("Consent of the people shown, as the user says.", "")
    assert found["fps"] == Column("Frame rate of the clip as it is written.", "frames/s")
    assert found["shard"] == Column("Name of the shard that holds the clip; null until it is cut.", "")


def test_an_annotation_inherits_descriptions() -> None:
    assert (
        columns(CaptionRow)["text"] == columns(TranscriptRow)["text"] == Column("Transcript or caption.", "")
    )


def test_units_follow_from_names() -> None:
    names = (
        "start_s",
        "fps",
        "source_fps",
        "num_frames",
        "sync_net_offset_frames",
        "loudness_dbfs",
        "snr_db",
    )
    assert [unit_of(name) for name in names] == [
        "s", "frames/s", "frames/s", "frames", "frames at 25/s", "dBFS", "dB",
    ]  # fmt: skip
    assert [unit_of(name) for name in ("track", "class", "words", "uri")] == ["", "", "", ""]
    assert all(unit_of(f"x_{end}") == unit for end, unit in SUFFIXES.items())
