"""Encoders on small random models of the classes that Wan ships with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from talkforge.schemas.errors import ModelError
from talkforge.training.config import TrainConfig
from talkforge.training.wan.encoders import ImageEncoder, NoText, Umt5, load_encoders
from tests.training.tiny_base import tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text_model() -> UMT5EncoderModel:
    torch.manual_seed(0)
    return UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


@pytest.fixture(scope="module")
def image_model() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=56
        )
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text_model: object, image_model: object) -> Path:
    folder = tmp_path_factory.mktemp("base")
    text_model.save_pretrained(folder / "text_encoder")  # type: ignore[attr-defined]
    image_model.save_pretrained(folder / "image_encoder")  # type: ignore[attr-defined]
    tokenizer().save_pretrained(folder / "tokenizer")
    CLIPImageProcessorPil().save_pretrained(folder / "image_processor")
    return folder


def test_prompts_are_padded_with_zeros(text_model: UMT5EncoderModel) -> None:
    encoder = Umt5(text_model, tokenizer())
    found = encoder.encode(["a person speaks", ""])
    assert found.shape == (2, 512, 12)
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        alone = text_model(ids).last_hidden_state[0]
    torch.testing.assert_close(found[0, :4], alone)
    assert found[0, 4:].abs().max() == 0
    assert found[1, 0].abs().max() > 0 and found[1, 1:].abs().max() == 0


def test_a_prompt_is_encoded_once(text_model: UMT5EncoderModel) -> None:
    calls = []
    words = tokenizer()

    def counting(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        return words(*arguments, **options)

    encoder = Umt5(text_model, counting)
    first = encoder.encode(["a person", "a  person\n", "a person"])
    assert len(calls) == 1
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    encoder.encode([f"a {n}" for n in range(Umt5._CACHED)])
    assert len(encoder._seen) == Umt5._CACHED


def test_clip_gives_the_states_before_its_last_layer(image_model: CLIPVisionModel) -> None:
    rgb = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    found = ImageEncoder(image_model, CLIPImageProcessorPil()).encode(rgb)
    assert found.shape == (2, 17, 8)  # 4 x 4 patches and the class token
    pixels = CLIPImageProcessorPil()(images=list(np.asarray(rgb)), return_tensors="pt").pixel_values
    with torch.no_grad():
        states = image_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(found, states[2])


def test_encoders_that_wait_come_to_the_device_one_after_the_other(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[str, str]] = []

    def move(self: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        moved.append((type(self).__name__, str(device)))
        return self

    at = load_encoders(config(base), 12, CPU)
    assert at.image is not None
    rgb = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    expected = at.text.encode(["a person"]), at.image.encode(rgb)
    monkeypatch.setattr(UMT5EncoderModel, "to", move)
    monkeypatch.setattr(CLIPVisionModel, "to", move)
    found = load_encoders(config(base), 12, CPU, waiting=True)
    assert found.image is not None and moved == []  # loading leaves them in main memory
    there, back = torch.device("cpu", 0), CPU
    found.text._visits = found.image._visits = there  # type: ignore[attr-defined]
    for _ in range(2):  # a prompt that is known needs no encoder
        torch.testing.assert_close(found.text.encode(["a person"]), expected[0])
    torch.testing.assert_close(found.image.encode(rgb), expected[1])
    visit = [
        (name, str(device)) for name in ("UMT5EncoderModel", "CLIPVisionModel") for device in (there, back)
    ]
    assert moved == visit


def test_no_text_is_zeros() -> None:
    assert torch.equal(NoText(2, 3, CPU).encode(["a", "b"]), torch.zeros(2, 2, 3))


def config(base: Path, **codec: str) -> TrainConfig:
    return TrainConfig.model_validate(
        {"model": {"base": str(base), "text_tokens": 4}, "codec": {"kind": "linear"} | codec}
    )


def test_encoders_are_loaded_from_a_diffusers_folder(base: Path, text_model: UMT5EncoderModel) -> None:
    found = load_encoders(config(base), 12, CPU)
    assert found.codec.kind == "linear"
    expected = Umt5(text_model, tokenizer()).encode(["a person"])
    torch.testing.assert_close(found.text.encode(["a person"]), expected)
    assert found.image is not None
    assert found.image.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)).shape == (1, 17, 8)


def test_nothing_is_loaded_where_nothing_is_asked_for(tmp_path: Path) -> None:
    found = load_encoders(config(tmp_path, text="none", image="none"), 6, CPU)
    assert found.image is None
    assert found.text.encode([""]).shape == (1, 4, 6)


def test_another_width_is_refused(base: Path) -> None:
    with pytest.raises(ModelError, match="text encoder: expected width 4096, found 12"):
        load_encoders(config(base), 4096, CPU)


@pytest.mark.parametrize("part", ("text_encoder", "image_encoder"))
def test_a_missing_part_is_one_line(base: Path, tmp_path: Path, part: str) -> None:
    for folder in base.iterdir():
        if folder.name != part:
            (tmp_path / folder.name).symlink_to(folder)
    with pytest.raises(ModelError, match=f"nothing usable in its folder {part}") as caught:
        load_encoders(config(tmp_path), 12, CPU)
    assert "\n" not in str(caught.value)
