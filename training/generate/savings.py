"""What lets a large model fit on a small card, or a video be done sooner: each is off unless asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK, FBCSharedBlockState
from diffusers.loaders import WanLoraLoaderMixin
from torch import Tensor, nn

from talkforge.schemas.errors import CommandError, ModelError, one_line
from talkforge.training.run.tensor_files import listed, read_tensors
from talkforge.training.wan.codec import Codec, WanCodec
from talkforge.training.wan.talking_wan import TalkingWan

log = logging.getLogger(__name__)

MOST_CACHED_BYTES = 16_000_000_000
"""Most bytes that step caching keeps of one video, in main memory. Source: ours: what fits beside 14 billion
parameters in 64 GB."""

OFFLOAD = ("none", "model", "group")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Savings:
    """Savings of memory and time.

    Attributes:
        dtype: of the weights: 'float32', 'bfloat16', or 'auto', which is bfloat16 on CUDA, else float32.
        fp8: store the weights of the transformer's blocks in 8 bits, and compute in `dtype`.
        offload: 'none'; 'model': the transformer is on the device only while it is used, and so are the
            other models; 'group': the same, and of the transformer one block at a time.
        vae_tiling: decode frames larger than 256 px in tiles.
        lora: files of low-rank updates that are added to the transformer's weights, such as those of models
            that were distilled to a few steps.
    """

    dtype: str = "auto"
    fp8: bool = False
    offload: str = "none"
    vae_tiling: bool = False
    lora: tuple[Path, ...] = ()


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of weights.

    Args:
        name: see `Savings.dtype`.
        device: where the model computes.

    Raises:
        CommandError: no such name.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise CommandError(f"--dtype {name}: expected auto, {' or '.join(DTYPES)}")
    return DTYPES[name]


def apply(model: TalkingWan, codec: Codec, saving: Savings, device: torch.device) -> None:
    """Put a model on its device with the savings that are asked for.

    Args:
        model: with its weights, on the CPU.
        codec: of frames.
        saving: what is asked for.
        device: where the model computes.

    Raises:
        CommandError: an option does not fit.
        ModelError: a file of low-rank updates does not fit.
    """
    if saving.offload not in OFFLOAD:
        raise CommandError(f"--offload {saving.offload}: expected {', '.join(OFFLOAD)}")
    for path in saving.lora:
        merge_lora(model.transformer, path)
    if saving.vae_tiling:
        if not isinstance(codec, WanCodec):
            raise CommandError(f"--vae-tiling: the codec of this model is {codec.kind}, which needs none")
        codec.enable_tiling()
    if saving.fp8:
        compute = next(model.transformer.blocks[0].attn1.to_q.parameters()).dtype
        model.transformer.enable_layerwise_casting(torch.float8_e4m3fn, compute)
    if saving.offload == "group":
        for name, module in model.named_children():
            if name != "transformer":
                module.to(device)
        model.transformer.enable_group_offload(
            device,
            torch.device("cpu"),
            "block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
        )
    elif saving.offload == "none":
        model.to(device)


class StepCache:
    """Step caching of one video, in bounded memory.

    Diffusers' First Block Cache, which is TeaCache's idea with the first block's output as the measure
    (arXiv 2411.19108). For each window and each call of guidance it keeps two tensors of all video tokens:
    what the first block added, and what the other blocks added. Between two calls they are in main memory, so
    that the device holds those of one call. Windows for which `MOST_CACHED_BYTES` leave no place are computed
    in full at every step.
    """

    def __init__(
        self, model: TalkingWan, threshold: float, device: torch.device, *, one_window: bool = False
    ) -> None:
        """Begin a video with step caching, or without.

        Args:
            model: the model.
            threshold: `sample.cache`. 0 means no caching.
            device: where the model computes.
            one_window: windows come one after the other, so what was kept of the last one is let go.

        Raises:
            CommandError: the model has one block.
        """
        self._transformer = model.transformer
        self._device, self._one_window, self._window = device, one_window, ""
        self._sizes: dict[str, int] = {}
        self._states: dict[str, Any] | None = None
        self._is_full = False
        if self._transformer.is_cache_enabled:
            self._transformer.disable_cache()
        if not threshold:
            return
        if len(self._transformer.blocks) < 2:
            raise CommandError("cache: a model of one block has nothing to reuse")
        self._transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        hooks = HookRegistry.check_if_exists_or_initialize(self._transformer.blocks[0])
        self._states = hooks.get_hook(_FBC_LEADER_BLOCK_HOOK).state_manager._state_cache

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Entered around a call of the model.

        Args:
            name: of the call, `WINDOW/PASSES`. Two calls of one name have the same shapes.
        """
        if self._states is None:
            yield
            return
        window = name.partition("/")[0]
        if self._one_window and window != self._window:
            self._states.clear()
            self._sizes.clear()
        self._window = window
        _move(self._states.get(name), self._device)
        try:
            with self._transformer.cache_context(name):
                yield
        except BaseException:
            self._states.pop(name, None)  # of a call that has failed, half of it may be new
            self._sizes.pop(name, None)
            raise
        self._keep(name)

    def _keep(self, name: str) -> None:
        assert self._states is not None
        state = self._states[name]
        state.head_block_output = None  # is needed inside a call alone
        self._sizes[name] = sum(tensor.nbytes for tensor in _tensors(state).values())
        if sum(self._sizes.values()) <= MOST_CACHED_BYTES:
            _move(state, torch.device("cpu"))
            return
        del self._states[name], self._sizes[name]
        if not self._is_full:
            self._is_full = True
            log.warning(
                "step caching keeps %.1f GB at the most: %s and those after it are computed in full",
                MOST_CACHED_BYTES / 1e9,
                name.partition("/")[0],
            )


