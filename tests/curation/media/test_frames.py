from __future__ import annotations

import gc
import itertools
import logging
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import PictureType
from hypothesis import given, settings
from hypothesis import strategies as st

from talkforge.curation.media import (
    clip_indices,
    clip_size,
    decode_flac,
    encode_flac,
    encode_mp4,
    frames,
    read_audio,
    read_frames,
)
from talkforge.curation.media.frames import Frame
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input, Rectangle, Video
from tests.conftest import RealClip
from tests.media_files import (
    Pictures,
    Sounds,
    clicks,
    clicks_heard,
    is_upright,
    number_of,
    numbered,
    steady,
    write_media,
)
from tests.records import clip_of

REAL_COUNTS = {
    "fr_hamilton.mp4": 275,
    "grid_bbaf2n.mpg": 75,
    "vr_1.mp4": 135,
    "sk_carphone_pristine.mp4": 120,
}

CONTAINERS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "pcm_s16le"),
    "mov": ("libx264", "pcm_s16le"),
    "avi": ("mpeg4", "pcm_s16le"),
    "ts": ("libx264", "mp2"),
    "mpg": ("mpeg2video", "mp2"),
    "flv": ("libx264", "aac"),
}


def probed(path: Path) -> Video:
    return probe(path, Input(uri=path.name), content_hash(path))


def shown(path: Path, start_s: float = 0.0, end_s: float = math.inf) -> list[tuple[int, float, float]]:
    """(number, time_s, until_s) of every picture."""
    found = read_frames(path, probed(path), start_s, end_s)
    return [(number_of(p.rgb()), round(p.time_s, 6), round(p.until_s, 6)) for p in found]


# --- pictures ---


def test_variable_rate(tmp_path: Path) -> None:
    times_s = [0, 0.04, 0.1, 0.35, 0.36, 0.5, 1.2, 1.25]
    path = write_media(tmp_path / "a.mkv", Pictures(times_s))
    ends_s = [*times_s[1:], 1.29]
    assert shown(path) == [(n, t, e) for n, (t, e) in enumerate(zip(times_s, ends_s, strict=True))]


def test_a_window_holds_the_frames_shown_in_it(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures([0, 0.1, 0.5, 0.9]))
    assert [n for n, _, _ in shown(path, 0.3, 0.5)] == [1]
    assert [n for n, _, _ in shown(path, 0.3, 0.501)] == [1, 2]
    assert [n for n, _, _ in shown(path, 0.5, 0.6)] == [2]
    assert [n for n, _, _ in shown(path, 0.93, 2.0)] == [3]
    assert shown(path, 0.95, 2.0) == []


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_seeking_changes_nothing(tmp_path: Path, suffix: str) -> None:
    codec, sound = CONTAINERS[suffix]
    times_s = steady(250)
    path = write_media(
        tmp_path / f"a.{suffix}", Pictures(times_s, codec=codec), Sounds([(0, 10)], codec=sound)
    )
    video = probed(path)
    whole = [(p.time_s, p.until_s, p.rgb()) for p in read_frames(path, video)]
    assert [number_of(rgb) for _, _, rgb in whole] == list(range(250))
    assert np.diff([t for t, _, _ in whole]) == pytest.approx(np.full(249, 0.04), abs=1e-6)
    for start_s, end_s in [(8.013, 8.5), (9.7, 11.0), (3.0, 3.01)]:
        part = [(p.time_s, p.until_s, p.rgb()) for p in read_frames(path, video, start_s, end_s)]
        want = [p for p in whole if p[1] > start_s and p[0] < end_s]
        assert [p[:2] for p in part] == [p[:2] for p in want]
        assert all(np.array_equal(a[2], b[2]) for a, b in zip(part, want, strict=True))


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_seeking_changes_nothing_on_real_clips(real_clip: RealClip, name: str) -> None:
    path = real_clip(name)
    video = probed(path)
    whole = [(p.time_s, p.until_s) for p in read_frames(path, video)]
    start_s = video.end_s - 1.3
    part = [(p.time_s, p.until_s) for p in read_frames(path, video, start_s)]
    assert part == [p for p in whole if p[1] > start_s]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(whole))
    assert whole[0][0] == video.start_s
    assert whole[-1][1] == pytest.approx(video.end_s, abs=1e-6)


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_every_frame_of_real_clips_is_read(real_clip: RealClip, name: str) -> None:
    path = real_clip(name)
    assert sum(1 for _ in read_frames(path, probed(path))) == REAL_COUNTS[name]


