"""Verification: whether a data set is what its marker files promise. Reads everything, changes nothing.

dataset.json   readable
tables         every Parquet table has its checksum and holds the rows it should; tables of earlier versions
               have checksums of their pages only, so that a change to their footers may not be seen
timelines      readable
attempts       readable
sync           the data set's own networks, and the note of what was scored, are readable
review         what people said of clips is readable
erased         the tombstones, and the note of an erasure that was not finished, are readable
parts          every file beside `part.json` has the checksum written there, and no other is there
shards         checksum, size, keys and order of every tar file; no file that belongs to none
snapshots      every file of each has its checksum; `shards/` shows the current one
samples        members, shapes and clocks; the MP4 decodes to all its frames at its rate, and its
               audio lies where the FLAC's does
latents        checksum and size of every tar file
report         its numbers are JSON, and its pages are whole
ledger         its `shard` column and the shards agree, both ways
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.signal import correlate, correlation_lags

from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.media.timeline_files import from_bytes
from talkforge.curation.sync.contrastive import Scorer
from talkforge.pipeline import audit, calibrate, review, snapshots, tables
from talkforge.pipeline.dataset import INTAKE, PLAN, load_dataset
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.parts import ATTEMPTS, Part
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.snapshots import INDEX, SHARDS, Index, Snapshot
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import FOLDER as TIMELINES
from talkforge.pipeline.tombstones import JOURNAL, TOMBSTONES, read_tombstones
from talkforge.schemas import sample, scratch
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import DatasetError, MediaError, ModelError, first_invalid, one_line
from talkforge.schemas.records import (
    AuditRow,
    CaptionRow,
    Clip,
    Failure,
    Input,
    PersonRow,
    Record,
    SourceRow,
    TranscriptRow,
    Video,
)
from talkforge.schemas.sample import Members, ShardManifest
from talkforge.schemas.units import AUDIO_HZ, samples_from_frames, seconds_from_frames

log = logging.getLogger(__name__)

LATENTS = "latents"
"""Folder in which training caches latents."""

MAX_LAG_S = 0.010
"""Sound of the MP4 and the FLAC may be this far apart. Source: ours; a quarter of a frame."""

SILENCE_DBFS = -60.0
"""Below this level there is nothing to align. Source: ours; 16 bit noise is at -96."""

MIN_SIMILARITY = 0.7
"""Least normalised correlation of the two tracks. Source: ours; on eleven clips of 3 s one audio
through AAC and through FLAC correlates by at least 0.998, that of two clips by at most 0.13."""

PEAK_FRACTION = 0.98
"""The best lag within `MAX_LAG_S` must come this close to the best of all lags; a steady tone
fits equally well a period later, which is no fault."""

MAX_FPS_ERROR = 1e-3
MAX_TIME_ERROR_S = 1e-3


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, or with one sample in it (`shards/x.tar: <key>`)."""

    path: str
    what: str
    drop: tuple[str, ...] = ()
    """Files without which the next run makes again what is damaged; empty where none would help."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(store: Store) -> list[Problem]:
    """Every problem of the data set, in the order of its files; empty where all is well.

    One sample is in memory at a time.

    Raises:
        RunError: the store cannot be read.
    """
    return list(_problems(store))


def _problems(store: Store) -> Iterator[Problem]:
    yield from _check_description(store)
    yield from _check_tables(store)
    yield from _check_timelines(store)
    yield from _check_attempts(store)
    yield from _check_sync(store)
    yield from _check_review(store)
    yield from _check_tombstones(store)
    yield from _check_parts(store)
    found: dict[str, str] = {}
    yield from _check_shards(store, found)
    yield from _check_latents(store)
    yield from _check_report(store)
    yield from _check_ledger(store, found)


def _check_description(store: Store) -> Iterator[Problem]:
    name = "dataset.json"
    if not store.exists(name):
        yield Problem(name, "missing")
        return
    try:
        load_dataset(store)
    except DatasetError as error:
        yield Problem(name, str(error).removeprefix(f"{name}: "))


def _read_object(store: Store, name: str) -> dict[str, Any]:
    if not store.exists(name):
        raise DatasetError("missing")
    try:
        data = json.loads(store.read(name))
    except ValueError as error:
        raise DatasetError(f"expected JSON, found {error}") from None
    if not isinstance(data, dict):
        raise DatasetError(f"expected a JSON object, found {type(data).__name__}")
    return data


# ------------------------------------------------------------------------------- tables

_TABLES: dict[str, type[Record]] = {
    INTAKE: IngestRow,
    PLAN: Part,
    "people.parquet": PersonRow,
    "sources.parquet": SourceRow,
    "failures.parquet": Failure,
    calibrate.TABLE: calibrate.Rescored,
    "transcripts.parquet": TranscriptRow,
    "captions.parquet": CaptionRow,
    audit.TABLE: AuditRow,
}


def _check_tables(store: Store) -> Iterator[Problem]:
    for name, model in _TABLES.items():
        if store.exists(name):
            try:
                deque(tables.rows(store, name, model), maxlen=0)  # each is looked at
            except DatasetError as error:
                yield Problem(name, str(error).removeprefix(f"{name}: "), (name,))


def _check_timelines(store: Store) -> Iterator[Problem]:
    for path in store.list(TIMELINES):
        try:
            from_bytes(store.read(path), path)
        except DatasetError as error:
            yield Problem(path, str(error).removeprefix(f"{path}: "), (path,))


def _check_attempts(store: Store) -> Iterator[Problem]:
    for path in store.list(ATTEMPTS):
        try:
            Failure.model_validate_json(store.read(path))
        except ValidationError as error:
            yield Problem(path, f"expected a failure, found {first_invalid(error)}", (path,))


def _check_sync(store: Store) -> Iterator[Problem]:
    if store.exists(calibrate.MARKER) and calibrate.scored_state(store) is None:
        yield Problem(calibrate.MARKER, "expected the state of what was scored", (calibrate.MARKER,))
    if store.exists(calibrate.WEIGHTS):
        try:
            Scorer.from_bytes(store.read(calibrate.WEIGHTS), calibrate.WEIGHTS)
        except ModelError as error:
            yield Problem(calibrate.WEIGHTS, str(error), (calibrate.MARKER, calibrate.WEIGHTS))


def _check_review(store: Store) -> Iterator[Problem]:
    """It is not dropped: nothing makes it again."""
    try:
        review.read(store)
    except DatasetError as error:
        what = str(error).removeprefix(f"{review.TABLE}: ")
        yield Problem(review.TABLE, f"{what}; put a copy in its place, or remove it and review again")


def _check_tombstones(store: Store) -> Iterator[Problem]:
    """They are not dropped: what was erased could come back."""
    try:
        read_tombstones(store)
    except DatasetError as error:
        yield Problem(TOMBSTONES, str(error).removeprefix(f"{TOMBSTONES}: "))
    if store.exists(JOURNAL):
        try:
            _read_object(store, JOURNAL)
        except DatasetError as error:
            yield Problem(JOURNAL, f"{error}; name again what is to be erased", (JOURNAL,))


def _check_latents(store: Store) -> Iterator[Problem]:
    names = {path.rpartition(".")[0] for path in store.list(LATENTS)}
    for stem in sorted(names):
        tar, manifest = f"{stem}.tar", f"{stem}.json"
        try:
            promised = _read_object(store, manifest)
            if not store.exists(tar):
                raise DatasetError(f"{tar}: missing")
            if store.size(tar) != promised.get("bytes") or store.sha256(tar) != promised.get("sha256"):
                raise DatasetError("not the bytes that its manifest promises")
        except DatasetError as error:
            yield Problem(tar, str(error), (manifest, tar))


def _check_report(store: Store) -> Iterator[Problem]:
    numbers = "report/statistics.json"
    if store.exists(numbers):
        try:
            _read_object(store, numbers)
        except DatasetError as error:
            yield Problem(numbers, str(error), (numbers,))
    for page in (f"report/{name}.html" for name in ("index", "clips", "what_if", "against")):
        if store.exists(page) and not store.read(page).rstrip().endswith(b"</html>"):
            yield Problem(page, "cut short", (page,))


# ------------------------------------------------------------------------------- parts


def _check_parts(store: Store) -> Iterator[Problem]:
    folders: dict[str, list[str]] = {}
    for path in store.list("parts"):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, names in sorted(folders.items()):
        marker = f"{folder}/part.json"
        if "part.json" not in names:
            yield Problem(folder, "no part.json: not committed, and measured again by the next run")
            continue
        try:
            listed = _read_object(store, marker).get("files")
        except DatasetError as error:
            yield Problem(marker, str(error), (marker,))
            continue
        if not isinstance(listed, dict):
            yield Problem(marker, "expected 'files' with a sha256 for each, found none", (marker,))
            continue
        yield from _check_siblings(store, folder, names, listed)


def _check_siblings(store: Store, folder: str, names: list[str], listed: dict[str, Any]) -> Iterator[Problem]:
    for name in sorted({*names, *listed} - {"part.json"}):
        path = f"{folder}/{name}"
        if name not in listed:
            yield Problem(path, "not listed in part.json", (path,))
        elif name not in names:
            yield Problem(path, "missing, but listed in part.json", (f"{folder}/part.json",))
        elif (found := store.sha256(path)) != listed[name]:
            yield Problem(path, f"expected sha256 {listed[name]}, found {found}", (f"{folder}/part.json",))


# ------------------------------------------------------------------------------- shards


def _check_shards(store: Store, found: dict[str, str]) -> Iterator[Problem]:
    """Also fills `found`: key -> name of the shard that holds it."""
    index: Index | None = None
    wrong = ""
    try:
        index = snapshots.read_index(store)
        if index is None and snapshots.numbers(store):
            wrong = "missing, but there are snapshots"
    except DatasetError as error:
        wrong = str(error).removeprefix(f"{INDEX}: ")
    if wrong:
        yield Problem(INDEX, wrong, (INDEX,))
    there: dict[int, Snapshot] = {}
    for number in snapshots.kept(index) if index else sorted(snapshots.numbers(store)):
        try:
            there[number] = snapshots.read(store, number)
        except DatasetError as error:
            name = snapshots.manifest_file(number)
            yield Problem(name, str(error).removeprefix(f"{name}: "), (name,))
    last = there.get(index.current) if index else None
    yield from _check_plain(store, last)
    if last is None:
        yield from _check_unnumbered(store, found)
    yield from _check_snapshots(store, there, last, found)


def _check_unnumbered(store: Store, found: dict[str, str]) -> Iterator[Problem]:
    """The shards in `shards/` where no snapshot says what they should be."""
    for path in store.list(SHARDS):
        tar, stem = path.removesuffix(".json") + ".tar", PurePosixPath(path).stem
        if not path.endswith(".json") or not store.exists(tar):
            continue
        drop = (path, tar)
        try:
            manifest = sample.read_manifest(store.read(path), path)
        except DatasetError as error:
            yield Problem(path, str(error), drop)
            continue
        if manifest.name != stem:
            yield Problem(path, f"expected name {stem}, found {manifest.name}", drop)
        for problem in _check_shard(store, stem, tar, tar, manifest, found):
            yield replace(problem, drop=drop)


def _check_plain(store: Store, last: Snapshot | None) -> Iterator[Problem]:
    """`shards/`: what is there is named like a shard, is whole and, with snapshots, is the current one."""
    wanted = {shard.name: shard for shard in last.shards} if last else {}
    paths = set(store.list(SHARDS))
    for path in sorted(paths):
        stem, suffix = path.rpartition(".")[::2]
        name = stem.removeprefix(f"{SHARDS}/")
        if snapshots.INDEX_FILE.fullmatch(path.removeprefix(f"{SHARDS}/")):
            continue  # of another tool; `snapshots` removes it when shards change
        if "/" in name or suffix not in ("tar", "json"):
            yield Problem(path, "not a file of any shard")
        elif suffix == "tar" and f"{stem}.json" not in paths:
            yield Problem(path, f"no manifest {name}.json: the shard is not committed")
        elif suffix == "json" and f"{stem}.tar" not in paths:
            yield Problem(f"{stem}.tar", f"missing, but {name}.json promises it", (path,))
        elif last and suffix == "tar":
            shard = wanted.get(name)
            drop = (f"{stem}.json", path)
            if shard is None:
                yield Problem(path, f"not a shard of snapshot {last.number}, the current one", drop)
            elif not store.exists(last.tar(shard)) or store.is_same(last.tar(shard), path):
                continue  # looked at as a file of the snapshot
            elif store.size(path) != shard.bytes or store.sha256(path) != shard.sha256:
                yield Problem(path, f"not the bytes of snapshot {last.number}, the current one", drop)
    if last and paths:
        for name in sorted(wanted):
            if f"{SHARDS}/{name}.json" not in paths and f"{SHARDS}/{name}.tar" not in paths:
                yield Problem(f"{SHARDS}/{name}.tar", f"missing, but snapshot {last.number} has it")


def _check_snapshots(
    store: Store, there: Mapping[int, Snapshot], last: Snapshot | None, found: dict[str, str]
) -> Iterator[Problem]:
    """Every file of every snapshot, each once; the current one's shards sample by sample."""
    seen: set[str] = set()
    for shard in last.shards if last else ():
        tar, plain = last.tar(shard) if last else "", f"{SHARDS}/{shard.name}.tar"
        drop = (plain, snapshots.beside(plain), tar, snapshots.beside(tar))
        seen.add(tar)
        if not store.exists(tar):
            yield Problem(tar, "missing, but a snapshot names it", drop)
            continue
        shown = plain if store.exists(plain) and store.is_same(tar, plain) else tar
        for problem in _check_shard(store, shard.name, tar, shown, shard, found):
            yield replace(problem, drop=drop)
    for snapshot in there.values():
        for digest, path in snapshot.files.items():
            if path in seen:
                continue
            seen.add(path)
            if not store.exists(path):
                yield Problem(path, "missing, but a snapshot names it", (snapshot.manifest_file,))
            elif store.sha256(path) != digest:
                yield Problem(path, f"expected sha256 {digest}, found another", (snapshot.manifest_file,))
    if there:
        own = {INDEX, *(snapshot.manifest_file for snapshot in there.values())}
        for path in store.list(snapshots.FOLDER):
            if path not in {*own, *seen} and path not in map(snapshots.beside, seen):
                yield Problem(path, "belongs to no snapshot", (path,))


