"""A run from its command to its end: that it goes on as if it had not been stopped, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import WanTransformer3DModel
from rich.console import Console

import talkforge.training.train as train_module
from talkforge.pipeline import snapshots
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError, ModelError, RunError
from talkforge.training.config import AdapterConfig, TrainConfig
from talkforge.training.encode.command import encode_dataset
from talkforge.training.run import checkpoint, loop, update
from talkforge.training.run.exports import run_export
from talkforge.training.run.progress import Report
from talkforge.training.train import main, run_train, train
from tests.training.run.test_progress import report
from tests.training.runs import Stop, four_clips, last, small, tensors
from tests.training.shard_files import Shown, publish, write_set
from tests.training.tiny_base import TEXT_DIM, write_base


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def losses(history: list[Report]) -> list[tuple[int, float, float, float]]:
    return [(report.step, report.loss, report.unmasked, report.grad_norm) for report in history]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", (0, 1))
def test_a_stopped_run_goes_on_as_if_it_had_not_been(shards: str, tmp_path: Path, workers: int) -> None:
    """Bit for bit: losses, weights, moments and average; stopped within an interval, over a checkpoint."""
    settings: dict[str, Any] = {
        "run__stage": "frame",
        "data__workers": workers,
        "optim__ema": 0.9,
        "optim__accumulate": 2,
    }
    straight = train(small(shards, tmp_path / "straight", **settings))
    assert straight.finished and straight.step == 6 and len(straight.history) == 6
    config = small(shards, tmp_path / "stopped", **settings)
    first = train(config, stop=Stop(6))
    assert not first.finished and first.step == 3
    progress = last(tmp_path / "stopped").progress
    assert (progress.step, progress.interval, progress.consumed) == (3, 0, 6)
    second = train(config)
    assert second.finished and second.step == 6
    assert losses(first.history + second.history) == losses(straight.history)
    assert same(tensors(tmp_path / "stopped"), tensors(tmp_path / "straight"))
    assert any(name.startswith("ema ") for name in tensors(tmp_path / "straight"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_next_loss_is_the_same_on_a_gpu(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; attention's backward pass is not deterministic there, so later ones need not be."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    AcceleratorState._reset_state(reset_partial_state=True)
    config = small(shards, tmp_path, run__precision="bf16", run__steps=2, run__save_every=1, optim__ema=0.9)
    straight = train(config)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    resumed = train(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [report.loss for report in resumed.history] == [straight.history[1].loss]


def test_a_run_that_is_made_longer_goes_on_likewise(shards: str, tmp_path: Path) -> None:
    """Its last checkpoint was no turn of an interval."""
    straight = train(small(shards, tmp_path / "straight", run__steps=3))
    train(small(shards, tmp_path / "longer", run__steps=2))
    assert last(tmp_path / "longer").progress.interval == 0
    longer = train(small(shards, tmp_path / "longer", run__steps=3))
    assert losses(longer.history) == losses(straight.history)[2:]
    assert same(tensors(tmp_path / "longer"), tensors(tmp_path / "straight"))
    again = train(small(shards, tmp_path / "longer", run__steps=3))
    assert again.finished and again.step == 3 and not again.history


def test_a_run_goes_on_with_the_snapshot_that_it_began_with(tmp_path: Path) -> None:
    straight = train(small(four_clips(tmp_path / "set"), tmp_path / "straight", run__steps=3))
    first = publish(tmp_path / "set")
    config = small(f"{tmp_path}/set/shards/train-{{000000..000001}}.tar", tmp_path / "run", run__steps=2)
    train(config)
    write_set(tmp_path / "set", [[Shown(5), Shown(6)], [Shown(7), Shown(8)]])
    publish(tmp_path / "set")
    longer = train(config.model_copy(update={"run": config.run.model_copy(update={"steps": 3})}))
    assert losses(longer.history) == losses(straight.history)[2:]
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    store = Store(str(tmp_path / "set"))
    noted = {"dataset": store.root, "number": 1, "sha256": snapshots.manifest_sha256(store, first)}
    assert [start["snapshots"] for start in starts] == [[noted]] * 2
    assert last(tmp_path / "run").config.data.snapshot == "1"
    with pytest.raises(CommandError, match=r"was trained on other shards than "):
        train(config.model_copy(update={"data": config.data.model_copy(update={"snapshot": "2"})}))
    snapshots.prune(store, 1)
    with pytest.raises(CommandError, match=r"on a snapshot that is gone: .*no snapshot 1; there are: 2"):
        train(config)


def test_nothing_is_saved_where_nothing_was_done(shards: str, tmp_path: Path) -> None:
    result = train(small(shards, tmp_path), stop=lambda: True)
    assert not result.finished and result.step == 0 and result.checkpoint is None
    assert checkpoint.steps(tmp_path) == []


def test_stage_2_starts_from_stage_1(shards: str, tmp_path: Path) -> None:
    train(small(shards, tmp_path / "one", run__steps=3, optim__ema=0.5))
    config = small(
        shards, tmp_path / "two", run__steps=1, run__stage="frame", run__init_from=str(tmp_path / "one"),
        optim__lr=1e-30,
    )  # fmt: skip
    train(config)
    before, after = last(tmp_path / "one"), last(tmp_path / "two")
    assert before.ema() is not None and same(after.trained(), before.best())
    assert not same(after.trained(), before.trained())
    codecs = before.codec(), after.codec()
    assert codecs[0] is not None and codecs[1] is not None and codecs[0].sha256 == codecs[1].sha256


def test_a_run_starts_from_adapters_alone_or_from_published_weights(shards: str, tmp_path: Path) -> None:
    frozen = {"model__trainable": "adapters", "run__steps": 1}
    train(small(shards, tmp_path / "one", **frozen))
    trained = last(tmp_path / "one").trained()
    lora = {"model__trainable": "lora", "model__lora_rank": 2, "run__steps": 1, "optim__lr": 1e-30}
    train(small(shards, tmp_path / "two", run__init_from=str(tmp_path / "one"), **lora))
    found = last(tmp_path / "two").trained()
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-20) for name, value in trained.items())
    assert {name.partition(".lora_")[1] for name in found.keys() - trained.keys()} == {".lora_"}
    again = train(
        small(shards, tmp_path / "two", run__init_from=str(tmp_path / "one"), **lora | {"run__steps": 2})
    )
    assert again.finished
    run_export(tmp_path / "one", tmp_path / "published.ckpt")
    settings = frozen | {"optim__lr": 1e-30, "run__init_from": str(tmp_path / "published.ckpt")}
    train(small(shards, tmp_path / "three", **settings))
    found = last(tmp_path / "three").trained()
    audio = [
        name for name in found if name.startswith("audio_proj.") or name.endswith("processor.v_proj.weight")
    ]
    assert len(audio) == 5 and all(
        torch.allclose(found[name], trained[name], rtol=0, atol=1e-20) for name in audio
    )
    assert not torch.equal(found["motion.out.weight"], trained["motion.out.weight"])


def test_weights_that_do_not_fit_are_refused_by_name(shards: str, tmp_path: Path) -> None:
    train(small(shards, tmp_path / "one", run__steps=1))
    config = small(
        shards, tmp_path / "two", run__init_from=str(tmp_path / "one"), adapters__window_positions=False
    )
    with pytest.raises(
        ModelError,
        match=r"one/checkpoints/step-00000001: does not fit the model: unexpected window_positions\.weight$",
    ):
        train(config)
    with pytest.raises(CommandError, match="expected a run or a checkpoint"):
        train(small(shards, tmp_path / "two", run__init_from=str(tmp_path / "none")))


def test_a_full_disk_leaves_the_old_checkpoint(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small(shards, tmp_path, run__steps=2))
    before = tensors(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(RunError, match=r"checkpoint .*step-00000004: cannot be written: .*No space left"):
            train(small(shards, tmp_path))
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert same(tensors(tmp_path), before)
    assert train(small(shards, tmp_path)).step == 6


def test_other_settings_than_the_folder_s_are_named(shards: str, tmp_path: Path) -> None:
    train(small(shards, tmp_path, run__steps=1))
    with pytest.raises(
        CommandError, match=r"other settings: optim\.lr: 0\.01 -> 0\.02; run\.seed: 0 -> 1: use those again"
    ):
        train(small(shards, tmp_path, optim__lr=0.02, run__seed=1, run__steps=4))
    other = write_set(tmp_path / "other", [[Shown(5), Shown(6)]])
    with pytest.raises(CommandError, match="was trained on other shards than"):
        train(small(other, tmp_path))


def test_what_does_not_fit_is_refused_before_a_model_is_made(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talkforge.training.train.build", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(CommandError, match=r"2 shards for 1 ranks x 3 workers"):
        train(small(shards, tmp_path, data__workers=3))
    with pytest.raises(CommandError, match=r"loss\.eta=0\.5 has no effect with run\.stage=clip"):
        train(small(shards, tmp_path, loss__eta=0.5))
    with pytest.raises(CommandError, match=r"accelerate: .*nonsense"):
        train(small(shards, tmp_path, run__trackers=["nonsense"]))
    with pytest.raises(CommandError, match=r"run\.trackers: wandb: its package is not installed"):
        train(small(shards, tmp_path, run__trackers=["wandb"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"run\.out .*file: cannot be written to"):
        train(small(shards, tmp_path / "file"))


def test_memory_that_runs_out_is_one_line(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(update, "training_step", lambda *_, **__: out_of_memory())
    with pytest.raises(
        RunError, match=r"^out of memory on cpu: CUDA out of memory\. Tried .*: lower data\.b"
    ):
        train(small(shards, tmp_path))


def test_the_folder_says_what_was_run(shards: str, tmp_path: Path) -> None:
    config = small(shards, tmp_path, run__steps=2, run__trackers=["tensorboard"], run__keep=1)
    train(config)
    train(small(shards, tmp_path, run__steps=3, run__trackers=["tensorboard"], run__keep=1))
    written = TrainConfig.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert written == config.model_copy(update={"run": config.run.model_copy(update={"steps": 3})})
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[0]["torch"] == torch.__version__ and starts[0]["processes"] == 1
    assert starts[0]["data"]["num_samples"] == 4 and len(starts[0]["data"]["fingerprint"]) == 64
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3]
    assert list((tmp_path / "logs" / "talkforge").glob("events.*"))


def test_shards_without_faces_give_a_model_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_set(tmp_path / "set", [[Shown(1, identity=False), Shown(2, identity=False)]])
    train(small(shards, tmp_path / "run", run__steps=1))
    assert "no sample has an identity, so there is no face attention" in caplog.text
    assert not any(name.startswith("face.") or "face_k" in name for name in last(tmp_path / "run").trained())


# --------------------------------------------------------------------------- on a base with weights


def base(folder: Path, **shape: Any) -> dict[str, Any]:
    """A small model of Wan's classes on disk, and the settings of a run on it."""
    write_base(folder)
    sizes = {"num_attention_heads": 1, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 8}
    WanTransformer3DModel(text_dim=TEXT_DIM, **sizes, **shape).save_pretrained(folder / "transformer")
    return {
        "model__base": str(folder), "model__shape": {}, "model__text_tokens": 512,
        "model__trainable": "adapters", "codec__kind": "wan", "codec__text": "umt5", "run__steps": 2,
    }  # fmt: skip


