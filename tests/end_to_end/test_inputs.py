"""A list with spans and columns of its own, curated below a base that is in no file of the data set."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from talkforge.pipeline import jobs
from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import Config, load_config
from talkforge.schemas.errors import CommandError
from tests.conftest import SETTINGS, Curated

LIST = (
    "uri,license,person,start_s,end_s,show\n"
    "takes/a.mp4,CC0,ann,0,3.2,news\n"
    "takes/a.mp4,MIT,ann,3.2,,late\n"
    "takes/a.mp4,CC0,ann,1,2,again\n"
    "takes/b.mp4,CC0,bob,,,\n"
    "takes/broken.mp4,CC0,,,,\n"
    "takes/gone.mp4,CC0,,,,\n"
)


def config() -> Config:
    return load_config("offline", [*SETTINGS, "clip.min_s=0.5"])


def curate(folder: Path, dataset: Path, base: Path | str) -> None:
    jobs.curate([str(folder / "list.csv")], Store(str(dataset), str(base)), config(), InlineExecutor)


@pytest.fixture(scope="module")
def made(measured: Curated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the footage, and the data set."""
    folder = tmp_path_factory.mktemp("footage")
    shutil.copytree(measured.videos, folder / "takes")
    (folder / "takes" / "broken.mp4").write_bytes(b"no video")
    (folder / "list.csv").write_text(LIST)
    dataset = tmp_path_factory.mktemp("made") / "set"
    curate(folder, dataset, folder)
    return folder, dataset


def everything(dataset: Path) -> str:
    """All texts in all files of a data set."""
    texts = []
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), default=str))
        elif path.suffix == ".tar":
            with tarfile.open(path) as shard:
                texts += [shard.extractfile(one).read().decode("latin-1") for one in shard]  # type: ignore[union-attr]
        else:
            texts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def test_the_base_is_in_no_file(made: tuple[Path, Path]) -> None:
    folder, dataset = made
    text = everything(dataset)
    assert "takes/a.mp4" in text
    assert str(folder) not in text
    assert verify(Store(str(dataset))) == []


def test_every_row_of_the_list_is_an_input(made: tuple[Path, Path]) -> None:
    _, dataset = made
    rows = pq.read_table(dataset / "sources.parquet").to_pylist()
    assert [(row["uri"], row["start_s"], row["end_s"], row["status"], row["licence"]) for row in rows] == [
        ("takes/a.mp4", 0.0, 3.2, "measured", "CC0"),
        ("takes/a.mp4", 1.0, 2.0, "duplicate", "CC0"),
        ("takes/a.mp4", 3.2, None, "measured", "MIT"),
        ("takes/b.mp4", None, None, "measured", "CC0"),
        ("takes/broken.mp4", None, None, "failed", "CC0"),
        ("takes/gone.mp4", None, None, "failed", "CC0"),
    ]
    assert rows[1]["reason"] == "overlaps another span of takes/a.mp4"
    assert rows[2]["duration_s"] == pytest.approx(0.8, abs=0.1)


def test_clips_stay_in_their_span_and_carry_what_the_list_says(made: tuple[Path, Path]) -> None:
    _, dataset = made
    rows = pq.read_table(dataset / "ledger.parquet").to_pylist()
    told = {(row["person"], row["licence"], row["source.show"]) for row in rows}
    assert told == {("ann", "CC0", "news"), ("ann", "MIT", "late"), ("bob", "CC0", "")}
    for row in rows:
        if row["source.show"] == "news":
            assert row["end_s"] <= 3.2 + 0.04
        elif row["source.show"] == "late":
            assert row["start_s"] >= 3.2 - 0.04
    accepted = {row["clip_id"]: row for row in rows if row["accepted"]}
    assert accepted
    for path in (dataset / "shards").glob("*.tar"):
        with tarfile.open(path) as shard:
            for name in shard.getnames():
                if name.endswith(".json"):
                    meta = json.load(shard.extractfile(name))  # type: ignore[arg-type]
                    row = accepted[meta["measures"]["clip"]["clip_id"]]
                    assert meta["source"] == {"show": row["source.show"]}
                    assert meta["provenance"]["licence"] == row["licence"]
                    assert meta["provenance"]["uri"] == row["uri"]


def test_footage_that_has_moved_is_found_below_its_new_base(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, dataset = made
    shutil.copytree(dataset, tmp_path / "set")
    shutil.copytree(folder, tmp_path / "elsewhere")
    before = sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "set" / "parts").rglob("part.json")
    )
    curate(tmp_path / "elsewhere", tmp_path / "set", tmp_path / "elsewhere")
    after = sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "set" / "parts").rglob("part.json")
    )
    assert before == after
    store = Store(str(tmp_path / "set"), str(tmp_path / "elsewhere"))
    described = load_dataset(store)
    changed = described.config.model_copy(
        update={"shards": described.config.shards.model_copy(update={"crf": 30})}
    )
    with exclusive(store):
        ingested = load_ingested(store)
        selection = jobs.select(store, described.model_copy(update={"config": changed}), ingested)
        cut = jobs.shard(store, load_dataset(store), selection, ingested)
    assert [row.failure for row in cut.rows if row.failure] == []
    assert sum(row.shard is not None for row in cut.rows) == sum(row.accepted for row in selection.rows) > 0


def test_a_data_set_with_a_base_asks_for_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, dataset = made
    shutil.copytree(dataset, tmp_path / "set")
    message = r"names its inputs relative to a folder, such as 'takes/a\.mp4'; give it as --base$"
    with pytest.raises(CommandError, match=message):
        curate(folder, tmp_path / "set", "")
    store = Store(str(tmp_path / "set"))
    ingested = load_ingested(store)
    described = load_dataset(store)
    with pytest.raises(CommandError, match=message):
        jobs.shard(store, described, jobs.select(store, described, ingested), ingested)
    clip = next(
        row["clip_id"] for row in pq.read_table(dataset / "ledger.parquet").to_pylist() if row["shard"]
    )
    with pytest.raises(CommandError, match=message):
        jobs.inspect(store, clip, tmp_path / "clip.mp4")


def test_a_base_that_does_not_fit_is_a_bad_command(measured: Curated, made: tuple[Path, Path]) -> None:
    folder, dataset = made
    with pytest.raises(CommandError, match=r"^--base .*nowhere: no such folder$"):
        Store(str(dataset), str(folder / "nowhere"))
    with pytest.raises(CommandError, match=r"a\.mp4': expected an input below --base "):
        jobs.curate([str(measured.videos)], Store(str(dataset), str(folder)), config(), InlineExecutor)
    store = Store(str(measured.dataset), str(measured.videos))
    with pytest.raises(CommandError, match=r"because it was begun without --base; go on without it$"):
        jobs.curate([str(measured.videos)], store, load_config("offline", SETTINGS), InlineExecutor)