def _check_shard(
    store: Store, name: str, tar: str, shown: str, manifest: ShardManifest, found: dict[str, str]
) -> Iterator[Problem]:
    """A shard that lies at `tar`, which problems call `shown`."""
    log.info("verifying %s: %d samples", tar, manifest.count)
    if manifest.count != len(manifest.keys):
        yield Problem(
            snapshots.beside(shown),
            f"expected count {len(manifest.keys)}, the number of its keys, found {manifest.count}",
        )
    if (num_bytes := store.size(tar)) != manifest.bytes:
        yield Problem(shown, f"expected {manifest.bytes} bytes, found {num_bytes}")
    elif (digest := store.sha256(tar)) != manifest.sha256:
        yield Problem(shown, f"expected sha256 {manifest.sha256}, found {digest}")
    keys: list[str] = []
    try:
        for key, members in read_samples(store, tar):
            if key in found:
                yield Problem(
                    f"{shown}: {key}", f"expected once in the data set, found in {found[key]} as well"
                )
            found.setdefault(key, name)
            keys.append(key)
            yield from (Problem(f"{shown}: {key}", what) for what in check_sample(key, members))
    except DatasetError as error:
        yield Problem(shown, str(error))
    if tuple(keys) != manifest.keys:
        yield Problem(shown, _key_difference(manifest.keys, tuple(keys)))


