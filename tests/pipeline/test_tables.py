"""Records survive Parquet, and the same records are the same bytes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talkforge.pipeline import tables
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import ClipMeasures, Face, Failure, LedgerRow, Reason, Record, Scene, Verdict

VERDICT = Verdict(
    clip_id="a",
    accepted=False,
    reasons=(Reason(code="too_short", field="duration_s", value=1.0, threshold=3.0),),
)


def test_nested_records_come_back_as_they_were() -> None:
    table = tables.from_bytes(tables.to_bytes(tables.to_table(Verdict, [VERDICT])), "x")
    assert tables.from_table(Verdict, table) == [VERDICT]


def test_an_empty_table_has_all_columns() -> None:
    table = tables.to_table(Failure, [])
    assert table.column_names == list(Failure.model_fields)
    assert tables.from_table(Failure, table) == []


def test_the_schema_follows_from_the_record() -> None:
    schema = tables.arrow_schema(Scene)
    assert schema.field("video_id").type == pa.string()
    assert schema.field("index").type == pa.int64()
    assert schema.field("start_s").type == pa.float64()
    assert schema.field("opened_by").type == pa.string()
    assert tables.arrow_schema(ClipMeasures).field("face").type == pa.struct(list(tables.arrow_schema(Face)))
    assert tables.arrow_schema(LedgerRow).field("reasons").type == pa.list_(pa.string())


def test_columns_carry_description_and_unit_through_the_file() -> None:
    data = tables.to_bytes(tables.to_table(LedgerRow, []))
    schema = tables.from_bytes(data, "ledger.parquet").schema
    assert schema.field("face_px").metadata == {
        b"description": b"Median height of the detected face box, in source pixels.",
        b"unit": b"px",
    }
    assert schema.field("accepted").metadata == {b"description": b"Whether the clip fulfils every threshold."}
    assert [field.name for field in schema if b"description" not in (field.metadata or {})] == []


def test_the_same_records_are_the_same_bytes() -> None:
    assert tables.to_bytes(tables.to_table(Verdict, [VERDICT])) == tables.to_bytes(
        tables.to_table(Verdict, [VERDICT])
    )


def test_a_table_that_is_read_and_written_again_has_its_bytes() -> None:
    data = tables.to_bytes(tables.to_table(Verdict, [VERDICT]))
    assert tables.to_bytes(tables.from_bytes(data, "clips.parquet")) == data


def test_other_bytes_are_refused_with_the_name() -> None:
    with pytest.raises(DatasetError, match=r"clips\.parquet: not a readable Parquet file"):
        tables.from_bytes(b"nonsense", "clips.parquet")


def test_a_changed_bit_is_found_wherever_it_is() -> None:
    data = tables.to_bytes(tables.to_table(Verdict, [VERDICT]))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(DatasetError, match=r"^v\.parquet: not "):
            tables.from_bytes(bytes(damaged), "v.parquet")
    for length in range(len(data)):
        with pytest.raises(DatasetError, match=r"^v\.parquet: not "):
            tables.from_bytes(data[:length], "v.parquet")


def test_tables_of_earlier_versions_have_no_checksum_and_are_read() -> None:
    sink = io.BytesIO()
    pq.write_table(tables.to_table(Verdict, [VERDICT]), sink, compression="zstd", write_page_checksum=True)
    assert tables.from_table(Verdict, tables.from_bytes(sink.getvalue(), "x")) == [VERDICT]


def test_a_value_that_looks_like_the_checksum_is_a_value() -> None:
    words = (tables._MARK + tables._ZEROS).decode()
    verdict = VERDICT.model_copy(update={"clip_id": words})
    table = tables.from_bytes(tables.to_bytes(tables.to_table(Verdict, [verdict])), "x")
    assert tables.from_table(Verdict, table) == [verdict]


def test_a_field_without_a_column_type_is_refused() -> None:
    with pytest.raises(TypeError, match="no Arrow type"):
        tables.arrow_type(object)


def test_arrows_threads_hold_nothing_of_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may let go of a file while Python shuts down, which then aborts."""
    data = tables.to_bytes(tables.to_table(Verdict, [VERDICT]))
    held: list[pa.Buffer] = []
    buffer_reader = pa.BufferReader

    def reader(source: pa.Buffer) -> pa.BufferReader:
        held.append(source)
        return buffer_reader(source)

    monkeypatch.setattr(tables.pa, "BufferReader", reader)
    references = sys.getrefcount(data)
    table = tables.from_bytes(data, "v.parquet")
    (buffer,) = held
    assert (
        isinstance(buffer, pa.Buffer) and buffer.to_pybytes() == data and sys.getrefcount(data) == references
    )
    assert tables.from_table(Verdict, table) == [VERDICT]