def test_a_base_that_takes_no_picture_has_no_reference_image(shards: str, tmp_path: Path) -> None:
    """Wan2.1-T2V: dropping the image drops the face alone."""
    settings = base(tmp_path / "base", in_channels=16) | {"adapters__face": False}
    for name in ("face_tokens", "face_depth", "face_dim", "face_heads"):
        settings[f"adapters__{name}"] = AdapterConfig.model_fields[name].default
    found = [
        losses(train(small(shards, tmp_path / f"{rate}", dropout__image=rate, **settings)).history)
        for rate in (0.0, 1.0)
    ]
    assert found[0] == found[1] and np.isfinite(found[0][-1][1])


def test_a_cache_is_used_said_and_held_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = tmp_path / "set"
    shards = four_clips(dataset)
    settings = base(tmp_path / "base", in_channels=36, image_dim=8, added_kv_proj_dim=12)
    config = small(shards, tmp_path / "run", codec__image="clip", **settings)
    encode_dataset(str(dataset), config, spans_per_clip=2)
    caplog.set_level("INFO")
    loaded: list[tuple[str, str]] = []
    real = train_module.load_encoders

    def load(config: TrainConfig, text_dim: int, device: torch.device, **options: Any) -> Any:
        loaded.append((config.codec.text, config.codec.image))
        return real(config, text_dim, device, **options)

    monkeypatch.setattr(train_module, "load_encoders", load)
    result = train(config)
    assert result.step == 2 and all(np.isfinite(report.loss) for report in result.history)
    assert "4 samples; cached latents" in caplog.text
    assert loaded == [("none", "none")], "encoders that the cache makes unnecessary are not loaded"
    ignored = config.model_copy(update={"data": config.data.model_copy(update={"latents": "ignore"})})
    with pytest.raises(CommandError, match=r"on cached latents, found frames: set data\.latents"):
        train(ignored)
    moved = ignored.model_copy(update={"run": config.run.model_copy(update={"out": str(tmp_path / "other")})})
    train(moved)
    assert loaded[-1] == ("umt5", "clip")