def _key_difference(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    if missing:
        return f"expected {len(expected)} samples, {len(missing)} missing, the first {missing[0]}"
    if extra:
        return f"expected {len(expected)} samples, {len(extra)} more found, the first {extra[0]}"
    return "expected its samples in the order of the manifest, found another order"


# ------------------------------------------------------------------------------- samples


def check_sample(key: str, members: Members) -> list[str]:
    """What is wrong with one sample: members, shapes, clocks, frames, audio."""
    try:
        decoded = sample.decode(key, members)
    except DatasetError as error:
        return [str(error)]
    if list(members) != [name for name in sample.MEMBERS if name in members]:
        return [f"expected its members in the order {', '.join(sample.MEMBERS)}; found another"]
    with scratch.file(".mp4") as path:
        path.write_bytes(decoded.mp4)
        try:
            video = probe(path, Input(uri=f"{key}.mp4"), content_hash(path))
            return [
                *_check_picture(path, video, decoded.meta.clip),
                *_check_sound(path, video, decoded.meta.clip, media.decode_flac(decoded.flac)),
            ]
        except MediaError as error:
            return [str(error)]


def _check_picture(path: Path, video: Video, clip: Clip) -> Iterator[str]:
    size, expected = (video.width_px, video.height_px), (clip.width_px, clip.height_px)
    if size != expected:
        yield f"mp4: expected {expected[0]}x{expected[1]} pixels, found {size[0]}x{size[1]}"
    if abs(video.fps - clip.fps) > MAX_FPS_ERROR:
        yield f"mp4: expected {clip.fps:g} frames per second, found {video.fps:g}"
    times_s = [frame.time_s for frame in media.read_frames(path, video)]
    if len(times_s) != clip.num_frames:
        yield f"mp4: expected {clip.num_frames} frames, found {len(times_s)}"
    for index, time_s in enumerate(times_s):
        wanted_s = seconds_from_frames(index, clip.fps)
        if abs(time_s - wanted_s) > MAX_TIME_ERROR_S:
            yield f"mp4: expected frame {index} at {wanted_s:.4f} s, found {time_s:.4f} s"
            return


def _check_sound(path: Path, video: Video, clip: Clip, flac: Floats) -> Iterator[str]:
    if len(flac) != (samples := samples_from_frames(clip.num_frames, clip.fps)):
        yield f"flac: expected {samples} samples, decoded {len(flac)}"
        return
    if not video.has_audio:
        yield "mp4: expected an audio track, found none"
        return
    mp4 = media.read_audio(path, video, 0.0, clip.duration_s)
    levels = level_dbfs(mp4), level_dbfs(flac)
    if max(levels) < SILENCE_DBFS:
        return
    similarity, lag_s = alignment(mp4, flac)
    if similarity < MIN_SIMILARITY:
        least = f"(least {MIN_SIMILARITY})"
        yield f"mp4 and flac: expected the same audio, found similarity {similarity:.2f} {least}"
    elif abs(lag_s) > MAX_LAG_S:
        yield (
            f"mp4 and flac: expected audio within {MAX_LAG_S * 1000:.0f} ms, found the mp4's "
            f"{abs(lag_s) * 1000:.0f} ms {'late' if lag_s > 0 else 'early'}"
        )


def level_dbfs(samples: Floats) -> float:
    """RMS level of samples [N], dB relative to full scale; -120 for digital silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def alignment(found: Floats, reference: Floats) -> tuple[float, float]:
    """(similarity, lag_s) of two tracks [N] at 16 kHz.

    Similarity is the largest normalised cross-correlation over all lags, 0 to 1; the lag is where it
    is, positive where `found` is late, and prefers one within `MAX_LAG_S` to an equal one beyond.
    """
    found, reference = found.astype(np.float64), reference.astype(np.float64)
    energy = float(np.sqrt(np.dot(found, found) * np.dot(reference, reference)))
    if energy == 0:
        return 0.0, 0.0
    curve = correlate(found, reference, method="fft") / energy
    lags_s = correlation_lags(len(found), len(reference)) / AUDIO_HZ
    best = int(np.argmax(curve))
    near = np.flatnonzero(np.abs(lags_s) <= MAX_LAG_S)
    near_best = int(near[np.argmax(curve[near])])
    if curve[near_best] >= PEAK_FRACTION * curve[best]:
        best = near_best
    return float(curve[best]), float(lags_s[best])


# ------------------------------------------------------------------------------- ledger


def _check_ledger(store: Store, found: dict[str, str]) -> Iterator[Problem]:
    name = "ledger.parquet"
    if not store.exists(name):
        if found or store.list("parts"):
            yield Problem(name, "missing")
        return
    try:
        table = tables.from_bytes(store.read(name), name).select(["clip_id", "accepted", "shard"])
    except DatasetError as error:
        yield Problem(name, str(error).removeprefix(f"{name}: "), (name,))
        return
    except KeyError as error:
        yield Problem(
            name, f"expected the columns clip_id, accepted, shard; found {one_line(error)}", (name,)
        )
        return
    rows = {row["clip_id"]: row for row in table.to_pylist()}
    if len(rows) != table.num_rows:
        yield Problem(name, f"expected every clip once, found {table.num_rows - len(rows)} rows too many")
    for key in sorted({*rows, *found}):
        if key not in rows:
            yield Problem(f"{name}: {key}", f"no row, but a sample in {found[key]}")
            continue
        promised, actual = rows[key]["shard"], found.get(key)
        if (promised or None) != actual:
            yield Problem(
                f"{name}: {key}",
                f"expected it in {promised or 'no shard'}, found it in {actual or 'no shard'}",
            )
        elif promised and not rows[key]["accepted"]:
            yield Problem(f"{name}: {key}", f"not accepted, but a sample in {promised}: shard again")
