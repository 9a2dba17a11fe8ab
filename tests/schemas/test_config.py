"""Configuration: files and settings, one-line refusals, hashes that follow the content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from talkforge.schemas.config import (
    FACE_CONFIDENCE,
    GATES,
    Config,
    MeasureConfig,
    ScanConfig,
    Section,
    ShardConfig,
    Thresholds,
    apply_settings,
    config_hash,
    differences,
    flatten,
    idle_thresholds,
    load_config,
    threshold_source,
)
from talkforge.schemas.errors import CommandError


def test_defaults() -> None:
    config = load_config(None)
    assert config == Config()
    assert config.measure.clip.fps == 25.0
    assert config.thresholds.min_face_confidence == 0.7


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ([], 0.7),
        (["scan.detector=scrfd"], 0.9),
        (["scan.detector=scrfd", "thresholds.min_face_confidence=auto"], 0.9),
        (["thresholds.min_face_confidence=auto"], 0.7),
        (["scan.detector=scrfd", "thresholds.min_face_confidence=0.8"], 0.8),
        (["thresholds.min_face_confidence=0.9"], 0.9),
        (["thresholds.min_face_confidence=null"], None),
        (["scan.detector=scrfd", "thresholds.max_faces=2"], 0.9),
    ],
)
def test_the_least_face_confidence_follows_the_detector(settings: list[str], least: float | None) -> None:
    assert load_config(None, settings).thresholds.min_face_confidence == least


def test_the_least_face_confidence_follows_the_detector_however_a_configuration_is_made() -> None:
    scrfd = MeasureConfig.model_validate({"scan": {"detector": "scrfd"}})
    assert Config().thresholds.min_face_confidence == 0.7
    assert Config(measure=scrfd).thresholds.min_face_confidence == 0.9
    assert Config(measure=scrfd, thresholds=Thresholds(max_faces=2)).thresholds.min_face_confidence == 0.9
    given = Thresholds(min_face_confidence=0.8, max_faces=2)
    assert Config(measure=scrfd, thresholds=given).thresholds == given
    assert {*FACE_CONFIDENCE} == {*get_args(ScanConfig.model_fields["detector"].annotation)}


def test_a_data_set_s_own_confidence_stays() -> None:
    """A data set that was begun when the default was 0.9 for both detectors says so in dataset.json."""
    stored = Config().model_dump(mode="json")
    stored["thresholds"]["min_face_confidence"] = 0.9
    assert Config.model_validate(stored).thresholds.min_face_confidence == 0.9
    assert apply_settings(stored, ["thresholds.max_faces=2"]).thresholds.min_face_confidence == 0.9
    assert (
        apply_settings(stored, ["thresholds.min_face_confidence=auto"]).thresholds.min_face_confidence == 0.7
    )


def test_the_offline_preset_is_the_defaults_and_the_paper_s_asks_what_the_paper_asks() -> None:
    assert load_config("offline") == Config()
    assert (load_config("offline").measure.clip.crop, load_config("curate").measure.clip.crop) == (
        "auto",
        "none",
    )
    assert (
        load_config("curate").thresholds
        == Config(measure=load_config("curate").measure).thresholds
        == Thresholds(min_face_confidence=0.9)
    )


def test_a_threshold_names_the_source_of_the_value_in_force() -> None:
    config = load_config(None, ["thresholds.min_face_px=100", "thresholds.max_faces=null"])
    assert threshold_source(config, "min_face_confidence") == FACE_CONFIDENCE["centerface"][1]
    assert threshold_source(config, "min_speech_fraction").startswith("ours: a sentence of GRID")
    assert threshold_source(config, "min_face_px") == "set for this data set"
    assert threshold_source(config, "max_faces") == "set for this data set"
    paper = "FantasyTalking data section: InsightFace confidence 0.9"
    assert threshold_source(load_config("curate"), "min_face_confidence") == paper
    old = load_config(None, ["thresholds.min_face_confidence=0.9"])  # CenterFace, with InsightFace's figure
    assert threshold_source(old, "min_face_confidence") == "set for this data set"


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "measure:\n  scan:\n    detectr: scrfd\n    sample_s: -1\n"
        "thresholds:\n  max_faces: one\nshard: {crf: 1}\n"
    )
    with pytest.raises(CommandError) as caught:
        load_config(file, ["run.workers=-1"])
    assert str(caught.value) == (
        f"config {file}: line 4, measure.scan.sample_s: expected more than 0, found -1; "
        "line 3, measure.scan.detectr: unknown key (did you mean detector?); "
        'line 6, thresholds.max_faces: expected a whole number, found "one"; '
        "--set run.workers: expected at least 0, found -1; "
        "line 7, shard: unknown key (did you mean shards?)"
    )


def test_a_section_of_which_every_key_is_a_comment_is_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("measure:\n  scan:\n    # sample_s: 1\nthresholds:\n  # max_faces: 2\n")
    assert load_config(file, ["run.workers=3"]) == Config.model_validate({"run": {"workers": 3}})


def test_norway_and_whole_numbers(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("thresholds: {languages: [no, on], max_faces: 1e0}\nshards: {crf: 010}\n")
    config = load_config(file)
    assert (config.thresholds.languages, config.thresholds.max_faces, config.shards.crf) == (
        ("no", "on"),
        1,
        10,
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "thresholds.min_duration_s=1",
            "thresholds.min_duration_s=1 cannot act: measuring leaves out shorter clips already "
            "(measure.clip.min_s=2, which cannot change once a data set is begun)",
        ),
        ("thresholds.min_duration_s=null", "thresholds.min_duration_s=null cannot act: "),
        ("thresholds.min_face_px=40", "thresholds.min_face_px=40 cannot act: "),
        ("thresholds.min_face_px=48", None),
        ("thresholds.min_face_px=null", "thresholds.min_face_px=null cannot act: "),
        ("gates.min_face_px=130", "thresholds.min_face_px=128 cannot act: "),
        ("thresholds.min_speech_fraction=0.05", "thresholds.min_speech_fraction=0.05 cannot act: "),
        ("thresholds.min_face_confidence=0.5", "thresholds.min_face_confidence=0.5 cannot act: "),
        ("thresholds.min_face_confidence=null", None),
        ("thresholds.max_duration_s=30", "thresholds.max_duration_s=30 cannot act: "),
        ("thresholds.max_duration_s=null", None),
        ("thresholds.max_duration_s=10", None),
    ],
)
def test_a_threshold_looser_than_its_gate_is_warned_of(
    setting: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    load_config(None, [setting])
    load_config(None)
    assert len(caplog.messages) == (said is not None)
    assert all(message.startswith(str(said)) for message in caplog.messages)
    caplog.clear()
    apply_settings(load_config(None).model_dump(mode="json"), [setting])  # what `select` does
    assert len(caplog.messages) == (said is not None)


def test_every_gate_is_there() -> None:
    for threshold, key, _ in GATES:
        section, field = key.split(".")
        assert field in type(getattr(MeasureConfig(), section)).model_fields
        assert threshold in Thresholds.model_fields
    assert idle_thresholds(Config()) == []


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
        ("shards.crf.x=3", 'configuration: shards.crf: expected a whole number, found {"x": 3}'),
        ("shards.crf=99", "configuration: --set shards.crf: expected at most 51, found 99"),
        (
            "shards.quality=1",
            "configuration: --set shards.quality: unknown key (known here: max_samples, target_mb,",
        ),
        (
            "nonsense.key=1",
            "configuration: --set nonsense: unknown key (known here: measure, thresholds, shards, run)",
        ),
        ("clip.fps=fast", 'configuration: --set measure.clip.fps: expected a number, found "fast"'),
        (
            "scan.detector=yolo",
            "configuration: --set measure.scan.detector: expected 'centerface' or 'scrfd', found \"yolo\"",
        ),
        ("shards.crf=1_0", 'configuration: --set shards.crf: expected a whole number, found "1_0"'),
        ("shards.crf=18.5", "configuration: --set shards.crf: expected a whole number, found 18.5"),
        ("shards.crf=true", "configuration: --set shards.crf: expected a whole number, found true"),
        ("picture.text=no", 'configuration: --set measure.picture.text: expected true or false, found "no"'),
        (
            "shards.seed=1",
            "configuration: --set shards.seed: expected a text"
            " (in quotes, where it looks like something else), found 1",
        ),
        ("thresholds.languages=en", 'configuration: --set thresholds.languages: expected a list, found "en"'),
        (
            "thresholds.languages=[true]",
            "configuration: --set thresholds.languages.0: expected a text (in quotes",
        ),
        ("shards.target_mb=0", "configuration: --set shards.target_mb: expected more than 0, found 0"),
        (
            "shards.validation_fraction=1",
            "configuration: --set shards.validation_fraction: expected less than 1, found 1",
        ),
        (
            "shards.target_mb=.inf",
            "configuration: --set shards.target_mb: expected a finite number, found Infinity",
        ),
        ("scan=3", "--set scan=3: expected section.key=value"),
        ("measure.scan=3", "configuration: --set measure.scan: expected a section of `key: value`, found 3"),
        (
            "shards.text={a: 1, a: 2}",
            "--set shards.text={a: 1, a: 2}: the value is not YAML (line 1: a is there",
        ),
        ("shards.cfr=3", "configuration: --set shards.cfr: unknown key (did you mean crf?)"),
        ("thresholds.crf=3", "configuration: --set thresholds.crf: unknown key (did you mean shards.crf?)"),
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
        (b"- a\n- b\n", "expected sections, found a list"),
        (b"measure: [", "line 1: expected the node content, but found '<stream end>'"),
        (b"\xff\xfe", "codec can't decode"),
        (
            b"thresholds:\n  min_faces: 1\n",
            "line 2, thresholds.min_faces: unknown key (did you mean min_face_px?)",
        ),
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
