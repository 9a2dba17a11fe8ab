"""The trainer: `accelerate launch -m talkforge.training.train --config tiny-stage1`.

Both stages run the same loop with different configurations. Everything random is a function of (seed, step,
process), and each checkpoint begins a new interval of the data, so that a run that was stopped and resumed is
the same as one that was not.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from talkforge.display import Display, plain_console
from talkforge.schemas import extras
from talkforge.schemas.config import flatten
from talkforge.schemas.errors import CommandError, MissingExtraError, RunError, TalkforgeError, one_line
from talkforge.schemas.units import LATENT_CHANNELS

if __name__ == "__main__":  # before torch is imported, so that its absence is one line
    try:
        extras.require("train", "talkforge.training.train")
    except MissingExtraError as missing:
        sys.exit(f"talkforge: {missing}")

import torch
from accelerate import Accelerator
from rich.console import Console

from talkforge.training.config import TrainConfig, check, load_train_config
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.latent_cache import usable
from talkforge.training.data.loader import SpanLoader
from talkforge.training.data.shards import dataset_info, shard_list
from talkforge.training.generate.preview import preview
from talkforge.training.run import checkpoint, codecs, folder
from talkforge.training.run.checkpoint import Checkpoint, TrainProgress
from talkforge.training.run.loop import Loop, Result
from talkforge.training.run.parallel import all_gather_messages, error_barrier, make_accelerator
from talkforge.training.run.progress import Report
from talkforge.training.run.published import load_published
from talkforge.training.run.update import TrainState
from talkforge.training.wan.base import takes_condition
from talkforge.training.wan.codec import load_codec, training_dtype
from talkforge.training.wan.encoders import Encoders, load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build

log = logging.getLogger("talkforge.training.train")  # its name, too, where this is the main module

PAPER_GPUS = 64
"""Source: paper, training details."""


# --------------------------------------------------------------------------- commands


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m talkforge.training.train`, on every process of `accelerate launch`.

    Args:
        argv: the arguments. None means those of the process.

    Returns:
        The exit code: 0 finished, 1 the run could not go on, 2 a bad command, 130 interrupted. After 130 the
        same command resumes.
    """
    parser = argparse.ArgumentParser(
        prog="talkforge.training.train", description="Train FantasyTalking on shards."
    )
    parser.add_argument("--config", metavar="NAME|FILE", help="Preset, such as tiny-stage1, or a YAML file.")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.KEY=VALUE",
        help="Overrides one value of the configuration.",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=os.environ.get("TALKFORGE_LOG", "WARNING").upper(), format="%(message)s")
    try:
        code = run_train(options.config, options.settings)
    except KeyboardInterrupt:
        code = 130
    except TalkforgeError as error:
        code = 2 if isinstance(error, CommandError) else 1
        _complain(str(error))
    if code == 130:
        _complain("interrupted; the same command goes on from here")
    return code


