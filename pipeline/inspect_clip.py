"""A video of one clip, with its measurements drawn in (`talkforge inspect`) or plain (`talkforge view`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from talkforge.curation import media
from talkforge.curation.draw import Curves, Marks, loudness_dbfs, mouth_opening, overlay
from talkforge.schemas.arrays import Bytes, ClipArrays
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.records import Clip, Video

log = logging.getLogger(__name__)

INSPECT_CRF = 20
INSPECT_PRESET = "veryfast"
INSPECT_HZ = 48_000


def inspect(clip: Clip, arrays: ClipArrays, video: Video, path: Path, out: Path) -> None:
    """Write an mp4 of the clip with box, landmarks, lip mask and joints, and below it the mouth's
    opening, the loudness and the validity of the lip contour with a moving cursor.

    Args:
        clip: the clip to show.
        arrays: stored measurements of `clip`, in its pixels and frames.
        video: what its container says.
        path: a local copy of the video.
        out: mp4 to write.

    Raises:
        DatasetError: `arrays` are not of this clip.
        MediaError: the clip's span cannot be decoded any more.
    """
    if len(arrays.landmarks) != clip.num_frames:
        raise DatasetError(
            f"{clip.clip_id}: expected arrays of {clip.num_frames} frames, found {len(arrays.landmarks)}"
        )
    mono = media.read_audio(path, video, clip.start_s, clip.end_s)
    curves = Curves(
        opening=mouth_opening(arrays.landmarks),
        loudness_dbfs=loudness_dbfs(mono, clip.num_frames, clip.fps),
        valid=arrays.lip_valid,
        fps=clip.fps,
    )
    audio = None
    if video.has_audio:
        audio = media.read_audio(path, video, clip.start_s, clip.end_s, hz=INSPECT_HZ, channels=2)
    frames = _overlaid(clip, arrays, video, path, curves)
    media.encode_mp4(out, frames, clip.fps, audio, crf=INSPECT_CRF, preset=INSPECT_PRESET)
    log.info("%s: %d frames written to %s", clip.clip_id, clip.num_frames, out)


def write_plain(clip: Clip, video: Video, path: Path, out: Path, shift_s: float = 0.0) -> None:
    """Write an mp4 of the clip as it is, for looking at; samples of shards are cut by `pipeline.cut`.

    Args:
        clip: the clip to show.
        video: what its container says.
        path: a local copy of the video.
        out: mp4 to write.
        shift_s: seconds by which the audio is moved; positive: delayed.

    Raises:
        MediaError: the clip's span cannot be decoded any more.
    """
    audio = None
    if video.has_audio:
        begin_s, end_s = clip.start_s - shift_s, clip.end_s - shift_s
        audio = media.read_audio(path, video, begin_s, end_s, hz=INSPECT_HZ, channels=2)
    frames = _frames(clip, video, path)
    media.encode_mp4(out, frames, clip.fps, audio, crf=INSPECT_CRF, preset=INSPECT_PRESET)


def _overlaid(clip: Clip, arrays: ClipArrays, video: Video, path: Path, curves: Curves) -> Iterator[Bytes]:
    """Every frame of the clip with its marks, in order."""
    for k, rgb in enumerate(_frames(clip, video, path)):
        yield overlay(rgb, _marks(arrays, k), curves, k)


def _frames(clip: Clip, video: Video, path: Path) -> Iterator[Bytes]:
    """Every frame of the clip, in order."""
    shown = 0
    for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
        indices = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if not indices:
            continue
        rgb = frame.of_clip(clip)
        for _ in indices:
            yield rgb
        shown += len(indices)
    if shown != clip.num_frames:
        raise MediaError(f"{clip.clip_id}: expected {clip.num_frames} frames in {path.name}, found {shown}")


def _marks(arrays: ClipArrays, frame: int) -> Marks:
    landmarks = arrays.landmarks[frame]
    box = np.concatenate([landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)])
    return Marks(
        box=box,
        landmarks=landmarks,
        contour=arrays.contour[frame],
        joints=arrays.joints[frame],
        valid=int(arrays.lip_valid[frame]),
    )
