"""What an error says."""

from __future__ import annotations

from talkforge.schemas.errors import one_line


def test_one_line() -> None:
    assert one_line(OSError(13, "Permission denied", "/x")) == "Permission denied"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError("two\n  lines"), 6) == "two li"
    assert one_line(ValueError()) == one_line(ValueError(" "), 5) == "ValueError"
