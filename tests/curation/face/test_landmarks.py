from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from talkforge.curation.face.head_pose import head_angles
from talkforge.curation.face.landmarks import (
    LANDMARKER_PX,
    DetectedFace,
    FaceLandmarker,
    LandmarkTracer,
)
from talkforge.curation.media import clip_indices, clip_size, read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.arrays import Bytes, FaceTrack, Landmarks
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input, Video
from tests.conftest import Packaged, RealClip
from tests.records import clip_of

FPS = 25.0


def video_of(width_px: int, height_px: int) -> Video:
    facts: dict[str, Any] = dict.fromkeys(("sha256", "container", "video_codec", "pixel_format"), "")
    facts |= {"video_id": "v", "uri": "v.mp4", "num_bytes": 0, "rotation_deg": 0, "sample_aspect_ratio": 1}
    facts |= {"coded_width_px": width_px, "coded_height_px": height_px, "fps": FPS, "fps_nominal": FPS}
    return Video(width_px=width_px, height_px=height_px, start_s=0, end_s=100, **facts)


def still_track(box: tuple[float, float, float, float], end_s: float = 100.0) -> FaceTrack:
    ends = np.array([box, box], np.float32)
    return FaceTrack(0, 0, 0, end_s, np.array([0.0, end_s]), ends, np.ones(2, np.float32), "known")


@pytest.fixture(scope="module")
def landmarker(packaged: Packaged) -> FaceLandmarker:
    return FaceLandmarker(packaged("face_landmarker"))


def trace(
    path: Path,
    box: tuple[float, float, float, float],
    num_frames: int,
    landmarker: FaceLandmarker,
    fps: float = FPS,
) -> Landmarks:
    """Landmarks of the first frames of a real clip, whose face lies around `box` (source pixels)."""
    video = probe(path, Input(uri=path.name), content_hash(path))
    clip = clip_of(num_frames, *clip_size(video, 1024), start_s=video.start_s, fps=fps)
    tracer = LandmarkTracer(landmarker, still_track(box), clip, video)
    for frame in read_frames(path, video, clip.start_s, clip.end_s):
        shown = clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if shown:
            tracer.push(shown, frame.rgb(clip.width_px, clip.height_px))
    return tracer.finish()


def first_rgb(path: Path) -> Bytes:
    video = probe(path, Input(uri=path.name), content_hash(path))
    return next(iter(read_frames(path, video))).rgb()


def test_angles_have_the_documented_signs() -> None:
    # Axes of the matrix: x right, y up, z towards the viewer; it carries a scale too.
    def angles(axis: str, degrees: float) -> list[float]:
        matrix = np.eye(4)
        matrix[:3, :3] = 1.7 * Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        return np.round(head_angles(matrix), 3).tolist()

    assert angles("Y", 30) == [30, 0, 0]  # the nose (z) goes towards x: the viewer's right
    assert angles("X", -20) == [0, 20, 0]  # the nose goes towards y: up
    assert angles("Z", -10) == [0, 0, 10]  # the top of the head (y) goes towards x: clockwise


def test_angles_are_those_of_three_turns_in_order() -> None:
    for matrix in Rotation.random(50, random_state=0).as_matrix():
        yaw, pitch, roll = Rotation.from_matrix(matrix).as_euler("YXZ", degrees=True)
        np.testing.assert_allclose(head_angles(1.7 * matrix), (yaw, -pitch, -roll), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("grid_bbaf2n.mpg", (100, 98, 207, 255)),
        ("grid_brbk7n.mpg", (119, 104, 223, 258)),
        ("grid_id2_swwp2s.mpg", (125, 89, 235, 250)),
        ("grid_lrwp9a.mpg", (126, 83, 249, 260)),
    ],
)
def test_a_frontal_speaker_is_seen_throughout(
    name: str, box: tuple[float, float, float, float], real_clip: RealClip, landmarker: FaceLandmarker
) -> None:
    found = trace(real_clip(name), box, 29, landmarker, fps=10)
    assert found.seen.all()
    assert np.abs(found.angles_deg).max() < 8
    assert ((found.blendshapes >= 0) & (found.blendshapes <= 1)).all()


