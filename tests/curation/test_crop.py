"""Which part of a frame a clip shows, in numbers, and who is in view of it."""

from __future__ import annotations

import numpy as np
import pytest

from talkforge.curation.clips import candidates
from talkforge.curation.crop import crop_of, detection_edge_px, in_view
from talkforge.schemas.arrays import Detections, FaceTrack
from talkforge.schemas.config import ClipConfig, MeasureConfig
from talkforge.schemas.records import Rectangle
from tests.records import video

STAGE = video(1, width_px=3840, height_px=2160, coded_width_px=3840, coded_height_px=2160)
FACE = (2000.0, 800.0, 2080.0, 900.0)


def track(*boxes: tuple[float, float, float, float]) -> FaceTrack:
    """A face that is seen at every second."""
    return FaceTrack(
        scene=0, track=0, start_s=0.0, end_s=float(len(boxes)), times_s=np.arange(len(boxes), dtype=float),
        boxes=np.array(boxes, np.float32), scores=np.ones(len(boxes), np.float32), detector="x",
    )  # fmt: skip


def crop(of: FaceTrack, crop: str = "person", **config: float) -> Rectangle | None:
    return crop_of(STAGE, of, of.start_s, of.end_s, ClipConfig.model_validate({"crop": crop, **config}))


@pytest.mark.parametrize(
    ("mode", "margin", "want"),
    [
        ("none", 1.0, None),
        ("auto", 1.0, (1848, 720, 384, 480)),
        ("person", 1.0, (1848, 720, 384, 480)),  # 150 px to each side, 80 above, 300 below, to multiples of 4
        ("person", 0.5, (1924, 760, 232, 292)),
        ("face", 1.0, (1940, 740, 200, 212)),
        ("face", 0.0, (2000, 800, 80, 100)),
    ],
)
def test_the_reach_is_in_heights_of_the_face(mode: str, margin: float, want: Rectangle | None) -> None:
    assert crop(track(FACE, FACE), mode, crop_margin=margin) == want


def test_a_face_that_moves_stays_inside() -> None:
    there = (2300.0, 700.0, 2380.0, 800.0)
    assert crop(track(FACE, there, FACE), "face", crop_margin=0.0) == (2000, 700, 380, 200)
    # Only what the clip shows of the track counts, between two samples too.
    half = crop_of(STAGE, track(FACE, there), 0.0, 0.5, ClipConfig(crop="face", crop_margin=0.0))
    assert half == (2000, 748, 232, 152)


def test_the_frame_ends_the_reach() -> None:
    assert crop(track((20, 30, 100, 130))) == (0, 0, 252, 432)
    assert crop(track((3740, 2000, 3820, 2100))) == (3588, 1920, 252, 240)


@pytest.mark.parametrize(
    ("aspect", "size"), [(1.0, (480, 480)), (0.75, (384, 512)), (1.7778, (856, 480)), (0.5625, (384, 680))]
)
def test_an_aspect_grows_the_crop(aspect: float, size: tuple[int, int]) -> None:
    found = crop(track(FACE), crop_aspect=aspect)
    assert found is not None
    assert (found.width_px, found.height_px) == pytest.approx(size, abs=4)
    assert found.left_px + found.width_px / 2 == pytest.approx(2040, abs=4)
    assert found.top_px + found.height_px / 2 == pytest.approx(960, abs=4)


def test_an_aspect_gives_up_what_the_frame_does_not_have_below_first() -> None:
    large = (1600.0, 700.0, 2200.0, 1300.0)  # 600 px: the person would need 2400 x 2280
    found = crop(track(large), crop_aspect=0.5)
    assert found == (1360, 0, 1080, 2160)
    wide = crop(track((1600, 900, 2000, 1300)), crop_aspect=4.0)  # of 1580 px in height 960 are left
    assert wide == (0, 580, 3840, 960)


def test_a_face_that_would_not_fit_keeps_its_crop_without_the_aspect() -> None:
    walking = track((100, 900, 200, 1000), (3600, 900, 3700, 1000))
    assert crop(walking, "face", crop_aspect=0.5) == crop(walking, "face")


def test_a_frame_with_little_beside_the_person_stays_whole() -> None:
    config = ClipConfig(crop="person")
    portrait = video(1, width_px=512, height_px=512, coded_width_px=512, coded_height_px=512)
    assert crop_of(portrait, track((150, 100, 350, 340)), 0, 1, config) is None
    assert crop_of(portrait, track((150, 100, 250, 200)), 0, 1, config) == (0, 20, 400, 480)


@pytest.mark.parametrize(("longest_edge_px", "is_whole"), [(1024, True), (1023, False)])
def test_by_itself_only_a_frame_that_would_be_scaled_down_is_cropped(
    longest_edge_px: int, is_whole: bool
) -> None:
    frame = video(1, width_px=1024, height_px=576, coded_width_px=1024, coded_height_px=576)
    config = ClipConfig(longest_edge_px=longest_edge_px)
    assert config.crop == "auto"
    assert (crop_of(frame, track((500, 100, 540, 150)), 0, 1, config) is None) == is_whole
    assert crop_of(frame, track((500, 100, 540, 150)), 0, 1, ClipConfig(crop="person")) is not None


def test_the_clip_has_the_crop_and_its_pixels() -> None:
    config = ClipConfig(crop="person", longest_edge_px=240)
    ((clip, _),) = candidates(STAGE, [track(FACE, FACE, FACE)], [], config)
    assert (clip.crop, clip.width_px, clip.height_px) == ((1848, 720, 384, 480), 192, 240)
    ((whole, _),) = candidates(STAGE, [track(FACE, FACE, FACE)], [], ClipConfig(crop="none"))
    assert (whole.crop, whole.width_px, whole.height_px) == (None, 1024, 576)
    assert clip.clip_id == whole.clip_id


@pytest.mark.parametrize(
    ("crop", "width_px", "scan_px", "want"),
    [
        ("none", 3840, 480, 480),
        ("person", 3840, 480, 960),
        ("auto", 3840, 480, 960),
        ("auto", 1020, 128, 128),
        ("face", 1920, 480, 480),
        ("face", 3840, 1200, 1200),
    ],
)
def test_faces_are_looked_for_in_larger_frames_of_large_sources(
    crop: str, width_px: int, scan_px: int, want: int
) -> None:
    config = MeasureConfig.model_validate({"clip": {"crop": crop}, "scan": {"longest_edge_px": scan_px}})
    assert detection_edge_px(video(1, width_px=width_px, height_px=576), config) == want


def test_a_face_is_in_view_where_a_tenth_of_it_is() -> None:
    boxes = np.array(
        [[10, 10, 20, 20], [98, 10, 108, 20], [99.1, 10, 109.1, 20], [300, 0, 310, 10]], np.float32
    )
    seen = Detections(0.0, boxes, np.ones(4, np.float32))
    assert in_view(seen, Rectangle(0, 0, 100, 100)) == 2
    assert in_view(seen, None) == 4
    nobody = Detections(0.0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert in_view(nobody, Rectangle(0, 0, 100, 100)) == 0
