"""Options on output that commands share, documents for programs, and `config show` and `config check`."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from talkforge.curation.weights import registry
from talkforge.schemas.config import load_config
from tests.command_line import run
from tests.conftest import ROOT, SETTINGS

# ---------------------------------------------------------- --log-file, --verbose, --quiet


def test_a_log_file_holds_the_command_and_is_appended_to(curated: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    for number in (1, 2):
        code, out, err = run("report", curated.dataset, "--log-file", file)
        assert (code, out, err) == (0, f"{curated.dataset}/report/index.html\n", "")
        lines = [line for line in file.read_text().splitlines() if " talkforge report " in line]
        assert len(lines) == number
        assert lines[-1].endswith(
            f" INFO talkforge.cli.app: talkforge report {curated.dataset} --log-file {file}"
        )
    assert not logging.getLogger("talkforge").handlers  # a command leaves none behind


def test_a_log_file_holds_why_a_command_failed(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    code, _, err = run("status", tmp_path / "none", "--log-file", file)
    assert (code, err.count("\n")) == (2, 1)
    text = file.read_text()
    assert "DEBUG talkforge.cli.app: refused" in text
    assert "Traceback" in text and "no data set here (dataset.json is missing)" in text
    assert "Traceback" not in err


def test_a_log_file_that_cannot_be_written_is_refused(curated: Any, tmp_path: Path) -> None:
    file = tmp_path / "none" / "run.log"
    assert run("status", curated.dataset, "--log-file", file) == (
        2,
        "",
        f"talkforge: --log-file {file}: cannot be written (No such file or directory)\n",
    )


def test_verbose_logs_steps_to_stderr(curated: Any) -> None:
    command = ("select", curated.dataset, "--config", "offline", "--dry-run", "--quiet")
    code, quiet_out, err = run(*command)
    assert (code, err) == (0, "")
    code, out, err = run(*command, "--verbose")
    assert (code, out) == (0, quiet_out)
    assert [line for line in err.splitlines() if line.startswith("INFO configuration: preset offline (")]
    assert run(*command)[2] == ""  # not the next command's, too


def test_quiet_leaves_out_progress_and_keeps_results_and_errors(curated: Any) -> None:
    command = ("shard", curated.dataset, "--executor", "inline")
    code, out, err = run(*command)
    assert code == 0
    assert "selecting" in err
    code, quiet_out, quiet_err = run(*command, "-q")
    assert (code, quiet_out, quiet_err) == (0, out, "")
    assert "2 accepted (8.0 s)" in quiet_out
    code, _, err = run("status", curated.videos, "-q")
    assert (code, err) == (
        2,
        f"talkforge: {curated.videos}: no data set here (dataset.json is missing)\n",
    )


# ------------------------------------------------------------------------------- documents


def test_verify_as_json(curated: Any) -> None:
    code, out, err = run("verify", curated.dataset, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"dataset": str(curated.dataset), "ok": True, "problems": [], "removed": []}
    (curated.dataset / "shards" / "train-000001.tar").unlink()
    code, out, err = run("verify", curated.dataset, "--json")
    found = json.loads(out)
    assert (code, err, found["ok"], found["removed"]) == (3, "", False, [])
    assert "shards/train-000001.tar" in {problem["path"] for problem in found["problems"]}
    assert all(set(problem) == {"path", "what"} and problem["what"] for problem in found["problems"])


def keys_of_the_page(command: str) -> set[str]:
    """What docs/cli.md names of the document of a command, the totals among it."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## JSON")[2]
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{command}` |")]
    totals = (
        page.partition("The totals are the same")[2].partition("`exact`")[0] if "the totals" in row else ""
    )
    return set(re.findall(r"`(\w+)`", row.partition("` |")[2] + totals))


@pytest.mark.parametrize(
    "command",
    (
        "curate",
        "curate --dry-run",
        "status",
        "select",
        "verify",
        "erase",
        "sql",
        "diff",
        "snapshots",
        "export",
    ),
)
def test_the_page_names_every_key_of_a_document(curated: Any, command: str) -> None:
    name, dataset = command.partition(" ")[0], curated.dataset
    settings = [f"--set={value}" for value in SETTINGS]
    arguments = {
        "curate": (curated.videos, "--out", dataset, "--executor", "inline", *settings),
        "select": (dataset, "--dry-run"),
        "erase": (dataset, "--source", next(curated.videos.iterdir()), "--dry-run"),
        "sql": (dataset, "select 1 as a"),
        "diff": (dataset, "-s", "thresholds.min_face_px=5000"),
        "export": (dataset, "--as", "energon"),
    }.get(name, (dataset,))
    code, out, _ = run(name, *arguments, *command.split()[1:], "--json")
    found = json.loads(out)
    assert code == 0 and found
    assert found.keys() - keys_of_the_page(command) == set()


def test_models_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    scrfd = registry.MODELS["scrfd"]
    (tmp_path / scrfd.file).write_bytes(b"<html>")
    code, out, err = run("models", "scrfd", "w600k_r50", "--json")
    assert (code, err) == (0, "")
    first, second = json.loads(out)["models"]
    assert (first["name"], first["present"], first["licence"]) == ("scrfd", False, scrfd.licence)
    assert first["found"].startswith(f"scrfd: {tmp_path / scrfd.file}: expected sha256 {scrfd.sha256}")
    assert (second["name"], second["present"], second["found"]) == ("w600k_r50", False, "")
    assert set(second) == {
        "name", "needed_by", "file", "num_bytes", "source", "licence", "commercial_use", "present", "found",
        "note",
    }  # fmt: skip
    assert [row["name"] for row in json.loads(run("models", "--json")[1])["models"]] == list(registry.MODELS)


# ------------------------------------------------------------------------- config show, check


def test_a_preset_that_is_shown_is_a_file_to_begin_with(tmp_path: Path) -> None:
    code, out, err = run("config", "show", "offline")
    assert (code, err) == (0, "")
    file = tmp_path / "mine.yaml"
    file.write_text(out)
    assert load_config(str(file)) == load_config("offline")
    assert run("config", "check", file) == (0, f"{file}: a valid configuration for curate\n", "")


@pytest.mark.parametrize(
    ("name", "purpose"), [("offline", "curate"), ("curate", "curate"), ("tiny-stage1", "train")]
)
def test_presets_are_valid(name: str, purpose: str) -> None:
    assert run("config", "check", name)[:2] == (0, f"{name}: a valid configuration for {purpose}\n")


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("thresholds:\n  min_face_pix: 3\n  max_yaw_p95_deg: long\n")
    code, out, err = run("config", "check", file)
    assert (code, out) == (2, "")
    assert "min_face_pix" in err and "did you mean min_face_px" in err
    assert "max_yaw_p95_deg" in err
    code, out, err = run("config", "check", "offline", "-s", "thresholds.colour=1")
    assert (code, out) == (2, "")
    assert "thresholds.colour" in err


def test_a_file_is_checked_for_what_it_is_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("thresholds: {min_face_px: 100}\n")
    code, out, err = run("config", "check", file, "--for", "train")
    assert (code, out) == (2, "")
    assert "thresholds" in err
    assert run("config", "check", file, "--for", "dinner") == (
        2,
        "",
        "talkforge: --for dinner: expected curate or train\n",
    )


def test_a_preset_that_there_is_not_cannot_be_shown() -> None:
    code, out, err = run("config", "show", "ofline")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "ofline" in err and "did you mean offline" in err
