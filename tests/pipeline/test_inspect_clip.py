"""`inspect` on a video whose every frame and sample is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.draw import VALIDITY_RGB
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline.inspect_clip import inspect
from talkforge.schemas.arrays import MEASURED, MISSING, ClipArrays
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.records import Clip, Input, Video, clip_id

FPS, FRAMES, FIRST = 25.0, 20, 10
WIDTH, HEIGHT, STRIP = 320, 240, 72
BEEP_S = 0.8


def luma(frame: int) -> int:
    return 20 + 37 * frame % 200


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Video]:
    """Two seconds: frames are grey and unlike their neighbours, sound begins at 0.8 s."""
    path = tmp_path_factory.mktemp("inspect") / "known.mp4"
    time_s = np.arange(96_000) / 48_000
    tone = np.where(time_s >= BEEP_S, 0.5 * np.sin(2 * np.pi * 440 * time_s), 0)
    sound = np.stack([tone, tone], axis=1).astype(np.float32)
    frames = (np.full((HEIGHT, WIDTH, 3), luma(k), np.uint8) for k in range(50))
    media.encode_mp4(path, frames, FPS, sound, crf=10, preset="ultrafast")
    return path, probe(path, Input(uri=str(path)), content_hash(path))


def clip_of(video: Video, start_s: float = FIRST / FPS, frames: int = FRAMES) -> Clip:
    end_s = start_s + frames / FPS
    return Clip(
        clip_id=clip_id(video.video_id, start_s, end_s, 0), video_id=video.video_id, uri=video.uri, scene=0,
        track=0, start_s=start_s, end_s=end_s, fps=FPS, num_frames=frames, width_px=WIDTH, height_px=HEIGHT,
    )  # fmt: skip


def arrays_of(frames: int = FRAMES) -> ClipArrays:
    """A face between (60, 20) and (100, 80) in all frames but the last five; a square mouth."""
    landmarks = np.zeros((frames, 478, 3), np.float32)
    landmarks[:, 0::2, :2] = (60, 20)
    landmarks[:, 1::2, :2] = (100, 80)
    landmarks[-5:] = np.nan
    contour = np.tile(np.array([[70, 60], [90, 60], [90, 70], [70, 70]], np.float32), (frames, 1, 1))
    contour[-5:] = np.nan
    valid = np.full(frames, MEASURED, np.uint8)
    valid[-5:] = MISSING
    return ClipArrays(
        landmarks=landmarks, contour=contour, lip_valid=valid,
        joints=np.full((frames, 65, 3), np.nan, np.float32), face_rgb=np.zeros((112, 112, 3), np.uint8),
        speech=np.zeros((2 * frames, 80), np.float16),
    )  # fmt: skip


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    written = probe(path, Input(uri=str(path)), content_hash(path))
    frames = [frame.rgb() for frame in media.read_frames(path, written)]
    return frames, media.read_audio(path, written, 0, len(frames) / FPS)


def test_every_frame_of_the_span_is_shown_with_its_marks_and_its_sound(
    video: tuple[Path, Video], tmp_path: Path
) -> None:
    out = tmp_path / "x.mp4"
    inspect(clip_of(video[1]), arrays_of(), video[1], video[0], out)
    frames, sound = read(out)
    assert [frame.shape for frame in frames] == [(HEIGHT + STRIP, WIDTH, 3)] * FRAMES
    corner = [float(frame[5:15, 5:15].mean()) for frame in frames]
    assert corner == pytest.approx([luma(FIRST + k) for k in range(FRAMES)], abs=8)
    redness = [float(f[63:67, 75:85, 0].mean() - f[63:67, 75:85, 1].mean()) for f in frames]
    assert min(redness[:15]) > 40, "the mouth is tinted where it was measured"
    assert max(map(abs, redness[15:])) < 10, "and not where it is missing"
    assert np.abs(frames[3][-2, 10].astype(int) - VALIDITY_RGB[MEASURED]).max() < 40
    assert np.abs(frames[3][-2, -10].astype(int) - VALIDITY_RGB[MISSING]).max() < 40
    begin_s = float(np.flatnonzero(np.abs(sound) > 0.1)[0]) / 16_000
    assert begin_s == pytest.approx(BEEP_S - FIRST / FPS, abs=0.025)


def test_the_same_clip_gives_the_same_bytes(video: tuple[Path, Video], tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        inspect(clip_of(video[1]), arrays_of(), video[1], video[0], tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_arrays_of_another_clip_are_refused(video: tuple[Path, Video], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected arrays of 20 frames, found 7"):
        inspect(clip_of(video[1]), arrays_of(7), video[1], video[0], tmp_path / "x.mp4")


def test_a_span_beyond_the_end_is_named_and_leaves_nothing(video: tuple[Path, Video], tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    with pytest.raises(MediaError, match=r"expected 20 frames in known.mp4, found 10"):
        inspect(clip_of(video[1], start_s=1.6), arrays_of(), video[1], video[0], out)
    assert not out.exists()
