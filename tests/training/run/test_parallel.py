"""Two processes on one machine, over gloo: they train as one does, stop together, and fail together."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from talkforge.schemas.errors import CommandError
from talkforge.training.run import checkpoint
from talkforge.training.run.parallel import _prepare_deepspeed, _prepare_fsdp, make_accelerator
from talkforge.training.train import train
from tests.training import two_processes
from tests.training.runs import four_clips, last, small, tensors
from tests.training.shard_files import Shown, write_set

TIMEOUT_S = 300


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def folder(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have been; see `two_processes.py`."""
    out = tmp_path_factory.mktemp("two")
    # Each process reads one of the two shards, in which short and long clips come in another order.
    long, short = {"num_frames": 29}, {"num_frames": 6}
    lengths = [[long, short, long, short], [short, long, long, short]]
    write_set(
        out / "mixed",
        [[Shown(4 * k + n, **own) for n, own in enumerate(row)] for k, row in enumerate(lengths)],
    )
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
def results(folder: Path) -> list[dict[str, Any]]:
    """What each process saw."""
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


def test_gradients_are_those_of_one_process_with_all_batches(folder: Path, tmp_path: Path) -> None:
    """Masked, dropped and stratified as there: four batches of one process, two of each of two."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = two_processes.gradient_config(4)
    batches = [two_processes.BATCHES[k] for k in (0, 1, 2, 3)]
    alone = two_processes.gradients(config, make_accelerator(config, tmp_path), batches)
    both = load_file(folder / "gradients.safetensors")
    assert alone.keys() == both.keys() and len(alone) > 100
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert sum(float(gradient.abs().max()) > 1e-5 for gradient in alone.values()) > 100


def test_both_see_the_same_and_count_both(results: list[dict[str, Any]]) -> None:
    results = [{key: found[key] for key in found.keys() - {"read", "made"}} for found in results]
    for what in ("no samples", "fsdp-no samples"):
        assert results[0].pop(what) == "RunError: the disk is gone"
        assert results[1].pop(what) == "DatasetError: the disk is gone"
    assert results[0].pop("unprepared") == "RunError: the disk is gone"
    assert results[1].pop("unprepared") == "DatasetError: the disk is gone"
    assert results[0] == results[1]
    assert len(results[0]["losses"]) == 5 and results[0]["world"] == 2


def test_both_make_validation_samples_as_one_would(
    shards: str, folder: Path, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = ["clip01.mp4", "clip02.mp4", "clip03.mp4"]
    assert [found["samples"] for found in results] == [names, names]
    assert [found["made"] for found in results] == [2, 1]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert two_processes.previewed(shards, tmp_path, Accelerator(cpu=True)) == names
    for name in names:
        both, alone = (out / "samples" / name for out in (folder / "previewed", tmp_path))
        assert both.read_bytes() == alone.read_bytes()
    assert not (folder / "not-previewed" / "samples").exists()


def test_one_that_stops_stops_both_and_the_run_goes_on(folder: Path, results: list[dict[str, Any]]) -> None:
    assert results[0]["stopped"] == [2, False]
    assert results[0]["resumed"] == results[0]["losses"]
    straight, stopped = tensors(folder / "straight"), tensors(folder / "stopped")
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert last(folder / "straight").progress.world == 2


def test_all_have_as_many_tokens_in_a_step(results: list[dict[str, Any]]) -> None:
    """Of two lengths, in an order that differs between the two; a run that was stopped chooses the same."""
    assert results[0]["tokens"] == results[1]["tokens"]
    assert len(set(results[0]["tokens"])) == 2 and len(results[0]["tokens"]) == 10
    assert results[0]["mixed-stopped"] in (1, 2, 3) and results[0]["mixed-resumed"] == results[0]["mixed"]


def test_they_fail_together(folder: Path, results: list[dict[str, Any]]) -> None:
    assert results[0]["full"].startswith("RunError: checkpoint ") and "No space left" in results[0]["full"]
    assert results[0]["broken"] == "DatasetError: the disk is gone"
    error = results[0]["nan"]
    assert error.startswith("RunError: step 2: loss is ") and error.endswith(": stopped before the update")
    assert len(error.split(";")) == 2, "samples of both are named"
    assert checkpoint.steps(folder / "nan") == []


NO_GRADIENT = "attn2.to_k.bias"
"""Adds the same to the logits of every key, which softmax does not see: AdamW steps along rounding noise."""


def test_what_saves_memory_or_time_trains_alike_in_two_processes(results: list[dict[str, Any]]) -> None:
    """A base in 8 bits, one whose blocks wait in main memory, and compiled blocks that are sharded."""
    assert results[0]["fp8"] == pytest.approx(results[0]["half"], rel=0.01)
    assert results[0]["swap_blocks"] == results[0]["half"]
    assert results[0]["fsdp-compiled"] == pytest.approx(results[0]["losses"], rel=1e-4)


@pytest.mark.parametrize("name", ("fsdp", "fsdp-checkpointing"))
def test_sharded_as_whole(folder: Path, results: list[dict[str, Any]], name: str) -> None:
    """FSDP2: stopped, resumed, with recomputed blocks: the same run, and the same files, to rounding."""
    assert results[0]["sharded"] == [[True, True]] * 7
    assert results[0][name] == pytest.approx(results[0]["losses"], rel=1e-4)
    whole, sharded = tensors(folder / "straight"), tensors(folder / name)
    assert {key: value.shape for key, value in whole.items()} == {
        key: value.shape for key, value in sharded.items()
    }
    compared = [key for key in whole if NO_GRADIENT not in key]
    assert 0 < len(whole) - len(compared) < len(whole) / 10
    for key in compared:
        torch.testing.assert_close(sharded[key], whole[key], rtol=1e-2, atol=1e-3, msg=key)


def test_each_reads_its_part_of_what_it_resumes(folder: Path, results: list[dict[str, Any]]) -> None:
    """Moments and EMA of two resumed runs: together the two processes read each number once."""
    saved = tensors(folder / "fsdp")
    size = sum(value.numel() for name, value in saved.items() if not name.startswith("trained "))
    steps = sum(name.endswith(".step") for name in saved)
    assert results[0]["read"] + results[1]["read"] == 2 * (size + steps)
    # Rows do not divide evenly: the first has a little more.
    assert size <= results[0]["read"] < 1.1 * size


def test_sharded_as_whole_where_what_is_frozen_is_less_precise(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    """Adapters in float32 on a base in bfloat16: types are kept."""
    assert results[0]["fsdp-half"] == pytest.approx(results[0]["half"], rel=1e-3)
    assert [file.name for file in (folder / "fsdp-half" / "samples" / "step-00000005").iterdir()] == [
        "clip01.mp4"
    ]
    assert results[0]["half"] != pytest.approx(results[0]["losses"], rel=1e-6)
    whole, sharded = tensors(folder / "half"), tensors(folder / "fsdp-half")
    assert {key: value.dtype for key, value in sharded.items()} == dict.fromkeys(whole, torch.float32)


def test_one_process_goes_on_where_two_were(shards: str, folder: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = small(shards, folder / "fsdp", optim__ema=0.5, run__save_every=3, run__steps=6)
    result = train(config)
    assert result.finished and [report.step for report in result.history] == [6]


# --------------------------------------------------------------------------- what it is launched with

CONFIGS = Path(__file__).parents[3] / "configs" / "accelerate"


def launched(name: str) -> Any:
    """What `accelerate launch` makes of one of our configurations."""
    path = str(CONFIGS / f"{name}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "-m", "talkforge.training.train"])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("name", ("ddp", "fsdp2", "deepspeed-zero2", "deepspeed-zero3"))
def test_the_launcher_takes_our_configurations(name: str) -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == [
        "ddp",
        "deepspeed-zero2",
        "deepspeed-zero3",
        "fsdp2",
    ]
    found = launched(name)
    kind = {"ddp": found.multi_gpu, "fsdp2": found.use_fsdp}.get(name, found.use_deepspeed)
    assert kind and found.num_processes == 8 and found.mixed_precision == "no"
    if found.use_deepspeed:
        assert found.zero_stage == int(name[-1]) and str(found.zero3_init_flag).lower() == "false"


def test_fsdp_is_what_the_trainer_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare_multi_gpu_env(launched("fsdp2"))
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["WanTransformerBlock"]
    assert plugin.cpu_ram_efficient_loading is False and plugin.activation_checkpointing is False


class Launched:
    """As Accelerate is where it was launched with FSDP."""

    def __init__(self, **settings: Any) -> None:
        self.is_fsdp2 = settings.get("fsdp_version", 2) == 2
        self.state = SimpleNamespace(
            fsdp_plugin=FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **settings})
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    (
        ({"fsdp_version": 1}, "expected fsdp_version 2, found 1"),
        ({"cpu_offload": True}, "fsdp_offload_params is not supported"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing is not supported; set model"),
    ),
)
def test_kinds_of_sharding_that_are_not_supported_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        _prepare_fsdp(Launched(**settings), small("", Path()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "param_dtype"),
    (
        ({"model__trainable": "full", "run__precision": "bf16"}, torch.bfloat16),
        ({"model__trainable": "adapters", "run__precision": "bf16"}, None),
        ({"model__trainable": "full"}, None),
    ),
)
def test_weights_keep_their_types_but_where_all_are_float32(
    changes: dict[str, Any], param_dtype: torch.dtype | None
) -> None:
    found = Launched()
    _prepare_fsdp(found, small("", Path(), **changes))  # type: ignore[arg-type]
    policy = found.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.cast_forward_inputs) == (
        param_dtype, torch.float32, False,
    )  # fmt: skip


def test_deepspeed_is_told_what_the_run_says() -> None:
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    accelerator: Any = SimpleNamespace(deepspeed_plugin=plugin)
    _prepare_deepspeed(accelerator, small("", Path(), optim__accumulate=3, optim__max_grad_norm=0.5))
    assert plugin.deepspeed_config == {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
    }
    with pytest.raises(CommandError, match=r"optim\.ema: not with DeepSpeed"):
        _prepare_deepspeed(accelerator, small("", Path(), optim__ema=0.5))


@pytest.mark.parametrize("size", ("CP", "SP", "TP"))
def test_tokens_of_a_sample_stay_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: str) -> None:
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{size}_SIZE", "2")
    with pytest.raises(
        CommandError, match=r"^accelerate launch: \w+ parallelism is not supported: a token's"
    ):
        make_accelerator(small("", tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    (
        ("mixed_precision", "fp16", r"run\.precision"),
        ("gradient_accumulation_steps", "4", r"optim\.accumulate"),
        ("dynamo_backend", "INDUCTOR", r"model\.compile"),
    ),
)
def test_settings_of_the_launcher_that_have_no_effect_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, ours: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name.upper()}", value)
    with pytest.raises(CommandError, match=f"accelerate launch: {name}={value} has no effect; set {ours}"):
        make_accelerator(small("", tmp_path), tmp_path)
