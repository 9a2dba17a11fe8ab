"""Transcription: drives worker processes in an environment of their own by JSON lines.

`pipeline/asr_worker.py` is the worker and states the protocol. When a worker dies or hangs, the clip that
it was transcribing becomes a failure row, and the worker is started again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from talkforge.curation.audio import vad
from talkforge.curation.media.encode import decode_flac
from talkforge.pipeline.annotate import TRANSCRIPTS, Clips, Counts, annotate
from talkforge.pipeline.store import Store
from talkforge.schemas.config import config_hash
from talkforge.schemas.errors import (
    CommandError,
    MediaError,
    ModelError,
    RunError,
    class_and_message,
    one_line,
)
from talkforge.schemas.records import Record, Transcript, TranscriptRow, Turn, Word
from talkforge.schemas.units import seconds_from_samples

PROTOCOL = 1

WORKER = Path(__file__).with_name("asr_worker.py")

START_S = 1800.0
"""A worker may take so long to load its models, which may have to be fetched."""

DEADLINE_S, DEADLINE_FACTOR = 120.0, 60.0
"""A clip may take so many seconds, and so many more for each second of its audio."""

MOST_DEATHS = 3
"""Workers that die one after the other without an answer between them end the run."""

QUIET = {"OMP_NUM_THREADS": "1", "PYANNOTE_METRICS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""A worker is one thread, and its libraries report to nobody."""


class TranscribeOptions(Record):
    """What the words depend on; see `pipeline/asr_worker.py`."""

    model: str
    language: str | None = None
    align: str | None = None
    diarize: str | None = None
    device: str = "cpu"
    compute_type: str = "default"


class _TranscriptInputs(Record):
    """Everything a transcript depends on; its hash is the row's fingerprint."""

    protocol: int
    options: TranscribeOptions
    transcriber: str
    version: str
    model: str
    model_sha256: str


class WorkerGoneError(RunError):
    """The worker died, hung, or gave an answer that means nothing."""


class WorkerInfo(Record):
    """A worker's answer to its first line."""

    transcriber: str
    version: str
    model: str
    model_sha256: str

    def fingerprint(self, options: TranscribeOptions) -> str:
        """See `schemas.records.Annotation`; a folder counts by what it holds, wherever it lies."""
        named = options.model_copy(update={"model": self.model})
        return config_hash(_TranscriptInputs(protocol=PROTOCOL, options=named, **self.model_dump()))


def find_python(given: Path | None) -> Path:
    """Python of the transcriber's environment: as given, by TALKFORGE_ASR_PYTHON, or `.venv-asr` here or
    beside the project.

    Raises:
        CommandError: there is none; says how to make it.
    """
    named = given or (Path(path) if (path := os.environ.get("TALKFORGE_ASR_PYTHON")) else None)
    candidates = [named] if named else [root / ".venv-asr/bin/python" for root in (Path(), WORKER.parents[1])]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    raise CommandError(
        f"{candidates[0]}: no Python with WhisperX here; `make asr` makes one, "
        "--python or TALKFORGE_ASR_PYTHON names another"
    )


