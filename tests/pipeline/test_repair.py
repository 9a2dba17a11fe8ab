"""Damage of every kind at once, repaired by one command and the next run."""

from __future__ import annotations

from talkforge.pipeline import jobs
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.repair import repair
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import load_config
from tests.conftest import ROOT, SETTINGS, Curated


def damaged(store: Store, name: str) -> str:
    """Flips a byte in a file, of a table in its first page; returns the file's name."""
    data = bytearray(store.read(name))
    data[40 if name.endswith(".parquet") else len(data) // 2] ^= 0xFF
    store.write(name, bytes(data))
    return name


def test_what_is_damaged_is_named_and_made_again(curated: Curated) -> None:
    store = Store(str(curated.dataset))
    golden = {name: store.read(name) for name in store.list("shards")}
    part = next(name for name in store.list("parts") if name.endswith("clips.parquet"))
    names = [
        *("intake.parquet", "plan.parquet", "sources.parquet", "ledger.parquet"),
        *(part, store.list("timelines")[0]),
        *(name for name in golden if name.endswith("000000.tar")),
    ]
    for name in names:
        damaged(store, name)
    cut_short = ("people.parquet", "report/statistics.json")
    for name in cut_short:
        store.write(name, store.read(name)[:-20])
    problems = verify(store)
    assert {problem.path for problem in problems} >= {*names, *cut_short}
    assert {*names, *cut_short} - {part} <= set(repair(store, problems))
    jobs.curate(
        [str(curated.videos)], store, load_config(ROOT / "configs" / "offline.yaml", SETTINGS), InlineExecutor
    )
    assert verify(store) == []
    assert {name: store.read(name) for name in store.list("shards")} == golden
