from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from talkforge.schemas.errors import CommandError, ModelError
from talkforge.training.config import RunConfig
from talkforge.training.wan.talking_wan import build
from tests.command_line import run
from tests.training.models import INFO, LATENTS, conditions, latents, run_config, wan
from tests.training.runs import four_clips


def test_a_random_model_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = build(run_config(), INFO), build(run_config(), INFO)
    assert torch.equal(torch.rand(1), expected)
    other = build(run_config().model_copy(update={"run": RunConfig(seed=1)}), INFO).state_dict()
    same = {name for name, value in first.state_dict().items() if torch.equal(value, other[name])}
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert "audio_proj.proj.weight" not in same
    assert {name for name, _ in first.named_parameters() if name.startswith("transformer.")} <= same
    assert first.transformer.config.in_channels == 36
    assert first(*latents(), conditions("frame")).shape == (2, 16, LATENTS, 4, 4)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    wan("image").save_pretrained(tmp_path / "base" / "transformer")
    return tmp_path / "base"


def test_a_base_is_read_from_a_folder(base: Path) -> None:
    model = build(run_config(base=str(base)), INFO)
    expected = wan("image").state_dict()
    found = {n.removeprefix("transformer."): v for n, v in model.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert model.transformer.config.image_dim == 10
    coarse = build(run_config(base=str(base)), INFO, dtype=torch.bfloat16)
    assert coarse.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert coarse.transformer.blocks[0].norm2.weight.dtype == torch.float32
    full = build(run_config(base=str(base), trainable="full"), INFO, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(full[f"transformer.{name}"], value) for name, value in expected.items())


def test_a_base_with_other_weights_is_refused_by_name(base: Path) -> None:
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["extra"] = weights.pop("blocks.1.attn2.to_v.bias")
    save_file(weights, file, metadata={"format": "pt"})
    message = rf"^model\.base {base}: .*missing keys: blocks\.1\.attn2\.to_v\.bias; unexpected keys: extra$"
    with pytest.raises(ModelError, match=message):
        build(run_config(base=str(base)), INFO)


def test_a_base_that_cannot_be_read_is_refused_in_one_line(base: Path) -> None:
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({"weights": torch.zeros(1)}, file.with_suffix(".bin"))
    file.unlink()
    missing = str(base.parent / "nowhere")
    expected = {
        str(base): "a diffusers Wan model",
        missing: "'random', a folder that exists, or a hub name such as owner/name",
    }
    for folder, words in expected.items():
        with pytest.raises(ModelError) as error:
            build(run_config(base=folder), INFO)
        assert str(error.value).startswith(f"model.base {folder}: expected {words}")
        assert "\n" not in str(error.value)


def test_another_model_than_wan_2_1_is_refused(base: Path) -> None:
    file = base / "transformer" / "config.json"
    config = json.loads(file.read_text())
    shutil.rmtree(base / "transformer")
    WanTransformer3DModel.from_config({**config, "in_channels": 48}).save_pretrained(base / "transformer")
    with pytest.raises(CommandError, match=r"^transformer: .* 16 or 36 channels in .* found .*, 48 and 16$"):
        build(run_config(base=str(base)), INFO)


def test_wan_2_2_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    """In one line, with exit code 2, before its weights are read."""
    index = base / "model_index.json"
    for parts in (
        {"boundary_ratio": 0.9},
        {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
        {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]},
    ):
        index.write_text(json.dumps(parts))
        with pytest.raises(CommandError, match=rf"^model\.base {base}: .*, found Wan2\.2-A14B, whose two"):
            build(run_config(base=str(base)), INFO)
    index.write_text(json.dumps({"boundary_ratio": None, "transformer_2": [None, None]}))
    build(run_config(base=str(base)), INFO)
    index.unlink()
    (base / "transformer_2").mkdir()  # as a folder without its index
    code, _, err = run(
        "train", "tiny-stage1", "--set", f"model.base={base}", "--set", f"run.out={tmp_path / 'run'}",
        "--set", f"data.shards={four_clips(tmp_path / 'set')}", "--set", "data.num_frames=9",
    )  # fmt: skip
    assert code == 2 and f"\ntalkforge: model.base {base}: expected a Wan 2.1 model" in err, err


def test_the_5b_model_is_refused_by_name(base: Path) -> None:
    file = base / "transformer" / "config.json"
    config = json.loads(file.read_text())
    shutil.rmtree(base / "transformer")
    small = WanTransformer3DModel.from_config({**config, "in_channels": 48, "out_channels": 48})
    small.save_pretrained(base / "transformer")
    with pytest.raises(CommandError, match=r"48 and 48 \(Wan2\.2-TI2V-5B, whose VAE is another\)$"):
        build(run_config(base=str(base)), INFO)
