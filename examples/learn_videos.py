"""Talking heads to learn from, and others to be tested on: close faces that speak in phrases, and sway
little or much. Everything follows from a seed.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from scipy.signal import resample_poly

from examples.portraits import PEOPLE, PORTRAITS, Framing, Head, blend, frame
from examples.speech import SPEECH_HZ, VOICES, WORDS, Speech, speak
from examples.talking_heads import Acting, Take, talk, write
from talkforge.curation.audio.speech_encoders import load_speech_encoder
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import SpeechConfig
from talkforge.schemas.units import AUDIO_HZ, features_from_frames

SIZE_PX = 192
"""Edge of the square images: a face of 0.7 of it is just above the smallest that curation accepts."""

FPS = 25.0

UNSEEN = 1_000_000
"""Seeds from here on are never trained on."""

_SILENT_S = 0.2
"""Every take begins with more room noise than this."""

_PIECE = 2
"""Features of one piece of shuffled speech, 40 ms."""


@dataclass(frozen=True)
class Scene:
    """A take and the portrait that it shows, whose mouth is closed."""

    head: Head
    take: Take


@dataclass(frozen=True)
class Window:
    """A stretch of a scene, as long as what the model generates, at the size that it generates.

    Attributes:
        head: its face in pixels of `SIZE_PX`. portrait: uint8 [H, W, 3], the mouth closed.
        opening: true opening of the mouth in every frame [F], in widths of the closed mouth.
        brows: how far the brows are raised [F]. pose: coefficients of the head [F, 5].
        speech: features [L, D]. shuffled: the same in pieces of 40 ms in another order.
        silent: as long, of the noise before the first word.
        rgb: what the scene shows, uint8 [F, H, W, 3]. sound: [N, 2] at 48 kHz.
    """

    head: Head
    portrait: Bytes
    opening: Floats
    brows: Floats
    pose: Floats
    speech: Floats
    shuffled: Floats
    silent: Floats
    rgb: Bytes
    sound: Floats


def scene(seed: int, duration_s: float, many: bool = False) -> Scene:
    """One of endlessly many.

    Args:
        seed: of everything in it.
        duration_s: its length.
        many: of somebody between two of `PEOPLE`, who moves the brows, too. Else of one of `PORTRAITS`.
    """
    rng = np.random.default_rng([seed, 5])
    # In an image that stands still, a mouth that opens fast is taken for a cut.
    sway = float(rng.uniform(0.4, 2.2 if many else 2))
    acting = Acting(sway=sway, noise=2.0, brows=float(rng.uniform(0, 1.4)) if many else 0.0)
    head = _close_up(rng, many)
    return Scene(head, talk(head, _phrases(rng, duration_s), FPS, seed, acting))


def make(folder: Path, count: int, duration_s: float, many: bool = False) -> None:
    """Write `count` videos with seeds from 0 on, on all processors; `many` as of `scene`."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write, folder, duration_s, many), range(count)))


def window(seed: int, num_frames: int, size_px: int, embedding: str, many: bool = False) -> Window:
    """A window that begins somewhere in a scene's first words.

    Args:
        seed: of the scene and of the shuffling.
        num_frames: length of the window.
        size_px: edge of the square portrait.
        embedding: the speech encoder, as `measure.speech.embedding` of the curation.
        many: as of `scene`.
    """
    rng = np.random.default_rng([seed, 6])
    first = int(rng.integers(8, 30))
    last = first + num_frames
    shown = scene(seed, (last + 1) / FPS, many)
    take, mono = shown.take, resample_poly(shown.take.samples, AUDIO_HZ, SPEECH_HZ).astype(np.float32)
    room = np.resize(mono[: round(_SILENT_S * AUDIO_HZ)], len(mono))
    counts = [features_from_frames(take.num_frames, FPS)] * 2
    spoken, silent = load_speech_encoder(SpeechConfig(embedding=embedding)).encode([mono, room], counts)
    span = slice(features_from_frames(first, FPS), None)
    length = features_from_frames(num_frames, FPS)
    speech = spoken[span][:length].astype(np.float32)
    pieces = np.array_split(speech, max(1, length // _PIECE))
    rng.shuffle(pieces)
    return Window(
        head=shown.head,
        portrait=small(shown.head.picture, size_px),
        opening=take.faces[0].opening[first:last] / float(np.ptp(shown.head.face.outer[:, 0])),
        brows=take.faces[0].brows[first:last],
        pose=take.faces[0].pose[first:last],
        speech=speech,
        shuffled=np.concatenate(pieces),
        silent=silent[span][:length].astype(np.float32),
        rgb=np.stack([small(one, size_px) for one in take.frames()])[first:last],
        sound=np.repeat(take.samples[round(first / FPS * SPEECH_HZ) :, None], 2, axis=1),
    )


def small(image: Bytes, size_px: int) -> Bytes:
    """An image as the trainer scales it."""
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)


def _write(folder: Path, duration_s: float, many: bool, seed: int) -> None:
    cv2.setNumThreads(1)
    write(folder / f"head-{seed:04d}.mp4", scene(seed, duration_s, many).take)


def _close_up(rng: np.random.Generator, many: bool) -> Head:
    """A portrait whose face fills most of the image: its mouth must be some pixels wide at 64 px."""
    red, green, blue = rng.uniform(0.94, 1.06, 3).tolist()
    framing = Framing(
        face_px=SIZE_PX * rng.uniform(0.72, 0.78),
        centre=(float(rng.uniform(0.49, 0.51)), float(rng.uniform(0.46, 0.48))),
        mirror=bool(rng.integers(2)),
        aspect=float(rng.uniform(0.97, 1.03)),
        gains=(red, green, blue),
        gamma=float(rng.uniform(0.85, 1.2)),
    )
    if not many:
        return frame(str(rng.choice(PORTRAITS)), SIZE_PX, SIZE_PX, framing)
    one, other = rng.choice(PEOPLE, 2, replace=False).tolist()
    share = float(np.clip(rng.uniform(-0.2, 1.2), 0, 1))
    return frame(blend(one, other, share), SIZE_PX, SIZE_PX, framing)


def _phrases(rng: np.random.Generator, duration_s: float) -> Speech:
    """Three to six words, a pause of 0.5 to 0.9 s, and so on, in one voice."""
    voice, pace, pitch = str(rng.choice(VOICES)), int(rng.integers(125, 195)), int(rng.integers(25, 76))

    def phrase() -> Speech:
        text = " ".join(rng.choice(WORDS.split(), rng.integers(3, 7)).tolist())
        return speak(text, voice, pace, pitch, pause_s=float(rng.uniform(0.25, 0.45)))

    said = phrase()
    while said.duration_s < duration_s:
        said = said.then(phrase())
    return said.span(0.0, duration_s)
