"""The command line. Exit codes: 0 finished (failures are rows), 1 the run itself could not finish,
2 a bad command, 130 interrupted."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from talkforge.schemas.config import Config, apply_settings, load_config
from talkforge.schemas.errors import CommandError, TalkforgeError

if TYPE_CHECKING:
    from talkforge.pipeline.annotate import Counts
    from talkforge.pipeline.executor import Executor
    from talkforge.training.encode.command import EncodeResult

LINE_EVERY_S = 10.0
"""Progress of `encode` is written at most this often, s."""

app = typer.Typer(
    name="talkforge",
    help="Raw talking-head footage in, training data for audio-driven portrait video out; trains on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder or fsspec URI of a data set.")
]
SettingsOption = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Overrides one value of the configuration."),
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="ray, or inline: everything in this process.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster to use, such as auto; without it Ray starts on this machine.")
]


@app.command()
def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Files, folders, globs, lists (.txt, .csv, .tsv, .parquet) or URIs."
        ),
    ],
    dataset: Annotated[str, typer.Option("--out", metavar="DATASET", help="Folder or URI of the data set.")],
    config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Preset (offline, curate), or a YAML file.")
    ] = None,
    settings: SettingsOption = [],  # noqa: B006 (typer reads the default, nobody changes it)
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N inputs.")] = None,
) -> None:
    """Measure videos, choose clips, cut them into shards and write the report. Resumes."""
    from talkforge.display import Fetching, Watch, summary
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    resolved = load_config(config, settings)
    _check_executor(executor, address)
    with Fetching(err) as fetching, Watch(err) as watch:
        selection = job.curate(
            inputs,
            Store(dataset),
            resolved,
            _executor(executor, resolved, address),
            limit,
            watch.show,
            fetching.show,
        )
    summary(out, selection, dataset)


@app.command()
def status(dataset: DatasetArgument) -> None:
    """What is done, what is left, and what was kept so far."""
    from talkforge.display import progress_line
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    state = job.progress(store, load_dataset(store).config)
    out.print(f"{len(load_ingested(store))} inputs; {progress_line(state)}", soft_wrap=True, highlight=False)


@app.command()
def select(dataset: DatasetArgument, settings: SettingsOption = []) -> None:  # noqa: B006
    """Apply other thresholds to what was measured; decodes nothing."""
    from talkforge.display import summary
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    begin_s = time.monotonic()
    config = _reselected(described.config, settings)
    with exclusive(store):
        selection = job.select(store, described.model_copy(update={"config": config}), load_ingested(store))
        job.report(store)
    summary(out, selection, dataset)
    waiting = sum(row.accepted and row.shard is None for row in selection.rows)
    if waiting:
        out.print(f"{waiting} accepted clips are in no shard yet: talkforge shard {dataset}")
    out.print(f"selected in {time.monotonic() - begin_s:.1f} s")


@app.command()
def shard(
    dataset: DatasetArgument,
    settings: SettingsOption = [],  # noqa: B006
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
) -> None:
    """Cut what is now accepted into shards; measures nothing again."""
    from talkforge.display import summary
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    config = _reselected(described.config, settings)
    _check_executor(executor, address)
    with exclusive(store):
        ingested = load_ingested(store)
        selection = job.select(store, described.model_copy(update={"config": config}), ingested)
        runner = _executor(executor, config, address)()
        try:
            selection = job.shard(store, load_dataset(store), selection, ingested, runner)
        finally:
            runner.close()
    summary(out, selection, dataset)


@app.command()
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
        str | None, typer.Option(metavar="NAME|FOLDER", help="pyannote pipeline that tells voices apart.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compute_type: Annotated[str, typer.Option(help="CTranslate2's, such as int8 or float16.")] = "default",
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
) -> None:
    """Transcribe the clips in the shards with WhisperX, then select and report again. Resumes."""
    from talkforge.pipeline import transcribe as job
    from talkforge.pipeline.store import Store

    options = job.Options(
        model=model, language=language, align=align, diarize=diarize, device=device, compute_type=compute_type
    )
    found = job.find_python(python)
    _annotate(dataset, lambda watch: job.transcribe(Store(dataset), found, options, workers, watch))


@app.command()
def caption(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Vision-language model of transformers.")],
    prompt: Annotated[str | None, typer.Option(help="What it is asked of each clip.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of the clip that it is shown.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Caption the clips in the shards with a vision-language model. Resumes."""
    from talkforge.pipeline import caption as job
    from talkforge.pipeline.store import Store

    options = job.Options(
        model=model, prompt=prompt or job.PROMPT, num_pictures=pictures, max_tokens=max_tokens, device=device
    )
    _annotate(dataset, lambda watch: job.caption(Store(dataset), options, watch))


