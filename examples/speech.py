"""Synthesised speech with the mouth shapes that belong to it.

eSpeak NG (from the `espeakng-loader` wheel) speaks a text and tells when each phoneme begins, so
the course of the mouth is known, not estimated. The shapes are those of a coarse viseme table,
smoothed as coarticulation smooths them.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from itertools import pairwise

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import resample_poly

from talkforge.schemas.arrays import Floats, expect_shape
from talkforge.schemas.errors import CommandError, RunError

SPEECH_HZ = 48_000
"""Sample rate of `Speech.samples`, Hz."""

MOUTH_HZ = 1000
"""Rate of `Speech.mouth`, Hz."""

MOUTH_SHAPES = ("jaw", "upper", "width", "round")
"""Columns of `Speech.mouth`: jaw drop 0..1, raised upper lip 0..1, spread (+) or drawn in (-)
corners -1..1, protruding lips 0..1."""

VOICES = ("en-us+f2", "en-us+Annie", "en-us+m3", "en-us+linda", "en-us", "en-us+Michael")
"""Voices in which Silero VAD hears speech throughout (probability above 0.5 in nine tenths of it)."""

WORDS = """
a bright morning many people come together above the harbour we remember how warm bread smells
whenever you open an oven five friends move slowly through blue water my mother would laugh and
wave before she began to play music maybe somebody will show them where very old maps are kept
"""
"""What sentences are made of: rich in open vowels and in lips that close."""

_COARTICULATION_S = 0.035  # sigma of a Gaussian whose half width, 82 ms, is that of a short vowel
_CLOSURE_S = 0.022
# Lips begin to move before the sound does. With one frame of lead a linear map from audio to mouth that was
# fitted on real talkers finds lag zero; without it, it finds the mouth one to two frames late.
_LEAD_S = 0.04
_ROOM_NOISE = 10 ** (-58 / 20)
_LEVEL = 10 ** (-21 / 20)

_VISEMES: dict[str, tuple[float, float, float, float]] = {
    **dict.fromkeys("aɐɑɒ", (0.85, 0.2, 0.0, 0.0)),
    **dict.fromkeys("æ", (0.8, 0.3, 0.35, 0.0)),
    **dict.fromkeys("ʌəɜɚɘɝ", (0.45, 0.1, 0.0, 0.0)),
    **dict.fromkeys("eɛ", (0.5, 0.2, 0.4, 0.0)),
    **dict.fromkeys("iɪᵻ", (0.25, 0.2, 0.75, 0.0)),
    **dict.fromkeys("oɔɵ", (0.55, 0.1, -0.5, 0.6)),
    **dict.fromkeys("uʊwyøœɥ", (0.25, 0.1, -0.9, 1.0)),
    **dict.fromkeys("mbp", (0.0, 0.0, 0.0, 0.0)),
    **dict.fromkeys("fvβ", (0.08, 0.5, 0.1, 0.0)),
    **dict.fromkeys("szθð", (0.1, 0.15, 0.35, 0.0)),
    **dict.fromkeys("ʃʒ", (0.15, 0.2, -0.4, 0.7)),
    **dict.fromkeys("tdnlɾɲʎ", (0.2, 0.1, 0.1, 0.0)),
    **dict.fromkeys("rɹʁ", (0.22, 0.1, -0.3, 0.4)),
    **dict.fromkeys("kɡgŋxhç", (0.3, 0.1, 0.0, 0.0)),
    **dict.fromkeys("jʝ", (0.2, 0.15, 0.5, 0.0)),
}
_LIPS_CLOSED = frozenset("mbp")


@dataclass(frozen=True)
class Speech:
    """Mono `samples` [N] at 48 kHz in [-1, 1] and the `mouth` [M, 4] at 1 kHz that says them.

    `spoken` is False where nobody speaks: a silent track.
    """

    samples: Floats
    mouth: Floats
    spoken: bool = True

    def __post_init__(self) -> None:
        expect_shape("samples", self.samples, (None,))
        expect_shape("mouth", self.mouth, (None, len(MOUTH_SHAPES)))

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SPEECH_HZ

    def mouth_at(self, times_s: np.ndarray) -> Floats:
        """Mouth shapes [F, 4] at instants [F]; the ends are held."""
        at = np.asarray(times_s) * MOUTH_HZ
        grid = np.arange(len(self.mouth))
        return np.stack([np.interp(at, grid, column) for column in self.mouth.T], 1).astype(np.float32)

    def then(self, other: Speech) -> Speech:
        """This and `other` after it."""
        mouth = self.mouth[: round(self.duration_s * MOUTH_HZ)]
        samples = np.concatenate([self.samples, other.samples])
        return Speech(samples, np.concatenate([mouth, other.mouth]), self.spoken or other.spoken)

    def span(self, start_s: float, end_s: float) -> Speech:
        """The part in [start_s, end_s); both within the speech."""
        sample = slice(round(start_s * SPEECH_HZ), round(end_s * SPEECH_HZ))
        mouth = slice(round(start_s * MOUTH_HZ), round(end_s * MOUTH_HZ) + 1)
        return replace(self, samples=self.samples[sample], mouth=self.mouth[mouth])


def silence(duration_s: float) -> Speech:
    """A closed mouth and digital silence."""
    samples = np.zeros(round(duration_s * SPEECH_HZ), np.float32)
    mouth = np.zeros((round(duration_s * MOUTH_HZ) + 1, len(MOUTH_SHAPES)), np.float32)
    return Speech(samples, mouth, spoken=False)


def speak(
    text: str,
    voice: str = VOICES[0],
    words_per_minute: int = 160,
    pitch: int = 50,
    duration_s: float = 0.0,
    pause_s: float = 0.25,
) -> Speech:
    """`text` spoken, with `pause_s` of room noise before and after.

    Args:
        text: in English.
        voice: an eSpeak NG voice, with a variant after `+`.
        words_per_minute: rate of speech.
        pitch: 0..99; 50 is the voice's own.
        duration_s: at least this long: the text is repeated as often as needed, then cut off.
        pause_s: room noise before and after.

    Raises:
        CommandError: no such voice.
    """
    times_s, names, samples = _synthesise(text, voice, words_per_minute, pitch)
    repeats = max(1, int(np.ceil((duration_s - 2 * pause_s) / (len(samples) / SPEECH_HZ))))
    targets, closed = _targets(times_s, names, samples)
    lead = round(_LEAD_S * MOUTH_HZ)
    pause = round(pause_s * MOUTH_HZ)
    around = (pause - lead, pause + lead)
    targets = np.pad(np.tile(targets, (repeats, 1)), (around, (0, 0)))
    mouth = _smooth(targets, np.pad(np.tile(closed, repeats), around))
    samples = np.pad(np.tile(samples, repeats), pause * (SPEECH_HZ // MOUTH_HZ))
    noise = np.random.default_rng(0).standard_normal(len(samples)) * _ROOM_NOISE
    speech = Speech((samples + noise).astype(np.float32), mouth)
    return speech.span(0.0, duration_s) if duration_s else speech


def _targets(times_s: list[float], names: list[str], samples: Floats) -> tuple[Floats, Floats]:
    """What the mouth aims at, [M, 4] at 1 kHz, from the phonemes' onsets, louder speech opening wider;
    and where the lips meet, 0/1 [M]."""
    count = round(len(samples) / SPEECH_HZ * MOUTH_HZ)
    targets = np.zeros((count, len(MOUTH_SHAPES)))
    closed = np.zeros(count)
    ends_s = [*times_s[1:], count / MOUTH_HZ]
    for name, start_s, end_s in zip(names, times_s, ends_s, strict=True):
        sounds = [sound for sound in name if sound in _VISEMES]
        edges = np.linspace(start_s, end_s, len(sounds) + 1) * MOUTH_HZ
        for sound, (first, last) in zip(sounds, pairwise(np.round(edges).astype(int)), strict=True):
            targets[first:last] = _VISEMES[sound]
            closed[first:last] = sound in _LIPS_CLOSED
    targets[:, 0] *= 0.7 + 0.6 * _loudness(samples, count)
    return targets.astype(np.float32), closed.astype(np.float32)


def _smooth(targets: Floats, closed: Floats) -> Floats:
    """Mouth shapes [M, 4] on the way between their targets."""
    smooth = gaussian_filter1d(targets, _COARTICULATION_S * MOUTH_HZ, axis=0)
    # Lips that meet meet fully, however short the sound: a closure is not averaged away.
    closure = gaussian_filter1d(closed, _CLOSURE_S * MOUTH_HZ)
    smooth[:, :2] *= 1 - np.clip(1.4 * closure, 0, 1)[:, None]
    mouth: Floats = np.clip(smooth, [0, 0, -1, 0], 1).astype(np.float32)
    return mouth


def _loudness(samples: Floats, count: int) -> Floats:
    """Loudness [count] at 1 kHz, 0..1: RMS over about 100 ms, relative to its 95th percentile."""
    step = SPEECH_HZ // MOUTH_HZ
    power = np.square(samples[: count * step].astype(np.float64)).reshape(count, step).mean(1)
    level = np.sqrt(gaussian_filter1d(power, 0.04 * MOUTH_HZ))
    loudness: Floats = np.clip(level / max(float(np.percentile(level, 95)), 1e-9), 0, 1)
    return loudness


# --- eSpeak NG's C interface, as far as it is needed -------------------------------------------
# Source: espeak-ng 1.52, src/include/espeak-ng/speak_lib.h.

_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA = 1 | 2
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7
_RATE, _PITCH = 1, 3
_CHARS_UTF8, _POSITION_CHARACTER = 1, 1


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def _espeak() -> tuple[ctypes.CDLL, int]:
    """A fresh instance of the library, initialised, and its sample rate in Hz.

    eSpeak carries phase, flutter and random state from one call to the next and offers no way to
    reset it; a copy under another name has its own, so that a text always gives the same samples.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
    data = espeakng_loader.get_data_path().encode()
    rate_hz: int = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS_IN_IPA)
    if rate_hz <= 0:
        raise RunError(f"eSpeak NG: expected a sample rate from initialisation, found {rate_hz}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return library, rate_hz


def _synthesise(
    text: str, voice: str, words_per_minute: int, pitch: int
) -> tuple[list[float], list[str], Floats]:
    """Onsets of the phonemes in seconds, their names in IPA, and samples [N] at 48 kHz."""
    library, rate_hz = _espeak()
    blocks: list[np.ndarray] = []
    onsets: list[float] = []
    names: list[str] = []

    def receive(block: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0:
            blocks.append(np.ctypeslib.as_array(block, (count,)).copy())
        index = 0
        while (event := events[index]).type != _EVENT_LIST_TERMINATED:
            if event.type == _EVENT_PHONEME:
                onsets.append(event.audio_position / 1000)
                # A name of eight bytes has no closing zero and may end inside a character.
                raw = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0]
                names.append(unicodedata.normalize("NFD", raw.decode("utf-8", "ignore")))
            index += 1
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise CommandError(f"voice {voice!r}: not among those of eSpeak NG")
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
    library.espeak_Terminate()
    if not blocks:
        raise CommandError(f"text {text!r}: nothing to speak")
    samples = resample_poly(np.concatenate(blocks).astype(np.float64), SPEECH_HZ, rate_hz)
    voiced = samples[np.abs(samples) > 0.02 * np.abs(samples).max()]
    samples *= min(_LEVEL / np.sqrt(np.mean(voiced**2)), 0.9 / np.abs(samples).max())
    return onsets, names, samples[: len(samples) // 48 * 48].astype(np.float32)
