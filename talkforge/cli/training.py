"""Commands that train and use what was trained: encode, train, generate, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import TRAIN, command, err, notes, out
from talkforge.cli.options import (
    AddressOption,
    DatasetArgument,
    ExecutorOption,
    SettingsOption,
    TrainConfigOption,
    check_executor,
)
from talkforge.display import Display
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError
from talkforge.schemas.progress import Progress

if TYPE_CHECKING:
    from talkforge.training.encode.command import EncodeResult


@command(
    TRAIN,
    "talkforge encode set --config wan-14b-stage1",
    "talkforge encode set -c wan-14b-stage1 --spans cover",
    "talkforge encode s3://bucket/set -c wan-14b-stage1 --shards 1/4",
)
def encode(
    dataset: DatasetArgument,
    config: TrainConfigOption = None,
    settings: SettingsOption = [],  # noqa: B006 (typer reads the default, nobody changes it)
    spans: Annotated[
        str,
        typer.Option(metavar="N|cover", help="Spans of a clip, evenly spaced, or as many as cover it."),
    ] = "1",
    shards: Annotated[
        str, typer.Option(metavar="I/N", help="Every N-th shard, from the I-th: one of N machines.")
    ] = "1/1",
) -> None:
    """Cache latents, conditions and prompt embeddings beside the shards, for training. Resumes."""
    from talkforge.training.config import load_train_config

    load_train_config(config, settings)  # a mistake is reported before anything large is imported
    extras.require("train", "encode")
    from talkforge.training.encode.command import parsed_part, parsed_spans, run_encode

    wanted, part = parsed_spans(spans), parsed_part(shards)
    with Display(notes) as display:

        def show(state: EncodeResult) -> None:
            display.show(Progress("encoding", state.done, state.shards, state.line()))

        result = run_encode(dataset, config, settings, wanted, show, part)
    for key, reason in result.skipped_keys.items():
        err.print(f"left out: {key}: {reason}", soft_wrap=True, markup=False, highlight=False)
    out.print(result.line(), soft_wrap=True, highlight=False)


@command(
    TRAIN,
    "talkforge train tiny-stage1 --set data.shards=set/shards/train-000000.tar --set run.out=run1",
    "accelerate launch -m talkforge.training.train --config wan-14b-stage1",
)
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Preset, such as tiny-stage1, or a YAML file.")
    ],
    settings: SettingsOption = [],  # noqa: B006
) -> None:
    """Train in this process; `accelerate launch -m talkforge.training.train` uses many. Resumes."""
    from talkforge.training.config import load_train_config

    load_train_config(config, settings)
    extras.require("train", "train")
    from talkforge.training.train import run_train

    if code := run_train(config, settings, notes):
        raise typer.Exit(code)


@command(
    TRAIN,
    "talkforge generate run2 --image face.png --audio speech.wav -o out.mp4",
    "talkforge generate --base Wan-AI/Wan2.1-I2V-14B-720P-Diffusers --adapters fantasytalking_model.ckpt "
    "--image face.png --audio speech.wav -o out.mp4",
)
def generate(
    to: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.mp4", help="Video to write; with --batch, a folder.")
    ],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Portrait.")] = None,
    audio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What it should say: any audio or video file.")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Jobs in .csv, .tsv or .parquet, one a row: docs/generate.md."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Folder of a run (its last checkpoint), or of a checkpoint."),
    ] = None,
    base: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="Without RUN: diffusers Wan 2.1 model, for --adapters.")
    ] = "",
    adapters: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Published audio weights, .ckpt or .safetensors.")
    ] = None,
    speech_model: Annotated[
        str | None,
        typer.Option(metavar="DIR|NAME", help="Speech encoder of --adapters [wav2vec2-base-960h]."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=1, max=120, help="Frames per second with --adapters [23].")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Prompt, where the model has a text encoder.")] = "",
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from; the run's own.")
    ] = None,
    omega_face: Annotated[float, typer.Option(help="How much the face moves, 0 to 1.")] = 0.5,
    omega_body: Annotated[float, typer.Option(help="How much the body moves, 0 to 1.")] = 0.5,
    face: Annotated[
        int | None, typer.Option(metavar="N", help="Which face speaks, from 1 on, left to right [largest].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the solver; the run's own.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler or dpm++2m; the run's own.")] = None,
    text_cfg: Annotated[float | None, typer.Option(help="Guidance by the prompt; the run's own.")] = None,
    audio_cfg: Annotated[float | None, typer.Option(help="Guidance by the audio; the run's own.")] = None,
    windows: Annotated[
        str | None, typer.Option(help="overlap or continue: how a long video is made; the run's own.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Latent frames that two windows share.")
    ] = None,
    cache: Annotated[
        float | None, typer.Option(min=0, help="Step caching: least change that is computed; 0: off.")
    ] = None,
    lora: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Low-rank updates of the base, such as LightX2V's.")
    ] = [],  # noqa: B006
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: type of the weights.")] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="Store the transformer in 8 bits.")] = False,
    offload: Annotated[str, typer.Option(help="none, model or group: what waits in main memory.")] = "none",
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode large frames in tiles.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or a torch device.")] = "auto",
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, metavar="N", help="Processes of --batch; one for each GPU."),
    ] = None,
) -> None:
    """Make a portrait speak: video as long as the audio. Goes on where it was interrupted."""
    extras.require("train", "generate")
    from talkforge.training.generate import job, table
    from talkforge.training.generate.pipeline import source_of
    from talkforge.training.generate.savings import Savings

    changes = {
        "steps": steps,
        "solver": solver,
        "text_cfg": text_cfg,
        "audio_cfg": audio_cfg,
        "negative_prompt": negative_prompt,
        "windows": windows,
        "overlap": overlap,
        "cache": cache,
    }
    source = source_of(run, base, adapters, speech_model, fps)
    saving = Savings(dtype, fp8, offload, vae_tiling, tuple(lora))
    given = {key: value for key, value in changes.items() if value is not None}
    if batch is not None:
        others: dict[str, object] = {
            "--image": image,
            "--audio": audio,
            "--prompt": prompt,
            "--face": face,
            "--seed": seed,
        }
        others |= {"--omega-face": omega_face - 0.5, "--omega-body": omega_body - 0.5}
        if named := [name for name, value in others.items() if value]:
            raise CommandError(f"{', '.join(named)}: is a column of the table of --batch")
        check_executor(executor, address, workers)
        with Display(notes) as display:
            found = table.run_table(
                batch,
                to,
                lambda prompts: table.Making(source, given, device, saving, prompts),
                workers=workers,
                address=address,
                inline=executor == "inline",
                show=display.show,
            )
        counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in found.items())
        out.print(f"{to / 'jobs.parquet'}: {counts}", soft_wrap=True, highlight=False)
        return
    if image is None or audio is None:
        raise CommandError("expected --image and --audio, or --batch")
    one = job.Job(image, audio, to, prompt, omega_face, omega_body, seed, face)
    with Display(notes) as display:
        job.generate(source, one, given, device=device, saving=saving, show=display.show)
    out.print(str(to), soft_wrap=True)
