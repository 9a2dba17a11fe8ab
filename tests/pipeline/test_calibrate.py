"""A data set with enough footage scores itself; a small one keeps the shipped map's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation.sync import ridge
from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES
from talkforge.pipeline import stages
from talkforge.pipeline.calibrate import MARKER, TABLE, calibrate, read_calibrated
from talkforge.pipeline.ledger import read_committed
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.store import Store
from talkforge.schemas.records import Clip, ClipMeasures, Face, Sync, clip_id
from tests.records import video

FRAMES = 750


def traced(number: int, lag: int, rng: np.random.Generator) -> tuple[Window, MeasuredClip]:
    """A 30 s clip whose mouth follows its audio, `lag` frames late."""
    bands = rng.normal(size=(FRAMES, NUM_BANDS)).cumsum(axis=0).astype(np.float32) * 0.3
    mixed = np.roll(bands, lag, axis=0) @ np.random.default_rng(0).normal(size=(NUM_BANDS, NUM_MEASURES))
    mouth = (mixed + rng.normal(size=mixed.shape)).astype(np.float32)
    of = video(number, seconds=30.0)
    clip = Clip(
        clip_id=clip_id(of.video_id, 0, 30, 0), video_id=of.video_id, uri=of.uri, scene=0, track=0,
        start_s=0.0, end_s=30.0, fps=25.0, num_frames=FRAMES, width_px=64, height_px=64,
    )  # fmt: skip
    shipped = Sync(
        sync_method=ridge.SHIPPED, sync_offset_frames=None, sync_confidence=None, sync_zero_confidence=0.0
    )
    face = Face(source_fps=25.0, face_px=200.0, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    measures = ClipMeasures(clip=clip, stopped_by=None, face=face, sync=shipped)
    window = Window(video=of, start_s=0.0, end_s=30.0)
    return window, MeasuredClip(measures, b"", features={"mouth": mouth, "bands": bands})


def store_of(path: Path, count: int) -> Store:
    store, rng = Store(str(path / "set")), np.random.default_rng(1)
    made = [traced(number, lag=4 if number == 2 else 0, rng=rng) for number in range(count)]
    part = Part(name="000000", windows=tuple(window for window, _ in made))
    stages.commit(PartResult(part, clips=[clip for _, clip in made]), store)
    return store


def test_enough_footage_is_scored_by_its_own_map(tmp_path: Path) -> None:
    store = store_of(tmp_path, 8)
    assert calibrate(store, read_committed(store))
    found = [clip.measures.sync for clip in read_calibrated(store).clips]
    assert [score.sync_method for score in found if score] == [ridge.DATASET] * 8
    # The mouth that comes four frames late is found, though it was among the teachers.
    assert [score.sync_offset_frames for score in found if score] == [0, 0, 4, 0, 0, 0, 0, 0]


def test_too_little_footage_keeps_the_shipped_scores(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3)
    assert not calibrate(store, read_committed(store))
    assert not store.exists(TABLE)
    assert {
        clip.measures.sync.sync_method for clip in read_calibrated(store).clips if clip.measures.sync
    } == {ridge.SHIPPED}


def test_nothing_is_scored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, 8)
    calibrate(store, read_committed(store))
    before = store.read(TABLE)
    monkeypatch.setattr(ridge, "score", lambda *_: pytest.fail("scored again"))
    assert calibrate(store, read_committed(store))
    assert store.read(TABLE) == before


def test_without_the_marker_the_table_does_not_count(tmp_path: Path) -> None:
    store = store_of(tmp_path, 8)
    calibrate(store, read_committed(store))
    store.delete(MARKER)
    assert {
        clip.measures.sync.sync_method for clip in read_calibrated(store).clips if clip.measures.sync
    } == {ridge.SHIPPED}
