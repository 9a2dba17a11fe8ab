"""The figures of `make learn`: what a trained model does with portraits and speech it has never met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from examples.learn_measures import Mouth, MouthReader, boxes, correlation, motion_around
from examples.learn_videos import SIZE_PX, UNSEEN, Window, window
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.training.config import DropoutConfig
from talkforge.training.data.loader import SpanLoader
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.objective.step import training_step

READ_FROM = 10_000
"""Seeds of the videos that the reader of mouths is fitted to: neither trained on nor tested on."""

TRUTH_FRAMES = 81
"""Frames of each of those."""

GENERATED_AT_ONCE = 16

WIDE = 95
"""Percentile of the true openings in speech that counts as 1."""

HELD_OUT_BATCHES = 4

SHARED_FRAMES = 1
"""First frames that are the portrait itself; correlations leave them out."""


@dataclass(frozen=True)
class Figures:
    """What was measured; correlations are means over the windows of Pearson's r over the frames of one.

    Attributes:
        reader: of the openings read from true videos, seen through the codec, with the true ones.
        own: of the openings generated to a window's speech with its true ones.
        shuffled: the same, to its speech in another order.
        swapped_to_given, swapped_to_own: to another window's speech: with the true openings of the one
            that was given, and with those of its own.
        clip_stage: as `own`, of the model after stage 1.
        lips_loss: lip-region loss on held-out clips, of stage 2 over stage 1; same spans, noise, levels.
        silence: mean opening to silence, speaking: to its own speech; 1 is `WIDE` of true openings.
        amplitude: deviation of the generated openings over that of the true ones.
        motion: what moves outside the mouth at omega 0, 0.5 and 1 (face and body), grey levels.
    """

    reader: float
    own: float
    shuffled: float
    swapped_to_given: float
    swapped_to_own: float
    clip_stage: float
    lips_loss: float
    silence: float
    speaking: float
    amplitude: float
    motion: tuple[float, float, float]


@dataclass(frozen=True)
class Shown:
    """Windows, and the videos generated to their speech, uint8 [F, H, W, 3] each."""

    windows: list[Window]
    videos: list[Bytes]


class Examiner:
    """Unseen windows, and what is read of the videos that are generated for them."""

    def __init__(self, pipeline: GenerationPipeline, count: int) -> None:
        """`count` windows for a model of these info, codec, size and length."""
        (self._size_px, _), *_ = pipeline.config.data.sizes
        self._frames = pipeline.config.data.num_frames
        make = partial(window, size_px=self._size_px, embedding=pipeline.info.speech_model)
        self.windows = [make(UNSEEN + k, self._frames) for k in range(count)]
        self._codec = pipeline.encoders.codec
        known = [make(READ_FROM + k, TRUTH_FRAMES) for k in range(count // 2)]
        self._reader = MouthReader.fit(
            [boxes(self._through_codec(one.rgb), one.portrait, self._mouth(one)) for one in known],
            [one.opening for one in known],
        )

    def figures(
        self, clip_stage: GenerationPipeline, frame_stage: GenerationPipeline
    ) -> tuple[Figures, Shown]:
        """Everything, of the models after either stage; and the videos generated to their own speech."""
        windows, swapped = self.windows, self.windows[1:] + self.windows[:1]
        speech = [one.speech for one in windows]
        videos = self._generate(frame_stage, speech)
        own = self._read(videos)
        to_other = self._read(self._generate(frame_stage, [one.speech for one in swapped]))
        to_silence = self._read(self._generate(frame_stage, [one.silent for one in windows]))
        still, lively = (self._generate(frame_stage, speech, omega) for omega in (0.0, 1.0))
        true = [one.opening for one in windows]
        wide = float(np.percentile(np.concatenate(true), WIDE))
        return Figures(
            reader=_mean_correlation(self._read([self._through_codec(one.rgb) for one in windows]), true),
            own=_mean_correlation(own, true),
            shuffled=_mean_correlation(
                self._read(self._generate(frame_stage, [one.shuffled for one in windows])), true
            ),
            swapped_to_given=_mean_correlation(to_other, [one.opening for one in swapped]),
            swapped_to_own=_mean_correlation(to_other, true),
            clip_stage=_mean_correlation(self._read(self._generate(clip_stage, speech)), true),
            lips_loss=held_out_loss(frame_stage) / held_out_loss(clip_stage),
            silence=float(np.mean(to_silence)) / wide,
            speaking=float(np.mean(own)) / wide,
            amplitude=float(np.mean([one.std() for one in own]) / np.mean([one.std() for one in true])),
            motion=(self._motion(still), self._motion(videos), self._motion(lively)),
        ), Shown(windows, videos)

    def _generate(
        self, pipeline: GenerationPipeline, speech: Sequence[Floats], omega: float = 0.5
    ) -> list[Bytes]:
        """A video for every window's portrait, each with the same noise whatever the speech."""
        found: list[Bytes] = []
        for first in range(0, len(self.windows), GENERATED_AT_ONCE):
            part = slice(first, first + GENERATED_AT_ONCE)
            portraits = torch.from_numpy(np.stack([one.portrait for one in self.windows[part]]))
            conditions = pipeline.batch(
                torch.from_numpy(np.stack(speech[part])), (omega, omega), (self._size_px, self._size_px)
            )
            found += list(pipeline.sample(portraits, conditions, pipeline.config.sample, seed=first).numpy())
        return found

    def _read(self, videos: Sequence[Bytes]) -> list[Floats]:
        return [
            self._reader.read(video, one.portrait, self._mouth(one))
            for video, one in zip(videos, self.windows, strict=True)
        ]

    def _motion(self, videos: Sequence[Bytes]) -> float:
        pairs = zip(videos, self.windows, strict=True)
        return float(np.mean([motion_around(video, self._mouth(one)) for video, one in pairs]))

    def _mouth(self, one: Window) -> Mouth:
        return Mouth.of(one.head.face, self._size_px / SIZE_PX)

    def _through_codec(self, rgb: Bytes) -> Bytes:
        latents = self._codec.encode(torch.from_numpy(rgb)[None], None)
        seen: Bytes = self._codec.decode(latents)[0].numpy()
        return seen


def held_out_loss(pipeline: GenerationPipeline) -> float:
    """Lip-region loss on the held-out shards: the same spans, noise and noise levels for every model."""
    config = pipeline.config
    held_out = config.data.model_copy(update={"shards": config.data.validation_shards, "workers": 0})
    config = config.model_copy(update={"dropout": DropoutConfig(image=0, audio=0, text=0)})
    batches = itertools.islice(SpanLoader(held_out, pipeline.info, seed=0), HELD_OUT_BATCHES)
    with torch.no_grad():
        losses = [
            training_step(
                pipeline.model, pipeline.encoders, batch, config, torch.Generator().manual_seed(k)
            ).lips
            for k, batch in enumerate(batches)
        ]
    return float(torch.stack(losses).mean())


def _mean_correlation(found: Sequence[Floats], true: Sequence[Floats]) -> float:
    pairs = zip(found, true, strict=True)
    return float(np.mean([correlation(one[SHARED_FRAMES:], other[SHARED_FRAMES:]) for one, other in pairs]))
