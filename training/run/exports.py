"""Weights of a run in the layouts that other programs read.

weights          audio weights as they were published (`training.run.published`)
adapters         all added networks in one safetensors file, by their names in `TalkingWan`
lora             low-rank updates as diffusers and peft read them
lora-comfyui     the same under the original names, as ComfyUI and trainers of Wan's own code read them
transformer      a folder with Wan's transformer as diffusers reads it, trained or with its low-rank updates
                 added, and `adapters.safetensors` beside it
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal, get_args

import torch
from diffusers import WanTransformer3DModel

from talkforge.schemas import scratch
from talkforge.schemas.errors import CommandError, RunError, one_line
from talkforge.training.config import TrainConfig
from talkforge.training.run import checkpoint
from talkforge.training.run.published import export_published
from talkforge.training.run.tensor_files import WRITE_ERRORS, State, fill, flush, write_tensors
from talkforge.training.wan.base import load_transformer, random_transformer
from talkforge.training.wan.precision import cast_weights
from talkforge.training.wan.talking_wan import is_adapter

Layout = Literal["weights", "adapters", "lora", "lora-comfyui", "transformer"]

LAYOUTS: tuple[str, ...] = get_args(Layout)

ADAPTERS_FILE = "adapters.safetensors"

_LORA = re.compile(r"transformer\.(?P<layer>.*)\.lora_(?P<part>[AB])\.default\.weight")

_ORIGINAL = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
}
"""Diffusers' names of Wan's attentions and projections, and those of Wan's own code."""


def run_export(run: Path, out: Path, layout: str = "weights") -> None:
    """Write the weights of a run, the EMA weights where there are any.

    Args:
        run: a run's folder, or a checkpoint's.
        out: file to write: .safetensors, or .ckpt and .pt for published weights. For 'transformer' a folder
            that does not exist.
        layout: one of `LAYOUTS`.

    Raises:
        CommandError: there is no checkpoint, the run has nothing for this layout, or `out` does not fit it.
        ModelError: checkpoint or base is damaged.
        RunError: `out` cannot be written.
    """
    if layout not in LAYOUTS:
        raise CommandError(f"--as {layout}: expected {', '.join(LAYOUTS)} for a run")
    suffixes = (".ckpt", ".pt", ".safetensors") if layout == "weights" else (".safetensors",)
    if layout != "transformer" and out.suffix not in suffixes:
        raise CommandError(f"--out {out}: expected a name in {' or '.join(suffixes)}")
    found = checkpoint.read(checkpoint.find(run))
    weights = found.best()
    if layout == "weights":
        export_published(weights, out)
    elif layout == "adapters":
        _write(out, {name: tensor for name, tensor in weights.items() if is_adapter(name)})
    elif layout == "transformer":
        _write_transformer(out, found.config, weights)
    else:
        _write(out, lora_state(weights, original=layout == "lora-comfyui"))


def lora_state(weights: State, *, original: bool) -> State:
    """Low-rank updates for other programs. Their scale is 1, so that no alpha is needed.

    Args:
        weights: by their names in `TalkingWan`.
        original: under the names of Wan's own code, as in ComfyUI, instead of diffusers' names.

    Raises:
        CommandError: there are none.
    """
    found: State = {}
    for name, tensor in weights.items():
        if match := _LORA.fullmatch(name):
            layer = f"transformer.{match['layer']}"
            if original:
                blocks, number, attention, projection = match["layer"].split(".", 3)
                layer = f"diffusion_model.{blocks}.{number}.{_ORIGINAL[attention]}.{_ORIGINAL[projection]}"
            found[f"{layer}.lora_{match['part']}.weight"] = tensor
    if not found:
        raise CommandError("the run has no low-rank updates: it was not trained with model.trainable=lora")
    return found


def _write_transformer(out: Path, config: TrainConfig, weights: State) -> None:
    if out.exists():
        raise CommandError(f"--out {out}: expected a folder that does not exist yet")
    base = config.model.base
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    if config.model.trainable == "adapters":
        raise CommandError(f"the run has trained nothing of {base} itself: use --as adapters")
    transformer = (
        random_transformer(config.model.shape) if base == "random" else load_transformer(base, torch.float32)
    )
    if config.model.trainable == "full":
        own = {name.removeprefix("transformer."): t for name, t in weights.items() if not is_adapter(name)}
        fill(dict(transformer.named_parameters()), own, str(out))
    else:
        _add_updates(transformer, lora_state(weights, original=False))
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        cast_weights(transformer.requires_grad_(False), dtype)
        transformer.save_pretrained(part / "transformer", safe_serialization=True)
        adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}
        write_tensors(part / ADAPTERS_FILE, adapters)
        part.rename(out)
    except WRITE_ERRORS as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"{out}: cannot be written: {one_line(error)}") from None


def _add_updates(transformer: WanTransformer3DModel, updates: State) -> None:
    with torch.no_grad():
        for name, up in updates.items():
            if name.endswith(".lora_B.weight"):
                layer = name.removesuffix(".lora_B.weight")
                linear = transformer.get_submodule(layer.removeprefix("transformer."))
                linear.weight += up.float() @ updates[f"{layer}.lora_A.weight"].float()


def _write(out: Path, state: State) -> None:
    with scratch.replacing(out, WRITE_ERRORS) as part:
        write_tensors(part, state)
        flush(part)
