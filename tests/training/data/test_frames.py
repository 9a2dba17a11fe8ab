"""Pictures and lip masks at the size of a bucket, from the file and from memory alike."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from talkforge.curation.media.encode import encode_mp4
from talkforge.schemas.sample import pack_mask
from talkforge.training.data.frames import (
    ClipFrames,
    Crop,
    EncodedVideo,
    LipMasks,
    SkippedSampleError,
    nearest,
    shrunk,
)
from tests.training.shard_files import Shown, members_of, number_and_frame

SHOWN = Shown(5, num_frames=12)

CLIPS = Path(__file__).parents[3] / "examples" / "clips"


def encoded(shown: Shown = SHOWN, size: tuple[int, int] = (32, 32), mp4: bytes | None = None) -> EncodedVideo:
    own = (shown.height_px, shown.width_px)
    crop = Crop.around(own, size, (own[0] / 2, own[1] / 2))
    masks = LipMasks(pack_mask(shown.lips()), shown.valid() > 0, crop)
    return EncodedVideo(shown.key, members_of(shown)["mp4"] if mp4 is None else mp4, shown.num_frames, masks)


@pytest.mark.parametrize(
    ("own", "sizes", "expected"),
    (
        ((256, 256), ((64, 64),), (64, 64)),
        ((720, 1280), ((64, 64), (64, 112), (112, 64)), (64, 112)),
        ((1280, 720), ((64, 64), (64, 112), (112, 64)), (112, 64)),
        ((256, 256), ((512, 512), (64, 64), (256, 256), (128, 128)), (256, 256)),  # not enlarged
        ((200, 200), ((512, 512), (64, 64), (256, 256), (128, 128)), (128, 128)),
        ((32, 32), ((512, 512), (64, 64), (256, 256)), (64, 64)),  # enlarged as little as can be
        ((100, 101), ((512, 512), (96, 96)), (96, 96)),
    ),
)
def test_a_clip_goes_where_its_aspect_is_nearest(
    own: tuple[int, int], sizes: tuple[tuple[int, int], ...], expected: tuple[int, int]
) -> None:
    assert nearest(sizes, own) == expected
    assert nearest(tuple(reversed(sizes)), own) == expected


@pytest.mark.parametrize(
    ("own", "size", "middle", "scaled", "at"),
    (
        ((64, 64), (32, 32), (40, 10), (32, 32), (0, 0)),  # the whole frame
        ((128, 64), (32, 32), (64, 32), (64, 32), (16, 0)),
        ((128, 64), (32, 32), (100, 32), (64, 32), (32, 0)),  # 34 would leave the frame
        ((128, 64), (32, 32), (4, 32), (64, 32), (0, 0)),
        ((64, 128), (32, 32), (32, 100), (32, 64), (0, 32)),
        ((64, 128), (32, 32), (32, 70), (32, 64), (0, 19)),
        ((30, 50), (32, 32), (15, 25), (32, 53), (0, 10)),  # enlarged to cover
    ),
)
def test_a_crop_covers_its_size_around_a_point(
    own: tuple[int, int],
    size: tuple[int, int],
    middle: tuple[float, float],
    scaled: tuple[int, int],
    at: tuple[int, int],
) -> None:
    crop = Crop.around(own, size, middle)
    assert (crop.scaled, (crop.top, crop.left)) == (scaled, at)
    coordinates = np.stack(np.mgrid[: scaled[0], : scaled[1]], -1)
    cropped = crop.of(coordinates)
    assert cropped.shape == (*size, 2)
    assert tuple(cropped[0, 0]) == at


def test_frames_are_those_that_were_asked_for() -> None:
    video = encoded()
    for first, last in ((0, 12), (0, 1), (11, 12), (3, 8)):
        rgb = video.rgb(first, last)
        assert rgb.shape == (last - first, 32, 32, 3) and rgb.dtype == np.uint8
        clips, frames = number_and_frame(rgb)
        assert clips.tolist() == [5] * (last - first)
        assert frames.tolist() == list(range(first, last))


@pytest.mark.parametrize("size", ((64, 64), (48, 48), (32, 32), (16, 16)))
def test_colours_are_those_of_the_clip(tmp_path: Path, size: tuple[int, int]) -> None:
    """Within one level, which is what 8 bit YUV holds; two where half the colours' resolution is kept."""
    colours = [(200, 30, 60), (20, 180, 90), (30, 60, 220), (128, 128, 128), (240, 200, 180), (10, 10, 10)]
    still = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    encode_mp4(tmp_path / "c.mp4", still, 25, None, 1, "ultrafast")
    shown = replace(SHOWN, num_frames=len(colours))
    found = encoded(shown, size, (tmp_path / "c.mp4").read_bytes()).rgb(0, len(colours))
    worst = np.abs(found.astype(int) - np.array(colours)[:, None, None]).max()
    assert worst <= (1 if size[0] <= 32 else 2)


