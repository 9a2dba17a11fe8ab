"""What a run of `curate` would read, and what is done already; nothing is written, hashed or fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talkforge.curation.media.probe import promised_s
from talkforge.pipeline import needs
from talkforge.pipeline.dataset import check_base, check_target, load_ingested, load_plan
from talkforge.pipeline.ingest import find_inputs, is_due, stamp_of
from talkforge.pipeline.intake import IngestRow, with_rows
from talkforge.pipeline.parts import footage_of, left_of
from talkforge.pipeline.store import Store, file_size
from talkforge.schemas.config import Config
from talkforge.schemas.errors import MediaError
from talkforge.schemas.progress import ProgressCallback, counted, no_progress
from talkforge.schemas.records import Input


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        inputs: inputs that were found.
        num_due: those of them that would be read: they are new, have changed, or could not be read before.
        num_bytes: size of the files whose size is known; a file of several inputs counts once.
        input_s: footage in all inputs of known length, s.
        no_length: names of inputs whose length is not known before they are read.
        unreadable: why an input is no video, by its name, which the reason leaves out.
        passed_over: a line for each folder in which files were passed over.
        weights: which weights are here and which are not.
        measured_s, planned_s: footage of the data set that is measured, and all that is planned so far.
    """

    inputs: int
    num_due: int
    num_bytes: int
    input_s: float
    no_length: tuple[str, ...]
    unreadable: Mapping[str, str]
    passed_over: tuple[str, ...]
    weights: needs.Weights
    measured_s: float
    planned_s: float


def preview(
    inputs: Sequence[str],
    store: Store,
    config: Config,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    on_progress: ProgressCallback = no_progress,
) -> Preview:
    """What `jobs.curate` would do with the same arguments. It opens the headers of new local files only.

    Args:
        inputs: files, folders, globs, lists and URIs.
        store: the data set, which need not be there.
        config: the whole configuration.
        limit: most inputs that are taken; None takes all.
        exclude: globs of inputs to leave out, see `ingest.find_inputs`.
        on_progress: called as headers are read.

    Raises:
        CommandError: inputs, output or configuration cannot be used.
        MissingExtraError: a model is run by a package that is not installed.
    """
    passed_over: list[str] = []
    found = find_inputs(inputs, limit, exclude, store.base, passed_over.append, config.run.protocols)
    check_target(store, config)
    known = load_ingested(store)
    check_base(store, known.column("input.uri").to_pylist())
    weights = needs.look(config.measure)
    num_due, lengths = 0, _Lengths()
    for number, (given, row) in enumerate(with_rows(found, known)):
        on_progress(counted("reading headers", number, len(found)))
        uri = store.input_uri(given.uri)
        due = is_due(row, stamp_of(uri), config)
        num_due += due
        lengths.add(given, uri, None if due else row)
    plan = load_plan(store)
    planned_s, left = footage_of(plan), left_of(plan, store)
    return Preview(
        inputs=len(found),
        num_due=num_due,
        num_bytes=sum(file_size(uri) or 0 for uri in {store.input_uri(given.uri) for given in found}),
        input_s=lengths.total_s,
        no_length=tuple(lengths.unknown),
        unreadable=lengths.unreadable,
        passed_over=tuple(passed_over),
        weights=weights,
        measured_s=planned_s - left.duration_s,
        planned_s=planned_s,
    )


class _Lengths:
    """Adds up how long inputs are."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.unknown: list[str] = []
        self.unreadable: dict[str, str] = {}

    def add(self, given: Input, uri: str, row: IngestRow | None) -> None:
        """One more input; `row` is what an earlier run found in the same file."""
        if row is not None:
            if row.failure is not None:
                self.unreadable[given.uri] = _without_name(row.failure.message, given.uri)
            self.total_s += row.span.duration_s if row.span else 0.0
            return
        if given.problem:
            self.unreadable[given.uri] = given.problem
            return
        try:
            whole_s = None if "://" in uri else promised_s(Path(uri), given.uri)
        except MediaError as error:
            self.unreadable[given.uri] = _without_name(str(error), given.uri)
            return
        if whole_s is None:
            self.unknown.append(given.uri)
            return
        start_s, end_s = given.span_s
        self.total_s += max(0.0, min(end_s, whole_s) - max(start_s, 0.0))


def _without_name(message: str, uri: str) -> str:
    return message.replace(f"{uri!r}: ", "")
