"""Step time, memory and arithmetic of a training step: `python -m benchmarks.train_gpu`.

The real model, loss and optimizer on random weights, latents and conditions; reading data and encoding
pictures are not part of it. Needs a GPU with about 80 GB; `--shape tiny --device cpu` runs anywhere.

Floating-point operations are counted by formula, two for a multiplication and addition; only matrix
products count. Of a sample with N video tokens of width C, F of the feed-forward layers, S text and P
image tokens, A audio tokens of width Ca of which a video token hears W, K face tokens of width Cf, a
block's forward pass takes

    12 N C^2 + 4 N C F     projections of the video tokens
    4 N^2 C                self-attention
    4 (S + P) C^2          keys and values of text and image
    4 N (S + P) C          attention to them
    4 A Ca C + 4 K Cf C    keys and values of audio and face
    4 N (W + K) C          attention to them

The backward pass takes as much again where a weight is frozen and its input needs a gradient (nothing
for keys and values of frozen text), twice as much where a weight is trained, and twice as much for
attention; that to frozen keys and values as much again. Recomputing the blocks is one more forward pass:
it counts for what the chip has done, not for what the model needs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from torch import Tensor

from talkforge.schemas.errors import CommandError, RunError, TalkforgeError
from talkforge.schemas.units import CONDITION_CHANNELS, LATENT_CHANNELS, features_from_frames, latent_frames
from talkforge.training.config import (
    AdapterConfig,
    FlowConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    WanShape,
    memory_contradictions,
)
from talkforge.training.data.batch import Conditions
from talkforge.training.objective.losses import TIMESTEPS, draw_sigmas, flow_loss, noised, velocity
from talkforge.training.run.fit import fit
from talkforge.training.wan.alignment import windows
from talkforge.training.wan.blocks import is_kept
from talkforge.training.wan.talking_wan import TalkingWan, cast, set_trainable

FPS = 25.0
IMAGE_TOKENS = 257
"""CLIP features of a picture. Source: Wan2.1-I2V."""

PEAKS_TFLOPS = {"H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "A100": 312.0, "B200": 2250.0}
"""Dense bf16 with float32 sums, of the chips' data sheets; the first name that fits counts."""


@dataclass(frozen=True)
class Shape:
    """A model: transformer, adapters, and its conditions."""

    wan: WanShape
    adapters: AdapterConfig
    speech_dim: int
    identity_dim: int
    text_tokens: int


_WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40, "ffn_dim": 13824}
_WAN_14B |= {"text_dim": 4096, "freq_dim": 256, "image_dim": 1280}
_TINY = AdapterConfig(audio_dim=128, window_positions=True, motion_dim=64)

