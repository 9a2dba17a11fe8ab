"""`talkforge evaluate` and `talkforge ablate`: what goes together, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from talkforge.training.evaluate import job
from tests.command_line import run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected --generated and --reference, --run and --set, or --self-test"),
        (("--generated", "a"), "expected --generated and --reference, --run and --set, or --self-test"),
        (("--run", "r"), "--run and --set go together"),
        (("--run", "r", "--set", "s", "--reference", "t"), "without --generated and --reference"),
        (("--self-test",), "--self-test: goes with --reference"),
        (("--self-test", "--reference", "a", "--generated", "b"), "--self-test: goes with --reference"),
        (("--generated", "nowhere", "--reference", "a"), "--generated nowhere: expected a folder of videos"),
        (("--generated", "a", "--reference", "b", "--max-s", "0"), "--max-s"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", "--out", "report", *options)
    assert (code, out) == (2, "") and message in err


def test_the_result_is_printed_and_nothing_is_left_out_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 3}
    none = {"mean": None, "low": None, "high": None, "count": 0}
    document: dict[str, Any] = {
        "metrics": [
            {"name": "jitter", "label": "Jitter", "better": "low", "generated": some, "truth": some,
             "difference": none, "why_not": ""},
            {"name": "sync_c", "label": "Sync-C", "better": "high", "generated": none, "truth": none,
             "difference": none, "why_not": "no weights"},
            {"name": "sync_d", "label": "Sync-D", "better": "low", "generated": none, "truth": none,
             "difference": none, "why_not": "no weights"},
        ],
        "rows": [], "failed": {"a": "broken"}, "unpaired": {"b.mp4": "alone"}, "against": None,
        "self_test": {
            "videos": ["x"],
            "checks": [
                {"version": "noise", "metric": "jitter", "expected": "more", "found": 7.0, "compared": 2.0,
                 "passed": True},
                {"version": "frozen", "metric": "jitter", "expected": "less", "found": None, "compared": 2.0,
                 "passed": None},
            ],
        },
    }  # fmt: skip
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: document)
    code, out, _ = run("evaluate", "--generated", tmp_path, "--reference", tmp_path, "--out", tmp_path / "r")
    lines = out.splitlines()
    assert code == 0 and lines[-1] == f"report: {tmp_path / 'r'}/index.html"
    assert "0.500 (0.400 to 0.600)" in lines[1]
    assert lines[2] == "not computed: Sync-C, Sync-D: no weights"
    assert lines[3:5] == ["failed: a: broken", "left out: b.mp4: alone"]
    assert lines[5] == "self-test on 1 true videos: 1 of 2 as expected"
    assert "as expected" in lines[7] and "not measured" in lines[8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("tiny", "--only", "nothing"), "--only nothing: expected one of full, clip_only"),
        (("unknown",), "unknown-stage1"),
        (("tiny", "--set", "data.batch_size=none"), "data.batch_size"),
        (("tiny", "--only", "no_identity"), "nothing is left to train: the configuration has no face branch"),
        (("tiny", "--executor", "inline", "--workers", "2"), "--executor inline is one process"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, err = run("ablate", *options, "--dataset", tmp_path, "--out", tmp_path / "ablation")
    assert (code, out) == (2, "") and message in err
    assert not (tmp_path / "ablation").exists()