def test_small_pictures_are_means_of_large_ones(tmp_path: Path) -> None:
    """Scaled by area: against the mean of every block of the true frame."""
    rng = np.random.default_rng(0)
    grey = rng.integers(10, 246, (1, 128, 128, 1)).astype(np.uint8).repeat(3, 3)
    encode_mp4(tmp_path / "c.mp4", grey, 25, None, 1, "ultrafast")
    shown = Shown(0, num_frames=1, height_px=128, width_px=128)
    data = (tmp_path / "c.mp4").read_bytes()
    small = encoded(shown, (32, 32), data).rgb(0, 1).astype(float)
    means = grey.reshape(1, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(small - means).max() <= 2
    assert abs(small.mean() - means.mean()) < 0.5  # one pass of swscale is two levels too dark


@pytest.mark.parametrize("size", ((64, 64), (32, 32)))
def test_decord_gives_the_same_frames(size: tuple[int, int]) -> None:
    """By the number in every frame, at the same time of the file's clock."""
    video = replace(encoded(size=size), decoder="decord")
    video.check(12)
    for first, last in ((0, 12), (0, 1), (11, 12), (3, 8)):
        clips, frames = number_and_frame(video.rgb(first, last))
        assert clips.tolist() == [5] * (last - first) and frames.tolist() == list(range(first, last))
    reader = decord.VideoReader(io.BytesIO(video.mp4))
    times_s = reader.get_frame_timestamp(range(12))[:, 0]
    assert times_s.tolist() == pytest.approx([k / 25 for k in range(12)], abs=1e-4)
    assert np.array_equal(video.decoded().rgb(3, 8), video.rgb(3, 8))


@pytest.mark.parametrize("size", ((288, 352), (144, 176)))
def test_decord_on_a_real_clip(tmp_path: Path, size: tuple[int, int]) -> None:
    """Each frame is the nearest of all to that of PyAV, and at most two levels of 255 darker on average."""
    with av.open(str(CLIPS / "grid_bbaf2n.mpg")) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame in itertools.islice(container.decode(video=0), 20)
        ]
    height_px, width_px, _ = frames[0].shape
    encode_mp4(tmp_path / "c.mp4", frames, 25, None, 18, "fast")
    shown = Shown(0, num_frames=20, height_px=height_px, width_px=width_px)
    video = encoded(shown, size, (tmp_path / "c.mp4").read_bytes())
    expected = video.rgb(0, 20).astype(int)
    found = replace(video, decoder="decord").rgb(0, 20).astype(int)
    assert found.shape == expected.shape
    apart = np.abs(found[:, None, ::4, ::4] - expected[None, :, ::4, ::4]).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == list(range(20))
    assert -2 < (found - expected).mean() < 0.5
    assert np.abs(found - expected).mean() < 2.5


def test_decord_refuses_what_pyav_refuses() -> None:
    short = encoded(replace(SHOWN, num_frames=10))
    cases = {
        "wrong_shape": replace(short, num_frames=12, decoder="decord"),
        "unreadable": replace(short, mp4=b"x" * 100, decoder="decord"),
    }
    for reason, video in cases.items():
        for use in (lambda video=video: video.rgb(0, 12), lambda video=video: video.check(12)):
            with pytest.raises(SkippedSampleError) as caught:
                use()
            assert caught.value.reason == reason and "\n" not in str(caught.value)
    other = encoded(replace(SHOWN, width_px=32), mp4=short.mp4)
    with pytest.raises(SkippedSampleError, match=r"clip05: mp4: expected 32 x 64 px, found 64 x 64$"):
        replace(other, decoder="decord").rgb(0, 5)


