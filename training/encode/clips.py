"""Arrays of latents for `latents.npz`, encoded from the samples of a shard on one device."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from talkforge.schemas.errors import DatasetError, ModelError, RunError, one_line
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import SkippedSampleError
from talkforge.training.data.spans import MEMBERS, Span, decode_sample
from talkforge.training.data.stream import SkippedSample
from talkforge.training.data.tar import BrokenShardError, read_samples
from talkforge.training.wan.base import transformer_config
from talkforge.training.wan.encoders import Encoders


@dataclass(frozen=True)
class EncodedClip:
    """The cached spans of one clip.

    Attributes:
        key: the clip's id.
        arrays: `first_frame` int32 [n], float16 `latents` [n, 16, T, h, w], and `condition` [n, 20, T, h, w]
            where the base takes one. Where there are such encoders also `text` and `empty_text` [S', D]
            without the zeros at their end, and `image` [n, K, D].
    """

    key: str
    arrays: dict[str, np.ndarray]


COVER = 0
"""In place of a number of spans: as many as it takes to have every frame of a clip in one."""


def first_frames(clip_frames: int, num_frames: int, count: int) -> list[int]:
    """First frames of spans that are evenly spread over a clip.

    All possible first frames are divided into `count` equal parts, and a span begins in the middle of each.
    Spans that cover the clip begin at the first possible frame, at the last, and evenly between.

    Args:
        clip_frames: frames of the clip.
        num_frames: frames of a span.
        count: spans, or `COVER`. There are fewer where the clip is too short for so many different ones.
    """
    possible = clip_frames - num_frames + 1
    if count == COVER:
        gaps = -(-clip_frames // num_frames) - 1
        return [round(k * (possible - 1) / gaps) for k in range(gaps + 1)] if gaps else [0]
    return sorted({int((k + 0.5) * possible / count) for k in range(count)})


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz file, not compressed, because noise does not shrink. Its bytes depend on the arrays alone."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def text_dim(config: TrainConfig) -> int:
    """Width of the prompt embedding that the transformer takes, read from its `config.json` alone.

    Args:
        config: of the run.

    Raises:
        ModelError: there is no such file.
    """
    base = config.model.base
    if base == "random" or config.codec.text == "none":
        return config.model.shape.text_dim
    found = transformer_config(base)
    if "text_dim" not in found:
        raise ModelError(f"model.base {base}: transformer/config.json: expected text_dim, found none")
    return int(found["text_dim"])


class ClipEncoder:
    """Encodes clips on one device."""

    def __init__(
        self,
        config: TrainConfig,
        info: DatasetInfo,
        spans_per_clip: int,
        encoders: Encoders,
        device: torch.device,
    ) -> None:
        self._config, self._info, self._spans_per_clip = config, info, spans_per_clip
        self._encoders, self._device = encoders, device

    def shard(self, url: str) -> Iterator[EncodedClip | SkippedSample]:
        """Every sample of a shard in its order. The next one is decoded while one is encoded.

        Args:
            url: path or URI of the tar file.

        Raises:
            DatasetError: the shard is missing, or disk or network fail.
            RunError: the device's memory does not hold a span.
        """
        for key, found in _ahead(self._samples(url)):
            if isinstance(found, SkippedSampleError):
                yield SkippedSample(key, found.reason, str(found))
            else:
                yield EncodedClip(key, self._arrays(found))

    def _samples(self, url: str) -> Iterator[tuple[str, list[Span] | SkippedSampleError]]:
        samples = read_samples(url, MEMBERS)
        while True:
            try:
                key, members = next(samples)
            except (StopIteration, BrokenShardError):  # the caller counts the samples that are lost
                return
            except OSError as error:
                raise DatasetError(f"{url}: cannot be read ({one_line(error)})") from None
            try:
                yield key, self._spans(key, members)
            except SkippedSampleError as error:
                yield key, error

    def _spans(self, key: str, members: Mapping[str, bytes]) -> list[Span]:
        data = self._config.data
        clip = decode_sample(key, members, data.sizes, data.lengths, self._info, decoder=data.decoder)
        firsts = first_frames(clip.num_frames, clip.span_frames, self._spans_per_clip)
        if len(firsts) > 1:
            clip = clip.in_memory()  # decoded once for all
        return [clip.span(first) for first in firsts]

    def _arrays(self, spans: Sequence[Span]) -> dict[str, np.ndarray]:
        rgb_BFHWC = torch.from_numpy(np.stack([span.rgb for span in spans if span.rgb is not None]))
        try:
            with torch.no_grad():
                return self._encoded(spans, rgb_BFHWC.to(self._device))
        except torch.OutOfMemoryError:
            _, frames, height_px, width_px, _ = rgb_BFHWC.shape
            what = f"{frames} frames of {height_px} x {width_px} px"
            raise RunError(f"{self._device}: not enough memory to encode {what}") from None

    def _encoded(self, spans: Sequence[Span], rgb_BFHWC: Tensor) -> dict[str, np.ndarray]:
        codec, text, image = self._encoders.codec, self._encoders.text, self._encoders.image
        latents = [codec.encode(rgb_BFHWC[k : k + 1], _generator(span.key)) for k, span in enumerate(spans)]
        first_BHWC = rgb_BFHWC[:, 0]
        arrays = {
            "first_frame": np.array([span.first for span in spans], np.int32),
            "latents": _half(torch.cat(latents)),
        }
        if self._encoders.takes_condition:
            arrays["condition"] = _half(codec.condition(first_BHWC, rgb_BFHWC.shape[1]))
        if self._config.codec.text != "none":
            prompt, nothing = text.encode([spans[0].text, ""])
            arrays |= {"text": _trimmed(_half(prompt)), "empty_text": _trimmed(_half(nothing))}
        if image is not None:
            arrays["image"] = _half(image.encode(first_BHWC))
        return arrays


def _generator(key: str) -> Generator:
    """Generator of the codec's noise, a function of the span alone."""
    return Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))


def _half(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.to(torch.float16).cpu().numpy()
    return found


def _trimmed(text: np.ndarray) -> np.ndarray:
    """[S, D] without the rows of zeros at its end."""
    rows = np.flatnonzero(text.any(axis=1))
    return text[: rows[-1] + 1 if len(rows) else 0]


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Items, each of which is made in a thread of its own while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item
