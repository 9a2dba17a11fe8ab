"""The figures of `make learn`: what a trained model does with portraits and speech it has never met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from examples.learn_measures import (
    Likeness,
    MotionReader,
    Mouth,
    MouthReader,
    boxes,
    correlation,
    embedding,
    motion,
    motion_around,
    psnr,
)
from examples.learn_videos import SIZE_PX, UNSEEN, Window, window
from examples.portraits import Face
from talkforge.curation.face.identity import Embedder, load_embedder
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import IdentityConfig
from talkforge.schemas.errors import ModelError
from talkforge.training.config import DropoutConfig
from talkforge.training.data.loader import SpanLoader
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.objective.step import training_step
from talkforge.training.wan.codec import Codec, LinearCodec

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
class FaceFigures:
    """What was measured of faces and motion, of people who lie between two others.

    Attributes:
        own: as of `Figures`. no_audio: likewise, with the audio dropped.
        brows, head: motion at omega 0, 0.5 and 1, see `learn_measures.motion`: of the brows where the
            face's is set, and of the head where the body's is. The other omega is 0.5.
        motion_reader: correlation over true windows, seen through the codec, of the motion that is read with
            the true one, of brows and head.
        alone: likeness of faces generated from another window's identity with the image dropped.
        nobody: the same with the identity dropped, too. true: of true frames, seen through the codec.
        face_db, mouth_db: PSNR of true frames seen through the codec, of the pixels of the face and around
            the mouth, and how much that is above the linear codec's.
    """

    own: float
    no_audio: float
    brows: tuple[float, float, float]
    head: tuple[float, float, float]
    motion_reader: tuple[float, float]
    alone: Likeness
    nobody: Likeness
    true: Likeness
    face_db: tuple[float, float]
    mouth_db: tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """Windows, and the videos generated to their speech, uint8 [F, H, W, 3] each.

    `alone` are those that are generated without the image, from the identity of the next window.
    """

    windows: list[Window]
    videos: list[Bytes]
    alone: list[Bytes]


class Examiner:
    """Unseen windows, and what is read of the videos that are generated for them."""

    def __init__(self, pipeline: GenerationPipeline, count: int, many: bool = False) -> None:
        """`count` windows for a model of these info, codec, size and length; `many` as of `scene`."""
        (self._size_px, _), *_ = pipeline.config.data.sizes
        self._frames = pipeline.config.data.num_frames
        make = partial(window, size_px=self._size_px, embedding=pipeline.info.speech_model, many=many)
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
        still, lively = (self._generate(frame_stage, speech, omega=(omega, omega)) for omega in (0.0, 1.0))
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
            motion=(self._motion_around(still), self._motion_around(videos), self._motion_around(lively)),
        ), Shown(windows, videos, [])

    def face_figures(self, frame_stage: GenerationPipeline) -> tuple[FaceFigures, Shown]:
        """What the identity and the motion intensities do, of the model after stage 2.

        Raises:
            ModelError: the data set has no identities.
        """
        embedder = load_embedder(IdentityConfig(model=frame_stage.info.identity_model or "none"))
        if embedder is None:
            raise ModelError("expected a data set with identities, found none")
        speech = [one.speech for one in self.windows]
        own = [embedding(embedder, one.head.picture, one.head.face.five) for one in self.windows]
        others = own[1:] + own[:1]
        generate = partial(self._generate, frame_stage, speech)
        videos = generate(identities=own)
        faces, bodies = (
            [self._motion(generate(identities=own, omega=omega)) for omega in pair]
            for pair in (((0.0, 0.5), (1.0, 0.5)), ((0.5, 0.0), (0.5, 1.0)))
        )
        neutral = self._motion(videos)
        alone = generate(identities=others, image=False)
        nobody = generate(image=False)
        seen = [self._through_codec(one.rgb) for one in self.windows]
        true = [one.opening for one in self.windows]
        face_db, mouth_db = self._psnr(seen)
        return FaceFigures(
            own=_mean_correlation(self._read(videos), true),
            no_audio=_mean_correlation(self._read(generate(identities=own, audio=False)), true),
            brows=(faces[0][0], neutral[0], faces[1][0]),
            head=(bodies[0][1], neutral[1], bodies[1][1]),
            motion_reader=self._motion_read(seen),
            alone=self._likeness(embedder, alone, others),
            nobody=self._likeness(embedder, nobody, others),
            true=self._likeness(embedder, seen, own, known_place=True),
            face_db=face_db,
            mouth_db=mouth_db,
        ), Shown(self.windows, videos, alone)

    def _generate(
        self,
        pipeline: GenerationPipeline,
        speech: Sequence[Floats],
        *,
        omega: tuple[float, float] = (0.5, 0.5),
        identities: Sequence[Floats] | None = None,
        image: bool = True,
        audio: bool = True,
    ) -> list[Bytes]:
        """A video for every window's portrait, each with the same noise whatever else is given."""
        settings = pipeline.config.sample
        if not audio:
            settings = settings.model_copy(update={"audio_cfg": 0.0})
        found: list[Bytes] = []
        for first in range(0, len(self.windows), GENERATED_AT_ONCE):
            part = slice(first, first + GENERATED_AT_ONCE)
            portraits = torch.from_numpy(np.stack([one.portrait for one in self.windows[part]]))
            batch = pipeline.batch(
                torch.from_numpy(np.stack(speech[part])), omega, (self._size_px, self._size_px)
            )
            if identities is not None:
                batch = replace(
                    batch,
                    identity_BD=torch.from_numpy(np.stack(identities[part])),
                    has_identity_B=torch.ones(batch.size, dtype=torch.bool),
                )
            found += list(pipeline.sample(portraits if image else None, batch, settings, seed=first).numpy())
        return found

    def _read(self, videos: Sequence[Bytes]) -> list[Floats]:
        return [
            self._reader.read(video, one.portrait, self._mouth(one))
            for video, one in zip(videos, self.windows, strict=True)
        ]

    def _motion_around(self, videos: Sequence[Bytes]) -> float:
        pairs = zip(videos, self.windows, strict=True)
        return float(np.mean([motion_around(video, self._mouth(one)) for video, one in pairs]))

    def _motion_readers(self) -> list[MotionReader]:
        return [
            MotionReader(self._through_codec(one.portrait[None])[0], self._face(one)) for one in self.windows
        ]

    def _motion(self, videos: Sequence[Bytes]) -> tuple[float, float]:
        """Motion of brows and head, mean over the windows."""
        pairs = zip(self._motion_readers(), videos, strict=True)
        brows, head = np.mean([motion(reader.read(video)) for reader, video in pairs], axis=0).tolist()
        return brows, head

    def _motion_read(self, seen: Sequence[Bytes]) -> tuple[float, float]:
        pairs = zip(self._motion_readers(), seen, strict=True)
        found = np.array([motion(reader.read(video)) for reader, video in pairs])
        true = np.array([motion(np.column_stack([one.pose, one.brows])) for one in self.windows])
        return correlation(found[:, 0], true[:, 0]), correlation(found[:, 1], true[:, 1])

    def _likeness(
        self,
        embedder: Embedder,
        videos: Sequence[Bytes],
        identities: Sequence[Floats],
        known_place: bool = False,
    ) -> Likeness:
        """Of the middle frame. Where the image is dropped a face lies where faces lie in the mean."""
        scale = self._size_px / SIZE_PX
        fives = np.stack([one.head.face.five for one in self.windows]) * scale
        if not known_place:
            fives[:] = fives.mean(axis=0)
        pairs = zip(videos, fives, strict=True)
        faces = [embedding(embedder, video[len(video) // 2], five) for video, five in pairs]
        return Likeness.of(np.stack(faces), np.stack(identities))

    def _psnr(self, seen: Sequence[Bytes]) -> tuple[tuple[float, float], tuple[float, float]]:
        """PSNR of face and mouth through the codec, each with how much it is above the linear codec's, dB."""
        assert isinstance(self._codec, LinearCodec), "the tiny preset has the linear or the learned codec"
        linear = LinearCodec(self._codec.statistics)
        plain = np.concatenate([self._through_codec(one.rgb, linear) for one in self.windows])
        true, after = np.concatenate([one.rgb for one in self.windows]), np.concatenate(seen)
        regions = zip(*map(self._regions, self.windows), strict=True)
        face, mouth = (
            (found := psnr(after, true, part), found - psnr(plain, true, part))
            for part in map(np.concatenate, regions)
        )
        return face, mouth

    def _regions(self, one: Window) -> tuple[Floats, Floats]:
        """1 in the box of the face, and in a box of 1.5 widths by one around the mouth, [F, H, W] each."""
        (x0, y0), (x1, y1) = self._face(one).box
        mouth = self._mouth(one)
        rows, columns = np.indices((self._size_px, self._size_px))
        face = (columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)
        beside = np.abs(columns - mouth.middle[0]) <= 0.75 * mouth.width_px
        near = beside & (np.abs(rows - mouth.middle[1] - 0.15 * mouth.width_px) <= 0.5 * mouth.width_px)
        repeated = [np.repeat(part[None].astype(np.float32), len(one.rgb), axis=0) for part in (face, near)]
        return repeated[0], repeated[1]

    def _face(self, one: Window) -> Face:
        scale = self._size_px / SIZE_PX
        return one.head.face.moved(np.array([[scale, 0, 0], [0, scale, 0]]))

    def _mouth(self, one: Window) -> Mouth:
        return Mouth.of(one.head.face, self._size_px / SIZE_PX)

    def _through_codec(self, rgb: Bytes, codec: Codec | None = None) -> Bytes:
        codec = codec or self._codec
        seen: Bytes = codec.decode(codec.encode(torch.from_numpy(rgb)[None], None))[0].numpy()
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
