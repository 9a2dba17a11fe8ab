"""Checkpoints: whole or not there, the last ones kept, and read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from talkforge.schemas.errors import CommandError, ModelError, RunError
from talkforge.training.config import ModelConfig, TrainConfig
from talkforge.training.run import checkpoint
from talkforge.training.run.checkpoint import TrainProgress, find, load_trained, read, save, steps
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.talking_wan import adapter_parameters, set_trainable
from tests.training.batches import some_info
from tests.training.models import talking
from tests.training.runs import moments as saved_moments

PROGRESS = TrainProgress(3, 2, 1, 1, False, some_info())
TRAINED = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.zeros(())}
MOMENTS = {"a.weight.exp_avg": torch.ones(2, 3), "a.weight.step": torch.tensor(3.0)}
CONFIG = TrainConfig.model_validate({"optim": {"lr": 0.25}, "data": {"sizes": [[32, 48]]}})


def written(run: Path, step: int = 3, *, keep: int = 2, with_all: bool = True) -> Path:
    return save(
        run,
        replace(PROGRESS, step=step),
        CONFIG,
        trained=TRAINED,
        optimizer=MOMENTS,
        ema={"a.weight": torch.full((2, 3), 7.0)} if with_all else None,
        codec=LinearCodec() if with_all else None,
        keep=keep,
    )


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert folder == tmp_path / "checkpoints" / "step-00000003"
    found = read(folder)
    assert (found.progress, found.config) == (PROGRESS, CONFIG)
    for wanted, state in ((TRAINED, found.trained()), (MOMENTS, saved_moments(found))):
        assert wanted.keys() == state.keys()
        assert all(torch.equal(wanted[name], state[name]) for name in wanted)
    assert found.ema() is not None and found.best()["a.weight"].max() == 7
    codec = found.codec()
    assert codec is not None and codec.sha256 == LinearCodec().sha256
    bare = read(written(tmp_path / "bare", with_all=False))
    assert bare.ema() is None and bare.codec() is None and bare.best().keys() == TRAINED.keys()


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Names that have changed since: of fields in state.json, of settings, of the window's embedding."""
    state = {"a": torch.ones(2), "window_positions.weight": torch.arange(6.0).view(2, 3)}
    moments = {"window_positions.weight.exp_avg": torch.ones(2, 3)}
    folder = save(
        tmp_path, PROGRESS, CONFIG, trained=state, optimizer=moments, ema=state, codec=None, keep=1
    )  # fmt: skip
    for name, tensors in (("trained", state), ("ema", state), ("optimizer", moments)):
        old = {key.replace("window_positions.", "audio_slots."): value for key, value in tensors.items()}
        save_file(old, folder / f"{name}.safetensors")
    described = json.loads((folder / "state.json").read_text())
    described |= {"chapter": described.pop("interval"), "facts": described.pop("info")}
    (folder / "state.json").write_text(json.dumps(described))
    text = (folder / "config.yaml").read_text()
    old_text = text.replace("window_positions: false", "audio_slots: true")
    old_text = old_text.replace("unmasked_weight: 0.0", "plain_weight: 0.5")
    assert old_text.count("audio_slots") == old_text.count("plain_weight") == 1
    (folder / "config.yaml").write_text(old_text)

    found = read(folder)
    assert found.progress == PROGRESS
    assert found.config.adapters.window_positions and found.config.loss.unmasked_weight == 0.5
    averaged = found.ema()
    assert averaged is not None
    for wanted, tensors in ((state, found.trained()), (state, averaged), (moments, saved_moments(found))):
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 12):
        written(tmp_path, step, keep=2)
    assert steps(tmp_path) == [
        (10, tmp_path / "checkpoints" / "step-00000010"),
        (12, tmp_path / "checkpoints" / "step-00000012"),
    ]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    first, second = written(tmp_path, 5), written(tmp_path, 40)
    assert find(tmp_path) == second and find(first) == first
    with pytest.raises(CommandError, match="expected a run or a checkpoint, found no checkpoints/step-"):
        find(tmp_path / "none")


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written(tmp_path, 1)
    real, count = checkpoint.write_tensors, 0

    def full(path: Path, state: checkpoint.State) -> None:
        nonlocal count
        count += 1
        if count == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(path, state)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    for step in (2, 1):  # a new one, and one that replaces the old
        count = 0
        with pytest.raises(RunError, match=r"cannot be written: .*No space left on device"):
            written(tmp_path, step)
        assert [path.name for path in old.parent.iterdir()] == [old.name]
        assert torch.equal(read(old).trained()["a.weight"], TRAINED["a.weight"])


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000009"
    left.mkdir(parents=True)
    (left / "trained.safetensors").write_bytes(b"half")
    assert steps(tmp_path) == []
    written(tmp_path, 2)
    assert not left.exists()


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    written(tmp_path, 2)
    written(tmp_path, 2, with_all=False)
    assert [step for step, _ in steps(tmp_path)] == [2] and read(find(tmp_path)).ema() is None


def test_a_folder_of_deepspeed_is_moved_in(tmp_path: Path) -> None:
    part = tmp_path / "checkpoints" / ".deepspeed"
    part.mkdir(parents=True)
    (part / "states").write_bytes(b"x")
    folder = save(tmp_path, PROGRESS, CONFIG, trained=TRAINED, optimizer=part, ema=None, codec=None, keep=1)
    assert (folder / "deepspeed" / "states").read_bytes() == b"x" and not part.exists()
    with pytest.raises(ModelError, match=r"optimizer\.safetensors: expected safetensors"):
        read(folder).optimizer()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    (
        ("state.json", "{", r"state\.json: cannot be read"),
        ("state.json", json.dumps({"step": 1}), r"state\.json: cannot be read"),
        ("config.yaml", "optim: {lrate: 1}", r"config\.yaml: cannot be read: .*lrate"),
    ),
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = written(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        read(folder)


def test_weights_that_break_off_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    data = (folder / "trained.safetensors").read_bytes()
    (folder / "trained.safetensors").write_bytes(data[:-4])
    with pytest.raises(ModelError, match=r"trained\.safetensors: expected safetensors, found"):
        read(folder).trained()


def test_adapters_may_begin_a_run_that_trains_more() -> None:
    model = talking("condition")
    set_trainable(model, ModelConfig(trainable="full"))
    everything = {name: p.detach() + 1 for name, p in model.named_parameters()}
    adapters = {name: everything[name] for name, _ in adapter_parameters(model)}
    base = model.transformer.proj_out.weight.clone()
    with pytest.raises(ModelError, match=r"^file: does not fit the model: missing transformer\."):
        load_trained(model, adapters, "file")
    load_trained(model, adapters, "file", adapters_suffice=True)
    assert torch.equal(model.audio_proj.proj.weight, adapters["audio_proj.proj.weight"])
    assert torch.equal(model.transformer.proj_out.weight, base)
    some = {name: p for name, p in everything.items() if name != "transformer.proj_out.weight"}
    with pytest.raises(ModelError, match=r"missing transformer\.proj_out\.weight$"):
        load_trained(model, some, "file", adapters_suffice=True)
    set_trainable(model, ModelConfig(trainable="adapters"))
    with pytest.raises(ModelError, match=r"unexpected transformer\."):
        load_trained(model, everything, "file", adapters_suffice=True)
