"""Transcribes clips with WhisperX, in an environment of its own.

Run by the Python of that environment (`make asr`), never imported: it knows nothing of Talkforge but
the lines that they exchange, JSON on stdin and stdout, one object a line, answers in the order of the
questions. Version 1 of the protocol:

    -> {"protocol": 1, "model", "language", "align", "diarize", "device", "compute_type"}
    <- {"protocol": 1, "transcriber", "version", "model", "model_sha256"}       or {"error"}
    -> {"id", "pcm": base64 of int16 at 16 kHz, "speech": [[start_s, end_s], ...]}
    <- {"id", "language", "language_probability", "text", "words": [[word, start_s, end_s, probability]],
        "word_times": "aligned" or "attention", "turns": [[speaker, start_s, end_s]] or null}
                                                                              or {"id", "error"}

Speech is found by Talkforge and handed in: WhisperX's own detector comes as a pickled checkpoint. Word
times are those of WhisperX's forced alignment where `align` names a model ("default": WhisperX's own
for the language) that can be loaded; otherwise those of Whisper's attention.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

PROTOCOL = 1

AUDIO_HZ = 16_000

FRAMES_PER_S = 100
"""Of Whisper's spectrogram."""


class WhisperXModels:
    """WhisperX with the models that the first line names."""

    def __init__(self, options: dict[str, Any]) -> None:
        import whisperx.asr
        import whisperx.vads
        from whisperx.diarize import DiarizationPipeline, Segment

        class Given(whisperx.vads.Vad):  # type: ignore[misc]
            """Hands on the speech that Talkforge detected."""

            spans: tuple[tuple[float, float], ...] = ()

            def __call__(self, *_: object, **__: object) -> list[Any]:
                return [Segment(start_s, end_s, "") for start_s, end_s in self.spans]

            @staticmethod
            def preprocess_audio(audio: Any) -> Any:
                return audio

            @staticmethod
            def merge_chunks(spans: Any, chunk_size: float, onset: float, offset: float | None) -> Any:
                return whisperx.vads.Vad.merge_chunks(spans, chunk_size, onset, offset)

        self._speech = Given(vad_onset=0.5)
        self._device, self._align, self._language = options["device"], options["align"], options["language"]
        self._pipeline = whisperx.asr.load_model(
            options["model"], self._device, compute_type=options["compute_type"], vad_model=self._speech,
            language=self._language, threads=1, asr_options={"beam_size": 5},
        )  # fmt: skip
        self._aligners: dict[str, Any] = {}
        self._diarizer: Any = None
        if options["diarize"]:
            self._diarizer = DiarizationPipeline(options["diarize"], device=self._device)

    def transcribe(self, samples: np.ndarray, speech: list[list[float]]) -> dict[str, Any]:
        """The answer for one clip, without its id."""
        turns = self._turns(samples) if self._diarizer else None
        if not speech:
            return {
                "language": None, "language_probability": None, "text": "", "words": [],
                "word_times": "attention", "turns": turns,
            }  # fmt: skip
        language, probability = self._detected_language(samples)
        self._speech.spans = tuple((start_s, end_s) for start_s, end_s in speech)
        segments = self._pipeline.transcribe(samples, batch_size=1, language=language)["segments"]
        words = self._aligned(segments, samples, language)
        times = "attention" if words is None else "aligned"
        if words is None:
            words = [word for segment in segments for word in self._attended(segment, samples, language)]
        return {
            "language": language,
            "language_probability": probability,
            "text": " ".join(segment["text"].strip() for segment in segments).strip(),
            "words": words,
            "word_times": times,
            "turns": turns,
        }

    def _detected_language(self, samples: np.ndarray) -> tuple[str, float | None]:
        """Language and its probability; None where it was given, or is the only one the model knows."""
        model = self._pipeline.model
        if self._language or not model.model.is_multilingual:
            return self._language or "en", None
        language, probability, _ = model.detect_language(samples)
        return language, float(probability)

    def _aligned(self, segments: list[Any], samples: np.ndarray, language: str) -> list[Any] | None:
        import whisperx

        aligner = self._aligner(language)
        if aligner is None:
            return None
        try:
            found = whisperx.align(segments, *aligner, samples, self._device)["word_segments"]
        except LookupError:  # the sentence splitter's data are fetched when first needed
            self._aligners[language] = None
            return None
        if not found or any("start" not in word or "end" not in word for word in found):
            return None
        return [
            [word["word"], float(word["start"]), float(word["end"]), _number(word.get("score"))]
            for word in found
        ]

    def _aligner(self, language: str) -> Any:
        """Model and labels that align this language; None where none is available."""
        if self._align is None:
            return None
        if language not in self._aligners:
            import whisperx

            name = None if self._align == "default" else self._align
            try:
                self._aligners[language] = whisperx.load_align_model(language, self._device, name)
            except Exception as error:  # no such model, no network: anything its libraries raise
                sys.stderr.write(f"no alignment for {language}: {' '.join(str(error).split())}\n")
                self._aligners[language] = None
        return self._aligners[language]

    def _attended(self, segment: dict[str, Any], samples: np.ndarray, language: str) -> list[Any]:
        """Words of one segment with times of Whisper's cross-attention, as faster-whisper finds them."""
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import merge_punctuations
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        model = self._pipeline.model
        spoken = samples[int(segment["start"] * AUDIO_HZ) : int(segment["end"] * AUDIO_HZ)]
        bands = model.feat_kwargs.get("feature_size") or 80
        features = log_mel_spectrogram(spoken, n_mels=bands, padding=N_SAMPLES - len(spoken))
        multilingual = model.model.is_multilingual
        tokenizer = Tokenizer(model.hf_tokenizer, multilingual, task="transcribe", language=language)
        tokens = [tokenizer.encode(segment["text"])]
        frames = len(spoken) * FRAMES_PER_S // AUDIO_HZ
        (found,) = model.find_alignment(tokenizer, tokens, model.encode(features), frames) or [[]]
        merge_punctuations(
            found, self._pipeline.options.prepend_punctuations, self._pipeline.options.append_punctuations
        )
        return [
            [
                word["word"].strip(),
                round(segment["start"] + float(word["start"]), 3),
                round(segment["start"] + float(word["end"]), 3),
                _number(word["probability"]),
            ]
            for word in found
            if word["word"].strip()
        ]

    def _turns(self, samples: np.ndarray) -> list[Any]:
        """Speakers' turns; pyannote hears a short clip as padded with silence, and may go on into it."""
        end_s = len(samples) / AUDIO_HZ
        return [
            [str(row["speaker"]), round(row["start"], 3), round(min(row["end"], end_s), 3)]
            for row in self._diarizer(samples).to_dict("records")
            if row["start"] < end_s
        ]


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _weights(model: str) -> tuple[str, str]:
    """Name of the model, and sha256 of its weights as CTranslate2 stores them."""
    folder = Path(model)
    if not folder.is_dir():
        from faster_whisper.utils import download_model

        folder = Path(download_model(model, local_files_only=True))
    with (folder / "model.bin").open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return (Path(model).resolve().name if Path(model).is_dir() else model), digest.hexdigest()


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer until there are no more questions."""

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    options = json.loads(questions.readline())
    if options["protocol"] != PROTOCOL:
        return answer(error=f"expected protocol {PROTOCOL}, found {options['protocol']}")
    try:
        import torch

        torch.set_num_threads(1)
        transcriber = WhisperXModels(options)
        name, sha256 = _weights(options["model"])
        version = importlib.metadata.version("whisperx")
    except Exception as error:
        return answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    answer(protocol=PROTOCOL, transcriber="whisperx", version=version, model=name, model_sha256=sha256)
    for line in questions:
        clip = json.loads(line)
        try:
            pcm = np.frombuffer(base64.b64decode(clip["pcm"]), "<i2")
            answer(id=clip["id"], **transcriber.transcribe(pcm.astype(np.float32) / 32768, clip["speech"]))
        except Exception as error:
            answer(id=clip["id"], error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return None


if __name__ == "__main__":
    # Libraries print as they like: what they write to descriptor 1 goes to stderr, not among the answers.
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, ours)
