from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_gpu
from talkforge.training.config import AdapterConfig, WanShape
from talkforge.training.wan.blocks import keep_blocks

torch.set_num_threads(1)

SMALL = train_gpu.Shape(
    WanShape(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        ffn_dim=96,
        text_dim=16,
        freq_dim=32,
        image_dim=20,
    ),
    AdapterConfig(audio_dim=40, face_tokens=4, face_depth=2, face_dim=16, face_heads=2, motion_dim=8),
    speech_dim=12,
    identity_dim=10,
    text_tokens=6,
)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stage", ["clip", "frame"])
@pytest.mark.parametrize("trainable", ["adapters", "full"])
def test_the_formula_counts_what_torch_counts(trainable: str, stage: str, recompute: bool) -> None:
    cpu = torch.device("cpu")
    model = train_gpu.random_model(SMALL, trainable, cpu, torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if recompute:
        model.enable_gradient_checkpointing()
    given = train_gpu.random_conditions(SMALL, 2, 21, 128, stage, cpu)
    x = torch.randn(2, 16, 6, 16, 16)
    # The plain products of attention are counted one by one; fused kernels on a CPU are not.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(x, torch.rand(2) * 1000, given).square().mean()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    flops = train_gpu.step_flops(model, given)
    assert flops.forward == pytest.approx(forward.get_total_flops(), rel=3e-3)
    assert flops.backward + flops.recomputed == pytest.approx(backward.get_total_flops(), rel=1e-2)
    assert (flops.recomputed > 0) == recompute


def test_the_tiny_shape_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape tiny --device cpu --frames 5 --size 32 --batch 2 --steps 1 --trainable full"
    assert train_gpu.main([*options.split(), "--peak-tflops", "0.5"]) == 0
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", capsys.readouterr().out, re.MULTILINE))
    assert rows["model"].startswith("tiny: 0 frozen and 1,")
    assert rows["step"] == "stage 'frame', 2 x 5 frames, 32 x 32 px"
    step_s = float(rows["step time"].split()[0])
    assert float(rows["samples/s"]) == pytest.approx(2 / step_s, rel=1e-2)
    needed = re.fullmatch(r"(\S+) TFLOP a step: (\S+) TFLOP/s, (\S+)% of 0\.5", rows["needed by the model"])
    assert needed is not None
    work, rate, percent = map(float, needed.groups())
    assert rate == pytest.approx(work / step_s, rel=1e-2)
    assert percent == pytest.approx(100 * rate / 0.5, rel=0.05, abs=0.05)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_gpu.main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("train_gpu: --device cuda: expected a GPU, found none")
    assert told.err.count("\n") == 1


def test_a_loss_that_is_no_number_stops_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"tiny": replace(train_gpu.SHAPES["tiny"], speech_dim=4)}
    monkeypatch.setattr(train_gpu, "SHAPES", shapes)
    monkeypatch.setattr(train_gpu, "noised", lambda latents, *_: latents * float("nan"))
    options = "--shape tiny --device cpu --frames 5 --size 32 --steps 1"
    assert train_gpu.main(options.split()) == 1
    assert capsys.readouterr().err == "train_gpu: loss: expected a number, found nan\n"


def test_what_is_kept_is_not_counted_as_recomputed() -> None:
    shape = train_gpu.SHAPES["tiny"]
    device = torch.device("cpu")
    given = train_gpu.random_conditions(shape, 1, 9, 64, "frame", device)
    model = train_gpu.random_model(shape, "full", device, torch.float32)
    assert train_gpu.step_flops(model, given).recomputed == 0
    model.enable_gradient_checkpointing()
    everything = train_gpu.step_flops(model, given).recomputed
    model.context.keep_attention = True
    tokens, width, blocks = 3 * 4 * 4, 128, 4
    attention = 4 * tokens**2 * width
    assert everything - train_gpu.step_flops(model, given).recomputed == blocks * attention
    keep_blocks(model.transformer.blocks, 1)
    assert train_gpu.step_flops(model, given).recomputed == (everything / blocks - attention) * (blocks - 1)
