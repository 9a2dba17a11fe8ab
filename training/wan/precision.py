"""Types of weights and of what is computed with them: explicit, without autocast.

CUDA's autocast computes RMSNorm in float32, which would hand every attention of Wan a float32 query: slower,
larger, and refused by flash attention. Here every layer of the transformer computes in the type of its input,
whatever the type of its weights, and the input has the type of the run. Trained weights stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional


class InputTypedLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer that computes in the type of its input, and where its input is.

    Attributes:
        on_host: its weights lie in main memory, and stay there when the model is moved.
    """

    on_host = False

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.device, input.dtype, non_blocking=True)
        bias = None if self.bias is None else self.bias.to(input.device, input.dtype, non_blocking=True)
        return functional.linear(input, weight, bias)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        return self if self.on_host else super()._apply(fn, recurse)


class InputTypedConv3d(nn.Conv3d):  # type: ignore[misc]
    """A convolution that computes in the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), _typed(self.bias, input))


class InputTypedRMSNorm(nn.RMSNorm):  # type: ignore[misc]
    """A norm whose output has the type of its input. Sums are float32 in torch's own kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, _typed(self.weight, x), self.eps)


_INPUT_TYPED = {
    nn.Linear: InputTypedLinear,
    nn.Conv3d: InputTypedConv3d,
    nn.RMSNorm: InputTypedRMSNorm,
}


def _typed(weight: Tensor | None, input: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(input.dtype)


def compute_in_type_of_input(module: nn.Module) -> None:
    """Let all linear layers, convolutions and RMS norms compute in the type of their input.

    Their class is changed and nothing else, so that names, weights and hooks stay. A second call changes
    nothing.

    Args:
        module: its layers are changed, those that peft has added included.
    """
    for layer in module.modules():
        layer.__class__ = _INPUT_TYPED.get(type(layer), type(layer))
        if hasattr(layer, "cast_input_dtype_enabled"):  # peft would compute low-rank updates in float32
            layer.cast_input_dtype_enabled = False


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Set the type of the weights: float32 for trained ones and those that Wan keeps so, else `dtype`.

    Args:
        module: its weights are changed.
        dtype: of frozen weights.
    """
    keep = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in module.named_parameters():
        precise = parameter.requires_grad or not keep.isdisjoint(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if precise else dtype)


def store_in_8_bits(blocks: Iterable[nn.Module]) -> None:
    """Store frozen weights of linear layers in 8 bits, as diffusers' layerwise casting does.

    They have 3 bits of mantissa and reach to 448, without a scale. What is computed keeps its type.

    Args:
        blocks: of the transformer, whose layers compute in the type of their input.
    """
    for layer in _frozen_linear(blocks):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)


def keep_on_host(blocks: Iterable[nn.Module]) -> None:
    """Keep frozen weights of linear layers in main memory. Each is copied to the device when it is used.

    Copies wait for the work before them: nothing is fetched ahead.

    Args:
        blocks: of the transformer, on the CPU, whose layers compute in the type of their input.
    """
    for layer in _frozen_linear(blocks):
        layer.on_host = True
        if torch.cuda.is_available():
            for parameter in layer.parameters():
                parameter.data = parameter.data.pin_memory()


def _frozen_linear(blocks: Iterable[nn.Module]) -> list[InputTypedLinear]:
    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, InputTypedLinear)]
    return [layer for layer in layers if not any(p.requires_grad for p in layer.parameters())]
