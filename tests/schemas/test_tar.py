"""Tar files hold what WebDataset's own writer would have put there."""

from __future__ import annotations

import io

import pytest
from webdataset import TarWriter

from talkforge.schemas.tar import tar_writer, write_sample

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