def test_late_video_keeps_its_offset_from_the_audio(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mov", Pictures(steady(25, start_s=0.85)), Sounds([(0, 2)], [0.85, 1.2]))
    assert shown(path)[0] == (0, 0.85, 0.89)
    assert clicks_heard(read_audio(path, probed(path), 0, 2), 16_000) == pytest.approx([0.85, 1.2], abs=1e-3)


def test_late_video_of_a_real_clip_keeps_its_offset_from_the_audio(real_clip: RealClip) -> None:
    hamilton = real_clip("fr_hamilton.mp4")
    first = next(read_frames(hamilton, probed(hamilton)))
    assert first.time_s == pytest.approx(10214 / 11988 - 353 / 44100, abs=1e-12)


@pytest.mark.parametrize(
    ("stream", "shape"),
    [
        (Pictures(steady(3), rotation_deg=90), (96, 64, 3)),
        (Pictures(steady(3), rotation_deg=180), (64, 96, 3)),
        (Pictures(steady(3), rotation_deg=270), (96, 64, 3)),
        (Pictures(steady(3), sample_aspect_ratio=Fraction(4, 3)), (64, 128, 3)),
        (Pictures(steady(3), rotation_deg=90, sample_aspect_ratio=Fraction(4, 3)), (128, 64, 3)),
        (Pictures(steady(3), pix_fmt="yuv420p10le"), (64, 96, 3)),
        (Pictures(steady(3), width_px=97, height_px=65, pix_fmt="yuv444p"), (65, 97, 3)),
    ],
)
def test_frames_are_upright_with_square_pixels(
    tmp_path: Path, stream: Pictures, shape: tuple[int, int, int]
) -> None:
    path = write_media(tmp_path / "a.mp4", stream)
    for n, frame in enumerate(read_frames(path, probed(path))):
        rgb = frame.rgb()
        assert rgb.shape == shape and rgb.dtype == np.uint8 and rgb.flags.c_contiguous
        assert number_of(rgb) == n and is_upright(rgb)


def test_sizes_on_request(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(1), rotation_deg=90))
    frame = next(read_frames(path, probed(path)))
    assert frame.rgb().shape == (96, 64, 3)
    assert frame.rgb(longest_edge_px=48).shape == (48, 32, 3)
    assert frame.rgb(longest_edge_px=4000).shape == (96, 64, 3)
    assert frame.rgb(width_px=32).shape == (48, 32, 3)
    assert frame.rgb(height_px=192).shape == (192, 128, 3)
    assert frame.rgb(50, 40).shape == (40, 50, 3)
    assert is_upright(frame.rgb(50, 40))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv422p10le", "bgr0"])
@pytest.mark.parametrize("size", [(64, 64), (40, 30)])
def test_colours(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    """Untagged small pictures are BT.601; tags of range and matrix are followed."""
    for rgb in [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 60, 100)]:
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p" if pix_fmt == "yuvj420p" else pix_fmt
            stream.codec_context.color_range = 2 if pix_fmt == "yuvj420p" else 1
            flat = np.full((64, 64, 3), rgb, np.uint8)
            frame = av.VideoFrame.from_ndarray(flat, format="rgb24")
            colours = (
                {} if pix_fmt == "bgr0" else {"dst_colorspace": 5, "dst_color_range": 1 + ("j" in pix_fmt)}
            )
            frame = frame.reformat(format=stream.pix_fmt, **colours)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        shown_rgb = next(read_frames(path, probed(path))).rgb(*size)[15, 20]
        assert shown_rgb.astype(int) == pytest.approx(np.array(rgb), abs=3)


