"""The paper's ablation: what each part of the training is worth, trained, generated and evaluated alike.

Source: FantasyTalking, section 4.3: clip level only, frame level only, without identity, and the motion
intensities 0.1, 0.5 and 1. Every training takes as many steps in all.

OUT/runs/NAME-stage1, NAME-stage2   the runs
OUT/VARIANT/                        videos and the report of `talkforge evaluate`
OUT/ablation.json, .csv, .tex       the table
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talkforge.pipeline.cluster import Cluster
from talkforge.schemas import scratch
from talkforge.schemas.errors import CommandError, RunError, TalkforgeError, one_line
from talkforge.schemas.progress import Progress, ProgressCallback, no_progress
from talkforge.training.config import AdapterConfig, TrainConfig, check, load_train_config
from talkforge.training.evaluate import job
from talkforge.training.evaluate.metrics import METRICS
from talkforge.training.evaluate.report import csv_text, interval, tex_cell
from talkforge.training.generate.of_dataset import generate_clips

log = logging.getLogger(__name__)

PAPER_COLUMNS = ("fvd", "sync_c", "sync_d", "idc", "sd")
"""Columns of the paper's table of ablations."""

FREE_COLUMNS = (
    "sync_probability", "lip_aperture_r", "lip_aperture_ratio", "identity_similarity", "head_motion_deg",
    "flow_subject", "jitter", "face_seen_fraction",
)  # fmt: skip
"""Columns beside them that need no download."""

LABELS = {
    "full": "full model",
    "clip_only": "clip level only",
    "frame_only": "frame level only",
    "no_identity": "without identity",
    "motion_0.1": "motion intensity 0.1",
    "motion_0.5": "motion intensity 0.5",
    "motion_1.0": "motion intensity 1.0",
}
"""Variant -> what it is, in the order of the table."""

OMEGAS = {"motion_0.1": 0.1, "motion_0.5": 0.5, "motion_1.0": 1.0}
"""Variants that generate with the full model at one motion intensity of face and body."""


NO_FACE: dict[str, Any] = {
    "face": False,
    **{name: field.default for name, field in AdapterConfig.model_fields.items() if name.startswith("face_")},
}
"""Adapters without the face branch: its sizes are the defaults, because they have no effect."""


@dataclass(frozen=True)
class Training:
    """One training, and the variants that its model gives.

    Attributes:
        name: variant that it is named by.
        stages: configurations, one after the other.
        variants: variant -> motion intensity of face and body, or None for that of each clip.
    """

    name: str
    stages: tuple[TrainConfig, ...]
    variants: Mapping[str, float | None]


@dataclass(frozen=True)
class Ablation:
    """What is asked for.

    Attributes:
        config: name of a pair of presets or files, without `-stage1` and `-stage2` (and `.yaml`).
        settings: `section.key=value` for both stages.
        dataset: data set whose clips are generated and evaluated.
        out: folder of everything.
        clips: most clips.
        steps: optimizer steps of stage 1 and 2; None: those of the presets.
        only: variants; empty: all.
        device: 'auto', 'cpu' or a torch device, for generation.
    """

    config: str
    settings: tuple[str, ...]
    dataset: str
    out: Path
    clips: int
    steps: tuple[int | None, int | None] = (None, None)
    only: tuple[str, ...] = ()
    device: str = "auto"


