"""The tables of columns in docs/dataset.md say what the records say."""

from __future__ import annotations

import pytest

from docs.make_columns import PAGE, page


def test_the_tables_are_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python -m docs.make_columns"


def test_a_page_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the markers of ledger once, found 0 pairs"):
        page("# A data set on disk")
