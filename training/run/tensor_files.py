"""Tensors on disk: safetensors, and torch files that hold nothing but tensors."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from talkforge.schemas import scratch
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


class Deferred(Mapping[str, Tensor]):
    """Tensors by name that are made one at a time, each once, in the order of the mapping.

    What is made is not kept, so a state that is written from it never is in memory as a whole.
    """

    def __init__(self, like: Mapping[str, Tensor], make: Callable[[Tensor], Tensor]) -> None:
        """Makes nothing yet.

        Args:
            like: what each is made of; it has the shape and the type that the tensor will have.
            make: makes it, on the CPU.
        """
        self.like = {name: like[name] for name in _in_order_of_files(like)}
        self._make = make
        self._left = list(reversed(self.like))

    def __getitem__(self, name: str) -> Tensor:
        if not self._left or self._left[-1] != name:
            raise KeyError(f"{name}: tensors are made in their order, each once")
        self._left.pop()
        return self._make(self.like[name])

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)

    def rest(self) -> None:
        """Make what was not asked for, for other processes that take part in it."""
        while self._left:
            self[self._left[-1]]


def _in_order_of_files(state: Mapping[str, Tensor]) -> list[str]:
    """Names, those of large numbers first: each tensor of a file then begins at a multiple of its own."""
    return sorted(state, key=lambda name: -state[name].dtype.itemsize)


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, one tensor after the other.

    The library writes from tensors that are all in memory. Format:
    https://huggingface.co/docs/safetensors#format

    Args:
        path: file to write.
        state: tensors by name, or `Deferred` ones.

    Raises:
        OSError, RuntimeError: it cannot be written, see `WRITE_ERRORS`.
    """
    like = state.like if isinstance(state, Deferred) else state
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "made_by": "talkforge"}}
    names, end = _in_order_of_files(like), 0
    for name in names:
        shape, dtype = list(like[name].shape), like[name].dtype
        begin, end = end, end + like[name].numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Not into the old file: tensors that were read from it may still lie in it.
    with scratch.replacing(path, errors=()) as part, part.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            data = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            stream.write(data.numpy().data)


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types by their names in safetensors."""


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
