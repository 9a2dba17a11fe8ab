"""Configuration: files and settings, one-line refusals, hashes that follow the content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from talkforge.schemas.config import (
    Config,
    MeasureConfig,
    Section,
    ShardConfig,
    Thresholds,
    config_hash,
    differences,
    flatten,
    load_config,
)
from talkforge.schemas.errors import CommandError


def test_defaults() -> None:
    config = load_config(None)
    assert config == Config()
    assert config.measure.clip.fps == 25.0
    assert config.thresholds.min_face_confidence == 0.9


def test_a_file_and_settings_over_it(tmp_path: Path) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text("measure:\n  clip:\n    fps: 23\nthresholds:\n  max_faces: null\nshards:\n  crf: 20\n")
    config = load_config(file, ["shards.crf=25", "measure.scan.sample_s=1", "lips.dilation=0.1"])
    assert config.measure.clip.fps == 23.0
    assert config.thresholds.max_faces is None
    assert config.shards.crf == 25
    assert config.measure.scan.sample_s == 1.0
    assert config.measure.lips.dilation == 0.1  # `measure.` may be left out
    assert config.thresholds.min_duration_s == 3.0


def test_settings_are_yaml() -> None:
    config = load_config(None, ["thresholds.min_face_px=null", "motion.body=none", "shards.seed='1'"])
    assert config.thresholds.min_face_px is None
    assert config.measure.motion.body == "none"
    assert config.shards.seed == "1"


def test_forbidden_words_are_a_list_or_a_file_of_which_the_words_are_kept(tmp_path: Path) -> None:
    listed = load_config(None, ["thresholds.forbidden_words=[damn, so what]"])
    assert listed.thresholds.forbidden_words == ("damn", "so what")
    file = tmp_path / "words.txt"
    file.write_text("damn\n\n  Ärger \ndamn\n", encoding="utf-8")
    config = load_config(None, [f"thresholds.forbidden_words={file}"])
    assert config.thresholds.forbidden_words == ("damn", "Ärger")
    file.unlink()
    assert Config.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(CommandError, match=r"thresholds\.forbidden_words: .*expected words, or a UTF-8 file"):
        load_config(None, [f"thresholds.forbidden_words={file}"])


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shards.crf", "--set shards.crf: expected section.key=value"),
        ("crf=3", "--set crf=3: expected section.key=value"),
        ("shards..crf=3", "--set shards..crf=3: expected section.key=value"),
        ("shards.crf=[", "--set shards.crf=[: the value is not YAML"),
        ("shards.crf.x=3", "defaults: shards.crf: Input should be a valid integer"),
        ("shards.crf=99", "defaults: shards.crf: Input should be less than or equal to 51, found 99"),
        ("shards.quality=1", "defaults: shards.quality: Extra inputs are not permitted, found 1"),
        ("nonsense.key=1", "defaults: nonsense: Extra inputs are not permitted"),
        ("clip.fps=fast", "defaults: measure.clip.fps: Input should be a valid number"),
        ("scan.detector=yolo", "defaults: measure.scan.detector: Input should be 'centerface' or 'scrfd'"),
    ],
)
def test_a_bad_setting_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        load_config(None, [setting])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_setting_below_a_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("shards: {crf: 20}\n")
    with pytest.raises(CommandError, match=r"^--set shards\.crf\.x=3: crf is not a section$"):
        load_config(file, ["shards.crf.x=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- a\n- b\n", "expected sections, found list"),
        (b"measure: [", "while parsing"),
        (b"\xff\xfe", "codec can't decode"),
        (b"thresholds:\n  min_faces: 1\n", "thresholds.min_faces: Extra inputs are not permitted, found 1"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text)
    with pytest.raises(CommandError) as caught:
        load_config(file)
    assert str(file) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"^config .*nowhere\.yaml: .*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_hash_follows_the_content() -> None:
    base = config_hash(MeasureConfig())
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert config_hash(MeasureConfig()) == base
    assert config_hash(load_config(None, ["clip.fps=23"]).measure) != base
    assert config_hash(load_config(None, ["thresholds.max_faces=2", "run.workers=3"]).measure) == base


def test_differences_name_each_leaf() -> None:
    changed = load_config(None, ["shards.crf=20", "clip.fps=23"])
    assert differences(Config(), changed) == ["measure.clip.fps: 25.0 -> 23.0", "shards.crf: 18 -> 20"]
    assert differences(changed, changed) == []
    assert flatten(ShardConfig())["crf"] == 18
    assert flatten(Config())["measure.lips.max_gap_frames"] == 4


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ShardConfig().crf = 3  # type: ignore[misc]


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    nested = [child for child in inner if isinstance(child, type) and issubclass(child, Section)]
    return [model, *(found for child in nested for found in sections(child))]


def test_every_value_says_what_it_is() -> None:
    leaves = {
        f"{section.__name__}.{name}": field
        for section in sections(Config)
        for name, field in section.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    }
    assert len(leaves) > 40
    assert [name for name, field in leaves.items() if not field.description] == []


def test_every_threshold_has_a_unit_and_a_source() -> None:
    for name, field in Thresholds.model_fields.items():
        if field.annotation is not bool:
            extra = field.json_schema_extra
            assert isinstance(extra, dict) and extra["unit"] and extra["source"], name
