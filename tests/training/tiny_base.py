"""A diffusers folder of small random models of the classes that Wan ships with."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_DIM = 12


def write_base(folder: Path) -> Path:
    """VAE, text encoder, tokenizer, image encoder and processor, and the transformer's description."""
    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).save_pretrained(folder / "vae")
    UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=TEXT_DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder / "text_encoder")
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=112
        )
    ).save_pretrained(folder / "image_encoder")
    CLIPImageProcessorPil().save_pretrained(folder / "image_processor")
    tokenizer().save_pretrained(folder / "tokenizer")
    WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=36,
        num_layers=1,
        ffn_dim=8,
        text_dim=TEXT_DIM,
    ).save_config(folder / "transformer")
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "speaks": 5}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
