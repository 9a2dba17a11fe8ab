"""What the stages leave in the ledger of a data set that was really measured."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from talkforge.curation.audio import speech_encoders
from talkforge.curation.face import identity
from talkforge.pipeline import jobs, stages, tables, timelines
from talkforge.pipeline.dataset import load_dataset, load_ingested, load_plan
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.ingest import stamp_of
from talkforge.pipeline.ledger import thumbnails
from talkforge.pipeline.parts import Left, Part, windows_of
from talkforge.pipeline.store import Store
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.records import LedgerRow
from tests.conftest import Curated


def test_the_sound_of_every_traced_clip_is_measured(measured: Curated) -> None:
    rows = [
        row
        for row in tables.read(Store(str(measured.dataset)), "ledger.parquet", LedgerRow)
        if row.stopped_by is None
    ]
    assert len(rows) == 2
    for row in rows:
        assert row.bandwidth_hz is not None and 1000 < row.bandwidth_hz <= 8000
        assert row.music_fraction == 0.0
        assert row.dnsmos_overall is None  # was not asked for


def test_the_data_set_says_what_its_speech_features_are(measured: Curated) -> None:
    dataset = load_dataset(Store(str(measured.dataset)))
    assert (dataset.speech_encoder, dataset.speech_dim) == ("logmel-80", 80)


def test_the_picture_of_every_traced_clip_is_measured(measured: Curated) -> None:
    rows = [
        row
        for row in tables.read(Store(str(measured.dataset)), "ledger.parquet", LedgerRow)
        if row.stopped_by is None
    ]
    assert len(rows) == 2
    for row in rows:
        assert row.black_bar_fraction == 0
        assert row.face_dark_fraction is not None and row.face_dark_fraction < 0.3
        assert row.face_bright_fraction is not None and row.face_bright_fraction < 0.1
        asked = (row.face_brisque, row.text_fraction, row.mouth_text_fraction, row.mouth_hand_fraction)
        assert asked == (None, None, None, None)


def test_every_traced_clip_has_a_picture_of_its_face(measured: Curated) -> None:
    store = Store(str(measured.dataset))
    look_up = thumbnails(store)
    for row in tables.read(store, "ledger.parquet", LedgerRow):
        picture, face = look_up(row.clip_id), look_up(f"{row.clip_id}/face")
        assert picture is not None
        assert (face is not None) == (row.stopped_by is None)
        if face is not None:
            assert Image.open(io.BytesIO(face)).size == (112, 112)
    assert look_up("nobody/face") is None


def test_models_are_loaded_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    monkeypatch.setattr(speech_encoders, "load_speech_encoder", lambda _: loads.append("encoder"))
    monkeypatch.setattr(identity, "load_embedder", lambda *_: loads.append("embedder"))
    stages.load_encoders.cache_clear()
    try:
        for _ in range(3):
            stages.load_encoders(MeasureConfig().model_dump_json())
    finally:
        stages.load_encoders.cache_clear()
    assert loads == ["encoder", "embedder"]
    assert stages.load_models.cache_parameters() == {"maxsize": 1, "typed": False}


def test_a_file_that_changed_since_it_was_hashed_is_not_measured(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in load_ingested(Store(str(measured.dataset))) if row.input.uri.endswith("a.mp4"))
    assert row.video is not None
    copy, seen = tmp_path / "a.mp4", []
    shutil.copyfile(row.input.uri, copy)
    video = row.video.model_copy(update={"uri": str(copy)})
    stamps = {video.video_id: stamp_of(str(copy))}
    part = Part(name="000000", windows=tuple(windows_of(video, 600)), stamps=stamps)
    monkeypatch.setattr(stages, "load_models", lambda _: None)
    monkeypatch.setattr(stages, "_measure_window", lambda path, *_: seen.append(path))
    store = Store(str(tmp_path / "set"))
    assert stages.measure(part, MeasureConfig(), store).failures == []
    os.utime(copy, ns=(1, 1))  # the same content
    assert stages.measure(part.alone(part.windows[0]), MeasureConfig(), store).failures == []
    assert seen == [copy, copy]
    shutil.copyfile(measured.videos / "b.mp4", copy)
    (failure,) = stages.measure(part, MeasureConfig(), store).failures
    assert failure.message.startswith(f"{str(copy)!r}: the file has changed since it was measured")
    assert seen == [copy, copy]


def test_a_remote_video_is_fetched_once_for_each_of_its_windows(
    measured: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in load_ingested(Store(str(measured.dataset))) if row.input.uri.endswith("a.mp4"))
    assert row.video is not None
    fsspec.filesystem("memory").pipe_file("/footage/a.mp4", Path(row.input.uri).read_bytes())
    video, fetched = row.video.model_copy(update={"uri": "memory://footage/a.mp4"}), []
    copy = timelines.local_copy
    monkeypatch.setattr(timelines, "local_copy", lambda uri, *a: fetched.append(uri) or copy(uri, *a))
    monkeypatch.setattr(stages, "load_models", lambda _: None)
    monkeypatch.setattr(stages, "_measure_window", lambda path, *_: path.stat())
    part = Part(name="000000", windows=tuple(windows_of(video, video.duration_s / 3)), stamps={})
    assert stages.measure(part, MeasureConfig(), Store(str(tmp_path / "set"))).failures == []
    assert fetched == [video.uri] * 3


def test_a_run_hands_the_state_of_the_files_to_its_parts(
    measured: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, parts = Store(str(measured.dataset)), list[Part]()

    class Executor(InlineExecutor):
        def run(self, todo: Iterable[Part], *_: Any) -> Iterator[Any]:
            parts.extend(todo)
            yield from ()

    monkeypatch.setattr(jobs, "left_of", lambda plan, *_: Left((), plan, 0.0))
    jobs.measure(load_plan(store), store, load_dataset(store).config, Executor())
    found = {key: stamp for part in parts for key, stamp in part.stamps.items()}
    rows = [row for row in load_ingested(store) if row.video is not None]
    assert found == {row.video.video_id: stamp_of(row.input.uri) for row in rows if row.video}
    assert all(set(part.stamps) == {window.video.video_id for window in part.windows} for part in parts)
    piece, _ = Part(name="n", windows=parts[0].windows * 2, stamps=parts[0].stamps).halves()
    assert piece.stamps == parts[0].stamps
    assert "stamps" not in tables.arrow_schema(Part).names
