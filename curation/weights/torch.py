"""Networks of our own layers with published weights: loaded strictly, run so that results repeat.

Torch is imported when it is needed: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talkforge.schemas.errors import ModelError


def torch_device(name: str, option: str) -> Any:
    """The torch device of a name; for 'auto' CUDA where there is any, else the CPU.

    Args:
        option: where the name was given, for messages.

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


def load_strictly(network: Any, path: Path, name: str) -> None:
    """Fill a network with the tensors of a file, which must be its own to the last name and shape.

    Batch normalisation's `num_batches_tracked` alone may be missing: files older than torch 0.4.1
    have none, and it serves training.

    Raises:
        ModelError: not a file of tensors by name, or others than the network's; one line.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # files of any kind can be under that name, and fail in any way
        reason = " ".join(str(error).split("\n")[0].split())
        raise ModelError(f"{name}: {path}: expected a torch state dict: {reason}") from None
    if not isinstance(state, Mapping) or not all(torch.is_tensor(value) for value in state.values()):
        raise ModelError(f"{name}: {path}: expected a torch state dict, found {type(state).__name__}")
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
        raise ModelError(f"{name}: {path}: is not this model's state dict: {listed}")
    network.load_state_dict(dict(state))


@contextmanager
def inference() -> Iterator[None]:
    """Without gradients, and so that one input gives one result: on a CPU the order in which threads
    add up is not fixed, and on CUDA some kernels and roundings are chosen anew each time."""
    import torch

    threads = torch.get_num_threads()
    exact = torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), exact:
            yield
    finally:
        torch.set_num_threads(threads)