SHAPES = {
    "14b": Shape(WanShape(**_WAN_14B), AdapterConfig(), speech_dim=768, identity_dim=512, text_tokens=512),
    "tiny": Shape(WanShape(), _TINY, speech_dim=80, identity_dim=0, text_tokens=1),
}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step; `recomputed` come on top of what the model needs."""

    forward: float
    backward: float
    recomputed: float


def step_flops(model: TalkingWan, given: Conditions) -> Flops:
    """Floating-point operations of a step on `given`; see the head of this file.

    What lies outside the blocks is counted too, but for the motion network: less than a thousandth.
    """
    config, own = model.transformer.config, model.config
    samples, _, latents, height, width = given.condition_BCTHW.shape
    C, F = config.num_attention_heads * config.attention_head_dim, config.ffn_dim
    N = latents * height * width // 4
    S, text_dim = given.text_BSD.shape[1:]
    P, image_dim = given.image_BKD.shape[1:] if given.image_BKD is not None else (0, 0)
    W = A = L = given.speech_BLD.shape[1]
    if given.stage == "frame":
        W = windows(L, given.num_frames).index_TW.shape[1]
        A = latents * W
    K, Cf = (own.face_tokens, own.face_dim) if model.face is not None else (0, 0)
    full = model.transformer.proj_out.weight.requires_grad
    # Forward operations, and those of the backward pass over them.
    block = (
        (12 * N * C**2 + 4 * N * C * F, 2 if full else 1),
        (4 * N**2 * C, 2),
        (4 * (S + P) * C**2, 2 if full else 0),
        (4 * N * (S + P) * C, 2 if full else 1),
        (4 * C * (A * own.audio_dim + K * Cf), 2),
        (4 * N * (W + K) * C, 2),
    )
    outside = (
        (2 * N * (4 * config.in_channels) * C, 1 if full else 0),
        (2 * N * (4 * LATENT_CHANNELS) * C, 2 if full else 1),
        (2 * S * (text_dim * C + C**2) + 2 * P * (image_dim**2 + image_dim * C), 2 if full else 0),
        (2 * (config.freq_dim * C + 7 * C**2), 2 if full else 0),
        (12 * C**2 if model.motion is not None else 0, 2 if full else 1),
        (2 * L * model.audio_proj.proj.in_features * own.audio_dim, 1),
        (2 * K * Cf * given.identity_BD.shape[1] if given.identity_BD is not None else 0, 1),
        (own.face_depth * (32 * K * Cf**2 + 8 * K**2 * Cf), 2),
    )
    blocks = config.num_layers * sum(forward for forward, _ in block)
    back = config.num_layers * sum(forward * factor for forward, factor in block)
    return Flops(
        forward=samples * (blocks + sum(forward for forward, _ in outside)),
        backward=samples * (back + sum(forward * factor for forward, factor in outside)),
        recomputed=samples * _recomputed(model, sum(forward for forward, _ in block), 4 * N**2 * C),
    )


def _recomputed(model: TalkingWan, block: float, attention: float) -> float:
    """Operations that are done again for one sample, where a block takes so many, and its self-attention."""
    if not model.recomputes:
        return 0
    again = sum(not is_kept(one) for one in model.transformer.blocks)
    return again * (block - (attention if model.context.keep_attention else 0))


def random_model(shape: Shape, trainable: str, device: torch.device, dtype: torch.dtype) -> TalkingWan:
    """A model of `shape` on `device`, made there: frozen weights in `dtype`, trained ones float32."""
    inner_dim = shape.wan.num_attention_heads * shape.wan.attention_head_dim
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = WanTransformer3DModel(
                **shape.wan.model_dump(),
                in_channels=LATENT_CHANNELS + CONDITION_CHANNELS,
                added_kv_proj_dim=inner_dim if shape.wan.image_dim else None,
            )
            model = TalkingWan(
                transformer, shape.adapters, shape.speech_dim, shape.identity_dim, shape.text_tokens
            )
    finally:
        torch.set_default_dtype(previous)
    set_trainable(model, ModelConfig.model_validate({"trainable": trainable}))
    cast(model, dtype)
    return model


def random_conditions(
    shape: Shape, batch: int, frames: int, size_px: int, stage: str, device: torch.device
) -> Conditions:
    """A batch of the right shapes."""

    def random(*sizes: int) -> Tensor:
        return torch.randn(batch, *sizes, device=device)

    return Conditions(
        condition_BCTHW=random(CONDITION_CHANNELS, latent_frames(frames), size_px // 8, size_px // 8),
        text_BSD=random(shape.text_tokens, shape.wan.text_dim),
        image_BKD=random(IMAGE_TOKENS, shape.wan.image_dim) if shape.wan.image_dim else None,
        speech_BLD=random(features_from_frames(frames, FPS), shape.speech_dim),
        num_frames=frames,
        stage=stage,
        audio_scale_B=torch.ones(batch, device=device),
        identity_BD=random(shape.identity_dim) if shape.identity_dim else None,
        face_scale_B=torch.full((batch,), shape.adapters.face_scale, device=device),
        omega_B2=torch.full((batch, 2), 0.5, device=device),
    )


def stepper(model: TalkingWan, given: Conditions, device: torch.device) -> Callable[[], None]:
    """One optimizer step on the same random latents, in bf16 on a GPU."""
    generator = torch.Generator().manual_seed(0)
    batch, _, latents, height, width = given.condition_BCTHW.shape
    z, noise = torch.randn(2, batch, LATENT_CHANNELS, latents, height, width, device=device)
    mask_B1THW = torch.ones(batch, 1, latents, height, width, device=device)
    masked_B = torch.full((batch,), given.stage == "frame", device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        sigma_B = draw_sigmas(batch, FlowConfig(), generator).to(device)
        predicted = model(noised(z, noise, sigma_B), TIMESTEPS * sigma_B, given)
        loss = flow_loss(
            predicted, velocity(z, noise), mask_B1THW, masked_B, torch.ones_like(sigma_B), LossConfig()
        )
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not bool(torch.isfinite(loss.total)):
            raise RunError(f"loss: expected a number, found {float(loss.unmasked)}")

    return step


def timed(step: Callable[[], None], steps: int, device: torch.device) -> list[float]:
    """Seconds of each step; the first two are not counted."""
    seconds = []
    for _ in range(2 + steps):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds[2:]


def peak_memory_gib(device: torch.device) -> float:
    """The most that was allocated on the GPU, or that the process took."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def chip(device: torch.device, peak_tflops: float | None) -> tuple[str, float | None]:
    """Name of the device and its bf16 peak in TFLOP/s, where it is known."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    known = next((peak for part, peak in PEAKS_TFLOPS.items() if part in name), None)
    return name, peak_tflops or known


def work(flops: float, median_s: float, peak_tflops: float | None) -> str:
    """Operations of a step, a second, and over the chip's peak."""
    rate = flops / median_s / 1e12
    part = f", {rate / peak_tflops:.1%} of {peak_tflops:g}" if peak_tflops else ", of an unknown peak"
    return f"{flops / 1e12:.4g} TFLOP a step: {rate:.4g} TFLOP/s{part}"


