"""The ablation: which trainings it makes, and what becomes of those that fail."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from talkforge.pipeline import cluster
from talkforge.pipeline.cluster import Cluster
from talkforge.schemas.errors import CommandError, RunError
from talkforge.training import ablate
from talkforge.training.ablate import LABELS, Ablation, run_ablation, trainings
from talkforge.training.evaluate.metrics import METRICS
from talkforge.training.run import checkpoint
from tests.training.runs import four_clips, small


def asked(tmp_path: Path, **changes: Any) -> Ablation:
    """Of small runs, 2 and 3 steps long, with a face branch unless it is left out."""
    shards = changes.pop("shards", "set/shards/train-000000.tar")
    for stage, name in (("clip", "stage1"), ("frame", "stage2")):
        config = small(shards, tmp_path / "unused", run__stage=stage, run__steps=2 + (stage == "frame"))
        (tmp_path / f"small-{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    given: dict[str, Any] = {"settings": (), "dataset": "set", "clips": 3} | changes
    return Ablation(str(tmp_path / "small"), out=tmp_path / "out", **given)


def test_every_training_takes_as_many_steps_and_starts_where_it_should(tmp_path: Path) -> None:
    found, left_out = trainings(asked(tmp_path))
    assert left_out == {}
    told = {
        one.name: [(c.run.stage, c.run.steps, c.run.init_from, c.adapters.face) for c in one.stages]
        for one in found
    }
    runs = tmp_path / "out" / "runs"
    assert told == {
        "full": [("clip", 2, "", True), ("frame", 3, str(runs / "full-stage1"), True)],
        "clip_only": [("clip", 5, "", True)],
        "frame_only": [("frame", 5, "", True)],
        "no_identity": [("clip", 2, "", False), ("frame", 3, str(runs / "no_identity-stage1"), False)],
    }
    outs = [config.run.out for one in found for config in one.stages]
    assert len({*outs}) == 6 and all(Path(out).parent == runs for out in outs)
    assert found[0].variants == {"full": None, "motion_0.1": 0.1, "motion_0.5": 0.5, "motion_1.0": 1.0}


def test_settings_and_steps_hold_for_both_stages_and_branches_that_lack_are_told(tmp_path: Path) -> None:
    settings = ("adapters.face=false", "adapters.motion=false", "optim.lr=0.5")
    sizes = ("face_tokens=16", "face_depth=6", "face_dim=768", "face_heads=12", "motion_dim=256")
    plain = (*settings, *(f"adapters.{size}" for size in sizes))
    found, left_out = trainings(asked(tmp_path, settings=plain, steps=(7, 9)))
    assert [one.name for one in found] == ["full", "clip_only", "frame_only"]
    assert {config.optim.lr for one in found for config in one.stages} == {0.5}
    assert [[config.run.steps for config in one.stages] for one in found] == [[7, 9], [16], [16]]
    assert left_out == {
        "motion_0.1": "the configuration has no motion branch",
        "motion_0.5": "the configuration has no motion branch",
        "motion_1.0": "the configuration has no motion branch",
        "no_identity": "the configuration has no face branch: --set adapters.face=true",
    }
    with pytest.raises(CommandError, match=r"^nothing is left to train: the configuration has no face"):
        trainings(asked(tmp_path, settings=plain, only=("no_identity",)))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float | None]]:
    """Runs are trained in earnest; generating and evaluating are noted, and figures made up."""
    seen: list[tuple[str, str, float | None]] = []

    def generate(
        run: Path, _: str, generated: Path, __: Path, clips: int, omega: float | None, **___: Any
    ) -> None:
        assert clips == 3 and checkpoint.find(run).is_dir()
        seen.append((generated.parent.name, run.name, omega))

    def figures(generated: Path, *_: Any) -> dict[str, Any]:
        value = {"mean": len(generated.parent.name) / 10, "low": None, "high": None, "count": 3}
        none = {"mean": None, "low": None, "high": None, "count": 0}
        return {
            "videos": 3,
            "metrics": [
                {"name": name, "generated": none if one.paper else value, "why_not": "no weights" * one.paper}
                for name, one in METRICS.items()
            ],
        }

    monkeypatch.setattr(ablate, "generate_clips", generate)
    monkeypatch.setattr(ablate.job, "evaluate", figures)
    return seen


def test_each_variant_is_trained_generated_and_a_row_of_the_table(
    tmp_path: Path, evaluated: list[tuple[str, str, float | None]]
) -> None:
    asking = asked(tmp_path, shards=four_clips(tmp_path / "set"), only=("full", "motion_1.0", "frame_only"))
    document = run_ablation(asking, inline=True)
    assert evaluated == [
        ("full", "full-stage2", None),
        ("motion_1.0", "full-stage2", 1.0),
        ("frame_only", "frame_only-stage2", None),
    ]
    assert checkpoint.steps(tmp_path / "out" / "runs" / "frame_only-stage2")[-1][0] == 5
    assert document["steps"] == {"full": [2, 3], "frame_only": [5]}
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == document
    with (tmp_path / "out" / "ablation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["jitter"], row["fvd"]) for row in rows] == [
        ("full", "0.4", ""), ("frame_only", "1.0", ""), ("motion_1.0", "1.0", ""),
    ]  # fmt: skip
    assert (
        "frame level only & -- & -- & -- & -- & -- & 1.000" in (tmp_path / "out" / "ablation.tex").read_text()
    )
    first, *others = ablate.table_rows(document)
    assert first == ["variant", *ablate.FREE_COLUMNS] and others[0][:2] == ["full model", "0.400"]


def test_a_training_that_fails_is_a_reason_and_the_others_go_on(
    tmp_path: Path, evaluated: list[tuple[str, str, float | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from talkforge.training import train

    real = train.train

    def failing(config: Any) -> Any:
        if "clip_only" in config.run.out:
            raise RunError("step 3: the loss is not finite")
        return real(config)

    monkeypatch.setattr(train, "train", failing)
    asking = asked(tmp_path, shards=four_clips(tmp_path / "set"), only=("clip_only", "frame_only"))
    document = run_ablation(asking, inline=True)
    assert list(document["variants"]) == ["frame_only"] and len(evaluated) == 1
    assert document["left_out"] == {"clip_only": "step 3: the loss is not finite"}
    assert "clip_only,0," in (tmp_path / "out" / "ablation.csv").read_text()
    alone = Ablation(**{**vars(asking), "only": ("clip_only",)})
    with pytest.raises(RunError, match="no variant could be evaluated; the first: step 3"):
        run_ablation(alone, inline=True)


class StandInRay:
    """Runs one task after the other; a task whose result is an exception has lost its worker."""

    class exceptions:  # noqa: N801 (as Ray names it)
        class RayError(Exception):
            """What Ray raises."""

    def __init__(self) -> None:
        self.at_once = 0
        self.tasks: dict[str, Any] = {}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_: Any) -> Any:
        tasks = self.tasks

        class Task:
            def __init__(self, function: Any) -> None:
                self.function = function

            def remote(self, ablation: Ablation, training: ablate.Training) -> str:
                tasks[training.name] = lambda: self.function(ablation, training)
                return training.name

        return Task

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout > 0
        self.at_once = max(self.at_once, len(references))
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        if reference == "clip_only":
            raise self.exceptions.RayError("the worker died")
        return self.tasks[reference]()


def test_on_ray_a_lost_worker_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = StandInRay()

    class StandInCluster(Cluster):
        def __init__(self, workers: int, address: str | None) -> None:
            assert (workers, address) == (2, None)
            self.ray = ray

        def check(self) -> None:
            pass

        def close(self) -> None:
            pass

    row = {"label": "x", "videos": 1, "figures": {}}
    monkeypatch.setattr(ablate, "Cluster", StandInCluster)
    monkeypatch.setattr(cluster, "error_of", lambda error: error)
    monkeypatch.setattr(ablate, "run_training", lambda _, one: dict.fromkeys(one.variants, row))
    wanted, _ = trainings(asked(tmp_path))
    found = {one.name: result for one, result in ablate._on_ray(asked(tmp_path), wanted, 2, None)}
    assert ray.at_once == 2 and set(found) == {"full", "clip_only", "frame_only", "no_identity"}
    assert found["clip_only"] == "the worker died" and set(found["full"]) < set(LABELS)
