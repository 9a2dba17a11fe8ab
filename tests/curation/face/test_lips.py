from __future__ import annotations

import cv2
import numpy as np
import pytest

from examples.portraits import frame
from examples.speech import speak
from examples.talking_heads import talk
from talkforge.curation.face import lips
from talkforge.curation.face.landmarks import FaceLandmarker, LandmarkTracer
from talkforge.schemas.arrays import FaceTrack, Landmarks, LipTrace
from talkforge.schemas.config import LipsConfig
from talkforge.schemas.records import Clip, Video
from tests.conftest import Packaged

PLAIN = LipsConfig(dilation=0, smoothing_frames=1)
CENTRE = np.array([100.0, 80.0])
FPS = 25.0


def clip(num_frames: int, width_px: int = 200, height_px: int = 160) -> Clip:
    return Clip(
        clip_id="c",
        video_id="v",
        uri="v.mp4",
        scene=0,
        track=0,
        start_s=0,
        end_s=num_frames / FPS,
        fps=FPS,
        num_frames=num_frames,
        width_px=width_px,
        height_px=height_px,
    )


def mouths(half_height: np.ndarray, half_width: float = 30.0, centre: np.ndarray = CENTRE) -> Landmarks:
    """Faces whose outer lips are an ellipse, clockwise from the viewer's left corner."""
    angles = np.pi + 2 * np.pi * np.arange(20) / 20
    points = np.zeros((len(half_height), 478, 3), np.float32)
    points[:, lips.OUTER_LIPS, 0] = centre[..., 0, None] + half_width * np.cos(angles)
    points[:, lips.OUTER_LIPS, 1] = centre[..., 1, None] + half_height[:, None] * np.sin(angles)
    return Landmarks(points, np.zeros((len(points), 52), np.float32), np.zeros((len(points), 3), np.float32))


def blanked(landmarks: Landmarks, missing: list[int]) -> Landmarks:
    points, angles = landmarks.points.copy(), landmarks.angles_deg.copy()
    points[missing] = angles[missing] = np.nan
    return Landmarks(points, landmarks.blendshapes, angles)


def ellipse(half_width: float, half_height: float, centre: np.ndarray = CENTRE) -> np.ndarray:
    y, x = np.mgrid[:160, :200]
    return ((x - centre[0]) / half_width) ** 2 + ((y - centre[1]) / half_height) ** 2 <= 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_outer_lips_are_those_of_mediapipe() -> None:
    from mediapipe.tasks.python.vision import FaceLandmarksConnections

    pairs = {frozenset((c.start, c.end)) for c in FaceLandmarksConnections.FACE_LANDMARKS_LIPS}
    ring = zip(lips.OUTER_LIPS, (*lips.OUTER_LIPS[1:], lips.OUTER_LIPS[0]), strict=True)
    assert all(frozenset(pair) in pairs for pair in ring)


def test_the_contour_is_the_known_ellipse() -> None:
    trace = lips.trace(mouths(np.full(3, 12.0)), PLAIN)
    assert trace.contour.shape == (3, 40, 2)
    assert trace.valid.tolist() == [2, 2, 2]
    relative = (trace.contour[1] - CENTRE) / (30, 12)
    np.testing.assert_allclose(np.linalg.norm(relative, axis=1), 1, atol=1e-3)
    assert iou(lips.rasterise(trace.contour[1], 160, 200), ellipse(30, 12)) > 0.98


def test_dilation_moves_every_side_by_a_fraction_of_the_width() -> None:
    contour = lips.trace(mouths(np.full(1, 12.0)), LipsConfig(dilation=0.1, smoothing_frames=1)).contour[0]
    low, high = contour.min(0), contour.max(0)
    np.testing.assert_allclose(low, CENTRE - np.array([36, 18]), atol=0.05)
    np.testing.assert_allclose(high, CENTRE + np.array([36, 18]), atol=0.05)


