"""Settings that cannot be meant: unknown, contradictory, or without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from talkforge.schemas.errors import CommandError
from talkforge.training.config import DataConfig, TrainConfig, check, load_train_config
from talkforge.training.run.checkpoint import load_trained
from talkforge.training.wan.talking_wan import build
from tests.training.batches import some_info

SETTINGS: dict[str, dict[str, Any]] = {
    "codec": {"kind": "linear", "text": "none", "image": "none"},
    "run": {"out": "run"},
}


def config(**changes: Any) -> TrainConfig:
    sections = {name: dict(values) for name, values in SETTINGS.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    return TrainConfig.model_validate(sections)


def test_what_is_in_order_passes() -> None:
    check(config())
    check(config(run__stage="frame", loss__eta=0.5, loss__unmasked_weight=0.5, run__validate_every=3))
    check(TrainConfig.model_validate({"model": {"base": "Wan"}, "run": {"out": "run"}}))
    check(config(loss__eta=0.2, loss__mask_resize="area", model__trainable="lora", model__lora_rank=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"loss__eta": 0.5}, "loss.eta=0.5 has no effect with run.stage=clip"),
        ({"loss__normalise": "pixels"}, "loss.normalise=pixels has no effect with run.stage=clip"),
        ({"model__lora_rank": 8}, "model.lora_rank=8 has no effect with model.trainable=adapters"),
        (
            {"adapters__face": False, "adapters__face_depth": 2},
            "adapters.face_depth=2 has no effect with adapters.face=false",
        ),
        (
            {"adapters__motion": False, "adapters__motion_dim": 8},
            "adapters.motion_dim=8 has no effect with adapters.motion=false",
        ),
        (
            {"model__base": "Wan", "model__shape": {"num_layers": 2}},
            "model.shape.num_layers=2 has no effect with model.base=Wan",
        ),
        ({"run__validation_samples": 4}, "run.validation_samples=4 has no effect with run.validate_every=0"),
        (
            {"codec__kind": "wan"},
            "codec.kind=wan needs a model.base with weights: give one, or codec.kind=linear",
        ),
        (
            {"codec__text": "umt5", "model__base": "Wan", "model__text_tokens": 4},
            "codec.text=umt5: expected model.text_tokens=512, found 4",
        ),
        ({"run__out": ""}, "run.out: expected the folder of the run, found nothing"),
    ),
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError) as raised:
        check(config(**changes))
    assert str(raised.value) == f"config: {message}"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(CommandError, match=r"run\.out: expected .*; loss\.eta=0\.5 has no effect"):
        check(config(run__out="", loss__eta=0.5))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    (
        ("optim: {lrate: 1}", [], r"train\.yaml: line 1, optim\.lrate: unknown key \(did you mean lr\?\)$"),
        ("", ["run.stage=both"], r"run\.stage: expected 'clip' or 'frame', found \"both\""),
        ("", ["data.num_frames=80"], r"data: .*80"),
        ("", ["data.shorter_spans=[48]"], r"data: .*48"),
        ("", ["data.shorter_spans=[49, 49]"], r"data: .*num_frames = 81, and differ, found \[49, 49\]"),
        ("", ["data.shorter_spans=[85]"], r"data: .*shorter than num_frames = 81, and differ, found \[85\]"),
        ("", ["data.sizes=[[60, 64]]"], r"data: .*multiples of 16 px, found 60 x 64"),
        ("", ["data.sizes=[]"], r"data: .*at least one size"),
        ("", ["run.precision=fp16"], r"run\.precision: expected 'no' or 'bf16', found \"fp16\""),
        ("", ["nothing.at=all"], r"nothing: unknown key \(known here: model, adapters, .*, run\)"),
        ("", ["data.sizes=[[64]]"], r"data\.sizes\.0\.1: expected a value, found nothing"),
        ("run: {steps: 1, steps: 2}", [], r"train\.yaml: line 1: run\.steps is there twice"),
    ),
)
def test_what_is_not_known_is_refused_in_one_line(
    tmp_path: Path, text: str, settings: list[str], message: str
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(CommandError, match=message) as raised:
        load_train_config(path, settings)
    assert "\n" not in str(raised.value)


# --------------------------------------------------------------------------- presets

PRESETS = Path(__file__).parents[2] / "configs" / "train"
NAMES = [f"{size}-stage{stage}" for size in ("tiny", "wan-1.3b", "wan-14b") for stage in (1, 2)]


def preset(name: str) -> TrainConfig:
    return load_train_config(PRESETS / f"{name}.yaml")


def test_there_is_a_preset_of_each_size_for_each_stage() -> None:
    assert sorted(path.stem for path in PRESETS.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_in_order(name: str) -> None:
    config = preset(name)
    check(config)
    first = name.endswith("1")
    assert config.run.stage == ("clip" if first else "frame")
    assert config.run.out == f"runs/{name}"
    assert config.run.init_from == ("" if first else f"runs/{name[:-1]}1")


@pytest.mark.parametrize("size", ("tiny", "wan-1.3b", "wan-14b"))
def test_stages_differ_in_nothing_that_decides_on_the_weights(size: str) -> None:
    one, two = preset(f"{size}-stage1"), preset(f"{size}-stage2")
    for section in ("model", "adapters", "codec", "data", "dropout", "flow"):
        assert getattr(one, section) == getattr(two, section)


def test_the_large_presets_are_the_paper_s() -> None:
    one, two = preset("wan-14b-stage1"), preset("wan-14b-stage2")
    assert (one.run.steps, two.run.steps) == (80_000, 20_000)
    assert (two.loss.eta, two.loss.mask_resize, one.optim.lr, one.data.num_frames) == (
        0.2,
        "trilinear",
        1e-4,
        81,
    )
    assert (one.adapters.audio_scale, one.adapters.face_scale) == (1.0, 0.5)
    assert {one.dropout.image, one.dropout.audio, one.dropout.text} == {0.1}
    assert (one.sample.steps, one.sample.audio_cfg) == (30, 4.5)


def test_stage_2_of_the_small_preset_takes_what_stage_1_made() -> None:
    info = some_info(speech_dim=80, identity_dim=0)
    first, second = (build(preset(f"tiny-stage{stage}"), info) for stage in (1, 2))
    trained = {name: parameter + 1 for name, parameter in first.named_parameters()}
    load_trained(second, trained, "stage 1")
    assert all(torch.equal(parameter, trained[name]) for name, parameter in second.named_parameters())
    assert sum(parameter.numel() for parameter in second.parameters()) < 3e6


def test_old_names_of_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("adapters: {audio_slots: true}\nloss: {plain_weight: 0.5}\n")
    found = load_train_config(file, ["adapters.face=false"])
    assert (found.adapters.window_positions, found.loss.unmasked_weight) == (True, 0.5)
    with pytest.raises(CommandError, match=r"adapters\.audio_slots"):  # which of the two counts?
        load_train_config(file, ["adapters.window_positions=false"])


@pytest.mark.parametrize(
    ("prefix_frames", "message"),
    ((4, "4n \\+ 1 frames, not 4"), (9, "fewer than those of the shortest span, 9, found 9")),
)
def test_a_prefix_is_shorter_than_every_span(prefix_frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(num_frames=13, shorter_spans=(9,), prefix_frames=prefix_frames)
    assert DataConfig(num_frames=13, shorter_spans=(9,), prefix_frames=5).prefix_frames == 5
