"""The published layouts: small in the width, and by name and shape at full size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from talkforge.schemas.errors import ModelError, RunError
from talkforge.training.config import AdapterConfig
from talkforge.training.run.published import (
    audio_parameters,
    export_published,
    from_published,
    load_published,
    to_published,
)
from talkforge.training.run.tensor_files import fill
from talkforge.training.wan.talking_wan import TalkingWan
from tests.training.models import ADAPTERS, awake, talking

State = dict[str, Tensor]

LAYOUTS = ("torch", "prefixed", "flat", "flat torch")


def published(layers: int, inner: int, audio: int, speech: int, device: str = "cpu") -> dict[str, State]:
    """The first layout, written down from the published file."""

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta") if device == "meta" else torch.randn(shape)

    return {
        "proj_model": {
            "proj.weight": tensor(audio, speech),
            "norm.weight": tensor(audio),
            "norm.bias": tensor(audio),
        },
        "audio_processor": {
            f"blocks.{layer}.cross_attn.processor.{kind}_proj.weight": tensor(inner, audio)
            for layer in range(layers)
            for kind in "kv"
        },
    }


def prefixed(parts: dict[str, State]) -> State:
    return {f"{group}.{name}": tensor for group, state in parts.items() for name, tensor in state.items()}


def flat(parts: dict[str, State]) -> State:
    names = parts["proj_model"] | parts["audio_processor"]
    return {name.replace(".processor.", "."): tensor for name, tensor in names.items()}


def write(folder: Path, layout: str, parts: dict[str, State]) -> Path:
    if "torch" in layout:
        path = folder / "weights.ckpt"
        torch.save(parts if layout == "torch" else flat(parts), path)
        return path
    path = folder / "weights.safetensors"
    save_file(prefixed(parts) if layout == "prefixed" else flat(parts), path)
    return path


def small_model() -> TalkingWan:
    return talking("condition")


def small_file() -> dict[str, State]:
    torch.manual_seed(7)
    return published(layers=2, inner=24, audio=12, speech=6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reaches_its_place(tmp_path: Path, layout: str) -> None:
    model, parts = small_model(), small_file()
    others = {name: p.clone() for name, p in model.named_parameters() if name not in audio_parameters(model)}
    load_published(model, write(tmp_path, layout, parts))
    assert torch.equal(model.audio_proj.proj.weight, parts["proj_model"]["proj.weight"])
    assert torch.equal(model.audio_proj.norm.weight, parts["proj_model"]["norm.weight"])
    assert torch.equal(model.audio_proj.norm.bias, parts["proj_model"]["norm.bias"])
    for layer, block in enumerate(model.transformer.blocks):
        for kind in "kv":
            name = f"blocks.{layer}.cross_attn.processor.{kind}_proj.weight"
            weight = getattr(block.attn2.processor, f"{kind}_proj").weight
            assert torch.equal(weight, parts["audio_processor"][name])
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in others.items())


def test_the_full_size_fits_by_name_and_shape() -> None:
    """On the meta device, where a tensor is its shape. Source: the published file."""
    parts = published(layers=40, inner=5120, audio=2048, speech=768, device="meta")
    assert sum(tensor.numel() for state in parts.values() for tensor in state.values()) == 840_437_760
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824, in_channels=36,
            text_dim=4096, freq_dim=256, image_dim=1280, added_kv_proj_dim=5120,
        )  # fmt: skip
        model = TalkingWan(transformer, AdapterConfig(), 768, 512)
    audio = audio_parameters(model)
    assert sum(parameter.numel() for parameter in audio.values()) == 840_437_760
    for found in (prefixed(parts), flat(parts)):
        fill(audio, from_published(found, "published"), "published")
    exported = to_published(dict(model.named_parameters()))
    assert {g: {n: t.shape for n, t in state.items()} for g, state in exported.items()} == {
        g: {n: t.shape for n, t in state.items()} for g, state in parts.items()
    }


def base(model: TalkingWan) -> list[str]:
    """Names within the transformer that were never published."""
    named = [name for name, _ in model.named_parameters() if name.startswith("transformer.")]
    return [
        name for name in named if not name.endswith((".processor.k_proj.weight", ".processor.v_proj.weight"))
    ]


@pytest.mark.parametrize("name", ("out.ckpt", "out.safetensors"))
def test_what_is_exported_comes_back(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, fresh = awake("condition"), small_model()
    export_published(dict(model.named_parameters()), tmp_path / name)
    load_published(fresh, tmp_path / name)
    wanted, found = audio_parameters(model), audio_parameters(fresh)
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    count = sum(name.startswith("motion.") for name, _ in model.named_parameters())
    assert f"the published layout has no place for {len(base(model))} weights of transformer" in caplog.text
    assert f", {count} weights of motion" in caplog.text


def test_the_exported_files_have_the_published_names(tmp_path: Path) -> None:
    weights = dict(awake("condition").named_parameters())
    export_published(weights, tmp_path / "a.ckpt")
    export_published(weights, tmp_path / "a.safetensors")
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = small_file()
    assert {g: set(state) for g, state in found.items()} == {g: set(state) for g, state in expected.items()}
    assert set(load_file(tmp_path / "a.safetensors")) == set(prefixed(expected))


def test_keys_and_shapes_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    parts = small_file()
    del parts["audio_processor"]["blocks.1.cross_attn.processor.k_proj.weight"]
    parts["audio_processor"]["blocks.2.cross_attn.processor.k_proj.weight"] = torch.zeros(24, 12)
    parts["proj_model"]["proj.weight"] = torch.zeros(12, 7)
    model = small_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ModelError) as raised:
        load_published(model, write(tmp_path, "torch", parts))
    assert str(raised.value).endswith(
        "weights.ckpt: does not fit the model: "
        "missing transformer.blocks.1.attn2.processor.k_proj.weight; "
        "unexpected transformer.blocks.2.attn2.processor.k_proj.weight; "
        "of another shape audio_proj.proj.weight (expected (12, 6), found (12, 7))"
    )
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "weights.ckpt"
    torch.save({"proj_model": {"proj.weight": [1, 2]}}, path)
    with pytest.raises(ModelError, match=r"expected tensors, found other things: proj_model\.proj\.weight$"):
        load_published(model, path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ModelError, match="expected a dictionary of tensors, found list"):
        load_published(model, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="expected a torch file of tensors, found"):
        load_published(model, path)
    with pytest.raises(ModelError, match="expected safetensors, found"):
        load_published(model, tmp_path / "none.safetensors")
    parts = small_file()
    torch.save(prefixed(parts) | flat(parts), path)
    with pytest.raises(ModelError, match="expected every weight once, found some under two names"):
        load_published(model, path)


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.ckpt", tmp_path / "mark"
    torch.save({"proj_model": {}, "audio_processor": Malicious(mark)}, path)
    with pytest.raises(ModelError, match="expected a torch file of tensors, found") as raised:
        load_published(small_model(), path)
    assert "\n" not in str(raised.value) and not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file does nothing anywhere: this test would not notice"


def test_nothing_to_export_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected audio weights to export, found motion\.out\.weight"):
        export_published({"motion.out.weight": torch.zeros(1)}, tmp_path / "a.ckpt")
    weights = dict(small_model().named_parameters())
    for name in ("a.ckpt", "a.safetensors"):
        with pytest.raises(RunError, match="cannot be written"):
            export_published(weights, tmp_path / "none" / name)


def test_the_small_model_is_like_the_file() -> None:
    assert ADAPTERS.audio_dim == 12
    shapes = {name: p.shape for name, p in prefixed(to_published(audio_parameters(small_model()))).items()}
    assert shapes == {name: tensor.shape for name, tensor in prefixed(small_file()).items()}
