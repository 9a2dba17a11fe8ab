"""What each model is good for, and what it costs: the tables of docs/models.md.

    TALKFORGE_MODELS=../shared/weights python -m benchmarks.models [FOLDER] [--only QUESTION ...]

FOLDER holds the clips that `benchmarks/material.py` names. Each row is one function of `ROWS`, in
`benchmarks/video_models.py` and `benchmarks/audio_models.py`. It measures with the code of the pipeline, on
one thread.
A row whose weights are not on this machine is left out, which stderr says; the second table names the
weights. Transcripts need an environment of their own, which TALKFORGE_ASR_PYTHON names. CPU seconds are
per second of footage (of speech, for what only hears), and depend on the machine and on who else is
using it: compare within the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer

from benchmarks import audio_models, video_models
from benchmarks.material import Material, Row
from talkforge.curation.weights import registry
from talkforge.schemas.errors import CommandError, ModelError

FOLDER = Path("../shared/clips")

app = typer.Typer(add_completion=False, help=__doc__)

ROWS: dict[str, Callable[[Material], Iterator[Row]]] = {
    "scenes": video_models.scenes,
    "faces": video_models.detection,
    "landmarks, lips": video_models.mesh,
    "body": video_models.body,
    "speech activity": audio_models.voice,
    "speech features": audio_models.speech_features,
    "sync": audio_models.mouth_and_sound,
    "active speaker": audio_models.who_speaks,
    "identity": video_models.who_it_is,
    "image quality": video_models.image_quality,
    "near duplicates": video_models.copies,
    "audio quality": audio_models.audio_quality,
    "music": audio_models.music,
    "words": audio_models.transcripts,
}
"""Question -> what answers it."""


# --- tables ------------------------------------------------------------------------------------------


def line(question: str, row: Row) -> str:
    known = [registry.MODELS[name] for name in row.models if name in registry.MODELS]
    licences = " / ".join(dict.fromkeys(model.licence for model in known)) or row.licence
    commercial = "yes" if all(model.commercial_use for model in known) else "no"
    name = ", ".join(row.models)
    cost = f"{row.rate:.3f}" if row.rate >= 0.001 else "under 0.001"
    return f"| {question} | {name} | {licences} | {commercial} | {row.figures} | {cost} |"


def not_here() -> Iterator[str]:
    for model in registry.MODELS.values():
        if registry.present(model.name) is None:
            commercial = "yes" if model.commercial_use else "no"
            yield f"| {model.name} | {model.needed_by} | {model.licence} | {commercial} | {model.source} |"


NAMED_BY_USERS = (
    ("captions", "talkforge caption", "any vision-language model of transformers"),
    ("words, larger models", "talkforge transcribe --model", "any Whisper in CTranslate2's format"),
    ("word times by alignment", "talkforge transcribe --align", "a wav2vec2 model for the language"),
    ("turns of voices", "talkforge transcribe --diarize", "a pyannote pipeline"),
    ("HuBERT, WavLM, Whisper, ...", "embed: speech embedding (speech.embedding)", "a transformers encoder"),
)
"""What users choose and bring: question, what needs it, what it is."""


@app.command()
def main(
    folder: Annotated[Path, typer.Argument()] = FOLDER,
    only: Annotated[list[str], typer.Option(help="Only these questions.")] = [],  # noqa: B006
) -> None:
    """Print both tables."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    material = Material(folder)
    typer.echo(
        "| question | model | licence | commercial use | measured | CPU s per s |\n|---|---|---|---|---|---|"
    )
    for question, measure in ROWS.items():
        if not only or question in only:
            try:
                for row in measure(material):
                    typer.echo(line(question, row))
            except (CommandError, ModelError) as error:
                typer.echo(f"{question}: left out: {error}", err=True)
    typer.echo("\n| not here | needed by | licence | commercial use | from |\n|---|---|---|---|---|")
    for text in not_here():
        typer.echo(text)
    for question, needed_by, what in NAMED_BY_USERS:
        typer.echo(
            f"| {question} | {needed_by} | the model's own | as it says | {what}, by hub name or folder |"
        )


if __name__ == "__main__":
    app()
