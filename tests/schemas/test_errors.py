"""What an error says."""

from __future__ import annotations

import re
from pathlib import Path

from talkforge.schemas.errors import one_line

ROOT = Path(__file__).parents[2]


def test_one_line() -> None:
    assert one_line(OSError(13, "Permission denied", "/x")) == "Permission denied"
    assert one_line(OSError(13, "Permission denied", "/x"), with_path=True) == (
        "[Errno 13] Permission denied: '/x'"
    )
    assert one_line(OSError("no number")) == one_line(OSError("no number"), with_path=True) == "no number"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError("two\n  lines"), 6) == "two li"
    assert one_line(ValueError()) == one_line(ValueError(" "), 5) == "ValueError"


def test_no_other_code_makes_a_line_of_an_error() -> None:
    rooms = ("schemas", "curation", "pipeline", "training")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    files += [*(ROOT / "talkforge").glob("*.py"), *(ROOT / "talkforge" / "cli").glob("*.py")]
    own = re.compile(r"\bstr\((error|exception|e)\)\.split\(|\.strerror\b")
    found = {str(path.relative_to(ROOT)) for path in files if own.search(path.read_text(encoding="utf-8"))}
    assert len(files) > 150
    assert found == {"pipeline/asr_worker.py"}  # it runs in an environment without this package
