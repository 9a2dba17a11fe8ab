"""Questions to the tables: right answers, and no way out of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="the extra sql is not installed")

from talkforge.pipeline.sql import ask
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from tests.command_line import run
from tests.pipeline.exports.published_set import publish
from tests.training.shard_files import Shown


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("asked") / "set"
    publish(folder)
    return publish(folder, {"train": [[Shown(0)]]}, rejected=[Shown(7), Shown(8)])


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("select count(*) from ledger", [(3,)]),
        ("select clip_id from clips", [("clip00",)]),
        ("select code, count(*) from reasons group by code", [("too_short", 2)]),
        ("select detail from reasons limit 1", [("too_short (duration_s 1.2, threshold 3)",)]),
        ("select p.person_id from people p join clips c using (person_id)", [("p000000000000",)]),
        ("select licence, status from sources", [("CC0", "measured")]),
        ("select count(*) from failures", [(0,)]),
        ("select sync_probability from clips", [(None,)]),
        ("with a as (select 1 as x) select x + 1 from a", [(2,)]),
    ],
)
def test_the_tables_answer(store: Store, query: str, rows: list[tuple[object, ...]]) -> None:
    assert ask(store, query).rows == rows


def test_a_snapshot_answers_by_its_number(store: Store) -> None:
    assert ask(store, "select count(*) from clips", 1).rows == [(4,)]
    assert ask(store, "select count(*) from clips").rows == [(1,)]
    with pytest.raises(CommandError, match=r"no snapshot 9; there are: 1, 2$"):
        ask(store, "select 1", 9)


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_parquet('{set}/ledger.parquet')",
        "select * from read_text('/etc/hostname')",
        "select * from '{set}/ledger.parquet'",
        "copy ledger to '{set}/stolen.csv'",
        "export database '{set}/stolen'",
        "attach '{set}/stolen.db' as stolen",
        "install httpfs",
        "load httpfs",
        "set enable_external_access=true",
        "set temp_directory='{set}'",
        "select * from store",  # a variable of Python
        "select * from found",
    ],
)
def test_a_query_reaches_nothing_but_the_tables(store: Store, query: str) -> None:
    before = set(Path(store.root).rglob("*"))
    with pytest.raises(CommandError) as raised:
        ask(store, query.format(set=store.root))
    assert "\n" not in str(raised.value)
    assert set(Path(store.root).rglob("*")) == before


def test_what_a_query_changes_is_gone(store: Store) -> None:
    ask(store, "delete from ledger")
    assert ask(store, "select count(*) from ledger").rows == [(3,)]


def test_a_mistake_is_one_line(store: Store) -> None:
    with pytest.raises(CommandError, match=r"ledgers does not exist.*; there are clips, failures, ledger, "):
        ask(store, "select * from ledgers")
    with pytest.raises(CommandError, match="syntax error"):
        ask(store, "selekt")


def test_the_command_prints_what_was_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    query = "select clip_id, reasons, sync_c, duration_s from ledger order by clip_id limit 2"
    code, output, _ = run("sql", store.root, query, "--json")
    assert (code, json.loads(output)["rows"]) == (0, [
        {"clip_id": "clip00", "reasons": [], "sync_c": None, "duration_s": 1.2},
        {"clip_id": "clip07", "reasons": ["too_short"], "sync_c": None, "duration_s": 1.2},
    ])  # fmt: skip
    code, output, _ = run("sql", store.root, "select clip_id, sync_c from clips", "--csv")
    assert (code, output) == (0, "clip_id,sync_c\nclip00,\n")
    code, output, _ = run("sql", store.root, "select '[red]' as x, 1.5::decimal(3,1) as y")
    assert (code, output.split()) == (0, ["x", "y", "[red]", "1.5"])
    monkeypatch.setattr("sys.stdin", io.StringIO("select 'a;b'"))
    assert run("sql", store.root, "-", "--csv")[1].splitlines()[1] == "a;b"
    code, _, error = run("sql", store.root, "select 1", "--csv", "--json")
    assert (code, error.strip()) == (2, "talkforge: --csv: goes without --json")
