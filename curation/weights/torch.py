"""Torch: choice of the device, strict loading of published weights, and repeatable inference.

Importing this module does not import torch, which takes seconds and hundreds of megabytes. Its functions do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talkforge.schemas.errors import ModelError, one_line


def torch_device(name: str, option: str) -> Any:
    """The torch device of a name.

    Args:
        name: a device as torch writes it, or "auto": CUDA where torch sees it, else the CPU.
        option: the option that the user gave the name in, for the error.

    Raises:
        ModelError: no such device, or CUDA where torch sees none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"{option} {name}: is no torch device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"{option} {name}: torch sees no CUDA device")
    return device


def read_torch_file(path: Path, label: str) -> dict[str, Any]:
    """A dictionary from a torch file, on the CPU. Only tensors and plain values are unpickled.

    Args:
        path: the file.
        label: names the file in the error.

    Raises:
        ModelError: not such a file; one line.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # files of any kind can be under that name, and fail in any way
        raise ModelError(f"{label}: expected a torch state dict: {one_line(error, 200)}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{label}: expected a torch state dict, found {type(found).__name__}")
    return found


def load_file(network: Any, path: Path, name: str) -> None:
    """Fill a network with the tensors of a torch file, see `load_weights`.

    Args:
        network: the torch module to fill.
        path: file with a state dict.
        name: of the model, for the error.

    Raises:
        ModelError: not a file of tensors by name, or other tensors than the network's; one line.
    """
    label = f"{name}: {path}"
    load_weights(network, read_torch_file(path, label), label)


def load_weights(network: Any, state: dict[str, Any], label: str) -> None:
    """Fill a network with tensors whose names and shapes must be exactly its own.

    Only `num_batches_tracked` of batch normalisation may be missing: files older than torch 0.4.1 have
    none, and inference does not use it.

    Args:
        network: the torch module to fill.
        state: its state dict.
        label: names the model and its file, for the error.

    Raises:
        ModelError: other values than tensors, or other tensors than the network's; one line.
    """
    import torch

    if not all(torch.is_tensor(value) for value in state.values()):
        raise ModelError(f"{label}: expected a torch state dict, found other values than tensors in it")
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {str(key): tuple(value.shape) for key, value in state.items()}
    missing = sorted(k for k in expected.keys() - found.keys() if not k.endswith(".num_batches_tracked"))
    unexpected = sorted(found.keys() - expected.keys())
    other = [
        f"{k} {found[k]} for {expected[k]}" for k in expected if found.get(k, expected[k]) != expected[k]
    ]
    faults = {"missing": missing, "unexpected": unexpected, "other shapes": other}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in faults.items() if keys)
        raise ModelError(f"{label}: is not this model's state dict: {listed}")
    # Not strict, because of `num_batches_tracked`; everything else has been checked.
    network.load_state_dict(state, strict=False)


@contextmanager
def inference() -> Iterator[None]:
    """Run torch without gradients and repeatably: equal inputs give equal outputs.

    On a CPU it runs on one thread, because the order in which threads add up is not fixed. On CUDA it
    neither picks kernels by timing nor rounds to TF32.
    """
    import torch

    threads = torch.get_num_threads()
    exact = torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), exact:
            yield
    finally:
        torch.set_num_threads(threads)
