"""Which track and which channel is heard, on files made of a real sentence."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talkforge.curation.audio.track import choose_audio
from talkforge.curation.media import read_audio
from talkforge.curation.media.audio import read_audio_file
from talkforge.curation.media.probe import probe
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input, Video
from tests.conftest import CLIPS

HZ = 48_000


@pytest.fixture(scope="module")
def speech() -> Floats:
    """float32 [N] at 48 kHz: one sentence."""
    return read_audio_file(CLIPS / "grid_bbaf2n.mpg", HZ)


def written(path: Path, *tracks: Floats) -> Video:
    """A video of one second's black frames for each second, with these stereo tracks [N, 2]."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = [container.add_stream("pcm_s16le", rate=HZ, layout="stereo") for _ in tracks]
        packets = []
        for k in range(round(len(tracks[0]) / HZ * 25)):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = k
            packets += video.encode(frame)
        packets += video.encode(None)
        for stream, samples in zip(streams, tracks, strict=True):
            pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="stereo")
            frame.sample_rate, frame.time_base, frame.pts = HZ, Fraction(1, HZ), 0
            packets += [*stream.encode(frame), *stream.encode(None)]
        for packet in packets:
            container.mux(packet)
    return probe(path, Input(uri=path.name), "a" * 64)


def both(left: Floats, right: Floats) -> Floats:
    return np.stack([left, right], axis=1)


def test_the_track_with_speech_is_used(tmp_path: Path, speech: Floats) -> None:
    silence, tone = np.zeros_like(speech), 0.3 * np.sin(np.arange(len(speech)) / 20).astype(np.float32)
    path = tmp_path / "a.mkv"
    video = written(path, both(silence, silence), both(tone, tone), both(speech, speech))
    chosen = choose_audio(path, video)
    assert (chosen.audio_tracks, chosen.audio_track, chosen.audio_channel) == (3, 2, "mix")
    heard = read_audio(path, chosen, 0, 2.5)
    assert np.corrcoef(heard, read_audio_file(CLIPS / "grid_bbaf2n.mpg")[: len(heard)])[0, 1] > 0.99


def test_the_user_may_name_another(tmp_path: Path, speech: Floats) -> None:
    silence = np.zeros_like(speech)
    path = tmp_path / "a.mkv"
    video = written(path, both(silence, silence), both(speech, speech))
    assert not read_audio(path, choose_audio(path, video, 0), 0, 2.5).any()
    with pytest.raises(MediaError, match=r"^'a.mkv': expected audio track 2, found 2 tracks$"):
        choose_audio(path, video, 2)


def test_of_equal_tracks_the_default_one_is_used(tmp_path: Path, speech: Floats) -> None:
    path = tmp_path / "a.mkv"
    video = written(path, both(speech, speech), both(speech, speech))
    assert choose_audio(path, video).audio_track is None


@pytest.mark.parametrize(
    ("left", "right", "channel"),
    [(1.0, -1.0, "left"), (0.5, -0.52, "right"), (1.0, 0.0, "mix"), (0.7, 0.7, "mix"), (0.0, 0.0, "mix")],
)
def test_one_channel_is_heard_where_both_cancel(
    left: float, right: float, channel: str, tmp_path: Path, speech: Floats
) -> None:
    path = tmp_path / "a.mkv"
    chosen = choose_audio(path, written(path, both(left * speech, right * speech)))
    assert (chosen.audio_track, chosen.audio_channel) == (0, channel)
    loud = max(abs(left), abs(right)) * (0.5 if right == 0 else 1)
    heard = read_audio(path, chosen, 0, 2.5)
    assert np.abs(heard).max() == pytest.approx(
        loud * np.abs(speech[: round(2.5 * HZ)]).max(), rel=0.05, abs=1e-3
    )
    stereo = read_audio(path, chosen, 0, 2.5, channels=2)
    assert channel == "mix" or np.array_equal(stereo[:, 0], stereo[:, 1])
