"""Configuration files by name: which file is meant, and what is said where none is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from talkforge.schemas.config import Config, load_config
from talkforge.schemas.errors import CommandError
from talkforge.schemas.presets import find_config, presets
from talkforge.training.config import load_train_config

CONFIGS = Path(__file__).parents[2] / "configs"

CURATE = ["curate", "offline"]
TRAIN = [f"{size}-stage{stage}" for size in ("tiny", "wan-1.3b", "wan-14b") for stage in (1, 2)]
ACCELERATE = ["ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2"]


def test_every_file_in_configs_is_a_preset() -> None:
    assert list(presets()) == [*CURATE, *TRAIN, *ACCELERATE]
    files = sorted(path.name for path in CONFIGS.rglob("*.yaml"))
    assert files == sorted(found.path.name for found in presets().values())


@pytest.mark.parametrize("name", [*CURATE, *TRAIN, *ACCELERATE])
def test_a_preset_says_in_a_sentence_what_it_is(name: str) -> None:
    summary = presets()[name].summary
    assert 10 < len(summary) < 250
    assert "\n" not in summary


def test_a_name_is_that_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_config("offline", "curate")
    assert (found.preset, found.kind, str(found)) == ("offline", "curate", "preset offline")
    assert found.path.read_bytes() == (CONFIGS / "offline.yaml").read_bytes()
    assert load_config("offline") == load_config(CONFIGS / "offline.yaml")
    assert load_config("curate").measure.scan.detector == "scrfd"
    assert load_train_config("wan-14b-stage1").run.out == "runs/wan-14b-stage1"
    assert load_config(None) == Config()


def test_a_file_goes_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("offline").write_text("shards: {crf: 30}\n")
    with caplog.at_level(logging.WARNING):
        assert load_config("offline").shards.crf == 30
    assert caplog.messages == ["configuration offline: reads the file of that name, not the preset"]


def test_which_preset_is_used_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = find_config("offline")
    assert caplog.messages == [f"configuration: preset offline ({found.path})"]


def test_a_folder_of_a_preset_s_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("offline").mkdir()
    assert find_config("offline").preset == "offline"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "ofline",
            "curate",
            "no preset and no file has this name; did you mean offline? (presets: curate, offline)",
        ),
        (
            "wan-1.3b-stage3",
            "train",
            "no preset and no file has this name; did you mean wan-1.3b-stage2? "
            f"(presets: {', '.join(TRAIN)})",
        ),
        ("zzz", "curate", "no preset and no file has this name (presets: curate, offline)"),
        ("fsdp2", "curate", "the preset configures accelerate, expected curate, offline"),
        ("offline", "train", f"the preset configures curate, expected {', '.join(TRAIN)}"),
    ],
)
def test_a_name_that_does_not_fit_is_one_line(
    name: str, kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load = load_config if kind == "curate" else load_train_config
    with pytest.raises(CommandError) as caught:
        load(name)
    assert str(caught.value) == f"configuration {name}: {message}"


def test_a_path_is_a_file_whether_it_exists_or_not(tmp_path: Path) -> None:
    assert find_config(tmp_path / "my.yaml").path == tmp_path / "my.yaml"
    assert find_config("offline.yaml").preset == ""
    with pytest.raises(CommandError, match=r"^config offline\.yaml: .*No such file"):
        load_config("offline.yaml")


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfshards: {crf: 30}\n")
    assert load_config(file).shards.crf == 30
