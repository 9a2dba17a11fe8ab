"""What is said of clips reaches the ledger, the verdicts, the report and the shards; nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talkforge.curation import media, trace
from talkforge.pipeline import tables
from talkforge.pipeline.annotate import CAPTIONS, TRANSCRIPTS, Clips, Counts, annotate
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import CaptionRow, LedgerRow, Transcript, TranscriptRow
from tests.command_line import run

SHA = "0" * 64


def transcript(key: str, text: str, language: str, failure: str | None = None) -> TranscriptRow:
    words = len(text.split())
    said = Transcript(language=language, language_probability=0.9, num_words=words, words_per_s=words / 2)
    return TranscriptRow(
        clip_id=key, failure=failure, text=text, model="tiny", model_sha256=SHA, fingerprint="f", words=(),
        word_times=None, turns=None, transcriber="stand-in", version="1",
        transcript=None if failure else said,
    )  # fmt: skip


def captioned(clips: Clips) -> Iterator[CaptionRow]:
    for key, mp4 in clips:
        assert mp4[4:8] == b"ftyp"
        yield CaptionRow(
            clip_id=key, failure=None, text=f"Somebody speaks in {key}.", model="seer", model_sha256=SHA,
            fingerprint="f", prompt="?", num_pictures=1,
        )  # fmt: skip


def first_of(store: Store) -> str:
    """Id of the first clip, whether it is accepted at the moment or not."""
    return min(row.clip_id for row in ledger(store))


def transcribed(store: Store) -> Callable[[Clips], Iterator[TranscriptRow]]:
    """In the first clip of the data set somebody swears in German, in the other nobody does, in English."""
    said = {first_of(store): ("Verdammt, das ist gut", "de")}
    return lambda clips: (transcript(key, *said.get(key, ("so", "en"))) for key, _ in clips)


@pytest.fixture
def store(curated: Any) -> Store:
    """A data set of two accepted clips with transcripts and captions that were not selected by yet."""
    store = Store(str(curated.dataset))
    assert annotate(store, TRANSCRIPTS, "f", transcribed(store)) == Counts(annotated=2, before=0, failed=0)
    annotate(store, CAPTIONS, "f", captioned)
    return store


def ledger(store: Store) -> list[LedgerRow]:
    return [row for row in tables.read(store, "ledger.parquet", LedgerRow) if row.stopped_by is None]


def texts(store: Store) -> dict[str, bytes]:
    tars = [name for name in store.list("shards") if name.endswith(".tar")]
    return {key: members["txt"] for tar in tars for key, members in read_samples(store, tar)}


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a video was opened")

    for module, name in [(media, "read_frames"), (media, "read_audio"), (trace, "read_frames")]:
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_decoder")
def test_transcripts_are_columns_of_the_ledger(store: Store) -> None:
    assert [row.language for row in ledger(store)] == [None, None], "selection has not seen them"
    code, _, err = run("select", store.root)
    assert (code, [line.partition("] ")[2] for line in err.splitlines()]) == (0, ["selecting", "report"])
    first, other = ledger(store)
    assert (first.language, first.language_probability, first.num_words, first.words_per_s) == (
        "de",
        0.9,
        4,
        2.0,
    )
    assert (other.language, other.num_words, other.num_forbidden_words) == ("en", 1, None)
    assert first.accepted and other.accepted, "without thresholds they decide nothing"
    statistics = json.loads(store.read("report/statistics.json"))
    heard = {row["language"]: row["accepted"]["clips"] for row in statistics["languages"]}
    assert heard == {"de": 1, "en": 1}
    assert '<th scope="row">de</th>' in store.read("report/index.html").decode()


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    ("setting", "reasons", "detail"),
    [
        ("languages=[en, fr]", ["other_language"], "other_language (language_probability 0.9)"),
        ("forbidden_words=[verdammt]", ["forbidden_words"], "(num_forbidden_words 1, threshold 0)"),
        ("forbidden_words=[verd, gut das]", [], ""),
        ("max_words_per_s=1.5", ["speech_fast"], "speech_fast (words_per_s 2, threshold 1.5)"),
    ],
)
def test_they_decide_where_thresholds_are_set(
    store: Store, setting: str, reasons: list[str], detail: str
) -> None:
    assert run("select", store.root, "--set", f"thresholds.{setting}")[0] == 0
    first, other = ledger(store)
    assert list(first.reasons) == reasons
    assert detail in "".join(first.reason_details)
    assert other.accepted


def test_the_text_goes_into_the_shards_where_it_is_asked_for(store: Store) -> None:
    shard = ("shard", store.root, "--executor", "inline")
    assert set(texts(store).values()) == {b""}
    assert run(*shard, "--set", "shards.text=transcript")[0] == 0
    assert texts(store)[first_of(store)] == b"Verdammt, das ist gut"
    before = {name: store.sha256(name) for name in store.list("shards")}
    assert run(*shard)[0] == 0
    assert {name: store.sha256(name) for name in store.list("shards")} == before
    assert run(*shard, "--set", "shards.text=caption")[0] == 0
    assert texts(store)[first_of(store)] == f"Somebody speaks in {first_of(store)}.".encode()
    tar = f"shards/{ledger(store)[0].shard}.tar"
    (decoded,) = (sample.decode(key, members) for key, members in read_samples(store, tar))
    assert decoded.meta.measures.transcript is not None
    assert {name: decoded.meta.provenance.models[name] for name in ("tiny", "seer")} == {
        "tiny": SHA,
        "seer": SHA,
    }
    assert run("verify", store.root)[0] == 0


def test_failures_are_rows_and_cost_no_clip(store: Store) -> None:
    def fail(clips: Clips) -> Iterator[TranscriptRow]:
        return (transcript(key, "", "en", "RunError: it is: late") for key, _ in clips)

    assert annotate(store, TRANSCRIPTS, "g", fail) == Counts(annotated=0, before=0, failed=2)
    assert run("select", store.root)[0] == 0
    first, _ = ledger(store)
    assert (first.accepted, first.failure, first.language) == (True, None, None)
    (row,) = (
        r for r in json.loads(store.read("report/statistics.json"))["failures"] if r["stage"] == "transcribe"
    )
    assert (row["error"], row["count"]) == ("RunError", 2)


def test_rows_of_clips_that_left_the_shards_stay(store: Store) -> None:
    assert run("shard", store.root, "--executor", "inline", "--set", "thresholds.languages=[en]")[0] == 0
    assert annotate(store, TRANSCRIPTS, "f", transcribed(store)) == Counts(annotated=0, before=1, failed=0)
    assert run("select", store.root, "--set", "thresholds.languages=[]")[0] == 0
    assert [row.language for row in ledger(store)] == ["de", "en"]


def test_a_damaged_shard_is_named(store: Store) -> None:
    tar = next(Path(store.root).glob("snapshots/000001/*.tar"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(
        DatasetError, match=rf"^snapshots/000001/{tar.name}: .*; `talkforge verify` says more$"
    ):
        annotate(store, TRANSCRIPTS, "g", transcribed(store))


def test_the_command_line_transcribes_and_selects(curated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from talkforge.pipeline import transcribe
    from tests.pipeline.test_transcribe import PYTHON, STAND_IN

    monkeypatch.setattr(transcribe, "WORKER", STAND_IN)
    monkeypatch.setenv("STAND_IN", json.dumps({"text": "guten Tag", "language": "de"}))
    code, out, err = run("transcribe", curated.dataset, "--model", "tiny", "--python", PYTHON)
    assert code == 0
    assert "2 of 2 clips" in err
    assert "2 clips done, 0 were before, 0 failed" in out
    assert {row.language for row in ledger(Store(str(curated.dataset)))} == {"de"}
    code, _, err = run("transcribe", curated.dataset, "--model", "missing", "--python", PYTHON)
    assert (code, err.splitlines()[-1]) == (
        1,
        "talkforge: transcriber, model missing: OSError: no such model",
    )
