"""Cuts at known frames, in drawn scenes with given faces and in real frames that are cut together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from talkforge.curation.face.detect import load_detector
from talkforge.curation.shots.jumps import Cut, CutDetector, scenes
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.errors import ModelError
from tests.conftest import RealClip

WIDTH_PX, HEIGHT_PX = 320, 180
Face = tuple[float, float, float]


def studio(seed: int = 0) -> np.ndarray:
    """A soft grey backdrop."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(noise, (0, 0), 12).astype(np.float32)
    return np.clip(110 + 2 * (soft - soft.mean()), 0, 255).astype(np.uint8)


def shown(face: Face | None, background: np.ndarray, frame: int, skin: int = 150) -> np.ndarray:
    """`background` with a face (centre x, y and size), and camera noise that differs by frame."""
    picture = background.copy()
    if face is not None:
        x, y, size = face
        cv2.ellipse(
            picture, (round(x), round(y)), (round(size * 0.4), round(size / 2)), 0, 0, 360, (skin,) * 3, -1
        )
        cv2.circle(
            picture, (round(x - size * 0.15), round(y - size * 0.1)), round(size * 0.06), (40,) * 3, -1
        )
        cv2.circle(
            picture, (round(x + size * 0.15), round(y - size * 0.1)), round(size * 0.06), (40,) * 3, -1
        )
    noise = np.random.default_rng(frame).normal(0, 2, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def box(face: Face | None) -> np.ndarray:
    if face is None:
        return np.zeros((0, 4), np.float32)
    x, y, size = face
    return np.array([[x - size / 2, y - size / 2, x + size / 2, y + size / 2]], np.float32)


def found(
    pictures: Sequence[np.ndarray], boxes: Sequence[np.ndarray], config: ScanConfig | None = None
) -> list[tuple[int, str]]:
    cut_detector = CutDetector(config or ScanConfig(), boxes.__getitem__, pictures[0].shape[1])
    for frame, picture in enumerate(pictures):
        cut_detector.push(frame / 25, picture)
    return [(cut.frame, cut.opened_by) for cut in cut_detector.finish()]


def told(shots: Sequence[tuple[int, Face | None]], config: ScanConfig | None = None) -> list[tuple[int, str]]:
    """Cuts found in shots (frames, face) before one and the same backdrop."""
    background = studio()
    places = [face for length, face in shots for _ in range(length)]
    pictures = [shown(face, background, frame) for frame, face in enumerate(places)]
    return found(pictures, [box(face) for face in places], config)


def sway(frame: int) -> Face:
    return (160 + 12 * np.sin(frame / 3), 90 + 4 * np.sin(frame / 5), 70)


# --- drawn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", ["adaptive", "content"])
@pytest.mark.parametrize("at", [1, 2, 3, 25, 47, 48, 49])
def test_a_cut_between_places_is_found_by_its_colours(detector: str, at: int) -> None:
    config = ScanConfig(scene_detector=detector)
    shots = np.array([[200, 60, 40]] * at + [[30, 90, 180]] * (50 - at), np.uint8)
    pictures = [np.broadcast_to(colour, (HEIGHT_PX, WIDTH_PX, 3)).copy() for colour in shots]
    assert found(pictures, [box(None)] * 50, config) == [(at, "picture")]


@pytest.mark.parametrize(
    "after",
    [(200, 90, 70), (160, 90, 90), (170, 90, 70), None],
    ids=["elsewhere", "punched in", "a seventh of a face aside", "gone"],
)
def test_a_face_that_jumps_in_one_studio_is_a_cut(after: Face | None) -> None:
    assert told([(30, (160, 90, 70)), (30, after)]) == [(30, "face_jump")]


def test_two_cuts_close_together_are_both_found() -> None:
    here, there = (130, 90, 70), (190, 90, 70)
    assert told([(20, here), (3, there), (20, here)]) == [(20, "face_jump"), (23, "face_jump")]


def test_another_face_in_the_same_place_is_a_cut() -> None:
    background, face = studio(), (160, 90, 70)
    pictures = [shown(face, background, f, skin=150 if f < 25 else 190) for f in range(50)]
    assert found(pictures, [box(face)] * 50) == [(25, "face_jump")]


def test_a_face_that_sways_is_no_cut() -> None:
    background = studio()
    pictures = [shown(sway(f), background, f) for f in range(100)]
    assert found(pictures, [box(sway(f)) for f in range(100)]) == []


def test_a_slide_that_changes_behind_the_speaker_is_no_cut() -> None:
    slide = studio()
    slide[20:160, 220:300] = 200
    pictures = [shown(sway(f), studio() if f < 40 else slide, f) for f in range(80)]
    assert found(pictures, [box(sway(f)) for f in range(80)]) == []


def test_repeated_frames_of_converted_film_are_no_cuts() -> None:
    """24 to 30 frames per second: every fifth frame is shown twice."""
    background = studio()
    source = [f - f // 5 for f in range(100)]
    pictures = [shown(sway(f), background, f) for f in source]
    assert found(pictures, [box(sway(f)) for f in source]) == []


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_dropped_frame_of_a_head_that_moves_is_no_cut(speed: float) -> None:
    """25 of 30 frames: every fifth step is twice as long."""
    background = studio()
    source = [f + f // 5 for f in range(100)]
    places = [(160 + 40 * np.sin(speed * f / 15), 90, 70) for f in source]
    pictures = [shown(place, background, f) for f, place in enumerate(places)]
    assert found(pictures, [box(place) for place in places]) == []


def test_a_nod_out_of_rest_with_a_dropped_frame_is_no_cut() -> None:
    background = studio()
    places = [(160, 90 + shift, 70) for shift in [0] * 30 + [1, 2, 10, 14, 15] + [16] * 30]
    pictures = [shown(place, background, f) for f, place in enumerate(places)]
    assert found(pictures, [box(place) for place in places]) == []


@pytest.mark.parametrize("frames", [1, 2])
def test_a_flash_is_no_cut(frames: int) -> None:
    face = (160, 90, 70)
    pictures = [shown(face, studio(), f).astype(np.float32) for f in range(60)]
    lit = [p * 1.5 + 60 if 30 <= f < 30 + frames else p for f, p in enumerate(pictures)]
    assert found([np.clip(p, 0, 255).astype(np.uint8) for p in lit], [box(face)] * 60) == []


def test_a_change_of_light_that_stays_is_a_cut() -> None:
    face = (160, 90, 70)
    pictures = [shown(face, studio(), f).astype(np.float32) for f in range(60)]
    lit = [p * 1.5 + 60 if f >= 30 else p for f, p in enumerate(pictures)]
    assert found([np.clip(p, 0, 255).astype(np.uint8) for p in lit], [box(face)] * 60) == [(30, "picture")]


def test_a_black_frame_between_two_of_one_shot_is_cut_out() -> None:
    face = (160, 90, 70)
    pictures = [shown(face, studio(), f) if f != 30 else np.zeros_like(studio()) for f in range(60)]
    faces = [box(face if f != 30 else None) for f in range(60)]
    assert [frame for frame, _ in found(pictures, faces)] == [30, 31]


def test_the_detector_none_finds_no_cuts() -> None:
    assert told([(20, (100, 90, 70)), (20, (220, 90, 70))], ScanConfig(scene_detector="none")) == []


def test_the_threshold_is_the_detectors() -> None:
    colours = [(90, 90, 90)] * 20 + [(120, 120, 120)] * 20
    pictures = [np.full((HEIGHT_PX, WIDTH_PX, 3), colour, np.uint8) for colour in colours]
    boxes = [box(None)] * 40
    assert found(pictures, boxes, ScanConfig(scene_detector="content", scene_threshold=9.9)) == [
        (20, "picture")
    ]
    assert found(pictures, boxes, ScanConfig(scene_detector="content", scene_threshold=10.1)) == []


def test_faces_are_detected_only_at_spikes_and_in_time() -> None:
    background, looked = studio(), []
    newest = -1

    def detect_faces(frame: int) -> np.ndarray:
        looked.append(frame)
        assert newest - frame <= 7
        return box((160, 90, 70) if frame < 30 else (220, 90, 70))

    cut_detector = CutDetector(ScanConfig(), detect_faces, WIDTH_PX)
    for newest in range(60):
        cut_detector.push(
            newest / 25, shown((160, 90, 70) if newest < 30 else (220, 90, 70), background, newest)
        )
    assert [cut.time_s for cut in cut_detector.finish()] == [30 / 25]
    assert looked == [29, 30]


def test_a_sliver_of_a_face_at_the_edge_is_not_compared() -> None:
    slide = studio()
    slide[20:160, 20:200] = 200
    sliver = np.array([[WIDTH_PX, 40, WIDTH_PX, 90]], np.float32)
    pictures = [shown(None, studio() if f < 20 else slide, f) for f in range(40)]
    looked: list[int] = []

    def detect_faces(frame: int) -> np.ndarray:
        looked.append(frame)
        return sliver

    # A threshold out of reach leaves the decision to the face.
    cut_detector = CutDetector(
        ScanConfig(scene_detector="content", scene_threshold=256.0), detect_faces, WIDTH_PX
    )
    for frame, picture in enumerate(pictures):
        cut_detector.push(frame / 25, picture)
    assert cut_detector.finish() == ()
    assert looked == [19, 20]


def test_one_frame_and_none_have_no_cuts() -> None:
    cut_detector = CutDetector(ScanConfig(), lambda _: box(None), WIDTH_PX)
    assert cut_detector.finish() == ()
    cut_detector.push(0.0, studio())
    assert cut_detector.finish() == ()


def test_scenes_cover_the_span_without_gap() -> None:
    cuts = [
        Cut(0, 1.0, "picture"),
        Cut(10, 1.4, "picture"),
        Cut(30, 2.2, "face_jump"),
        Cut(80, 4.0, "picture"),
    ]
    rows = [(s.index, s.start_s, s.end_s, s.opened_by) for s in scenes("0" * 12, 1.0, 4.0, cuts)]
    assert rows == [(0, 1.0, 1.4, "start"), (1, 1.4, 2.2, "picture"), (2, 2.2, 4.0, "face_jump")]


# --- real frames ---------------------------------------------------------------------------------


def real(path: Path, longest_edge_px: int = 480) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = []
        for frame in container.decode(video=0):
            scale = min(1.0, longest_edge_px / max(frame.width, frame.height))
            size = (round(frame.width * scale), round(frame.height * scale))
            frames.append(
                frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="AREA")
            )
        return frames


def looked_at(pictures: Sequence[np.ndarray]) -> list[tuple[int, str]]:
    """Cuts found with the real face detector."""
    try:
        detector = load_detector(ScanConfig())
    except ModelError as error:
        pytest.skip(f"CenterFace's weights are not available: {error}")
    cut_detector = CutDetector(
        ScanConfig(), lambda frame: detector.detect(pictures[frame])[0], pictures[0].shape[1]
    )
    for frame, picture in enumerate(pictures):
        cut_detector.push(frame / 25, picture)
    return [(cut.frame, cut.opened_by) for cut in cut_detector.finish()]


def zoomed(picture: np.ndarray, zoom: float, shift: float = 0.0) -> np.ndarray:
    """The middle of a picture, enlarged; `shift` moves the section by a share of the width."""
    height_px, width_px = picture.shape[:2]
    x, y = width_px * (0.5 - 0.5 / zoom + shift), height_px * (0.5 - 0.5 / zoom)
    matrix = np.array([[zoom, 0, -zoom * x], [0, zoom, -zoom * y]])
    return cv2.warpAffine(picture, matrix, (width_px, height_px), borderMode=cv2.BORDER_REPLICATE)


def test_the_stage_has_four_shots(real_clip: RealClip) -> None:
    assert [frame for frame, _ in looked_at(real(real_clip("fr_hamilton.mp4")))] == [20, 82, 211]


@pytest.mark.parametrize(
    "name",
    [
        "grid_bbaf2n.mpg",
        "grid_brbk7n.mpg",
        "grid_id2_swwp2s.mpg",
        "grid_lrwp9a.mpg",
        "st_katie.mp4",
        "vr_1.mp4",
        "lp_s18.mp4",
        "wh_kennedy_low.mp4",
        "sk_carphone_pristine.mp4",
        "sk_bigbuckbunny.mp4",
    ],
)
def test_a_continuous_shot_has_no_cut(real_clip: RealClip, name: str) -> None:
    assert looked_at(real(real_clip(name), 256)) == []


@pytest.mark.parametrize("name", ["vr_aoc.mp4", "vox_61.mp4", "sn_lemon.avi", "misc_beard_old.mp4"])
def test_nods_blinks_and_dropped_frames_are_no_cuts(real_clip: RealClip, name: str) -> None:
    assert looked_at(real(real_clip(name))) == []


def test_speakers_of_one_studio_cut_together(real_clip: RealClip) -> None:
    names = ["grid_bbaf2n", "grid_lrwp9a", "grid_id2_swwp2s", "grid_brbk7n"]
    spans = [(0, 31), (20, 57), (5, 48), (30, 75)]
    pictures = [p for n, (a, b) in zip(names, spans, strict=True) for p in real(real_clip(f"{n}.mpg"))[a:b]]
    assert [frame for frame, _ in looked_at(pictures)] == [31, 68, 111]


@pytest.mark.parametrize(
    ("before", "after"),
    [((1.0, 0.0), (1.1, 0.0)), ((1.1, 0.0), (1.0, 0.0)), ((1.3, 0.0), (1.3, 0.02))],
    ids=["punch in", "pull out", "aside"],
)
def test_a_second_camera_that_colours_do_not_show(
    real_clip: RealClip, before: tuple[float, float], after: tuple[float, float]
) -> None:
    pictures = real(real_clip("grid_brbk7n.mpg"))
    cut = [zoomed(p, *(before if f < 33 else after)) for f, p in enumerate(pictures)]
    assert looked_at(cut) == [(33, "face_jump")]


@pytest.mark.parametrize("name", ["grid_bbaf2n.mpg", "st_katie.mp4"])
def test_a_punch_in_by_half_is_found(real_clip: RealClip, name: str) -> None:
    pictures = real(real_clip(name), 360)[:75]
    cut = [p if f < 41 else zoomed(p, 1.5) for f, p in enumerate(pictures)]
    assert [frame for frame, _ in looked_at(cut)] == [41]
