"""Frames and lip masks of a clip, at the size of a bucket: scaled to cover it, then cropped.

A clip out of a shard is an `EncodedVideo`, of which the frames of a span are decoded. A clip that is cached
is a `DecodedVideo`. Both give the same frames, and refuse the same spans for the same reasons.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.errors import DatasetError, one_line
from talkforge.schemas.sample import unpack_mask

Size = tuple[int, int]
"""Height and width, px."""


class SkippedSampleError(DatasetError):
    """A sample that cannot be used. It is counted under `reason`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def nearest(sizes: Iterable[Size], own: Size) -> Size:
    """The size whose aspect ratio is nearest to that of a frame.

    Among sizes of one aspect ratio it is the largest one that the frame need not be enlarged for, or the
    smallest where it must be enlarged for all.

    Args:
        sizes: heights and widths, px.
        own: height and width of the frame, px.
    """

    def order(size: Size) -> tuple[float, bool, int]:
        area = size[0] * size[1]
        enlarged = size[0] > own[0] or size[1] > own[1]
        distance = abs(np.log(size[1] / size[0]) - np.log(own[1] / own[0]))
        return round(float(distance), 6), enlarged, area if enlarged else -area

    return min(sizes, key=order)


@dataclass(frozen=True)
class Crop:
    """Scales a frame from `own` to `scaled`, then takes `size` from (`top`, `left`)."""

    own: Size
    scaled: Size
    size: Size
    top: int
    left: int

    @classmethod
    def around(cls, own: Size, size: Size, middle: tuple[float, float], least_scale: float = 0.0) -> Crop:
        """The smallest scaling that covers a size, cropped as near to a point as the frame allows.

        Args:
            own: height and width of the frame, px.
            size: height and width of the crop, px.
            middle: y and x of the point, px of the frame.
            least_scale: the frame is scaled by at least this.
        """
        scale = max(size[0] / own[0], size[1] / own[1], least_scale)
        scaled = (max(round(own[0] * scale), size[0]), max(round(own[1] * scale), size[1]))
        top, left = (
            int(np.clip(round(at * whole / before - part / 2), 0, whole - part))
            for at, before, whole, part in zip(middle, own, scaled, size, strict=True)
        )
        return cls(own, scaled, size, top, left)

    def moved(self, points: Floats) -> Floats:
        """Where points [..., 2] of the frame, x and y in px, lie in the crop, px."""
        scale = np.array([self.scaled[1] / self.own[1], self.scaled[0] / self.own[0]])
        # Pixel k has its centre at k and its edges at k - 0.5 and k + 0.5, so the edges are what is mapped.
        return np.asarray((points + 0.5) * scale - 0.5 - [self.left, self.top], np.float32)

    def of(self, scaled: np.ndarray) -> np.ndarray:
        """The crop of a frame or mask that has been scaled, [H, W] or [H, W, 3]."""
        return scaled[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


class ClipFrames(Protocol):
    """Frames and lip masks of one clip."""

    def rgb(self, first: int, last: int) -> Bytes:
        """Frames [first, last), uint8 [n, H, W, 3].

        Raises:
            SkippedSampleError: 'unreadable' or 'wrong_shape': the video cannot be decoded up to `last`.
        """

    def lips(self, first: int, last: int) -> Bytes:
        """Lip masks of frames [first, last), uint8 0/1 [n, H, W]."""

    def check(self, last: int) -> None:
        """Raise what `rgb` would raise for frames up to `last`, at a lower cost."""


@dataclass(frozen=True)
class LipMasks:
    """Lip masks as they are stored: `bits` [F, ceil(h*w/8)] uint8, `valid` [F] bool."""

    bits: Bytes
    valid: np.ndarray
    crop: Crop

    def lips(self, first: int, last: int) -> Bytes:
        """See `ClipFrames.lips`. Frames that are not valid have no lips."""
        lips = np.zeros((last - first, *self.crop.size), np.uint8)
        for k in first + np.flatnonzero(self.valid[first:last]):
            lips[k - first] = self.crop.of(
                shrunk(unpack_mask(self.bits[k], *self.crop.own), self.crop.scaled)
            )
        return lips


def shrunk(mask: np.ndarray, size: Size) -> np.ndarray:
    """A bool mask at another size, bool.

    A pixel is set where the lips cover at least half of it. Where they cover half of no pixel, those are set
    that they cover most. Of 600 masks of generated heads (256 px, lips 15 to 27 px high) none vanishes. At 64
    px 92 to 113 % of a mask's area are kept, 102 % on average. A quarter instead of half would add 15 %. At
    32 px it is 51 to 124 %, 99 % on average.

    Args:
        mask: bool [H, W].
        size: height and width, px.
    """
    if mask.shape == size:
        return mask
    coverage = cv2.resize(mask.view(np.uint8) * np.uint8(254), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(coverage >= max(1, min(127, int(coverage.max()))))


@dataclass(frozen=True)
class EncodedVideo:
    """An MP4 file that is expected to hold `num_frames` frames of the size `masks.crop.own`.

    Attributes:
        decoder: 'pyav', or 'decord', which gives the same frames in slightly other colours.
    """

    key: str
    mp4: bytes
    num_frames: int
    masks: LipMasks
    decoder: str = "pyav"

    def rgb(self, first: int, last: int) -> Bytes:
        """See `ClipFrames.rgb`. Decodes from the start: clips are short and have one key frame in 250."""
        crop = self.masks.crop
        if self.decoder == "decord":
            return np.stack([_scaled_rgb(frame, crop) for frame in self._by_decord(first, last)])
        rgb = np.empty((last - first, *crop.size, 3), np.uint8)
        scaled = _Scaling(crop)
        for k, frame in enumerate(self._frames(last)):
            if k >= first:
                rgb[k - first] = scaled(frame)
        return rgb

    def lips(self, first: int, last: int) -> Bytes:
        """See `ClipFrames.lips`."""
        return self.masks.lips(first, last)

    def check(self, last: int) -> None:
        """See `ClipFrames.check`. Decodes, and converts nothing."""
        if self.decoder == "decord":
            self._by_decord(last - 1, last)
            return
        for _ in self._frames(last):
            pass

    def decoded(self) -> DecodedVideo:
        """The whole video. An error is kept, and raised for spans that reach beyond it."""
        scaled, found, damage = _Scaling(self.masks.crop), [], None
        try:
            if self.decoder == "decord":
                found = [*self.rgb(0, self.num_frames)]
            else:
                for frame in self._frames(self.num_frames):
                    found.append(scaled(frame))
        except SkippedSampleError as error:
            damage = error
        rgb = np.stack(found) if found else np.empty((0, *self.masks.crop.size, 3), np.uint8)
        return DecodedVideo(rgb, self.lips(0, self.num_frames), damage)

    def _by_decord(self, first: int, last: int) -> Bytes:
        """Frames [first, last), uint8 [n, h, w, 3], in the size of the file."""
        import decord

        height_px, width_px = self.masks.crop.own
        try:
            reader = decord.VideoReader(io.BytesIO(self.mp4), ctx=decord.cpu(0), num_threads=1)
            count = len(reader)
            found = reader.get_batch(range(first, last)).asnumpy() if count >= last else None
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise SkippedSampleError("unreadable", f"{self.key}: mp4: {one_line(error, 150)}") from None
        if found is None:
            raise SkippedSampleError(
                "wrong_shape", f"{self.key}: mp4: expected {self.num_frames} frames, found {count}"
            )
        if found.shape[1:3] != (height_px, width_px):
            size = f"{found.shape[2]} x {found.shape[1]}"
            raise SkippedSampleError(
                "wrong_shape", f"{self.key}: mp4: expected {width_px} x {height_px} px, found {size}"
            )
        return np.asarray(found, np.uint8)

    def _frames(self, last: int) -> Iterator[Any]:
        """The first `last` frames. Raises SkippedSampleError unless there are that many."""
        count, expected = 0, self.masks.crop.own
        try:
            with av.open(io.BytesIO(self.mp4)) as container:
                container.streams.video[0].thread_count = 1
                for frame in container.decode(video=0):
                    if frame.is_corrupt:  # patched up by the decoder, and all that follow with it
                        raise SkippedSampleError("unreadable", f"{self.key}: mp4: frame {count} is damaged")
                    if (frame.height, frame.width) != expected:
                        found = f"{frame.width} x {frame.height}"
                        raise SkippedSampleError(
                            "wrong_shape",
                            f"{self.key}: mp4: expected {expected[1]} x {expected[0]} px, found {found}",
                        )
                    yield frame
                    count += 1
                    if count == last:
                        return
        except (FFmpegError, IndexError) as error:
            why = one_line(error)
            raise SkippedSampleError("unreadable", f"{self.key}: mp4: frame {count}: {why}") from None
        raise SkippedSampleError(
            "wrong_shape", f"{self.key}: mp4: expected {self.num_frames} frames, found {count}"
        )


@dataclass(frozen=True)
class DecodedVideo:
    """A decoded video in memory.

    Attributes:
        frames: uint8 [n, H, W, 3], fewer than the clip has where the video is damaged.
        masks: uint8 0/1 [F, H, W].
        error: why there are fewer, or None.
    """

    frames: Bytes
    masks: Bytes
    error: SkippedSampleError | None

    def rgb(self, first: int, last: int) -> Bytes:
        """See `ClipFrames.rgb`."""
        self.check(last)
        return self.frames[first:last]

    def lips(self, first: int, last: int) -> Bytes:
        """See `ClipFrames.lips`."""
        return self.masks[first:last]

    def check(self, last: int) -> None:
        """See `ClipFrames.check`."""
        if self.error is not None and last > len(self.frames):
            raise SkippedSampleError(self.error.reason, str(self.error))


def _scaled_rgb(rgb: Bytes, crop: Crop) -> Bytes:
    """A frame in RGB, scaled and cropped."""
    if rgb.shape[:2] != crop.scaled:
        rgb = np.asarray(cv2.resize(rgb, crop.scaled[::-1], interpolation=cv2.INTER_AREA))
    return np.asarray(crop.of(rgb))


class _Scaling:
    """Decoded frames as cropped RGB, uint8 [H, W, 3].

    Frames are scaled first and converted then, because swscale is two grey levels too dark where it does
    both in one pass. Chroma has the full resolution where the clip is at least twice as large as the target.
    Otherwise it has half of it, as in the clip.
    """

    def __init__(self, crop: Crop) -> None:
        self._crop = crop
        fine = crop.own[0] >= 2 * crop.scaled[0]
        self._format = "yuv444p" if fine else "yuv420p"
        self._scale, self._convert = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: Any) -> Bytes:
        if (frame.height, frame.width) != self._crop.scaled:
            height_px, width_px = self._crop.scaled
            frame = self._scale.reformat(
                frame, width_px, height_px, format=self._format, interpolation="AREA", threads=1
            )
        rgb = self._convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.asarray(self._crop.of(rgb))
