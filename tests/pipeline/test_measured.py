"""What is kept beside the parts: the same as a first reading gives, whatever came and went before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.scale import CLIPS_IN_PART, TRACED, make
from talkforge.curation.verdict import Columns
from talkforge.pipeline import measured, small_arrays
from talkforge.pipeline.measured import ClipRows, read_measured
from talkforge.pipeline.store import Store

NUM_PARTS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "set"
    make(folder, NUM_PARTS * CLIPS_IN_PART, CLIPS_IN_PART)
    return folder


@pytest.fixture
def dataset(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five parts; files of what is kept hold fewer rows than a part has."""
    monkeypatch.setattr(measured, "PIECE_ROWS", 50)
    monkeypatch.setattr(measured, "MANY_PIECES", 2)
    return Path(shutil.copytree(made, tmp_path / "set"))


def same(dataset: Path, writes: bool = True) -> None:
    """Asserts that what is kept gives what the parts do."""
    found = read_measured(Store(str(dataset)), writes)
    bare = dataset.parent / "bare"
    shutil.copytree(dataset, bare, ignore=shutil.ignore_patterns("measured"))
    expected = read_measured(Store(str(bare)), writes=False)
    assert found.clips.equals(expected.clips)
    assert found.outcomes == expected.outcomes
    (ids, vectors), (expected_ids, expected_vectors) = found.read_faces(), expected.read_faces()
    assert ids == expected_ids
    assert np.array_equal(vectors, expected_vectors)
    shutil.rmtree(bare)
    parts = len(list((dataset / "parts").glob("*/part.json")))
    assert (len(found.clips), len(ids)) == (parts * CLIPS_IN_PART, parts * TRACED)


def hide(dataset: Path, part: int) -> Path:
    """A part that is not there for now; where it is to be moved back."""
    folder = dataset / "parts" / f"{part:06d}"
    folder.rename(dataset.parent / folder.name)
    return folder


@pytest.mark.parametrize("writes", [True, False])
def test_parts_that_come_and_go_give_what_a_first_reading_gives(dataset: Path, writes: bool) -> None:
    late = [hide(dataset, 1), hide(dataset, 4)]
    same(dataset)
    (dataset.parent / late[0].name).rename(late[0])  # before others
    same(dataset, writes)
    (dataset.parent / late[1].name).rename(late[1])
    hide(dataset, 0)
    same(dataset, writes)
    names = sorted(path.name for path in (dataset / "measured").iterdir())
    assert [name for name in names if name.startswith("faces")] == [
        f"faces-{n:04d}.parquet" for n in range(5 if writes else 4)
    ]


def test_a_part_that_was_measured_again_counts_as_it_is_now(dataset: Path) -> None:
    same(dataset)
    old, other = dataset / "parts" / "000002", dataset / "parts" / "000003"
    marker = json.loads((old / "part.json").read_text())
    shutil.rmtree(other)
    for name in marker["files"]:
        shutil.copy(dataset / "parts" / "000001" / name, old / name)
    (old / "part.json").write_text(json.dumps(marker | {"again": True}))
    shutil.rmtree(dataset / "parts" / "000001")
    same(dataset)


def test_only_new_parts_are_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = hide(dataset, 3)
    read_measured(Store(str(dataset)))
    (dataset.parent / late.name).rename(late)
    read: list[str] = []
    store_read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, name: (read.append(name), store_read(self, name))[1])
    read_measured(Store(str(dataset)))
    of_parts = sorted(name for name in read if name.startswith("parts/"))
    assert of_parts == [
        f"parts/000003/{name}.parquet" for name in ("clips", "failures", "features", "outcomes")
    ]
    read.clear()
    read_measured(Store(str(dataset)))
    assert not [name for name in read if "faces" in name[:14] and name != "measured/faces-0000.parquet"]
    assert not [name for name in read if name.startswith("parts/")]


@pytest.mark.parametrize("damaged", ["clips-0001", "faces-0000", "outcomes-0000"])
def test_what_is_damaged_is_made_again(dataset: Path, damaged: str) -> None:
    same(dataset)
    (dataset / "measured" / f"{damaged}.parquet").write_bytes(b"PAR1")
    same(dataset)
    same(dataset)


def test_faces_are_the_embeddings_of_the_clips_that_have_one(dataset: Path) -> None:
    store = Store(str(dataset))
    found = read_measured(store)
    ids, vectors = found.read_faces()
    stored = {}
    for part in found.parts:
        stored |= small_arrays.read(store, f"parts/{part}", ("identity",))
    assert ids == sorted(stored) and len(ids) == TRACED * len(found.parts) < len(found.clips)
    for key, vector in zip(ids, vectors, strict=True):
        face = stored[key]["identity"]
        np.testing.assert_allclose(vector, face / np.linalg.norm(face), atol=1e-6)


def test_the_different_values_of_a_column_and_which_each_clip_has() -> None:
    columns: dict[str, list[Any]] = {
        "language": ["en", None, "fr", "en"],
        "active_speaker": [None, True, False, True],
    }
    rows = ClipRows(pa.table(columns))
    plain = Columns(4, columns.__getitem__)
    for name, values in columns.items():
        for found in (rows, plain):
            known, numbers = found.distinct(name)
            assert [known[n] if n >= 0 else None for n in numbers.tolist()] == values
            assert len(known) == 2 and found.where(name, lambda value: value is None).tolist() == [
                v is None for v in values
            ]
    assert rows.where("licence", lambda value: value is None).all()
    rows["language"] = pa.array(["de"] * 4)
    assert rows.distinct("language")[0] == ["de"]
