"""The command that removes people and videos from a data set for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from talkforge.cli.app import BUILD, command, notes, out, print_json
from talkforge.cli.options import BaseOption, DatasetArgument, DryRunOption, JsonOption
from talkforge.display import Display

if TYPE_CHECKING:
    from talkforge.pipeline.erase import HeldRun, Plan
    from talkforge.pipeline.proof import Proof

LEFT = 3
"""Exit code where the proof finds something."""


@command(
    BUILD,
    "talkforge erase set --person p3f2a91c07be4 --dry-run",
    "talkforge erase set --source footage/a.mp4 --runs runs/",
    "talkforge erase set --list withdrawn.csv --json",
    "talkforge erase set",
)
def erase(
    dataset: DatasetArgument,
    source: Annotated[
        list[str],
        typer.Option(metavar="INPUT", help="Path, URI, video id, or sha256 of a file; repeatable."),
    ] = [],  # noqa: B006
    person: Annotated[
        list[str],
        typer.Option(metavar="ID", help="Id of people.parquet, or name given in lists; repeatable."),
    ] = [],  # noqa: B006
    lists: Annotated[
        list[Path],
        typer.Option("--list", metavar="FILE", help="Erase the inputs of a list, as curate takes it."),
    ] = [],  # noqa: B006
    runs: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR", help="Search training runs and exports below; say which read it; repeatable."
        ),
    ] = [],  # noqa: B006
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    base: BaseOption = "",
) -> None:
    """Remove videos or people for good, and prove that nothing is left; exit 3 if something is.

    A person goes with all videos in which the person was found. Snapshots that name them go, tombstones
    keep later runs from taking the same files in again. Without any option it goes on with an erasure that
    was interrupted. See docs/privacy.md.
    """
    from talkforge.pipeline import erase as job
    from talkforge.pipeline.dataset import load_dataset
    from talkforge.pipeline.store import Store
    from talkforge.pipeline.tombstones import read_tombstones

    store = Store(dataset, base)
    load_dataset(store)
    named = [*source, *person, *lists]
    plan = job.plan(store, source, person, lists) if named else None
    if dry_run or (plan is None and runs and not job.is_begun(store)):
        held_by = plan.held_by if plan else read_tombstones(store).held_by
        _show(dataset, plan or job.Plan(), None, job.runs(store, runs, held_by), as_json)
        return
    with Display(notes) as display:
        done = job.erase(store, plan, display.show)
    _show(dataset, done.plan, done.proof, job.runs(store, runs, done.plan.held_by), as_json)
    if done.proof.findings:
        raise typer.Exit(LEFT)


def _show(dataset: str, plan: Plan, proof: Proof | None, runs: list[HeldRun], as_json: bool) -> None:
    """What was erased, or would be without a proof, and which runs have read it."""
    document = _document(dataset, plan, proof, runs)
    if as_json:
        print_json(document)
        return

    def say(line: str) -> None:
        out.print(line, soft_wrap=True, markup=False, highlight=False)

    if plan.sha256:
        done = "erased" if proof else "would erase"
        videos = f"{len(plan.sha256)} videos ({len(plan.needles.names)} inputs)"
        say(f"{done}: {videos}, {plan.num_clips} clips, {plan.num_samples} samples")
    for name in sorted(plan.needles.names):
        say(f"  {name}")
    if plan.people:
        say(f"people in these videos, whose clips there go as well: {', '.join(sorted(plan.people))}")
    if plan.snapshots:
        tags = f" (tags {', '.join(sorted(plan.tags))})" if plan.tags else ""
        say(f"snapshots that name them go: {', '.join(map(str, sorted(plan.snapshots)))}{tags}")
    for run in runs:
        numbers = ", ".join(map(str, run.snapshots))
        said = f"read snapshot {numbers}" if numbers else "may have read it, and does not say what it read"
        say(f"{run.kind} {run.folder}: {said}")
    if proof:
        for finding in proof.findings:
            say(f"LEFT {finding.path}: {finding.what}")
        result = f"{len(proof.findings)} places" if proof.findings else "nothing found"
        say(f"searched {proof.num_files} files, {proof.num_bytes / 1e6:.1f} MB: {result}")


def _document(dataset: str, plan: Plan, proof: Proof | None, runs: list[HeldRun]) -> dict[str, Any]:
    found = [{"path": finding.path, "what": finding.what} for finding in proof.findings] if proof else []
    return {
        "dataset": dataset,
        "dry_run": proof is None,
        "sha256": sorted(plan.sha256),
        "inputs": sorted(plan.needles.names),
        "clips": plan.num_clips,
        "samples": plan.num_samples,
        "other_people": sorted(plan.people),
        "snapshots": sorted(plan.snapshots),
        "tags": sorted(plan.tags),
        "runs": [{"folder": run.folder, "snapshots": list(run.snapshots), "kind": run.kind} for run in runs],
        "proof": None
        if proof is None
        else {"files": proof.num_files, "num_bytes": proof.num_bytes, "found": found},
    }
