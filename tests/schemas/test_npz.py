"""Arrays as bytes: the same bytes for the same arrays, and one clear error for damaged ones."""

from __future__ import annotations

import io

import numpy as np
import pytest

from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import npy_bytes, npz_bytes, read_npy, read_npz

ARRAYS = {"a/b": np.arange(5), "c": np.zeros((2, 0), np.float32)}


def test_npz_bytes_depend_on_the_arrays_only() -> None:
    assert npz_bytes(**ARRAYS) == npz_bytes(**ARRAYS)
    assert npz_bytes(**ARRAYS) != npz_bytes(**{**ARRAYS, "c": np.ones(1)})


def test_arrays_come_back_as_they_were() -> None:
    found = read_npz(npz_bytes(**ARRAYS), "x.npz")
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in ARRAYS.items()
    }
    assert list(read_npz(npz_bytes(**ARRAYS), "x.npz", ("c",))) == ["c"]
    assert list(read_npz(npz_bytes(**ARRAYS), "x.npz", wanted=lambda name: "/" in name)) == ["a/b"]
    assert read_npy(npy_bytes(np.arange(3)), "x.npy").tolist() == [0, 1, 2]


def test_damaged_files_are_named_in_one_line() -> None:
    whole = npz_bytes(**ARRAYS)
    with pytest.raises(DatasetError, match=r"^x\.npz: expected an npz file, found [^\n]+$"):
        read_npz(whole[:50], "x.npz")
    with pytest.raises(DatasetError, match=r"^x\.npz: expected mask, found [^\n]*mask[^\n]*$"):
        read_npz(whole, "x.npz", ("mask",))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"^x\.npy: expected an array, found Object arrays cannot be"):
        read_npy(pickled.getvalue(), "x.npy")
