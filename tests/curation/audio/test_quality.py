"""Sounds of known ratio and bandwidth, and real clips whose sound is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.audio import quality, vad
from talkforge.curation.audio.quality import AudioScorer, bandwidth_hz, snr_db
from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.schemas.config import AudioQualityConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import AudioQuality, Input
from talkforge.schemas.units import AUDIO_HZ
from tests.conftest import Packaged, RealClip

WITH_DNSMOS = AudioQualityConfig(dnsmos=True)


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * AUDIO_HZ))
    return (level * samples).astype(np.float32)


def band_limited(limit_hz: float) -> np.ndarray:
    spectrum = np.fft.rfft(noise(2, 0.1))
    spectrum[np.fft.rfftfreq(2 * AUDIO_HZ, 1 / AUDIO_HZ) > limit_hz] = 0
    return np.fft.irfft(spectrum).astype(np.float32)


def heard(path: Path) -> tuple[np.ndarray, list[tuple[float, float]]]:
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    samples = media.read_audio(path, video, video.start_s, video.end_s)
    return samples, vad.segments(samples, 0.0)


@pytest.fixture(scope="module")
def scorer() -> AudioScorer:
    try:
        return AudioScorer(WITH_DNSMOS)
    except ModelError as error:
        pytest.skip(str(error))


# --- signal and noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio_db", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("start_s", [0.0, 7.5])
def test_the_ratio_of_speech_to_the_pauses_around_it(ratio_db: float, start_s: float) -> None:
    samples = noise(4, 0.01)
    samples[AUDIO_HZ : 3 * AUDIO_HZ] += noise(2, 0.01 * 10 ** (ratio_db / 20), seed=1)
    found = snr_db(samples, [(start_s + 1, start_s + 3)], start_s)
    assert found == pytest.approx(ratio_db, abs=0.3)


def test_a_cough_in_a_pause_is_not_the_noise() -> None:
    samples = noise(4, 0.01)
    samples[2 * AUDIO_HZ :] += noise(2, 0.1, seed=1)
    quiet = snr_db(samples, [(2, 4)], 0)
    samples[AUDIO_HZ // 2 : AUDIO_HZ] = noise(0.5, 0.5, seed=2)
    assert quiet is not None
    assert snr_db(samples, [(2, 4)], 0) == pytest.approx(quiet, abs=0.5)


def test_without_speech_or_with_too_little_of_it_and_of_pauses_the_ratio_is_unknown() -> None:
    samples = noise(3, 0.1)
    assert snr_db(samples, [], 0) is None
    assert snr_db(samples[:0], [(0, 3)], 0) is None
    short = samples[: AUDIO_HZ * 9 // 10]
    assert snr_db(short, [(0, 0.9)], 0) is None
    assert snr_db(short, [(0.15, 0.75)], 0) is None  # what is left is as near to speech as breath


def syllables(seconds: float) -> np.ndarray:
    """Sound without a pause, of unit power: eight bands of noise in turn, each for 0.1 s."""
    spectrum = np.fft.rfft(noise(seconds, 1.0, seed=3))
    band = np.minimum(np.fft.rfftfreq(round(seconds * AUDIO_HZ), 1 / AUDIO_HZ) // 1000, 7)
    heard_band = np.arange(round(seconds * AUDIO_HZ)) // (AUDIO_HZ // 10) % 8
    bands = [np.fft.irfft(np.where(band == k, spectrum, 0)) * (heard_band == k) for k in range(8)]
    samples: np.ndarray = np.sum(bands, axis=0)
    return (samples / samples.std()).astype(np.float32)


@pytest.mark.parametrize("ratio_db", [0.0, 5.0, 10.0, 20.0])
@pytest.mark.parametrize("start_s", [0.0, 7.5])
def test_without_pauses_the_floor_of_the_spectrum_is_the_noise(ratio_db: float, start_s: float) -> None:
    samples = 0.1 * (syllables(4) + noise(4, 10 ** (-ratio_db / 20), seed=4))
    assert snr_db(samples, [(start_s, start_s + 4)], start_s) == pytest.approx(ratio_db, abs=2.0)


def test_speech_that_was_not_detected_is_not_the_noise() -> None:
    samples = 0.1 * (syllables(4) + noise(4, 0.1, seed=4))
    assert snr_db(samples, [(0, 2)], 0) == pytest.approx(20, abs=2.5)  # by the pauses it would be none


@pytest.mark.parametrize("ratio_db", [0.0, 10.0])
def test_real_speech_without_its_pauses(real_clip: RealClip, ratio_db: float) -> None:
    samples, spans = heard(real_clip("grid_id2_swwp2s.mpg"))
    spoken = np.concatenate([samples[int(a * AUDIO_HZ) : int(b * AUDIO_HZ)] for a, b in spans])
    level = float(spoken.std()) * 10 ** (-ratio_db / 20)
    mixed = spoken + noise(len(spoken) / AUDIO_HZ, level)
    assert snr_db(mixed, [(0, len(spoken) / AUDIO_HZ)], 0) == pytest.approx(ratio_db, abs=2.5)


def test_the_ratio_stays_within_its_range() -> None:
    samples = noise(4, 0.1)
    assert snr_db(samples * np.repeat([0, 1], 2 * AUDIO_HZ).astype(np.float32), [(2, 4)], 0) == 100.0
    assert snr_db(samples * np.repeat([1, 0], 2 * AUDIO_HZ).astype(np.float32), [(2, 4)], 0) == -20.0


# --- bandwidth -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_hz", [1000, 3400, 5500])
def test_the_bandwidth_is_where_the_sound_ends(limit_hz: float) -> None:
    assert bandwidth_hz(band_limited(limit_hz)) == pytest.approx(limit_hz, abs=200)


def test_bandwidth_of_everything_and_of_nothing() -> None:
    assert bandwidth_hz(noise(2, 0.1)) == 8000
    assert bandwidth_hz(np.zeros(AUDIO_HZ, np.float32)) is None
    assert bandwidth_hz(noise(0.01, 0.1)) is None


# --- DNSMOS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "signal", "background", "overall"),
    [("st_katie.mp4", 3.451, 3.545, 2.942), ("grid_lrwp9a.mpg", 3.254, 3.941, 2.935)],
)
def test_scores_are_those_of_the_published_script(
    scorer: AudioScorer,
    real_clip: RealClip,
    monkeypatch: pytest.MonkeyPatch,
    clip: str,
    signal: float,
    background: float,
    overall: float,
) -> None:
    """What speechmos 0.0.1.1 says of the same samples."""
    monkeypatch.setattr(quality, "DNSMOS_HOP_S", 1.0)
    found = scorer.measure(*heard(real_clip(clip)), 0.0)
    assert found.dnsmos_signal == pytest.approx(signal, abs=0.005)
    assert found.dnsmos_background == pytest.approx(background, abs=0.005)
    assert found.dnsmos_overall == pytest.approx(overall, abs=0.005)


def test_noise_lowers_the_ratio_and_the_background_score(scorer: AudioScorer, real_clip: RealClip) -> None:
    samples, spans = heard(real_clip("grid_id2_swwp2s.mpg"))
    clean = scorer.measure(samples, spans, 0.0)
    noisy = scorer.measure(samples + noise(len(samples) / AUDIO_HZ, 0.05), spans, 0.0)
    assert clean.snr_db is not None and noisy.snr_db is not None
    assert clean.snr_db > 25 > 15 > noisy.snr_db
    assert clean.dnsmos_background is not None and noisy.dnsmos_background is not None
    assert clean.dnsmos_background > 4 > 2.5 > noisy.dnsmos_background


def test_a_noisy_stage_scores_below_a_studio(scorer: AudioScorer, real_clip: RealClip) -> None:
    stage = scorer.measure(*heard(real_clip("fr_hamilton.mp4")), 0.0).dnsmos_overall
    studio = scorer.measure(*heard(real_clip("grid_brbk7n.mpg")), 0.0).dnsmos_overall
    assert stage is not None and studio is not None
    assert stage < 2 < studio


def test_silence_has_no_scores(scorer: AudioScorer) -> None:
    found = scorer.measure(np.zeros(3 * AUDIO_HZ, np.float32), [], 0.0)
    assert found == AudioQuality(
        snr_db=None, bandwidth_hz=None, dnsmos_signal=None, dnsmos_background=None, dnsmos_overall=None,
        music_fraction=0.0,
    )  # fmt: skip


def test_another_model_is_refused(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = packaged("centerface")
    monkeypatch.setattr(registry, "weights", lambda _: other)
    with pytest.raises(ModelError, match=r"dnsmos: \S+centerface\.onnx: expected input \[any, 144160\]"):
        AudioScorer(WITH_DNSMOS)
    page = tmp_path / "page.onnx"
    page.write_text("<html>Not found</html>")
    monkeypatch.setattr(registry, "weights", lambda _: page)
    with pytest.raises(ModelError, match=r"dnsmos: \S+page\.onnx: is not an ONNX model that runs"):
        AudioScorer(WITH_DNSMOS)


def test_music_is_measured_where_it_is_asked_for(real_clip: RealClip) -> None:
    try:
        scorer = AudioScorer(AudioQualityConfig(music=True))
    except ModelError as error:
        pytest.skip(str(error))
    found = scorer.measure(*heard(real_clip("lp_s18.mp4")), 0.0)
    assert (found.music_fraction, found.dnsmos_overall) == (pytest.approx(0.968, abs=0.005), None)


def test_without_models_no_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise AssertionError(name)

    monkeypatch.setattr(registry, "weights", refuse)
    samples = noise(2, 0.1)
    samples[:AUDIO_HZ] = 0
    found = AudioScorer(AudioQualityConfig(music=False)).measure(samples, [(0.0, 1.0)], 0.0)
    assert (found.snr_db, found.bandwidth_hz, found.dnsmos_overall) == (-20.0, 8000.0, None)
