"""Accelerate as this trainer uses it, and tensors that are sharded over processes.

Plain, DDP and FSDP2 models are treated alike: a parameter is a tensor, or a `DTensor` of which each process
holds a part. DeepSpeed writes and reads its optimizer in its own files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from talkforge.schemas.errors import CommandError, ModelError, RunError, TalkforgeError, one_line
from talkforge.training.config import TrainConfig
from talkforge.training.run.tensor_files import Deferred, State, TensorFile, listed

PATIENCE = timedelta(minutes=60)
"""Processes wait this long for each other, because one of them writes checkpoints."""

DEEPSPEED_TAG = "optimizer"

_SCALE = "_scale"
"""Added to the name of a moment of 8 bits: the scales of its blocks."""


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Accelerate with this run's precision, accumulation, trackers and kind of parallelism.

    The kind comes from `accelerate launch`, see configs/accelerate.

    Args:
        config: of the run.
        out: the run's folder.

    Raises:
        CommandError: this machine, or what it was launched with, does not fit the configuration.
    """
    _refuse_settings_of_the_launcher(config)
    logs = out / "logs"
    try:
        trackers = filter_trackers(list(config.run.trackers), str(logs))
        if missing := {*config.run.trackers} - {"all"} - {str(tracker) for tracker in trackers}:
            raise CommandError(f"run.trackers: {', '.join(sorted(missing))}: its package is not installed")
        accelerator = Accelerator(
            # Types are explicit, see `training.wan.precision`. DeepSpeed's engine must know them.
            mixed_precision=config.run.precision if _launched_with_deepspeed() else "no",
            # Without a data loader of its own, Accelerate must not look for the end of one.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.optim.accumulate, sync_with_dataloader=False
            ),
            log_with=trackers or None,
            project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(logs)),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    except (ValueError, ImportError, NotImplementedError) as error:
        raise CommandError(f"accelerate: {one_line(error)}") from None
    if accelerator.distributed_type == DistributedType.FSDP:
        _prepare_fsdp(accelerator, config)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        _prepare_deepspeed(accelerator, config)
    return accelerator


def _refuse_settings_of_the_launcher(config: TrainConfig) -> None:
    """Refuse settings of `accelerate launch` that this trainer does not use."""
    used = (
        ("mixed_precision", "run.precision", ("no", config.run.precision)),
        ("gradient_accumulation_steps", "optim.accumulate", ("1", "auto", str(config.optim.accumulate))),
        ("dynamo_backend", "model.compile", ("no",)),
    )
    for name, ours, fine in used:
        value = os.environ.get(f"ACCELERATE_{name.upper()}", fine[0])
        if value.lower() not in fine:
            raise CommandError(f"accelerate launch: {name}={value} has no effect; set {ours}")
    for size, what in (("CP_SIZE", "context"), ("SP_SIZE", "sequence"), ("TP_SIZE", "tensor")):
        if os.environ.get(f"PARALLELISM_CONFIG_{size}", "1") != "1":
            raise CommandError(
                f"accelerate launch: {what} parallelism is not supported: a token's audio window is known by"
                " its place among all tokens of its sample"
            )


def _launched_with_deepspeed() -> bool:
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def _prepare_fsdp(accelerator: Accelerator, config: TrainConfig) -> None:
    plugin = accelerator.state.fsdp_plugin
    if not accelerator.is_fsdp2:
        raise CommandError("accelerate: expected fsdp_version 2, found 1; see configs/accelerate/fsdp2.yaml")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise CommandError(
            "accelerate: fsdp_offload_params is not supported; see configs/accelerate/fsdp2.yaml"
        )
    if plugin.activation_checkpointing:
        raise CommandError(
            "accelerate: fsdp_activation_checkpointing is not supported; set model.gradient_checkpointing"
        )
    # Weights and inputs keep their types, as without FSDP: bf16 timesteps would be too coarse.
    # With all of Wan in float32, gathering it in bf16 halves what is sent.
    halved = config.model.trainable == "full" and config.run.precision == "bf16"
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if halved else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def _prepare_deepspeed(accelerator: Accelerator, config: TrainConfig) -> None:
    if config.optim.ema is not None:
        raise CommandError("optim.ema: not with DeepSpeed, which shards the weights itself")
    accelerator.deepspeed_plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=config.data.batch_size,
        gradient_accumulation_steps=config.optim.accumulate,
        gradient_clipping=config.optim.max_grad_norm,
    )


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed holds model and optimizer."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a forward pass needs every process."""
    return accelerator.is_fsdp2 or (
        is_deepspeed(accelerator) and int(accelerator.deepspeed_plugin.zero_stage) == 3
    )


def all_gather_messages(accelerator: Accelerator, message: str) -> list[str]:
    """The messages of all processes that have one. Every process gets the same list.

    All processes have to call this at the same point. A process that fails must let the others know before
    it leaves, because they would wait for it.

    Args:
        accelerator: of this process.
        message: of this process, empty where it has none.
    """
    if accelerator.num_processes == 1:
        return [message] if message else []
    has_message = torch.tensor(int(bool(message)), device=accelerator.device)
    if not int(accelerator.reduce(has_message, "sum")):
        return []
    return [found for found in gather_object([message]) if found]


@contextmanager
def error_barrier(accelerator: Accelerator) -> Iterator[None]:
    """An error inside the block on one process is raised on all of them.

    All processes have to enter it. Inside they must not wait for one that may have failed.

    Args:
        accelerator: of this process.

    Raises:
        TalkforgeError: the error of this process.
        RunError: the error of another process.
    """
    failed = None
    try:
        yield
    except TalkforgeError as error:
        failed = error
    messages = all_gather_messages(accelerator, str(failed or ""))
    if failed or messages:
        raise failed or RunError(messages[0])


