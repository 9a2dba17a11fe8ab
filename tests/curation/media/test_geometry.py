"""A crop of the stored frame is the crop of what is shown, however the file turns and stretches it."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.media import clip_size, from_clip_px, on_grid, to_clip_px, uncropped, whole_frame
from talkforge.curation.media.geometry import GRID_PX, coded_rectangle, height_scale, longer_edge_px
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.records import Clip, Input, Rectangle, Video
from tests.records import clip_of, video

TURNS = list(itertools.product((0, 90, 180, 270), (False, True)))


def turned(width_px: int, height_px: int, rotation_deg: int, mirrored: bool, stretch: float = 1.0) -> Video:
    """A video of this coded size, whose pixels are `stretch` times as wide as high."""
    shown = (round(width_px * stretch), height_px)
    shown = shown[::-1] if rotation_deg in (90, 270) else shown
    return video(
        1, coded_width_px=width_px, coded_height_px=height_px, width_px=shown[0], height_px=shown[1],
        rotation_deg=rotation_deg, mirrored=mirrored,
    )  # fmt: skip


def cropped(crop: Rectangle, longest_edge_px: int, of: Video) -> Clip:
    width_px, height_px = clip_size(of, longest_edge_px, crop)
    names = ("crop_left_px", "crop_top_px", "crop_width_px", "crop_height_px")
    return clip_of(25, width_px, height_px).model_copy(update=dict(zip(names, crop, strict=True)))


@pytest.mark.parametrize("stretch", [1.0, 16 / 15, 4 / 3])
@pytest.mark.parametrize(("rotation_deg", "mirrored"), TURNS)
def test_a_crop_on_the_grid_holds_what_is_wanted_and_is_whole_in_the_file(
    rotation_deg: int, mirrored: bool, stretch: float
) -> None:
    of = turned(640, 360, rotation_deg, mirrored, stretch)
    for left, top, width, height in (
        (10.0, 30.0, 101.0, 83.0),
        (0.0, 0.0, 8.0, 8.0),
        (250.0, 200.0, 90.5, 77.0),
    ):
        wanted = Rectangle(left, top, width, height)
        found = on_grid(of, wanted)
        assert found.left_px <= left + 1e-3 and found.top_px <= top + 1e-3
        assert found.left_px + found.width_px >= left + width - 1e-3
        assert found.top_px + found.height_px >= top + height - 1e-3
        grown_px = 2 * GRID_PX * stretch
        assert found.width_px < width + grown_px and found.height_px < height + grown_px
        assert all(edge % GRID_PX == 0 for edge in coded_rectangle(of, found))
        assert on_grid(of, found) == pytest.approx(found, abs=1e-6)


def test_a_crop_ends_at_the_frame() -> None:
    of = turned(854, 482, 0, False)
    assert on_grid(of, Rectangle(-50, 400, 2000, 500)) == (0, 400, 852, 80)
    assert on_grid(of, Rectangle(853, 481, 1, 1)) == (848, 476, 4, 4)


def pattern(width_px: int, height_px: int) -> np.ndarray:
    """uint8 RGB [H, W, 3]: every place differs from its neighbours, smoothly enough for subsampled colour."""
    y, x = np.mgrid[:height_px, :width_px]
    waves = [np.sin(x / 9 + y / 23), np.sin(y / 7 - x / 31), np.sin((x + y) / 13)]
    return np.stack([120 + 90 * wave for wave in waves], -1).astype(np.uint8)


def stored(path: Path, pix_fmt: str, width_px: int, height_px: int) -> Path:
    """A lossless file of one frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, pix_fmt
        frame = av.VideoFrame.from_ndarray(pattern(width_px, height_px), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


def frame_of(path: Path) -> tuple[media.Frame, Video]:
    found = probe(path, Input(uri=str(path)), content_hash(path))
    return next(iter(media.read_frames(path, found))), found


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuv422p", "yuv411p", "yuv444p", "yuv420p10le", "gray", "bgr0"]
)
@pytest.mark.parametrize(("rotation_deg", "mirrored"), [(0, False), (90, False), (180, True), (270, True)])
def test_the_frame_of_a_clip_is_the_crop_of_the_whole(
    tmp_path: Path, pix_fmt: str, rotation_deg: int, mirrored: bool
) -> None:
    path = stored(tmp_path / "a.mkv", pix_fmt, 160, 96)
    found = probe(path, Input(uri=str(path)), content_hash(path))
    shown = (96, 160) if rotation_deg in (90, 270) else (160, 96)
    of = found.model_copy(
        update={
            "rotation_deg": rotation_deg,
            "mirrored": mirrored,
            "width_px": shown[0],
            "height_px": shown[1],
        }
    )
    frame = next(iter(media.read_frames(path, of)))
    left, top, width, height = on_grid(of, Rectangle(21, 13, 41, 62))
    clip = cropped(Rectangle(left, top, width, height), 1024, of)
    assert (clip.width_px, clip.height_px) == (width, height)
    part = frame.rgb()[int(top) : int(top + height), int(left) : int(left + width)]
    inside = slice(0, None) if pix_fmt in ("yuv420p", "gray") else slice(8, -8)  # where colour is resampled
    np.testing.assert_array_equal(frame.of_clip(clip)[inside, inside], part[inside, inside])


