"""The generated pages say what the code says."""

from __future__ import annotations

from pathlib import Path

from docs.make_configuration import page, rejections_page, training_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_up_to_date() -> None:
    pages = {
        "configuration.md": page(),
        "training-configuration.md": training_page(),
        "rejections.md": rejections_page(),
    }
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run: python -m docs.make_configuration"
