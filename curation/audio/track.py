"""Which audio of a video is used: one of several tracks, and one of two channels.

Some files carry several tracks of which the first is silent or in another language, and some carry stereo
whose channels are in opposite phase, so that their mean is silence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from talkforge.curation.audio import vad
from talkforge.curation.media import read_audio
from talkforge.curation.media.timeline_files import timeline_of
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Video
from talkforge.schemas.units import AUDIO_HZ

NUM_PROBES, PROBE_S = 3, 10.0
"""How much is listened to: so many pieces of so many seconds, spread over the video."""

CANCELLED = 0.05
"""A mean with less than this fraction of the louder channel's power is one whose channels cancel. Source:
ours; a voice on one side alone leaves a quarter, independent channels leave half."""


def choose_audio(path: Path, video: Video, wanted: int | None = None) -> Video:
    """The video with `audio_track` and `audio_channel` set.

    Of several tracks the one with the most speech is used, of equals the file's default one.

    Args:
        path: local copy of the video.
        video: what the probe found of it.
        wanted: the track that the user names, from 0. None: the one with the most speech.

    Raises:
        MediaError: reading fails, or there is no such track.
        ModelError: the weights of the voice activity detector are missing.
    """
    if wanted is not None and wanted >= video.audio_tracks:
        raise MediaError(f"{video.uri!r}: expected audio track {wanted}, found {video.audio_tracks} tracks")
    if not video.has_audio:
        return video
    video = video.model_copy(update={"audio_track": 0 if video.audio_tracks == 1 else wanted})
    if video.audio_tracks > 1 and video.audio_track is None:
        tracks = [video, *(video.model_copy(update={"audio_track": k}) for k in range(video.audio_tracks))]
        video = max(tracks, key=lambda one: (_speech_s(path, one), one.audio_track is None))
    if video.audio_tracks > 1:
        end_s = timeline_of(path, video.uri, video.audio_track).audio_end_s
        video = video.model_copy(update={"audio_end_s": end_s})
    return video.model_copy(update={"audio_channel": _channel(path, video)})


def _probes(path: Path, video: Video, channels: int) -> list[Floats]:
    """Pieces of the audio, at its beginning where it is short."""
    last_s = max(video.start_s, video.end_s - PROBE_S)
    starts_s = np.unique(np.linspace(video.start_s, last_s, NUM_PROBES).round(3))
    return [
        read_audio(path, video, float(at), min(float(at) + PROBE_S, video.end_s), AUDIO_HZ, channels)
        for at in starts_s
    ]


def _speech_s(path: Path, video: Video) -> float:
    """Seconds of speech in the probes, to a tenth, so that two equal tracks are equals."""
    pieces = [vad.segments(samples, 0.0) for samples in _probes(path, video, 1)]
    return round(sum(end_s - start_s for found in pieces for start_s, end_s in found), 1)


def _channel(path: Path, video: Video) -> str:
    """The louder channel where the mean of both is (nearly) silence, else "mix"."""
    if video.audio_channels == 1 and video.audio_tracks == 1:
        return "mix"
    both = np.concatenate(_probes(path, video, 2)).astype(np.float64)
    left, right = (both**2).mean(axis=0)
    mean = (both.mean(axis=1) ** 2).mean()
    if max(left, right) == 0 or mean >= CANCELLED * max(left, right):
        return "mix"
    return "left" if left >= right else "right"
