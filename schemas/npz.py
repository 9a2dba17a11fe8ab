"""NumPy arrays as the bytes of npy and npz files: written reproducibly, read in bounds and without pickle.

What a file declares is compared with a bound before anything is inflated or allocated, because a megabyte of
deflated zeros holds a gigabyte, and a header of a hundred bytes may ask for any size.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from talkforge.schemas.errors import DatasetError, one_line

MAX_BYTES = 1 << 30
"""Most bytes that the arrays of a file may hold. Source: ours; the lip masks of 20 s at 60 frames/s and
1024 x 1024 px, the largest member at the default settings, are 157 MB."""

MAX_MEMBERS = 100_000
"""Most arrays in an npz file. Source: ours; a part of ten minutes has about 2,000."""

_ENTRY = b"PK\x01\x02"
"""Begins each entry of a zip file's directory. Source: PKWARE's APPNOTE, 4.3.12."""


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
        DatasetError: the bytes are no array, one of Python objects, or fewer than its header says.
    """
    try:
        return _array(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make numpy raise almost anything
        raise DatasetError(f"{file}: expected an array, found {one_line(error)}") from None


def read_npz(
    data: bytes,
    file: str,
    needed: Sequence[str] = (),
    wanted: Callable[[str], bool] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, np.ndarray]:
    """The arrays in an npz file by name.

    Args:
        data: content of the file.
        file: what messages call it.
        needed: names that have to be there; where it is not empty, only these are read.
        wanted: says by its name whether an array is read; None reads all of them.
        max_bytes: most bytes that the arrays which are read may hold.

    Raises:
        DatasetError: the bytes are no npz file, an array is damaged, a needed one is missing, or they hold
            more than `max_bytes` or `MAX_MEMBERS`.
    """
    if not data.startswith(b"PK"):  # NumPy would speak of pickle
        raise DatasetError(f"{file}: expected an npz file, found other bytes")
    try:
        if (num_members := data.count(_ENTRY)) > MAX_MEMBERS:
            raise ValueError(f"{num_members} members, more than {MAX_MEMBERS}")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            names = needed or [name for name in stored if wanted is None or wanted(name)]
            if missing := [name for name in names if name not in stored]:
                raise KeyError(f"no {', '.join(missing)}")
            entries = {name: stored[name] for name in names}
            if (num_bytes := sum(entry.file_size for entry in entries.values())) > max_bytes:
                raise ValueError(f"{num_bytes} bytes in its arrays, more than {max_bytes}")
            # zipfile inflates no more than the size that an entry declares.
            return {name: _array(archive.read(entry)) for name, entry in entries.items()}
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make numpy, zipfile and zlib raise almost anything
        expected = ", ".join(needed) or "an npz file"
        raise DatasetError(f"{file}: expected {expected}, found {one_line(error)}") from None


def _array(data: bytes) -> np.ndarray:
    """The array in an npy file, whose header is checked before anything is allocated."""
    stream = io.BytesIO(data)
    version = npy_format.read_magic(stream)
    reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    held, declared = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (held != declared or min(shape, default=0) < 0):
        raise ValueError(f"{held} bytes where its header says {declared}")
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
