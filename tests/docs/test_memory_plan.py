"""The plan of the memory: counted from the model, and as it stands in the document."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from docs import make_memory_plan as made
from talkforge.training.config import AdapterConfig
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters


def test_the_document_has_these_tables() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert made.page(text) == text, "run: python docs/make_memory_plan.py"


def test_the_model_has_as_many_parameters() -> None:
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=40, attention_head_dim=128, num_layers=made.BLOCKS, ffn_dim=made.FFN,
            in_channels=36, text_dim=4096, freq_dim=256, image_dim=1280, added_kv_proj_dim=made.WIDTH,
        )  # fmt: skip
        base = sum(parameter.numel() for parameter in transformer.parameters())
        model = TalkingWan(transformer, AdapterConfig(), speech_dim=768, identity_dim=512)
    assert base == made.BASE
    assert sum(parameter.numel() for _, parameter in adapter_parameters(model)) == made.ADAPTERS
    assert sum(parameter.numel() for parameter in model.transformer.blocks[0].parameters()) == made.BLOCK
    own = sum(p.numel() for p in model.transformer.blocks[0].attn2.processor.parameters())
    assert own == made.BLOCK_ADAPTERS