def test_cut_file_gives_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_media(
        tmp_path / "a.mp4",
        Pictures(steady(250)),
        Sounds([(0, 10)], [0.25, 9], codec="aac"),
        options={"movflags": "faststart"},
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = shown(cut)
    assert 20 < len(found) < 230 and found == shown(whole, 0, found[-1][2] - 0.01)
    assert shown(cut, 9.0, 9.5) == []
    sound = read_audio(cut, probed(cut), 0, 10)
    assert len(sound) == 160_000 and clicks_heard(sound, 16_000) == pytest.approx([0.25], abs=2e-3)
    assert "cut short" in caplog.text


def test_damage_in_the_middle_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(250)))
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        numbers = [n for n, _, _ in shown(path)]
    assert 150 < len(numbers) < 250 and numbers == sorted(set(numbers))
    assert numbers[0] == 0 and numbers[-1] == 249
    assert "damaged video packets were skipped" in caplog.text


def test_nothing_decodable(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures(steady(25)))
    video = probed(path)
    write_media(path, Pictures([]), Sounds([(0, 1)]))
    with pytest.raises(MediaError, match=r"'a.mkv': expected frames, found none"):
        list(read_frames(path, video))


def test_no_timestamps(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.h264", Pictures(steady(50)))
    assert shown(path) == [(n, round(n / 25, 6), round((n + 1) / 25, 6)) for n in range(50)]
    assert [n for n, _, _ in shown(path, 1.5, 1.6)] == [37, 38, 39]


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(1000), gop=250))
    held = []
    for n, frame in enumerate(read_frames(path, probed(path))):
        if n % 250 == 200:
            gc.collect()
            held.append(Counter(type(thing) for thing in gc.get_objects()))
        del frame
    assert [(h[frames._DecodedFrame], h[frames.Frame]) for h in held] == [(2, 1)] * 4


# --- frames of a clip ---


def test_clip_indices_partition_the_clip(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures([0, 0.04, 0.1, 0.35, 0.36, 0.5, 1.2, 1.25]))
    video = probed(path)
    ranges = [clip_indices(p, 0.02, 25.0, 30) for p in read_frames(path, video, 0.02, 0.02 + 30 / 25)]
    assert [k for r in ranges for k in r] == list(range(30))
    # Instants 0.02, 0.06, 0.10, ...: the picture of 0.36 is never in force at one of them.
    assert [list(r) for r in ranges[:6]] == [
        [0],
        [1],
        list(range(2, 9)),
        [],
        [9, 10, 11],
        list(range(12, 30)),
    ]


@settings(max_examples=200, deadline=None)
@given(
    lengths_s=st.lists(st.floats(0.001, 1.5), min_size=1, max_size=60),
    begins=st.floats(0, 0.9),
    fps=st.sampled_from([8.0, 23.976, 25.0, 30.0, 60.0]),
)
def test_any_span_is_cut_into_the_frames_that_are_shown_at_its_instants(
    lengths_s: list[float], begins: float, fps: float
) -> None:
    edges_s = np.cumsum([10.0, *lengths_s]).tolist()
    start_s = 10.0 + begins * (edges_s[-1] - 10.0)
    num_frames = math.floor((edges_s[-1] - start_s) * fps)
    shown = [Frame(a, b, None, None) for a, b in itertools.pairwise(edges_s)]  # type: ignore[arg-type]
    ranges = [clip_indices(frame, start_s, fps, num_frames) for frame in shown]
    assert [k for found in ranges for k in found] == list(range(num_frames))
    for frame, found in zip(shown, ranges, strict=True):
        for k in found:
            at_s = start_s + k / fps + frames.TOLERANCE_S
            assert frame.time_s - 1e-9 <= at_s < frame.until_s + 1e-9


