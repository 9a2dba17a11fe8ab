"""Commands that make portraits speak: generate, studio."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from talkforge.cli.app import TRAIN, command, notes, out
from talkforge.cli.options import AddressOption, ExecutorOption, check_executor
from talkforge.cli.pages import OpenOption, PortOption, serve
from talkforge.display import Display
from talkforge.schemas import extras, scratch
from talkforge.schemas.errors import CommandError, ModelError, one_line
from talkforge.schemas.progress import Progress

RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Folder of a run (its last checkpoint), or of a checkpoint."),
]
BaseModelOption = Annotated[
    str,
    typer.Option("--base", metavar="DIR|NAME", help="Without RUN: diffusers Wan 2.1 model, for --adapters."),
]
AdaptersOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Published audio weights, .ckpt or .safetensors.")
]
SpeechModelOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|NAME", help="Speech encoder of --adapters [wav2vec2-base-960h]."),
]
FpsOption = Annotated[
    float | None, typer.Option(min=1, max=120, help="Frames per second with --adapters [23].")
]
LoraOption = Annotated[
    list[Path], typer.Option(metavar="FILE", help="Low-rank updates of the base, such as LightX2V's.")
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16: type of the weights.")]
Fp8Option = Annotated[bool, typer.Option("--fp8", help="Store the transformer in 8 bits.")]
OffloadOption = Annotated[str, typer.Option(help="none, model or group: what waits in main memory.")]
TilingOption = Annotated[bool, typer.Option("--vae-tiling", help="Decode large frames in tiles.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or a torch device.")]


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
    run: RunArgument = None,
    base: BaseModelOption = "",
    adapters: AdaptersOption = None,
    speech_model: SpeechModelOption = None,
    fps: FpsOption = None,
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
    passes_together: Annotated[
        bool | None,
        typer.Option(
            "--passes-together/--passes-apart",
            help="Guidance's passes in one batch, or one by one, which needs less memory; the run's own.",
        ),
    ] = None,
    lora: LoraOption = [],  # noqa: B006
    dtype: DtypeOption = "auto",
    fp8: Fp8Option = False,
    offload: OffloadOption = "none",
    vae_tiling: TilingOption = False,
    device: DeviceOption = "auto",
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
        "passes_together": passes_together,
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
    if address is not None or workers is not None or executor != "ray":
        raise CommandError("--executor, --address, --workers: go with --batch")
    one = job.Job(image, audio, to, prompt, omega_face, omega_body, seed, face)
    with Display(notes) as display:
        job.generate(source, one, given, device=device, saving=saving, show=display.show)
    out.print(str(to), soft_wrap=True)


@command(
    TRAIN,
    "talkforge studio run2",
    "talkforge studio run2 --out videos --open",
    "talkforge studio --base Wan-AI/Wan2.1-I2V-14B-720P-Diffusers --adapters fantasytalking_model.ckpt",
)
def studio(
    run: RunArgument = None,
    base: BaseModelOption = "",
    adapters: AdaptersOption = None,
    speech_model: SpeechModelOption = None,
    fps: FpsOption = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Keep the videos here; otherwise they are deleted at the end."
        ),
    ] = None,
    port: PortOption = 0,
    open_page: OpenOption = False,
    lora: LoraOption = [],  # noqa: B006
    dtype: DtypeOption = "auto",
    fp8: Fp8Option = False,
    offload: OffloadOption = "none",
    vae_tiling: TilingOption = False,
    device: DeviceOption = "auto",
) -> None:
    """A page on which a portrait speaks: image, file or microphone, sliders, video. Ctrl-C ends it.

    The page is served on this machine alone, at an address with a secret, and nothing is sent anywhere.
    """
    extras.require("train", "studio")
    extras.require("view", "studio")
    from talkforge.studio.server import listen
    from talkforge.studio.studio import Studio
    from talkforge.training.generate.pipeline import GenerationPipeline, source_of
    from talkforge.training.generate.savings import Savings

    source = source_of(run, base, adapters, speech_model, fps)
    saving = Savings(dtype, fp8, offload, vae_tiling, tuple(lora))
    with ExitStack() as ending:
        given = ending.enter_context(scratch.folder())
        videos = to or ending.enter_context(scratch.folder())
        try:
            videos.mkdir(parents=True, exist_ok=True)
            ending.enter_context(scratch.folder(str(videos)))  # a folder that cannot be written is said now
        except OSError as error:
            raise CommandError(f"--out {videos}: cannot be written to ({one_line(error)})") from None
        with Display(notes) as display:
            display.show(Progress("loading the model"))
            try:
                pipeline = GenerationPipeline.load(source, device, saving)
            except ModelError as error:
                raise CommandError(str(error)) from None
        page = Studio(pipeline, source, saving, given, videos)
        ending.callback(page.close)
        server = listen(page, f"Studio: {run or adapters}", port)
        if to is None:
            notes.print("videos are deleted at the end: --out keeps them", markup=False, highlight=False)
        serve(server, open_page)
