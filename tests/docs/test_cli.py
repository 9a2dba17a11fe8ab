"""docs/cli.md says what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from docs import make_cli


def test_the_page_is_as_it_would_be_written_now() -> None:
    page = Path(make_cli.__file__).with_name("cli.md").read_text(encoding="utf-8")
    assert page == make_cli.page()
