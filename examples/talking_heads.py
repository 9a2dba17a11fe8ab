"""Talking heads with known truth: a real portrait whose mouth follows synthesised speech.

    speech = speak("Good morning.", voice="en-us+f2")
    take = talk(frame("hopper", 640, 640), speech, seed=1)
    write(Path("hopper.mp4"), take, audio_offset_s=0.0)

Lips, jaw, lids, brows and head of the portrait are warped; the open mouth is painted with teeth and
tongue. Known of every frame: the outer-lip contour, the opening of the mouth, the box of the
face. Known of the video: how late its audio is, its cuts, who speaks. The same arguments give
the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.portraits import Head, varied
from examples.speech import SPEECH_HZ, VOICES, WORDS, Speech, speak
from examples.warps import NUM_POSE, BrowWarp, HeadWarp, MouthWarp, carried
from talkforge.curation.media import encode_mp4
from talkforge.schemas.arrays import Bytes, Floats, expect_shape

_DARK = np.array([42, 16, 16], np.float32)
_TEETH = np.array([214, 203, 190], np.float32)
_TONGUE = np.array([150, 72, 74], np.float32)
_BLINK_S = 0.24
_NOISE_POOL = 4


@dataclass(frozen=True)
class FaceTruth:
    """What is known of one face in every frame, in pixels of the image.

    Attributes:
        contour: [F, 20, 2] outer-lip contour, from the viewer's left corner over the upper lip.
        opening: [F] distance between the inner edges of the lips at their middle; 0: closed.
        box: [F, 4] x0, y0, x1, y1 around the face, forehead to chin of the closed mouth.
        speaks: whether the audio is this face's.
        lids: [F] how far the eyes are closed, 0..1.
        pose: [F, 5] coefficients of the head, see `warps.NUM_POSE`.
        brows: [F] how far the brows are raised, see `Acting`.
    """

    contour: Floats
    opening: Floats
    box: Floats
    speaks: bool
    lids: Floats
    pose: Floats
    brows: Floats

    def __post_init__(self) -> None:
        expect_shape("contour", self.contour, (None, 20, 2))
        expect_shape("opening", self.opening, (len(self.contour),))
        expect_shape("box", self.box, (len(self.contour), 4))


@dataclass(frozen=True)
class Take:
    """A video that can be rendered.

    Attributes:
        frames: renders the images [H, W, 3] uint8 RGB, anew at every call.
        faces: from left to right.
        samples: [N] audio at 48 kHz that belongs to the mouths, exactly as long as the frames.
        cuts: first frame of every shot but the first.
    """

    fps: float
    num_frames: int
    frames: Callable[[], Iterator[Bytes]]
    faces: tuple[FaceTruth, ...]
    samples: Floats
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Acting:
    """What a head does besides speaking.

    Attributes:
        sway: how much the head moves, 0 or more.
        noise: of the image, grey levels.
        blinks: whether it blinks.
        brows: how much the brows go up and down, 0 or more; 1 is 0.05 of the face's height.
    """

    sway: float = 1.0
    noise: float = 2.0
    blinks: bool = True
    brows: float = 0.0


def talk(head: Head, speech: Speech, fps: float = 25.0, seed: int = 0, acting: Acting | None = None) -> Take:
    """`head` saying `speech`; frame k shows the mouth of second k / fps."""
    acting = acting or Acting()
    num_frames = int(speech.duration_s * fps + 1e-6)
    times_s = np.arange(num_frames) / fps
    rng = np.random.default_rng([seed, 2])
    mouth = np.column_stack([speech.mouth_at(times_s), np.ones(num_frames)]).astype(np.float32)
    pose = acting.sway * _swaying(rng, times_s)
    lids = _blinking(rng, times_s) * acting.blinks
    brows = acting.brows * _raising(np.random.default_rng([seed, 7]), times_s)
    motion = _Motion(head, mouth, pose, lids, brows)
    samples = speech.samples[: round(num_frames / fps * SPEECH_HZ)]
    truth = motion.truth(speech.spoken)
    return Take(fps, num_frames, lambda: motion.render(acting.noise, seed), (truth,), samples)


def side_by_side(left: Take, right: Take) -> Take:
    """Both takes in one image; the audio is that of the one that speaks, or of both."""
    num_frames = min(left.num_frames, right.num_frames)
    width_px = next(left.frames()).shape[1]
    faces = [_first(face, num_frames, 0) for face in left.faces]
    faces += [_first(face, num_frames, width_px) for face in right.faces]
    num_samples = round(num_frames / left.fps * SPEECH_HZ)
    samples = left.samples[:num_samples] + right.samples[:num_samples]

    def frames() -> Iterator[Bytes]:
        for one, other in zip(left.frames(), right.frames(), strict=False):
            yield np.hstack([one, other])

    return Take(left.fps, num_frames, frames, tuple(faces), samples)


def cut(first: Take, then: Take) -> Take:
    """One shot of a person after another, of the same rate and size."""
    faces = tuple(
        FaceTruth(
            np.concatenate([a.contour, b.contour]),
            np.concatenate([a.opening, b.opening]),
            np.concatenate([a.box, b.box]),
            a.speaks,
            np.concatenate([a.lids, b.lids]),
            np.concatenate([a.pose, b.pose]),
            np.concatenate([a.brows, b.brows]),
        )
        for a, b in zip(first.faces, then.faces, strict=True)
    )
    cuts = (*first.cuts, first.num_frames, *(first.num_frames + at for at in then.cuts))
    samples = np.concatenate([first.samples, then.samples])
    num_frames = first.num_frames + then.num_frames
    return Take(first.fps, num_frames, lambda: chain(first.frames(), then.frames()), faces, samples, cuts)


def varied_take(seed: int, size_px: int = 256, duration_s: float = 4.0, fps: float = 25.0) -> Take:
    """One of endlessly many talking heads: portrait, framing, light, voice, words and sway by `seed`."""
    rng = np.random.default_rng([seed, 3])
    text = " ".join(str(word) for word in rng.choice(WORDS.split(), max(6, int(4 * duration_s))))
    voice, pace, pitch = str(rng.choice(VOICES)), int(rng.integers(135, 185)), int(rng.integers(35, 66))
    speech = speak(text, voice, pace, pitch, duration_s)
    acting = Acting(sway=float(rng.uniform(0.4, 1.3)), noise=float(rng.uniform(0.5, 3)))
    return talk(varied(seed, size_px), speech, fps, seed, acting)


def write(
    path: Path,
    take: Take,
    *,
    audio_offset_s: float = 0.0,
    sound: bool = True,
    crf: int = 20,
    preset: str = "veryfast",
) -> None:
    """Render `take` into an MP4 file.

    Args:
        path: the file to write.
        take: faces, frames and audio.
        audio_offset_s: how late the audio is (negative: early); silence fills the gap.
        sound: False leaves the audio stream out.
        crf: quality of H.264, 0 (lossless) to 51.
        preset: speed of x264.
    """
    shift = round(abs(audio_offset_s) * SPEECH_HZ)
    silence = np.zeros(shift, np.float32)
    samples = take.samples
    if audio_offset_s > 0:
        samples = np.concatenate([silence, samples])[: len(samples)]
    elif audio_offset_s < 0:
        samples = np.concatenate([samples[shift:], silence])
    audio = np.repeat(samples[:, None], 2, axis=1) if sound else None
    encode_mp4(path, take.frames(), take.fps, audio, crf, preset)


def _first(face: FaceTruth, num_frames: int, right_px: int) -> FaceTruth:
    """The first frames of a face, moved to the right."""
    step = np.array([right_px, 0], np.float32)
    return FaceTruth(
        face.contour[:num_frames] + step,
        face.opening[:num_frames],
        face.box[:num_frames] + np.tile(step, 2),
        face.speaks,
        face.lids[:num_frames],
        face.pose[:num_frames],
        face.brows[:num_frames],
    )


def _swaying(rng: np.random.Generator, times_s: NDArray[np.float64]) -> Floats:
    """Head coefficients [F, NUM_POSE]: slow sums of sines, of which most stay below 0.3."""
    rates_hz = rng.uniform(0.1, 0.7, (NUM_POSE, 3))
    phases = rng.uniform(0, 2 * np.pi, (NUM_POSE, 3))
    size = np.array([0.25, 0.15, 0.3, 0.4, 0.3])[:, None] / np.sqrt(3) * rng.uniform(0.5, 1, (NUM_POSE, 3))
    waves = np.sin(2 * np.pi * rates_hz[..., None] * times_s + phases[..., None])
    swaying: Floats = np.einsum("kw,kwf->fk", size, waves).astype(np.float32)
    return swaying


def _raising(rng: np.random.Generator, times_s: NDArray[np.float64]) -> Floats:
    """How far the brows are raised [F], mostly within -1..1: a sum of three sines."""
    rates_hz, phases = rng.uniform(0.3, 1.4, 3), rng.uniform(0, 2 * np.pi, 3)
    raising: Floats = np.sin(2 * np.pi * np.outer(times_s, rates_hz) + phases).sum(1).astype(np.float32)
    return raising * np.float32(0.58)


def _blinking(rng: np.random.Generator, times_s: NDArray[np.float64]) -> Floats:
    """How far the lids are closed [F], 0..1: a blink every two to six seconds."""
    duration_s = float(times_s[-1]) if len(times_s) else 0.0
    starts_s = np.cumsum(rng.uniform(2, 6, int(duration_s / 2) + 1)) - rng.uniform(0, 2)
    phase = (times_s[:, None] - starts_s) / _BLINK_S
    lids: Floats = np.where((phase > 0) & (phase < 1), np.sin(np.pi * phase) ** 2, 0).max(1)
    return lids.astype(np.float32)


def _grid(x0: int, y0: int, x1: int, y1: int) -> Floats:
    """Pixel centres [y1 - y0, x1 - x0, 2]."""
    x, y = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
    return np.stack([x, y], -1)


class _Motion:
    """A head with the coefficients of every frame: `mouth` [F, 5], `pose` [F, 5], `lids` and `brows` [F]."""

    def __init__(self, head: Head, mouth: Floats, pose: Floats, lids: Floats, brows: Floats) -> None:
        self.head, self.mouth, self.pose, self.lids, self.brows = head, mouth, pose, lids, brows
        self.mouth_warp, self.head_warp = MouthWarp(head.face), HeadWarp(head.face)
        height, width = head.picture.shape[:2]
        x0, y0, x1, y1 = self.mouth_warp.reach()
        self.region = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
        self.upper, self.lower = self._inner_edges()

    def _carried(self, points: Floats, lower: bool) -> Floats:
        return carried(points, lambda at: self.mouth_warp.field(at, lower), self.mouth)

    def _inner_edges(self) -> tuple[Floats, Floats]:
        """Inner edges of both lips in every frame before the head moves: [F, 11, 2] each."""
        face = self.head.face
        return self._carried(face.inner_upper, False), self._carried(face.inner_lower, True)

    def truth(self, speaks: bool) -> FaceTruth:
        face = self.head.face
        upper = self._carried(face.outer[:11], False)
        lower = self._carried(face.outer[11:], True)
        box = face.box[[[0, 0], [1, 0], [1, 1], [0, 1]], [0, 1]]
        still = np.broadcast_to(box, (len(self.mouth), *box.shape))
        points = np.concatenate([upper, lower, self.upper[:, 5:6], self.lower[:, 5:6], still], 1)
        moved = carried(points, self.head_warp.field, self.pose)
        opening = np.maximum(moved[:, 21, 1] - moved[:, 20, 1], 0)
        corners = moved[:, 22:]
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        return FaceTruth(moved[:, :20], opening, boxes, speaks, self.lids, self.pose, self.brows)

    def render(self, noise: float, seed: int) -> Iterator[Bytes]:
        """Pictures [H, W, 3] uint8, one for each row of coefficients."""
        height, width = self.head.picture.shape[:2]
        grid = _grid(0, 0, width, height)
        head_basis = self.head_warp.field(grid).reshape(NUM_POSE, -1)
        raised = BrowWarp(self.head.face).field(grid) if self.brows.any() else None
        x0, y0, x1, y1 = self.region
        small = _grid(x0, y0, x1, y1)
        bases = [self.mouth_warp.field(small, lower) for lower in (False, True)]
        rng = np.random.default_rng([seed, 4])
        grains = [
            cv2.merge([g] * 3) for g in rng.normal(0, noise, (_NOISE_POOL, height, width)).astype(np.float32)
        ]
        grains = [np.rint(grain).astype(np.int16) for grain in grains]
        for index, pose in enumerate(self.pose):
            still = self.head.picture.copy()
            still[y0:y1, x0:x1] = self._mouth(index, small, bases)
            if self.lids[index] > 0.02:
                self._lids(still, float(self.lids[index]))
            lookup = grid - (pose @ head_basis).reshape(grid.shape)
            if raised is not None:
                lookup = lookup - self.brows[index] * raised
            moved = cv2.remap(still, lookup, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            grain = grains[int(rng.integers(_NOISE_POOL))]
            yield cv2.add(moved, grain, dtype=cv2.CV_8U) if noise else moved

    def _mouth(self, index: int, grid: Floats, bases: list[Floats]) -> Bytes:
        """The region of the mouth in frame `index`: skin and lips looked up, its inside painted."""
        columns, rows = grid[0, :, 0], grid[..., 1]
        edges = [
            np.interp(columns, edge[:, 0], edge[:, 1]).astype(np.float32)
            for edge in (self.upper[index], self.lower[index])
        ]
        top, bottom = edges
        middle = (top + bottom) / 2
        above, below = (np.tensordot(self.mouth[index], basis, 1) for basis in bases)
        # Left and right of the corners both fields say nearly the same: change over gradually.
        outside = np.maximum(self.upper[index, 0, 0] - columns, columns - self.upper[index, -1, 0])
        band = 1 + np.maximum(outside, 0) * 0.5
        is_below = np.clip((rows - middle) / band + 0.5, 0, 1)[..., None]
        lookup = grid - (above + is_below * (below - above))
        skin = cv2.remap(self.head.picture, lookup, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = self._inside(columns, rows, top, bottom)
        open_by = np.clip(np.minimum(rows - top, bottom - rows) + 0.25, 0, 1) * (bottom - top > 0.3)
        painted: Bytes = (skin + open_by[..., None] * (inside - skin) + 0.5).astype(np.uint8)
        return painted

    def _inside(self, columns: Floats, rows: Floats, top: Floats, bottom: Floats) -> Floats:
        """Colours [h, w, 3] of the mouth's inside: dark, teeth above, tongue below."""
        half = self.mouth_warp.half_width_px
        gap = np.maximum(bottom - top, 0)
        across = (columns - columns[np.argmin(np.abs(columns - self.mouth_warp.centre[0]))]) / half
        teeth = np.clip((top + np.minimum(0.2 * half, 0.5 * gap) - rows) / 1.5, 0, 1)
        teeth = teeth * np.clip(1.25 - (across / 0.75) ** 2, 0, 1) * 0.85
        tongue = np.clip((rows - (bottom - np.minimum(0.24 * half, 0.35 * gap))) / 4, 0, 1)
        tongue = tongue * np.clip(1.1 - (across / 0.6) ** 2, 0, 1) * 0.8
        colour = _DARK + tongue[..., None] * (_TONGUE - _DARK)
        inside: Floats = colour + teeth[..., None] * (_TEETH - colour)
        return inside

    def _lids(self, image: Bytes, closed: float) -> None:
        """Draw both upper lids down by the share `closed` of the eye's opening, in place."""
        for upper, lower in self.head.face.eyes:
            spare = 0.9 * float((lower[:, 1] - upper[:, 1]).max())
            x0, x1 = int(upper[0, 0]), int(upper[-1, 0]) + 1
            y0, y1 = int(upper[:, 1].min() - spare) - 2, int(lower[:, 1].max()) + 2
            grid = _grid(x0, y0, x1, y1)
            lid = np.interp(grid[0, :, 0], upper[:, 0], upper[:, 1])
            under = np.interp(grid[0, :, 0], lower[:, 0], lower[:, 1])
            anchor = lid - spare  # the skin from here to the lid's edge is stretched
            edge = lid + closed * np.maximum(under - lid, 0)
            rows = grid[..., 1]
            stretched = anchor + (rows - anchor) * (lid - anchor) / (edge - anchor)
            covered = (rows > anchor) & (rows < edge)
            lookup = np.stack([grid[..., 0], np.where(covered, stretched, rows)], -1).astype(np.float32)
            image[y0:y1, x0:x1] = cv2.remap(self.head.picture, lookup, None, cv2.INTER_LINEAR)
