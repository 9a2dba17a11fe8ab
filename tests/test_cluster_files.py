"""`ray_cluster.yaml` and `kuberay.yaml`: Ray's loaders take them, and its autoscaler adds nodes for a run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private import resource_demand_scheduler as scheduler
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.util import prepare_config, validate_config

from talkforge.pipeline.executor import DEMAND_PER_CORE, LEAST_DEMAND, most_at_once
from talkforge.schemas import telemetry

ROOT = Path(__file__).resolve().parents[1]


def ray_cluster() -> dict[str, Any]:
    described = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    prepared: dict[str, Any] = prepare_config(described)
    validate_config(prepared)
    return prepared


def kuberay() -> dict[str, Any]:
    job = yaml.safe_load((ROOT / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert "--address auto" in job["spec"]["entrypoint"]
    resource = {
        "metadata": {"name": "talkforge", "namespace": "default"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return derived


def added(config: dict[str, Any], num_tasks: int, nodes: dict[str, int]) -> dict[str, int]:
    """Nodes that Ray's autoscaler adds for so many tasks of one core, beside those that are busy."""
    scorer = functools.partial(
        scheduler._default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({})
    )
    found, _ = scheduler.get_nodes_for(
        config["available_node_types"], nodes, config["head_node_type"], 100, [{"CPU": 1.0}] * num_tasks,
        scorer,
    )  # fmt: skip
    return dict(found)


@pytest.mark.parametrize("load", [ray_cluster, kuberay])
def test_an_empty_cluster_grows_with_the_work_and_not_beyond_its_bound(load: Any) -> None:
    config = load()
    cores = int(config["available_node_types"]["measure"]["resources"]["CPU"])
    most = config["available_node_types"]["measure"]["max_workers"]
    head = config["available_node_types"][config["head_node_type"]]
    assert (cores, most, head["resources"]["CPU"]) == (16, 16, 0)
    num_nodes = 0
    for expected in (1, 2, 4, 8, 16, 16):
        waiting = most_at_once(0, num_nodes * cores, grows=True) - num_nodes * cores
        num_nodes += added(config, waiting, {"measure": num_nodes}).get("measure", 0)
        assert num_nodes == expected
    # As many tasks as cores, which is what a cluster that cannot grow gets, would leave it as it is.
    assert most_at_once(0, cores, grows=False) - cores == 0


def test_what_is_submitted_is_bounded() -> None:
    assert most_at_once(3, 100, grows=True) == 3
    assert most_at_once(0, 0, grows=False) == 1
    assert most_at_once(0, 0, grows=True) == LEAST_DEMAND
    assert most_at_once(0, 100, grows=True) == 100 * DEMAND_PER_CORE


def test_no_pod_sends_usage_reports() -> None:
    spec = yaml.safe_load((ROOT / "kuberay.yaml").read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for container in (c for group in groups for c in group["template"]["spec"]["containers"]):
        told = {variable["name"]: variable["value"] for variable in container["env"]}
        assert told == telemetry.as_set()
