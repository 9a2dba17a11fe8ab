"""A run's checkpoints.

    RUN/checkpoints/step-00001000/
        trained.safetensors      what is trained, by its name in the model, float32
        ema.safetensors          EMA of these weights, where `optim.ema` is set
        codec.safetensors        the linear or the learned codec, where one is used
        optimizer.safetensors    AdamW's moments, as `<name in the model>.<moment>`
        deepspeed/               the optimizer in DeepSpeed's own files instead
        state.json               step, position in the data, info of the data set
        config.yaml              the run's whole configuration

A folder whose name does not begin with a dot is complete, because it is written under another name, flushed
and renamed. The files do not depend on the number of processes, nor on how the model was sharded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from talkforge.schemas import yaml_text
from talkforge.schemas.errors import CommandError, ModelError, RunError, one_line
from talkforge.training.config import TrainConfig
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.run.codecs import read_codec
from talkforge.training.run.tensor_files import (
    WRITE_ERRORS,
    State,
    TensorFile,
    fill,
    flush,
    read_tensors,
    write_tensors,
)
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters

FOLDER = "checkpoints"

TRAINED, EMA_FILE, CODEC, OPTIMIZER = (
    f"{name}.safetensors" for name in ("trained", "ema", "codec", "optimizer")
)

DEEPSPEED = "deepspeed"

_OLD_FIELDS = {"chapter": "interval", "facts": "info"}
"""Fields of `state.json` by their names in earlier versions."""

_OLD_PREFIX, _PREFIX = "audio_slots.", "window_positions."
"""The window's position embedding by its name in earlier versions, and now."""

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a run.

    Attributes:
        step: optimizer steps done.
        interval: the loader's checkpoint interval.
        consumed: batches of the interval that each rank has used.
        world: processes of the run.
        cached: whether cached latents were read.
        info: of the data set it was trained on.
    """

    step: int
    interval: int
    consumed: int
    world: int
    cached: bool
    info: DatasetInfo


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it is read."""

    folder: Path
    progress: TrainProgress
    config: TrainConfig

    def trained(self) -> State:
        """The trained weights."""
        return _read(self.folder / TRAINED)

    def ema(self) -> State | None:
        """EMA of the trained weights, or None where there is none."""
        path = self.folder / EMA_FILE
        return _read(path) if path.exists() else None

    def best(self) -> State:
        """Weights for inference or another run: the EMA if there is one, else the trained weights."""
        return self.ema() or self.trained()

    def optimizer(self) -> TensorFile:
        """Moments of the optimizer, of which every process reads its part."""
        return TensorFile(self.folder / OPTIMIZER, _current_name)

    def ema_file(self) -> TensorFile | None:
        """EMA of the trained weights likewise, or None where there is none."""
        path = self.folder / EMA_FILE
        return TensorFile(path, _current_name) if path.exists() else None

    def codec(self) -> LinearCodec | None:
        """The linear or learned codec, or None where the run uses another."""
        path = self.folder / CODEC
        return read_codec(path) if path.exists() else None


def _read(path: Path) -> State:
    """Tensors of a checkpoint's file under the names that the model uses now."""
    return {_current_name(name): tensor for name, tensor in read_tensors(path).items()}


def _current_name(name: str) -> str:
    return _PREFIX + name.removeprefix(_OLD_PREFIX) if name.startswith(_OLD_PREFIX) else name


def save(
    run: Path,
    progress: TrainProgress,
    config: TrainConfig,
    *,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | Path,
    ema: Mapping[str, Tensor] | None,
    codec: LinearCodec | None,
    keep: int,
) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the last ones.

    Args:
        run: the run's folder.
        progress: of the run.
        config: of the run.
        trained: weights that are trained, by name. They, the optimizer and the EMA are taken in this
            order, one tensor at a time.
        optimizer: moments of the optimizer, or DeepSpeed's folder beside the checkpoints, which is moved.
        ema: EMA of the weights, or None.
        codec: the linear or learned codec, or None where the run uses another.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: it cannot be written, for example because the disk is full. Earlier checkpoints stay.
    """
    root, target = run / FOLDER, folder_of(run, progress.step)
    part = root / f".{target.name}"
    try:
        _clear(root)
        part.mkdir(parents=True)
        if isinstance(optimizer, Path):
            optimizer.rename(part / DEEPSPEED)
        states = {
            TRAINED: trained,
            OPTIMIZER: None if isinstance(optimizer, Path) else optimizer,
            EMA_FILE: ema,
            CODEC: codec.state() if codec else None,
        }
        for name, state in states.items():
            if state is not None:
                write_tensors(part / name, state)
        (part / "state.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        (part / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        for path in part.iterdir():
            flush(path)
        if target.exists():
            _remove(target)
        part.rename(target)
        flush(root)
    except WRITE_ERRORS as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"checkpoint {target}: cannot be written: {one_line(error)}") from None
    for _, old in steps(run)[:-keep]:
        _remove(old)
    return target


def _clear(root: Path) -> None:
    """Remove unfinished checkpoints of an earlier process."""
    for path in root.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint. A half-removed one does not keep its name."""
    hidden = folder.with_name(f".{folder.name}.old")
    with suppress(OSError):  # what is left goes before the next checkpoint is written
        folder.rename(hidden)
        shutil.rmtree(hidden)


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / FOLDER / f"step-{step:08d}"


def steps(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of a run's complete checkpoints, ascending."""
    root = run / FOLDER
    found = [(match, path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def find(path: Path) -> Path:
    """Folder of the checkpoint.

    Args:
        path: a run's folder, which stands for its last checkpoint, or a checkpoint's folder.

    Raises:
        CommandError: there is none.
    """
    if (path / "state.json").is_file():
        return path
    found = steps(path)
    if not found:
        raise CommandError(f"{path}: expected a run or a checkpoint, found no {FOLDER}/step-*")
    return found[-1][1]


def read(folder: Path) -> Checkpoint:
    """A checkpoint of this version or an earlier one.

    Args:
        folder: of the checkpoint.

    Raises:
        ModelError: it is damaged. The message names the file.
    """
    path = folder / "state.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data = {_OLD_FIELDS.get(key, key): value for key, value in data.items()}
        progress = TrainProgress(**{**data, "info": DatasetInfo(**data["info"])})
        path = folder / "config.yaml"
        config = TrainConfig.model_validate(yaml_text.load(path.read_text(encoding="utf-8"))[0])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"checkpoint {path}: cannot be read: {one_line(error)}") from None
    return Checkpoint(folder, progress, config)


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file that `--config` takes."""
    return yaml_text.dump(config.model_dump(mode="json"))


def load_trained(
    model: TalkingWan, state: Mapping[str, Tensor], name: str, *, adapters_suffice: bool = False
) -> None:
    """Load trained weights into a model of the same shape.

    Args:
        model: its trained parameters are overwritten.
        state: weights by their names in the model.
        name: of the file, for messages.
        adapters_suffice: a model that trains more than its adapters accepts weights of the adapters alone.
            Its other weights stay as they are.

    Raises:
        ModelError: a key is missing, unexpected or of another shape. Nothing is changed then.
    """
    expected = {key: value for key, value in model.named_parameters() if value.requires_grad}
    adapters = {key for key, _ in adapter_parameters(model)}
    if adapters_suffice and state.keys() <= adapters:
        expected = {key: value for key, value in expected.items() if key in adapters}
    fill(expected, state, name)