class Worker:
    """One process of the transcriber. Not for several threads at once."""

    def __init__(self, python: Path, options: TranscribeOptions) -> None:
        self._command = [str(python), "-I", str(WORKER)]  # -I: our folder is not on its path
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    def start(self) -> WorkerInfo:
        """Start the process, unless it runs, and load its models.

        Raises:
            ModelError: it cannot load them. WorkerGoneError: it ended, or gave another answer.
        """
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
                encoding="utf-8", env=os.environ | QUIET,
            )  # fmt: skip
        except OSError as error:
            raise CommandError(f"{self._command[0]}: cannot be run ({one_line(error)})") from None
        answer = self._exchange({"protocol": PROTOCOL, **self._options.model_dump()}, START_S)
        if "error" in answer:
            self.close()
            raise ModelError(f"transcriber, model {self._options.model}: {answer['error']}")
        if answer.pop("protocol", None) != PROTOCOL:
            raise self._gone(f"was expected to speak protocol {PROTOCOL}")
        try:
            return WorkerInfo.model_validate(answer)
        except ValidationError:
            raise self._gone("did not say what it is") from None

    def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The answer for one clip; the process is started again where it had died.

        Raises:
            WorkerGoneError: there is none; the process is gone then.
        """
        if self._process is None:
            self.start()
        answer = self._exchange(question, deadline_s)
        if answer.pop("id", None) != question["id"]:
            raise self._gone(f"expected an answer for {question['id']}, found another")
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]

    def _exchange(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        process, late = self._process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def end() -> None:
            late.set()
            process.kill()  # whoever waits for it reads the end of its output

        timer = threading.Timer(deadline_s, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # a pipe without a reader
            line = ""
        except BaseException:  # half an exchange: what comes next would answer this question
            self.close()
            raise
        finally:
            timer.cancel()
        if late.is_set():
            raise self._gone(f"gave no answer within {deadline_s:.0f} s")
        if not line.endswith("\n"):
            raise self._gone(f"ended with exit code {process.wait()}{self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._gone("gave an answer that is no JSON object")
        return answer

    def _gone(self, what: str) -> WorkerGoneError:
        self.close()
        return WorkerGoneError(f"the transcriber {what}")

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = [line.strip() for line in self._words if line.strip()]
        return f" ({lines[-1][:300]})" if lines else ""


class Transcriber:
    """Some workers, each at one clip."""

    def __init__(self, python: Path, options: TranscribeOptions, workers: int = 1) -> None:
        self._workers = [Worker(python, options) for _ in range(workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._options, self._deaths = options, 0
        self._pool = ThreadPoolExecutor(workers)

    def start(self) -> str:
        """Load the models of one worker, the others when they are asked; the rows' fingerprint."""
        self._info = self._workers[0].start()
        for worker in reversed(self._workers):  # the one that runs is asked last: it would be idle else
            self._free.put(worker)
        self.fingerprint = self._info.fingerprint(self._options)
        return self.fingerprint

    def close(self) -> None:
        """End all workers."""
        self._pool.shutdown(wait=False, cancel_futures=True)  # first: a free worker would be started again
        for worker in self._workers:
            worker.close()

    def transcribe(self, clips: Clips) -> Iterator[TranscriptRow]:
        """A row for each (clip id, FLAC bytes), in order; a clip that fails is a row as well.

        Raises:
            RunError: workers die one after the other. ModelError: one cannot be started again.
        """
        yield from self._pool.map(lambda clip: self._row(*clip), clips)

    def _row(self, key: str, flac: bytes) -> TranscriptRow:
        worker = self._free.get()
        try:
            row = self._transcribed(worker, key, flac)
            self._deaths = 0
            return row
        except WorkerGoneError as error:
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                raise RunError(f"{self._deaths} times in a row {error}") from None
            return self._failed(key, f"WorkerGoneError: {error}")
        except (MediaError, LookupError, ValueError, TypeError) as error:
            return self._failed(key, class_and_message(error))
        finally:
            self._free.put(worker)

    def _transcribed(self, worker: Worker, key: str, flac: bytes) -> TranscriptRow:
        samples = decode_flac(flac)
        speech = vad.segments(samples, 0.0)
        pcm = base64.b64encode(np.round(samples * 32768).astype("<i2").tobytes()).decode()
        deadline_s = DEADLINE_S + DEADLINE_FACTOR * seconds_from_samples(len(samples))
        answer = worker.ask({"id": key, "pcm": pcm, "speech": speech}, deadline_s)
        if "error" in answer:
            return self._failed(key, f"TranscriberError: {answer['error']}")
        return self._answered(key, answer, sum(end_s - start_s for start_s, end_s in speech))

    def _answered(self, key: str, answer: dict[str, Any], speech_s: float) -> TranscriptRow:
        words = tuple(
            Word(word=word, start_s=start_s, end_s=end_s, probability=probability)
            for word, start_s, end_s, probability in answer["words"]
        )
        turns = answer["turns"]
        transcript = Transcript(
            language=answer["language"],
            language_probability=answer["language_probability"],
            num_words=len(words),
            words_per_s=round(len(words) / speech_s, 4) if speech_s else None,
        )
        return self._blank(key).model_copy(
            update={
                "text": " ".join(str(answer["text"]).split()),
                "transcript": transcript,
                "words": words,
                "word_times": answer["word_times"] if words else None,
                "turns": None if turns is None else tuple(
                    Turn(speaker=speaker, start_s=start_s, end_s=end_s) for speaker, start_s, end_s in turns
                ),
            }
        )  # fmt: skip

    def _failed(self, key: str, failure: str) -> TranscriptRow:
        return self._blank(key).model_copy(update={"failure": failure})

    def _blank(self, key: str) -> TranscriptRow:
        return TranscriptRow(
            clip_id=key, failure=None, text="", transcript=None, words=(), word_times=None, turns=None,
            fingerprint=self.fingerprint, **self._info.model_dump(),
        )  # fmt: skip


def transcribe(
    store: Store,
    python: Path,
    options: TranscribeOptions,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Counts:
    """Transcribe every clip in the shards that is not; `transcripts.parquet` holds the rows.

    Raises:
        CommandError: there are no shards, or no such Python. ModelError: the models cannot be loaded.
        RunError: workers die one after the other; what was done is kept.
    """
    transcriber = Transcriber(python, options, workers)
    with contextlib.closing(transcriber):
        return annotate(store, TRANSCRIPTS, transcriber.start(), transcriber.transcribe, on_progress)
