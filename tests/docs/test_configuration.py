"""The pages of the configurations say what the configurations are."""

from __future__ import annotations

from pathlib import Path

from docs.make_configuration import page, training_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_up_to_date() -> None:
    for name, text in (("configuration.md", page()), ("training-configuration.md", training_page())):
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run: python -m docs.make_configuration"