def test_same_rate_shows_each_frame_once_despite_rounded_timestamps(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures(steady(90, fps=30.0)))
    found = list(read_frames(path, probed(path)))
    assert found[1].time_s == pytest.approx(0.033, abs=1e-12)  # Matroska counts milliseconds
    assert [list(clip_indices(p, 0.0, 30.0, 90)) for p in found] == [[k] for k in range(90)]


def test_a_late_first_frame_is_not_shown_before_its_time(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mov", Pictures(steady(25, start_s=0.5)), Sounds([(0, 2)]))
    first = next(read_frames(path, probed(path)))
    assert list(clip_indices(first, 0.42, 25.0, 10)) == [2]


@pytest.mark.parametrize(
    ("size", "longest_px", "want"),
    [
        ((1080, 1920), 1024, (576, 1024)),
        ((193, 144), 1024, (192, 144)),
        ((97, 65), 1024, (96, 64)),
        ((640, 360), 1023, (640, 360)),
        ((1920, 1080), 641, (642, 360)),
        ((4000, 3), 100, (100, 2)),
    ],
)
def test_clip_size(tmp_path: Path, size: tuple[int, int], longest_px: int, want: tuple[int, int]) -> None:
    video = probed(write_media(tmp_path / "a.mp4", Pictures(steady(1))))
    video = video.model_copy(update={"width_px": size[0], "height_px": size[1]})
    assert clip_size(video, longest_px) == want


# --- sound ---

CLICKS_S = [0.25, 1.0, 5.0, 9.0]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_audio_stays_in_sync_with_the_frames(tmp_path: Path, suffix: str) -> None:
    codec, sound = CONTAINERS[suffix]
    path = write_media(
        tmp_path / f"a.{suffix}", Pictures(steady(250), codec=codec), Sounds([(0, 10)], CLICKS_S, codec=sound)
    )
    video = probed(path)
    heard = clicks_heard(read_audio(path, video, video.start_s, video.end_s), 16_000)
    assert heard == pytest.approx(CLICKS_S, abs=2e-3)
    for start_s, end_s in [(0.2, 1.3), (4.7, 5.2), (8.9, 9.4)]:
        window = read_audio(path, video, video.start_s + start_s, video.start_s + end_s)
        assert len(window) == round((end_s - start_s) * 16_000)
        want = [c - start_s for c in CLICKS_S if start_s <= c < end_s]
        assert clicks_heard(window, 16_000) == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize("name", ["ls_demo3.mp4", "grid_bbaf2n.mpg", "vr_1.mp4"])
def test_window_equals_part_of_the_whole(real_clip: RealClip, name: str) -> None:
    path = real_clip(name)
    video = probed(path)
    whole = read_audio(path, video, 0, video.end_s)
    part = read_audio(path, video, 2.0, 2.5)
    lags = range(-2, 3)
    errors = [np.abs(part[100:-100] - whole[32_100 + lag : 39_900 + lag]).max() for lag in lags]
    assert lags[int(np.argmin(errors))] == 0
    assert min(errors) < 0.02 * np.abs(whole).max() + 1e-3


def test_gaps_and_late_starts_are_silence(tmp_path: Path) -> None:
    pieces = [(0.5, 1.5), (2.5, 3.0)]
    path = write_media(tmp_path / "a.mkv", Pictures(steady(100)), Sounds(pieces, [0.75, 2.75]))
    video = probed(path)
    assert video.audio_start_s == 0.5
    sound = read_audio(path, video, 0, 4)
    assert len(sound) == 64_000
    assert clicks_heard(sound, 16_000) == pytest.approx([0.75, 2.75], abs=1e-3)
    assert not sound[:7_900].any() and not sound[24_100:39_900].any() and not sound[48_100:].any()
    assert clicks_heard(read_audio(path, video, 1.8, 2.9), 16_000) == pytest.approx([0.95], abs=1e-3)


def test_a_video_without_audio_gives_silence(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(25)))
    sound = read_audio(path, probed(path), 0.1, 0.3)
    assert sound.shape == (3200,) and sound.dtype == np.float32 and not sound.any()


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_channels_and_rates(tmp_path: Path, layout: str) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures(steady(25)), Sounds([(0, 1)], [0.5], layout=layout))
    video = probed(path)
    mono = read_audio(path, video, 0, 1)
    pair = read_audio(path, video, 0, 1, hz=48_000, channels=2)
    assert mono.shape == (16_000,) and pair.shape == (48_000, 2)
    assert np.array_equal(pair[:, 0], pair[:, 1])
    # The same sound on every channel keeps its level, whatever it is mixed to.
    assert np.abs(pair).max() == pytest.approx(0.8, rel=0.01)
    assert np.abs(mono).max() == pytest.approx(0.84, rel=0.01)  # overshoot of the 16 kHz filter


