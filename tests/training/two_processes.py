"""What `test_parallel` has two processes do.

Each process writes its results to FOLDER/report-RANK.json. The test compares those of both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from talkforge.schemas.errors import DatasetError, RunError
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import Batch
from talkforge.training.data.loader import probe
from talkforge.training.generate import preview
from talkforge.training.generate.of_dataset import fitting_samples
from talkforge.training.generate.pipeline import GenerationPipeline
from talkforge.training.run import checkpoint, fit, loop, parallel
from talkforge.training.run.tensor_files import TensorFile
from talkforge.training.run.update import TrainState
from talkforge.training.train import train
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import Encoders, NoText, load_encoders
from talkforge.training.wan.talking_wan import build
from tests.training.batches import a_batch, some_info
from tests.training.runs import Stop, small

BATCHES = [a_batch(seed=seed) for seed in range(4)]
"""Of a step of all processes: two each, or four of one process."""


def gradients(config: TrainConfig, accelerator: Accelerator, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """What the optimizer is given in step 5."""
    model = build(config, some_info())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # so that no gradient is zero
    encoders = Encoders(LinearCodec(), NoText(1, 8, torch.device("cpu")), None)
    state = TrainState(accelerator, model, encoders, config)
    found: dict[str, torch.Tensor] = {}

    def step(*_: Any, **__: Any) -> None:
        for name, parameter in state.model.named_parameters():
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()

    real, torch.optim.AdamW.step = torch.optim.AdamW.step, step  # type: ignore[method-assign]
    try:
        left = iter(batches)
        _, norm = state.step(5, lambda: next(left))
    finally:
        torch.optim.AdamW.step = real  # type: ignore[method-assign]
    found["norm"] = torch.tensor(norm)
    return found


def gradient_config(accumulate: int) -> TrainConfig:
    return small(
        "", Path(), run__stage="frame", flow__timesteps="stratified", optim__max_grad_norm=1e9,
        optim__accumulate=accumulate, dropout__audio=0.5, dropout__image=0.5,
    )  # fmt: skip


def previewed(shards: str, folder: Path, accelerator: Accelerator) -> list[str]:
    """Names of the validation samples that an untrained model makes."""
    config = small(shards, folder, run__validation_samples=3, run__validation_measures=False)
    info = probe(shards)
    torch.manual_seed(0)
    model = build(config, info)
    encoders = load_encoders(config, model.transformer.config.text_dim, torch.device("cpu"))
    found = preview.preview(model, encoders, config, info, folder / "samples", accelerator)
    return [path.name for path in found.files]


def sample_counted(made: list[int]) -> Callable[..., Any]:
    """A pipeline's sampling that notes each sample."""

    def sample(*arguments: Any) -> Any:
        made.append(1)
        return real_sample(*arguments)

    return sample


real_sample = GenerationPipeline.sample


def no_samples(*_: Any) -> Iterator[Any]:
    """Samples of a process whose disk fails."""
    raise DatasetError("the disk is gone")
    yield


def afresh() -> None:
    """Lets the next run of this process be of another kind."""
    AcceleratorState._reset_state()


def as_fsdp2(config: TrainConfig, out: Path) -> Accelerator:
    """Accelerate shards on GPUs alone; its own code runs here on processors."""
    accelerator = real_make_accelerator(config, out)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["WanTransformerBlock"],
        cpu_ram_efficient_loading=False,
    )
    parallel._prepare_fsdp(accelerator, config)
    return accelerator


real_make_accelerator = parallel.make_accelerator


