"""The sha256 of a file is that of its bytes, however many there are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from talkforge.schemas.checksum import sha256_of


def test_the_sha256_is_that_of_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")  # source of the digest: FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    large = bytes(range(256)) * 4096
    path.write_bytes(large)
    assert sha256_of(path) == hashlib.sha256(large).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "none")
