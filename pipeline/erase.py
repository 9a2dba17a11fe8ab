"""Erasure: removes for good what a data set holds of some videos, and proves that nothing is left.

A person is erased with all videos in which the person was found. Clips of others in these videos go as
well, because the person is seen or heard in the same footage.

Tombstones are written first, and every step can be done again, so that an erasure that was killed goes on
where it stopped. What is kept is copied byte for byte: nothing is cut or measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from talkforge.pipeline import (
    annotate,
    audit,
    calibrate,
    jobs,
    ledger,
    measured,
    parts,
    proof,
    review,
    small_arrays,
    snapshots,
    tables,
)
from talkforge.pipeline.dataset import (
    ARRIVED,
    INTAKE,
    PLAN,
    exclusive,
    load_dataset,
    load_ingested,
    load_plan,
)
from talkforge.pipeline.exports.folder import EXPORT, Export
from talkforge.pipeline.intake import IngestRow, is_one_of
from talkforge.pipeline.lists import read_list
from talkforge.pipeline.parts import Part
from talkforge.pipeline.proof import ID_LENGTH, Needles, Proof, digest_of
from talkforge.pipeline.shards import ShardPlan, read_samples, write_shard
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store, at_base
from talkforge.pipeline.tables import Rows
from talkforge.pipeline.timelines import FOLDER as TIMELINES
from talkforge.pipeline.tombstones import JOURNAL, TOMBSTONES, HeldBy, read_tombstones, write_tombstones
from talkforge.schemas import tar
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import CommandError, DatasetError
from talkforge.schemas.npz import npz_bytes, read_npz
from talkforge.schemas.progress import Progress, ProgressCallback, no_progress
from talkforge.schemas.records import Record
from talkforge.schemas.sample import ShardManifest

LATENTS = "latents"

MEDIA = ("mp4", "flac", "face.jpg", "identity.npy")
"""Members of a sample whose bytes are searched for in the end. Others may be equal in different clips."""


class Plan(Record):
    """What an erasure takes away; `erasing.json` while it is at work.

    Attributes:
        sha256: contents that may not come back.
        needles: what the proof searches for: ids and names of these contents, sums of their clips.
        people: of others, whose clips in these videos go as well: ids.
        num_clips: candidate clips of these videos.
        num_samples: their samples in the current snapshot.
        held_by: snapshots with samples of them.
        snapshots: numbers of all snapshots that name them; they go.
        tags: of these snapshots.
    """

    sha256: frozenset[str] = frozenset()
    needles: Needles = Needles()
    people: frozenset[str] = frozenset()
    num_clips: int = 0
    num_samples: int = 0
    held_by: frozenset[HeldBy] = frozenset()
    snapshots: frozenset[int] = frozenset()
    tags: frozenset[str] = frozenset()

    def names(self, value: Any) -> bool:
        """Whether a value of a table, however deep, begins with the id or is the name of an erased video."""
        if isinstance(value, str):
            return value[:ID_LENGTH] in self.needles.video_ids or value in self.needles.names
        if isinstance(value, dict):
            return any(map(self.names, value.values()))
        return isinstance(value, list | tuple) and any(map(self.names, value))

    def with_earlier(self, earlier: Plan) -> Plan:
        """This one and one that was killed."""
        both = self.needles, earlier.needles
        return Plan(
            sha256=self.sha256 | earlier.sha256,
            needles=Needles(
                **{name: getattr(both[0], name) | getattr(both[1], name) for name in Needles.model_fields}
            ),
            people=self.people | earlier.people,
            num_clips=max(self.num_clips, earlier.num_clips),
            num_samples=max(self.num_samples, earlier.num_samples),
            held_by=self.held_by | earlier.held_by,
            snapshots=self.snapshots | earlier.snapshots,
            tags=self.tags | earlier.tags,
        )


@dataclass(frozen=True)
class Erasure:
    """What was erased, and the proof."""

    plan: Plan
    proof: Proof


# ------------------------------------------------------------------------------ what to erase


def plan(
    store: Store, sources: Sequence[str] = (), people: Sequence[str] = (), lists: Sequence[Path] = ()
) -> Plan:
    """What an erasure would take away; writes nothing.

    Args:
        store: the data set.
        sources: inputs: as `sources.parquet` names them, a path, the id of a video, or the sha256 of a file,
            which need not be in the data set.
        people: ids of `people.parquet`, or names that the lists of inputs give.
        lists: files that name inputs, as `talkforge curate` takes them.

    Raises:
        CommandError: something is not in the data set; names all that is not.
        DatasetError: a file is damaged; `talkforge verify --repair` comes first.
    """
    ingested = load_ingested(store)
    sha256: set[str] = set()
    unknown: list[str] = []
    begun = (_begun(store) or Plan()).needles  # a part of it may be gone already
    listed = [given for path in lists for given in read_list(path)]
    unknown += [f"{given.uri}: {given.problem}" for given in listed if given.problem]
    asked = (*sources, *(given.uri for given in listed if not given.problem))
    rows, found = _inputs_of(store, ingested, asked)
    for name in asked:
        if name not in found and _is_sha256(name):
            sha256.add(name)
        elif name not in found and not {name, str(Path(name).absolute())} & begun.names:
            unknown.append(f"no input {name!r}")
    by_person = _videos_of(store, people, ingested)
    unknown += [f"no person {name!r}" for name in people if not by_person[name] and name not in begun.people]
    if unknown:
        raise CommandError(f"{store.root}: {'; '.join(unknown)}")
    video_ids = {video_id for found in by_person.values() for video_id in found}
    sha256 |= {row.video.sha256 for row in rows if row.video}
    theirs = ingested.where(is_one_of(ingested.column("video.video_id"), *video_ids))
    sha256 |= {row.video.sha256 for row in theirs if row.video}
    same = list(ingested.where(is_one_of(ingested.column("video.sha256"), *sha256)))
    names = {row.input.uri for row in (*rows, *same)} | {row.video.uri for row in same if row.video}
    video_ids = {digest[:ID_LENGTH] for digest in sha256}
    return _described(
        store,
        Plan(
            sha256=frozenset(sha256),
            needles=Needles(video_ids=frozenset(video_ids), names=frozenset(names), people=frozenset(people)),
        ),
    )


def _is_sha256(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _inputs_of(
    store: Store, ingested: Rows[IngestRow], asked: Iterable[str]
) -> tuple[list[IngestRow], set[str]]:
    """The inputs that are asked for by name, path, video id or sha256, and what of it named one."""
    wanted: dict[str, set[str]] = {}
    for name in asked:
        for key in (name,) if "://" in name else (name, str(Path(name).absolute())):
            wanted.setdefault(key, set()).add(name)
    rows, found = [], set()
    keys = (ingested.column(name) for name in ("input.uri", "video.video_id", "video.sha256"))
    for number, (uri, *of_video) in enumerate(zip(*(column.to_pylist() for column in keys), strict=True)):
        hit = [name for key in (uri, at_base(uri, store.base), *of_video) for name in wanted.get(key, ())]
        if hit:
            rows.append(ingested[number])
            found.update(hit)
    return rows, found


def _videos_of(store: Store, people: Iterable[str], ingested: Rows[IngestRow]) -> dict[str, set[str]]:
    """Person -> ids of the videos in which the person was found, or that a list labels with the name."""
    found: dict[str, set[str]] = {name: set() for name in people}
    for row in ingested.where(is_one_of(ingested.column("input.person"), *found)):
        if row.video:
            found[row.input.person].add(row.video.video_id)
    if found and store.exists("ledger.parquet"):
        table = _columns(store, "ledger.parquet", ("video_id", "person_id", "person"))
        for video_id, *names in zip(*table, strict=True):
            for name in names:
                if name in found:
                    found[name].add(video_id)
    return found


def _columns(store: Store, name: str, columns: Sequence[str]) -> list[list[Any]]:
    table = tables.from_bytes(store.read(name), name)
    empty = [None] * table.num_rows
    return [table.column(c).to_pylist() if c in table.column_names else empty for c in columns]


def _described(store: Store, plan: Plan) -> Plan:
    """The plan with everything that the data set says of its videos."""
    ids = plan.needles.video_ids
    others: set[str] = set()
    num_clips = 0
    if store.exists("ledger.parquet"):
        for video_id, person in zip(
            *_columns(store, "ledger.parquet", ("video_id", "person_id")), strict=True
        ):
            num_clips += video_id in ids
            others |= {person} if video_id in ids and person else set()
    index = snapshots.read_index(store)
    kept = [snapshots.read(store, number) for number in (snapshots.kept(index) if index else (0,))]
    current = snapshots.current(store)
    held_by: set[HeldBy] = set()
    named: set[int] = set()
    sums: set[str] = set()
    for snapshot in kept:
        held = [key for shard in snapshot.shards for key in shard.keys if key[:ID_LENGTH] in ids]
        if held:
            held_by.add(HeldBy(number=snapshot.number, sha256=snapshots.manifest_sha256(store, snapshot)))
        if held or _tables_name(store, snapshot, plan):
            named.add(snapshot.number)
    for file in {snapshot.tar(shard): None for snapshot in kept for shard in snapshot.shards}:
        sums |= _sums_of_samples(store, file, ids)
    for part in parts.committed_parts(store):
        folder = f"parts/{part}"
        found = small_arrays.read(store, folder, ("identity", "voice"))
        arrays = [(key, array) for key, one in found.items() for array in one.values()]
        arrays += read_npz(store.read(f"{folder}/thumbnails.npz"), f"{folder}/thumbnails.npz").items()
        sums |= {digest_of(a.tobytes()) for key, a in arrays if key[:ID_LENGTH] in ids and a.nbytes}
    return plan.model_copy(
        update={
            "needles": plan.needles.model_copy(update={"sha256": frozenset(sums)}),
            "people": frozenset(others - plan.needles.people),
            "num_clips": num_clips,
            "num_samples": sum(k[:ID_LENGTH] in ids for shard in current.shards for k in shard.keys),
            "held_by": frozenset(held_by),
            "snapshots": frozenset(named - {0}),
            "tags": frozenset(tag for tag, n in (index.tags if index else {}).items() if n in named),
        }
    )


def _tables_name(store: Store, snapshot: Snapshot, plan: Plan) -> bool:
    names = (name for name in snapshot.tables if name.endswith(".parquet"))
    return any(
        plan.names(row)
        for name in names
        for row in tables.from_bytes(store.read(snapshot.table(name)), name).to_pylist()
    )


def _sums_of_samples(store: Store, file: str, ids: Collection[str]) -> set[str]:
    return {
        digest_of(members[name])
        for key, members in read_samples(store, file)
        if key[:ID_LENGTH] in ids
        for name in MEDIA
        if name in members
    }


# ------------------------------------------------------------------------------ erasing


def erase(store: Store, wanted: Plan | None = None, on_progress: ProgressCallback = no_progress) -> Erasure:
    """Erase what a plan names, and what an earlier erasure that was killed has left.

    Args:
        store: the data set.
        wanted: answer of `plan`; None only goes on with what was begun.
        on_progress: called with each phase.

    Raises:
        CommandError: there is nothing to erase, or another run is at work.
        DatasetError: a file is damaged; after `talkforge verify --repair` the same command goes on.
        RunError: the store cannot be read or written.
    """
    with exclusive(store, erasing=True):
        begun = _begun(store)
        if wanted is None and begun is None:
            raise CommandError(f"{store.root}: nothing to erase; name it by --source, --person or --list")
        plan = (wanted or Plan()).with_earlier(begun or Plan())
        write_tombstones(store, read_tombstones(store).with_more(set(plan.sha256), set(plan.held_by)))
        store.write(JOURNAL, plan.model_dump_json(indent=1).encode())
        store.sweep()
        on_progress(Progress("erasing"))
        _erase_measured(store, plan)
        _erase_published(store, plan)
        on_progress(Progress("report"))
        jobs.report(store)
        on_progress(Progress("searching"))
        found = proof.scan(store, plan.needles, skip=(TOMBSTONES, JOURNAL))
        store.delete(JOURNAL)
    return Erasure(plan, found)


def is_begun(store: Store) -> bool:
    """Whether an erasure was begun and not finished."""
    return store.exists(JOURNAL)


def _begun(store: Store) -> Plan | None:
    if not store.exists(JOURNAL):
        return None
    return Plan.from_json(store.read(JOURNAL), JOURNAL)


def _erase_measured(store: Store, plan: Plan) -> None:
    """Inputs, parts, timelines, notes of attempts, sync, transcripts and captions."""
    ids = plan.needles.video_ids
    measured.forget(store)
    store.delete_folder(ARRIVED)
    for folder in sorted({name.split("/")[1] for name in store.list("parts")}):
        _clean_part(store, folder, plan)
    for name in store.list(TIMELINES):
        if PurePosixPath(name).stem in ids:
            store.delete(name)
    for name in store.list(parts.ATTEMPTS):
        if plan.names(json.loads(store.read(name))):
            store.delete(name)
    annotate.settle(store, annotate.TRANSCRIPTS)  # pieces are named after clips
    annotate.settle(store, annotate.CAPTIONS)
    texts = (f"{kind.name}.parquet" for kind in (annotate.TRANSCRIPTS, annotate.CAPTIONS))
    for name in (calibrate.TABLE, review.TABLE, audit.TABLE, *texts):
        if store.exists(name):
            _filter_table(store, name, plan)
    ingested = load_ingested(store)
    rows = ingested.where([not plan.names(row.model_dump(mode="json")) for row in ingested])
    kept = (_without(part, ids) for part in load_plan(store))
    if store.exists(PLAN):
        tables.write(store, INTAKE, IngestRow, rows)
        tables.write(store, PLAN, Part, (part for part in kept if part.windows))


def _without(part: Part, ids: Collection[str]) -> Part:
    windows = tuple(window for window in part.windows if window.video.video_id not in ids)
    return part.model_copy(update={"windows": windows})


def _filter_table(store: Store, name: str, plan: Plan) -> str:
    """Leave out the rows that name erased videos; sha256 of the file as it is then."""
    table = tables.from_bytes(store.read(name), name)
    keep = [not plan.names(row) for row in table.to_pylist()]
    if not all(keep):
        return store.write(name, tables.to_bytes(table.filter(pa.array(keep, pa.bool_()))))
    return store.sha256(name)


def _clean_part(store: Store, part: str, plan: Plan) -> None:
    """Take erased videos out of a part; the marker is written last, and files of clips go after it."""
    folder, ids = f"parts/{part}", plan.needles.video_ids
    marker = f"{folder}/part.json"
    if not store.exists(marker):  # not committed, and measured again by the next run
        store.delete_folder(folder)
        return
    own = [name for name in store.list(folder) if PurePosixPath(name).name[:ID_LENGTH] in ids]
    windows = f"{folder}/windows.parquet"
    before = tables.from_bytes(store.read(windows), windows)
    left = [row for row in before.to_pylist() if not plan.names(row)]
    if before.num_rows and not left:
        store.delete(marker)
        store.delete_folder(folder)
        return
    described = json.loads(store.read(marker))
    files = {name: digest for name, digest in described["files"].items() if name[:ID_LENGTH] not in ids}
    for name in files:
        path = f"{folder}/{name}"
        if name.endswith(".parquet"):
            files[name] = _filter_table(store, path, plan)
        elif name in ("features.npz", "thumbnails.npz"):
            files[name] = _filter_arrays(store, path, ids)
    if files != described["files"]:
        clips = tables.from_bytes(store.read(f"{folder}/clips.parquet"), "clips.parquet").num_rows
        failures = tables.from_bytes(store.read(f"{folder}/failures.parquet"), "failures.parquet").num_rows
        seconds = sum(row["end_s"] - row["start_s"] for row in left)
        described |= {"files": files, "clips": clips, "failures": failures, "seconds": seconds}
        store.write(marker, json.dumps(described, indent=1).encode())
    for name in own:
        store.delete(name)


def _filter_arrays(store: Store, path: str, ids: Collection[str]) -> str:
    """Leave out the arrays of erased clips; sha256 of the file as it is then."""
    arrays = read_npz(store.read(path), path)
    left: dict[str, np.ndarray] = {key: array for key, array in arrays.items() if key[:ID_LENGTH] not in ids}
    return store.write(path, npz_bytes(**left)) if len(left) < len(arrays) else store.sha256(path)


def _erase_published(store: Store, plan: Plan) -> None:
    """Ledger, shards, snapshots and latents."""
    ingested, dataset = load_ingested(store), load_dataset(store)
    selection = jobs.calibrate_and_select(store, dataset, ingested)
    accepted = set(selection.accepted)
    store.delete_folder(snapshots.NEXT)
    last = snapshots.current(store)
    manifests = _copied(store, last, accepted)
    where = {key: manifest.name for manifest in manifests for key in manifest.keys}
    selection = ledger.with_shards(selection, where)
    ledger.check_conservation(selection, ingested)
    made = jobs.publish(store, manifests, selection, load_dataset(store).config.run)
    snapshots.forget(store, plan.snapshots - {made.number})
    _copy_latents(store, last, made)


def _copied(store: Store, last: Snapshot, keep: Collection[str]) -> list[ShardManifest]:
    """The shards without the samples that are not kept; those that change are written to `shards.next/`."""
    found = []
    for shard in last.shards:
        keys = tuple(key for key in shard.keys if key in keep)
        if keys == shard.keys:
            found.append(shard)
        elif keys:
            # Of no plan: the next `talkforge shard` decides anew what belongs together.
            fingerprint = hashlib.sha256("\0".join(["erased", shard.fingerprint, *keys]).encode()).hexdigest()
            samples = ((k, members) for k, members in read_samples(store, last.tar(shard)) if k in keys)
            manifest = write_shard(store, ShardPlan(shard.name, keys, fingerprint, snapshots.NEXT), samples)
            if manifest is None or manifest.keys != keys:
                raise DatasetError(
                    f"{last.tar(shard)}: expected {len(keys)} samples to keep, found others; "
                    "`talkforge verify --repair`, then erase again"
                )
            found.append(manifest)
    return found


def _copy_latents(store: Store, last: Snapshot, made: Snapshot) -> None:
    """Latents of the samples that are left. Those that were not made from these shards go."""
    before = {shard.name: shard.sha256 for shard in last.shards}
    shards = {shard.name: shard for shard in made.shards}
    for file in [name for name in store.list(LATENTS) if name.endswith(".tar")]:
        manifest, name = snapshots.beside(file), PurePosixPath(file).stem
        described = json.loads(store.read(manifest)) if store.exists(manifest) else {}
        encoded, shard = described.get("shard_sha256"), shards.get(name)
        if shard and encoded == shard.sha256:
            continue
        store.delete(manifest)
        if shard and encoded == before.get(name):
            described |= {"shard_sha256": shard.sha256, **_filter_latents(store, file, shard.keys)}
            store.write(manifest, json.dumps(described, indent=1).encode())
        else:
            store.delete(file)


def _filter_latents(store: Store, file: str, keep: Collection[str]) -> dict[str, Any]:
    """Leave out the latents of samples that are gone; keys, bytes and sha256 of the file as it is then."""
    keys = []
    with store.open(file) as stream, store.writing(file) as path:
        with store.reporting_errors("write", file), path.open("wb") as new, tar.tar_writer(new) as out:
            for key, members in tar.read_samples(stream):
                if key in keep:
                    tar.write_sample(out, key, members)
                    keys.append(key)
        return {"keys": keys, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


# ------------------------------------------------------------------------------ training runs


@dataclass(frozen=True)
class HeldRun:
    """A training run or an export that read what was erased, or may have.

    Attributes:
        folder: of the run or the export.
        snapshots: numbers of the snapshots that it read; empty where it does not say what it read.
        kind: which of the two it is.
    """

    folder: str
    snapshots: tuple[int, ...]
    kind: Literal["training run", "export"] = "training run"


def runs(store: Store, folders: Iterable[Path], held_by: Iterable[HeldBy]) -> list[HeldRun]:
    """Training runs and exports that read a snapshot which held what was erased.

    Runs of earlier versions do not say which snapshot they read, nor do runs on shards without snapshots.
    They are listed, without numbers, where their configuration names shards of this data set.

    Args:
        store: the data set.
        folders: where runs and exports are searched, at any depth.
        held_by: the snapshots, of this erasure or of all earlier ones.

    Raises:
        CommandError: one of the folders is not there.
    """
    sums = {one.sha256: one.number for one in held_by if one.sha256}
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise CommandError(f"--runs {folder}: no such folder")
        for path in sorted(folder.rglob("run.json")):
            noted = _noted(path)
            numbers = sorted({sums[one] for start in noted for one in start.values() if one in sums})
            is_silent = any(store.root not in start for start in noted)
            if numbers or (is_silent and _names_shards_of(store, path.with_name("config.yaml"))):
                found.append(HeldRun(str(path.parent), tuple(numbers)))
        for path in sorted(folder.rglob(EXPORT)):
            found += _held_export(path, sums, store.root)
    return found


def _held_export(path: Path, sums: Mapping[str, int], root: str) -> list[HeldRun]:
    """The export that a file describes, where it holds such a snapshot; none where it is no export."""
    try:
        held = Export.from_json(path.read_bytes(), str(path))
    except (DatasetError, OSError):
        return []
    if held.snapshot_sha256 in sums:
        return [HeldRun(str(path.parent), (sums[held.snapshot_sha256],), "export")]
    silent = not held.snapshot_sha256 and held.dataset == root
    return [HeldRun(str(path.parent), (), "export")] if silent else []


def _noted(path: Path) -> list[dict[str, str]]:
    """For each start of a run: data set -> sha256 of the manifest that it read, as far as it says."""
    try:
        starts = json.loads(path.read_bytes())["starts"]
        return [{one["dataset"]: one["sha256"] for one in start.get("snapshots", ())} for start in starts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [{}]


def _names_shards_of(store: Store, config: Path) -> bool:
    try:
        return f"{store.root}/" in config.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
