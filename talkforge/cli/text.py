"""Commands that add text to the clips in the shards: transcribe and caption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talkforge.cli.app import ADD, command, notes, out
from talkforge.cli.options import DatasetArgument
from talkforge.display import Display
from talkforge.schemas.progress import Progress, counted

if TYPE_CHECKING:
    from talkforge.pipeline.annotate import Counts


@command(
    ADD,
    "talkforge transcribe set --model small",
    "talkforge transcribe set --model small --align default -j 4",
)
def transcribe(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Whisper model in CTranslate2's format.")],
    python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python with WhisperX; by itself that of .venv-asr (make asr)."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Code such as en; without it the model says.")] = None,
    align: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="wav2vec2 model for word times, or default: WhisperX's own for the language.",
        ),
    ] = None,
    diarize: Annotated[
        str | None, typer.Option(metavar="NAME|FOLDER", help="pyannote pipeline that distinguishes voices.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compute_type: Annotated[str, typer.Option(help="CTranslate2's, such as int8 or float16.")] = "default",
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes, one thread each.")
    ] = 1,
) -> None:
    """Transcribe the clips in the shards with WhisperX, then select and report again. Resumes."""
    from talkforge.pipeline import transcribe as job
    from talkforge.pipeline.store import Store

    options = job.TranscribeOptions(
        model=model, language=language, align=align, diarize=diarize, device=device, compute_type=compute_type
    )
    found = job.find_python(python)
    _annotate(
        dataset, "transcribing", lambda show: job.transcribe(Store(dataset), found, options, workers, show)
    )


@command(ADD, "talkforge caption set --model Qwen/Qwen2-VL-2B-Instruct")
def caption(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Vision-language model of transformers.")],
    prompt: Annotated[str | None, typer.Option(help="What it is asked of each clip.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the clip that it is shown.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Caption the clips in the shards with a vision-language model. Resumes."""
    from talkforge.pipeline import caption as job
    from talkforge.pipeline.store import Store

    options = job.CaptionOptions(
        model=model, prompt=prompt or job.PROMPT, num_pictures=frames, max_tokens=max_tokens, device=device
    )
    _annotate(dataset, "captioning", lambda show: job.caption(Store(dataset), options, show))


def _annotate(dataset: str, phase: str, run: Callable[[Callable[[int, int], None]], Counts]) -> None:
    """What transcribe and caption share: the data set to itself, progress, then ledger and report."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    with exclusive(store), Display(notes) as display:
        counts = run(lambda done, total: display.show(counted(phase, done, total, "clips")))
        display.show(Progress("selecting"))
        selection = job.select(store, described, load_ingested(store))
        display.show(Progress("report"))
        job.report(store, selection)
    out.print(f"{counts.annotated} clips done, {counts.before} were before, {counts.failed} failed")
    accepted = len(selection.accepted)
    out.print(f"{accepted} clips accepted; `talkforge shard {dataset}` writes what changed", soft_wrap=True)
