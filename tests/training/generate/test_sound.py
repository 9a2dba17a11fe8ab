"""Reading audio, and speech features as training has them."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.schemas.errors import CommandError, ModelError
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.generate import sound
from talkforge.training.generate.sound import SpeechTrack, encode_speech, read_sound
from talkforge.training.wan.alignment import gather_windows, windows
from tests.training.batches import some_info
from tests.training.speakers import tone

INFO = some_info(speech_dim=80, identity_dim=0)


def write_wav(path: Path, samples: np.ndarray, hz: int = 16_000) -> Path:
    """A WAV file of samples [N, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def sine(duration_s: float, hz: int, tone_hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * tone_hz * np.arange(round(duration_s * hz)) / hz)


@pytest.mark.parametrize(("duration_s", "frames"), ((2.0, 50), (2.001, 51), (0.5, 13), (0.01, 1)))
def test_a_video_is_as_long_as_its_audio_to_the_frame(tmp_path: Path, duration_s: float, frames: int) -> None:
    assert read_sound(tone(tmp_path / "a.wav", duration_s)).num_frames(25.0) == frames


def test_features_are_those_of_curation(tmp_path: Path) -> None:
    heard = read_sound(tone(tmp_path / "tone.wav", 0.2))
    features = encode_speech(heard.mono, INFO)
    assert features.shape == (10, 80) and features.dtype == torch.float32
    (stored,) = LogMelEncoder().encode([sound.read_audio_file(tmp_path / "tone.wav")], [10])
    loudest = stored.astype(np.float32) > 0.25  # a resampler's leakage is 60 dB below
    assert loudest.any(axis=1).all()
    assert np.abs(features.numpy() - stored)[loudest].max() < 0.0125


def test_audio_is_encoded_once_and_without_silence_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Counting(LogMelEncoder):
        def encode(self, clips, num_features):  # type: ignore[no-untyped-def]
            calls.append((len(clips[0]), num_features[0]))
            return super().encode(clips, num_features)

    monkeypatch.setattr(sound.speech_encoders, "load_speech_encoder", lambda _: Counting())
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 5 + 100).astype(np.float32)
    whole = encode_speech(noise, INFO)
    assert calls == [(80_100, 250)] and whole.shape == (250, 80)
    # Audio that is too long for that is encoded in pieces with context.
    monkeypatch.setattr(sound, "PIECE_S", 2)
    monkeypatch.setattr(sound, "CONTEXT_S", 1)
    calls.clear()
    assert torch.equal(encode_speech(noise, INFO)[3:-3], whole[3:-3])
    assert calls == [(48_000, 150), (64_100, 200), (32_100, 100)]
    assert encode_speech(noise[:100], INFO).shape == (1, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech_model": ""}, "does not say which speech encoder"),
        ({"speech_dim": 12}, "^speech encoder logmel-80: expected width 12, found 80$"),
    ],
)
def test_other_speech_features_are_refused(changes: dict[str, object], message: str) -> None:
    info = DatasetInfo(**{**vars(INFO), **changes})
    with pytest.raises(ModelError, match=message):
        encode_speech(np.zeros(1000, np.float32), info)


def test_channels_that_cancel_are_not_silence(tmp_path: Path) -> None:
    voice = sine(0.5, 48_000)
    path = write_wav(tmp_path / "a.wav", np.stack([voice, -voice], axis=1), 48_000)
    found = read_sound(path)
    assert np.abs(found.stereo[:, 0] - voice).max() < 1e-3
    assert np.array_equal(found.stereo[:, 0], found.stereo[:, 1])
    assert float(found.mono.std()) == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize(("hz", "layout"), ((96_000, "mono"), (48_000, "5.1"), (8_000, "stereo")))