# --------------------------------------------------------------------------- commands


def written(path: Path, config: TrainConfig) -> list[str]:
    path.write_text(checkpoint.to_yaml(config))
    return ["--config", str(path)]


def test_the_command_trains_and_reports(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path / "config.yaml", small(shards, tmp_path / "run"))
    assert main([*arguments, "--set", "run.steps=2"]) == 0
    shown = capsys.readouterr().err
    assert "4 samples; frames, encoded now" in shown
    assert "global batch 2: 1 processes x 2 samples x 1 batches (the paper trained on 64 GPUs" in shown
    assert "step 2/2  loss" in shown and "step-00000002" in shown
    run_export(tmp_path / "run", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").exists()
    with pytest.raises(
        CommandError, match=r"--out out\.txt: expected a name in \.ckpt or \.pt or \.safetensors"
    ):
        run_export(tmp_path / "run", Path("out.txt"))


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    (
        (["optim.lrate=1"], 2, r"talkforge: .*optim\.lrate: unknown key \(did you mean lr\?\)"),
        (["run.steps"], 2, "talkforge: --set run.steps: expected section.key=value"),
        (["data.shards=nowhere/train-000000.tar"], 2, "talkforge: data.shards: no shard"),
    ),
)
def test_a_bad_command_is_one_line(
    shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    code: int,
    message: str,
) -> None:
    arguments = written(tmp_path / "config.yaml", small(shards, tmp_path / "run"))
    for setting in settings:
        arguments += ["--set", setting]
    assert main(arguments) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize("package", ["torch", "accelerate", "webdataset"])