def _tensors(state: FBCSharedBlockState) -> dict[str, Tensor]:
    """What a call has left for the next step."""
    found = {"head": state.head_block_residual, "tail": (state.tail_block_residuals or (None,))[0]}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _move(state: FBCSharedBlockState | None, device: torch.device) -> None:
    if state is None:
        return
    moved = {name: tensor.to(device) for name, tensor in _tensors(state).items()}
    state.head_block_residual = moved.get("head")
    state.tail_block_residuals = (moved["tail"], None) if "tail" in moved else None


def merge_lora(transformer: WanTransformer3DModel, path: Path) -> None:
    """Add low-rank updates to the weights of a transformer.

    Args:
        transformer: its weights are changed.
        path: safetensors file in diffusers' layout or in the original one (`diffusion_model.`,
            `lora_unet_`), as LightX2V's and CausVid's distilled updates are.

    Raises:
        ModelError: the file is damaged, or has other layers or shapes. Nothing is changed then.
    """
    try:
        state = WanLoraLoaderMixin.lora_state_dict(read_tensors(path))
    except ModelError:
        raise
    except Exception as error:  # diffusers raises almost anything where names are none that it knows
        raise ModelError(f"{path}: expected low-rank updates of Wan, found {one_line(error, 200)}") from None
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    layers = sorted(name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight"))
    left = state.keys() - {
        f"{layer}.lora_{part}" for layer in layers for part in ("A.weight", "B.weight", "B.bias")
    }
    if left or not layers:
        raise ModelError(f"{path}: expected low-rank updates of Wan, found {listed(sorted(left)) or 'none'}")
    updates = [_update(transformer, layer, state, path) for layer in layers]
    with torch.no_grad():
        for parameter, update in (pair for pairs in updates for pair in pairs):
            parameter += update.to(parameter)


def _update(
    transformer: WanTransformer3DModel, layer: str, state: dict[str, Tensor], path: Path
) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters of a layer and what is added to them."""
    try:
        module = transformer.get_submodule(layer)
    except AttributeError:
        raise ModelError(f"{path}: does not fit the model, which has no layer {layer}") from None
    linear = getattr(module, "base_layer", module)
    down, up = state[f"{layer}.lora_A.weight"].float(), state.get(f"{layer}.lora_B.weight")
    if up is None:
        raise ModelError(f"{path}: {layer}: expected lora_A and lora_B, found lora_A alone")
    found = (up.shape[0], down.shape[1])
    if tuple(linear.weight.shape) != found or up.shape[1] != down.shape[0]:
        raise ModelError(
            f"{path}: does not fit the model: {layer}: expected {tuple(linear.weight.shape)}, found {found}"
        )
    pairs = [(linear.weight, up.float() @ down)]
    bias = state.get(f"{layer}.lora_B.bias")
    if bias is not None and linear.bias is not None:
        pairs.append((linear.bias, bias))
    return pairs
