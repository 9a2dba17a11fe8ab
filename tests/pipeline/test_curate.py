"""Which models a run says that it uses."""

from __future__ import annotations

from pipeline.curate import model_uses
from schemas.config import MeasureConfig


def test_the_models_of_a_run_and_its_speech_encoder_are_named() -> None:
    config = {"sound": {"music": True}, "motion": {"body": "none"}, "identity": {"model": "none"}}
    uses, encoder = model_uses(MeasureConfig.model_validate(config))
    expected = ["centerface", "face_landmarker", "silero_vad", "fireredvad_aed", "logmel-80"]
    assert [use.name for use in uses][:-1] == expected  # the last is the map of sync
    assert (encoder.name, encoder.dim) == ("logmel-80", 80)
    uses, _ = model_uses(MeasureConfig.model_validate(config | {"sound": {"music": False}}))
    assert "fireredvad_aed" not in [use.name for use in uses]