def test_a_small_face_in_a_tall_picture_is_seen(real_clip: RealClip, landmarker: FaceLandmarker) -> None:
    found = trace(real_clip("ls_demo3.mp4"), (480, 512, 690, 770), 30, landmarker, fps=10)
    assert found.seen.mean() >= 0.95
    height_px = np.ptp(found.points[found.seen, :, 1], axis=1)
    assert 90 < np.median(height_px) < 130  # of a clip that is 1024 px tall


def test_a_turning_head_turns_the_right_way(real_clip: RealClip, landmarker: FaceLandmarker) -> None:
    found = trace(real_clip("st_katie.mp4"), (130, 101, 390, 467), 48, landmarker, fps=6)
    assert found.seen.all()
    nose, sides = found.points[:, 1, 0], found.points[:, [234, 454], 0]
    aside = (nose - sides.mean(1)) / np.ptp(sides, axis=1)  # positive: nose to the viewer's right
    yaw_deg = found.angles_deg[:, 0]
    assert np.corrcoef(aside, yaw_deg)[0, 1] > 0.98
    assert yaw_deg.min() < -15
    assert yaw_deg.max() > 15
    brow, chin = found.points[:, 10, :2], found.points[:, 152, :2]
    lean_deg = np.degrees(np.arctan2((brow - chin)[:, 0], (chin - brow)[:, 1]))  # positive: clockwise
    assert np.corrcoef(lean_deg, found.angles_deg[:, 2])[0, 1] > 0.8


def test_the_same_frames_give_the_same_bytes_whatever_came_before(
    real_clip: RealClip, packaged: Packaged, landmarker: FaceLandmarker
) -> None:
    path, box = real_clip("grid_bbaf2n.mpg"), (100.0, 98.0, 207.0, 255.0)
    trace(real_clip("grid_lrwp9a.mpg"), (126, 83, 249, 260), 5, landmarker)
    used = trace(path, box, 10, landmarker)
    fresh = trace(path, box, 10, FaceLandmarker(packaged("face_landmarker")))
    assert used.points.tobytes() == fresh.points.tobytes()
    assert used.blendshapes.tobytes() == fresh.blendshapes.tobytes()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_points_are_in_pixels_of_the_clip(
    scale: float, real_clip: RealClip, landmarker: FaceLandmarker
) -> None:
    """The same picture at another size, framed alike: the points scale, pixel centres whole numbers."""
    rgb = first_rgb(real_clip("grid_bbaf2n.mpg"))
    height, width = rgb.shape[:2]
    box = (100.0, 98.0, 207.0, 255.0)
    size = round(width * scale), round(height * scale)
    scaled = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    found = []
    for picture in (rgb, scaled):
        clip = clip_of(1, picture.shape[1], picture.shape[0])
        tracer = LandmarkTracer(landmarker, still_track(box), clip, video_of(width, height))
        points = tracer.push(0, np.asarray(picture, np.uint8))
        assert points is not None
        found.append(points[:, :2])
    wanted = (found[0] + 0.5) * scale - 0.5
    assert np.abs((found[1] - wanted).mean(0)).max() < 0.35 * scale
    assert np.abs(found[1] - wanted).mean() < 0.6 * scale


def test_a_mirrored_face_gives_mirrored_points(real_clip: RealClip, landmarker: FaceLandmarker) -> None:
    """Tells whether the points count from pixel centres: otherwise the mean is off by a pixel."""
    rgb = first_rgb(real_clip("grid_bbaf2n.mpg"))
    crop = cv2.resize(rgb[40:300, 20:280][:248, :248], (LANDMARKER_PX, LANDMARKER_PX))
    straight, mirrored = landmarker.detect(crop), landmarker.detect(crop[:, ::-1])
    assert straight is not None
    assert mirrored is not None
    pairs = np.array([(33, 263), (133, 362), (61, 291), (234, 454), (70, 300), (50, 280)])
    both = np.concatenate([pairs, pairs[:, ::-1]])
    sums = straight.points[both[:, 0], 0] + mirrored.points[both[:, 1], 0]
    assert sums.mean() == pytest.approx(LANDMARKER_PX - 1, abs=0.5)


