"""NumPy arrays as the bytes of npy and npz files: written reproducibly, read without pickle."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from talkforge.schemas.errors import DatasetError, one_line


def npy_bytes(array: np.ndarray) -> bytes:
    """The npy file of an array, readable with plain `numpy.load`."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """The compressed npz file of named arrays, readable with plain `numpy.load`.

    NumPy dates every entry 1980-01-01, so that the bytes depend on nothing but the arrays.
    """
    stream = io.BytesIO()
    contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    np.savez_compressed(stream, **contiguous)
    return stream.getvalue()


def read_npy(data: bytes, file: str) -> np.ndarray:
    """The array in an npy file.

    Args:
        data: content of the file.
        file: what messages call it.

    Raises:
        DatasetError: the bytes are no array, or one of Python objects.
    """
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except Exception as error:  # damaged bytes make numpy raise almost anything
        raise DatasetError(f"{file}: expected an array, found {one_line(error)}") from None


def read_npz(
    data: bytes, file: str, needed: Sequence[str] = (), wanted: Callable[[str], bool] | None = None
) -> dict[str, np.ndarray]:
    """The arrays in an npz file by name.

    Args:
        data: content of the file.
        file: what messages call it.
        needed: names that have to be there; where it is not empty, only these are read.
        wanted: says by its name whether an array is read; None reads all of them.

    Raises:
        DatasetError: the bytes are no npz file, an array is damaged, or a needed one is missing.
    """
    if not data.startswith(b"PK"):  # NumPy would speak of pickle
        raise DatasetError(f"{file}: expected an npz file, found other bytes")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            names = needed or [name for name in stored.files if wanted is None or wanted(name)]
            return {name: stored[name] for name in names}
    except Exception as error:  # damaged bytes make numpy, zipfile and zlib raise almost anything
        expected = ", ".join(needed) or "an npz file"
        raise DatasetError(f"{file}: expected {expected}, found {one_line(error)}") from None
