"""What the stages leave in the ledger of a data set that was really measured."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from talkforge.curation.audio import speech_encoders
from talkforge.curation.face import identity
from talkforge.pipeline import stages, tables
from talkforge.pipeline.dataset import load_dataset
from talkforge.pipeline.ledger import thumbnails
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
    monkeypatch.setattr(identity, "load_embedder", lambda _: loads.append("embedder"))
    stages.load_encoders.cache_clear()
    try:
        for _ in range(3):
            stages.load_encoders(MeasureConfig().model_dump_json())
    finally:
        stages.load_encoders.cache_clear()
    assert loads == ["encoder", "embedder"]
    assert stages.load_models.cache_parameters() == {"maxsize": 1, "typed": False}
