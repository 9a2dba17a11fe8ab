"""A run's checkpoints.

    RUN/checkpoints/step-00001000/
        trained.safetensors      what is trained, by its name in the model, float32
        ema.safetensors          its moving average, where one is kept
        codec.safetensors        statistics of the linear codec, where it is used
        optimizer.safetensors    AdamW's moments, as `<name in the model>.<moment>`
        deepspeed/               the optimizer in DeepSpeed's own files, in its place
        state.json               step, place in the data, info of the data set
        config.yaml              the run's whole configuration

A folder without a dot is complete: it is written under another name, flushed, and moved. The files are
the same however many processes there were, and however the model was spread over them.
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
from talkforge.training.run.tensor_files import WRITE_ERRORS, State, fill, flush, read_tensors, write_tensors
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
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        interval: the loader's interval; consumed: batches of it that each rank has used.
        world: processes that shared the run.
        cached: cached latents were read.
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
        """What was trained."""
        return _read(self.folder / TRAINED)

    def ema(self) -> State | None:
        """The moving average; None where none was kept."""
        path = self.folder / EMA_FILE
        return _read(path) if path.exists() else None

    def best(self) -> State:
        """What to go on with elsewhere: the moving average if there is one, else what was trained."""
        return self.ema() or self.trained()

    def optimizer(self) -> State:
        """Moments of the optimizer."""
        return _read(self.folder / OPTIMIZER)

    def codec(self) -> LinearCodec | None:
        """The linear codec with its statistics; None where the run uses another."""
        path = self.folder / CODEC
        return LinearCodec(read_tensors(path)) if path.exists() else None


def _read(path: Path) -> State:
    """Tensors of a checkpoint's file under the names that the model uses now."""
    return {
        _PREFIX + name.removeprefix(_OLD_PREFIX) if name.startswith(_OLD_PREFIX) else name: tensor
        for name, tensor in read_tensors(path).items()
    }


def save(
    run: Path,
    progress: TrainProgress,
    config: TrainConfig,
    *,
    trained: State,
    optimizer: State | Path,
    ema: State | None,
    codec: LinearCodec | None,
    keep: int,
) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the last `keep`; returns its folder.

    Args:
        optimizer: its moments, or a folder of DeepSpeed's beside the checkpoints, which is moved in.

    Raises:
        RunError: it cannot be written (the disk is full, say); what was there before stays.
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
    """Remove what an earlier process left unfinished."""
    for path in root.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that half of one never goes by its name."""
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


def find(place: Path) -> Path:
    """The checkpoint that a run folder (its last) or a checkpoint's own folder stands for.

    Raises:
        CommandError: there is none.
    """
    if (place / "state.json").is_file():
        return place
    found = steps(place)
    if not found:
        raise CommandError(f"{place}: expected a run or a checkpoint, found no {FOLDER}/step-*")
    return found[-1][1]


def read(folder: Path) -> Checkpoint:
    """A checkpoint of this program.

    Raises:
        ModelError: it is damaged; names the file.
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
    """Put what was trained into a model of the same shape.

    Args:
        name: of the file, for messages.
        adapters_suffice: a model that trains more than its adapters takes weights of these alone, too;
            the rest of it stays as it is.

    Raises:
        ModelError: a key is missing, unexpected or of another shape; lists them, and changes nothing.
    """
    expected = {key: value for key, value in model.named_parameters() if value.requires_grad}
    adapters = {key for key, _ in adapter_parameters(model)}
    if adapters_suffice and state.keys() <= adapters:
        expected = {key: value for key, value in expected.items() if key in adapters}
    fill(expected, state, name)
