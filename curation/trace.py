"""The dense pass: every frame of the clips that passed the gates, decoded once.

It measures landmarks, lips, joints, image quality and face crops. Clips that overlap in time, because
several people are in view, share one decode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkforge.curation.body import motion, pose
from talkforge.curation.body.joints import PoseEstimator, no_joints
from talkforge.curation.clips import Candidate
from talkforge.curation.draw import thumbnail
from talkforge.curation.face import detail, eyes, identity, lips, quality
from talkforge.curation.face.covered import CoverTracer, MouthClassifier
from talkforge.curation.face.crops import FACE_CROP_PX, GREY_LEVEL, crop_face, smooth_boxes
from talkforge.curation.face.landmarks import FaceLandmarker, LandmarkTracer
from talkforge.curation.fingerprint import FrameHasher
from talkforge.curation.media import Frame, clip_indices, from_clip_px, read_frames, to_clip_px, uncropped
from talkforge.curation.picture.frozen import FrozenDetector
from talkforge.curation.picture.scorer import PictureScorer, PictureTracer
from talkforge.schemas.arrays import Bytes, Floats, Landmarks, LipTrace
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.records import (
    Clip,
    Eyes,
    Face,
    FaceQuality,
    FrameQuality,
    Lips,
    Motion,
    Rectangle,
    Speaker,
    Video,
)

log = logging.getLogger(__name__)

NUM_CROPS = 8
"""Number of aligned face crops of a clip, evenly spaced, for identity. The sharpest becomes its face
image."""

ScoreSpeaker = Callable[[Clip, Bytes], Speaker]
"""Scores the speaker of a clip from crops [F, 224, 224, 3] of the face, one for each frame of the clip. A
crop is grey where the video has no frame."""


@dataclass(frozen=True)
class Trace:
    """The result of the dense pass for one clip of F frames.

    Attributes:
        landmarks: face landmarks, blendshapes and head angles.
        lips: outline of the lips and its validity.
        joints: [F, J, 3] x, y in clip pixels and score, NaN where not visible.
        motion: motion of face and body, frame by frame.
        crops: aligned faces, uint8 [n, 112, 112, 3] with n at most `NUM_CROPS`.
        face_rgb: the sharpest of the crops, black if the face was never found.
        lips_row: measurements of the lips.
        motion_row: motion of face and body.
        quality_row: quality of the face image. None if the face was never found.
        picture_row: quality of the frames. None if it was not measured.
        speaker_row: scores of the speaker. None if they were not measured.
        eyes_row: gaze and blinks. None if the face was never found.
        thumbnail: the middle frame as JPEG, with face box and lips drawn in.
        frame_hashes: uint8 [K, 8], those of a `Fingerprint`.
        face_boxes: float32 [K, 4], those of a `Fingerprint`.
    """

    landmarks: Landmarks
    lips: LipTrace
    joints: Floats
    motion: motion.MotionTrace
    crops: Bytes
    face_rgb: Bytes
    lips_row: Lips
    motion_row: Motion
    quality_row: FaceQuality | None
    picture_row: FrameQuality | None
    speaker_row: Speaker | None
    eyes_row: Eyes | None
    thumbnail: bytes
    frame_hashes: Bytes
    face_boxes: Floats

    def measures(self, face: Face) -> dict[str, Any]:
        """The measurements by their field in `ClipMeasures`.

        Args:
            face: what the sparse pass measured of the face, to which head angles and visibility are added.
        """
        seen = self.landmarks.seen
        update: dict[str, Any] = {"face_seen_fraction": round(float(seen.mean()), 4)}
        if seen.any():
            yaw, pitch, roll = np.median(self.landmarks.angles_deg[seen], axis=0)
            update |= {
                "yaw_deg": round(float(yaw), 2),
                "pitch_deg": round(float(pitch), 2),
                "roll_deg": round(float(roll), 2),
                "yaw_p95_deg": round(float(np.percentile(np.abs(self.landmarks.angles_deg[seen, 0]), 95)), 2),
            }
        return {
            "face": face.model_copy(update=update),
            "lips": self.lips_row,
            "motion": self.motion_row,
            "quality": self.quality_row,
            "picture": self.picture_row,
            "speaker": self.speaker_row,
            "eyes": self.eyes_row,
        }


class _SpeakerCrops:
    """Collects the crops of one clip's face for `ScoreSpeaker`."""

    def __init__(self, clip: Clip, face: LandmarkTracer, score_speaker: ScoreSpeaker) -> None:
        self._clip = clip
        self._score = score_speaker
        self._boxes = smooth_boxes(np.stack([face.box_at(k) for k in range(clip.num_frames)]))
        self._crops = np.full((clip.num_frames, FACE_CROP_PX, FACE_CROP_PX, 3), GREY_LEVEL, np.uint8)

    def push(self, shown: range, rgb: Bytes) -> None:
        self._crops[shown.start : shown.stop] = crop_face(rgb, self._boxes[shown[0]])

    def finish(self) -> Speaker:
        return self._score(self._clip, self._crops)


