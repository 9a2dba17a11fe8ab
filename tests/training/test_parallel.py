"""Two processes on one machine, over gloo: they train as one does, stop together, and fail together."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.training import two_processes
from tests.training.runs import four_clips, last, small, tensors
from training import checkpoint
from training.parallel import make_accelerator
from training.train import train

TIMEOUT_S = 300


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def folder(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have been; see `two_processes.py`."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    torch.set_num_threads(1)
    start = multiprocessing.get_context("fork").Process  # everything is imported already
    processes = [start(target=two_processes.run, args=(shards, out, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline_s:
            if any(process.exitcode for process in processes):
                break  # the other one waits for it
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.join()
    logs = "\n".join((out / f"log-{rank}").read_text() for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], logs
    return out


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """What each process saw."""
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def test_gradients_are_those_of_one_process_with_all_batches(folder: Path, tmp_path: Path) -> None:
    """Masked, dropped and stratified as there: four batches of one process, two of each of two."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    config = two_processes.gradient_config(4)
    batches = [two_processes.BATCHES[k] for k in (0, 1, 2, 3)]
    alone = two_processes.gradients(config, make_accelerator(config, tmp_path), batches)
    both = load_file(folder / "gradients.safetensors")
    assert alone.keys() == both.keys() and len(alone) > 100
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(float(gradient.abs().max()) > 1e-5 for gradient in alone.values()) > 100


def test_both_see_the_same_and_count_both(told: list[dict[str, Any]]) -> None:
    assert told[0].pop("unprepared") == "RunError: the disk is gone"
    assert told[1].pop("unprepared") == "DatasetError: the disk is gone"
    assert told[0] == told[1]
    assert len(told[0]["losses"]) == 5 and told[0]["world"] == 2


def test_one_that_stops_stops_both_and_the_run_goes_on(folder: Path, told: list[dict[str, Any]]) -> None:
    assert told[0]["stopped"] == [2, False]
    assert told[0]["resumed"] == told[0]["losses"]
    straight, stopped = tensors(folder / "straight"), tensors(folder / "stopped")
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert last(folder / "straight").progress.world == 2


def test_they_fail_together(folder: Path, told: list[dict[str, Any]]) -> None:
    assert told[0]["full"].startswith("RunError: checkpoint ") and "No space left" in told[0]["full"]
    assert told[0]["broken"] == "DatasetError: the disk is gone"
    error = told[0]["nan"]
    assert error.startswith("RunError: step 2: loss is ") and error.endswith(": stopped before the update")
    assert len(error.split(";")) == 2, "samples of both are named"
    assert checkpoint.steps(folder / "nan") == []


@pytest.mark.parametrize("name", ("fsdp", "fsdp-checkpointing"))
def test_sharded_as_whole(folder: Path, told: list[dict[str, Any]], name: str) -> None:
    """FSDP2: stopped, resumed, with recomputed blocks: the same run, and the same files, to rounding."""
    assert told[0]["sharded"] == [[True, True]] * 5
    assert told[0][name] == pytest.approx(told[0]["losses"], rel=1e-4)
    whole, sharded = tensors(folder / "straight"), tensors(folder / name)
    assert {key: value.shape for key, value in whole.items()} == {
        key: value.shape for key, value in sharded.items()
    }
    for key, value in whole.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_sharded_as_whole_where_what_is_frozen_is_less_precise(
    folder: Path, told: list[dict[str, Any]]
) -> None:
    """Adapters in float32 on a base in bfloat16: types are kept."""
    assert told[0]["fsdp-half"] == pytest.approx(told[0]["half"], rel=1e-3)
    assert told[0]["half"] != pytest.approx(told[0]["losses"], rel=1e-6)
    whole, sharded = tensors(folder / "half"), tensors(folder / "fsdp-half")
    assert {key: value.dtype for key, value in sharded.items()} == dict.fromkeys(whole, torch.float32)


def test_one_process_goes_on_where_two_were(shards: str, folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = small(shards, folder / "fsdp", optim__ema=0.5, run__save_every=3, run__steps=6)
    result = train(config)
    assert result.finished and [report.step for report in result.history] == [6]
