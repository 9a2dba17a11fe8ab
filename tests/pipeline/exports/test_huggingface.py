"""A repository of the Hub, read by datasets, streamed and cached, and by mlcroissant."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from talkforge.pipeline import snapshots, tables
from talkforge.pipeline.export import Options, export
from talkforge.pipeline.exports import card
from talkforge.pipeline.exports.card import Facts
from talkforge.pipeline.exports.clips import open_source
from talkforge.pipeline.exports.huggingface import features_of, size_category
from talkforge.schemas import sample
from talkforge.schemas.records import LedgerRow
from tests.pipeline.exports.published_set import CLIPS, members, publish
from tests.pipeline.exports.test_trainers import check_sums
from tests.training.shard_files import Shown

TRAIN = [clip for shard in CLIPS["train"] for clip in shard]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    export(publish(folder / "set"), "huggingface", Options(folder / "repository"))
    return folder / "repository"


def head_of(card: Path) -> dict[str, Any]:
    _, head, _ = card.read_text().split("---\n", 2)
    return yaml.safe_load(head)


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_reads_every_sample(
    repository: Path, tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path, cache = str(repository), str(tmp_path)
    types = datasets.load_dataset_builder(path, cache_dir=cache).info.features
    assert isinstance(types["flac"], datasets.Audio) and isinstance(types["mp4"], datasets.Video)
    assert types["json"]["verdict"]["reasons"].feature["code"].dtype == "string"
    assert types["json"]["omega_face"].dtype == "float64"
    # As bytes, because datasets needs torchcodec for the others, also where nothing is decoded.
    types = types | {name: datasets.Value("binary") for name in ("flac", "mp4", "face.jpg")}
    for split, clips in (("train", TRAIN), ("validation", CLIPS["validation"][0])):
        found = datasets.load_dataset(
            path, split=split, streaming=streaming, features=datasets.Features(types), cache_dir=cache
        )
        rows = list(found)
        assert [row["__key__"].rpartition("/")[2] for row in rows] == [clip.key for clip in clips]
        for row, clip in zip(rows, clips, strict=True):
            true = members(clip)
            assert (row["mp4"], row["flac"], row["txt"]) == (true["mp4"], true["flac"], clip.text)
            stored = json.loads(true["json"])
            assert row["json"] == stored
            lips = sample.read_lips(clip.key, true["lips.npz"], sample.read_meta(clip.key, true["json"]).clip)
            assert np.array_equal(np.array(row["lips.npz"]["mask"], np.uint8), lips.mask_bits)
            assert np.array_equal(
                np.array(row["lips.npz"]["contour"], np.float32), lips.contour, equal_nan=True
            )


def test_the_code_in_the_card_loads_the_clips(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert 'PATH = "."' in code
    loaded: dict[str, Any] = {}
    exec(code.replace('PATH = "."', f"PATH = {str(repository)!r}"), loaded)
    rows = list(loaded["clips"])
    for name in ("mp4", "flac", "face.jpg"):
        assert [row[name]["bytes"] for row in rows] == [members(clip)[name] for clip in TRAIN]
    assert loaded["first"]["mp4"]["bytes"] == members(TRAIN[0])["mp4"]
    assert len(loaded["table"]) == 4


def test_datasets_reads_the_table(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    table = datasets.Dataset.from_parquet(f"{repository}/clips.parquet", cache_dir=str(tmp_path))
    assert table["clip_id"] == [clip.key for clip in [*TRAIN, *CLIPS["validation"][0]]]
    assert set(table.column_names) == set(LedgerRow.model_fields)
    assert table["sync_probability"] == [None] * 4 and table.features["sync_probability"].dtype == "float64"
    assert table.features["failure"].dtype == "string"


def test_mlcroissant_reads_the_records(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    found = croissant.Dataset(str(repository / "croissant.json"))
    records = list(found.records("clips"))
    assert [record["clips/clip_id"].decode() for record in records] == [
        clip.key for clip in [*TRAIN, *CLIPS["validation"][0]]
    ]
    assert [record["clips/num_frames"] for record in records] == [30, 30, 30, 20]
    assert not found.metadata.ctx.issues.errors
    assert not found.metadata.ctx.issues.warnings
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_croissant_names_every_file_with_its_sum(repository: Path) -> None:
    document = json.loads((repository / "croissant.json").read_text())
    files = {one["@id"]: one for one in document["distribution"] if one["@type"] == "cr:FileObject"}
    shards = ("train-000000", "train-000001", "validation-000000")
    assert set(files) == {"clips.parquet", *(f"data/{name}.tar" for name in shards)}
    for name, one in files.items():
        assert hashlib.sha256((repository / name).read_bytes()).hexdigest() == one["sha256"]
        assert one["contentSize"] == f"{(repository / name).stat().st_size} B"
    assert document["license"] == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert "rai:personalSensitiveInformation" in document
    assert check_sums(repository) == len(files) + 4


def test_the_card_says_what_there_is(repository: Path) -> None:
    head, text = head_of(repository / "README.md"), (repository / "README.md").read_text()
    assert (head["license"], head["size_categories"]) == ("cc0-1.0", ["n<1K"])
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.tar"},
        {"split": "validation", "path": "data/validation-*.tar"},
    ]
    assert [(one["name"], one["num_examples"]) for one in head["dataset_info"][0]["splits"]] == [
        ("train", 3), ("validation", 1),
    ]  # fmt: skip
    assert "| too_short | clips | 4 |" in text and "| CC0 | signed | 1 | 4 |" in text
    assert "4 people. The one with most hours has 27%" in text
    assert "- Nothing was transcribed: languages are not known." in text
    assert "No consent is stated" not in text
    assert "Content credentials (C2PA) of the files were not read." in text


def test_what_files_reserve_is_counted(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    said = {"clip00": "", "clip01": "data_mining=notAllowed", "clip02": "remote"}
    ledger = store.read(snapshots.current(store).table("ledger.parquet"))
    rows = [
        row.model_copy(update={"training_mining": said.get(row.clip_id)})
        for row in tables.from_table(LedgerRow, tables.from_bytes(ledger, "ledger.parquet"))
    ]
    tables.write(store, snapshots.current(store).table("ledger.parquet"), LedgerRow, rows)
    facts = card.facts_of(open_source(store))
    assert facts.credentials == (3, 2)
    for text in (card.page(facts), card.training_summary(facts)):
        assert "were looked for in the files of 3 of 4 clips. Those of 2 clips reserve data mining" in text


def test_what_users_wrote_stays_text_in_the_card(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](http://y)\n---\nlicense: mit"
    store = publish(tmp_path / "set", licence=hostile)
    export(store, "huggingface", Options(tmp_path / "out"))
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "other"
    assert "<script>" not in text and "](http" not in text
    assert r"\<script\>alert\(1\)\</script\> \| \[x\]\(http://y\) --- license: mit" in text


def test_the_summary_for_the_ai_act_says_what_is_known(repository: Path) -> None:
    text = (repository / "TRAINING_SUMMARY.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## 1. General information", "## 2. Data sources", "## 3. Data processing",
    ]  # fmt: skip
    assert "- Size: 0.1 min of video with audio, 4 clips" in text
    assert "| CC0 | signed | 1 | 0.1 min |" in text and "- Consent: not required." in text
    assert "- Modalities: video, audio\n" in text and text.count("to be filled in by the provider") == 5


def test_types_follow_from_a_sample() -> None:
    features = {one["name"]: one for one in features_of(members(Shown(0)))}
    assert features["mp4"] == {"name": "mp4", "dtype": "video"}
    assert features["speech.npy"] == {"name": "speech.npy", "list": {"list": "float16"}}
    assert features["identity.npy"] == {"name": "identity.npy", "list": "float32"}
    inner = {one["name"]: one for one in features["json"]["struct"]}
    assert inner["version"] == {"name": "version", "dtype": "int64"}
    provenance = {one["name"]: one for one in inner["provenance"]["struct"]}
    assert [one["name"] for one in provenance["models"]["list"]] == ["name", "sha256"]


@pytest.mark.parametrize(
    ("count", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9_999, "1K<n<10K"), (10_000, "10K<n<100K"),
     (999_999_999_999, "100B<n<1T"), (10**12, "n>1T")],
)  # fmt: skip
def test_sizes_have_the_words_of_the_hub(count: int, name: str) -> None:
    assert size_category(count) == name


def facts(*licences: str) -> Facts:
    return Facts("x", None, 1, "", {}, {}, {}, licences, (), (0, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("licences", "head"),
    [
        (("CC BY 4.0",), {"license": "cc-by-4.0"}),
        (("cc0", "CC0-1.0"), {"license": "cc0-1.0"}),
        (("CC BY 4.0", "CC0"), {"license": "other", "license_name": "cc-by-4.0-and-cc0"}),
        (("ours",), {"license": "other", "license_name": "ours"}),
        (("",), {"license": "other", "license_name": "not-stated"}),
        (("CC0", ""), {"license": "other", "license_name": "cc0-and-not-stated"}),
        (("私たちの",), {"license": "other", "license_name": "unnamed"}),
        (("a: b\n- c" + 200 * "!",), {"license": "other", "license_name": "a-b-c"}),
    ],
)
def test_a_licence_is_named_as_the_hub_names_it(licences: tuple[str, ...], head: dict[str, str]) -> None:
    found = facts(*licences)
    assert found.licence_head == head
    assert [name.split() for name in found.licences_stated.split(", ")] == [
        name.split() or ["not", "stated"] for name in licences
    ]


def test_one_split_is_described_alone(tmp_path: Path) -> None:
    store = publish(tmp_path / "set")
    export(store, "huggingface", Options(tmp_path / "out", split="validation"))
    info = head_of(tmp_path / "out" / "README.md")["dataset_info"][0]
    assert [one["name"] for one in info["splits"]] == ["validation"]
    rows = tables.from_bytes((tmp_path / "out" / "clips.parquet").read_bytes(), "clips.parquet")
    assert rows.num_rows == sum(map(len, open_source(store, None, "validation").keys.values())) == 1
