"""Settings that fit a model to its devices: what they change, what they leave, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from talkforge.schemas.errors import CommandError, RunError
from talkforge.training.config import TrainConfig, check
from talkforge.training.run import fit as fitting
from talkforge.training.run.fit import fit, sizes_of, strategy_of, tokens
from talkforge.training.run.parallel import is_8_bit
from talkforge.training.train import train
from talkforge.training.wan import memory
from talkforge.training.wan.precision import InputTypedLinear
from talkforge.training.wan.talking_wan import build
from tests.training.batches import some_info
from tests.training.runs import Stop, four_clips, last, moments, small, tensors


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_clips(tmp_path_factory.mktemp("set"))


def losses(shards: str, out: Path, **changes: Any) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = small(shards, out, run__steps=2, run__stage="frame", **changes)
    return [report.loss for report in train(config).history]


def accelerator(device: str = "cpu", fsdp2: bool = False, kind: str = "NO", processes: int = 1) -> Any:
    return SimpleNamespace(
        device=torch.device(device), is_fsdp2=fsdp2, distributed_type=kind, num_processes=processes,
        deepspeed_plugin=SimpleNamespace(zero_stage=3),
    )  # fmt: skip


def test_savings_leave_the_losses_as_they_are(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed, kept, offloaded, swapped and compiled: the same bits in float32."""
    adapters = {"model__trainable": "adapters"}
    plain = losses(shards, tmp_path / "plain", **adapters)
    recompute = {"model__gradient_checkpointing": True, **adapters}
    kept = {"model__keep": 1, "model__offload_activations": True, "model__swap_blocks": 1}
    assert losses(shards, tmp_path / "kept", **recompute, **kept) == plain
    compiled: list[dict[str, Any]] = []

    def eager(blocks: nn.ModuleList, **options: Any) -> None:
        compiled.append(options)
        real(blocks, **options)

    real = functools.partial(fitting.compile_blocks, backend="eager")
    monkeypatch.setattr(fitting, "compile_blocks", eager)
    with_compile = {"model__compile": True, "model__keep": "attention"}
    assert losses(shards, tmp_path / "compiled", **recompute, **with_compile) == pytest.approx(
        plain, rel=1e-5
    )
    assert compiled == [{"recompute": True, "keep_attention": True}]


def test_a_graph_that_cannot_be_made_is_one_line(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(fitting, "compile_blocks", functools.partial(fitting.compile_blocks, backend=broken))
    torch._dynamo.reset()
    with pytest.raises(RunError, match=r"^model\.compile: .*no compiler") as caught:
        losses(shards, tmp_path, model__compile=True)
    assert "\n" not in str(caught.value)


def test_frozen_weights_in_8_bits(shards: str, tmp_path: Path) -> None:
    config = small(
        "", tmp_path, model__trainable="adapters", model__fp8=True, model__gradient_checkpointing=True
    )
    model = build(config, some_info())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, config, accelerator())
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        eighth = name.endswith(".weight") and ".blocks." in name and isinstance(layer, InputTypedLinear)
        if eighth and not parameter.requires_grad:
            assert parameter.dtype == torch.float8_e4m3fn, name
            # 3 bits of mantissa: rounded by at most a sixteenth, or by half of the least step, 2^-9.
            error = (parameter.float() - before[name]).abs()
            assert bool((error <= before[name].abs() / 16 + 2.0**-10).all()), name
        else:
            assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name]), name
    assert model._ddp_params_and_buffers_to_ignore == [
        name for name, p in model.named_parameters() if not p.requires_grad
    ]
    options = {"model__trainable": "adapters", "model__gradient_checkpointing": True}
    plain = losses(shards, tmp_path / "plain", **options)
    coarse = losses(shards, tmp_path / "fp8", model__fp8=True, **options)
    assert coarse != plain and coarse == pytest.approx(plain, rel=0.05)


