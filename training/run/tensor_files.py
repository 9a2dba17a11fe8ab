"""Tensors on disk: safetensors, and torch files that hold nothing but tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, KeysView, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from talkforge.schemas.errors import ModelError, one_line

State = dict[str, Tensor]
"""Tensors by name."""

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""Errors that Python, safetensors and torch raise where a disk is full."""

_SHOWN = 6
"""Keys of each kind that an error lists. The rest are counted."""


def read_tensors(path: Path) -> State:
    """Every tensor of a safetensors file, on the CPU.

    Args:
        path: of the file.

    Raises:
        ModelError: it is not there, or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: expected safetensors, found {one_line(error)}") from None


class TensorFile:
    """A safetensors file of which single tensors, or rows of them, are read."""

    def __init__(self, path: Path, renamed: Callable[[str], str] = lambda name: name) -> None:
        """Opens the file, and reads its names alone.

        Args:
            path: of the file.
            renamed: gives a tensor's name as it is asked for, of its name in the file.

        Raises:
            ModelError: it is not there, or not such a file.
        """
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._names = {renamed(name): name for name in self._file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: expected safetensors, found {one_line(error)}") from None

    @property
    def names(self) -> KeysView[str]:
        """Names of the tensors."""
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not read."""
        return tuple(self._file.get_slice(self._names[name]).get_shape())

    def whole(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        found: Tensor = self._file.get_tensor(self._names[name])
        return found

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows [first, last) of a tensor, on the CPU. Nothing else of it is read."""
        found: Tensor = self._file.get_slice(self._names[name])[first:last]
        return found


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file.

    Args:
        path: file to write.
        state: tensors by name.

    Raises:
        OSError, SafetensorError, RuntimeError: it cannot be written, see `WRITE_ERRORS`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", "made_by": "talkforge"})
    path.chmod(mode)  # safetensors renames a temporary file that only its owner may read


def read_pickled(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file. No code in the file is run.

    Args:
        path: of the file.

    Raises:
        ModelError: it is not there, is no such file, or holds more than tensors and plain values.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises almost anything
        raise ModelError(f"{path}: expected a torch file of tensors, found {one_line(error, 200)}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found


def fill(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Copy every tensor into its parameter. Names and shapes have to be the same.

    Args:
        expected: the parameters by name.
        found: the tensors by name.
        name: of the file, for messages.

    Raises:
        ModelError: a key is missing, unexpected or of another shape. Nothing is copied then.
    """
    check_names(expected, found, name)
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(found[key])


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelError, which lists the differences, unless keys and shapes are the expected ones.

    Args:
        expected: the parameters by name.
        found: the tensors by name.
        name: of the file, for messages.
    """
    wrong_shapes = [
        f"{key} (expected {tuple(expected[key].shape)}, found {tuple(found[key].shape)})"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": wrong_shapes,
    }
    differences = [f"{what} {listed(keys)}" for what, keys in problems.items() if keys]
    if differences:
        raise ModelError(f"{name}: does not fit the model: {'; '.join(differences)}")


def listed(keys: Iterable[str]) -> str:
    """The first keys by name, and how many more there are."""
    names = list(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
