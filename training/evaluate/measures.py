"""What one video shows: landmarks, identity, motion and sharpness of the speaker, and how the sound fits.

Frames and sound are measured apart (`trace_frames`, `with_sound`), so that other sound on the same frames
costs little. Every network that is used here comes with a package.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from talkforge.curation.audio import vad
from talkforge.curation.body.motion import RIGID_POINTS
from talkforge.curation.face import detail, eyes, identity, mouth_motion, quality
from talkforge.curation.face.detect import FaceDetector, load_detector
from talkforge.curation.face.landmarks import FaceLandmarker, LandmarkTracer
from talkforge.curation.picture.frozen import FrozenDetector
from talkforge.curation.sync import contrastive, phones
from talkforge.curation.sync.features import audio_bands, mouth_measures
from talkforge.curation.sync.phones import PhoneRecogniser
from talkforge.curation.weights import registry
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import Bytes, Doubles, FaceTrack, Floats, Landmarks
from talkforge.schemas.config import IdentityConfig, ScanConfig
from talkforge.schemas.records import Clip, Video

log = logging.getLogger(__name__)

MIN_EDGE_PX = 256
"""Frames whose shorter edge is less are enlarged to this before faces are looked for, generated and true ones
alike. Source: ours. At 64 px the landmarker misses three of four generated faces."""

FLOW_EDGE_PX = 128
"""Shorter edge of the frames whose optical flow is measured."""

_FARNEBACK = (0.5, 3, 15, 2, 7, 1.5, 0)
"""Scale, levels, window, iterations, neighbourhood, its sigma, flags. Farnebäck's flow is near zero on a
plain wall: 0.4 % of the height a second behind real speakers, where DIS finds 4 %, which is noise."""

LOOKS_PER_S = 2.0
"""How often a face is looked for, and the person is told from the background, per second."""

NUM_CROPS = 8
"""Aligned faces of a video, evenly spaced, for identity and sharpness."""

SILENCE_MARGIN_S = 0.12
"""A frame is silent where speech is at least so far away, s: lips close and open around words."""

MIN_SILENT_FRAMES = 5
"""Least number of silent frames with a face, for the opening in silence."""

BELONGS = 0.5
"""Least probability that mouth and audio belong together, at whatever delay, for the delay to be told."""

MIN_SEEN = 0.5
"""Least fraction of the frames with a face, for blinks to be counted: they are rare and short."""

Values = dict[str, float | None]
"""Measures by the name of their metric; None: could not be measured."""


@dataclass(frozen=True)
class Models:
    """The networks of the measures that need no download.

    Attributes:
        detector: detects faces.
        landmarker: finds landmarks.
        segment: pose landmarker with a mask of the person, by MediaPipe.
        scorer: scores sync.
        phones: recognises phones, for the scorer.
        embedder: face embedder, or None where there is none.
    """

    detector: FaceDetector
    landmarker: FaceLandmarker
    segment: object
    scorer: contrastive.Scorer
    phones: PhoneRecogniser
    embedder: identity.Embedder | None

    @classmethod
    def load(cls, embedder: str = "auto") -> Models:
        """Load them.

        Args:
            embedder: as `identity.model` of the configuration of curation: a name, auto or none.

        Raises:
            ModelError: weights are missing or altered.
        """
        return cls(
            load_detector(ScanConfig()),
            FaceLandmarker(registry.weights("face_landmarker")),
            load_task("PoseLandmarker", registry.pose_task(), num_poses=1, output_segmentation_masks=True),
            contrastive.Scorer.load(),
            PhoneRecogniser(),
            identity.load_embedder(IdentityConfig(model=embedder)),
        )

    def described(self) -> list[dict[str, str]]:
        """Name, sha256 and licence of each network, for the report."""
        names = ["centerface", "face_landmarker", "pose_landmark_full", "silero_vad"]
        names += [self.embedder.name] if self.embedder else []
        found = [registry.MODELS[name] for name in names]
        rows = [{"name": one.name, "sha256": one.sha256, "licence": one.licence} for one in found]
        sync = hashlib.sha256(contrastive.WEIGHTS_PATH.read_bytes()).hexdigest()
        rows.append({"name": self.scorer.name, "sha256": sync, "licence": "Apache-2.0 (of this package)"})
        return [*rows, {"name": phones.NAME, "sha256": phones.weights_sha256(), "licence": phones.LICENCE}]


@dataclass(frozen=True)
class VideoTrace:
    """What the frames of one video show. F frames.

    Attributes:
        fps: frames per second.
        landmarks: of the face, at the size at which it was measured.
        boxes: [F, 4] of the face, in pixels of the frames as they were given.
        identities: [n, D] of unit length, of the aligned faces; empty without an embedder.
        places: for each of them where in the video it is, 0..1.
        values: measures that need no sound.
        scale: pixels in which the landmarks are, for each of the frames' own.
    """

    fps: float
    landmarks: Landmarks
    boxes: Floats
    identities: Floats
    places: Doubles
    values: Values
    scale: float = 1.0

    @property
    def points_px(self) -> Floats:
        """Landmarks [F, 478, 3] in pixels of the frames as they were given; NaN without a face."""
        return np.asarray(self.landmarks.points / np.float32(self.scale))

    @property
    def opening(self) -> Doubles:
        """Opening between the lips [F], in distances of the outer eye corners; NaN without a face."""
        return mouth_motion.opening(self.landmarks)


def trace_frames(
    frames: Iterable[Bytes], num_frames: int, fps: float, models: Models, fallback: Floats | None = None
) -> VideoTrace:
    """Measure the frames of one video. They are read twice, so that memory does not grow with length.

    Args:
        frames: uint8 RGB [H, W, 3] each; an iterable that can be begun anew.
        num_frames: how many they are.
        fps: frames per second.
        models: the networks.
        fallback: [F', 4] boxes of the face of the other video of the pair, for a video in which the detector
            finds none.
    """
    found = _look(frames, fps, models)
    height_px, width_px = found.size
    scale = max(1.0, MIN_EDGE_PX / min(height_px, width_px))
    clip, video = _records(round(width_px * scale), round(height_px * scale), num_frames, fps)
    track = found.track(num_frames / fps, fallback, fps)
    empty = np.zeros((0, 0), np.float32)
    if track is None:
        nothing = Landmarks(
            np.full((num_frames, 478, 3), np.nan, np.float32),
            np.full((num_frames, 52), np.nan, np.float32),
            np.full((num_frames, 3), np.nan, np.float32),
        )
        values = {**found.flows.values(), "face_seen_fraction": 0.0}
        return VideoTrace(fps, nothing, np.zeros((0, 4), np.float32), empty, np.zeros(0), values)
    boxes = np.stack([track.box_at(k / fps) for k in range(num_frames)])
    scaled = FaceTrack(
        0, 0, track.start_s, track.end_s, track.times_s, track.boxes * scale, track.scores, track.detector
    )
    tracer = LandmarkTracer(models.landmarker, scaled, clip, video)
    frozen = FrozenDetector(num_frames, fps, boxes)
    crops: list[Bytes] = []
    faces: list[Bytes] = []
    places: list[float] = []
    for k, rgb in enumerate(frames):
        large = _enlarged(rgb, clip.width_px, clip.height_px)
        points = tracer.push(k, large)
        frozen.push(range(k, k + 1), rgb)
        if points is not None and k >= len(crops) * num_frames / NUM_CROPS and len(crops) < NUM_CROPS:
            crops.append(identity.align(large, points))
            faces.append(detail.face_crop(large, points))
            places.append(k / num_frames)
    landmarks = tracer.finish()
    values = {
        **found.flows.values(),
        **_of_landmarks(landmarks, fps),
        "frozen_fraction": frozen.finish(),
        "sharpness": float(np.median([quality.measure(one).face_blur for one in crops])) if crops else None,
        "face_detail_px": detail.detail_px(faces) if faces else None,
    }
    if values["face_detail_px"]:
        values["face_detail_px"] /= scale
    vectors = models.embedder.embed(np.stack(crops)) if models.embedder and crops else empty
    return VideoTrace(fps, landmarks, boxes, vectors, np.array(places), values, scale)


def with_sound(trace: VideoTrace, samples: Floats | None, models: Models) -> Values:
    """Measures of a video that need its sound.

    Args:
        trace: of the frames.
        samples: float32 [N] at 16 kHz, sample 0 at frame 0. None: there is no sound.
        models: the networks.
    """
    names = ("sync_probability", "av_delay_ms", "silence_opening", "still_fraction")
    values: Values = dict.fromkeys(names)
    frames = len(trace.landmarks.points)
    if samples is None or not frames:
        return values
    sync = contrastive.score(
        mouth_measures(trace.landmarks),
        audio_bands(samples, frames, trace.fps),
        trace.fps,
        models.scorer,
        models.phones.measure(samples, frames, trace.fps),
    )
    values["sync_probability"] = sync.sync_probability
    if sync.sync_offset_frames is not None and (sync.sync_offset_probability or 0) >= BELONGS:
        values["av_delay_ms"] = round(sync.sync_offset_frames / trace.fps * 1000, 1)
    speaking = mouth_motion.frames_with_speech(vad.segments(samples, 0.0), 0.0, frames, trace.fps)
    opening = trace.opening
    values["still_fraction"] = mouth_motion.still_fraction(opening, speaking, trace.fps)
    values["silence_opening"] = silence_opening(opening, speaking, trace.fps)
    return values


def silence_opening(opening: Doubles, speaking: NDArray[np.bool_], fps: float) -> float | None:
    """Mean opening of the mouth in silence, % of the distance of the outer eye corners.

    Args:
        opening: [F] of `mouth_motion.opening`.
        speaking: bool [F], the frames with speech.
        fps: frames per second.

    Returns:
        None with fewer than `MIN_SILENT_FRAMES` such frames.
    """
    margin = max(1, round(SILENCE_MARGIN_S * fps))
    near = binary_dilation(speaking, iterations=margin) if speaking.any() else speaking
    used = ~near & np.isfinite(opening)
    return round(float(100 * opening[used].mean()), 3) if used.sum() >= MIN_SILENT_FRAMES else None


def jitter(points: Doubles) -> float | None:
    """Tremble of points from frame to frame, in thousandths of the distance of the outer eye corners.

    A point that stands still and is located with independent errors of variance s² has second differences of
    variance 6 s². Steady motion has none. The result is s, for x and y together: the median over time, so
    that fast nods do not count.

    Args:
        points: [F, P, 2 or more] landmarks; NaN without a face.

    Returns:
        None with fewer than 5 triples of frames with a face.
    """
    eyes_px = np.linalg.norm(points[:, 33, :2] - points[:, 263, :2], axis=1)
    rigid = points[:, RIGID_POINTS, :2]
    second = rigid[2:] - 2 * rigid[1:-1] + rigid[:-2]
    power = (second**2).sum(axis=2).mean(axis=1) / 6 / np.maximum(eyes_px[1:-1], 1e-6) ** 2
    power = power[np.isfinite(power)]
    return round(float(1000 * np.sqrt(np.median(power))), 3) if len(power) >= 5 else None


def of_pair(generated: VideoTrace, truth: VideoTrace) -> Values:
    """Measures of a generated video against its true one: correlation and amplitude of the lip aperture.

    Args:
        generated: its trace.
        truth: of the true video, with as many frames.
    """
    one, other = generated.opening, truth.opening
    both = np.isfinite(one) & np.isfinite(other)
    values: Values = {"lip_aperture_r": None, "lip_aperture_ratio": None}
    if both.sum() < 5 or other[both].std() < 1e-9:
        return values
    a, b = one[both], other[both]
    moves = a.std() > 1e-9
    values["lip_aperture_r"] = round(float(np.corrcoef(a, b)[0, 1]), 4) if moves else 0.0
    values["lip_aperture_ratio"] = round(float(a.std() / b.std()), 4)
    return values


def identity_values(trace: VideoTrace, portrait: Floats | None) -> Values:
    """How near the face is to a portrait, and how that changes over the video.

    The first face of the video is left out, because a video usually begins with the portrait itself.

    Args:
        trace: of the video.
        portrait: [D] embedding of unit length: the first face of the true video. None: there is none.
    """
    values: Values = {"identity_similarity": None, "identity_drift": None}
    if portrait is None or len(trace.identities) < 2:
        return values
    similar = (trace.identities[1:] @ portrait).astype(np.float64)
    places = trace.places[1:]
    values["identity_similarity"] = round(float(similar.mean()), 4)
    early, late = similar[places < 0.375], similar[places >= 0.625]
    if len(early) and len(late):
        values["identity_drift"] = round(float(late.mean() - early.mean()), 4)
    return values


def values_of(trace: VideoTrace, truth: VideoTrace, samples: Floats | None, models: Models) -> Values:
    """All measures of a video; of a generated one also those against its true one.

    Args:
        trace: of the video.
        truth: of the true video; the same object for the true video itself.
        samples: sound of the video, as of `with_sound`.
        models: the networks.
    """
    portrait = truth.identities[0] if len(truth.identities) else None
    values = {**trace.values, **with_sound(trace, samples, models), **identity_values(trace, portrait)}
    return values if trace is truth else {**values, **of_pair(trace, truth)}


def compare_frames(
    generated: Sequence[Bytes], truth: Sequence[Bytes], fps: float, samples: Floats, models: Models
) -> tuple[Values, Values]:
    """Measures of generated frames and of the true ones, which have the same size, rate and sound.

    Args:
        generated: uint8 RGB [H, W, 3] each.
        truth: likewise, as many.
        fps: frames per second.
        samples: float32 [N] at 16 kHz, sample 0 at frame 0.
        models: the networks.

    Returns:
        Those of the generated and those of the true ones.
    """
    true = trace_frames(truth, len(truth), fps, models)
    made = trace_frames(generated, len(generated), fps, models, true.boxes)
    return values_of(made, true, samples, models), values_of(true, true, samples, models)


# --------------------------------------------------------------------------- the first reading


@dataclass
class _Flows:
    """Optical flow of a video, split by a mask of the person."""

    fps: float
    subject: list[float] = field(default_factory=list)
    background: list[float] = field(default_factory=list)

    def values(self) -> Values:
        """In % of the frame's height in a second; None where no person, or nothing else, was seen."""
        return {
            "flow_subject": round(float(np.mean(self.subject)), 3) if self.subject else None,
            "flow_background": round(float(np.mean(self.background)), 3) if self.background else None,
        }


@dataclass
class _Look:
    """What the first reading of a video finds."""

    size: tuple[int, int]
    flows: _Flows
    times_s: list[float] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)

    def track(self, end_s: float, fallback: Floats | None, fps: float) -> FaceTrack | None:
        """The largest face through the whole video, or where the other video of the pair has it."""
        if not self.boxes:
            if fallback is None or not len(fallback):
                return None
            self.times_s = [k / fps for k in range(len(fallback))]
            self.boxes = list(fallback)
        boxes = np.stack(self.boxes).astype(np.float32)
        scores = np.ones(len(boxes), np.float32)
        return FaceTrack(0, 0, 0.0, end_s, np.array(self.times_s), boxes, scores, "evaluate")


