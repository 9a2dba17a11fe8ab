"""Phones of the audio: the right ones at the right instants, of any audio and at any frame rate."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.media import probe
from talkforge.curation.sync import phones
from talkforge.curation.sync.phones import FLOOR, NUM_PHONES, PHONES, PhoneRecogniser
from talkforge.schemas.arrays import Floats
from talkforge.schemas.records import Input
from tests.conftest import RealClip

SENTENCES = {
    "grid_bbaf2n.mpg": "b ɪ n b l u æ t ɛ f t u n aʊ",  # bin blue at f two now
    "grid_brbk7n.mpg": "b ɪ n ɹ ɛ d b aɪ k eɪ s ɛ v ə n n aʊ",  # bin red by k seven now
    "grid_id2_swwp2s.mpg": "s ɛ t w aɪ t w ɪ θ p i t u s u n",  # set white with p two soon
    "grid_lrwp9a.mpg": "l eɪ ɹ ɛ d w ɪ θ p i n aɪ n ə g ɛ n",  # lay red with p nine again
}


@pytest.fixture(scope="module")
def recogniser() -> PhoneRecogniser:
    return PhoneRecogniser()


def audio(path: str, real_clip: RealClip) -> Floats:
    file = real_clip(path)
    video = probe.probe(file, Input(uri=str(file)), probe.content_hash(file))
    return media.read_audio(file, video, 0.0, video.end_s)


@pytest.mark.parametrize("name", list(SENTENCES))
def test_a_sentence_is_heard(name: str, real_clip: RealClip, recogniser: PhoneRecogniser) -> None:
    samples = audio(name, real_clip)
    found = recogniser.measure(samples, 150, 50.0)
    assert found.shape == (150, NUM_PHONES) and found.dtype == np.float16
    assert found.min() >= FLOOR and found.max() <= 0
    # Interpolated logarithms are those of the geometric mean, which is at most the mean.
    assert np.exp(found[:, :-1].astype(float)).sum(axis=1).max() < 1.05
    spoken = np.flatnonzero(found[:, -1] < np.log(0.5))
    best = [PHONES[k] for k in found[spoken, :-1].argmax(axis=1)]
    heard = [p for k, p in enumerate(best) if p != "<wb>" and (not k or p != best[k - 1])]
    alike = {other: SequenceMatcher(None, heard, words.split()).ratio() for other, words in SENTENCES.items()}
    assert max(alike, key=alike.__getitem__) == name, alike
    assert alike[name] > 0.6, heard


def test_phones_follow_the_audio_at_every_rate(real_clip: RealClip, recogniser: PhoneRecogniser) -> None:
    samples = audio("grid_bbaf2n.mpg", real_clip)
    late = np.concatenate([np.zeros(6400, np.float32), samples])  # 400 ms
    own, moved = (recogniser.measure(one, 70, 25.0)[:, -1].astype(float) for one in (samples, late))
    lags = {lag: np.abs(own[: 60 - lag] - moved[lag:60]).mean() for lag in range(16)}
    assert min(lags, key=lags.__getitem__) == 10
    fast = recogniser.measure(samples, 140, 50.0)[::2, -1].astype(float)
    assert np.abs(fast[:70] - own).mean() < 0.3 * own.std()


def test_long_audio_is_taken_in_chunks_that_do_not_show(
    real_clip: RealClip, recogniser: PhoneRecogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = audio("grid_brbk7n.mpg", real_clip)
    whole = recogniser.measure(samples, 74, 25.0)
    monkeypatch.setattr(phones, "CHUNK_S", 1.0)
    pieces = recogniser.measure(samples, 74, 25.0)
    spoken = whole[:, -1] < np.log(0.5)
    same = whole[spoken, :-1].argmax(axis=1) == pieces[spoken, :-1].argmax(axis=1)
    assert pieces.shape == whole.shape and same.mean() > 0.8


@pytest.mark.parametrize("count", [0, 100, 5000])
def test_short_audio_and_silence_have_phones_too(count: int, recogniser: PhoneRecogniser) -> None:
    found = recogniser.measure(np.zeros(count, np.float32), 50, 25.0)
    assert found.shape == (50, NUM_PHONES) and np.isfinite(found.astype(float)).all()
    assert recogniser.measure(np.zeros(count, np.float32), 0, 25.0).shape == (0, NUM_PHONES)


def test_the_weights_are_those_that_sync_was_fitted_with() -> None:
    assert phones.weights_sha256() == "a9fcfe73e179ca48e399cd76a90a6b3e1887bf5037ecc52b778d13a149563328"