def test_a_small_mouth_is_neither_grown_nor_shrunk_by_filling() -> None:
    for shift in np.linspace(0, 1, 5):
        centre = CENTRE + shift
        contour = lips.trace(mouths(np.full(1, 4.0), 10.0, centre), PLAIN).contour[0]
        mask = lips.rasterise(contour, 160, 200)
        assert mask.sum() == pytest.approx(np.pi * 40, rel=0.04)
        assert iou(mask, ellipse(10, 4, centre)) > 0.93


def test_a_pixel_is_set_where_more_than_half_of_its_cells_are_covered() -> None:
    """Cells are those of a grid that is `SUBPIXELS` finer."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        contour = np.concatenate([rng.uniform(0, 30, (6, 2)), [[0, 0], [29, 29]]]).astype(np.float32)
        polygon = np.round(((contour + 0.5) * lips.SUBPIXELS - 0.5) * 16).astype(np.int32)
        fine = cv2.fillPoly(np.zeros((120, 120), np.uint8), [polygon], 1, shift=4)
        cells = fine.reshape(30, lips.SUBPIXELS, 30, lips.SUBPIXELS).mean((1, 3))
        assert np.array_equal(lips.rasterise(contour, 30, 30), cells > 0.5)


def test_the_mask_is_cut_off_at_the_edges() -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    disc = np.stack([np.cos(angles), np.sin(angles)], 1) * 20
    whole = lips.rasterise(disc + 30.0, 61, 61)
    assert np.array_equal(lips.rasterise(disc.astype(np.float32), 31, 31), whole[30:, 30:])
    assert lips.rasterise(disc + np.array([-25.0, 10]), 31, 31).sum() == 0
    assert lips.rasterise(disc * 100, 31, 31).all()


def test_a_missing_frame_has_an_empty_mask() -> None:
    assert not lips.rasterise(np.full((40, 2), np.nan, np.float32), 20, 30).any()
    with pytest.raises(ValueError, match=r"contour: expected shape \[any, 2\]"):
        lips.rasterise(np.zeros((40, 3), np.float32), 20, 30)


@pytest.mark.parametrize("centre_hz", [0.0, 1.5])
def test_smoothing_keeps_fast_motion_and_adds_no_lag(centre_hz: float) -> None:
    """A mouth that opens at 4 Hz in a head that nods."""
    time_s = np.arange(100) / FPS
    opening = 14 + 8 * np.sin(2 * np.pi * 4 * time_s)
    centre = CENTRE + np.stack([np.zeros(100), 20 * np.sin(2 * np.pi * centre_hz * time_s)], 1)
    trace = lips.trace(mouths(opening, centre=centre), LipsConfig(dilation=0))
    height = np.ptp(trace.contour[:, :, 1], axis=1) / 2
    inner = slice(5, -5)
    basis = np.exp(2j * np.pi * 4 * time_s[inner])
    given = np.vdot(basis, opening[inner] - opening[inner].mean())
    found = np.vdot(basis, height[inner] - height[inner].mean())
    assert 0.9 <= abs(found / given) <= 1.01
    lag_frames = -np.angle(found / given) / (2 * np.pi * 4) * FPS
    assert abs(lag_frames) < 0.01


def test_smoothing_halves_the_jitter() -> None:
    still = mouths(np.full(200, 12.0))
    noise = np.random.default_rng(0).normal(0, 1, still.points.shape).astype(np.float32)
    shaken = Landmarks(still.points + noise, still.blendshapes, still.angles_deg)
    rough = lips.trace(shaken, PLAIN).contour.std(0).mean()
    smooth = lips.trace(shaken, LipsConfig(dilation=0, smoothing_frames=5)).contour.std(0).mean()
    assert smooth / rough == pytest.approx(np.sqrt(17 / 35), rel=0.03)


def test_short_gaps_are_interpolated_and_long_ones_stay_missing() -> None:
    heights = np.linspace(10, 29, 20)
    config = LipsConfig(dilation=0, smoothing_frames=5, max_gap_frames=3)
    trace = lips.trace(blanked(mouths(heights), [0, 5, 6, 7, 11, 12, 13, 14, 19]), config)
    assert trace.valid.tolist() == [0, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 2, 2, 2, 2, 0]
    assert np.array_equal(np.isfinite(trace.contour).all((1, 2)), trace.valid > 0)
    found = np.ptp(trace.contour[:, :, 1], axis=1) / 2
    known = trace.valid > 0
    np.testing.assert_allclose(found[known], heights[known], atol=0.02)


def test_a_mouth_turned_away_is_missing() -> None:
    seen = mouths(np.full(8, 12.0))
    seen.angles_deg[:, 0] = [0, 59, -59, 61, -80, 75, 70, 60]
    trace = lips.trace(seen, LipsConfig(max_gap_frames=2))
    assert trace.valid.tolist() == [2, 2, 2, 0, 0, 0, 0, 2]


def test_measure_counts_codes_and_area() -> None:
    trace = lips.trace(blanked(mouths(np.full(10, 12.0)), [3, 4, 9]), PLAIN)
    row = lips.measure(trace, clip(10))
    assert row.lip_valid_fraction == pytest.approx(0.7)
    assert row.lip_interpolated_fraction == pytest.approx(0.2)
    assert row.lip_area_fraction == pytest.approx(np.pi * 30 * 12 / (160 * 200), rel=0.01)
    empty = LipTrace(np.full((4, 40, 2), np.nan, np.float32), np.zeros(4, np.uint8))
    assert lips.measure(empty, clip(4)).lip_area_fraction == 0
    assert lips.measure(empty, clip(4)).lip_valid_fraction == 0


@pytest.mark.parametrize("name", ["collins", "hopper"])
def test_masks_of_a_talking_portrait_fit_its_known_mouth(name: str, packaged: Packaged) -> None:
    take = talk(frame(name, 480, 480), speak("Many people walk over the harbour.", duration_s=2.0), seed=1)
    (face,) = take.faces
    shown = clip(take.num_frames, 480, 480)
    video = Video(
        video_id="v",
        sha256="",
        uri="v.mp4",
        num_bytes=0,
        container="",
        video_codec="",
        pixel_format="",
        width_px=480,
        height_px=480,
        coded_width_px=480,
        coded_height_px=480,
        rotation_deg=0,
        sample_aspect_ratio=1,
        fps=FPS,
        fps_nominal=FPS,
        start_s=0,
        end_s=shown.end_s,
    )
    every = np.arange(0, take.num_frames, 12)
    track = FaceTrack(0, 0, 0, shown.end_s, every / FPS, face.box[every], np.ones(len(every), np.float32), "")
    tracer = LandmarkTracer(FaceLandmarker(packaged("face_landmarker")), track, shown, video)
    for k, rgb in enumerate(take.frames()):
        tracer.push(k, rgb)
    trace = lips.trace(tracer.finish(), LipsConfig(dilation=0))
    assert (trace.valid == 2).mean() >= 0.95
    scores = [
        iou(lips.rasterise(trace.contour[k], 480, 480), lips.rasterise(face.contour[k], 480, 480))
        for k in np.flatnonzero(trace.valid == 2)
    ]
    assert np.mean(scores) >= 0.8
    # The least is that of thin closed lips, of which a pixel more or less is a tenth.
    assert np.min(scores) >= 0.7
    truth = np.ptp(face.contour[..., 1], axis=1)
    assert np.corrcoef(truth, np.ptp(trace.contour[..., 1], axis=1))[0, 1] > 0.8


def test_the_dilated_contour_does_not_cross_itself_on_a_bowed_lip() -> None:
    """A mouth with a deep cupid's bow, grown: its mask is the undilated one, grown by as much."""
    base = mouths(np.full(1, 12.0))
    base.points[0, 0, 1] += 3  # the middle of the upper lip
    thin = lips.trace(base, PLAIN).contour[0]
    grown = lips.rasterise(lips.trace(base, LipsConfig(smoothing_frames=1)).contour[0], 160, 200)
    reach = round(0.08 * 60)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    wanted = cv2.dilate(lips.rasterise(thin, 160, 200).astype(np.uint8), disc) > 0
    assert iou(grown, wanted) > 0.95