def raised(run: Callable[[], Any]) -> str:
    """Kind and text of the error that this process gets."""
    try:
        run()
    except (DatasetError, RunError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def broken_on_one(self: loop.SpanLoader, interval: int, skip: int = 0) -> Iterator[Batch]:
    """A loader that has no batch for the second process."""
    if os.environ["RANK"] == "1":
        raise DatasetError("the disk is gone")
    yield from real_batches(self, interval, skip)


real_batches = loop.SpanLoader.batches


def main(shards: str, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}

    def config(name: str, **changes: Any) -> TrainConfig:
        return small(shards, folder / name, optim__ema=0.5, run__save_every=3, run__steps=5, **changes)

    accelerator = real_make_accelerator(gradient_config(2), folder)
    found = gradients(gradient_config(2), accelerator, BATCHES[rank::2])
    if rank == 0:
        save_file(found, folder / "gradients.safetensors")

    made: list[int] = []
    GenerationPipeline.sample = sample_counted(made)  # type: ignore[method-assign]
    results["samples"] = previewed(shards, folder / "previewed", accelerator)
    results["made"] = len(made)
    real_samples, preview.fitting_samples = preview.fitting_samples, no_samples if rank else fitting_samples
    results["no samples"] = raised(lambda: previewed(shards, folder / "not-previewed", accelerator))
    preview.fitting_samples = real_samples
    afresh()

    straight = train(config("straight"))
    results["losses"] = [report.loss for report in straight.history]
    results["world"] = straight.history[0].samples_per_s / straight.history[0].samples_per_s_rank
    first = train(config("stopped"), stop=Stop(2) if rank == 1 else lambda: False)
    results["stopped"] = [first.step, first.finished]
    results["resumed"] = [report.loss for report in first.history + train(config("stopped")).history]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    real_write, checkpoint.write_tensors = checkpoint.write_tensors, full
    results["full"] = raised(lambda: train(config("full")))
    checkpoint.write_tensors = real_write
    results["nan"] = raised(lambda: train(config("nan", optim__lr=1e30)))
    loop.SpanLoader.batches = broken_on_one  # type: ignore[method-assign]
    results["unprepared"] = raised(lambda: train(config("unprepared")))
    longer = config("straight").model_copy(
        update={"run": config("straight").run.model_copy(update={"steps": 9})}
    )
    results["broken"] = raised(lambda: train(longer))
    loop.SpanLoader.batches = real_batches  # type: ignore[method-assign]

    precise = {"run__precision": "bf16", "model__trainable": "adapters", "optim__lr": 1e-3}
    afresh()
    results["half"] = [report.loss for report in train(config("half", **precise)).history]

    recomputed = {**precise, "model__gradient_checkpointing": True}
    for what in ("fp8", "swap_blocks"):  # of the base: in 8 bits, and waiting in main memory
        afresh()
        one = {f"model__{what}": True if what == "fp8" else 1}
        results[what] = [report.loss for report in train(config(what, **recomputed, **one)).history]

    afresh()
    tokens: list[int] = []
    real_loss = TrainState._loss

    def loss(self: TrainState, step: int, micro: int, batch: Batch) -> Any:
        tokens.append(batch.lips_BFHW.numel())
        return real_loss(self, step, micro, batch)

    TrainState._loss = loss  # type: ignore[method-assign]
    mixed = {"data__shorter_spans": [5], "data__batch_size": 1, "optim__accumulate": 2}
    several = str(folder / "mixed" / "shards" / "train-{000000..000001}.tar")

    def of_two_lengths(name: str) -> TrainConfig:
        return small(several, folder / name, run__steps=5, run__save_every=9, **mixed)

    whole = train(of_two_lengths("lengths"))
    results["mixed"] = [report.loss for report in whole.history]
    results["tokens"] = [*tokens]
    first = train(of_two_lengths("lengths-stopped"), stop=Stop(6) if rank == 1 else lambda: False)
    second = train(of_two_lengths("lengths-stopped"))
    results["mixed-stopped"] = first.step
    results["mixed-resumed"] = [report.loss for report in first.history + second.history]
    TrainState._loss = real_loss  # type: ignore[method-assign]

    sys.modules["talkforge.training.train"].make_accelerator = as_fsdp2  # type: ignore[attr-defined]
    parallel.is_sharded = lambda _: True  # Accelerate takes back what `as_fsdp2` says of a processor
    sharded: list[tuple[bool, bool]] = []
    real_init = TrainState.__init__

    def init(self: TrainState, *arguments: Any, **options: Any) -> None:
        real_init(self, *arguments, **options)
        blocks = self.model.transformer.blocks
        sharded.append((isinstance(blocks[0], FSDPModule), isinstance(next(blocks.parameters()), DTensor)))

    TrainState.__init__ = init  # type: ignore[method-assign]
    read: list[int] = []
    real_whole, real_rows = TensorFile.whole, TensorFile.rows

    def counted(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def reads(*arguments: Any) -> torch.Tensor:
            found = real(*arguments)
            read.append(found.numel())
            return found

        return reads

    TensorFile.whole, TensorFile.rows = counted(real_whole), counted(real_rows)  # type: ignore[method-assign]
    real_samples, preview.fitting_samples = preview.fitting_samples, no_samples if rank else fitting_samples
    afresh()
    unread = {"run__validate_every": 1, "run__validation_samples": 1, "run__validation_measures": False}
    results["fsdp-no samples"] = raised(lambda: train(config("fsdp-unread", **unread)))
    preview.fitting_samples = real_samples
    for name in ("fsdp", "fsdp-checkpointing"):
        for stop in (Stop(4), lambda: False):
            afresh()
            result = train(config(name, model__gradient_checkpointing=name != "fsdp"), stop=stop)
            results.setdefault(name, []).extend(report.loss for report in result.history)
    afresh()
    afresh()
    real_blocks, fit.compile_blocks = fit.compile_blocks, partial(fit.compile_blocks, backend="aot_eager")
    compiled = config("fsdp-compiled", model__compile=True, model__gradient_checkpointing=True)
    results["fsdp-compiled"] = [report.loss for report in train(compiled).history]
    fit.compile_blocks = real_blocks
    afresh()
    shown = {"run__validate_every": 5, "run__validation_samples": 1, "run__validation_measures": False}
    results["fsdp-half"] = [report.loss for report in train(config("fsdp-half", **precise, **shown)).history]
    results["sharded"], results["read"] = sharded, sum(read)
    (folder / f"report-{rank}.json").write_text(json.dumps(results))


def run(shards: str, folder: Path, rank: int, port: int) -> None:
    """One of the two processes, forked from that of the tests."""
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    main(shards, folder, rank)
