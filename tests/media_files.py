"""Odd media files with known truth: pictures that carry their number, sound that carries clicks.

Every picture shows a bar code of 12 bits in its upper half, most significant bit to the left,
and in its lower half red to the left and blue to the right, which tells how it is turned.
Every sound is silent but for clicks, 5 ms bursts of 2 kHz, at known seconds of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

NUM_BITS = 12
CLICK_S = 0.005
CLICK_HZ = 2000
TICK = Fraction(1, 90_000)


def numbered(number: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] that shows `number`."""
    rgb = np.zeros((height_px, width_px, 3), np.uint8)
    edges = np.linspace(0, width_px, NUM_BITS + 1).round().astype(int)
    for bit in range(NUM_BITS):
        if number >> (NUM_BITS - 1 - bit) & 1:
            rgb[: height_px // 2, edges[bit] : edges[bit + 1]] = 235
    rgb[height_px // 2 :, : width_px // 2, 0] = 200
    rgb[height_px // 2 :, width_px // 2 :, 2] = 200
    return rgb


def number_of(rgb: NDArray[np.uint8]) -> int:
    """The number that a decoded picture shows, in any size; it must be upright."""
    height_px, width_px, _ = rgb.shape
    centres = ((np.arange(NUM_BITS) + 0.5) * width_px / NUM_BITS).astype(int)
    bits = rgb[height_px // 4, centres].mean(axis=1) > 110
    return int(sum(int(bit) << (NUM_BITS - 1 - i) for i, bit in enumerate(bits)))


def is_upright(rgb: NDArray[np.uint8]) -> bool:
    """Whether red is at the lower left and blue at the lower right."""
    height_px, width_px, _ = rgb.shape
    left = rgb[height_px * 3 // 4, width_px // 4].astype(int)
    right = rgb[height_px * 3 // 4, width_px * 3 // 4].astype(int)
    return bool(left[0] > left[2] + 50 and right[2] > right[0] + 50)


def clicks(start_s: float, duration_s: float, clicks_s: Sequence[float], hz: int) -> NDArray[np.float32]:
    """float32 [N]: the part from `start_s` of a sound that clicks at `clicks_s`."""
    times_s = start_s + np.arange(round(duration_s * hz)) / hz
    sound = np.zeros(len(times_s), np.float32)
    for click_s in clicks_s:
        on = (times_s >= click_s - 1e-9) & (times_s < click_s + CLICK_S - 1e-9)
        sound[on] = 0.8 * np.sin(2 * np.pi * CLICK_HZ * (times_s[on] - click_s) + np.pi / 4)
    return sound


def clicks_heard(samples: NDArray[np.float32], hz: int) -> list[float]:
    """Seconds at which clicks begin: a quarter of full scale after 50 ms without."""
    loud = np.flatnonzero(np.abs(samples) > 0.25)
    if not len(loud):
        return []
    first = np.concatenate([[True], np.diff(loud) > 0.05 * hz])
    return [float(i) / hz for i in loud[first]]


@dataclass(frozen=True)
class Pictures:
    """A video stream: picture n, which shows n, comes into force at `times_s[n]`."""

    times_s: Sequence[float]
    width_px: int = 96
    height_px: int = 64
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    rotation_deg: int = 0
    """Clockwise rotation that players apply; the stored picture is turned the other way."""
    sample_aspect_ratio: Fraction | None = None
    first_number: int = 0
    gop: int = 12
    last_s: float = 0.04
    """Duration of the last picture."""

    def encoded(self, container: Any) -> Iterator[tuple[float, Any]]:
        sideways = self.rotation_deg in (90, 270)
        stream = container.add_stream(self.codec, rate=25)
        stream.width, stream.height = self.width_px, self.height_px
        stream.pix_fmt = self.pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = self.gop
        if self.codec == "libx264":
            stream.codec_context.time_base = TICK
            stream.codec_context.options = {"crf": "12", "preset": "veryfast"}
        else:
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.bit_rate = 4_000_000
        if self.sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = self.sample_aspect_ratio
        if self.rotation_deg:
            stream.set_display_rotation(-self.rotation_deg)
        return self._packets(
            stream, (self.height_px, self.width_px) if sideways else (self.width_px, self.height_px)
        )

    def _packets(self, stream: Any, shown: tuple[int, int]) -> Iterator[tuple[float, Any]]:
        ends_s = [*self.times_s[1:], *(time_s + self.last_s for time_s in self.times_s[-1:])]
        base = stream.codec_context.time_base
        for n, (time_s, end_s) in enumerate(zip(self.times_s, ends_s, strict=True)):
            rgb = np.rot90(numbered(self.first_number + n, *shown), self.rotation_deg // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame = frame.reformat(format=self.pix_fmt, dst_colorspace=5, threads=1)
            frame.pts, frame.time_base = round(time_s / base), base
            frame.duration = round((end_s - time_s) / base)
            for packet in stream.encode(frame):
                yield time_s, packet
        for packet in stream.encode(None):
            yield float("inf"), packet


@dataclass(frozen=True)
class Sounds:
    """An audio stream of pieces (start_s, end_s), silent but for clicks at `clicks_s`."""

    pieces: Sequence[tuple[float, float]]
    clicks_s: Sequence[float] = ()
    hz: int = 48_000
    codec: str = "pcm_s16le"
    layout: str = "stereo"

    def encoded(self, container: Any) -> Iterator[tuple[float, Any]]:
        return self._packets(container.add_stream(self.codec, rate=self.hz, layout=self.layout))

    def _packets(self, stream: Any) -> Iterator[tuple[float, Any]]:
        num_channels = stream.codec_context.layout.nb_channels
        for start_s, end_s in self.pieces:
            sound = clicks(start_s, end_s - start_s, self.clicks_s, self.hz)
            for at in range(0, len(sound), 1024):
                block = np.repeat(sound[at : at + 1024, None], num_channels, axis=1).reshape(1, -1)
                pcm = (block * 32767).round().astype(np.int16)
                frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=self.layout)
                frame.sample_rate, frame.time_base = self.hz, Fraction(1, self.hz)
                frame.pts = round(start_s * self.hz) + at
                for packet in stream.encode(frame):
                    yield start_s + at / self.hz, packet
        for packet in stream.encode(None):
            yield float("inf"), packet


def write_media(path: Path, *streams: Pictures | Sounds, options: dict[str, str] | None = None) -> Path:
    """Write the streams, in this order, to a container chosen by the suffix of `path`."""
    with av.open(str(path), "w", container_options=options or {}) as container:
        sources = [stream.encoded(container) for stream in streams]
        container.start_encoding()
        packets = [item for source in sources for item in source]
        for _, packet in sorted(packets, key=lambda item: item[0]):
            container.mux(packet)
    return path


def steady(num_frames: int, fps: float = 25.0, start_s: float = 0.0) -> list[float]:
    """Times of pictures at a constant rate."""
    return [start_s + n / fps for n in range(num_frames)]
