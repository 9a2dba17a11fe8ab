"""The sparse pass over generated videos with known cuts and faces, and over real clips."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from talkforge.curation.face.detect import FaceDetector, load_detector
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.scan import Scan, faces_visible, scan
from talkforge.schemas.arrays import Detections
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.errors import MediaError, ModelError
from talkforge.schemas.records import Input, Rectangle, Video
from tests.conftest import RealClip

WIDTH_PX, HEIGHT_PX, FPS = 960, 540, 25
RED, BLUE = (200, 40, 40), (40, 40, 200)


class Squares:
    """Takes white squares for faces, so that the truth is known."""

    name = "squares"

    def __init__(self) -> None:
        self.num_pictures = 0

    def detect(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.num_pictures += 1
        white = (rgb.min(axis=2) > 190).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(white)
        boxes = [[x, y, x + w, y + h] for x, y, w, h, area in stats[1:] if area > 40]
        return np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.8, np.float32)


def drawn(squares: list[tuple[int, int, int]], colour: tuple[int, int, int]) -> np.ndarray:
    """Squares (x0, y0, size) on a ground of one colour."""
    picture = np.full((HEIGHT_PX, WIDTH_PX, 3), colour, np.uint8)
    for x, y, size in squares:
        picture[y : y + size, x : x + size] = 255
    return picture


def written(path: Path, pictures: list[np.ndarray], times: list[int] | None = None) -> Video:
    """A video of these pictures, at 25 per second or at the given frame instants."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
        stream.thread_count = 1
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times or range(len(pictures)))[number], Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return probe(path, Input(uri=path.name), content_hash(path))


@pytest.fixture(scope="module")
def two_shots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Video]:
    """Red with one square for 37 frames, then blue with two for 38; 3 s."""
    path = tmp_path_factory.mktemp("scan") / "two_shots.mp4"
    red, blue = drawn([(300, 150, 210)], RED), drawn([(120, 120, 180), (600, 210, 150)], BLUE)
    return path, written(path, [red] * 37 + [blue] * 38)


def close(a: float) -> object:
    return pytest.approx(a, abs=1e-6)


def test_scenes_tracks_and_boxes_are_the_known_ones(two_shots: tuple[Path, Video]) -> None:
    result = scan(*two_shots, 0, 10, ScanConfig(), Squares())
    assert [(s.index, s.start_s, s.end_s, s.opened_by) for s in result.scenes] == [
        (0, 0, close(1.48), "start"),
        (1, close(1.48), close(3.0), "picture"),
    ]
    spans = [(t.track, t.scene, t.start_s, t.end_s, t.detector) for t in result.tracks]
    assert spans == [
        (0, 0, 0, close(1.48), "squares"),
        (1, 1, close(1.48), close(3.0), "squares"),
        (2, 1, close(1.48), close(3.0), "squares"),
    ]
    truth = [(300, 150, 510, 360), (120, 120, 300, 300), (600, 210, 750, 360)]
    for track, box in zip(result.tracks, truth, strict=True):
        assert np.abs(track.boxes - np.array(box)).max() <= 3  # two pixels of the detector's picture


def test_a_network_adds_a_scene_of_its_own(two_shots: tuple[Path, Video]) -> None:
    class Network:
        def boundaries(self, frames: np.ndarray) -> np.ndarray:
            assert frames.shape == (75, 27, 48, 3)
            found = np.zeros(75, np.float32)
            found[[36, 59]] = 1  # the cut that is there, and another
            return found

    result = scan(*two_shots, 0, 10, ScanConfig(), Squares(), Network())
    assert [(s.start_s, s.end_s, s.opened_by) for s in result.scenes] == [
        (0, close(1.48), "start"),
        (close(1.48), close(2.4), "picture"),
        (close(2.4), close(3.0), "transnet"),
    ]
    assert [(t.scene, t.start_s, t.end_s) for t in result.tracks] == [
        (0, 0, close(1.48)),
        (1, close(1.48), close(2.4)),
        (1, close(1.48), close(2.4)),
        (2, close(2.4), close(3.0)),
        (2, close(2.4), close(3.0)),
    ]


