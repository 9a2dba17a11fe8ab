"""What the benchmark of sync prints follows from what both networks said."""

from __future__ import annotations

import pytest

from benchmarks.sync import Said, agreement


def test_two_networks_agree_where_both_say_yes_or_both_say_no(capsys: pytest.CaptureFixture[str]) -> None:
    own = [Said(0.9, 2.0, 1.0), Said(0.8, 1.0, 0.6), Said(0.1, 3.0, 0.9)]
    other = [Said(0.3, 1.5, 0.9), Said(0.05, -1.0, 0.5)]
    agreement({"own voice": own, "other voice": other})
    lines = capsys.readouterr().out.splitlines()
    assert "| own voice | 3 | 67% | 100% | 67% |  |  |" in lines
    # 0.9 and 0.8 are above both, 0.1 above one; of the logits 2 and 3 are above both, 1 above one.
    assert "| other voice | 2 | 50% | 50% | 100% | 0.833 | 0.833 |" in lines
    # Ranks 3, 2, 1 beside 2, 1, 3; with the others 5, 4, 2, 3, 1 beside 4, 2, 5, 3, 1.
    assert "rank correlation over own voice: -0.50" in lines
    assert "rank correlation over own voice, other voice: +0.30" in lines