def test_rows_are_a_sequence_of_records(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    records = [VERDICT.model_copy(update={"clip_id": f"{n:04d}"}) for n in range(600)]
    tables.write(store, "rows.parquet", Verdict, iter(records))
    assert store.read("rows.parquet") == tables.to_bytes(tables.to_table(Verdict, records))
    rows = tables.rows(store, "rows.parquet", Verdict)
    assert rows == records and rows != records[1:] and len(rows) == 600
    assert (rows[0], rows[-1], rows[5:8], rows[598:]) == (
        records[0],
        records[-1],
        records[5:8],
        records[598:],
    )
    with pytest.raises(IndexError):
        rows[600]
    assert rows.where([n in (3, 599) for n in range(600)]) == [records[3], records[599]]
    assert rows.take([7, 2]) == [records[7], records[2]]
    assert rows[:2] + rows[9:10] == [*records[:2], records[9]]
    assert rows[:4].replaced([2, 0], [records[8], records[9]]) == [records[n] for n in (9, 1, 8, 3)]
    assert rows[:4].replaced([], []) == records[:4]
    assert tables.Rows.joined([rows[:1], rows[4:5]]) == [records[0], records[4]]
    assert tables.Rows.of(Verdict, rows) is rows and tables.Rows.of(Verdict, ()) == []
    assert rows.column("clip_id").to_pylist() == [record.clip_id for record in records]


def test_rows_of_an_earlier_version_have_the_columns_of_today(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    failure = Failure(stage="probe", key="k", video_id="", uri="a.mp4", error="E", message="m")
    table = tables.to_table(Failure, [failure] * 300)
    store.write("failures.parquet", tables.to_bytes(table.drop_columns(["kind", "attempts"])))
    rows = tables.rows(store, "failures.parquet", Failure)
    assert rows == [failure] * 300
    assert rows.table.schema.equals(tables.arrow_schema(Failure), check_metadata=True)
    with pytest.raises(DatasetError, match=r"^failures\.parquet: expected Verdict rows, found "):
        tables.rows(store, "failures.parquet", Verdict)


def test_a_lookup_gives_the_last_row_of_each_clip_that_is_asked_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    other = VERDICT.model_copy(update={"clip_id": "b", "accepted": True, "reasons": ()})
    again = VERDICT.model_copy(update={"reasons": ()})
    tables.write(store, "one.parquet", Verdict, [VERDICT, other])
    tables.write(store, "two.parquet", Verdict, [again])
    assert tables.Lookup(store, ["one.parquet"], Verdict).of(["b", "none", "a"]) == {"a": VERDICT, "b": other}
    both = tables.Lookup(store, ["one.parquet", "two.parquet"], Verdict)
    assert both.of(["a", "b"]) == {"a": again, "b": other}
    assert tables.Lookup(store, [], Verdict).of(["a"]) == {}


def test_a_lookup_names_the_file_that_holds_something_else(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tables.write(store, "scenes.parquet", Scene, [])
    with pytest.raises(DatasetError, match=r"^scenes\.parquet: expected a column 'clip_id', found none$"):
        tables.Lookup(store, ["scenes.parquet"], Verdict)
    tables.write(store, "ledger.parquet", LookedUp, [LookedUp(clip_id="a")])
    found = tables.Lookup(store, ["ledger.parquet"], Verdict)
    with pytest.raises(DatasetError, match=r"^ledger\.parquet: expected Verdict rows, found "):
        found.of(["a"])


class LookedUp(Record):
    """A row without what a verdict has."""

    clip_id: str
