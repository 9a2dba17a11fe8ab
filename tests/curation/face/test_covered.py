"""Covered mouths are found, clear ones are not lost, and neither depends on single frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.covers import PAINTERS, Mouth, cover
from examples.portraits import varied
from talkforge.curation import clips, media, scan
from talkforge.curation.face import covered, detect
from talkforge.curation.face.landmarks import FaceLandmarker, LandmarkTracer
from talkforge.curation.face.lips import OUTER_LIPS
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.weights import registry
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input

CLEAR, HIDDEN = np.full((48, 48, 3), 10, np.uint8), np.full((48, 48, 3), 200, np.uint8)


class ToldClassifier(covered.MouthClassifier):
    """Says "covered" of bright crops, and counts what it is shown."""

    def __init__(self) -> None:
        self.shown = 0

    def logits(self, crops: np.ndarray) -> np.ndarray:
        self.shown += len(crops)
        return np.where(crops.mean((1, 2, 3)) > 100, 5.0, -5.0).astype(np.float32)


def points_at(x: float, y: float, width: float) -> np.ndarray:
    points = np.zeros((478, 3), np.float32)
    points[list(OUTER_LIPS), 0] = x
    points[list(OUTER_LIPS), 1] = y
    points[61, 0], points[291, 0] = x - width / 2, x + width / 2
    return points


@pytest.fixture(scope="module")
def classifier() -> covered.MouthClassifier:
    return covered.MouthClassifier()


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    """Photos of two people that the network was not fitted on, varied, with their landmarks."""
    landmarker = FaceLandmarker(registry.weights("face_landmarker"))
    pictures = [varied(seed, 256).picture for seed in range(8)]
    found = [(picture, landmarker.detect(picture)) for picture in pictures]
    return [(picture, face.points) for picture, face in found if face is not None]


def mouth_of(points: np.ndarray) -> Mouth:
    lips = points[list(OUTER_LIPS), :2]
    x, y = (lips.min(0) + lips.max(0)) / 2
    return Mouth(float(x), float(y), 2 * covered.mouth_square(points).half / 1.9, lips)


def test_mouths_in_photos_are_clear(
    classifier: covered.MouthClassifier, faces: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    crops = np.stack([covered.cut(rgb, covered.mouth_square(at), covered.CROP_PX) for rgb, at in faces])
    assert len(crops) >= 5
    assert (classifier.logits(crops) < covered.LEAST_LOGIT).all()


@pytest.mark.parametrize("kind", [kind for kind in PAINTERS if kind not in ("mosaic", "fingers")])
def test_covers_are_found(
    kind: str, classifier: covered.MouthClassifier, faces: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    rng, crops = np.random.default_rng(0), []
    while len(crops) < 60:
        rgb, points = faces[len(crops) % len(faces)]
        hidden = cover(rgb, mouth_of(points), kind, rng, *rng.normal(0, 0.1, 2))
        if hidden.hidden >= 0.7:
            crops.append(covered.cut(hidden.rgb, covered.mouth_square(points), covered.CROP_PX))
    assert (classifier.logits(np.stack(crops)) >= covered.LEAST_LOGIT).mean() >= 0.9


def test_the_crop_is_a_square_around_the_lips() -> None:
    square = covered.mouth_square(points_at(100, 60, 40))
    assert (square.x, square.y, square.half) == (100, 60, pytest.approx(38))


@pytest.mark.parametrize("half", [4.0, 12.0, 24.0, 90.0])
def test_a_crop_has_its_size_and_its_middle_wherever_it_lies(half: float) -> None:
    rgb = np.zeros((120, 160, 3), np.uint8)
    rgb[:, 80:] = 200
    crop = covered.cut(rgb, covered.Square(79.5, 60, half), covered.CROP_PX)
    assert crop.shape == (48, 48, 3)
    assert crop[:, :22].mean() < 20 and crop[:, 26:].mean() > 180
    outside = covered.cut(rgb, covered.Square(500, -90, half), covered.CROP_PX)
    assert (outside == 200).all()


def traced(
    bright: list[bool], yaw_deg: np.ndarray | None = None, missing: tuple[int, ...] = ()
) -> list[bool]:
    tracer = covered.CoverTracer(ToldClassifier(), len(bright))
    for k, is_bright in enumerate(bright):
        at = None if k in missing else points_at(24, 24, 20)
        tracer.push(range(k, k + 1), HIDDEN if is_bright else CLEAR, at)
    return tracer.finish(np.zeros(len(bright)) if yaw_deg is None else yaw_deg).tolist()


def test_a_stretch_counts_and_a_frame_alone_does_not() -> None:
    bright = [False] * 30
    bright[4] = bright[10] = bright[11] = True
    bright[20:] = [True] * 10
    bright[25] = False
    assert traced(bright) == [False] * 20 + [True] * 10


def test_heads_that_are_turned_away_and_faces_not_found_are_not_judged() -> None:
    yaw_deg = np.zeros(20)
    yaw_deg[:5], yaw_deg[5] = 60, np.nan
    assert traced([True] * 20, yaw_deg, missing=(6,)) == [False] * 7 + [True] * 13


def test_a_frame_that_is_shown_for_long_counts_as_often() -> None:
    tracer = covered.CoverTracer(ToldClassifier(), 10)
    tracer.push(range(4), CLEAR, points_at(24, 24, 20))
    tracer.push(range(4, 10), HIDDEN, points_at(24, 24, 20))
    assert tracer.finish(np.zeros(10)).tolist() == [False] * 4 + [True] * 6


def test_nothing_to_look_at_costs_nothing() -> None:
    tracer = covered.CoverTracer(told := ToldClassifier(), 3)
    assert tracer.finish(np.full(3, np.nan)).tolist() == [False] * 3
    assert told.shown == 0


def test_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "covered_mouth.onnx"
    damaged.write_bytes(covered.WEIGHTS.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"covered mouth: .* is not an ONNX model that runs"):
        covered.MouthClassifier(damaged)


def frames_covered(path: Path, classifier: covered.MouthClassifier) -> Iterator[float]:
    """Fraction of the frames of each clip of a video in which the mouth is covered."""
    config = MeasureConfig()
    video = probe(path, Input(uri=str(path)), content_hash(path))
    seen = scan.scan(path, video, video.start_s, video.end_s, config.scan, detect.load_detector(config.scan))
    landmarker = FaceLandmarker(registry.weights("face_landmarker"))
    for clip, track in clips.candidates(video, seen.tracks, (), config.clip):
        face = LandmarkTracer(landmarker, track, clip, video)
        tracer = covered.CoverTracer(classifier, clip.num_frames)
        for shot in media.read_frames(path, video, clip.start_s, clip.end_s):
            shown = media.clip_indices(shot, clip.start_s, clip.fps, clip.num_frames)
            if shown:
                rgb = shot.of_clip(clip)
                tracer.push(shown, rgb, face.push(shown, rgb))
        yield float(tracer.finish(face.finish().angles_deg[:, 0]).mean())


@pytest.mark.parametrize(
    ("name", "least", "most"), [("00_plain", 0.0, 0.02), ("50_surgical_mask", 0.95, 1.0)]
)
def test_a_surgical_mask_of_another_making(
    name: str, least: float, most: float, cases_dir: Path, classifier: covered.MouthClassifier
) -> None:
    (fraction,) = frames_covered(cases_dir / f"{name}.mp4", classifier)
    assert least <= fraction <= most


def pixelated(rgb: np.ndarray, points: np.ndarray, cells: int, quality: int | None) -> np.ndarray:
    """With square pixels over the mouth, so many to its width, and compressed."""
    mouth, out = mouth_of(points), rgb.copy()
    block = round(mouth.width / cells)
    rows = slice(round(mouth.y - 0.7 * mouth.width), round(mouth.y + 0.7 * mouth.width))
    columns = slice(round(mouth.x - mouth.width), round(mouth.x + mouth.width))
    part = rgb[rows, columns]
    small = cv2.resize(part, None, fx=1 / block, fy=1 / block, interpolation=cv2.INTER_AREA)
    large = np.repeat(np.repeat(small, block, axis=0), block, axis=1)[: part.shape[0], : part.shape[1]]
    out[rows, columns][: large.shape[0], : large.shape[1]] = large
    if quality is None:
        return out
    data = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


@pytest.mark.parametrize(("cells", "quality"), [(4, None), (7, None), (7, 90)])
def test_a_mosaic_is_found_by_its_grid(
    faces: list[tuple[np.ndarray, np.ndarray]], cells: int, quality: int | None
) -> None:
    for rgb, points in faces:
        assert covered.mosaic_score(pixelated(rgb, points, cells, quality), points) >= covered.MOSAIC_SCORE
        assert covered.mosaic_score(rgb, points) < covered.MOSAIC_SCORE


def test_a_plain_a_small_and_an_unseen_mouth_have_no_grid() -> None:
    plain = np.full((90, 120, 3), 128, np.uint8)
    assert covered.mosaic_score(plain, points_at(60, 45, 40)) == 0.0
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    assert covered.mosaic_score(noise, points_at(60, 45, 10)) == 0.0
    assert covered.mosaic_score(noise, points_at(-200, -200, 40)) == 0.0


def test_a_mosaic_covers_the_frames_until_the_next_look(
    faces: list[tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covered, "MOSAIC_EVERY_FRAMES", 3)
    rgb, points = faces[0]
    tracer = covered.CoverTracer(ToldClassifier(), 12)
    for k in range(12):
        tracer.push(range(k, k + 1), pixelated(rgb, points, 7, None) if 3 <= k < 9 else rgb, points)
    monkeypatch.setattr(ToldClassifier, "logits", lambda _, crops: np.full(len(crops), -5.0, np.float32))
    assert tracer.finish(np.zeros(12, np.float32)).tolist() == [False] * 3 + [True] * 6 + [False] * 3