def test_a_large_crop_is_scaled_down_like_the_whole(tmp_path: Path) -> None:
    frame, of = frame_of(stored(tmp_path / "a.mkv", "yuv420p", 640, 480))
    clip = cropped(Rectangle(160.0, 80.0, 320.0, 400.0), 200, of)
    assert (clip.width_px, clip.height_px) == (160, 200)
    whole, shown = frame.rgb(320, 240).astype(int), frame.of_clip(clip)
    assert np.abs(shown - whole[40:, 80:240]).mean() < 0.3  # at its edges the filter sees no neighbours
    assert min(np.abs(shown - whole[39:-1, 80:240]).mean(), np.abs(shown - whole[40:, 81:241]).mean()) > 5


def test_a_frame_of_another_size_is_cropped_where_it_is_shown(tmp_path: Path) -> None:
    frame, of = frame_of(stored(tmp_path / "a.mkv", "yuv420p", 160, 96))
    smaller = of.model_copy(
        update={"coded_width_px": 320, "coded_height_px": 240, "width_px": 320, "height_px": 240}
    )
    frame = next(iter(media.read_frames(tmp_path / "a.mkv", smaller)))
    clip = cropped(Rectangle(80.0, 20.0, 120.0, 100.0), 1024, smaller)
    whole = frame.rgb(320, 240).astype(int)  # on black: 320 x 192, from row 24 on
    assert whole[:24].max() == 0 and whole[30].max() > 100
    assert np.abs(frame.of_clip(clip).astype(int) - whole[20:120, 80:200]).mean() < 2


def test_coordinates_go_there_and_back() -> None:
    of = video(1, width_px=3840, height_px=2160)
    clip = cropped(Rectangle(1000.0, 400.0, 800.0, 1200.0), 600, of)
    assert (clip.width_px, clip.height_px) == (400, 600)
    boxes = np.array([[1000, 400, 1800, 1600], [1200, 500, 1300, 620]], np.float32)
    found = to_clip_px(boxes, clip, of)
    np.testing.assert_array_equal(found, [[0, 0, 400, 600], [100, 50, 150, 110]])
    np.testing.assert_array_equal(from_clip_px(found, clip, of), boxes)
    assert height_scale(clip, of) == 0.5
    whole = uncropped(clip, of, 1024)
    assert (whole.width_px, whole.height_px, whole.crop) == (1024, 576, None)
    np.testing.assert_allclose(to_clip_px(boxes[0], whole, of), boxes[0] * 1024 / 3840, rtol=1e-6)
    assert whole_frame(of) == (0, 0, 3840, 2160)


@pytest.mark.parametrize(
    ("crop", "longest_px", "want"),
    [
        (Rectangle(0, 0, 300, 200), 1024, (300, 200)),
        (Rectangle(0, 0, 300, 201.6), 1024, (300, 200)),
        (Rectangle(8, 8, 1200, 1600), 800, (600, 800)),
        (Rectangle(8, 8, 1201, 1600), 800, (600, 800)),
        (None, 1024, (1024, 576)),
    ],
)
def test_a_clip_is_even_and_never_larger_than_its_crop(
    crop: Rectangle | None, longest_px: int, want: tuple[int, int]
) -> None:
    assert clip_size(video(1, width_px=3840, height_px=2160), longest_px, crop) == want


def test_half_a_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="a crop has four numbers, or none"):
        Clip.model_validate(clip_of(1, 8, 8).model_dump() | {"crop_left_px": 3.0})


@pytest.mark.parametrize("box", [(3.0, 5.0, 13.5, 12.0), (5.0, 3.0, 12.0, 13.5)])
def test_the_longer_edge_of_a_box_is_that_of_either_direction(box: tuple[float, float, float, float]) -> None:
    assert longer_edge_px(box) == longer_edge_px(np.array(box, np.float32)) == 10.5