def trainings(ablation: Ablation) -> tuple[list[Training], dict[str, str]]:
    """The trainings of an ablation, and why variants are left out.

    Args:
        ablation: what is asked for.

    Raises:
        CommandError: there are no such presets, settings do not fit, or a variant is unknown.
    """
    if unknown := sorted({*ablation.only} - LABELS.keys()):
        raise CommandError(f"--only {unknown[0]}: expected one of {', '.join(LABELS)}")
    wanted = ablation.only or tuple(LABELS)
    runs = ablation.out / "runs"
    one, two = (
        load_train_config(
            _preset(ablation.config, stage),
            [*ablation.settings, *([] if steps is None else [f"run.steps={steps}"])],
        )
        for stage, steps in zip(("stage1", "stage2"), ablation.steps, strict=True)
    )
    together = one.run.steps + two.run.steps
    left_out: dict[str, str] = {}

    def pair(name: str, **adapters: Any) -> tuple[TrainConfig, ...]:
        first = _changed(one, run={"out": str(runs / f"{name}-stage1"), "init_from": ""}, adapters=adapters)
        begin = {"out": str(runs / f"{name}-stage2"), "init_from": first.run.out}
        return first, _changed(two, run=begin, adapters=adapters)

    found = []
    of_full = {name: OMEGAS.get(name) for name in wanted if name == "full" or name in OMEGAS}
    if not one.adapters.motion and (named := [name for name in OMEGAS if name in of_full]):
        left_out |= dict.fromkeys(named, "the configuration has no motion branch")
        of_full = {name: omega for name, omega in of_full.items() if name not in OMEGAS}
    if of_full:
        found.append(Training("full", pair("full"), of_full))
    for name, config, alone in (("clip_only", one, "stage1"), ("frame_only", two, "stage2")):
        if name in wanted:
            run = {"out": str(runs / f"{name}-{alone}"), "init_from": "", "steps": together}
            found.append(Training(name, (_changed(config, run=run),), {name: None}))
    if "no_identity" in wanted and one.adapters.face:
        found.append(Training("no_identity", pair("no_identity", **NO_FACE), {"no_identity": None}))
    elif "no_identity" in wanted:
        left_out["no_identity"] = "the configuration has no face branch: --set adapters.face=true"
    for training in found:
        for config in training.stages:
            check(config)
    if not found:
        raise CommandError(f"nothing is left to train: {'; '.join(left_out.values())}")
    return found, left_out


def _preset(config: str, stage: str) -> str:
    """The file of a stage where there is one, else the name of the preset."""
    file = f"{config}-{stage}.yaml"
    return file if Path(file).is_file() else f"{config}-{stage}"


