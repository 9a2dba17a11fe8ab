"""Content credentials on their way: read when a file is taken in, a column of the tables, and a gate."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from talkforge.pipeline import jobs, tables
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.ingest import ingest, is_due, stamp_of
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.ledger import Selection
from talkforge.pipeline.store import Store
from talkforge.schemas import extras
from talkforge.schemas.config import Config, Thresholds
from talkforge.schemas.errors import MissingExtraError, RunError
from talkforge.schemas.records import Input
from tests.conftest import Curated
from tests.content_credentials import sign
from tests.media_files import Pictures, steady, write_media

RESPECTED = {"respect_reservations": True}


def mark(store: Store, said: dict[str, str | None]) -> None:
    """Let the files of these names say this; all others were not read."""
    rows = [
        row.model_copy(update={"training_mining": said.get(Path(row.input.uri).name)})
        for row in load_ingested(store)
    ]
    tables.write(store, "intake.parquet", IngestRow, rows)


def respected(store: Store) -> Selection:
    dataset = load_dataset(store)
    config = dataset.config.model_copy(
        update={"thresholds": dataset.config.thresholds.model_copy(update=RESPECTED)}
    )
    return jobs.select(store, dataset.model_copy(update={"config": config}), load_ingested(store))


def reasons(selection: Selection) -> dict[str, tuple[str, ...]]:
    return {Path(row.uri).name: row.reason_details for row in selection.rows}


def test_they_are_read_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_media(tmp_path / "plain.mp4", Pictures(steady(5)))
    path = sign(
        plain,
        tmp_path / "a.mp4",
        {"cawg.training-mining": {"entries": {"cawg.data_mining": {"use": "notAllowed"}}}},
    )
    row = ingest(Input(uri=str(path)))
    assert (row.status, row.training_mining) == ("planned", "data_mining=notAllowed")
    assert ingest(Input(uri=str(plain))).training_mining == ""
    monkeypatch.setattr(extras, "missing", lambda _extra: "c2pa")
    assert ingest(Input(uri=str(path))).training_mining is None


def test_a_package_that_cannot_be_loaded_is_no_fault_of_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    path = write_media(tmp_path / "plain.mp4", Pictures(steady(5)))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.setattr(extras, "missing", lambda _extra: None)
    with pytest.raises(RunError, match=r"^the package c2pa cannot be loaded: "):
        ingest(Input(uri=str(path)))


def test_what_they_reserve_leaves_the_selection(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    mark(store, {"a.mp4": "ai_generative_training=notAllowed", "b.mp4": "", "nobody.mp4": ""})
    dataset = load_dataset(store)
    before = jobs.select(store, dataset, load_ingested(store))
    assert reasons(before) == {"a.mp4": (), "b.mp4": ()}  # a column alone, until the threshold asks
    assert [row.training_mining for row in before.sources] == ["ai_generative_training=notAllowed", "", ""]
    after = respected(store)
    assert reasons(after) == {
        "a.mp4": ("training_reserved (training_mining ai_generative_training=notAllowed)",),
        "b.mp4": (),
    }
    assert not [note for note in after.notes if "content credentials" in note]


def test_files_that_nobody_read_are_rejected_until_a_run_reads_them(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    store = Store(str(curated.dataset))
    mark(store, {})  # as in a data set of an earlier version
    selection = respected(store)
    unread = ("training_reserved (training_mining unread)",)
    assert reasons(selection) == {"a.mp4": unread, "b.mp4": unread}
    assert selection.notes[0].startswith("2 clips are rejected because nobody has read the content cred")
    config = load_dataset(store).config
    with monkeypatch.context() as patch:
        patch.setattr(extras, "missing", lambda _extra: "c2pa")
        with pytest.raises(MissingExtraError, match=r"respect_reservations needs the package c2pa: pip"):
            jobs.curate([str(curated.videos)], store, config, InlineExecutor)
    parts = sorted(store.list("parts"))
    selection = jobs.curate([str(curated.videos)], store, config, InlineExecutor)
    assert reasons(selection) == {"a.mp4": (), "b.mp4": ()}
    assert [row.training_mining for row in load_ingested(store)] == ["", "", ""]
    assert sorted(store.list("parts")) == parts  # nothing was measured again


def test_an_input_is_due_where_a_threshold_asks_for_what_was_not_read(measured: Curated) -> None:
    row = load_ingested(Store(str(measured.dataset)))[0]
    stamp, asks = stamp_of(row.input.uri), Config(thresholds=Thresholds(respect_reservations=True))
    unread = row.model_copy(update={"training_mining": None})
    read = row.model_copy(update={"training_mining": ""})
    assert [is_due(one, stamp, Config()) for one in (unread, read)] == [False, False]
    assert [is_due(one, stamp, asks) for one in (unread, read)] == [True, False]
