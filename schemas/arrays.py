"""Arrays in flight: frozen dataclasses that check their shapes when made.

Legend: F frames of a clip, N samples of audio, T sampled frames of a scan, P contour points,
J joints. Coordinates are pixels, x to the right and y down, pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from talkforge.schemas.units import AUDIO_HZ

Halves = NDArray[np.float16]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bytes = NDArray[np.uint8]

NUM_LANDMARKS = 478
"""Points of MediaPipe's face landmarker: 468 of the mesh, 10 of the irises."""

MISSING, INTERPOLATED, MEASURED = 0, 1, 2
"""Validity codes of a frame's contour."""

# fmt: off
BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft",
    "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight",
    "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)
# fmt: on
"""Names of the blendshapes in the order in which MediaPipe's face landmarker gives them. Left is the
person's. Source: its categories; the names are ARKit's."""

OVAL_POINTS = 36
"""Points of the face oval."""

FACE_MOTION_DIMS, BODY_MOTION_DIMS = 8, 20
"""Numbers of a frame's motion: of the face its largest principal components, of the body x and y of ten
joints."""


def expect_shape(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `array` has `shape`, where None stands for any length."""
    fits = array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        want = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape [{want}], found {list(array.shape)}")


def not_measured(frames: int, width: int) -> NDArray[np.float16]:
    """Numbers of `frames` frames that nobody measured: NaN, float16 [frames, width]."""
    return np.full((frames, width), np.nan, np.float16)


@dataclass(frozen=True)
class Audio:
    """Mono float32 samples [N] at 16 kHz in [-1, 1]; sample 0 is at source second `start_s`."""

    start_s: float
    samples: Floats

    def __post_init__(self) -> None:
        expect_shape("audio", self.samples, (None,))

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.samples) / AUDIO_HZ


@dataclass(frozen=True)
class Detections:
    """Faces of one frame: boxes [n, 4] (x0, y0, x1, y1 in source pixels), scores [n] in 0..1."""

    time_s: float
    boxes: Floats
    scores: Floats

    def __post_init__(self) -> None:
        expect_shape("boxes", self.boxes, (None, 4))
        expect_shape("scores", self.scores, (len(self.boxes),))


@dataclass(frozen=True)
class FaceTrack:
    """One face through one scene as the sparse scan saw it.

    Attributes:
        scene, track: numbers within the video.
        start_s, end_s: span the face is taken to be present, source seconds.
        times_s: float64 [T], instants of the sampled frames in which it was detected.
        boxes: [T, 4] in source pixels. scores: [T], 0..1.
        detector: name of the detector.
    """

    scene: int
    track: int
    start_s: float
    end_s: float
    times_s: NDArray[np.float64]
    boxes: Floats
    scores: Floats
    detector: str

    def __post_init__(self) -> None:
        expect_shape("times_s", self.times_s, (None,))
        expect_shape("boxes", self.boxes, (len(self.times_s), 4))
        expect_shape("scores", self.scores, (len(self.times_s),))

    def box_at(self, time_s: float) -> Floats:
        """Box [4] at an instant: linear between samples, held beyond the ends."""
        columns = [np.interp(time_s, self.times_s, self.boxes[:, i]) for i in range(4)]
        return np.array(columns, np.float32)


@dataclass(frozen=True)
class Landmarks:
    """Dense face landmarks of a clip, in clip pixels.

    Attributes:
        points: [F, 478, 3], x, y in pixels, z at the scale of x; NaN where not seen.
        blendshapes: [F, 52] in 0..1, NaN where not seen.
        angles_deg: [F, 3] yaw, pitch, roll of the head, NaN where not seen.
    """

    points: Floats
    blendshapes: Floats
    angles_deg: Floats

    def __post_init__(self) -> None:
        frames = len(self.points)
        expect_shape("landmarks", self.points, (None, NUM_LANDMARKS, 3))
        expect_shape("blendshapes", self.blendshapes, (frames, len(BLENDSHAPES)))
        expect_shape("angles_deg", self.angles_deg, (frames, 3))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """[F]: True where the face was found."""
        return np.isfinite(self.points[:, 0, 0])


@dataclass(frozen=True)
class LipTrace:
    """Outer-lip contour of every frame: `contour` [F, P, 2] in clip pixels, NaN where missing;
    `valid` [F] uint8: 0 missing, 1 interpolated, 2 measured."""

    contour: Floats
    valid: Bytes

    def __post_init__(self) -> None:
        expect_shape("contour", self.contour, (None, None, 2))
        expect_shape("valid", self.valid, (len(self.contour),))


@dataclass(frozen=True)
class ClipArrays:
    """Everything with a shape that is known of one clip, as stored in `parts/<part>/<clip>.npz`.

    Attributes:
        landmarks: [F, 478, 3], as in `Landmarks.points`.
        contour: [F, P, 2]; lip_valid: [F], as in `LipTrace`.
        joints: [F, J, 3] x, y in clip pixels, score 0..1; NaN where not seen.
        face_rgb: [112, 112, 3] uint8, aligned to the ArcFace template.
        speech: [L, D] float16 at 50 Hz.
        identity: [D] unit length, empty where no weights are present.
        blendshapes: [F, 52] float16 in 0..1, NaN where not seen.
        face_motion, body_motion: [F, 8] and [F, 20] float16, as in `curation.body.motion.MotionTrace`.
        face_contour: [F, 36, 2]; face_valid: [F], as of `curation.face.oval.trace`.

    The last five may be given without frames, where nobody measured them. They are then NaN, and 0 in
    `face_valid`.
    """

    landmarks: Floats
    contour: Floats
    lip_valid: Bytes
    joints: Floats
    face_rgb: Bytes
    speech: NDArray[np.float16]
    identity: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    blendshapes: NDArray[np.float16] = field(default_factory=lambda: not_measured(0, len(BLENDSHAPES)))
    face_motion: NDArray[np.float16] = field(default_factory=lambda: not_measured(0, FACE_MOTION_DIMS))
    body_motion: NDArray[np.float16] = field(default_factory=lambda: not_measured(0, BODY_MOTION_DIMS))
    face_contour: Floats = field(default_factory=lambda: np.zeros((0, OVAL_POINTS, 2), np.float32))
    face_valid: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        frames = len(self.landmarks)
        for name in ("blendshapes", "face_motion", "body_motion", "face_contour", "face_valid"):
            array = getattr(self, name)
            if not len(array):
                missing = np.nan if array.dtype.kind == "f" else MISSING
                filled = np.full((frames, *array.shape[1:]), missing, array.dtype)
                object.__setattr__(self, name, filled)
        expect_shape("blendshapes", self.blendshapes, (frames, len(BLENDSHAPES)))
        expect_shape("face_motion", self.face_motion, (frames, FACE_MOTION_DIMS))
        expect_shape("body_motion", self.body_motion, (frames, BODY_MOTION_DIMS))
        expect_shape("face_contour", self.face_contour, (frames, OVAL_POINTS, 2))
        expect_shape("face_valid", self.face_valid, (frames,))
        expect_shape("landmarks", self.landmarks, (frames, NUM_LANDMARKS, 3))
        expect_shape("contour", self.contour, (frames, None, 2))
        expect_shape("lip_valid", self.lip_valid, (frames,))
        expect_shape("joints", self.joints, (frames, None, 3))
        expect_shape("face_rgb", self.face_rgb, (112, 112, 3))
        expect_shape("speech", self.speech, (None, None))
        expect_shape("identity", self.identity, (None,))

    def trimmed(self, first: int, last: int) -> ClipArrays:
        """The same without some frames at the beginning and at the end; `speech` stays whole.

        Args:
            first: frames that are left out at the beginning.
            last: frames that are left out at the end.
        """
        kept = slice(first, len(self.landmarks) - last)
        return replace(self, **{name: getattr(self, name)[kept] for name in PER_FRAME})


PER_FRAME = (
    "landmarks", "contour", "lip_valid", "joints", "blendshapes", "face_motion", "body_motion",
    "face_contour", "face_valid",
)  # fmt: skip
"""Fields of `ClipArrays` with a row for each frame."""