def test_any_rate_and_number_of_channels_is_read(tmp_path: Path, hz: int, layout: str) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=hz, layout=layout)
        channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
        samples = np.repeat((sine(0.5, hz) * 32767).astype(np.int16)[:, None], channels, axis=1)
        one = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        one.sample_rate = hz
        file.mux(stream.encode(one))
        file.mux(stream.encode(None))
    found = read_sound(tmp_path / "a.wav")
    assert abs(len(found.stereo) - 24_000) <= 2 and found.num_frames(25.0) in (12, 13)
    spectrum = np.abs(np.fft.rfft(found.mono[1000:7000]))
    assert np.argmax(spectrum) * 16_000 / 6000 == pytest.approx(440, abs=3)


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("none.wav", r"^--audio .*none\.wav: no such file$"),
        ("empty.wav", r"^--audio .*empty\.wav: expected audio, found an empty file$"),
        ("words.wav", r"^--audio .*words\.wav: expected audio or video, found "),
        ("header.wav", r"^--audio .*header\.wav: expected audio, found none$"),
        (".", r"^--audio .*: no such file$"),
    ),
)
def test_what_holds_no_audio_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "words.wav").write_text("words")
    write_wav(tmp_path / "header.wav", np.zeros((0, 1)))
    with pytest.raises(CommandError, match=message) as caught:
        read_sound(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", (".flac", ".mp3"))
def test_a_file_that_is_cut_short_is_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    whole = tmp_path / f"whole{suffix}"
    with av.open(str(whole), "w") as file:
        stream = file.add_stream(suffix[1:], rate=16_000, layout="mono")
        for number, part in enumerate(np.split(sine(3.2, 16_000), 32)):
            samples = (part * 32767).astype(np.int16)[None]
            one = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            one.sample_rate, one.pts = 16_000, number * samples.shape[1]
            for frame in av.AudioResampler(stream.format.name, "mono", 16_000).resample(one):
                frame.pts = one.pts
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING):
        assert read_sound(whole).duration_s == pytest.approx(3.2, abs=0.1)
        assert not caplog.messages
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        found = read_sound(cut)
    assert found.duration_s < 2
    said = f"only {found.duration_s:.2f} of its 3.2"
    assert [
        said in text and text.endswith("s can be read: it is damaged or cut short")
        for text in caplog.messages
    ][-1]


# --------------------------------------------------------------------------- windows of a long video


def test_each_latent_frame_hears_what_it_would_hear_in_a_span_of_its_own() -> None:
    track = SpeechTrack(torch.arange(400.0)[:, None].repeat(1, 2), 25.0, 21)
    speech, found = track.heard_by((0, 12, 13, 14, 15, 16), "frame")
    assert found is not None and len(speech[0]) < 60  # features of the window alone
    heard = gather_windows(speech, found)[0, :, :, 0]
    span = gather_windows(track.features_LD[None, 88:130], windows(42, 21))[0, :, :, 0]
    assert heard[4].tolist() == span[4].tolist()  # latent frame 15 is number 4 of the span from frame 44 on
    first = gather_windows(track.features_LD[None, :42], windows(42, 21))[0, 0, :, 0]
    assert heard[0].tolist() == first.tolist()


def test_beyond_the_end_of_the_audio_there_is_nothing() -> None:
    track = SpeechTrack(torch.arange(1.0, 41.0)[:, None], 25.0, 21)
    speech, found = track.heard_by((0, 1, 2, 3, 4, 5), "frame")
    assert found is not None
    assert found.valid_TW.sum(1).tolist() == [6, 14, 17, 17, 17, 11]
    assert gather_windows(speech, found)[0, 5, :, 0].tolist() == [*map(float, range(30, 41)), *[0.0] * 6]


def test_in_stage_1_a_window_hears_its_own_span() -> None:
    track = SpeechTrack(torch.arange(400.0)[:, None], 25.0, 21)
    speech, found = track.heard_by((0, 1, 2, 3, 4, 5), "clip")
    assert found is None and speech[0, :, 0].tolist() == list(range(42))
    speech, _ = track.heard_by((0, 12, 13, 14, 15, 16), "clip")
    assert speech[0, :, 0].tolist() == list(range(90, 130))  # frames 45 to 64