MIN_FLOW_PIXELS = 0.02
"""Least fraction of a frame that belongs to person or background, for its flow to count."""


def _look(frames: Iterable[Bytes], fps: float, models: Models) -> _Look:
    """Boxes of the largest face, and the optical flow of person and background."""
    every = max(1, round(fps / LOOKS_PER_S))
    found: _Look | None = None
    before: Bytes | None = None
    person: NDArray[np.bool_] | None = None
    for k, rgb in enumerate(frames):
        if found is None:
            found = _Look((rgb.shape[0], rgb.shape[1]), _Flows(fps))
        scale = FLOW_EDGE_PX / min(rgb.shape[:2])
        size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
        grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        if k % every == 0:
            person = _person(rgb, size, models)
            large = max(1.0, MIN_EDGE_PX / min(rgb.shape[:2]))
            shape = (round(rgb.shape[1] * large), round(rgb.shape[0] * large))
            boxes, _ = models.detector.detect(_enlarged(rgb, *shape))
            if len(boxes):
                areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
                found.times_s.append(k / fps)
                found.boxes.append(boxes[int(areas.argmax())] / np.float32(large))
        if before is not None and person is not None:
            flow = cv2.calcOpticalFlowFarneback(before, grey, None, *_FARNEBACK)
            moved = np.linalg.norm(flow, axis=2) / size[1] * fps * 100
            for mask, into in ((person, found.flows.subject), (~person, found.flows.background)):
                if mask.mean() >= MIN_FLOW_PIXELS:
                    into.append(float(moved[mask].mean()))
        before = np.asarray(grey, np.uint8)
    assert found is not None, "a video has frames"
    return found


