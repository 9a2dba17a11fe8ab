"""Captions by a small vision-language model with random weights: loaded, run and joined as a true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from talkforge.pipeline.annotate import CAPTIONS, read
from talkforge.pipeline.caption import Captioner, CaptionOptions, shown
from talkforge.pipeline.store import Store
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import DatasetError, MediaError, ModelError
from tests.command_line import run
from tests.media_files import Pictures, number_of, steady, write_media

WORDS = ["<unk>", "<pad>", "</s>", "<image>", "USER:", "ASSISTANT:", "Who?", "a", "man", "speaks", "."]

CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}ASSISTANT:"
)


def save(folder: Path, chat: str | None = CHAT) -> Path:
    """A LLaVA of a few thousand weights that sees 28 x 28 pixels and knows eleven words."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    crop = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        image_processor=crop, tokenizer=fast, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chat,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    small["initializer_range"] = 1.0  # large enough for the picture to tell on the words
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=28, patch_size=14, **small)
    text = LlamaConfig(
        vocab_size=len(WORDS), num_hidden_layers=1, num_key_value_heads=2, pad_token_id=1, eos_token_id=2,
        **small,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, initializer_range=1.0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "seer")


def options(model: Path, **changes: Any) -> CaptionOptions:
    return CaptionOptions(model=str(model), prompt="Who?", max_tokens=6, device="cpu").model_copy(
        update=changes
    )


def test_a_caption_is_the_same_each_time_and_follows_the_picture(model: Path) -> None:
    captioner = Captioner(options(model))
    dark = np.zeros((48, 64, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, dark.shape, np.uint8)
    caption = captioner.caption([noise])
    assert caption and set(caption.split()) <= set(WORDS)
    assert len(caption.split()) <= 6, "what was asked is no part of the answer"
    assert captioner.caption([noise]) == Captioner(options(model)).caption([noise]) == caption
    assert captioner.caption([dark]) != caption
    assert (captioner.name, captioner.sha256) == ("seer", sha256_of(model / "model.safetensors"))


def test_the_fingerprint_follows_what_a_caption_depends_on(model: Path) -> None:
    prints = {
        Captioner(options(model, **changes)).fingerprint
        for changes in ({}, {"prompt": "Where?"}, {"num_pictures": 2}, {"max_tokens": 7})
    }
    assert len(prints) == 4


@pytest.mark.parametrize(("count", "numbers"), [(1, [12]), (3, [4, 12, 20])])
def test_frames_are_spread_over_the_clip(count: int, numbers: list[int], tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(25)))
    assert [number_of(rgb) for rgb in shown("a", path.read_bytes(), count)] == numbers


def test_a_clip_without_so_many_frames_is_an_error(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(25)))
    with pytest.raises(DatasetError, match="clip a: expected at least 26 frames, found 25"):
        shown("a", path.read_bytes(), 26)
    with pytest.raises(MediaError):
        shown("a", b"-", 1)


def test_what_cannot_be_shown_is_a_failure_row(model: Path) -> None:
    (row,) = Captioner(options(model)).rows([("x", b"-")])
    assert row.text == "" and row.failure is not None and row.failure.startswith("MediaError: ")


def test_the_command_line_captions_the_shards_and_goes_on(model: Path, curated: Any) -> None:
    command = ("caption", curated.dataset, "--model", model, "--prompt", "Who?", "--frames", 2)
    code, out, _ = run(*command, "--max-tokens", 6, "--device", "cpu")
    assert code == 0
    assert "2 clips done, 0 were before, 0 failed" in out
    store = Store(str(curated.dataset))
    found = read(store, CAPTIONS)
    assert {(row.model, row.prompt, row.num_pictures, row.failure) for row in found.values()} == {
        ("seer", "Who?", 2, None)
    }
    before = store.read("captions.parquet")
    code, out, _ = run(*command, "--max-tokens", 6, "--device", "cpu")
    assert "0 clips done, 2 were before, 0 failed" in out
    assert store.read("captions.parquet") == before


def test_models_that_cannot_be_used_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        Captioner(options(tmp_path))
    with pytest.raises(ModelError, match="expected a model that chats, found no chat template"):
        Captioner(options(save(tmp_path / "mute", chat=None)))
    with pytest.raises(ModelError, match="--device abacus: is no torch device"):
        Captioner(options(model, device="abacus"))