# --------------------------------------------------------------------------- tensors


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes. Every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor sharded and placed as `parameter` is. Every process has to call this."""
    if isinstance(parameter, DTensor):
        on_device = tensor.to(parameter.device)
        return distribute_tensor(on_device, parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)


def gathered(accelerator: Accelerator, tensors: Mapping[str, Tensor]) -> Deferred:
    """Whole tensors on the CPU of the main process, each gathered from all processes when it is taken.

    Every process has to take all of them: the main one as it writes them, the others by `Deferred.rest`.

    Args:
        accelerator: of this process.
        tensors: sharded tensors by name.
    """

    def make(tensor: Tensor) -> Tensor:
        full = whole(tensor.detach())
        return full.cpu() if accelerator.is_main_process else full

    return Deferred(tensors, make)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_state(accelerator: Accelerator, model: nn.Module) -> State | Deferred:
    """The trained weights, whole and float32, on the main process, see `gathered`.

    Args:
        accelerator: of this process.
        model: the unwrapped model.
    """
    parameters = trained_parameters(model)
    if not is_deepspeed(accelerator):
        return gathered(accelerator, parameters)
    from deepspeed.utils import safe_get_full_fp32_param  # type: ignore[import-not-found]

    found: State = {}
    for name, parameter in parameters.items():
        full = safe_get_full_fp32_param(parameter)
        if accelerator.is_main_process:
            found[name] = full.cpu()
    return found


def optimizer_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> Deferred:
    """Moments of the trained parameters as `<name>.<moment>`, whole, on the main process, see `gathered`.

    Moments of 8 bits are their codes, and `<name>.<moment>_scale`.

    Args:
        accelerator: of this process.
        model: the unwrapped model.
        optimizer: its optimizer.
    """
    found: State = {}
    for name, parameter in trained_parameters(model).items():
        for moment, value in optimizer.state[parameter].items():
            if is_8_bit(value):
                found[f"{name}.{moment}"], found[f"{name}.{moment}{_SCALE}"] = value.codes, value.scale
            else:
                found[f"{name}.{moment}"] = value
    return gathered(accelerator, found)


def is_8_bit(moment: Tensor) -> bool:
    """Whether a moment is torchao's, of 8 bits and a scale for each block."""
    return type(moment).__name__ == "OptimState8bit"


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, file: TensorFile) -> None:
    """Load moments that `optimizer_state` gave. Each process reads its part.

    Args:
        model: the unwrapped model.
        optimizer: its optimizer.
        file: moments as `<name>.<moment>`.

    Raises:
        ModelError: they are of other parameters.
    """
    moments: dict[str, list[str]] = {}
    for key in file.names:
        parameter_name, _, moment = key.rpartition(".")
        moments.setdefault(parameter_name, []).append(moment)
    parameters = trained_parameters(model)
    if moments.keys() != parameters.keys():
        others = sorted(moments.keys() ^ parameters.keys())
        raise ModelError(
            f"{file.path}: expected moments of the trained parameters, found others for {listed(others)}"
        )
    for name, parameter in parameters.items():
        state = optimizer.state[parameter] = {}
        for moment in moments[name]:
            key = f"{name}.{moment}"
            if f"{key}{_SCALE}" in file.names:
                scale = file.whole(f"{key}{_SCALE}")
                state[moment] = _of_8_bits(optimizer, moment, file.whole(key), scale, parameter)
            elif not moment.endswith(_SCALE):
                state[moment] = part_of(file, key, parameter)


def part_of(file: TensorFile, name: str, parameter: Tensor) -> Tensor:
    """A tensor of a file as `parameter` is sharded and placed. Nothing but this process's part is read.

    Tensors of another shape, such as numbers of steps, are read whole.

    Args:
        file: with whole tensors.
        name: of the tensor.
        parameter: of this process.
    """
    if file.shape(name) != tuple(parameter.shape):
        return file.whole(name)
    if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
        return placed_like(file.whole(name), parameter)
    local, (first, *_) = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return DTensor.from_local(
        file.rows(name, first, first + local[0]).to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _of_8_bits(
    optimizer: torch.optim.Optimizer, moment: str, codes: Tensor, scale: Tensor, parameter: nn.Parameter
) -> Tensor:
    """A moment of 8 bits as torchao's optimizer keeps it."""
    own: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper has the optimizer inside
    found: Any = own._new_buffer(parameter, moment == "exp_avg")
    found.codes.copy_(codes)
    found.scale.copy_(scale)
    return cast(Tensor, found)


def save_deepspeed(accelerator: Accelerator, engine: Any, folder: Path) -> None:
    """Have every process of DeepSpeed write its part of the optimizer.

    Args:
        accelerator: of this process.
        engine: DeepSpeed's engine.
        folder: on a disk that all processes share.
    """
    engine.save_checkpoint(str(folder), tag=DEEPSPEED_TAG, exclude_frozen_parameters=True)
    accelerator.wait_for_everyone()


def load_deepspeed(engine: Any, folder: Path) -> None:
    """Have DeepSpeed read weights and optimizer that it wrote.

    Args:
        engine: DeepSpeed's engine.
        folder: as `save_deepspeed` wrote it.

    Raises:
        CommandError: it wrote none there.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder}: not found: the run was trained without DeepSpeed, resume it without")
    engine.load_checkpoint(str(folder), tag=DEEPSPEED_TAG, load_module_strict=False)
