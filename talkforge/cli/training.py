"""Commands that train: encode, train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import TRAIN, command, err, notes, out
from talkforge.cli.options import DatasetArgument, SettingsOption, TrainConfigOption
from talkforge.display import Display
from talkforge.schemas import extras
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