@dataclass
class _ClipTracer:
    """The tracers of one clip, its aligned crops and its middle frame."""

    clip: Clip
    whole: Clip
    """The same clip without its crop."""
    video: Video
    face: LandmarkTracer
    body: pose.PoseTracer | None
    speaker: _SpeakerCrops | None
    picture: PictureTracer | None
    hasher: FrameHasher
    frozen: FrozenDetector
    cover: CoverTracer | None
    crops: list[Bytes] = field(default_factory=list)
    faces: list[Bytes] = field(default_factory=list)
    middle: Bytes | None = None

    def push(self, shown: range, frame: Frame, rgb: Bytes) -> None:
        """Measure one decoded frame, of which the clip shows `rgb` at its indices `shown`."""
        points = self.face.push(shown, rgb)
        clip = self.clip
        if self.body is not None and not self.face.lost:  # without a face nothing says whose body it is
            self.body.push(shown, rgb, self.face.box_at(shown[0]))
        if self.speaker is not None:
            self.speaker.push(shown, rgb)
        if self.picture is not None:
            self.picture.push(shown, rgb, points)
        self._hash(shown, frame, rgb)
        self.frozen.push(shown, rgb)
        if self.cover is not None:
            self.cover.push(shown, rgb, points)
        wanted = len(self.crops) * clip.num_frames // NUM_CROPS
        if points is not None and shown[-1] >= wanted and len(self.crops) < NUM_CROPS:
            self.crops.append(identity.align(rgb, points))
            self.faces.append(detail.face_crop(rgb, points))
        if clip.num_frames // 2 in shown:
            self.middle = rgb.copy()

    def _hash(self, shown: range, frame: Frame, rgb: Bytes) -> None:
        """Hash the whole frame: copies of a video must be known by it, wherever their clips were cropped."""
        if self.clip.crop is None:
            self.hasher.push(shown, rgb, self.face.box_at(shown[0]))
        elif self.hasher.is_due(shown):
            box = from_clip_px(self.face.box_at(shown[0]), self.clip, self.video)
            self.hasher.push(shown, frame.of_clip(self.whole), to_clip_px(box, self.whole, self.video))

    def finish(self, config: MeasureConfig) -> Trace:
        """The measurements of the clip, after its last frame."""
        landmarks = self.face.finish()
        covered = self.cover.finish(landmarks.angles_deg[:, 0]) if self.cover else None
        trace = lips.trace(landmarks, config.lips, covered)
        joints = self.body.finish() if self.body else no_joints(self.clip.num_frames)
        camera = self.body.camera() if self.body else None
        motion_row, motions = motion.measure(landmarks, joints, camera, self.clip)
        crops = np.stack(self.crops) if self.crops else np.zeros((0, 112, 112, 3), np.uint8)
        rows = [quality.measure(crop) for crop in crops]
        best = int(np.argmax([row.face_blur for row in rows])) if rows else None
        of_face = None
        if best is not None:
            resolved = {"face_detail_px": detail.detail_px(self.faces)}
            of_face = quality.of_clip(rows, best).model_copy(update=resolved)
        return Trace(
            landmarks=landmarks,
            lips=trace,
            joints=joints,
            motion=motions,
            crops=crops,
            face_rgb=np.zeros((112, 112, 3), np.uint8) if best is None else crops[best],
            lips_row=lips.measure(trace, self.clip).model_copy(
                update={"mouth_covered_fraction": _fraction(covered, landmarks)}
            ),
            motion_row=motion_row.model_copy(update={"frozen_fraction": self.frozen.finish()}),
            quality_row=of_face,
            picture_row=self.picture.finish() if self.picture else None,
            speaker_row=self.speaker.finish() if self.speaker else None,
            eyes_row=eyes.measure(landmarks, self.clip.fps),
            thumbnail=self._thumbnail(trace),
            frame_hashes=self.hasher.hashes,
            face_boxes=self.hasher.face_boxes,
        )

    def _thumbnail(self, trace: LipTrace) -> bytes:
        k = self.clip.num_frames // 2
        if self.middle is None:
            return b""
        contour = trace.contour[k] if trace.valid[k] else None
        return thumbnail(self.middle, box=self.face.box_at(k), contour=contour)


