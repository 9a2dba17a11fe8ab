"""What may be continued, and what is refused with the difference named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.pipeline import dataset
from talkforge.pipeline.dataset import (
    describe,
    exclusive,
    extend_plan,
    load_dataset,
    open_for_curating,
)
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, apply_settings
from talkforge.schemas.dataset import SYNC_SCORER, ModelUse
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.records import Input
from tests.records import video

MODEL = ModelUse(name="m", needed_by="scan", sha256="0" * 64, licence="MIT", commercial_use=True)


def store_at(path: Path) -> Store:
    return Store(str(path / "set"))


def fresh(*settings: str, models: tuple[ModelUse, ...] = (MODEL,)) -> dataset.Dataset:
    return describe(apply_settings({}, settings), models, ["nose"], LogMelEncoder())


def ingested(uri: str, content: int) -> IngestRow:
    return IngestRow(input=Input(uri=uri), stamp="1", status="planned", video=video(content, 5.0, uri=uri))


def test_a_new_data_set_is_described_and_can_be_opened_again(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    open_for_curating(store, fresh())
    assert open_for_curating(store, fresh()) == load_dataset(store)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scan.sample_s=1", r"scan\.sample_s: 0\.5 -> 1\.0"),
        ("thresholds.min_face_px=64", r"min_face_px: 128\.0 -> 64\.0.*talkforge select"),
        ("shards.crf=23", "crf: 18 -> 23"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, setting: str, message: str
) -> None:
    store = store_at(tmp_path)
    open_for_curating(store, fresh())
    with pytest.raises(CommandError, match=message):
        open_for_curating(store, fresh(setting))


def test_the_speech_features_are_described_also_where_they_were_not(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    before = fresh().model_dump(mode="json")
    assert (before.pop("speech_encoder"), before.pop("speech_dim")) == ("logmel-80", 80)
    store.write("dataset.json", json.dumps(before).encode())
    assert load_dataset(store).speech_dim is None
    assert open_for_curating(store, fresh()) == fresh()


def test_a_data_set_from_before_there_were_crops_has_whole_frames(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    before = fresh("clip.crop=none").model_dump(mode="json")
    for name in ("crop", "crop_margin", "crop_aspect"):
        del before["config"]["measure"]["clip"][name]
    store.write("dataset.json", json.dumps(before).encode())
    assert load_dataset(store).config.measure.clip.crop == "none"
    assert open_for_curating(store, fresh("clip.crop=none")) == fresh("clip.crop=none")
    with pytest.raises(CommandError, match=r"another configuration: clip\.crop: none -> auto\. Use that"):
        open_for_curating(store, fresh())


def test_a_data_set_from_before_covered_mouths_has_none_looked_for(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    whole = ("clip.crop=none", "lips.covered=false")
    before = fresh(*whole).model_dump(mode="json")
    del before["config"]["measure"]["lips"]["covered"]
    store.write("dataset.json", json.dumps(before).encode())
    assert not load_dataset(store).config.measure.lips.covered
    assert open_for_curating(store, fresh(*whole)) == fresh(*whole)
    with pytest.raises(CommandError, match=r"another configuration: lips\.covered: False -> True\. Use that"):
        open_for_curating(store, fresh("clip.crop=none"))


def test_a_data_set_of_an_earlier_sync_scorer_goes_on_with_this_one(tmp_path: Path) -> None:
    """`curate` scores its clips again, so no other model has to be measured with."""
    store = store_at(tmp_path)
    ridge, scorer = (
        MODEL.model_copy(update={"name": name, "needed_by": SYNC_SCORER})
        for name in ("ridge-shipped-v1", "contrastive-v1")
    )
    open_for_curating(store, fresh(models=(MODEL, ridge)))
    assert open_for_curating(store, fresh(models=(MODEL, scorer))).models == (MODEL, scorer)
    other = MODEL.model_copy(update={"sha256": "1" * 64})
    with pytest.raises(CommandError, match="other models: m differ"):
        open_for_curating(store, fresh(models=(other, scorer)))


def test_how_the_work_is_done_may_change(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    open_for_curating(store, fresh())
    assert open_for_curating(store, fresh("run.workers=3")).config.run.workers == 3


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    open_for_curating(store, fresh())
    other = MODEL.model_copy(update={"sha256": "1" * 64})
    with pytest.raises(CommandError, match="other models: m differ"):
        open_for_curating(store, fresh(models=(other,)))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.write("holiday.jpg", b"x")
    with pytest.raises(CommandError, match="not empty, and no data set"):
        open_for_curating(store, fresh())


def test_a_place_without_a_data_set_is_a_bad_command(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no data set here"):
        load_dataset(store_at(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema_version": 99}', "expected schema version 1, found 99"),
        (b"[]", "dataset.json"),
        (b"{", "dataset.json"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    store = store_at(tmp_path)
    store.write("dataset.json", content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(store)


def test_a_second_run_is_kept_out(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    open_for_curating(store, fresh())
    with exclusive(store), pytest.raises(CommandError, match="another run is at work"), exclusive(store):
        pass
    with exclusive(store):
        pass


@pytest.mark.parametrize("name", [".writable", ".lock", ".writer/000001.json"])
def test_what_a_run_leaves_that_fails_at_once_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    store = store_at(tmp_path)
    store.write(name, b"")
    assert dataset.check_target(store, Config()) is None
    open_for_curating(store, fresh())
    assert set(store.list()) <= {"dataset.json", ".lock", ".writer/000001.json"}
    other = Store(str(tmp_path / "other"))
    other.write("mine.txt", b"")
    with pytest.raises(CommandError, match="not empty, and no data set"):
        dataset.check_target(other, Config())


def test_the_plan_grows_and_keeps_what_was_planned(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    rows, first = extend_plan(store, [ingested("b", 2), ingested("a", 1)], 600.0)
    assert [row.input.uri for row in rows] == ["a", "b"]
    assert [[window.video.uri for window in part.windows] for part in first] == [["a", "b"]]
    rows, again = extend_plan(store, [], 600.0)
    assert (rows, again) == (dataset.load_ingested(store), first)
    rows, more = extend_plan(store, [ingested("0", 3), ingested("1", 1)], 600.0)
    assert more[:1] == first
    assert [(part.name, [w.video.uri for w in part.windows]) for part in more[1:]] == [("000001", ["0"])]
    assert [(row.input.uri, row.status) for row in rows] == [
        ("0", "planned"), ("1", "duplicate"), ("a", "planned"), ("b", "planned"),
    ]  # fmt: skip


def test_a_duplicate_takes_over_when_the_first_file_has_changed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    extend_plan(store, [ingested("a", 1), ingested("b", 1)], 600.0)
    rows, plan = extend_plan(store, [ingested("a", 7)], 600.0)
    assert [(row.input.uri, row.status, row.first_uri) for row in rows] == [
        ("a", "planned", ""),
        ("b", "planned", ""),
    ]
    assert [(w.video.uri, w.video.sha256[-1]) for part in plan for w in part.windows] == [
        ("b", "1"),
        ("a", "7"),
    ]


def test_content_that_is_gone_leaves_the_plan(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    extend_plan(store, [ingested("a", 1)], 600.0)
    _, plan = extend_plan(store, [ingested("a", 2)], 600.0)
    assert [(part.name, [w.video.sha256[-1] for w in part.windows]) for part in plan] == [("000001", ["2"])]


def test_defaults_are_the_configuration_of_an_empty_file(tmp_path: Path) -> None:
    assert fresh().config == Config()
    assert dataset.load_plan(store_at(tmp_path)) == []
