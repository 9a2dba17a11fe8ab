"""Rows of what was measured in a window: pure functions that `stages.py` calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkforge.curation import clips, scan
from talkforge.curation.audio import vad
from talkforge.curation.media import height_scale
from talkforge.curation.verdict import gate
from talkforge.pipeline.parts import Window
from talkforge.schemas.arrays import Audio, FaceTrack, Floats
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.errors import kind_of, one_line
from talkforge.schemas.records import Clip, ClipMeasures, Face, Failure, Outcome, Track, Video, WindowOutcome
from talkforge.schemas.units import samples_from_frames, samples_from_seconds

Spans = Sequence[clips.Segment]


@dataclass(frozen=True)
class HeardWindow:
    """A window's audio, and where speech is in it."""

    video: Video
    audio: Audio
    segments: Spans


@dataclass(frozen=True)
class ScannedWindow(HeardWindow):
    """A window after the cheap questions, with what was scanned."""

    seen: scan.Scan


def cheap_measures(
    clip: Clip, track: FaceTrack, scanned: ScannedWindow, config: MeasureConfig
) -> ClipMeasures:
    """What the scan and the voice detector say of a clip, and the gate that stops it, if one does."""
    face = _face(clip, track, scanned)
    samples = clip_audio(scanned.audio, clip)
    speech = vad.measure(samples, scanned.segments, clip.start_s, clip.end_s)
    height_px = face.face_px * height_scale(clip, scanned.video)
    stopped_by = gate(clip.duration_s, speech.speech_fraction, height_px, config)
    return ClipMeasures(clip=clip, stopped_by=stopped_by, face=face, speech=speech)


def _face(clip: Clip, track: FaceTrack, scanned: ScannedWindow) -> Face:
    inside = (track.times_s >= clip.start_s) & (track.times_s < clip.end_s)
    if not inside.any():  # between two samples: the nearest one speaks for it
        middle_s = (clip.start_s + clip.end_s) / 2
        inside = np.arange(len(track.times_s)) == np.argmin(np.abs(track.times_s - middle_s))
    heights_px = (track.boxes[:, 3] - track.boxes[:, 1])[inside]
    face_px, detections = float(np.median(heights_px)), scanned.seen.detections
    return Face(
        source_fps=scanned.video.fps,
        face_px=round(face_px, 2),
        face_clip_px=round(face_px * height_scale(clip, scanned.video), 2),
        face_confidence=round(float(track.scores[inside].mean(dtype=np.float64)), 4),
        face_confidence_min=round(float(track.scores[inside].min()), 4),
        # The clip's own face counts where two samples in a row never show it.
        faces_max=max(1, scan.faces_visible(detections, clip.start_s, clip.end_s, clip.crop)),
        faces_frame_max=max(1, scan.faces_visible(detections, clip.start_s, clip.end_s)),
    )


def track_arrays(clip: Clip, track: FaceTrack) -> dict[str, NDArray[Any]]:
    """What tracing a clip later needs of its track: the samples inside it, and one on either side.

    Returns:
        `track_times` float64 [T], source seconds, and `track_boxes` float32 [T, 4], source pixels.
    """
    first = max(int(np.searchsorted(track.times_s, clip.start_s, "right")) - 1, 0)
    last = int(np.searchsorted(track.times_s, clip.end_s, "left"))
    inside = slice(first, last + 1)
    return {"track_times": track.times_s[inside], "track_boxes": track.boxes[inside]}


def stored_track(clip: Clip, arrays: Mapping[str, NDArray[Any]]) -> FaceTrack:
    """The track of a clip from its `track_arrays`: its boxes within the clip are what they were."""
    times_s = arrays["track_times"]
    return FaceTrack(
        scene=clip.scene,
        track=clip.track,
        start_s=clip.start_s,
        end_s=clip.end_s,
        times_s=times_s,
        boxes=arrays["track_boxes"],
        scores=np.ones(len(times_s), np.float32),
        detector="",
    )


def clip_audio(audio: Audio, clip: Clip) -> Floats:
    """The clip's samples [N], N exactly what `units` says of its frames; silence beyond the ends."""
    count = samples_from_frames(clip.num_frames, clip.fps)
    first = samples_from_seconds(clip.start_s - audio.start_s)
    piece = audio.samples[max(first, 0) : max(first + count, 0)]
    before = min(max(-first, 0), count)
    return np.pad(piece, (before, count - before - len(piece))).astype(np.float32)


def track_row(video: Video, track: FaceTrack) -> Track:
    """The table row of a track."""
    return Track(
        video_id=video.video_id,
        scene=track.scene,
        track=track.track,
        start_s=track.start_s,
        end_s=track.end_s,
        num_samples=len(track.times_s),
        face_px=float(np.median(track.boxes[:, 3] - track.boxes[:, 1])),
        face_confidence=float(track.scores.mean(dtype=np.float64)),
        detector=track.detector,
    )


def outcome_row(
    window: Window,
    outcome: WindowOutcome,
    speech_spans: Spans = (),
    face_spans: Spans = (),
) -> Outcome:
    """What became of a window; overlapping faces count once."""
    return Outcome(
        video_id=window.video.video_id,
        start_s=window.start_s,
        end_s=window.end_s,
        outcome=outcome,
        speech_s=seconds(speech_spans),
        face_s=seconds(clips.union(face_spans)),
    )


def seconds(spans: Spans) -> float:
    """Total length of the spans, s."""
    return float(sum(end_s - start_s for start_s, end_s in spans))


def failure_row(stage: str, key: str, video: Video, error: BaseException) -> Failure:
    """The row of an error, its message in one line."""
    return Failure(
        stage=stage,
        key=key,
        video_id=video.video_id,
        uri=video.uri,
        error=type(error).__name__,
        message=one_line(error),
        kind=kind_of(error),
    )