def test_a_missing_package_is_one_line(package: str) -> None:
    code = (
        "import runpy, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "sys.argv[1:] = ['--config', 'tiny-stage1']\n"
        "runpy.run_module('talkforge.training.train', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"talkforge: talkforge.training.train needs the package {package}: pip install 'talkforge[train]'\n"
    )


@pytest.mark.parametrize(("umask", "modes"), [(0o022, (0o644, 0o755)), (0o027, (0o640, 0o750))])
def test_what_a_run_leaves_has_the_mode_of_the_umask(
    shards: str, tmp_path: Path, umask: int, modes: tuple[int, int]
) -> None:
    before = os.umask(umask)
    try:
        train(small(shards, tmp_path / "run", run__steps=1, optim__ema=0.5, run__trackers=["tensorboard"]))
        run_export(tmp_path / "run", tmp_path / "run" / "out.ckpt")
    finally:
        os.umask(before)
    left = [path for path in (tmp_path / "run").rglob("*") if path.name != ".lock"]
    assert {"trained.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "config.yaml",
            "run.json", "out.ckpt"} <= {path.name for path in left}  # fmt: skip
    found = {path.name: path.stat().st_mode & 0o777 for path in left}
    assert found == {path.name: modes[path.is_dir()] for path in left}


def test_a_signal_to_the_whole_group_saves_and_says_so(shards: str, tmp_path: Path) -> None:
    """As a cluster's scheduler sends it: the loader's processes get it, too."""
    config = small(shards, tmp_path / "run", run__steps=100_000, data__workers=1, run__save_every=100_000)
    arguments = written(tmp_path / "config.yaml", config)
    process = subprocess.Popen(
        [sys.executable, "-m", "talkforge.training.train", *arguments],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "training: step 1/" in line:
            break
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=600) == 130, [*lines, rest]
    assert "interrupted; the same command goes on from here" in rest and "Traceback" not in rest
    progress = last(tmp_path / "run").progress
    assert progress.step >= 1 and progress.consumed == progress.step and progress.interval == 0
    assert train(config.model_copy(update={"run": config.run.model_copy(update={"steps": 1})})).finished