def area_fractions(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of True in each cell of a grid: every pixel counts as far as it lies in the cell."""

    def overlaps(pixels: int, cells: int) -> np.ndarray:
        edge = pixels / cells
        inside = [
            [max(0.0, min(p + 1, (c + 1) * edge) - max(p, c * edge)) for p in range(pixels)]
            for c in range(cells)
        ]
        return np.array(inside) / edge

    return overlaps(mask.shape[0], size[0]) @ mask @ overlaps(mask.shape[1], size[1]).T


@pytest.mark.parametrize("size", ((32, 32), (16, 16), (24, 40)))
def test_a_small_mask_holds_pixels_that_are_half_lip(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((64, 64), bool)
    mask[20:47, 9:51] = rng.random((27, 42)) < 0.8
    fractions = area_fractions(mask, size)
    sure = np.abs(fractions - 0.5) > 0.02  # 8 bits
    assert np.array_equal(shrunk(mask, size)[sure], fractions[sure] >= 0.5)
    assert shrunk(mask, size).dtype == bool
    assert np.array_equal(shrunk(mask, (64, 64)), mask)


def test_lips_that_are_thin_do_not_vanish() -> None:
    mask = np.zeros((64, 64), bool)
    mask[33, 10:50] = True  # a quarter of the pixels of one row
    expected = np.zeros((16, 16), bool)
    expected[8, 3:12] = True
    assert np.array_equal(shrunk(mask, (16, 16)), expected)
    assert not shrunk(np.zeros((64, 64), bool), (16, 16)).any()


def test_masks_follow_the_crop_and_skip_what_is_missing() -> None:
    shown = Shown(1, num_frames=12, height_px=64, width_px=128)
    crop = Crop.around((64, 128), (32, 32), (32, 90))
    masks = LipMasks(pack_mask(shown.lips()), shown.valid() > 0, crop)
    found = masks.lips(2, 12)
    assert found.dtype == np.uint8 and found.shape == (10, 32, 32)
    for k, lips in enumerate(found, start=2):
        expected = area_fractions(shown.lips()[k], (32, 64))[:, crop.left : crop.left + 32] >= 0.5
        assert np.array_equal(lips, expected) if k not in (3, 10) else not lips.any()
    everything = np.ones_like(shown.lips())
    missing = LipMasks(pack_mask(everything), shown.valid() > 0, crop).lips(3, 4)
    assert not missing.any()  # whatever is stored where nothing was found


def outcome(video: ClipFrames, first: int, last: int) -> object:
    try:
        return video.rgb(first, last).tolist()
    except SkippedSampleError as error:
        return error.reason, str(error)


def test_memory_gives_what_the_file_gives() -> None:
    file = encoded()
    memory = file.decoded()
    for first, last in ((0, 12), (5, 9), (11, 12)):
        assert np.array_equal(memory.rgb(first, last), file.rgb(first, last))
        assert np.array_equal(memory.lips(first, last), file.lips(first, last))
        memory.check(last)
        file.check(last)


@pytest.mark.parametrize("keep", (0.97, 0.8, 0.5, 0.02, 0))
def test_a_damaged_file_gives_what_is_before_the_damage(tmp_path: Path, keep: float) -> None:
    """From the file and from memory alike, and nothing of what is behind."""
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (12, 64, 64, 3)).astype(np.uint8)
    encode_mp4(tmp_path / "n.mp4", noise, 25, None, 20, "ultrafast")
    data = (tmp_path / "n.mp4").read_bytes()
    whole, file = encoded(mp4=data), encoded(mp4=data[: int(len(data) * keep)])
    memory = file.decoded()
    good = 0
    for last in range(1, 13):
        found = outcome(file, last - 1, last)
        assert found == outcome(memory, last - 1, last)
        if isinstance(found, tuple):
            with pytest.raises(SkippedSampleError) as caught:
                file.check(last)
            assert (caught.value.reason, str(caught.value)) == found
            assert "\n" not in found[1] and found[1].startswith("clip05: mp4: ")
        else:
            assert found == whole.rgb(last - 1, last).tolist()
            assert good == last - 1, "once damaged, always damaged"
            good = last
    assert {0.97: 8, 0.8: 6, 0.5: 2, 0.02: 0, 0: 0}[keep] <= good < 12
    assert np.array_equal(memory.lips(0, 12), whole.lips(0, 12))


def test_frames_that_the_decoder_patched_up_are_not_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (12, 64, 64, 3)).astype(np.uint8)
    encode_mp4(tmp_path / "n.mp4", noise, 25, None, 20, "ultrafast")
    data = bytearray((tmp_path / "n.mp4").read_bytes())
    whole = encoded(mp4=bytes(data))
    at = len(data) // 2
    data[at : at + 4] = bytes(255 - byte for byte in data[at : at + 4])
    file = encoded(mp4=bytes(data))
    good = len(file.decoded().frames)
    assert 4 <= good <= 7
    assert np.array_equal(file.rgb(0, good), whole.rgb(0, good))
    with pytest.raises(SkippedSampleError, match=f"clip05: mp4: frame {good} is damaged"):
        file.rgb(0, good + 1)
    with pytest.raises(SkippedSampleError, match="is damaged"):
        file.decoded().rgb(0, good + 1)


def test_another_number_or_size_of_frames_is_refused() -> None:
    longer = replace(encoded(), num_frames=13)
    assert number_and_frame(longer.rgb(0, 12))[1].tolist() == list(range(12))
    with pytest.raises(SkippedSampleError, match="mp4: expected 13 frames, found 12") as caught:
        longer.rgb(12, 13)
    assert caught.value.reason == "wrong_shape"
    other = encoded(replace(SHOWN, width_px=66))
    with pytest.raises(SkippedSampleError, match="mp4: expected 66 x 64 px, found 64 x 64"):
        replace(other, mp4=members_of(SHOWN)["mp4"]).rgb(0, 1)