def run_train(
    config_name: str | Path | None, settings: Sequence[str] = (), console: Console | None = None
) -> int:
    """Train with a configuration (preset or file) and `section.key=value` settings.

    The first SIGINT or SIGTERM lets the step end and saves. A second SIGINT ends the run at once.

    Args:
        config_name: name of a preset, or path of a YAML file. None means the defaults.
        settings: each overrides one value.
        console: where progress and messages go. None means stderr. A quiet one gets nothing, and warnings
            go to stderr.

    Returns:
        0, or 130 where interrupted.

    Raises:
        TalkforgeError: as `train`, or the configuration does not fit.
    """
    config = load_train_config(config_name, tuple(settings))
    console = console or plain_console(stderr=True)
    with _logging_to(console), _stop_signals() as stopped, Display(console) as display:
        result = train(config, stop=stopped, show=lambda report: display.show(report.progress()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if _rank() == 0 and result.checkpoint:
        console.print(f"step {result.step}: {result.checkpoint}", soft_wrap=True, highlight=False)
    return 0 if result.finished else 130


def train(
    config: TrainConfig,
    *,
    stop: Callable[[], bool] = lambda: False,
    show: Callable[[Report], None] = lambda _: None,
) -> Result:
    """Train until `config.run.steps`, or until `stop` returns True. Resumes from the run's last checkpoint.

    Args:
        config: of the run.
        stop: called before every batch. Where it returns True, the steps so far are saved.
        show: called with a report every `config.run.log_every` steps, on the main process.

    Raises:
        CommandError: the configuration does not fit itself, the data, the run folder or the machine.
        ModelError, DatasetError: weights or shards are not what they should be.
        RunError: the loss is not finite, memory ran out, or a checkpoint cannot be written.
    """
    check(config)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    accelerator = make_accelerator(config, Path(config.run.out))
    try:
        loop, result = _prepared(config, accelerator, stop, show)
        loop.run()
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory on {accelerator.device}: {one_line(error, 150)}: lower "
            "data.batch_size, set model.gradient_checkpointing, or use more devices; see docs/training.md"
        ) from None
    except torch._dynamo.exc.TorchDynamoException as error:
        raise RunError(f"model.compile: {one_line(error, 300)}") from None
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    return result


# --------------------------------------------------------------------------- before the first step


def _prepared(
    config: TrainConfig, accelerator: Accelerator, stop: Callable[[], bool], show: Callable[[Report], None]
) -> tuple[Loop, Result]:
    """The loop, ready to run. Errors are raised here, the cheapest checks first, and on all processes."""
    out, world = Path(config.run.out), accelerator.num_processes
    with error_barrier(accelerator):
        config = folder.pinned(out, config)
    if len({*all_gather_messages(accelerator, f"snapshot {config.data.snapshot}")}) > 1:
        raise CommandError("the data set got a new snapshot while the processes began; start them again")
    with error_barrier(accelerator):
        info, cached = _data(config)
        fresh = TrainProgress(0, 0, 0, world, cached, info)
        resumed = folder.resumable(out, config, fresh)
        progress = folder.regrouped(resumed.progress, world) if resumed else fresh
        loader = SpanLoader(
            config.data,
            info,
            seed=config.run.seed,
            rank=accelerator.process_index,
            world=world,
            cached=cached,
            faces=config.loss.face_weight > 0,
        )
        log.info("%s", global_batch(config, world))
        if accelerator.is_main_process:
            folder.describe(out, config, progress)
        model = build(config, info, dtype=_frozen_dtype(config.run.precision))
        source = _load(model, config, resumed)
        encoders = _encoders(config, model, info, cached, source, accelerator)
    if config.run.trackers:
        accelerator.init_trackers("talkforge", config={k: str(v) for k, v in flatten(config).items()})
    state = TrainState(accelerator, model, encoders, config, resumed)
    result = Result(progress.step, checkpoint=resumed.folder if resumed else None)
    return Loop(accelerator, state, loader, config, progress, result, stop, show, preview), result


def global_batch(config: TrainConfig, processes: int) -> str:
    """Samples of an optimizer step over all processes, beside those of the paper."""
    each, times = config.data.batch_size, config.optim.accumulate
    return (
        f"global batch {processes * each * times}: {processes} processes x {each} samples x {times} batches"
        f" (the paper trained on {PAPER_GPUS} GPUs, and does not say its batch: at least {PAPER_GPUS})"
    )


def _data(config: TrainConfig) -> tuple[DatasetInfo, bool]:
    """Description of the data set, and whether cached latents are used."""
    shards = shard_list(config.data.shards, config.data.snapshot)
    info = dataset_info(shards, config.data.shards)
    cached = usable(shards, config, takes_condition(config.model.base))
    log.info("%d samples; %s", info.num_samples, "cached latents" if cached else "frames, encoded now")
    if config.adapters.face and not info.identity_dim:
        log.warning("adapters.face: no sample has an identity, so there is no face attention")
    return info, cached


def _frozen_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _load(model: TalkingWan, config: TrainConfig, resumed: Checkpoint | None) -> Checkpoint | None:
    """Load trained weights of this run, or those of `run.init_from`. Returns the checkpoint they are from."""
    if resumed:
        log.info("resumed at step %d", resumed.progress.step)
        checkpoint.load_trained(model, resumed.trained(), str(resumed.folder))
        return resumed
    if not config.run.init_from:
        return None
    path = Path(config.run.init_from)
    log.info("starting from %s", path)
    if path.is_file():
        load_published(model, path)
        return None
    found = checkpoint.read(checkpoint.find(path))
    checkpoint.load_trained(model, found.best(), str(found.folder), adapters_suffice=True)
    return found


def _encoders(
    config: TrainConfig,
    model: TalkingWan,
    info: DatasetInfo,
    cached: bool,
    source: Checkpoint | None,
    accelerator: Accelerator,
) -> Encoders:
    """Encoders of frames, prompts and reference images, but for those that cached latents replace.

    With cached latents, those of prompts and reference images are for validation alone, and wait in main
    memory.
    """
    if cached and not config.run.validate_every:
        config = config.model_copy(
            update={"codec": config.codec.model_copy(update={"text": "none", "image": "none"})}
        )
    device = accelerator.device
    encoders = load_encoders(
        config,
        model.transformer.config.text_dim,
        device,
        codec=load_codec(config, training_dtype(config, device)),
        takes_condition=model.transformer.config.in_channels > LATENT_CHANNELS,
        waiting=cached,
    )
    if config.codec.kind == "wan":
        return encoders
    before = source.codec() if source else None
    codec = codecs.fitted(config, info, before, device, main=accelerator.is_main_process)
    return replace(encoders, codec=codec.to(device))


# --------------------------------------------------------------------------- signals and messages


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM has come since the block began."""
    came: list[int] = []

    def take(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)
        # Loader processes may get the signal as well. Their end must not interrupt the step.
        before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """What the trainer logs goes to the console: everything of the main process, warnings of all.

    A quiet console gets nothing, so warnings go to stderr then. Log files get all of it as well.
    """
    target = plain_console(stderr=True) if console.quiet else console
    logger, root = logging.getLogger("talkforge.training"), logging.getLogger()

    class ToConsole(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            rank = f"process {_rank()}: " if _rank() else ""
            target.print(f"{rank}{record.getMessage()}", soft_wrap=True, highlight=False)

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return not record.name.startswith("talkforge.training")

    handler, level = ToConsole(), logger.level
    shown = logging.WARNING if _rank() or console.quiet else logging.INFO
    handler.setLevel(min(shown, root.getEffectiveLevel()))
    others = [other for other in root.handlers if type(other) is logging.StreamHandler]
    for other in others:  # they write to stderr as well
        other.addFilter(from_elsewhere)
    logger.addHandler(handler)
    if not logger.isEnabledFor(shown):
        logger.setLevel(shown)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        for other in others:
            other.removeFilter(from_elsewhere)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _complain(text: str) -> None:
    """Print one line on the main process. All processes fail at once."""
    if _rank() == 0:
        Console(stderr=True).print(f"talkforge: {text}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
