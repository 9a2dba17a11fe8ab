"""`talkforge sql`: questions to the tables of a data set, answered by DuckDB.

The tables are read into memory, and DuckDB is closed to files, networks and extensions before it sees the
query. Nothing that a query does can reach the data set or anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from talkforge.pipeline import snapshots, tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.store import Store
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError, DatasetError, one_line

if TYPE_CHECKING:
    import duckdb

PUBLISHED = ("ledger", "people", "sources", "failures")
"""Tables that a snapshot holds as well."""

BESIDE = ("transcripts", "captions", "review")
"""Tables that are there where somebody made them, in their state of now."""

VIEWS = {
    "reasons": """
        SELECT clip_id, unnest(reasons) AS code, unnest(reason_details) AS detail
        FROM ledger
    """,
    "clips": "SELECT * FROM ledger WHERE accepted",
}
"""Views: a row for each reason of each rejected clip, and the accepted clips."""


CLOSED = (
    "temp_directory=''",
    "python_enable_replacements=false",
    "enable_external_access=false",
    "lock_configuration=true",
)
"""Settings that leave a query nothing but the tables: no files, no variables of Python, no extensions."""


@dataclass(frozen=True)
class Answer:
    """Result of a query.

    Attributes:
        columns: their names.
        rows: values of each row in order.
        types: of each column, in DuckDB's words.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    types: tuple[str, ...]


def ask(store: Store, query: str, which: int | str | None = None) -> Answer:
    """The answer of one query.

    Args:
        store: the data set.
        query: one statement of SQL, over `ledger`, `clips`, `reasons`, `people`, `sources`, `failures`, and
            `transcripts`, `captions` and `review` where there are such tables.
        which: number or tag of a snapshot, whose tables are used. None means those of the last selection.

    Raises:
        MissingExtraError: DuckDB is not installed.
        CommandError: the query is wrong, or wants more than it may; in DuckDB's words.
        DatasetError: a table is damaged.
    """
    extras.require("sql", "talkforge sql")
    import duckdb

    found = dict(_tables(store, which))
    with duckdb.connect(":memory:") as connection:
        for name, table in found.items():
            connection.register(f"_{name}", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM _{name}")
            connection.unregister(f"_{name}")
        if "ledger" in found:
            for name, text in VIEWS.items():
                connection.execute(f"CREATE VIEW {name} AS {text}")
        for setting in CLOSED:
            connection.execute(f"SET {setting}")
        return _answer(connection, query, sorted({*found, *(VIEWS if "ledger" in found else ())}))


def _answer(connection: duckdb.DuckDBPyConnection, query: str, names: list[str]) -> Answer:
    import duckdb

    try:
        result = connection.execute(query)
        described = result.description or []
        return Answer(
            tuple(column[0] for column in described),
            result.fetchall() if described else [],
            tuple(str(column[1]) for column in described),
        )
    except duckdb.Error as error:
        hint = f"; there are {', '.join(names)}" if isinstance(error, duckdb.CatalogException) else ""
        raise CommandError(f"{one_line(error)}{hint}") from None


def _tables(store: Store, which: int | str | None) -> Iterator[tuple[str, pa.Table]]:
    load_dataset(store)
    snapshot = snapshots.find(store, which) if which is not None else None
    for name in PUBLISHED:
        file = f"{name}.parquet"
        place = snapshot.table(file) if snapshot else snapshots.current_table(store, file)
        if store.exists(place):
            yield name, tables.from_bytes(store.read(place), place)
        elif name == "ledger":
            raise DatasetError(f"{store.root}: expected {place}, found no such file; talkforge select first")
    for name in BESIDE:
        if store.exists(f"{name}.parquet"):
            yield name, tables.from_bytes(store.read(f"{name}.parquet"), f"{name}.parquet")
