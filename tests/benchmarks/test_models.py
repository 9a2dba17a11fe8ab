"""The tables of docs/models.md: what a line says, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import audio_models, duplicates, video_models
from benchmarks import models as benchmark
from benchmarks.material import Material, Row, Spent
from talkforge.curation.picture.scorer import WEIGHTS
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError


def test_a_line_has_the_terms_of_the_registry() -> None:
    ours = benchmark.line("sync", Row(("ridge",), "right", 0.0125))
    assert ours == "| sync | ridge | part of Talkforge | yes | right | 0.013 |"
    two = benchmark.line("body", Row(("pose_detector", "pose_landmark_full"), "found", 1.0))
    assert "| pose_detector, pose_landmark_full | Apache-2.0 | yes | found | 1.000 |" in two
    assert "| no |" in benchmark.line("identity", Row(("mobilefacenet",), "apart", 0.1))


def test_what_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    names = [text.split(" | ")[0].removeprefix("| ") for text in benchmark.not_here()]
    assert names == [name for name in registry.MODELS if registry.present(name) is None]
    assert "scrfd" in names


def test_cost_is_cpu_seconds_over_footage() -> None:
    spent = Spent()
    assert spent.on(2.0, lambda: sum(range(200_000))) == 19_999_900_000
    spent.on(3.0, lambda: None)
    assert spent.footage_s == 5.0
    assert spent.rate == spent.cpu_s / 5.0 > 0


def test_what_users_bring_has_the_licence_that_a_row_states() -> None:
    text = benchmark.line("words", Row(("whisperx", "tiny.en"), "heard", 0.3, "MIT (Whisper)"))
    assert text == "| words | whisperx, tiny.en | MIT (Whisper) | yes | heard | 0.300 |"


def test_a_row_that_cannot_be_measured_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: Material) -> Iterator[Row]:
        raise ModelError("no weights")
        yield

    here = Row(("ours",), "seen", 0.5)
    monkeypatch.setattr(benchmark, "ROWS", {"sync": absent, "music": lambda _: iter([here])})
    benchmark.main(Path("nowhere"), [])
    printed = capsys.readouterr()
    assert printed.err == "sync: left out: no weights\n"
    assert benchmark.line("music", here) in printed.out


def test_the_name_of_a_grid_recording_is_what_is_said_in_it() -> None:
    assert audio_models.sentence("grid_id2_swwp2s.mpg") == ["set", "white", "with", "p", "two", "soon"]
    assert audio_models.sentence("grid_bbaf2n.mpg") == ["bin", "blue", "at", "f", "two", "now"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Set white with P2 soon.", 0),
        ("Set white with P two soon", 0),
        ("Said white with P2 soon.", 1),
        ("Set white with soon.", 2),
        ("Set, oh, white with P2 soon.", 1),
        ("", 6),
    ],
)
def test_word_errors_are_changes_gaps_and_additions(text: str, wrong: int) -> None:
    assert (
        audio_models.word_errors(audio_models.sentence("grid_id2_swwp2s.mpg"), audio_models.spelt(text))
        == wrong
    )


def test_copies_that_are_found_are_all_known_to_the_benchmark_of_duplicates() -> None:
    assert set(video_models.COPIES) <= duplicates.CHANGES.keys()
    assert video_models.PICTURE_FIGURES.keys() == WEIGHTS.keys()
