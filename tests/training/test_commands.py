"""The trainer's commands: a run, what comes of it, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from talkforge.training.run.checkpoint import find, read, to_yaml
from tests.command_line import run
from tests.training.runs import four_clips, small


def test_train_goes_on_and_export_writes_its_audio_weights(tmp_path: Path) -> None:
    config = small(four_clips(tmp_path / "set"), tmp_path / "run")
    (tmp_path / "small.yaml").write_text(to_yaml(config))
    code, _, err = run("train", tmp_path / "small.yaml", "--set", "run.steps=2")
    assert code == 0, err
    assert read(find(tmp_path / "run")).progress.step == 2
    code, _, err = run("train", tmp_path / "small.yaml", "--set", "run.steps=3")
    assert code == 0, err
    assert read(find(tmp_path / "run")).progress.step == 3
    code, out, err = run("export", tmp_path / "run", "--out", tmp_path / "audio.ckpt")
    assert (code, out.strip()) == (0, str(tmp_path / "audio.ckpt")), err
    found = torch.load(tmp_path / "audio.ckpt", weights_only=True)
    assert found["proj_model"].keys() == {"proj.weight", "norm.weight", "norm.bias"}
    assert found["audio_processor"].keys() == {
        f"blocks.{block}.cross_attn.processor.{name}_proj.weight" for block in (0, 1) for name in "kv"
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "no.yaml"), 2, "config no.yaml: "),
        (("train", "{config}", "--set", "optim.speed=2"), 2, "optim.speed: "),
        (("train", "{config}", "--set", "data.shards=none-{0..1}.tar"), 2, "data.shards: no shard "),
        (("encode", "nowhere", "--config", "{config}"), 2, "codec.kind"),
        (
            ("generate", "nowhere", "--image", "a.png", "--audio", "a.wav", "--out", "a.mov"),
            2,
            "--out a.mov: ",
        ),
        (("export", "nowhere", "--out", "a.ckpt"), 2, "nowhere: expected a run or a checkpoint"),
        (("export", "nowhere", "--out", "a.txt"), 2, "--out a.txt: "),
    ],
)
def test_a_bad_command_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(to_yaml(small("set/shards/train-000000.tar", tmp_path / "run")))
    found, out, err = run(*(word.replace("{config}", "small.yaml") for word in arguments))
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert err.startswith("talkforge: ") and words in err
