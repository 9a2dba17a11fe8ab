"""What holds for every format: it goes on after files were lost or damaged, counts, and leads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talkforge.pipeline.export import FORMATS, Options, export
from talkforge.schemas import extras
from tests.pipeline.exports.test_latents import encoded
from tests.pipeline.exports.test_trainers import check_sums
from tests.training.shard_files import Shown

CLIPS = {
    "train": [[Shown(0, num_frames=9), Shown(1, num_frames=9)]],
    "validation": [[Shown(2, num_frames=9)]],
}
IDS = {"train": ["clip00", "clip01"], "validation": ["clip02"]}
TIMED = ("rerun", "lance")
"""Formats whose files hold the time at which they were written."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ids_of(folder: Path) -> str:
    """All names, and the content of text files and tables, in which ids must be found."""
    texts = [data.decode("latin-1") for name, data in files_of(folder).items() if name != "clips.jsonl"]
    return "\n".join([*files_of(folder), *texts])


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_whole_again_whatever_was_lost(name: str, tmp_path: Path) -> None:
    if name in TIMED and (missing := extras.missing(name)):
        pytest.skip(f"the extra {name} is not installed: {missing}")
    if name == "automodel":
        pytest.importorskip("torch", reason="the extra torch is not installed")
    store, out = encoded(tmp_path / "set", CLIPS), tmp_path / "out"
    done = export(store, name, Options(out)).export
    assert (done.complete, done.clips) == (True, {"train": 2, "validation": 1})
    whole = files_of(out)
    assert done.files == len(whole) - 2 - ("clips.jsonl" in whole)
    assert done.bytes == sum(
        len(data) for file, data in whole.items() if file not in ("export.json", "clips.jsonl", "SHA256SUMS")
    )
    assert check_sums(out) == len(whole) - 1
    everything = ids_of(out)
    assert all(key in everything for keys in IDS.values() for key in keys)
    if "clips.jsonl" in whole:
        lines = [json.loads(line) for line in whole["clips.jsonl"].splitlines()]
        assert [(line["split"], line["clip_id"]) for line in lines] == [
            (split, key) for split, keys in IDS.items() for key in keys
        ]
        assert [line["ledger"]["clip_id"] for line in lines] == [line["clip_id"] for line in lines]

    for number, file in enumerate(sorted(set(whole) - {"export.json"})):
        (out / file).unlink()  # not emptied: shards are linked to those of the data set
        if number % 2:
            (out / file).write_bytes(whole[file][: len(whole[file]) // 2])
    assert export(store, name, Options(out)).export.clips == done.clips
    if name in TIMED:
        assert check_sums(out) > 0
    else:
        assert files_of(out) == whole
