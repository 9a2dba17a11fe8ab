"""Arrays as bytes: the same bytes for the same arrays, and one clear error for damaged ones."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import MAX_BYTES, MAX_MEMBERS, npy_bytes, npz_bytes, read_npy, read_npz

ARRAYS: dict[str, np.ndarray] = {"a/b": np.arange(5), "c": np.zeros((2, 0), np.float32)}


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


# ------------------------------------------------------------------------------ bounds


@contextmanager
def little_memory(most_bytes: int = 32 << 20) -> Iterator[None]:
    """The block may hold no more than this at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def header(shape: tuple[int, ...]) -> bytes:
    """The npy file of an array of this shape, without its numbers."""
    words = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words.encode()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def inflating(num_bytes: int) -> bytes:
    """An npz file with so many zeros, about a thousandth of their number long."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(header((num_bytes,)))
        for _ in range(num_bytes >> 20):
            file.write(bytes(1 << 20))
    return stream.getvalue()


def declaring(size: int) -> bytes:
    """An npz file whose directory declares another size of its array than it has; 64 bits where need be."""
    data = zipped({"a.npy": npy_bytes(np.arange(64))})
    at = data.index(b"PK\x01\x02")
    if size < 1 << 32:
        return data[: at + 24] + struct.pack("<I", size) + data[at + 28 :]
    extra = struct.pack("<HHQ", 1, 8, size)
    entry, end = data[at : data.index(b"PK\x05\x06")], data[data.index(b"PK\x05\x06") :]
    entry = entry[:24] + b"\xff" * 4 + entry[28:30] + struct.pack("<H", len(extra)) + entry[32:] + extra
    return data[:at] + entry + end[:12] + struct.pack("<I", len(entry)) + end[16:]


BOMBS = {
    "inflates": (lambda: inflating(1 << 26), f"{len(header((1 << 26,))) + (1 << 26)} bytes in its arrays"),
    "declares 4 GB": (lambda: declaring((1 << 32) - 2), "4294967294 bytes in its arrays"),
    "declares more than 32 bits": (lambda: declaring(1 << 40), "1099511627776 bytes in its arrays"),
    "declares less": (lambda: declaring(8), "found "),
    "a header of any size": (lambda: zipped({"a.npy": header((1 << 40,))}), "0 bytes where its header says"),
    "a negative size": (lambda: zipped({"a.npy": header((-1, -5)) + bytes(5)}), "5 bytes where its header"),
    "many members": (lambda: b"PK" + b"PK\x01\x02" * (MAX_MEMBERS + 1), f"members, more than {MAX_MEMBERS}"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_file_declares_is_bounded_before_it_is_read(name: str) -> None:
    make, message = BOMBS[name]
    data = make()
    with little_memory(), pytest.raises(DatasetError) as caught:
        read_npz(data, "x.npz", max_bytes=1 << 24)
    assert str(caught.value).startswith("x.npz: expected an npz file, found ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_bound_is_that_of_the_arrays_which_are_read() -> None:
    data = npz_bytes(large=np.zeros(1 << 20), small=np.arange(3))
    assert read_npz(data, "x.npz", ("small",), max_bytes=1000)["small"].tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match=r"bytes in its arrays, more than 1000$"):
        read_npz(data, "x.npz", max_bytes=1000)
    assert len(read_npz(data, "x.npz", ("large",), max_bytes=MAX_BYTES)["large"]) == 1 << 20


def test_a_header_alone_allocates_nothing() -> None:
    with (
        little_memory(),
        pytest.raises(DatasetError, match=r"^x\.npy: expected an array, found 0 bytes where"),
    ):
        read_npy(header((1 << 40,)), "x.npy")


def test_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "load", full)
    for ask in (lambda: read_npy(npy_bytes(np.arange(3)), "x"), lambda: read_npz(npz_bytes(**ARRAYS), "x")):
        with pytest.raises(MemoryError):
            ask()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_of_any_kind_is_an_array_or_one_line(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([npz_bytes(**ARRAYS), npy_bytes(np.arange(9)), declaring(1 << 40)]))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for read in (read_npz, read_npy):
        try:
            read(cut, "x.npz")
        except DatasetError as error:
            assert str(error).startswith("x.npz: expected ") and "\n" not in str(error)


@given(st.binary(max_size=400))
def test_any_bytes_are_an_array_or_one_line(data: bytes) -> None:
    for prefix in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
        for read in (read_npz, read_npy):
            with suppress(DatasetError):
                read(prefix + data, "x.npz")
