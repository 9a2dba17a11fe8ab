"""Types of weights and of what is computed with them: explicit, without autocast.

CUDA's autocast computes RMSNorm in float32, which would hand every attention of Wan a float32 query: slower,
larger, and refused by flash attention. Here every layer of the transformer computes in the type of its input,
whatever the type of its weights, and the input has the type of the run. Trained weights stay float32.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional


class InputTypedLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer that computes in the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype), _typed(self.bias, input))


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
