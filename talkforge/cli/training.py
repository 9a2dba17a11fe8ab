"""Commands that train and use what was trained: encode, train, generate, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import TRAIN, command, err, notes, out
from talkforge.cli.options import (
    DatasetArgument,
    RunArgument,
    SettingsOption,
    TrainConfigOption,
    VideoOutOption,
)
from talkforge.display import Display
from talkforge.schemas import extras
from talkforge.schemas.progress import Progress

if TYPE_CHECKING:
    from talkforge.training.encode.command import EncodeResult


@command(
    TRAIN,
    "talkforge encode set --config wan-14b-stage1",
    "talkforge encode set -c wan-14b-stage1 --spans 4",
)
def encode(
    dataset: DatasetArgument,
    config: TrainConfigOption = None,
    settings: SettingsOption = [],  # noqa: B006 (typer reads the default, nobody changes it)
    spans: Annotated[int, typer.Option(min=1, help="Spans of every clip, evenly spaced.")] = 1,
) -> None:
    """Cache latents, conditions and prompt embeddings beside the shards, for training. Resumes."""
    from talkforge.training.config import load_train_config

    load_train_config(config, settings)  # a mistake is reported before anything large is imported
    extras.require("train", "encode")
    from talkforge.training.encode.command import run_encode

    with Display(notes) as display:

        def show(state: EncodeResult) -> None:
            display.show(Progress("encoding", state.done, state.shards, state.line()))

        result = run_encode(dataset, config, settings, spans, show)
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


@command(TRAIN, "talkforge generate run2 --image face.png --audio speech.wav -o out.mp4")
def generate(
    run: RunArgument,
    image: Annotated[Path, typer.Option(metavar="FILE", help="Portrait.")],
    audio: Annotated[Path, typer.Option(metavar="FILE", help="What it should say: any audio or video file.")],
    to: VideoOutOption,
    prompt: Annotated[str, typer.Option(help="Prompt, where the model has a text encoder.")] = "",
    omega_face: Annotated[float, typer.Option(help="How much the face moves, 0 to 1.")] = 0.5,
    omega_body: Annotated[float, typer.Option(help="How much the body moves, 0 to 1.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Euler steps; the run's own.")] = None,
    text_cfg: Annotated[float | None, typer.Option(help="Guidance by the prompt; the run's own.")] = None,
    audio_cfg: Annotated[float | None, typer.Option(help="Guidance by the audio; the run's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or a torch device.")] = "auto",
) -> None:
    """Make a portrait speak: one window of video, with audio."""
    extras.require("train", "generate")
    from talkforge.training.generate import generate as make

    changes = {"steps": steps, "text_cfg": text_cfg, "audio_cfg": audio_cfg}
    make(
        run,
        image,
        audio,
        to,
        prompt=prompt,
        omega_face=omega_face,
        omega_body=omega_body,
        seed=seed,
        changes={key: value for key, value in changes.items() if value is not None},
        device=device,
    )
    out.print(str(to), soft_wrap=True)