def report(args: argparse.Namespace, device: torch.device) -> list[tuple[str, str]]:
    """Runs the steps; rows of the table."""
    shape = SHAPES[args.shape]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(shape, args.trainable, device, dtype)
    given = random_conditions(shape, args.batch, args.frames, args.size, args.stage, device)
    if not args.no_checkpointing:
        model.enable_gradient_checkpointing()
    config = settings(args)
    fit(model, config, Accelerator(cpu=device.type == "cpu"))
    flops = step_flops(model, given)
    seconds = timed(stepper(model, given, device), args.steps, device)
    median_s = statistics.median(seconds)
    needed = flops.forward + flops.backward
    name, peak_tflops = chip(device, args.peak_tflops)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return [
        ("device", name),
        ("model", f"{args.shape}: {frozen:,} frozen and {trained:,} trained parameters"),
        ("step", f"stage '{args.stage}', {args.batch} x {args.frames} frames, {args.size} x {args.size} px"),
        (
            "step time",
            f"{median_s:.4g} s, median of {len(seconds)} ({min(seconds):.3g} to {max(seconds):.3g})",
        ),
        ("samples/s", f"{args.batch / median_s:.4g}"),
        ("peak memory", f"{peak_memory_gib(device):.2f} GiB"),
        ("needed by the model", work(needed, median_s, peak_tflops)),
        ("done, recomputation included", work(needed + flops.recomputed, median_s, peak_tflops)),
        ("torch", torch.__version__),
    ]


def settings(args: argparse.Namespace) -> TrainConfig:
    """The section `model` of a run, as the options name it."""
    keep = int(args.keep) if args.keep.isdecimal() else args.keep
    model = {
        "trainable": args.trainable, "gradient_checkpointing": not args.no_checkpointing, "keep": keep,
        "attention": args.attention, "compile": args.compile, "fp8": args.fp8,
    }  # fmt: skip
    data = {"sizes": [[args.size, args.size]], "num_frames": args.frames, "batch_size": args.batch}
    run = {"precision": "bf16", "out": "none"}
    config = TrainConfig.model_validate({"model": model, "data": data, "run": run})
    if problems := [*memory_contradictions(config)]:
        raise CommandError("; ".join(problems))
    return config


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="14b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--stage", choices=("clip", "frame"), default="frame")
    parser.add_argument("--trainable", choices=("adapters", "full"), default="adapters")
    for name, value in {"frames": 81, "size": 512, "batch": 1, "steps": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--keep", default="nothing", help="model.keep: nothing, attention, auto or blocks")
    parser.add_argument("--attention", choices=("native", "cudnn", "flash", "flash3"), default="native")
    parser.add_argument("--compile", action="store_true", help="model.compile")
    parser.add_argument("--fp8", action="store_true", help="model.fp8")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU; 0: torch decides")
    parser.add_argument("--peak-tflops", type=float, help="of a chip that is not known")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise CommandError(
                "--device cuda: expected a GPU, found none; `--shape tiny --device cpu` runs without one"
            )
        torch.set_num_threads(args.threads or torch.get_num_threads())
        rows = report(args, torch.device(args.device))
    except torch.OutOfMemoryError as error:
        sys.stderr.write(f"train_gpu: the GPU's memory does not suffice: {str(error).splitlines()[0]}\n")
        return 1
    except TalkforgeError as error:
        sys.stderr.write(f"train_gpu: {error}\n")
        return 2 if isinstance(error, CommandError) else 1
    sys.stdout.write("| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
