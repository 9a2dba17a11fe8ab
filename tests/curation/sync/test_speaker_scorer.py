"""Which networks are used, and what they make of a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from talkforge.curation.face.crops import to_asd
from talkforge.curation.sync import active_speaker, speaker_scorer
from talkforge.curation.sync.speaker_scorer import SpeakerScorer, speech_mask
from talkforge.curation.sync.syncnet import SyncScore
from talkforge.curation.weights import registry
from talkforge.schemas.config import SpeakerConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Clip, Speaker
from talkforge.schemas.units import AUDIO_HZ

BOTH = SpeakerConfig(active_speaker=True, syncnet=True)

CLIP = Clip(
    clip_id="c", video_id="v", uri="a.mp4", scene=0, track=0, start_s=10.0, end_s=10.2, fps=25.0,
    num_frames=5, width_px=64, height_px=64,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of Light-ASD, as if they were the published ones."""
    torch.manual_seed(0)
    torch.save(active_speaker._light_asd().state_dict(), tmp_path / "random.model")
    monkeypatch.setattr(registry, "weights", {"light_asd": tmp_path / "random.model"}.__getitem__)


@pytest.mark.usefixtures("here")
def test_nothing_is_used_unless_it_is_asked_for() -> None:
    assert speaker_scorer.load(SpeakerConfig()) is None


def test_what_is_asked_for_and_absent_is_named() -> None:
    with pytest.raises(ModelError, match=r"light_asd: no package carries lightasd_finetuning_TalkSet"):
        speaker_scorer.load(BOTH)


@pytest.mark.usefixtures("here")
def test_what_is_asked_for_and_here_is_used() -> None:
    scorer = speaker_scorer.load(SpeakerConfig(active_speaker=True))
    assert scorer is not None
    assert scorer.light_asd is not None
    assert scorer.syncnet is None
    crops = np.random.default_rng(3).integers(0, 256, (5, 224, 224, 3), np.uint8)
    samples = np.random.default_rng(4).normal(0, 0.1, 3200).astype(np.float32)
    scores = scorer.light_asd.score(np.stack([to_asd(crop) for crop in crops]), samples)
    found = scorer.measure(CLIP, crops, samples, [(10.04, 11.0)])
    assert found.speaking_fraction == float((scores[1:] > 0).mean())
    assert (found.sync_c, found.sync_d, found.sync_net_offset_frames) == (None, None, None)
    assert scorer.measure(CLIP, crops, samples, []).speaking_fraction is None


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / registry.MODELS["syncnet_v2"].file).write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"syncnet_v2: .*: expected sha256 961e8696"):
        speaker_scorer.load(SpeakerConfig(syncnet=True))


def test_what_syncnet_says_is_kept() -> None:
    class Net:
        def score(self, crops: np.ndarray, samples: np.ndarray, fps: float) -> SyncScore | None:
            assert (crops.shape, fps) == ((5, 224, 224, 3), 25.0)
            return SyncScore(6.5, 7.25, -3) if len(samples) == AUDIO_HZ else None

    scorer = SpeakerScorer(None, Net())  # type: ignore[arg-type]
    crops = np.zeros((5, 224, 224, 3), np.uint8)
    assert scorer.measure(CLIP, crops, np.zeros(AUDIO_HZ, np.float32), []) == Speaker(
        speaking_fraction=None, sync_c=6.5, sync_d=7.25, sync_net_offset_frames=-3
    )
    assert scorer.measure(CLIP, crops, np.zeros(1, np.float32), []).sync_c is None


def test_speech_is_heard_at_the_instants_of_its_frames() -> None:
    assert speech_mask(CLIP, [(0.0, 10.04), (10.1, 10.16)]).tolist() == [True, False, False, True, False]
    assert speech_mask(CLIP, []).tolist() == [False] * 5
