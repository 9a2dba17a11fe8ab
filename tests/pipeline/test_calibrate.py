"""Sync is scored again where the parts were measured by another scorer, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation.sync import contrastive
from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES
from talkforge.curation.sync.phones import NUM_PHONES
from talkforge.pipeline import stages
from talkforge.pipeline.calibrate import MARKER, TABLE, calibrate, read_calibrated
from talkforge.pipeline.ledger import read_committed
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config
from talkforge.schemas.records import Clip, ClipMeasures, Face, Sync, clip_id
from tests.records import video

FRAMES, OLD = 100, "ridge-shipped-v1"


def traced(number: int, method: str) -> tuple[Window, MeasuredClip]:
    """A 4 s clip with the score that `method` gave it."""
    rng = np.random.default_rng(number)
    of = video(number, seconds=4.0)
    clip = Clip(
        clip_id=clip_id(of.video_id, 0, 4, 0), video_id=of.video_id, uri=of.uri, scene=0, track=0,
        start_s=0.0, end_s=4.0, fps=25.0, num_frames=FRAMES, width_px=64, height_px=64,
    )  # fmt: skip
    before = Sync(sync_method=method, sync_offset_frames=None, sync_confidence=None, sync_zero_confidence=0.0)
    face = Face(source_fps=25.0, face_px=200.0, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    measures = ClipMeasures(clip=clip, stopped_by=None, face=face, sync=before)
    features = {
        "mouth": rng.normal(size=(FRAMES, NUM_MEASURES)).astype(np.float32),
        "bands": rng.normal(size=(FRAMES, NUM_BANDS)).astype(np.float32),
    }
    if method != OLD:
        features["phones"] = rng.normal(size=(FRAMES, NUM_PHONES)).astype(np.float16)
    window = Window(video=of, start_s=0.0, end_s=4.0)
    return window, MeasuredClip(measures, b"", features=features)


def store_of(path: Path, *methods: str) -> Store:
    store = Store(str(path / "set"))
    made = [traced(number, method) for number, method in enumerate(methods)]
    part = Part(name="000000", windows=tuple(window for window, _ in made))
    stages.commit(PartResult(part, clips=[clip for _, clip in made]), store)
    return store


def test_clips_of_an_earlier_version_are_scored_by_this_one(tmp_path: Path) -> None:
    """They have no phones, and so are scored from what they have."""
    scorer = contrastive.Scorer.load(contrastive.BANDS_ONLY_PATH)
    store = store_of(tmp_path, OLD, OLD)
    assert calibrate(store, read_committed(store), Config())
    for clip in read_committed(store).clips:
        expected = contrastive.score(clip.features["mouth"], clip.features["bands"], 25.0, scorer)
        (found,) = [
            other.measures.sync
            for other in read_calibrated(store).clips
            if other.measures.clip.clip_id == clip.measures.clip.clip_id
        ]
        assert found == expected and found.sync_probability is not None


@pytest.mark.parametrize("path", [contrastive.WEIGHTS_PATH, contrastive.BANDS_ONLY_PATH])
def test_clips_with_a_score_of_their_scorer_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    if path == contrastive.BANDS_ONLY_PATH:
        monkeypatch.setattr(f"{__name__}.OLD", contrastive.Scorer.load(path).name)
    store = store_of(tmp_path, contrastive.Scorer.load(path).name)
    assert not calibrate(store, read_committed(store), Config())
    assert not store.exists(TABLE)
    assert [
        clip.measures.sync.sync_zero_confidence for clip in read_calibrated(store).clips if clip.measures.sync
    ] == [0.0]


def test_nothing_is_scored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, OLD)
    calibrate(store, read_committed(store), Config())
    before = store.read(TABLE)
    monkeypatch.setattr(contrastive, "score", lambda *_: pytest.fail("scored again"))
    assert calibrate(store, read_committed(store), Config())
    assert store.read(TABLE) == before


def test_without_the_marker_the_table_does_not_count(tmp_path: Path) -> None:
    store = store_of(tmp_path, OLD)
    calibrate(store, read_committed(store), Config())
    store.delete(MARKER)
    methods = {clip.measures.sync.sync_method for clip in read_calibrated(store).clips if clip.measures.sync}
    assert methods == {OLD}


@pytest.mark.parametrize("damaged", [b'{"stat', b"[]", b"{}"])
def test_a_damaged_marker_does_not_count(tmp_path: Path, damaged: bytes) -> None:
    store = store_of(tmp_path, OLD)
    store.write(MARKER, damaged)
    assert calibrate(store, read_committed(store), Config())


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its rows lack the columns that came later."""
    import pyarrow as pa

    from talkforge.pipeline import tables

    store = store_of(tmp_path, OLD)
    (clip,) = read_committed(store).clips
    old = {
        "sync_method": "ridge-dataset-v1",
        "sync_offset_frames": 2,
        "sync_confidence": 4.5,
        "sync_zero_confidence": 1.0,
    }
    rows = [{"clip_id": clip.measures.clip.clip_id, "sync": old}]
    store.write(TABLE, tables.to_bytes(pa.Table.from_pylist(rows)))
    store.write(MARKER, b'{"state": "of then"}')
    (found,) = read_calibrated(store).clips
    assert found.measures.sync == Sync(**old)
    assert calibrate(store, read_committed(store), Config())
    (found,) = read_calibrated(store).clips
    assert found.measures.sync is not None and found.measures.sync.sync_method == "contrastive-v1"