def test_points_blendshapes_and_angles_are_those_of_mediapipes_own_graph(
    real_clip: RealClip, packaged: Packaged, landmarker: FaceLandmarker
) -> None:
    options = {"output_face_blendshapes": True, "output_facial_transformation_matrixes": True}
    reference = load_task("FaceLandmarker", packaged("face_landmarker"), num_faces=1, **options)
    apart_px = []
    for name in ("grid_bbaf2n.mpg", "st_katie.mp4", "vr_1.mp4"):
        path = real_clip(name)
        video = probe(path, Input(uri=path.name), content_hash(path))
        for frame in list(read_frames(path, video, 0, 3))[::20]:
            rgb = frame.rgb(longest_edge_px=512)
            ours, theirs = landmarker.detect(rgb), reference(rgb)
            assert ours is not None
            height, width = rgb.shape[:2]
            points = np.array([(p.x, p.y, p.z) for p in theirs.face_landmarks[0]]) * (width, height, width)
            apart_px.append(np.linalg.norm(ours.points - points + (0.5, 0.5, 0), axis=1))
            shapes = [shape.score for shape in theirs.face_blendshapes[0]]
            np.testing.assert_allclose(ours.blendshapes, shapes, atol=0.01)
            matrix = theirs.facial_transformation_matrixes[0]
            np.testing.assert_allclose(ours.angles_deg, head_angles(matrix), atol=0.1)
    assert np.median(apart_px) < 0.02
    assert np.percentile(apart_px, 99) < 0.1


def test_without_a_face_the_landmarks_are_nan(landmarker: FaceLandmarker) -> None:
    clip = clip_of(3, 320, 240)
    tracer = LandmarkTracer(landmarker, still_track((100, 60, 200, 180)), clip, video_of(320, 240))
    grey = np.full((240, 320, 3), 120, np.uint8)
    assert tracer.push(0, grey) is None
    assert tracer.push(range(0), grey) is None
    found = tracer.finish()
    assert not found.seen.any()
    assert np.isnan(found.angles_deg).all()
    assert np.isnan(found.blendshapes).all()


class _Faces:
    """A landmarker that finds a white box that lies whole in the crop, and counts its calls.

    `mouth` is how far to the right of the box's centre the mouth lies, in pixels of the crop.
    """

    def __init__(self, mouth: float = 0.0) -> None:
        self.calls = 0
        self.mouth = np.array([mouth, 0.0], np.float32)

    def detect(self, rgb: Bytes) -> DetectedFace | None:
        """Points at the corners of the white area."""
        self.calls += 1
        y, x = np.nonzero(rgb[..., 0] > 127)
        if len(x) == 0 or min(x.min(), y.min()) == 0 or max(x.max(), y.max()) == LANDMARKER_PX - 1:
            return None
        points = np.zeros((478, 3), np.float32)
        points[::2] = x.min(), y.min(), 0
        points[1::2] = x.max(), y.max(), 0
        points[[61, 291, 0, 17], :2] = self.mouth + points[2:4, :2].mean(0)
        return DetectedFace(points, np.zeros(52, np.float32), np.zeros(3, np.float32))


