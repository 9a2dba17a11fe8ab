"""Samples of the Python API: what they give, and how damage is reported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from talkforge.pipeline.store import Store
from talkforge.samples import read_shard
from talkforge.schemas.errors import DatasetError
from tests.training.shard_files import IDENTITY_DIM, Shown, write_set

CLIPS = [Shown(0), Shown(1, identity=False, text="hello")]


def test_samples_have_the_arrays_of_the_shard(tmp_path: Path) -> None:
    write_set(tmp_path, [CLIPS])
    first, second = read_shard(Store(str(tmp_path)), f"{tmp_path}/shards/train-000000.tar")
    assert (first.key, second.key, second.text) == ("clip00", "clip01", "hello")
    assert first.identity is not None and first.identity.tolist() == np.eye(IDENTITY_DIM)[0].tolist()
    assert second.identity is None
    assert np.array_equal(first.masks(2, 9), CLIPS[0].lips()[2:9])
    assert first.lip_valid.tolist() == CLIPS[0].valid().tolist()
    assert first.face_valid.tolist() == [2] * 30
    assert np.array_equal(first.face_masks(2, 9), CLIPS[0].face()[2:9])
    assert np.isnan(first.blendshapes).all()


def test_damage_names_the_shard(tmp_path: Path) -> None:
    write_set(tmp_path / "cut", [CLIPS])
    cut = tmp_path / "cut" / "shards" / "train-000000.tar"
    data = cut.read_bytes()
    cut.write_bytes(data[: data.index(b"clip01.mp4") + 700])
    why = "expected a whole tar file, found a damaged one (unexpected end of data)"
    with pytest.raises(DatasetError, match=f"^{re.escape(f'{cut}: {why}')}$"):
        list(read_shard(Store(str(tmp_path / "cut")), str(cut)))
    write_set(tmp_path / "changed", [CLIPS], {"clip01": {"speech.npy": b"x"}})
    changed = tmp_path / "changed" / "shards" / "train-000000.tar"
    with pytest.raises(DatasetError, match=f"^{re.escape(str(changed))}: sample clip01: speech.npy: "):
        list(read_shard(Store(str(tmp_path / "changed")), str(changed)))
