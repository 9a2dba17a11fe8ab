"""Tar files hold what WebDataset's own writer would have put there."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from talkforge.schemas import tar
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.tar import read_samples, tar_writer, write_sample

SAMPLES = {
    "0123456789ab_000000_004000_t0": {
        "mp4": b"m" * 70_000,
        "lips.npz": b"",
        "json": b"{}",
        "txt": "é".encode(),
    },
    "0123456789ab_004000_008000_t1": {"json": b"[]" * 600, "flac": bytes(512)},
    "k" * 120: {"json": b"longer than a header's name"},
}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_bytes_are_those_of_webdataset(count: int) -> None:
    samples = dict(list(SAMPLES.items())[:count])
    ours, theirs = io.BytesIO(), io.BytesIO()
    with tar_writer(ours) as out:
        for key, members in samples.items():
            write_sample(out, key, members)
    with TarWriter(theirs, encoder=False, mtime=0, user="talkforge", group="talkforge", mode=0o444) as out:
        for key, members in samples.items():
            out.write({"__key__": key, **members})
    assert ours.getvalue() == theirs.getvalue()
    assert not ours.closed


# ------------------------------------------------------------------------------ reading


def written(samples: dict[str, dict[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tar_writer(stream) as out:
        for key, members in samples.items():
            write_sample(out, key, members)
    return stream.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that declares a size, in GNU's binary form where that is large."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def sparse(size: int) -> bytes:
    """A tar file of 1 KiB whose member is one hole of this size."""
    block = bytearray(header("k.mp4", 0, tarfile.GNUTYPE_SPARSE))
    block[386:398], block[398:410] = b"%011o\0" % size, b"%011o\0" % 0  # a piece at the end, without bytes
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def test_samples_come_back_as_they_were() -> None:
    found = list(read_samples(io.BytesIO(written(SAMPLES))))
    assert found == [(key, dict(sorted(members.items()))) for key, members in SAMPLES.items()]


BOMBS = {
    "a hole of 8 GB": (lambda: sparse(8**11 - 1), "expected files named <key>.<member> only, found 'k.mp4'"),
    "declares 1 PB": (
        lambda: header("k.mp4", 1 << 50) + bytes(2048), "sample k: expected at most 4294967296 bytes, found",
    ),
    "a sample of many members": (
        lambda: written({"k": {f"m{n}": bytes(1 << 20) for n in range(6)}}), "sample k: expected at most 4",
    ),
    "names of names of names": (
        lambda: (header("x", 1, tarfile.GNUTYPE_LONGNAME) + b"x".ljust(512, b"\0")) * 2000 + bytes(1024),
        "expected a whole tar file, found a damaged one (",
    ),
    "leaves its folder": (lambda: header("../k.mp4", 0) + bytes(1024), "found '../k.mp4'"),
    "a link": (lambda: header("k.mp4", 0, tarfile.SYMTYPE) + bytes(1024), "found 'k.mp4'"),
    "a device": (lambda: header("k.mp4", 0, tarfile.CHRTYPE) + bytes(1024), "found 'k.mp4'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_no_sample_is_refused_before_it_fills_the_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BOMBS[name]
    data = make()
    if name == "a sample of many members":
        monkeypatch.setattr(tar, "MAX_SAMPLE_BYTES", 4 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError) as caught:
            list(read_samples(io.BytesIO(data)))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_errors_of_the_stream_are_no_damage() -> None:
    class Broken(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    stream: IO[bytes] = Broken()
    with pytest.raises(OSError, match="Input/output error"):
        list(read_samples(stream))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_of_any_kind_gives_whole_samples_or_one_line(data: st.DataObject) -> None:
    whole = written({f"k{n}": {"json": b"{}", "mp4": bytes([n]) * 600} for n in range(3)})
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        for key, members in read_samples(io.BytesIO(damaged[: data.draw(st.integers(0, len(damaged)))])):
            assert key and members
    except DatasetError as error:
        assert "\n" not in str(error)


def test_only_wanted_members_are_read() -> None:
    data = written({"a": {"json": b"1", "mp4": b"2"}, "b": {"mp4": b"3"}})
    assert list(read_samples(io.BytesIO(data), {"json"})) == [("a", {"json": b"1"}), ("b", {})]


@pytest.mark.parametrize("wanted", (None, {"mp4"}))
def test_a_member_comes_once(wanted: set[str] | None) -> None:
    """Whether it is read or passed over."""
    names = ("a.json", "b.json", "b.json")
    samples = read_samples(io.BytesIO(b"".join(header(name, 0) for name in names) + bytes(1024)), wanted)
    assert next(samples)[0] == "a"
    with pytest.raises(DatasetError, match="sample b: expected json once, found it twice"):
        next(samples)


def test_what_comes_before_damage_is_read() -> None:
    """Inside a member its sample is dropped; between two the sample comes without the second."""
    samples = {key: {"json": b"j" * 700, "mp4": b"m" * 700} for key in "ab"}
    data = written(samples)

    def read(cut: int) -> tuple[list[str], str]:
        found: list[str] = []
        try:
            for key, members in read_samples(io.BytesIO(data[:cut])):
                assert members.items() <= samples[key].items()
                found.append(f"{key} {' '.join(members)}")
        except DatasetError as error:
            return found, str(error).removeprefix("expected a whole tar file, found a damaged one ")
        return found, ""

    entry = 512 + 1024  # header and content
    assert read(3 * entry + 513) == (["a json mp4"], "(unexpected end of data)")
    assert read(2 * entry + 513) == (["a json mp4"], "(unexpected end of data)")
    assert read(3 * entry) == (["a json mp4", "b json"], "")  # a tar file may end here: hence the manifest
    assert read(2 * entry + 1) == (["a json mp4"], "")
    assert read(2 * entry - 1) == (["a json mp4"], "(unexpected end of data)")  # in the padding
    assert read(2 * entry - (1024 - 700) - 1) == ([], "(unexpected end of data)")
    bad = header("b.json", 0, b"g")  # says that a list of attributes follows, which is not there
    data = data[: 2 * entry] + bad
    assert read(len(data)) == (["a json mp4"], "(empty header)")