def drawn(*boxes: tuple[int, int, int, int]) -> Bytes:
    rgb = np.zeros((240, 320, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        rgb[y0:y1, x0:x1] = 255
    return rgb


def tracer_of(box: tuple[float, float, float, float], mouth: float = 0.0) -> tuple[LandmarkTracer, _Faces]:
    faces = _Faces(mouth)
    clip = clip_of(20, 320, 240)
    return LandmarkTracer(faces, still_track(box), clip, video_of(320, 240)), faces  # type: ignore[arg-type]


def test_points_follow_a_moving_box_to_the_pixel() -> None:
    tracer, _ = tracer_of((100, 100, 140, 140))
    for k in range(20):
        points = tracer.push(k, drawn((90 + k, 100, 130 + k, 140)))
        assert points is not None
        np.testing.assert_allclose(points[2, :2], (90 + k, 100), atol=0.6)
        np.testing.assert_allclose(points[3, :2], (129 + k, 139), atol=0.6)


def test_frames_shown_twice_are_measured_once() -> None:
    tracer, faces = tracer_of((100, 100, 140, 140))
    tracer.push(range(2, 5), drawn((100, 100, 140, 140)))
    assert faces.calls == 1
    found = tracer.finish()
    assert found.seen.nonzero()[0].tolist() == [2, 3, 4]
    assert np.array_equal(found.points[2], found.points[4])


def test_a_face_far_from_the_track_is_another_persons() -> None:
    tracer, _ = tracer_of((100, 100, 140, 140))
    assert tracer.push(0, drawn((100, 100, 140, 140))) is not None
    assert tracer.push(1, drawn((133, 133, 154, 154))) is None  # in a crop, but off the track
    assert tracer.push(2, drawn((118, 118, 123, 123))) is None  # in place, but an eighth of the size
    assert tracer.push(3, drawn((104, 100, 144, 140))) is not None


def test_a_lost_face_is_found_again_at_the_track() -> None:
    tracer, faces = tracer_of((100, 100, 140, 140))
    assert tracer.push(0, drawn((90, 90, 130, 130))) is not None
    calls = faces.calls
    assert tracer.push(1, drawn()) is None
    assert faces.calls == calls + 3  # the crop that followed, and two around the track's box
    assert tracer.push(2, drawn((112, 112, 150, 150))) is not None


def test_a_lost_face_is_searched_in_every_third_frame() -> None:
    tracer, faces = tracer_of((100, 100, 140, 140))
    looked = []
    for k in range(13):
        calls = faces.calls
        assert tracer.push(k, drawn()) is None
        assert tracer.lost == (k >= 4)
        looked += [k] * (faces.calls > calls)
    assert looked == [0, 1, 2, 3, 4, 7, 10]
    here = drawn((100, 100, 140, 140))
    assert tracer.push(13, here) is not None
    assert not tracer.lost
    assert tracer.push(14, here) is not None


def test_a_repeated_frame_counts_for_each_time_it_is_shown_towards_a_lost_face() -> None:
    tracer, faces = tracer_of((100, 100, 140, 140))
    for shown, calls in ((range(4), 2), (range(4, 6), 4), (range(6, 8), 6), (range(8, 9), 6)):
        tracer.push(shown, drawn())
        assert faces.calls == calls


def test_a_mouth_outside_of_the_frame_is_not_seen() -> None:
    box, rgb = (295, 100, 319, 140), drawn((295, 100, 319, 140))
    inside, _ = tracer_of(box)
    assert inside.push(0, rgb) is not None
    beyond, _ = tracer_of(box, mouth=70)  # 70 px of the crop are 20 px of the picture
    assert beyond.push(0, rgb) is None


def test_the_tracks_box_is_scaled_to_the_clip() -> None:
    clip = clip_of(20, 160, 120)
    boxes = np.array([[100, 60, 200, 180], [140, 60, 240, 180]], np.float32)
    track = FaceTrack(0, 0, 0, 1, np.array([0.0, 0.8]), boxes, np.ones(2, np.float32), "known")
    tracer = LandmarkTracer(_Faces(), track, clip, video_of(320, 240))  # type: ignore[arg-type]
    np.testing.assert_allclose(tracer.box_at(0), (50, 30, 100, 90))
    np.testing.assert_allclose(tracer.box_at(10), (60, 30, 110, 90), atol=1e-4)


def test_a_file_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.task"
    path.write_bytes(b"not a bundle")
    with pytest.raises(ModelError, match=r"bad\.task: expected a bundle for FaceLandmarker"):
        FaceLandmarker(path)