@app.command()
def report(dataset: DatasetArgument) -> None:
    """Write report/index.html and report/statistics.json again."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    folder = job.report(Store(dataset))
    out.print(f"{dataset}/{folder}/index.html", soft_wrap=True)


@app.command()
def verify(dataset: DatasetArgument) -> None:
    """Check every checksum, member, shape and clock; exit 1 and name what is wrong."""
    from talkforge.pipeline.store import Store
    from talkforge.pipeline.verify import verify as check

    store = Store(dataset)
    if not store.exists("dataset.json") and not store.list("parts"):
        raise CommandError(f"{store.root}: no data set here (dataset.json is missing)")
    problems = check(store)
    for problem in problems:
        out.print(f"{problem.path}: {problem.what}", soft_wrap=True, markup=False, highlight=False)
    if problems:
        raise typer.Exit(1)
    out.print(f"{dataset}: everything is as it should be", soft_wrap=True)


@app.command()
def inspect(
    dataset: DatasetArgument,
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="Id of a clip, as in ledger.parquet.")],
    to: Annotated[Path, typer.Option("--out", metavar="FILE.mp4", help="Video to write.")],
) -> None:
    """Draw box, landmarks, lip mask, mouth opening and loudness over a clip."""
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.store import Store

    job.inspect(Store(dataset), clip, to)
    out.print(str(to), soft_wrap=True)


@app.command()
def models(
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME...]", help="Only these.", show_default=False)
    ] = [],  # noqa: B006
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what is named now.")] = False,
) -> None:
    """Which weights there are: source, licence, commercial use, present or not."""
    from talkforge.curation.weights import registry
    from talkforge.display import Fetching, weights_table

    if fetch and not names:
        raise CommandError(f"--fetch: expected the names of models: {', '.join(registry.MODELS)}")
    unknown = [name for name in names if name not in registry.MODELS]
    if unknown:
        raise CommandError(f"no model is called {unknown[0]}; known: {', '.join(registry.MODELS)}")
    if fetch:
        with Fetching(err) as fetching:
            for name in names:
                path = registry.present(name) or registry.fetch(
                    name, allow_web=True, on_progress=fetching.show
                )
                out.print(f"{name}: {path}", soft_wrap=True, markup=False, highlight=False)
        return
    rows = [row for row in registry.describe() if not names or row.name in names]
    weights_table(out, rows)


TrainConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME|FILE", help="Preset, such as wan-14b-stage1, or a YAML file."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run (its last checkpoint), or of a checkpoint.")
]


@app.command()
def encode(
    dataset: DatasetArgument,
    config: TrainConfigOption = None,
    settings: SettingsOption = [],  # noqa: B006
    spans: Annotated[int, typer.Option(min=1, help="Spans of every clip, evenly spaced.")] = 1,
) -> None:
    """Cache latents, conditions and prompt embeddings beside the shards, for training. Resumes."""
    from talkforge.training.encode.command import run_encode

    shown_s = time.monotonic()

    def show(state: EncodeResult) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= LINE_EVERY_S:
            shown_s = time.monotonic()
            err.print(state.line(), soft_wrap=True, highlight=False)

    result = run_encode(dataset, config, settings, spans, show)
    for key, reason in result.bad_keys.items():
        err.print(f"left out: {key}: {reason}", soft_wrap=True, markup=False, highlight=False)
    out.print(result.line(), soft_wrap=True, highlight=False)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Preset, such as tiny-stage1, or a YAML file.")
    ],
    settings: SettingsOption = [],  # noqa: B006
) -> None:
    """Train in this process; `accelerate launch -m talkforge.training.train` uses many. Resumes."""
    from talkforge.training.train import run_train

    if code := run_train(config, settings):
        raise typer.Exit(code)


@app.command()
def generate(
    run: RunArgument,
    image: Annotated[Path, typer.Option(metavar="FILE", help="Portrait.")],
    audio: Annotated[Path, typer.Option(metavar="FILE", help="What it should say: any sound or video file.")],
    to: Annotated[Path, typer.Option("--out", metavar="FILE.mp4", help="Video to write.")],
    prompt: Annotated[str, typer.Option(help="Prompt, where the model has a text encoder.")] = "",
    omega_face: Annotated[float, typer.Option(help="How much the face moves, 0 to 1.")] = 0.5,
    omega_body: Annotated[float, typer.Option(help="How much the body moves, 0 to 1.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Euler steps; the run's own.")] = None,
    text_cfg: Annotated[float | None, typer.Option(help="Guidance by the prompt; the run's own.")] = None,
    audio_cfg: Annotated[float | None, typer.Option(help="Guidance by the audio; the run's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or a torch device.")] = "auto",
) -> None:
    """Make a portrait speak: one window of video, with sound."""
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


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="A name in .ckpt, .pt or .safetensors.")],
) -> None:
    """Write a run's audio weights in the layout that FantasyTalking's were published in."""
    from talkforge.training.train import run_export

    run_export(run, to)
    out.print(str(to), soft_wrap=True)


def main() -> None:
    """Entry point: turns every error into one line and an exit code."""
    if sys.stderr is sys.__stderr__ and os.environ.get("TALKFORGE_LOG", "").upper() != "DEBUG":
        _hush_libraries()
    logging.basicConfig(
        level=os.environ.get("TALKFORGE_LOG", "WARNING").upper(), format="%(levelname)s %(message)s"
    )
    for noisy in ("huggingface_hub", "transformers"):  # what matters of theirs arrives as an error
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
    except typer.Exit as request:
        code = request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except CommandError as error:
        err.print(f"talkforge: {error}", soft_wrap=True, markup=False, highlight=False)
        code = 2
    except TalkforgeError as error:
        err.print(f"talkforge: {error}", soft_wrap=True, markup=False, highlight=False)
        code = 1
    except Exception as error:
        code = _click_or_bug(error)
    if code == 130:  # also what typer makes of a KeyboardInterrupt
        err.print("interrupted; the same command goes on from here")
    sys.exit(code)


def _hush_libraries() -> None:
    """MediaPipe and TFLite chat on descriptor 2 whatever they are told: give it to nobody, and write
    what we have to say to a copy."""
    sys.stderr.flush()
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(ours, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _click_or_bug(error: Exception) -> int:
    """Exit code of an error of the command line's own library (2), or of one of ours (1)."""
    describe = getattr(error, "format_message", None)
    if callable(describe):
        if text := describe().strip():  # nothing where no command was given: help was shown
            err.print(f"talkforge: {text} (see --help)", soft_wrap=True, markup=False, highlight=False)
        return int(getattr(error, "exit_code", 2))
    logging.getLogger(__name__).debug("unexpected", exc_info=True)
    text = " ".join(str(error).split())
    err.print(
        f"talkforge: unexpected {type(error).__name__}: {text} (TALKFORGE_LOG=DEBUG shows where)",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return 1


def _annotate(dataset: str, run: Callable[[Callable[[int, int], None]], Counts]) -> None:
    """What transcribe and caption share: the data set to itself, progress, then ledger and report."""
    from talkforge.display import CountWatch
    from talkforge.pipeline import jobs as job
    from talkforge.pipeline.dataset import exclusive, load_dataset, load_ingested
    from talkforge.pipeline.store import Store

    store = Store(dataset)
    described = load_dataset(store)
    with exclusive(store):
        counts = run(CountWatch(err).show)
        selection = job.select(store, described, load_ingested(store))
        job.report(store)
    out.print(f"{counts.annotated} clips done, {counts.before} were before, {counts.failed} failed")
    accepted = sum(row.accepted for row in selection.rows)
    out.print(f"{accepted} clips accepted; `talkforge shard {dataset}` writes what changed", soft_wrap=True)


def _check_executor(name: str, address: str | None) -> None:
    if name not in ("ray", "inline"):
        raise CommandError(f"--executor {name}: expected ray or inline")
    if address and name == "inline":
        raise CommandError("--address: goes with --executor ray")


def _executor(name: str, config: Config, address: str | None) -> Callable[[], Executor]:
    from talkforge.pipeline.executor import make_executor

    return lambda: make_executor(name, config, address)


def _reselected(config: Config, settings: list[str]) -> Config:
    for setting in settings:
        section = setting.partition(".")[0]
        if section not in ("thresholds", "shards", "run"):
            raise CommandError(
                f"--set {setting}: only thresholds, shards and run can change without measuring again"
            )
    return apply_settings(config.model_dump(mode="json"), settings)
