"""How a run's model is fitted to its devices: attention, what is stored, kept, recomputed and compiled."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from talkforge.schemas.errors import CommandError
from talkforge.schemas.units import LATENT_STRIDE_PX, latent_frames
from talkforge.training.config import DataConfig, ModelConfig, TrainConfig
from talkforge.training.wan import memory
from talkforge.training.wan.blocks import compile_blocks, keep_blocks
from talkforge.training.wan.memory import GB, MemoryOptions, Sizes
from talkforge.training.wan.precision import keep_on_host, store_in_8_bits
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)

BACKENDS = {
    "cudnn": ("_native_cudnn", "torch"),
    "flash": ("flash", "flash_attn"),
    "flash3": ("_flash_3", "flash_attn_interface"),
}
"""`model.attention` -> diffusers' name of the backend, and the module that it needs."""


def fit(model: TalkingWan, config: TrainConfig, accelerator: Accelerator) -> None:
    """Set up a model on the CPU as the section `model` says, before Accelerate takes it.

    Args:
        model: with its trained parameters and types set.
        config: of the run.
        accelerator: of this process.

    Raises:
        CommandError: a setting does not fit the devices, the parallelism, or what is installed.
    """
    own, blocks = config.model, model.transformer.blocks
    strategy = strategy_of(accelerator)
    if own.attention != "native":
        _set_attention(model, own.attention, accelerator.device)
    _store(model, own, strategy)
    saving = MemoryOptions(
        recompute=own.gradient_checkpointing,
        fp8=own.fp8,
        swapped_blocks=min(own.swap_blocks, len(blocks)),
        offload=own.offload_activations,
        eight_bit=config.optim.eight_bit,
    )
    saving = _kept(own, saving, sizes_of(model), strategy, tokens(config.data), accelerator)
    model.context.keep_attention, model.context.offload = saving.keep_attention, saving.offload
    keep_blocks(blocks, saving.kept_blocks)
    if own.compile:
        compile_blocks(blocks, recompute=saving.recompute, keep_attention=saving.keep_attention)
        model.transformer.disable_gradient_checkpointing()  # it is part of the graph


def strategy_of(accelerator: Accelerator) -> str:
    """The kind of parallelism, as `memory.plan` calls it."""
    if accelerator.is_fsdp2:
        return "FSDP2"
    if accelerator.distributed_type == "DEEPSPEED":
        return f"ZeRO-{accelerator.deepspeed_plugin.zero_stage}"
    return "DDP"


def tokens(data: DataConfig) -> int:
    """Video tokens of a batch of the largest bucket."""
    edge_px = 2 * LATENT_STRIDE_PX
    largest = max((height_px // edge_px) * (width_px // edge_px) for height_px, width_px in data.sizes)
    return data.batch_size * latent_frames(data.num_frames) * largest


def sizes_of(model: TalkingWan) -> Sizes:
    """Parameters and widths of a model."""
    block, wan = model.transformer.blocks[0], model.transformer.config
    frozen, trained = _counts(model)
    block_frozen, block_trained = _counts(block)
    return Sizes(
        frozen,
        trained,
        len(model.transformer.blocks),
        block_frozen,
        block_trained,
        wan.num_attention_heads * wan.attention_head_dim,
        wan.ffn_dim,
    )


def _counts(module: nn.Module) -> tuple[int, int]:
    found = [(p.numel(), p.requires_grad) for p in module.parameters()]
    trained = sum(count for count, is_trained in found if is_trained)
    return sum(count for count, _ in found) - trained, trained


def _set_attention(model: TalkingWan, name: str, device: torch.device) -> None:
    backend, package = BACKENDS[name]
    if importlib.util.find_spec(package) is None:
        raise CommandError(f"model.attention={name}: needs the package {package}, which is not installed")
    if device.type != "cuda":
        raise CommandError(f"model.attention={name}: needs a GPU, found {device}")
    try:
        model.transformer.set_attention_backend(backend)
    except (RuntimeError, ValueError, ImportError) as error:
        raise CommandError(f"model.attention={name}: {error}") from None


def _store(model: TalkingWan, own: ModelConfig, strategy: str) -> None:
    if not (own.fp8 or own.swap_blocks):
        return
    if strategy != "DDP":
        name = "fp8" if own.fp8 else "swap_blocks"
        raise CommandError(f"model.{name}: not with {strategy}, which shards the weights instead")
    blocks = model.transformer.blocks
    if own.fp8:
        store_in_8_bits(blocks)
    keep_on_host(blocks[: own.swap_blocks])
    # All processes have loaded the same. DDP cannot send weights of this type, or of another device.
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    model._ddp_params_and_buffers_to_ignore = frozen


def _kept(
    own: ModelConfig, saving: MemoryOptions, sizes: Sizes, strategy: str, count: int, accelerator: Accelerator
) -> MemoryOptions:
    """The savings, and what is kept of the activations."""
    if own.keep == "nothing" or not saving.recompute:
        return saving
    if own.keep == "attention":
        return replace(saving, keep_attention=True)
    if isinstance(own.keep, int):
        return replace(saving, keep_attention=True, kept_blocks=min(own.keep, sizes.blocks))
    if accelerator.device.type != "cuda":
        raise CommandError(f"model.keep=auto: plans the memory of a GPU, found {accelerator.device}")
    total = torch.cuda.get_device_properties(accelerator.device).total_memory
    found = memory.kept(strategy, sizes, accelerator.num_processes, count, total, saving)
    planned = memory.plan(strategy, sizes, accelerator.num_processes, count, found).total
    log.info(
        "model.keep=auto: keeps %s and %d of %d blocks: %.1f of %.1f GB planned",
        "self-attention" if found.keep_attention else "nothing",
        found.kept_blocks,
        sizes.blocks,
        planned / GB,
        total / GB,
    )
    return found