def _changed(config: TrainConfig, **sections: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other values in some sections."""
    update = {
        name: getattr(config, name).model_copy(update=dict(values)) for name, values in sections.items()
    }
    return config.model_copy(update=update)


def run_ablation(
    ablation: Ablation,
    *,
    workers: int | None = None,
    address: str | None = None,
    inline: bool = False,
    show: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Train, generate and evaluate every variant, and write the table. Goes on where it was interrupted.

    Args:
        ablation: what is asked for.
        workers: trainings at the same time. None: one for each GPU of the cluster, or one.
        address: of a Ray cluster. None starts Ray on this machine.
        inline: everything in this process, without Ray.
        show: gets the progress.

    Returns:
        The content of ablation.json.

    Raises:
        CommandError: configuration or data set cannot be used.
        RunError: Ray cannot be used, or the table cannot be written.
    """
    wanted, left_out = trainings(ablation)
    scratch.make_out(ablation.out)
    rows: dict[str, dict[str, Any]] = {}
    failed = dict(left_out)
    results = _inline(ablation, wanted) if inline else _on_ray(ablation, wanted, workers, address)
    show(Progress("ablating", 0, len(wanted), f"0 of {len(wanted)} trainings"))
    for done, (training, found) in enumerate(results, 1):
        if isinstance(found, str):
            failed |= dict.fromkeys(training.variants, found)
        else:
            rows |= found
        show(Progress("ablating", done, len(wanted), f"{done} of {len(wanted)} trainings"))
    document = {
        "config": ablation.config,
        "settings": list(ablation.settings),
        "dataset": ablation.dataset,
        "clips": ablation.clips,
        "steps": {one.name: [config.run.steps for config in one.stages] for one in wanted},
        "variants": {name: rows[name] for name in LABELS if name in rows},
        "left_out": {name: failed[name] for name in LABELS if name in failed},
    }
    scratch.write_text(ablation.out / "ablation.csv", table_csv(document))
    scratch.write_text(ablation.out / "ablation.tex", table_latex(document))
    scratch.write_text(ablation.out / "ablation.json", json.dumps(document, indent=1))
    if not rows:
        raise RunError(f"no variant could be evaluated; the first: {next(iter(failed.values()))}")
    return document


Found = dict[str, dict[str, Any]] | str
"""Figures of each variant by the name of the metric, or why there are none."""


def run_training(ablation: Ablation, training: Training) -> Found:
    """Train one model, generate and evaluate its variants.

    Args:
        ablation: what is asked for.
        training: one of `trainings`.

    Returns:
        Figures by variant, or why there are none: a variant that cannot be trained does not end the others.
    """
    from talkforge.training.train import train

    try:
        for config in training.stages:
            if not train(config).finished:
                raise RunError(f"{config.run.out}: the training was stopped")
        return {
            variant: _evaluated(ablation, Path(training.stages[-1].run.out), variant, omega)
            for variant, omega in training.variants.items()
        }
    except TalkforgeError as error:
        return one_line(error)


def _evaluated(ablation: Ablation, run: Path, variant: str, omega: float | None) -> dict[str, Any]:
    """Means with intervals of one variant, by the name of the metric."""
    folder = ablation.out / variant
    generated, truth = folder / "generated", folder / "truth"
    generate_clips(run, ablation.dataset, generated, truth, ablation.clips, omega, device=ablation.device)
    settings = job.Settings(self_test_videos=job.SELF_TEST_VIDEOS if variant == "full" else 0)
    found = job.evaluate(generated, truth, folder, settings)
    figures = {one["name"]: {**one["generated"], "why_not": one["why_not"]} for one in found["metrics"]}
    return {"label": LABELS[variant], "videos": found["videos"], "figures": figures}


def _inline(ablation: Ablation, wanted: Sequence[Training]) -> Iterator[tuple[Training, Found]]:
    for training in wanted:
        yield training, run_training(ablation, training)


def _on_ray(
    ablation: Ablation, wanted: Sequence[Training], workers: int | None, address: str | None
) -> Iterator[tuple[Training, Found]]:
    """Results as they come. A training whose worker dies is told as a reason, and the others go on."""
    cluster = Cluster(workers or 1, address)
    try:
        gpus = cluster.num_gpus() if ablation.device != "cpu" else 0
        remote = cluster.ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(run_training)
        answers = cluster.share(
            wanted,
            workers or max(1, gpus),
            lambda: remote,  # every training is a process of its own
            lambda task, training: task.remote(ablation, training),
        )
        for training, found in answers:
            yield training, one_line(found) if isinstance(found, Exception) else found
    finally:
        cluster.close()


# --------------------------------------------------------------------------- tables


def table_csv(document: Mapping[str, Any]) -> str:
    """One row for each variant: mean and interval of every column, and why a variant has none.

    Args:
        document: content of ablation.json.
    """
    names = (*PAPER_COLUMNS, *FREE_COLUMNS)
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    rows: list[list[Any]] = []
    for variant, row in document["variants"].items():
        cells = [row["figures"][name][key] for name in names for key in ("mean", "low", "high")]
        rows.append([variant, row["videos"], *cells, ""])
    for variant, why in document["left_out"].items():
        rows.append([variant, 0, *([None] * len(columns)), why])
    return csv_text(["variant", "videos", *columns, "reason"], rows)


def table_latex(document: Mapping[str, Any]) -> str:
    """The paper's table of ablations: its columns, then those that need no download.

    Args:
        document: content of ablation.json.
    """
    names = (*PAPER_COLUMNS, *FREE_COLUMNS)
    heads = [METRICS[name].label for name in names]
    lines = [r"\begin{tabular}{l" + "r" * len(names) + "}", " & ".join(["", *heads]) + r" \\ \hline"]
    for row in document["variants"].values():
        cells = [tex_cell(row["figures"][name]["mean"]) for name in names]
        lines.append(" & ".join([row["label"], *cells]) + r" \\")
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def table_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Rows for the terminal: variant, then every column that could be computed, with the column names first.

    Args:
        document: content of ablation.json.
    """
    names = [
        name
        for name in (*PAPER_COLUMNS, *FREE_COLUMNS)
        if any(row["figures"][name]["mean"] is not None for row in document["variants"].values())
    ]
    rows = [["variant", *names]]
    for row in document["variants"].values():
        rows.append([row["label"], *(interval(row["figures"][name]) for name in names)])
    return rows