def test_one_sided_stereo_is_mixed_evenly(tmp_path: Path) -> None:
    left = np.zeros((48_000, 2), np.float32)
    left[:, 0] = clicks(0, 1, [0.5], 48_000)
    path = tmp_path / "a.mp4"
    encode_mp4(path, (numbered(n, 96, 64) for n in range(25)), 25.0, left, crf=23, preset="ultrafast")
    mono = read_audio(path, probed(path), 0, 1)
    assert np.abs(mono).max() == pytest.approx(0.4, rel=0.1)


# --- encoding ---


@pytest.mark.parametrize("fps", [25.0, 23.0, 29.97, 30_000 / 1001])
def test_clip_round_trip(tmp_path: Path, fps: float) -> None:
    num_frames, clicks_s = 61, [0.1, 0.5, 1.0, 1.9]
    mono = clicks(0, num_frames / fps, clicks_s, 48_000)
    sound = np.stack([mono, mono], axis=1)
    for name in ("a.mp4", "b.mp4"):
        encode_mp4(
            tmp_path / name,
            (numbered(n, 192, 128) for n in range(num_frames)),
            fps,
            sound,
            crf=18,
            preset="veryfast",
        )
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert b"Lavf" not in data and b"Lavc" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    video = probed(tmp_path / "a.mp4")
    assert (video.start_s, video.audio_start_s, video.fps) == (0.0, 0.0, pytest.approx(fps, abs=1e-9))
    assert (video.pixel_format, video.video_codec, video.audio_codec) == ("yuv420p", "h264", "aac")
    found = shown(tmp_path / "a.mp4")
    assert [n for n, _, _ in found] == list(range(num_frames))
    assert [t for _, t, _ in found] == pytest.approx([n / fps for n in range(num_frames)], abs=1e-4)
    heard = clicks_heard(read_audio(tmp_path / "a.mp4", video, 0, num_frames / fps), 16_000)
    assert heard == pytest.approx(clicks_s, abs=2e-3)


@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (200, 60, 100)])
def test_clip_keeps_colours(tmp_path: Path, rgb: tuple[int, int, int]) -> None:
    path = tmp_path / "a.mp4"
    encode_mp4(path, [np.full((64, 64, 3), rgb, np.uint8)] * 2, 25.0, None, crf=10, preset="veryfast")
    assert next(read_frames(path, probed(path))).rgb()[32, 32].astype(int) == pytest.approx(
        np.array(rgb), abs=2
    )
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)


def tagged(path: Path, matrix: int, full_range: bool = False, turned: bool = False) -> tuple[Video, Frame]:
    """The first frame of a file of noise in colour, as a decoder would give it: matrix and range as told."""
    encode_mp4(path, [coloured_noise()] * 2, 25.0, None, crf=1, preset="veryfast")
    video = probed(path).model_copy(update={"rotation_deg": 180 if turned else 0})
    frame = next(read_frames(path, video))
    frame._raw.colorspace, frame._raw.color_range = matrix, 2 if full_range else 1
    return video, frame


