"""The better clip comes first, and copies are found in footage that was really measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from examples.talking_heads import SPEECH_HZ, Take, cut, varied_take, write
from talkforge.curation import media, trace
from talkforge.pipeline import jobs, tables
from talkforge.pipeline.calibrate import MARKER
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.near_duplicates import rank
from talkforge.pipeline.store import Store
from talkforge.schemas.config import apply_settings
from talkforge.schemas.records import LedgerRow
from tests.conftest import Curated


def row(
    clip_id: str,
    duration_s: float,
    face_px: float,
    sync_confidence: float | None,
    shift_s: float | None = None,
    probability: float | None = 0.99,
) -> dict[str, Any]:
    return {
        "clip_id": clip_id, "duration_s": duration_s, "face_px": face_px, "sync_confidence": sync_confidence,
        "audio_shift_s": shift_s, "sync_probability": probability,
    }  # fmt: skip


def test_a_dubbed_copy_never_comes_before_the_true_one() -> None:
    true = row("z", 4.0, 100, 3.0)
    for probability in (None, 0.0, 0.81, 0.94):
        dubbed = row("a", 16.0, 400, 9.0, probability=probability)
        assert sorted([dubbed, true], key=rank) == [true, dubbed]


def test_the_longer_by_far_then_the_unmoved_then_the_larger_then_the_surer_comes_first() -> None:
    best_first = [
        row("f", 16.0, 100, None),
        row("e", 8.1, 300, None),
        row("d", 15.9, 200, 5.0),
        row("b", 8.0, 200, 4.0),
        row("c", 8.0, 200, 4.0),
        row("a", 8.0, 200, None),
        row("A", 15.9, 400, 9.0, 0.24),
    ]
    mixed = [best_first[i] for i in (3, 0, 6, 5, 2, 4, 1)]
    assert sorted(mixed, key=rank) == best_first


def shortened(take: Take, by_s: float, size_px: int) -> Take:
    """Without its beginning, and smaller."""
    first = round(by_s * take.fps)

    def frames() -> Iterator[np.ndarray]:
        for k, rgb in enumerate(take.frames()):
            if k >= first:
                yield cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA)

    samples = take.samples[round(by_s * SPEECH_HZ) :]
    return replace(take, num_frames=take.num_frames - first, frames=frames, samples=samples)


def remux(source: Path, target: Path) -> None:
    """The same streams in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A copy of a.mp4 of the data set, and a film in which one shot comes twice."""
    folder = tmp_path / "copies"
    folder.mkdir()
    write(tmp_path / "a.mp4", shortened(varied_take(3), by_s=1.2, size_px=224), crf=32)
    remux(tmp_path / "a.mp4", folder / "a_again.mkv")
    shot, other = (varied_take(seed, duration_s=2.0) for seed in (8, 6))
    write(folder / "twice.mp4", cut(cut(shot, other), shot))
    return folder


def test_copies_are_found_and_let_in_without_decoding(
    curated: Curated, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    old = load_dataset(store)
    config = apply_settings(old.config.model_dump(mode="json"), ["thresholds.min_duration_s=2"])
    jobs.select(store, old.model_copy(update={"config": config}), load_ingested(store))
    read: Counter[str] = Counter()
    read_file = Store.read

    def counted(self: Store, name: str) -> bytes:
        read[name] += 1
        return read_file(self, name)

    monkeypatch.setattr(Store, "read", counted)
    store.delete(MARKER)
    selection = jobs.curate([str(curated.videos), str(copies)], store, config, InlineExecutor)

    found = {(Path(row.uri).name, round(row.start_s, 1)): row for row in selection.rows}
    ids = {row.clip_id: key for key, row in found.items()}
    names = {key: ids[row.duplicate_of] for key, row in found.items() if row.duplicate_of}
    assert names.pop(("a_again.mkv", 0.0)) == ("a.mp4", 0.0)
    assert len(found) == 6
    # Of the shot that comes twice, the one is kept in which the detector saw the face larger.
    ends = [("twice.mp4", 0.0), ("twice.mp4", 4.0)]
    kept, again = sorted(ends, key=lambda key: -found[key].face_px)
    assert names == {again: kept}
    assert all(row.accepted == (row.duplicate_of is None) for row in selection.rows)
    assert sum(name.endswith("/features.parquet") for name in read) >= 2

    for module, name in [(media, "read_frames"), (media, "read_audio"), (trace, "read_frames"), (av, "open")]:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a video was opened"))
    before = store.read("ledger.parquet")
    read.clear()
    off = apply_settings(config.model_dump(mode="json"), ["thresholds.near_duplicates=false"])
    dataset, ingested = load_dataset(store), load_ingested(store)
    rows = jobs.select(store, dataset.model_copy(update={"config": off}), ingested).rows
    assert [row.accepted for row in rows] == [True] * 6
    assert not [name for name in read if name.startswith("parts/")], "what the parts say is kept"
    jobs.select(store, dataset, ingested)
    assert store.read("ledger.parquet") == before
    assert tables.read(store, "ledger.parquet", LedgerRow) == list(selection.rows)
