from __future__ import annotations

import hashlib
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from talkforge.curation.media import container
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input, Video
from tests.conftest import RealClip
from tests.media_files import Pictures, Sounds, steady, write_media


def probed(path: Path) -> Video:
    return probe(path, Input(uri=path.name), content_hash(path))


def refusal(path: Path) -> str:
    """The one line that says why a file is refused."""
    with pytest.raises(MediaError) as caught:
        probe(path, Input(uri=path.name), "0" * 64)
    line = str(caught.value)
    assert path.name in line and "\n" not in line
    return line


REAL = {
    # name: size, codec, fps, nominal, start, end, audio start, hz, channels
    "fr_hamilton.mp4": ((640, 360), "h264", 29.97, 29.97, 0.8440141502, 10.0198566594, 0.0, 44100, 2),
    "grid_bbaf2n.mpg": ((360, 288), "mpeg1video", 25.0, 25.0, 0.0, 3.0, 0.0, 44100, 2),
    "lp_s18.mp4": ((1280, 720), "h264", 30.0, 30.0, 0.0, 9.4, 0.0, 44100, 2),
    "ls_demo3.mp4": ((1080, 1920), "hevc", 30.0, 30.0, 0.0, 20.0, 0.0, 44100, 2),
    "sk_bigbuckbunny.mp4": ((1280, 720), "h264", 25.0, 25.0, 0.0, 5.28, 0.0, 48000, 6),
    "sk_carphone_pristine.mp4": ((193, 144), "h264", 29.97002997, 29.97002997, 0.0, 4.004, None, 0, 0),
    "st_katie.mp4": ((512, 512), "mpeg4", 25.0, 25.0, 0.0, 8.0, 0.0, 16000, 2),
    "vr_1.mp4": ((700, 700), "h264", 22.1311475410, 30.0, 0.0330078125, 6.1330078125, 0.0, 44100, 2),
    "wh_kennedy_low.mp4": ((640, 480), "h264", 29.97002997, 29.97002997, 0.0, 6.8735333333, 0.0, 44100, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_clips(real_clip: RealClip, name: str) -> None:
    video = probed(real_clip(name))
    size, codec, fps, nominal, start_s, end_s, audio_start_s, hz, channels = REAL[name]
    assert (video.width_px, video.height_px) == size
    assert video.video_codec == codec
    assert (video.fps, video.fps_nominal) == pytest.approx((fps, nominal), abs=1e-8)
    assert (video.start_s, video.end_s) == pytest.approx((start_s, end_s), abs=1e-9)
    assert video.audio_start_s == audio_start_s
    assert (video.audio_hz, video.audio_channels) == (hz, channels)
    assert video.rotation_deg == 0 and video.pixel_format == "yuv420p"
    assert video.sample_aspect_ratio == (128 / 117 if "carphone" in name else 1.0)


def test_identity_and_provenance(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(5)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert content_hash(path) == digest
    video = probe(path, Input(uri="s3://b/a.mp4", source="lab", licence="CC0", consent="form 7"), digest)
    assert (video.video_id, video.sha256, video.uri) == (digest[:12], digest, "s3://b/a.mp4")
    assert (video.source, video.licence, video.consent) == ("lab", "CC0", "form 7")
    assert video.num_bytes == path.stat().st_size
    assert not video.has_audio


@pytest.mark.parametrize(
    ("stream", "size", "coded", "rotation_deg", "ratio"),
    [
        (Pictures(steady(3)), (96, 64), (96, 64), 0, 1.0),
        (Pictures(steady(3), rotation_deg=90), (64, 96), (96, 64), 90, 1.0),
        (Pictures(steady(3), rotation_deg=180), (96, 64), (96, 64), 180, 1.0),
        (Pictures(steady(3), rotation_deg=270), (64, 96), (96, 64), 270, 1.0),
        (Pictures(steady(3), sample_aspect_ratio=Fraction(4, 3)), (128, 64), (96, 64), 0, 4 / 3),
        (Pictures(steady(3), sample_aspect_ratio=Fraction(3, 4)), (96, 85), (96, 64), 0, 3 / 4),
        (
            Pictures(steady(3), rotation_deg=90, sample_aspect_ratio=Fraction(4, 3)),
            (64, 128),
            (96, 64),
            90,
            4 / 3,
        ),
        (Pictures(steady(3), sample_aspect_ratio=Fraction(100)), (96, 64), (96, 64), 0, 1.0),
        (Pictures(steady(3), width_px=97, height_px=65, pix_fmt="yuv444p"), (97, 65), (97, 65), 0, 1.0),
    ],
)
def test_display_size(
    tmp_path: Path,
    stream: Pictures,
    size: tuple[int, int],
    coded: tuple[int, int],
    rotation_deg: int,
    ratio: float,
) -> None:
    video = probed(write_media(tmp_path / "a.mp4", stream))
    assert (video.width_px, video.height_px) == size
    assert (video.coded_width_px, video.coded_height_px) == coded
    assert video.rotation_deg == rotation_deg
    assert video.sample_aspect_ratio == pytest.approx(ratio)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts", "mpg", "flv", "h264"])
def test_span_in_every_container(tmp_path: Path, suffix: str) -> None:
    codec = {"avi": "mpeg4", "mpg": "mpeg2video"}.get(suffix, "libx264")
    sound = {"mp4": "aac", "flv": "aac", "ts": "mp2", "mpg": "mp2"}.get(suffix, "pcm_s16le")
    streams = [Pictures(steady(40), codec=codec), Sounds([(0, 2)], codec=sound)]
    video = probed(write_media(tmp_path / f"a.{suffix}", *streams[: 1 if suffix == "h264" else 2]))
    assert video.duration_s == pytest.approx(1.6, abs=1e-9)
    assert (video.fps, video.fps_nominal) == (25.0, 25.0)


def test_variable_rate_span_where_the_header_is_wrong(tmp_path: Path) -> None:
    times_s = [0, 0.04, 0.1, 0.35, 0.36, 0.5, 1.2, 1.25]
    video = probed(write_media(tmp_path / "a.mp4", Pictures(times_s)))
    assert video.end_s == pytest.approx(1.26)  # the muxer gives the last picture 10 ms


def test_late_video_and_late_audio(tmp_path: Path) -> None:
    late = probed(write_media(tmp_path / "a.mov", Pictures(steady(25, start_s=0.85)), Sounds([(0, 2)])))
    assert (late.start_s, late.audio_start_s) == (pytest.approx(0.85), 0.0)
    early = probed(write_media(tmp_path / "b.mov", Pictures(steady(25)), Sounds([(0.5, 2)])))
    assert (early.start_s, early.audio_start_s) == (0.0, pytest.approx(0.5))


def test_first_of_several_default_streams(tmp_path: Path) -> None:
    path = write_media(
        tmp_path / "a.mp4",
        Pictures(steady(5)),
        Pictures(steady(5), width_px=48, height_px=32),
        Sounds([(0, 1)], hz=44_100, codec="aac"),
        Sounds([(0, 1)], codec="aac"),
    )
    video = probed(path)
    assert (video.width_px, video.audio_hz) == (96, 44_100)


def test_ten_bit(tmp_path: Path) -> None:
    assert probed(
        write_media(tmp_path / "a.mp4", Pictures(steady(3), pix_fmt="yuv420p10le"))
    ).pixel_format == ("yuv420p10le")


def test_cut_file_ends_where_its_data_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_media(tmp_path / "a.mp4", Pictures(steady(250)), options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        video = probed(cut)
    assert 2.0 < video.end_s < 8.0
    assert "cut short" in caplog.text


NOT_VIDEO = {
    "empty.mp4": (b"", "expected a video file, found an empty file (0 bytes)"),
    "text.mp4": (b"hello world\n" * 500, "found data in no known media format"),
    "text.txt": (b"hello world\n" * 500, "found a kind of file that holds no video"),
    "noise.mp4": (np.random.default_rng(0).bytes(50_000), "found data in no known media format"),
    "list.m3u8": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.ts\n",
        "found a kind of file that holds no video",
    ),
    "list.ffconcat": (b"ffconcat version 1.0\nfile a.ts\n", "found a kind of file that holds no video"),
    "line\nbreak é.mp4": (b"", "found an empty file"),
}


@pytest.mark.parametrize("name", NOT_VIDEO)
def test_not_a_video(tmp_path: Path, name: str) -> None:
    data, words = NOT_VIDEO[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / name, Input(uri=name), "0" * 64)
    assert words in str(caught.value) and repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mp4"])
def test_a_still_image_is_refused(tmp_path: Path, name: str) -> None:
    picture = np.full((48, 64, 3), 90, np.uint8)
    (tmp_path / name).write_bytes(cv2.imencode(".jpg" if name == "a.mp4" else Path(name).suffix, picture)[1])
    assert refusal(tmp_path / name).endswith("expected a video file, found a still image")


def test_audio_only_is_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Sounds([(0, 1)], codec="aac"))
    assert refusal(path).endswith("expected a video stream, found audio only")


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures([]), Sounds([(0, 1)]))
    assert refusal(path).endswith("expected frames, found none that can be decoded")


@pytest.mark.parametrize("edge", [20_000, 65_535])
def test_absurd_size_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: int
) -> None:
    stream = Pictures(steady(3), width_px=300, height_px=260, codec="ffv1")
    path = write_media(tmp_path / "a.mkv", stream)
    sizes, absurd = (
        b"\xb0\x82" + struct.pack(">H2sH", w, b"\xba\x82", h) for w, h in [(300, 260), (edge, edge)]
    )
    data = path.read_bytes()
    assert data.count(sizes) == 1  # PixelWidth and PixelHeight
    data = data.replace(sizes, absurd)
    path.write_bytes(data)
    decoded: list[Any] = []
    monkeypatch.setattr(container.MediaFile, "frames", lambda *_: decoded.append(1))
    line = refusal(path)
    assert "expected a frame size of at most 141557760 pixels, found none, or one larger" in line
    assert not decoded


def test_folder_pipe_missing_and_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4").endswith("expected a regular file, found a named pipe")
    assert refusal(tmp_path).endswith("expected a regular file, found a folder")
    assert refusal(tmp_path / "none.mp4").endswith("found no such file or directory")
    for path in (tmp_path / "pipe.mp4", tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(MediaError):
            content_hash(path)

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    secret = write_media(tmp_path / "secret.mp4", Pictures(steady(3)))
    monkeypatch.setattr(container.av, "open", forbid)
    assert refusal(secret).endswith("found permission denied")
    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(MediaError, match="permission denied"):
        content_hash(secret)