def coloured_noise() -> np.ndarray:
    coarse = np.random.default_rng(5).integers(60, 200, (12, 16, 3)).astype(np.uint8)
    return cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("crop", [None, Rectangle(left_px=32, top_px=16, width_px=64, height_px=48)])
@pytest.mark.parametrize("full_range", [False, True])
def test_what_is_encoded_is_what_is_measured_without_a_way_through_rgb(
    tmp_path: Path, crop: Rectangle | None, full_range: bool
) -> None:
    _, frame = tagged(tmp_path / "a.mp4", 1, full_range)
    clip = clip_of(1, 64, 48).model_copy(update={"crop": crop})
    picture, rgb = frame.to_encode(clip), frame.of_clip(clip)
    assert (picture.format.name, picture.width, picture.height) == ("yuv420p", 64, 48)
    found = []
    for name, frames_ in (("direct.mp4", [picture]), ("rgb.mp4", [rgb])):
        encode_mp4(tmp_path / name, frames_ * 3, 25.0, None, crf=1, preset="veryfast")
        decoded = list(read_frames(tmp_path / name, probed(tmp_path / name)))
        assert [f._raw.colorspace for f in decoded] == [1] * 3
        found.append(decoded[0].rgb().astype(int))
    assert np.abs(found[0] - rgb).mean() < 1.5
    assert np.abs(found[0] - rgb).mean() <= np.abs(found[1] - rgb).mean() + 0.1


def test_what_needs_a_conversion_anyway_is_encoded_from_rgb(tmp_path: Path) -> None:
    clip = clip_of(1, 64, 48)
    for name, matrix, turned in (("a.mp4", 5, False), ("b.mp4", 1, True)):  # BT.601, and upside down
        _, frame = tagged(tmp_path / name, matrix, turned=turned)
        np.testing.assert_array_equal(frame.to_encode(clip), frame.of_clip(clip))


def test_a_decoded_frame_leaves_nothing_but_its_planes(tmp_path: Path) -> None:
    """Its type would force key frames, and its time would be another clock's."""
    _, frame = tagged(tmp_path / "a.mp4", 1)
    picture = frame.to_encode(clip_of(1, 128, 96))  # its own size: nothing was converted
    assert picture.pict_type == PictureType.I
    encode_mp4(tmp_path / "b.mp4", [picture] * 12, 25.0, None, crf=20, preset="medium")
    with av.open(str(tmp_path / "b.mp4")) as container:
        found = list(container.decode(video=0))
    assert [f.key_frame for f in found] == [True] + [False] * 11
    assert [round(f.time * 25) for f in found] == list(range(12))


def test_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected frames, found none"):
        encode_mp4(tmp_path / "a.mp4", [], 25.0, None, crf=20, preset="ultrafast")

    def breaking() -> list[np.ndarray]:
        yield numbered(0, 96, 64)
        raise MediaError("source broke")

    with pytest.raises(MediaError, match="source broke"):
        encode_mp4(tmp_path / "a.mp4", breaking(), 25.0, None, crf=20, preset="ultrafast")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_samples", [1, 15, 4096, 48_000, 100_001])
def test_flac_round_trip(num_samples: int) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, num_samples).astype(np.float32)
    data = encode_flac(samples)
    assert data == encode_flac(samples)
    back = decode_flac(data)
    assert back.dtype == np.float32 and len(back) == num_samples
    assert np.abs(back - samples).max() <= 1 / 32768
    assert encode_flac(back) == data


def test_flac_clips_and_refuses() -> None:
    assert decode_flac(encode_flac(np.array([2.0, -2.0], np.float32))).tolist() == [32767 / 32768, -1.0]
    with pytest.raises(ValueError, match="expected samples, found none"):
        encode_flac(np.zeros(0, np.float32))
    with pytest.raises(MediaError, match=r"flac: expected .* found (none|data)"):
        decode_flac(b"not flac at all")
