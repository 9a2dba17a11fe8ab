"""The audio that a portrait speaks: reading it, and its speech features."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

from talkforge.curation.audio import speech_encoders
from talkforge.curation.audio.track import CANCELLED
from talkforge.curation.media.audio import promised_s, read_audio_file
from talkforge.curation.media.encode import CLIP_AUDIO_HZ
from talkforge.schemas.arrays import Floats
from talkforge.schemas.config import SpeechConfig
from talkforge.schemas.errors import CommandError, MediaError, ModelError
from talkforge.schemas.units import AUDIO_HZ, SPEECH_HZ, features_from_frames
from talkforge.training.data.batch import DatasetInfo, Windows
from talkforge.training.wan.alignment import windows_at

log = logging.getLogger(__name__)

PIECE_S, CONTEXT_S = 120, 10
"""Audio of up to `PIECE_S` is encoded as a whole, as clips are in curation. Longer audio is encoded in pieces
of this length, each with `CONTEXT_S` of audio on both sides, because the encoder's memory grows with the
length. Source: ours."""


MISSING_S = 0.5
"""Files from which more audio than this is missing are said to be damaged. Source: ours: encoders pad their
last frames, and some containers round."""


@dataclass(frozen=True)
class Sound:
    """Audio for a video.

    Attributes:
        stereo: 48 kHz, float32 [N, 2], -1..1.
        mono: the same at 16 kHz, float32 [N / 3].
    """

    stereo: Floats
    mono: Floats

    @property
    def duration_s(self) -> float:
        """Length, s."""
        return len(self.stereo) / CLIP_AUDIO_HZ

    def num_frames(self, fps: float) -> int:
        """Frames of a video that is as long. A last frame that is not full is counted."""
        return max(1, math.ceil(round(len(self.stereo) / CLIP_AUDIO_HZ * fps, 6)))


def read_sound(path: Path) -> Sound:
    """All audio of an audio or video file.

    More than two channels are mixed as curation mixes them. Where the channels of a stereo pair cancel out,
    the louder one is used.

    Args:
        path: of the file.

    Raises:
        CommandError: the file cannot be read or holds no audio.
    """
    try:
        if not path.is_file():
            raise CommandError(f"--audio {path}: no such file")
        if not path.stat().st_size:
            raise CommandError(f"--audio {path}: expected audio, found an empty file")
        stereo, promised = read_audio_file(path, CLIP_AUDIO_HZ, 2), promised_s(path)
    except (MediaError, OSError) as error:
        text = str(error).removeprefix(f"{path.name!r}: ").replace("a video file", "audio or video")
        raise CommandError(f"--audio {path}: {text}") from None
    if not len(stereo):
        raise CommandError(f"--audio {path}: expected audio, found none")
    found_s = len(stereo) / CLIP_AUDIO_HZ
    if promised is not None and promised - found_s > MISSING_S:
        log.warning(
            "%s: only %.2f of its %.2f s can be read: it is damaged or cut short", path, found_s, promised
        )
    power = (stereo.astype(np.float64) ** 2).mean(axis=0)
    mean = stereo.mean(axis=1)
    if power.max() > 0 and (mean.astype(np.float64) ** 2).mean() < CANCELLED * power.max():
        mean = stereo[:, int(power.argmax())]
        stereo = np.repeat(mean[:, None], 2, axis=1)
    return Sound(stereo, resample_poly(mean, 1, CLIP_AUDIO_HZ // AUDIO_HZ).astype(np.float32))


def stereo(samples: Floats) -> Floats:
    """16 kHz mono [N] as 48 kHz stereo [3 N, 2]."""
    mono = resample_poly(samples, CLIP_AUDIO_HZ // AUDIO_HZ, 1).astype(np.float32)
    return np.repeat(mono[:, None], 2, axis=1)


def encode_speech(mono: Floats, info: DatasetInfo) -> Tensor:
    """Speech features [L, D] float32 of the audio, by the encoder of the data set.

    There are as many as lie in the audio, and at least one. Nothing is added before the audio is encoded:
    silence behind it would change the features of all of it.

    Args:
        mono: 16 kHz, float32 [N].
        info: of the data set.

    Raises:
        ModelError: the encoder cannot be loaded, or has another width.
    """
    if not info.speech_model:
        raise ModelError("the checkpoint does not say which speech encoder its data set used")
    encoder = speech_encoders.load_speech_encoder(SpeechConfig(embedding=info.speech_model))
    if encoder.dim != info.speech_dim:
        raise ModelError(
            f"speech encoder {info.speech_model}: expected width {info.speech_dim}, found {encoder.dim}"
        )
    hop = AUDIO_HZ // SPEECH_HZ
    count = max(1, len(mono) // hop)
    if count <= PIECE_S * SPEECH_HZ:
        (features,) = encoder.encode([mono], [count])
        return torch.from_numpy(features.astype(np.float32))
    parts, context = [], CONTEXT_S * SPEECH_HZ
    for first in range(0, count, PIECE_S * SPEECH_HZ):
        last = min(first + PIECE_S * SPEECH_HZ, count)
        begin, end = max(0, first - context), min(count, last + context)
        samples = mono[begin * hop : end * hop if end < count else None]
        (features,) = encoder.encode([samples], [end - begin])
        parts.append(features[first - begin : last - begin].astype(np.float32))
    return torch.from_numpy(np.concatenate(parts))


@dataclass(frozen=True)
class SpeechTrack:
    """Speech features of a whole video, from which every window takes its own.

    Attributes:
        features_LD: float32, [L, D].
        fps: frames per second of the video.
        span_frames: frames of the spans that the model was trained on.
    """

    features_LD: Tensor
    fps: float
    span_frames: int

    def heard_by(self, latents: tuple[int, ...], stage: str) -> tuple[Tensor, Windows | None]:
        """Speech features [1, L, D] of a window of the video, and the audio window of each latent frame.

        Args:
            latents: numbers of the window's latent frames in the video. The first may stand apart.
            stage: 'frame': each latent frame hears what lies around it in the whole video. 'clip': all hear
                the audio of the latent frames after the first.
        """
        count = len(self.features_LD)
        if stage == "clip":
            frame = 4 * (latents[1] - 1) + 1 if len(latents) > 1 and latents[1] > 1 else 0
            end = features_from_frames(4 * latents[-1] + 1, self.fps)
            first = min(features_from_frames(frame, self.fps), count - 1)
            return self.features_LD[None, first : max(end, first + 1)], None
        trained = features_from_frames(self.span_frames, self.fps) / self.span_frames
        found = windows_at(latents, count, SPEECH_HZ / self.fps, trained)
        used = torch.unique(found.index_TW[found.valid_TW])
        index_TW = torch.searchsorted(used, found.index_TW) * found.valid_TW
        return self.features_LD[None, used], Windows(index_TW, found.valid_TW, found.position_TW)
