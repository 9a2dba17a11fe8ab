"""One length, rate, crop, size and codec for a generated video and its true one, before anything is measured.

Crops that are placed in each video by itself, and codecs that differ, are differences that the model did not
make. So both videos are cut to the same rectangle, scaled to the same size, and encoded once more by the same
encoder; what is measured is what comes out of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talkforge.curation.audio.track import choose_audio
from talkforge.curation.body.motion import RIGID_POINTS
from talkforge.curation.face.identity import similarity_transform
from talkforge.curation.media import clip_indices, encode_mp4, on_grid, read_audio, read_frames, whole_frame
from talkforge.curation.media.probe import probe
from talkforge.schemas.arrays import Bytes, Doubles, Floats
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Clip, Input, Rectangle, Video
from talkforge.schemas.units import frames_from_seconds
from talkforge.training.evaluate.measures import Models, trace_frames
from talkforge.training.evaluate.videos import VideoPair

MAX_EDGE_PX = 512
"""Greatest shorter edge at which videos are compared. Source: the published code generates at 512 px."""

MAX_FPS = 30.0
"""Greatest rate at which videos are compared."""

CRF, PRESET = 18, "veryfast"
"""Of the encoding that both videos get: x264, visually lossless. Those of `talkforge generate`."""

MIN_FRAMES = 5
"""Least number of frames that two videos must have in common."""

SAME_ASPECT = 0.015
"""Videos whose aspect ratios differ by less than this fraction are taken to show the same."""

MAX_TURN_DEG = 5.0
"""Most that the face may be turned in the picture between the first frames of two videos of different
framing."""


class VideoFile:
    """The frames of a video file, decoded anew each time they are asked for.

    Args:
        path: a file that `encode_mp4` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._video = path, _probed(path)

    def __iter__(self) -> Iterator[Bytes]:
        for frame in read_frames(self._path, self._video):
            yield frame.rgb()


@dataclass(frozen=True)
class PreparedPair:
    """A pair, ready to be measured. Both videos have the same number of frames, rate and size.

    Attributes:
        key: of the pair.
        generated: frames of the generated video.
        truth: frames of the true one.
        generated_sound: float32 [N] at 16 kHz, or None where neither file has sound.
        true_sound: likewise.
        fps: frames per second.
        num_frames: frames of both.
        size: width and height of both, px.
        steps: what was done to the two, one line each.
    """

    key: str
    generated: VideoFile
    truth: VideoFile
    generated_sound: Floats | None
    true_sound: Floats | None
    fps: float
    num_frames: int
    size: tuple[int, int]
    steps: tuple[str, ...]


def prepare(pair: VideoPair, folder: Path, models: Models, max_s: float) -> PreparedPair:
    """Bring two videos to one length, rate, crop, size and codec.

    Args:
        pair: the files.
        folder: where the two are written.
        models: find the faces, where framings differ.
        max_s: longest span that is compared, s.

    Raises:
        MediaError: a file cannot be read, or the two do not fit each other.
    """
    made, true = _probed(pair.generated), _probed(pair.truth)
    fps = min(made.fps, true.fps, MAX_FPS)
    length_s = min(made.end_s - made.start_s, true.end_s - true.start_s, max_s)
    frames = frames_from_seconds(length_s, fps)
    if frames < MIN_FRAMES:
        raise MediaError(f"expected {MIN_FRAMES} frames in common, found {max(frames, 0)}")
    steps = [f"the first {frames / fps:.2f} s, {frames} frames"]
    longer = max(made.end_s - made.start_s, true.end_s - true.start_s)
    if longer - length_s > 1.5 / fps:
        steps[0] += f", of up to {longer:.2f} s"
    steps.append(f"{fps:g} frames per second; generated {made.fps:g}, true {true.fps:g}")
    crops = _crops(pair, made, true, models)
    shown = [crop or whole_frame(video) for crop, video in zip(crops, (made, true), strict=True)]
    steps.append(f"crop: {'none' if crops == (None, None) else 'both to what they have in common'}")
    size = _size(shown)
    given = ", ".join(
        f"{name} {v.width_px}x{v.height_px}" for name, v in (("generated", made), ("true", true))
    )
    steps.append(f"{size[0]}x{size[1]} px; {given}")
    steps.append(f"both encoded by x264, crf {CRF}, {PRESET}")
    files = []
    for name, path, video, crop in (
        ("generated", pair.generated, made, crops[0]),
        ("truth", pair.truth, true, crops[1]),
    ):
        clip = _clip(video, frames, fps, size, crop)
        encode_mp4(folder / f"{name}.mp4", _frames(path, video, clip), fps, None, CRF, PRESET)
        files.append(VideoFile(folder / f"{name}.mp4"))
    sounds = [
        _sound(path, video, frames / fps) for path, video in ((pair.generated, made), (pair.truth, true))
    ]
    if sounds[0] is None and sounds[1] is not None:
        steps.append("the generated video has no sound: that of the true one is used")
    return PreparedPair(
        pair.key,
        files[0],
        files[1],
        sounds[1] if sounds[0] is None else sounds[0],
        sounds[0] if sounds[1] is None else sounds[1],
        fps,
        frames,
        size,
        tuple(steps),
    )


