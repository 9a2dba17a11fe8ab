"""Encoders of prompts (UMT5) and reference images (CLIP).

Suffixes as in `training.data.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from talkforge.curation.weights import hub
from talkforge.schemas.errors import ModelError, one_line
from talkforge.training.config import UMT5_TOKENS, TrainConfig
from talkforge.training.wan.codec import Codec, load_codec


class TextEncoder(Protocol):
    """Prompt encoder."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, S, D] float32. The empty prompt means that there is none."""


class NoText:
    """Replaces a text encoder: the embedding of every prompt is zeros."""

    def __init__(self, tokens: int, dim: int, device: torch.device) -> None:
        self._shape, self._device = (tokens, dim), device

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        return torch.zeros(len(texts), *self._shape, device=self._device)


@contextmanager
def _visit(model: Any, device: torch.device | None) -> Iterator[torch.device]:
    """The device where the model computes: `device`, which it leaves for main memory, or where it is."""
    if device is None:
        yield next(model.parameters()).device
        return
    model.to(device)
    try:
        yield device
    finally:
        model.to(torch.device("cpu"))


class Umt5:
    """UMT5's last hidden state, zero beyond the prompt's end, as Wan was trained.

    The embeddings of the last `_CACHED` prompts are cached.
    """

    _CACHED = 256

    def __init__(self, model: Any, tokenizer: Any, visits: torch.device | None = None) -> None:
        """A model in memory.

        Args:
            model: UMT5's encoder.
            tokenizer: its tokenizer.
            visits: where it computes. It waits in main memory between calls. None: where it is.
        """
        self._model, self._tokenizer = model.requires_grad_(False).eval(), tokenizer
        self._visits = visits
        self._seen: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move it to a device, where it leaves its results as well."""
        self._model.to(device)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`. S is 512."""
        return torch.stack([self._one(" ".join(text.split())) for text in texts])

    def _one(self, text: str) -> Tensor:
        if text not in self._seen:
            if len(self._seen) >= self._CACHED:
                del self._seen[next(iter(self._seen))]
            self._seen[text] = self._embed(text)
        return self._seen[text]

    def _embed(self, text: str) -> Tensor:
        found = self._tokenizer(
            [text], padding="max_length", max_length=UMT5_TOKENS, truncation=True, return_tensors="pt"
        )
        with torch.no_grad(), _visit(self._model, self._visits) as device:
            mask = found.attention_mask.to(device)
            hidden = self._model(found.input_ids.to(device), mask).last_hidden_state
        embedding: Tensor = (hidden * mask[..., None]).float()[0]
        return embedding


class KnownTexts:
    """The embeddings of a few prompts, in place of the encoder that made them, which takes 11 GB and more."""

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]) -> None:
        """Embeds the prompts. Nothing of the encoder is kept.

        Args:
            encoder: makes the embeddings.
            texts: all prompts that will be asked for, beside the empty one.
        """
        known = list(dict.fromkeys(["", *texts]))
        self._embeddings = dict(zip(known, encoder.encode(known), strict=True))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        return torch.stack([self._embeddings[text] for text in texts])


class ImageEncoder:
    """CLIP's hidden states before its last layer, of images that CLIP's own processor prepared."""

    def __init__(self, model: Any, processor: Any, visits: torch.device | None = None) -> None:
        """A model in memory.

        Args:
            model: CLIP's vision model.
            processor: prepares its images.
            visits: as of `Umt5`.
        """
        self._model, self._processor = model.requires_grad_(False).eval(), processor
        self._visits = visits

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        self._model.to(device)

    def encode(self, rgb_BHWC: Tensor) -> Tensor:
        """Features [B, K, D] float32 of uint8 images. Wan's CLIP has 257 tokens of width 1280."""
        dtype = next(self._model.parameters()).dtype
        pixels = self._processor(images=list(rgb_BHWC.cpu().numpy()), return_tensors="pt").pixel_values
        with torch.no_grad(), _visit(self._model, self._visits) as device:
            found = self._model(pixel_values=pixels.to(device, dtype), output_hidden_states=True)
        features: Tensor = found.hidden_states[-2].float()
        return features


@dataclass(frozen=True)
class Encoders:
    """The frozen encoders of a run.

    Attributes:
        codec: of frames.
        text: of prompts.
        image: of reference images, None where the model takes no CLIP features.
        takes_condition: whether the model takes the reference image beside the noisy latents. Where it does
            not, the codec does not encode it.
    """

    codec: Codec
    text: TextEncoder
    image: ImageEncoder | None
    takes_condition: bool = True


def load_encoders(
    config: TrainConfig,
    text_dim: int,
    device: torch.device,
    *,
    codec: Codec | None = None,
    takes_condition: bool = True,
    waiting: bool = False,
) -> Encoders:
    """The codec and encoders that `config.codec` names.

    Args:
        config: of the run.
        text_dim: width of the prompt embedding that the transformer takes.
        device: where they compute.
        codec: one that is loaded already. None: it is loaded.
        takes_condition: see `Encoders`.
        waiting: encoders of prompts and reference images wait in main memory, and come to the device one
            after the other while they compute. UMT5 takes 11 GB there, CLIP 1.3 to 2.5.

    Raises:
        ModelError: weights are missing or damaged, or have another width.
    """
    text: TextEncoder = NoText(config.model.text_tokens, text_dim, device)
    if config.codec.text == "umt5":
        text = _load_text(config.model.base, text_dim, device, waiting)
    image = _load_image(config.model.base, device, waiting) if config.codec.image == "clip" else None
    return Encoders((codec or load_codec(config)).to(device), text, image, takes_condition)


def _load_text(base: str, text_dim: int, device: torch.device, waiting: bool) -> Umt5:
    from transformers import AutoTokenizer, UMT5EncoderModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # 11 GB instead of 23
    options = {"use_safetensors": True, "dtype": dtype}
    model = _part(base, "text_encoder/config.json", UMT5EncoderModel.from_pretrained, **options)
    if model.config.d_model != text_dim:
        raise ModelError(f"{base}: text encoder: expected width {text_dim}, found {model.config.d_model}")
    tokenizer = _part(base, "tokenizer/tokenizer_config.json", AutoTokenizer.from_pretrained)
    return Umt5(model, tokenizer, device) if waiting else Umt5(model.to(device), tokenizer)


def _load_image(base: str, device: torch.device, waiting: bool) -> ImageEncoder:
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    model = _part(base, "image_encoder/config.json", CLIPVisionModel.from_pretrained, use_safetensors=True)
    processor = _part(base, "image_processor/preprocessor_config.json", CLIPImageProcessorPil.from_pretrained)
    return ImageEncoder(model, processor, device) if waiting else ImageEncoder(model.to(device), processor)


def _part(base: str, file: str, load: Callable[..., Any], **options: Any) -> Any:
    """One part of a diffusers model. `file` is a file that the part always has."""
    folder, _, _ = file.partition("/")
    local = hub.is_local(base, file, "model.base")
    try:
        return load(base, subfolder=folder, local_files_only=local, **options)
    except Exception as error:  # libraries below raise many kinds
        reason = one_line(error, 300)
        raise ModelError(f"model.base {base}: nothing usable in its folder {folder}: {reason}") from None