def test_samples_lie_on_the_grid_at_the_ends_and_around_cuts(two_shots: tuple[Path, Video]) -> None:
    detector = Squares()
    result = scan(*two_shots, 0, 10, ScanConfig(), detector)
    times = [d.time_s for d in result.detections]
    # The picture in force at 0.5 s is that of 0.48 s; frames 36 and 37 are on either side of the cut.
    assert times == pytest.approx([0, 0.48, 1.0, 1.44, 1.48, 2.0, 2.48, 2.96])
    assert detector.num_pictures == len(times)


def test_a_window_is_scanned_alone(two_shots: tuple[Path, Video]) -> None:
    result = scan(*two_shots, 1.21, 2.03, ScanConfig(sample_s=0.4), Squares())
    assert [(s.index, s.start_s, s.end_s) for s in result.scenes] == [
        (0, 1.21, close(1.48)),
        (1, close(1.48), 2.03),
    ]
    # Grid: 1.21, 1.61, 2.01; the picture in force at 1.21 s began before the window.
    assert [d.time_s for d in result.detections] == pytest.approx([1.21, 1.44, 1.48, 1.6, 2.0])
    assert [(t.track, t.scene) for t in result.tracks] == [(0, 0), (1, 1), (2, 1)]


def test_each_track_has_an_image_from_its_middle(two_shots: tuple[Path, Video]) -> None:
    result = scan(*two_shots, 0, 10, ScanConfig(sample_s=0.4, longest_edge_px=640), Squares())
    assert [result.images[t.track].time_s for t in result.tracks] == pytest.approx([0.8, 2.4, 2.4])
    first, second = result.images[0], result.images[2]
    assert first.rgb.shape == (180, 320, 3)
    assert first.rgb.dtype == np.uint8
    assert first.box == pytest.approx([100, 50, 170, 120], abs=1)
    assert first.rgb[85, 135].min() > 240
    assert np.abs(first.rgb[10, 10].astype(int) - RED).max() < 12
    assert np.abs(second.rgb[10, 10].astype(int) - BLUE).max() < 12
    x0, y0, x1, y1 = second.box.round().astype(int)
    assert second.rgb[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 240


def test_a_face_that_comes_and_goes(tmp_path: Path) -> None:
    """Visible from frame 20 to 44: seen at 1.0 and 1.48 s, not at 0.48 and 2.0 s."""
    empty, face = drawn([], RED), drawn([(300, 150, 60)], RED)
    path = tmp_path / "comes.mp4"
    video = written(path, [empty] * 20 + [face] * 25 + [empty] * 30)
    result = scan(path, video, 0, 10, ScanConfig(scene_detector="none"), Squares())
    (track,) = result.tracks
    assert track.times_s.tolist() == pytest.approx([1.0, 1.48])
    assert (track.start_s, track.end_s) == pytest.approx((0.74, 1.74))


def test_variable_rate_keeps_source_time(tmp_path: Path) -> None:
    """Pictures at 0, 1, 2, ... then with doubled steps: the cut is where its picture comes into force."""
    red, blue = drawn([(300, 150, 210)], RED), drawn([(300, 150, 210)], BLUE)
    times = [*range(20), *range(20, 60, 2)]
    path = tmp_path / "variable.mp4"
    video = written(path, [red] * 30 + [blue] * 10, times)
    result = scan(path, video, 0, 10, ScanConfig(), Squares())
    assert [s.start_s for s in result.scenes] == [0, close(40 / FPS)]


def test_scanning_twice_gives_the_same_bytes(two_shots: tuple[Path, Video]) -> None:
    def flat(result: Scan) -> list[bytes]:
        arrays = [a for t in result.tracks for a in (t.times_s, t.boxes, t.scores)]
        arrays += [a for p in result.images.values() for a in (p.rgb, p.box)]
        return [a.tobytes() for a in arrays]

    first, second = (scan(*two_shots, 0, 10, ScanConfig(), Squares()) for _ in range(2))
    assert flat(first) == flat(second)
    assert first.scenes == second.scenes


def test_a_window_beyond_the_end_is_an_error(two_shots: tuple[Path, Video]) -> None:
    with pytest.raises(MediaError, match=r"two_shots\.mp4.*expected frames in 7\.\.9 s, found none"):
        scan(*two_shots, 7, 9, ScanConfig(), Squares())


# --- how many faces ----------------------------------------------------------------------------


def counts(*numbers: int) -> list[Detections]:
    return [
        Detections(0.5 * i, np.zeros((n, 4), np.float32), np.zeros(n, np.float32))
        for i, n in enumerate(numbers)
    ]


@pytest.mark.parametrize(
    ("numbers", "visible"),
    [
        ((1, 1, 2, 1, 1), 1),
        ((1, 2, 2, 1), 2),
        ((1, 3, 2, 1), 2),
        ((0, 1, 0), 0),
        ((2,), 2),
        ((), 0),
        ((1, 1), 1),
    ],
)
def test_one_sample_alone_does_not_make_a_second_face(numbers: tuple[int, ...], visible: int) -> None:
    assert faces_visible(counts(*numbers), 0, 10) == visible


def test_only_samples_within_the_span_count() -> None:
    samples = counts(3, 3, 1, 1, 2, 2)
    assert faces_visible(samples, 1.0, 2.0) == 1
    assert faces_visible(samples, 1.0, 3.0) == 2


def test_a_crop_counts_the_faces_in_it() -> None:
    both = np.array([[10, 10, 50, 60], [200, 10, 240, 60]], np.float32)
    samples = [Detections(0.5 * i, both, np.ones(2, np.float32)) for i in range(3)]
    for crop, visible in ((None, 2), (Rectangle(0, 0, 120, 100), 1), (Rectangle(60, 0, 100, 100), 0)):
        assert faces_visible(samples, 0, 10, crop) == visible


# --- real clips --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    try:
        return load_detector(ScanConfig())
    except ModelError as error:
        pytest.skip(f"CenterFace's weights are not available: {error}")


def scanned(path: Path, detector: FaceDetector, config: ScanConfig) -> Scan:
    video = probe(path, Input(uri=path.name), content_hash(path))
    return scan(path, video, 0, video.end_s, config, detector)


@pytest.mark.parametrize(
    ("name", "height_px"),
    [("grid_bbaf2n.mpg", 145), ("sk_carphone_pristine.mp4", 62), ("st_katie.mp4", 317), ("vr_1.mp4", 275)],
)
def test_one_speaker_is_one_track(
    real_clip: RealClip, detector: FaceDetector, name: str, height_px: int
) -> None:
    result = scanned(real_clip(name), detector, ScanConfig(sample_s=1.5))
    (scene,), (track,) = result.scenes, result.tracks
    assert (track.start_s, track.end_s) == (scene.start_s, scene.end_s)
    assert len(track.times_s) == len(result.detections)
    assert float(np.median(track.boxes[:, 3] - track.boxes[:, 1])) == pytest.approx(height_px, rel=0.05)
    assert faces_visible(result.detections, scene.start_s, scene.end_s) == 1


@pytest.mark.usefixtures("detector")
def test_an_animation_has_no_face(real_clip: RealClip) -> None:
    # Its furry faces score up to 0.53; people who speak to the camera score 0.78 and more.
    config = ScanConfig(min_score=0.6)
    result = scanned(real_clip("sk_bigbuckbunny.mp4"), load_detector(config), config)
    assert len(result.scenes) == 1
    assert result.tracks == ()
    assert result.images == {}


def test_a_small_face_in_a_tall_picture_and_its_jump_cut(real_clip: RealClip, detector: FaceDetector) -> None:
    path, config = real_clip("ls_demo3.mp4"), ScanConfig(longest_edge_px=384)
    video = probe(path, Input(uri=path.name), content_hash(path))
    result = scan(path, video, 8.0, 10.0, config, detector)
    assert [(s.opened_by, s.start_s) for s in result.scenes] == [
        ("start", 8.0),
        ("face_jump", close(271 / 30)),
    ]
    assert [(t.scene, t.start_s) for t in result.tracks] == [(0, 8.0), (1, close(271 / 30))]
    assert faces_visible(result.detections, 8.0, 10.0) == 1


def test_the_stage_is_cut_at_its_frames_in_container_time(
    real_clip: RealClip, detector: FaceDetector
) -> None:
    result = scanned(real_clip("fr_hamilton.mp4"), detector, ScanConfig(sample_s=2.0))
    start_s = result.scenes[0].start_s
    assert start_s == pytest.approx(0.844, abs=2e-3)  # the pictures begin after the sound
    frames = [(s.start_s - start_s) * 30000 / 1001 for s in result.scenes]
    assert frames == pytest.approx([0, 20, 82, 211], abs=0.02)