def encoded(frames: Iterable[Bytes], fps: float, path: Path, crf: int = CRF) -> VideoFile:
    """Frames, encoded as `prepare` does.

    Args:
        frames: uint8 RGB [H, W, 3] each.
        fps: frames per second.
        path: file that is written.
        crf: constant rate factor of x264.
    """
    encode_mp4(path, frames, fps, None, crf, PRESET)
    return VideoFile(path)


def _probed(path: Path) -> Video:
    video = choose_audio(
        path, probe(path, Input(uri=str(path)), sha256="")
    )  # nothing here asks which file it is
    if video.hdr:
        raise MediaError(f"{path.name!r}: expected standard dynamic range, found {video.hdr}")
    return video


def _sound(path: Path, video: Video, duration_s: float) -> Floats | None:
    if not video.has_audio:
        return None
    return read_audio(path, video, video.start_s, video.start_s + duration_s)


def _frames(path: Path, video: Video, clip: Clip) -> Iterator[Bytes]:
    """The frames of a clip; a frame that lasts long comes as often as the rate asks."""
    count = 0
    rgb: Bytes | None = None
    for frame in read_frames(path, video, clip.start_s, clip.end_s):
        shown = clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if len(shown):
            rgb = frame.of_clip(clip)
            for _ in shown:
                yield rgb
            count += len(shown)
    if rgb is None or count < clip.num_frames - 1:
        raise MediaError(f"{path.name!r}: expected {clip.num_frames} frames, found {count}")
    for _ in range(clip.num_frames - count):
        yield rgb


def _clip(video: Video, frames: int, fps: float, size: tuple[int, int], crop: Rectangle | None) -> Clip:
    left, top, width, height = crop or (None,) * 4
    return Clip(
        clip_id="", video_id=video.video_id, uri=video.uri, scene=0, track=0,
        start_s=video.start_s, end_s=video.start_s + frames / fps, fps=fps, num_frames=frames,
        width_px=size[0], height_px=size[1],
        crop_left_px=left, crop_top_px=top, crop_width_px=width, crop_height_px=height,
    )  # fmt: skip


def _size(shown: Iterable[Rectangle]) -> tuple[int, int]:
    """Width and height, even, of the smaller of two rectangles, at most `MAX_EDGE_PX` at its shorter edge."""
    smaller = min(shown, key=lambda one: one.width_px * one.height_px)
    scale = min(1.0, MAX_EDGE_PX / min(smaller.width_px, smaller.height_px))
    width, height = (max(2, round(edge * scale / 2) * 2) for edge in (smaller.width_px, smaller.height_px))
    return width, height


# --------------------------------------------------------------------------- the common rectangle


def _crops(
    pair: VideoPair, made: Video, true: Video, models: Models
) -> tuple[Rectangle | None, Rectangle | None]:
    """What of each video is compared: all where both have one aspect ratio, else what they have in common.

    Where they differ, one was cut out of the other. The faces of both first frames say from where.
    """
    aspects = [video.width_px / video.height_px for video in (made, true)]
    if abs(aspects[0] / aspects[1] - 1) <= SAME_ASPECT:
        return None, None
    points = [_first_points(path, v, models) for path, v in ((pair.generated, made), (pair.truth, true))]
    to_true = similarity_transform(points[0], points[1])
    turn_deg = float(np.degrees(np.arctan2(to_true[1, 0], to_true[0, 0])))
    if abs(turn_deg) > MAX_TURN_DEG:
        raise MediaError(
            f"the framings differ, and in the first frames the face is turned by {turn_deg:.0f} degrees"
        )
    return common_part(to_true, made, true)


def common_part(to_true: Doubles, made: Video, true: Video) -> tuple[Rectangle, Rectangle]:
    """The rectangle that two videos share, in the pixels of each.

    Args:
        to_true: [2, 3] similarity from pixels of the generated video to those of the true one.
        made: the generated video.
        true: the true video.

    Raises:
        MediaError: they share hardly anything.
    """
    scale = float(np.hypot(*to_true[:, 0]))
    middle = to_true @ np.array([made.width_px / 2, made.height_px / 2, 1.0])
    half = np.array([made.width_px, made.height_px]) * scale / 2
    low = np.maximum(middle - half, 0)
    high = np.minimum(middle + half, [true.width_px, true.height_px])
    if (high - low < half).any():
        raise MediaError("the framings differ, and the two videos share less than half of the picture")
    corner = (low - (middle - half)) / scale
    extent = (high - low) / scale
    in_made = on_grid(made, Rectangle(float(corner[0]), float(corner[1]), float(extent[0]), float(extent[1])))
    wide, tall = high - low
    in_true = on_grid(true, Rectangle(float(low[0]), float(low[1]), float(wide), float(tall)))
    return in_made, in_true


def _first_points(path: Path, video: Video, models: Models) -> Doubles:
    """Points of the skull in the first frame [P, 2], in pixels of the video."""
    rgb = next(iter(read_frames(path, video, video.start_s))).rgb()
    trace = trace_frames([rgb], 1, 25.0, models)
    if not trace.landmarks.seen.any():
        raise MediaError(f"{path.name!r}: the framings differ, and there is no face in the first frame")
    return np.asarray(trace.points_px[0][list(RIGID_POINTS), :2], np.float64)