def _fraction(covered: NDArray[np.bool_] | None, landmarks: Landmarks) -> float | None:
    seen = landmarks.seen
    return None if covered is None or not seen.any() else round(float(covered[seen].mean()), 4)


def trace(
    path: Path,
    video: Video,
    candidates: Sequence[Candidate],
    landmarker: FaceLandmarker,
    pose_estimator: PoseEstimator | None,
    config: MeasureConfig,
    score_speaker: ScoreSpeaker | None = None,
    picture_scorer: PictureScorer | None = None,
    mouth_classifier: MouthClassifier | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Trace | Exception]:
    """Run the dense pass over the clips. Clips that overlap share one decode.

    Args:
        path: local copy of the video.
        video: what the probe found of it.
        candidates: clips of this video with their tracks, ascending in start.
        landmarker: finds the face landmarks.
        pose_estimator: finds the body joints. None: the body is not measured.
        config: settings of every measurement.
        score_speaker: called once for each clip, after its last frame. None: the speaker is not scored.
        picture_scorer: scores the image quality. None: it is not measured.
        mouth_classifier: tells covered mouths from clear ones. None: covers are not looked for.
        on_progress: called for each frame with its time, source seconds.

    Returns:
        By clip id, the measurements, or the error that stopped them. An error stops every clip that
        shares its decode.
    """
    results: dict[str, Trace | Exception] = {}

    def tracer_of(candidate: Candidate) -> _ClipTracer:
        return _tracer(
            candidate,
            video,
            landmarker,
            pose_estimator,
            config,
            score_speaker,
            picture_scorer,
            mouth_classifier,
        )

    for group in overlapping(candidates):
        try:
            results |= _trace_group(path, video, group, tracer_of, config, on_progress)
        except Exception as error:
            log.debug("trace of %s", group[0].clip.clip_id, exc_info=True)
            results |= {clip.clip_id: error for clip, _ in group}
    return results


def overlapping(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Groups of clips that overlap in time. One decode serves a group."""
    group: list[Candidate] = []
    end_s = 0.0
    for candidate in candidates:
        clip = candidate.clip
        if group and clip.start_s >= end_s - 1e-9:
            yield group
            group = []
        end_s = max(end_s, clip.end_s) if group else clip.end_s
        group.append(candidate)
    if group:
        yield group


def _trace_group(
    path: Path,
    video: Video,
    group: Sequence[Candidate],
    tracer_of: Callable[[Candidate], _ClipTracer],
    config: MeasureConfig,
    on_progress: Callable[[float], None],
) -> dict[str, Trace | Exception]:
    waiting = [tracer_of(candidate) for candidate in group]
    results: dict[str, Trace | Exception] = {}
    start_s = group[0].clip.start_s
    end_s = max(clip.end_s for clip, _ in group)
    for frame in read_frames(path, video, start_s, end_s):
        for tracer in [t for t in waiting if t.clip.end_s <= frame.time_s]:
            results[tracer.clip.clip_id] = tracer.finish(config)
            waiting.remove(tracer)
        _push(waiting, frame)
        on_progress(frame.time_s)
    return results | {tracer.clip.clip_id: tracer.finish(config) for tracer in waiting}


def _tracer(
    candidate: Candidate,
    video: Video,
    landmarker: FaceLandmarker,
    pose_estimator: PoseEstimator | None,
    config: MeasureConfig,
    score_speaker: ScoreSpeaker | None,
    picture_scorer: PictureScorer | None,
    mouth_classifier: MouthClassifier | None,
) -> _ClipTracer:
    clip, track = candidate
    face = LandmarkTracer(landmarker, track, clip, video)
    boxes = np.stack([face.box_at(k) for k in range(clip.num_frames)])
    return _ClipTracer(
        clip,
        uncropped(clip, video, config.clip.longest_edge_px),
        video,
        face,
        pose.PoseTracer(pose_estimator, clip, config.motion.pose_stride_frames) if pose_estimator else None,
        _SpeakerCrops(clip, face, score_speaker) if score_speaker else None,
        PictureTracer(picture_scorer, clip) if picture_scorer else None,
        FrameHasher(clip.num_frames, clip.fps),
        FrozenDetector(clip.num_frames, clip.fps, boxes),
        CoverTracer(mouth_classifier, clip.num_frames) if mouth_classifier else None,
    )


def _push(tracers: Sequence[_ClipTracer], frame: Frame) -> None:
    rgb: dict[Rectangle | None, Bytes] = {}
    for tracer in tracers:
        clip = tracer.clip
        shown = clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if shown:
            if clip.crop not in rgb:
                rgb[clip.crop] = frame.of_clip(clip)
            tracer.push(shown, frame, rgb[clip.crop])
