"""The layouts in which FantasyTalking's audio weights circulate.

    torch file               {"proj_model": {"proj.weight", "norm.weight", "norm.bias"},
                              "audio_processor": {"blocks.N.cross_attn.processor.{k,v}_proj.weight"}}
    safetensors, prefixed    the same names after `proj_model.` and `audio_processor.`
    safetensors, flat        `blocks.N.cross_attn.{k,v}_proj.weight`: no prefix, no `.processor`

All three are read, the first two are written. They have no names for face, motion and position embeddings.

Source: Fantasy-AMAP/fantasy-talking, and files made from its weights.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkforge.schemas import scratch
from talkforge.schemas.errors import ModelError
from talkforge.training.run.tensor_files import (
    WRITE_ERRORS,
    State,
    fill,
    flush,
    listed,
    read_pickled,
    read_tensors,
    write_tensors,
)
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters

log = logging.getLogger(__name__)

_OURS = re.compile(
    r"audio_proj\.(?P<projection>.*)|transformer\.(?P<block>blocks\.\d+)\.attn2\.processor\.(?P<kind>[kv])_proj\.weight"
)
_PROJECTION = re.compile(r"proj\.weight|norm\.(weight|bias)")
_BLOCK = re.compile(r"(blocks\.\d+)\.cross_attn\.(?:processor\.)?([kv]_proj\.weight)")


def load_published(model: TalkingWan, path: Path) -> None:
    """Load published audio weights into a model: projection, and keys and values of every block.

    A file of all added networks, which `talkforge export --as adapters` has written, is loaded whole.

    Args:
        model: its audio weights, or all its added networks, are overwritten.
        path: file in one of the three layouts, or of all added networks.

    Raises:
        ModelError: the file is damaged, or a key is missing, unexpected or of another shape.
    """
    found, adapters = read_published(path), dict(adapter_parameters(model))
    audio = audio_parameters(model)
    fill(adapters if found.keys() & (adapters.keys() - audio.keys()) else audio, found, str(path))


def read_published(path: Path) -> State:
    """Published audio weights by their names in `TalkingWan`.

    Args:
        path: file in one of the three layouts. No code in it is run.

    Raises:
        ModelError: the file is damaged, or has a weight under two names.
    """
    found = read_tensors(path) if path.suffix == ".safetensors" else _flat(path, read_pickled(path))
    return from_published(found, str(path))


def export_published(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write audio weights in the first published layout, or in the second if `path` ends in .safetensors.

    Args:
        weights: by their names in `TalkingWan`. Those that the layout has no names for are left out, and
            named in the log.
        path: file to write.

    Raises:
        ModelError: there is no audio weight among them.
        RunError: the file cannot be written.
    """
    parts = to_published({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    if not all(parts.values()):
        raise ModelError(f"{path}: expected audio weights to export, found {listed(weights) or 'nothing'}")
    if left_out := Counter(name.partition(".")[0] for name in weights if not _OURS.fullmatch(name)):
        parts_left_out = ", ".join(f"{count} weights of {part}" for part, count in left_out.items())
        log.warning("%s: the published layout has no place for %s", path, parts_left_out)
    with scratch.replacing(path, WRITE_ERRORS) as part:
        if path.suffix == ".safetensors":
            prefixed = {f"{group}.{key}": v for group, state in parts.items() for key, v in state.items()}
            write_tensors(part, prefixed)
        else:
            torch.save(parts, part)
        flush(part)


def audio_parameters(model: TalkingWan) -> dict[str, Tensor]:
    """The parameters that the published layouts have, by name."""
    return {name: value for name, value in model.named_parameters() if _OURS.fullmatch(name)}


def from_published(found: Mapping[str, Tensor], name: str) -> State:
    """Published weights by their names in `TalkingWan`. Other weights keep their names.

    Args:
        found: weights in any layout, `proj_model.` and `audio_processor.` in front or not.
        name: of the file, for messages.

    Raises:
        ModelError: a weight is there under two names.
    """
    ours = {_our_name(published): tensor for published, tensor in found.items()}
    if len(ours) != len(found):
        raise ModelError(f"{name}: expected every weight once, found some under two names")
    return ours


def to_published(weights: Mapping[str, Tensor]) -> dict[str, State]:
    """Audio weights, by their names in `TalkingWan`, in the two groups of the first layout."""
    parts: dict[str, State] = {"proj_model": {}, "audio_processor": {}}
    for name, tensor in weights.items():
        if match := _OURS.fullmatch(name):
            if match["projection"]:
                parts["proj_model"][match["projection"]] = tensor
            else:
                published = f"{match['block']}.cross_attn.processor.{match['kind']}_proj.weight"
                parts["audio_processor"][published] = tensor
    return parts


def _our_name(published: str) -> str:
    name = published.removeprefix("proj_model.").removeprefix("audio_processor.")
    if _PROJECTION.fullmatch(name):
        return f"audio_proj.{name}"
    if match := _BLOCK.fullmatch(name):
        return f"transformer.{match[1]}.attn2.processor.{match[2]}"
    return published


def _flat(path: Path, found: Mapping[str, Any]) -> State:
    state: State = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            state |= {f"{name}.{key}": tensor for key, tensor in value.items()}
        else:
            state[name] = value
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{path}: expected tensors, found other things: {listed(others)}")
    return state