def _person(rgb: Bytes, size: tuple[int, int], models: Models) -> NDArray[np.bool_] | None:
    """Where a person is seen, bool at `size` (width, height); None where none is."""
    masks = models.segment(rgb).segmentation_masks  # type: ignore[operator]
    if not masks:
        return None
    found = np.asarray(masks[0].numpy_view(), np.float32).reshape(rgb.shape[:2])
    return np.asarray(cv2.resize(found, size, interpolation=cv2.INTER_AREA) > 0.5)


def _enlarged(rgb: Bytes, width_px: int, height_px: int) -> Bytes:
    if rgb.shape[:2] == (height_px, width_px):
        return rgb
    return np.asarray(cv2.resize(rgb, (width_px, height_px), interpolation=cv2.INTER_CUBIC), np.uint8)


def _of_landmarks(landmarks: Landmarks, fps: float) -> Values:
    seen = landmarks.seen
    values: Values = {"face_seen_fraction": round(float(seen.mean()), 4)}
    measured = eyes.measure(landmarks, fps)
    enough = measured is not None and seen.mean() >= MIN_SEEN
    values["blinks_per_min"] = measured.blinks_per_min if measured and enough else None
    angles = landmarks.angles_deg[seen].astype(np.float64)
    values["head_motion_deg"] = (
        round(float(np.sqrt(angles.var(axis=0).sum())), 3) if len(angles) >= 5 else None
    )
    values["jitter"] = jitter(landmarks.points.astype(np.float64))
    return values


def _records(width_px: int, height_px: int, num_frames: int, fps: float) -> tuple[Clip, Video]:
    """Records of a video that is one clip, as the tracer of landmarks takes them."""
    end_s = num_frames / fps
    video = Video(
        video_id="", sha256="", uri="", num_bytes=0, container="", video_codec="", pixel_format="",
        width_px=width_px, height_px=height_px, coded_width_px=width_px, coded_height_px=height_px,
        rotation_deg=0, sample_aspect_ratio=1.0, fps=fps, fps_nominal=fps, start_s=0.0, end_s=end_s,
    )  # fmt: skip
    clip = Clip(
        clip_id="", video_id="", uri="", scene=0, track=0, start_s=0.0, end_s=end_s, fps=fps,
        num_frames=num_frames, width_px=width_px, height_px=height_px,
    )  # fmt: skip
    return clip, video