def test_swapped_blocks_stay_where_they_are(tmp_path: Path) -> None:
    config = small(
        "", tmp_path, model__trainable="adapters", model__swap_blocks=1, model__gradient_checkpointing=True
    )
    model = build(config, some_info())
    fit(model, config, accelerator())
    model.to("meta")
    on_host = {name for name, p in model.named_parameters() if p.device.type == "cpu"}
    assert on_host == {
        f"transformer.blocks.0.{layer}.{kind}"
        for layer in [
            *(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
            "ffn.net.0.proj",
            "ffn.net.2",
        ]
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        (
            {"attention": "flash"}, {},
            "model.attention=flash: needs the package flash_attn, which is not installed",
        ),
        (
            {"attention": "flash3"}, {},
            "model.attention=flash3: needs the package flash_attn_interface, which is not installed",
        ),
        ({"attention": "cudnn"}, {}, "model.attention=cudnn: needs a GPU, found cpu"),
        ({"keep": "auto"}, {}, "model.keep=auto: plans the memory of a GPU, found cpu"),
        ({"fp8": True}, {"fsdp2": True}, "model.fp8: not with FSDP2, which shards the weights instead"),
        (
            {"swap_blocks": 2}, {"kind": "DEEPSPEED"},
            "model.swap_blocks: not with ZeRO-3, which shards the weights instead",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, changes: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    options = {f"model__{key}": value for key, value in changes.items()}
    config = small(
        "",
        tmp_path,
        model__trainable="adapters",
        model__gradient_checkpointing=True,
        run__precision="bf16",
        **options,
    )
    check(config)
    with pytest.raises(CommandError) as caught:
        fit(build(config, some_info()), config, accelerator(**given))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": -1}, "model.keep: expected 0 or more blocks, found -1"),
        ({"fp8": True, "trainable": "full"}, "model.fp8: is for frozen weights, and model.trainable=full"),
        ({"swap_blocks": 1, "gradient_checkpointing": False}, "model.swap_blocks: needs model.gradient"),
        ({"keep": "attention", "gradient_checkpointing": False}, "model.keep=attention has no effect with"),
        ({"compile": True, "swap_blocks": 1}, "model.swap_blocks: not with model.compile"),
        ({"compile": True, "offload_activations": True}, "model.offload_activations: not with model.compile"),
        ({"attention": "cudnn"}, "model.attention=cudnn: needs run.precision=bf16"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    options = {"trainable": "adapters", "gradient_checkpointing": True} | changes
    with pytest.raises(CommandError) as caught:
        check(small("", tmp_path, **{f"model__{key}": value for key, value in options.items()}))
    assert message in str(caught.value)


def test_auto_keeps_what_the_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(
        "", tmp_path, model__trainable="adapters", model__gradient_checkpointing=True, model__keep="auto"
    )
    model = build(config, some_info())
    sizes, count = sizes_of(model), tokens(config.data)
    assert count == 2 * 3 * 2 * 2  # two samples, three latent frames, 32 x 32 px
    assert (sizes.blocks, sizes.width, sizes.ffn) == (2, 24, 32)
    assert sizes.frozen + sizes.trained == sum(p.numel() for p in model.parameters())

    def needed(blocks: int) -> float:
        saving = memory.MemoryOptions(keep_attention=True, kept_blocks=blocks)
        return memory.plan("DDP", sizes, 1, count, saving).total / memory.USABLE

    for give, kept in (
        (max(needed(1), needed(2)), (True, 2)), (needed(1) - 2, (True, 0)), (needed(0) - 2, (False, 0)),
    ):  # fmt: skip
        properties = SimpleNamespace(total_memory=give + 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        fit(model, config, accelerator("cuda"))
        blocks = [bool(block.keeps_activations) for block in model.transformer.blocks]
        assert (model.context.keep_attention, sum(blocks)) == kept, give


def test_kinds_of_parallelism_have_their_names() -> None:
    assert strategy_of(accelerator()) == "DDP"
    assert strategy_of(accelerator(fsdp2=True)) == "FSDP2"
    assert strategy_of(accelerator(kind="DEEPSPEED")) == "ZeRO-3"


def test_moments_in_8_bits_train_and_resume(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are near those of 32 bits, and a resumed run goes on as if it had never stopped."""
    # torchao compiles its step, which would take seconds here.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    options = {"model__trainable": "adapters", "run__steps": 4, "optim__lr": 1e-3, "adapters__audio_dim": 256}

    def config(name: str, **more: Any) -> TrainConfig:
        AcceleratorState._reset_state(reset_partial_state=True)
        return small(shards, tmp_path / name, **options, **more)

    exact = [report.loss for report in train(config("exact")).history]
    straight = [report.loss for report in train(config("straight", optim__eight_bit=True)).history]
    assert straight == pytest.approx(exact, rel=1e-2)
    saved = moments(last(tmp_path / "straight"))
    eighth = "transformer.blocks.0.attn2.processor.k_proj.weight.exp_avg"
    assert (saved[eighth].dtype, saved[f"{eighth}_scale"].shape) == (torch.uint8, (24,))
    assert saved["audio_proj.norm.bias.exp_avg"].dtype == torch.float32  # too small
    first = train(config("stopped", optim__eight_bit=True), stop=Stop(2))
    assert first.step == 2
    second = train(config("stopped", optim__eight_bit=True))
    assert [report.loss for report in first.history + second.history] == straight
    one, other = tensors(tmp_path / "straight"), tensors(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_8_bits_are_of_large_weights() -> None:
    from torchao.optim import AdamW8bit

    large, few = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(3))
    optimizer = AdamW8bit([large, few])
    found = [optimizer._new_buffer(one, True) for one in (large, few)]
    assert [is_8_bit(one) for one in found] == [True, False]
