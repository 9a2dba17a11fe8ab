"""What a run would read is told without writing, hashing or fetching anything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from talkforge.curation.media import probe
from talkforge.curation.weights import registry
from talkforge.pipeline.preview import Preview, preview
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, load_config
from talkforge.schemas.errors import CommandError
from tests.conftest import ROOT, SETTINGS


def config(*settings: str) -> Config:
    return load_config(ROOT / "configs" / "offline.yaml", [*SETTINGS, *settings])


def look(dataset: Path, *inputs: Path, **more: Any) -> Preview:
    return preview([str(path) for path in inputs], Store(str(dataset)), config(), **more)


@pytest.fixture(autouse=True)
def nothing_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("hashed or fetched")

    monkeypatch.setattr(probe, "content_hash", refuse)
    monkeypatch.setattr(registry, "fetch", refuse)


def test_new_inputs_are_counted_by_their_headers(curated: Any, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(curated.videos, videos)
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "notes.md").write_text("x")
    sizes = sum(path.stat().st_size for path in videos.glob("*.mp4"))
    before = sorted(tmp_path.rglob("*"))
    found = look(tmp_path / "new", videos)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.inputs, found.num_due, found.num_bytes) == (4, 4, sizes)
    assert found.input_s == pytest.approx(9.0, abs=0.1)  # headers count the audio's last block, too
    assert found.no_length == ()
    assert found.unreadable == {
        str(videos / "broken.mp4"): "expected a video file, found data in no known media format"
    }
    assert found.passed_over == (f"{videos}: passed over what is no video by its name: 1 .md",)
    assert (found.measured_s, found.planned_s) == (0, 0)


def test_what_was_read_before_is_not_opened_again(curated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("talkforge.pipeline.preview.promised_s", refuse)
    found = look(curated.dataset, curated.videos)
    assert (found.inputs, found.num_due, found.input_s) == (3, 0, 9.0)
    assert (found.measured_s, found.planned_s) == (9.0, 9.0)


def test_a_span_counts_as_far_as_it_lies_in_the_file(curated: Any, tmp_path: Path) -> None:
    rows = [f"{curated.videos / 'a.mp4'},1,2.5", f"{curated.videos / 'a.mp4'},3,60"]
    (tmp_path / "list.csv").write_text("\n".join(["uri,start_s,end_s", *rows]))
    found = look(tmp_path / "new", tmp_path / "list.csv")
    assert found.input_s == pytest.approx(1.5 + 1.0, abs=0.1)
    assert found.num_bytes == (curated.videos / "a.mp4").stat().st_size


def test_a_file_elsewhere_is_not_fetched_for_its_length(curated: Any, tmp_path: Path) -> None:
    uri = f"file://{curated.videos / 'a.mp4'}"
    found = preview([uri], Store(str(tmp_path / "new")), config())
    assert (found.inputs, found.num_due, found.input_s, found.no_length) == (1, 1, 0, (uri,))
    assert found.num_bytes == (curated.videos / "a.mp4").stat().st_size


def test_weights_are_sorted_by_what_the_run_does_without_them(
    curated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "present", lambda name: tmp_path if name == "centerface" else None)
    store, inputs = Store(str(tmp_path / "new")), [str(curated.videos)]

    weights = preview(inputs, store, config()).weights
    assert weights.here == ("centerface",)
    assert weights.missing == {}
    assert weights.to_fetch == ("face_landmarker", "silero_vad", "fireredvad_aed")
    demanding = config("scan.detector=scrfd", "thresholds.min_face_confidence=auto")
    weights = preview(inputs, store, demanding).weights
    assert weights.missing == {"scrfd": registry.how_to_get("scrfd")}
    optional = config("identity.model=w600k_r50", "identity.optional=true")
    assert preview(inputs, store, optional).weights.absent == {"w600k_r50": registry.how_to_get("w600k_r50")}


def test_a_data_set_of_another_configuration_is_refused(curated: Any) -> None:
    with pytest.raises(CommandError, match=r"measured with another configuration: motion\.body"):
        preview([str(curated.videos)], Store(str(curated.dataset)), config("motion.body=mediapipe"))
