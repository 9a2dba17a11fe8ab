"""The page of the configuration says what the configuration is."""

from __future__ import annotations

from pathlib import Path

from docs.make_configuration import page


def test_the_page_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert path.read_text(encoding="utf-8") == page(), "run: python docs/make_configuration.py"
