"""Weights for other programs, read back by the loaders of diffusers and peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from talkforge.schemas.errors import CommandError
from talkforge.training.config import TrainConfig
from talkforge.training.run import checkpoint
from talkforge.training.run.checkpoint import TrainProgress
from talkforge.training.run.exports import LAYOUTS, lora_state, run_export
from talkforge.training.run.published import load_published
from talkforge.training.wan.base import random_transformer
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters, build, is_adapter
from tests.command_line import run
from tests.training.batches import some_info
from tests.training.models import conditions, latents
from tests.training.runs import small


def config(folder: Path, trainable: str, image_dim: int | None = None) -> TrainConfig:
    found = small("", folder, model__trainable=trainable, model__lora_rank=2 if trainable == "lora" else 64)
    shape = found.model.shape.model_copy(update={"image_dim": image_dim})
    return found.model_copy(update={"model": found.model.model_copy(update={"shape": shape})})


def a_run(folder: Path, trainable: str, image_dim: int | None = None) -> TalkingWan:
    """Writes a checkpoint of a model whose trained weights are random; returns the model."""
    settings = config(folder, trainable, image_dim)
    model = build(settings, some_info())
    torch.manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.3)
    checkpoint.save(
        folder, TrainProgress(1, 0, 1, 1, False, some_info()), settings, trained=dict(trained), optimizer={},
        ema=None, codec=None, keep=1,
    )  # fmt: skip
    return model


def outputs(transformer: WanTransformer3DModel) -> Tensor:
    """Of Wan alone, without what is added to it."""
    x, timestep = latents()
    given = conditions("clip", text_tokens=512)
    hidden = torch.cat([x, given.condition_BCTHW], dim=1)
    image = given.image_BKD if transformer.config.image_dim else None
    with torch.no_grad():
        found: Tensor = transformer(hidden, timestep, given.text_BSD, image, return_dict=False)[0]
    return found


def stock(model: TalkingWan) -> WanTransformer3DModel:
    """The model's own transformer, with its low-rank updates and without the added networks."""
    model.transformer.condition_embedder._forward_hooks.clear()
    for block in model.transformer.blocks:
        block.attn2.set_processor(block.attn2._default_processor_cls())
    return model.transformer


@pytest.mark.parametrize("layout", ["lora", "lora-comfyui"])
@pytest.mark.parametrize("image_dim", [None, 10])
def test_low_rank_updates_are_read_by_diffusers(tmp_path: Path, layout: str, image_dim: int | None) -> None:
    model = a_run(tmp_path / "run", "lora", image_dim)
    run_export(tmp_path / "run", tmp_path / "lora.safetensors", layout)
    state = load_file(tmp_path / "lora.safetensors")
    prefix = (
        "diffusion_model.blocks.0.self_attn.q."
        if layout == "lora-comfyui"
        else "transformer.blocks.0.attn1.to_q."
    )
    assert f"{prefix}lora_A.weight" in state
    # A and B of four projections of two attentions of two blocks, and of two more for the image.
    assert len(state) == 2 * 4 * 2 * 2 + (2 * 2 * 2 if image_dim else 0)
    base = random_transformer(model_config(tmp_path / "run").model.shape)
    before = outputs(base)
    read = WanLoraLoaderMixin.lora_state_dict(state)
    WanLoraLoaderMixin.load_lora_into_transformer(read, base)
    expected = outputs(stock(model))
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(outputs(base), expected, rtol=1e-4, atol=1e-5)


def model_config(folder: Path) -> TrainConfig:
    return checkpoint.read(checkpoint.find(folder)).config


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_the_transformer_is_a_folder_that_diffusers_reads(tmp_path: Path, trainable: str) -> None:
    model = a_run(tmp_path / "run", trainable)
    names = {name for name, _ in adapter_parameters(model)}
    run_export(tmp_path / "run", tmp_path / "out", "transformer")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapters.safetensors",
        "transformer",
    ]
    found = WanTransformer3DModel.from_pretrained(tmp_path / "out", subfolder="transformer")
    torch.testing.assert_close(outputs(found), outputs(stock(model)), rtol=1e-4, atol=1e-5)
    adapters = load_file(tmp_path / "out" / "adapters.safetensors")
    assert adapters.keys() == names
    with pytest.raises(CommandError, match=r"out: expected a folder that does not exist yet$"):
        run_export(tmp_path / "run", tmp_path / "out", "transformer")


def test_all_added_networks_in_one_file(tmp_path: Path) -> None:
    """Face, motion and positions too, and a run can start from them."""
    model = a_run(tmp_path / "run", "full")
    code, out, _ = run("export", tmp_path / "run", "--as", "adapters", "--out", tmp_path / "a.safetensors")
    assert (code, out.strip()) == (0, str(tmp_path / "a.safetensors"))
    state = load_file(tmp_path / "a.safetensors")
    expected = {name: p for name, p in model.named_parameters() if is_adapter(name)}
    assert state.keys() == expected.keys()
    assert {name.partition(".")[0] for name in state} == {
        "audio_proj", "face", "motion", "transformer", "window_positions",
    }  # fmt: skip
    other = build(config(tmp_path, "adapters"), some_info())
    load_published(other, tmp_path / "a.safetensors")
    found = dict(adapter_parameters(other))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_a_run_does_not_have_is_one_line(tmp_path: Path) -> None:
    a_run(tmp_path / "run", "adapters")
    for layout, to, message in (
        ("lora", "x.safetensors", "the run has no low-rank updates"),
        ("lora-comfyui", "x.safetensors", "the run has no low-rank updates"),
        ("transformer", "x", "the run has trained nothing of random itself: use --as adapters"),
        ("lora", "x.ckpt", "expected a name in .safetensors"),
    ):
        code, _, err = run("export", tmp_path / "run", "--as", layout, "--out", tmp_path / to)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
        assert not (tmp_path / to).exists()
    with pytest.raises(CommandError, match=r"^--as other: expected weights, adapters, lora"):
        run_export(tmp_path / "run", tmp_path / "x.safetensors", "other")
    with pytest.raises(CommandError, match="no low-rank updates"):
        lora_state({}, original=True)


def test_the_command_line_knows_every_layout() -> None:
    from talkforge.cli.exporting import WEIGHTS

    assert WEIGHTS == LAYOUTS