def test_the_second_interrupt_does_not_wait(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("talkforge.training.train.train", twice)
    arguments = written(tmp_path / "config.yaml", small(shards, tmp_path / "run"))
    before = signal.getsignal(signal.SIGINT)
    assert main(arguments) == 130
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(
        "talkforge.training.train.train", lambda config, *, stop, show: _interrupted(config, stop, show)
    )
    assert run_train(tmp_path / "config.yaml", ["run.steps=50"]) == 130
    assert last(tmp_path / "run").progress.step >= 1


def _interrupted(config: TrainConfig, stop: Any, show: Any) -> loop.Result:
    def shown(report: Report) -> None:
        show(report)
        signal.raise_signal(signal.SIGINT)

    return train(config, stop=stop, show=shown)


@pytest.mark.parametrize("quiet", (False, True))
def test_messages_go_to_the_console_and_to_the_log_file(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quiet console shows warnings alone; the log file has all of it."""

    def logging_train(_: TrainConfig, *, stop: Any, show: Any) -> loop.Result:
        assert not stop()
        log = logging.getLogger("talkforge.training.anything")
        log.info("resumed at [step] 4")
        log.warning("fewer processes")
        show(report())
        return loop.Result(5, finished=True, checkpoint=Path("RUN/checkpoints/step-00000005"))

    monkeypatch.setattr("talkforge.training.train.train", logging_train)
    written(tmp_path / "config.yaml", small("none", tmp_path / "run"))
    file = logging.FileHandler(tmp_path / "log")
    ours = logging.getLogger("talkforge")
    ours.addHandler(file)
    try:
        assert run_train(tmp_path / "config.yaml", [], Console(stderr=True, quiet=quiet, markup=False)) == 0
    finally:
        ours.removeHandler(file)
        file.close()
    shown = [re.sub(r"^\[[\d:]+\] ", "", line) for line in capsys.readouterr().err.splitlines()]
    everything = [
        "resumed at [step] 4", "fewer processes", f"training: {report().line()}",
        "step 5: RUN/checkpoints/step-00000005",
    ]  # fmt: skip
    assert shown == (["fewer processes"] if quiet else everything)
    logged = (tmp_path / "log").read_text().splitlines()
    assert logged == (["fewer processes"] if quiet else ["resumed at [step] 4", "fewer processes"])
