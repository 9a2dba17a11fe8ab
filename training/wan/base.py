"""Wan's transformer with random weights, or with weights from a folder or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from talkforge.curation.weights import hub
from talkforge.schemas.errors import CommandError, ModelError, one_line
from talkforge.schemas.units import CONDITION_CHANNELS, LATENT_CHANNELS
from talkforge.training.config import WanShape

RANDOM_SEED = 0
"""Seed of the weights of the 'random' base, which are the same for every run of a shape."""


def random_transformer(shape: WanShape) -> WanTransformer3DModel:
    """An image-to-video transformer, float32, with the same random weights each time.

    Args:
        shape: its sizes.
    """
    inner_dim = shape.num_attention_heads * shape.attention_head_dim
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        return WanTransformer3DModel(
            **shape.model_dump(),
            in_channels=LATENT_CHANNELS + CONDITION_CHANNELS,
            out_channels=LATENT_CHANNELS,
            added_kv_proj_dim=inner_dim if shape.image_dim else None,
        )


def load_transformer(base: str, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a diffusers model, from its folder or its name on the hub.

    Args:
        base: folder, or name on the hub.
        dtype: type of the weights, except for those that Wan keeps in float32.

    Raises:
        CommandError: it is a model of another kind, such as Wan 2.2.
        ModelError: it cannot be loaded, or has missing or unexpected weights.
    """
    local = hub.is_local(base, "transformer/config.json", "model.base", "'random'")
    _refuse_two_experts(base, local)
    try:
        transformer, info = WanTransformer3DModel.from_pretrained(
            base,
            subfolder="transformer",
            use_safetensors=True,
            torch_dtype=dtype,
            output_loading_info=True,
            local_files_only=local,
        )
    except Exception as error:  # diffusers, hub and safetensors raise almost anything
        raise ModelError(
            f"model.base {base}: expected a diffusers Wan model with a `transformer` of safetensors,"
            f" found {one_line(error)}"
        ) from None
    wrong: dict[str, Any] = {kind: names for kind, names in info.items() if names}
    if wrong:
        found = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(map(str, n))}" for kind, n in wrong.items())
        raise ModelError(f"model.base {base}: expected the weights of its config.json, found {found}")
    return transformer


def transformer_config(base: str) -> dict[str, Any]:
    """`transformer/config.json` of a diffusers model, without its weights.

    Args:
        base: folder, or name on the hub.

    Raises:
        ModelError: there is no such file.
    """
    local = hub.is_local(base, "transformer/config.json", "model.base")
    try:
        found: dict[str, Any] = WanTransformer3DModel.load_config(
            base, subfolder="transformer", local_files_only=local
        )
        return found
    except Exception as error:  # diffusers and the hub raise almost anything
        reason = one_line(error, 300)
        raise ModelError(f"model.base {base}: nothing usable in its folder transformer: {reason}") from None


def takes_condition(base: str) -> bool:
    """Whether a base takes the reference image beside the noisy latents, as Wan's image-to-video models do.

    Args:
        base: 'random', folder, or name on the hub.

    Raises:
        ModelError: its description is missing.
    """
    return base == "random" or int(transformer_config(base).get("in_channels", 0)) > LATENT_CHANNELS


def _refuse_two_experts(base: str, local: bool) -> None:
    """Refuse Wan2.2-A14B, whose two transformers are one model: each knows one part of the noise levels.

    Shapes are those of Wan 2.1, so that the one for high noise would be trained on all levels without a word.
    """
    folder = Path(base)
    found = folder.is_dir() and (folder / "transformer_2").is_dir()
    try:
        path = folder / "model_index.json"
        if not folder.is_dir():
            path = Path(hf_hub_download(base, path.name, local_files_only=local))
        parts = json.loads(path.read_text(encoding="utf-8"))
        found = found or parts.get("boundary_ratio") is not None or any(parts.get("transformer_2") or ())
    except (OSError, ValueError, HfHubHTTPError):
        pass  # without an index it is judged by its folders
    if found:
        raise CommandError(
            f"model.base {base}: expected a Wan 2.1 model, found Wan2.2-A14B, whose two transformers"
            " share the noise levels: neither can be trained or used alone"
        )


def check_wan(transformer: WanTransformer3DModel) -> None:
    """Raise CommandError unless patches and channels are Wan 2.1's."""
    config = transformer.config
    found = (tuple(config.patch_size), config.in_channels, config.out_channels)
    with_image = LATENT_CHANNELS + CONDITION_CHANNELS
    if found not in [((1, 2, 2), taken, LATENT_CHANNELS) for taken in (LATENT_CHANNELS, with_image)]:
        ti2v = " (Wan2.2-TI2V-5B, whose VAE is another)" if found[1:] == (48, 48) else ""
        raise CommandError(
            f"transformer: expected Wan 2.1's patches of (1, 2, 2), {LATENT_CHANNELS} or {with_image}"
            f" channels in and {LATENT_CHANNELS} out, found {found[0]}, {found[1]} and {found[2]}{ti2v}"
        )
