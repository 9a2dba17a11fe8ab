"""Weights on disk: a run's checkpoints, and the layouts in which FantasyTalking's weights circulate.

    RUN/checkpoints/step-00001000/
        trained.safetensors      what is trained, by its name in the model
        ema.safetensors          its moving average, where one is kept
        codec.safetensors        statistics of the linear codec, where it is used
        optimizer.pt             AdamW's state, read with weights_only=True
        state.json               step, place in the data, facts of the data set
        config.yaml              the run's whole configuration

A folder without a dot is complete: it is written under another name, flushed, and moved.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.errors import CommandError, ModelError, RunError
from training.batch import Facts
from training.codec import LinearCodec
from training.config import TrainConfig
from training.model import TalkingWan

FOLDER = "checkpoints"

_NAME = re.compile(r"step-(\d{8})")

_SHOWN = 6
"""Keys that an error lists of each kind; the rest are counted."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        chapter: the loader's chapter; consumed: batches of it that each rank has used.
        world: processes that shared the run.
        facts: of the data set it was trained on.
    """

    step: int
    chapter: int
    consumed: int
    world: int
    facts: Facts


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it is read."""

    folder: Path
    progress: Progress
    config: TrainConfig

    def trained(self) -> State:
        """What was trained."""
        return read_tensors(self.folder / "trained.safetensors")

    def averaged(self) -> State | None:
        """The moving average; None where none was kept."""
        path = self.folder / "ema.safetensors"
        return read_tensors(path) if path.exists() else None

    def optimizer(self) -> dict[str, Any]:
        """State of the optimizer."""
        return _unpickled(self.folder / "optimizer.pt")

    def codec(self) -> LinearCodec | None:
        """The linear codec with its statistics; None where the run uses another."""
        path = self.folder / "codec.safetensors"
        return LinearCodec(read_tensors(path)) if path.exists() else None


# --------------------------------------------------------------------------- a run's own


def save(
    run: Path,
    progress: Progress,
    config: TrainConfig,
    *,
    trained: State,
    optimizer: Mapping[str, Any],
    averaged: State | None,
    codec: LinearCodec | None,
    keep: int,
) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the last `keep`; returns its folder.

    Raises:
        RunError: it cannot be written (the disk is full, say); what was there before stays.
    """
    root = run / FOLDER
    target, part = root / f"step-{progress.step:08d}", root / f".step-{progress.step:08d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write_tensors(part / "trained.safetensors", trained)
        if averaged is not None:
            _write_tensors(part / "ema.safetensors", averaged)
        if codec is not None:
            _write_tensors(part / "codec.safetensors", codec.state())
        torch.save(dict(optimizer), part / "optimizer.pt")
        (part / "state.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        (part / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        for path in part.iterdir():
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        _flush(root)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"checkpoint {target}: cannot be written: {_line(error)}") from None
    for _, old in steps(run)[:-keep]:
        shutil.rmtree(old)
    return target


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
        progress = Progress(**{**data, "facts": Facts(**data["facts"])})
        path = folder / "config.yaml"
        config = TrainConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ModelError(f"checkpoint {path}: cannot be read: {_line(error)}") from None
    return Checkpoint(folder, progress, config)


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file that `--config` takes."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def load_trained(model: TalkingWan, state: State, name: str) -> None:
    """Put what was trained into a model of the same shape.

    Raises:
        ModelError: a key is missing, unexpected or of another shape; lists them.
    """
    expected = {key: value for key, value in model.named_parameters() if value.requires_grad}
    _fill(expected, state, name)


# --------------------------------------------------------------------------- published layouts


def load_published(model: TalkingWan, path: Path) -> None:
    """Put published audio weights into a model: projection, and keys and values of every block.

    Three layouts circulate: a torch file with `proj_model` and `audio_processor`; safetensors with these
    as prefixes; and safetensors (or a torch file) without `.processor` in its names.

    Raises:
        ModelError: not such a file, or a key is missing, unexpected or of another shape; lists them.
    """
    found = read_tensors(path) if path.suffix == ".safetensors" else _flat(path, _unpickled(path))
    ours = {_our_name(name): tensor for name, tensor in found.items()}
    _fill(_audio_parameters(model), ours, str(path))


def export_published(model: TalkingWan, path: Path) -> None:
    """Write the audio weights in the first published layout; as safetensors with prefixes if so named.

    Raises:
        RunError: it cannot be written.
    """
    parts: dict[str, State] = {"proj_model": {}, "audio_processor": {}}
    for name, parameter in _audio_parameters(model).items():
        group, published = _published_name(name)
        parts[group][published] = parameter.detach().cpu().contiguous()
    part = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".safetensors":
            _write_tensors(part, {f"{group}.{k}": v for group, s in parts.items() for k, v in s.items()})
        else:
            torch.save(parts, part)
        _flush(part)
        part.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {_line(error)}") from None


def _audio_parameters(model: TalkingWan) -> dict[str, Tensor]:
    wanted = re.compile(r"audio_proj\..*|transformer\.blocks\.\d+\.attn2\.processor\.[kv]_proj\.weight")
    return {name: value for name, value in model.named_parameters() if wanted.fullmatch(name)}


def _our_name(published: str) -> str:
    name = published.removeprefix("proj_model.").removeprefix("audio_processor.")
    if re.fullmatch(r"(proj|norm)\.(weight|bias)", name):
        return f"audio_proj.{name}"
    if match := re.fullmatch(r"blocks\.(\d+)\.cross_attn\.(?:processor\.)?([kv]_proj\.weight)", name):
        return f"transformer.blocks.{match[1]}.attn2.processor.{match[2]}"
    return published


def _published_name(ours: str) -> tuple[str, str]:
    if ours.startswith("audio_proj."):
        return "proj_model", ours.removeprefix("audio_proj.")
    name = ours.removeprefix("transformer.").replace(".attn2.processor.", ".cross_attn.processor.")
    return "audio_processor", name


def _flat(path: Path, found: Mapping[str, Any]) -> State:
    state: State = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            state |= {f"{name}.{key}": tensor for key, tensor in value.items()}
        else:
            state[name] = value
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: expected tensors under proj_model and audio_processor, found other things")
    return state


# --------------------------------------------------------------------------- files


def read_tensors(path: Path) -> State:
    """Every tensor of a safetensors file.

    Raises:
        ModelError: it is not there, or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: expected safetensors, found {_line(error)}") from None


def _write_tensors(path: Path, state: State) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt", "made_by": "talkforge"})


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises almost anything
        raise ModelError(f"{path}: expected a torch file of tensors, found {_line(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found


def _fill(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Copy every tensor into its parameter; all must be there, no other, of the same shapes."""
    problems = [
        f"{what} {_listed(keys)}"
        for what, keys in (
            ("missing", sorted(expected.keys() - found.keys())),
            ("unexpected", sorted(found.keys() - expected.keys())),
            (
                "of another shape",
                [
                    f"{key} (expected {tuple(expected[key].shape)}, found {tuple(found[key].shape)})"
                    for key in sorted(expected.keys() & found.keys())
                    if expected[key].shape != found[key].shape
                ],
            ),
        )
        if keys
    ]
    if problems:
        raise ModelError(f"{name}: does not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(found[key])


def _listed(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
