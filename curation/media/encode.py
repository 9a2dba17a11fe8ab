"""Encoding of clips as MP4 and of speech as FLAC, with the same bytes for the same input.

For that, the encoders run on one thread, and neither a date nor the muxer's version is written. Use it
through `curation.media`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from talkforge.curation.media.container import reason
from talkforge.schemas.arrays import Bytes, Floats, expect_shape
from talkforge.schemas.errors import MediaError
from talkforge.schemas.units import AUDIO_HZ

CLIP_AUDIO_HZ = 48_000
"""Rate of the audio track of an encoded clip, Hz."""

SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""swscale flags for converting and scaling frames. They give the same bytes on every CPU."""

BT709 = 1
"""Colour matrix, primaries and transfer of ITU-R BT.709, in FFmpeg's numbers."""

LIMITED = 1
"""Colour range 16 to 235, in FFmpeg's numbers."""

_BITEXACT = av.codec.context.Flags.bitexact


def encode_mp4(
    out: Path,
    frames: Iterable[Any],
    fps: float,
    audio: Floats | None,
    crf: int,
    preset: str,
) -> None:
    """Write H.264 yuv420p at a constant rate, with AAC audio, playable while loading.

    The same input gives the same bytes: the encoder runs on one thread, and neither a date nor the
    muxer's version is written.

    Args:
        out: path of the MP4 file. Nothing is left there if encoding fails.
        frames: uint8 RGB [H, W, 3], or PyAV's frames in yuv420p of BT.709 and limited range, see
            `Frame.to_encode`. All of one size, both edges even.
        fps: frames per second.
        audio: float32 [N, 1] or [N, 2] at 48 kHz, sample 0 at the start of frame 0. None: no audio track.
        crf: constant rate factor of x264, 0 (lossless) to 51.
        preset: speed preset of x264, such as "medium".

    Raises:
        ValueError: there are no frames, or their size is odd.
    """
    rate = Fraction(fps).limit_denominator(1001)
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    try:
        with av.open(str(out), "w", format="mp4", container_options=options) as container:
            video_stream = _video_stream(container, rate, crf, preset)
            audio_track = _AacTrack(container, audio) if audio is not None else None
            count = 0
            for picture in frames:
                frame = _yuv(picture)
                frame.pts, frame.time_base = count, 1 / rate
                if count == 0:
                    video_stream.height, video_stream.width = frame.height, frame.width
                container.mux(video_stream.encode(frame))
                count += 1
                if audio_track is not None:
                    audio_track.write_until(float(count / rate))
            if not count:
                raise ValueError(f"{out.name}: expected frames, found none")
            container.mux(video_stream.encode(None))
            if audio_track is not None:
                audio_track.close()
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _video_stream(container: Any, rate: Fraction, crf: int, preset: str) -> Any:
    # With macroblock trees x264 reads uninitialised memory: 40 encodes of one video at 160x192 gave six
    # different files, 25 encodes at 324x640 gave 24. Sizes at which no two differed (512x512, 640x360, of 8
    # encodes each) are no promise. The price is files that are 4 to 79 % larger at the same CRF.
    options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = 1 / rate
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED
    context.flags |= _BITEXACT
    return stream


def _yuv(picture: Any) -> Any:
    """A frame in yuv420p, without what else a decoded one carries: times, captions, its own type."""
    if not isinstance(picture, np.ndarray):
        return av.VideoFrame.from_ndarray(picture.to_ndarray(), format="yuv420p")
    expect_shape("frame", picture, (None, None, 3))
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED, interpolation=SCALING, threads=1
    )


class _AacTrack:
    """The AAC track of a clip, interleaved with the frames so that neither is buffered for long."""

    def __init__(self, container: Any, samples: Floats) -> None:
        expect_shape("audio", samples, (None, 1 if samples.shape[1:] == (1,) else 2))
        layout = "mono" if samples.shape[1] == 1 else "stereo"
        self._container, self._samples, self._done = container, samples, 0
        self._stream = container.add_stream("aac", rate=CLIP_AUDIO_HZ, layout=layout)
        self._stream.codec_context.flags |= _BITEXACT

    def write_until(self, end_s: float) -> None:
        end = min(math.floor(end_s * CLIP_AUDIO_HZ + 0.5), len(self._samples))
        if end > self._done:
            frame = audio_frame(self._samples[self._done : end], CLIP_AUDIO_HZ)
            frame.pts, frame.time_base = self._done, Fraction(1, CLIP_AUDIO_HZ)
            self._container.mux(self._stream.encode(frame))
            self._done = end

    def close(self) -> None:
        self.write_until(math.inf if not len(self._samples) else len(self._samples) / CLIP_AUDIO_HZ)
        self._container.mux(self._stream.encode(None))


def audio_frame(samples: Floats, hz: int) -> Any:
    """PyAV frame of float32 samples [N, channels], one channel or two."""
    packed = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
    frame.sample_rate = hz
    return frame


def decode_mp4(data: bytes) -> Bytes:
    """Every frame of a clip that `encode_mp4` wrote, uint8 RGB [F, H, W, 3].

    Raises:
        MediaError: not an MP4 file, damaged, or without a frame.
    """
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            container.streams.video[0].thread_count = 1
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (FFmpegError, IndexError) as error:
        raise MediaError(f"mp4: expected an MP4 file, found {reason(error)}") from error
    if not frames:
        raise MediaError("mp4: expected frames, found none")
    return np.stack(frames)


def encode_flac(samples: Floats) -> bytes:
    """FLAC bytes, 16 bit at 16 kHz, of float32 samples [N]. Samples outside of [-1, 1] are clipped.

    Raises:
        ValueError: no samples.
    """
    expect_shape("samples", samples, (None,))
    if not len(samples):
        raise ValueError("flac: expected samples, found none")
    pcm = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=AUDIO_HZ, layout="mono")
        stream.codec_context.flags |= _BITEXACT
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_HZ, 0, Fraction(1, AUDIO_HZ)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_flac(data: bytes) -> Floats:
    """Inverse of `encode_flac`: float32 samples [N] in [-1, 1) of 16 bit mono FLAC at 16 kHz.

    Raises:
        MediaError: the data are not FLAC, or of another format.
    """
    try:
        with av.open(io.BytesIO(data), format="flac") as container:
            frames = list(container.decode(audio=0))
    except (FFmpegError, IndexError) as error:
        raise MediaError(f"flac: expected flac data, found {reason(error)}") from error
    found = {(f.sample_rate, f.layout.name, f.format.name) for f in frames}
    if found != {(AUDIO_HZ, "mono", "s16")}:
        raise MediaError(f"flac: expected 16 bit mono samples at 16 kHz, found {sorted(found) or 'none'}")
    pcm = np.concatenate([f.to_ndarray()[0] for f in frames])
    return pcm.astype(np.float32) / np.float32(32768)
