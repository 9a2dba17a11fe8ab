"""Cutting: accepted clips are cut out of their videos and written into shards, the only pass that encodes.

Where several workers cut, a task is a piece of a shard, a few clips, and the shard is put together when all
its pieces are cut. A single worker cuts whole shards. Clips are cut video by video, so that each video is
fetched once a task, and then written in the shard's order: how it was divided does not show. A clip that
cannot be cut is a failure row; its sample in an earlier shard is kept where there is one, and otherwise the
shard is written without it.

A task that hangs or crashes is divided until the offending clip stands alone. What pieces have cut waits in
`shards.next/pieces` until the shard is put together.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talkforge.curation import media
from talkforge.curation.audio import speech_encoders
from talkforge.curation.face import lips, oval
from talkforge.pipeline import shards, snapshots
from talkforge.pipeline.executor import Executor
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.ledger import CommittedClip
from talkforge.pipeline.rows import failure_row
from talkforge.pipeline.shards import ShardClip, ShardPlan
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import local_video
from talkforge.schemas import sample, scratch, tar
from talkforge.schemas.arrays import ClipArrays, Floats
from talkforge.schemas.config import ShardConfig, SpeechConfig, TextSource
from talkforge.schemas.errors import DatasetError, MissingExtraError, ModelError, RunError, one_line
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import Clip, Failure, Trim, Verdict, Video
from talkforge.schemas.sample import Members, Provenance, SampleMeta, ShardManifest
from talkforge.schemas.units import features_from_frames

log = logging.getLogger(__name__)

PIECES = f"{snapshots.NEXT}/pieces"

OnProgress = Callable[[int, Mapping[str, float]], None]

TRACED = ("landmarks", "contour", "lip_valid", "joints", "face_rgb")
"""Arrays that every version stored of a traced clip. The others of `ClipArrays` may be missing."""

PIECE_S = 20.0
"""Footage of the clips in a piece, s. Source: ours, some 5 CPU seconds of cutting; a task costs some 0.01."""

PIECES_PER_WORKER = 32
"""Pieces for each worker after which shards are put together. Until then pieces lie on the disk, and at the
end of each round workers wait for the last one, which costs up to a piece in so many."""

AUDIO_HZ = 48_000
"""Rate of the sound in the mp4 member, Hz; the 16 kHz mono that models hear is the flac member."""


@dataclass(frozen=True)
class Order:
    """One clip to cut: where its arrays lie and what is written of it."""

    part: str
    meta: SampleMeta
    video: Video
    stamp: str
    """State of the video's file when it was hashed, see `ingest.stamp_of`."""
    identity: Floats
    """[D], empty where no face embedding was measured."""
    split: str = "train"
    """Or "validation"."""
    text: str = ""
    """What the txt member holds."""
    speech: SpeechConfig | None = None
    """The encoder by which audio that is moved is embedded; None where it is not moved."""
    trim: Trim = (0, 0)
    """Frames of the arrays that are left out before and after the clip of `meta`: there is no audio for them
    once it is moved."""

    @property
    def key(self) -> str:
        return self.meta.clip.clip_id


@dataclass(frozen=True)
class CutShard:
    """What became of one shard.

    Attributes:
        name: of the shard.
        manifest: what is in it; None where no clip of it could be cut.
        failures: clips that could not be cut.
        kept: those of them whose sample is that of an earlier run.
    """

    name: str
    manifest: ShardManifest | None
    failures: tuple[Failure, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """What is in it."""
        return self.manifest.keys if self.manifest else ()


@dataclass(frozen=True)
class CutPiece:
    """What became of a piece of a shard: key -> tar file that holds its sample, and what could not be cut."""

    name: str
    ready: dict[str, str]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class CutTask:
    """A shard to cut, or a piece of one.

    Attributes:
        store: the data set.
        shard: the shard.
        orders: of the clips to cut, in the shard's order.
        config: how to encode.
        earlier: key -> tar file of an earlier run that holds a sample of the clip.
        ready: key -> tar file that holds what a piece has cut.
        failures: clips that pieces could not cut.
        whole: whether all of the shard is here.
    """

    store: Store
    shard: ShardPlan
    orders: tuple[Order, ...]
    config: ShardConfig
    earlier: Mapping[str, str] = field(default_factory=dict)
    ready: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    whole: bool = True

    @property
    def name(self) -> str:
        return f"shard {self.shard.name}" if self.whole else f"{self.orders[0].key}-{len(self.orders)}"

    @property
    def duration_s(self) -> float:
        """Seconds of the clips, and of the videos that are fetched for them."""
        fetched = {
            o.video.video_id: o.video.duration_s
            for o in self.orders
            if "://" in self.store.input_uri(o.video.uri)
        }
        return sum(o.meta.clip.duration_s for o in self.orders) + sum(fetched.values())

    def pieces(self) -> tuple[CutTask, ...]:
        """The task in pieces of `PIECE_S`, video by video. Clips of a video that is fetched stay together."""
        by_video: dict[str, list[Order]] = {}
        for order in self.orders:
            by_video.setdefault(order.video.video_id, []).append(order)
        groups = [
            group
            for orders in by_video.values()
            for group in (
                [orders] if "://" in self.store.input_uri(orders[0].video.uri) else [[o] for o in orders]
            )
        ]
        pieces: list[list[Order]] = []
        held_s = PIECE_S
        for group in groups:
            group_s = sum(order.meta.clip.duration_s for order in group)
            if held_s + group_s > PIECE_S:
                pieces.append([])
                held_s = 0.0
            pieces[-1] += group
            held_s += group_s
        if len(pieces) < 2:
            return (self,)
        return tuple(replace(self, orders=tuple(orders), whole=False) for orders in pieces)

    def halves(self) -> tuple[CutTask, ...]:
        """The task in two pieces; empty where it is one clip."""
        if len(self.orders) < 2:
            return ()
        middle = len(self.orders) // 2
        return tuple(
            replace(self, orders=orders, whole=False)
            for orders in (self.orders[:middle], self.orders[middle:])
        )


class OrderFile(Mapping[str, Order]):
    """Orders by clip id, in a temporary file: those of a million clips would not fit in memory.

    Only the process that writes the file reads it.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("w+b")
        self._at: dict[str, int] = {}

    def kept(self, orders: Iterable[Order]) -> Iterator[Order]:
        """The orders, each written to the file before it is passed on.

        Raises:
            RunError: the file cannot be written to.
        """
        for order in orders:
            with _writing_temporary():
                self._at[order.key] = self._stream.seek(0, os.SEEK_END)
                pickle.dump(order, self._stream)
            yield order
        with _writing_temporary():
            self._stream.flush()

    def __getitem__(self, key: str) -> Order:
        self._stream.seek(self._at[key])
        order: Order = pickle.load(self._stream)
        return order

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def close(self) -> None:
        """Close the file, which nobody reads any more: what cannot be written to it now is not missed."""
        with suppress(OSError):
            self._stream.close()


def orders(
    accepted: Iterable[tuple[str, Sequence[Mapping[str, Any]]]],
    read: Callable[[str, Sequence[str]], Sequence[CommittedClip]],
    inputs: Callable[[Iterable[str]], Mapping[str, IngestRow]],
    models: Mapping[str, str],
    measure_hash: str,
    tool_version: str,
    speech: SpeechConfig,
    text: TextSource = "none",
) -> Iterator[Order]:
    """What to cut: one order for each accepted clip, part by part.

    Args:
        accepted: see `Selection.accepted_by_part`. The rows say by how much audio is moved, and which span
            is cut.
        read: gives clips of a part, by their ids, as they were committed, with their identity vector.
        inputs: gives the input of each of some videos, by their ids.
        models: name -> sha256 of what measured.
        measure_hash: hash of the measuring configuration.
        tool_version: of this program.
        speech: the encoder that measured.
        text: that of the `ShardConfig`.
    """
    for part, rows in accepted:
        by_id = {clip.measures.clip.clip_id: clip for clip in read(part, [row["clip_id"] for row in rows])}
        entries = inputs(row["video_id"] for row in rows)
        for row in rows:
            clip, entry = by_id[row["clip_id"]], entries[row["video_id"]]
            video = entry.video
            assert video is not None
            chosen = {"none": None, "transcript": clip.transcript, "caption": clip.caption}[text]
            said_by = [note for note in (clip.transcript, chosen) if note and note.failure is None]
            provenance = Provenance(
                uri=video.uri,
                sha256=video.sha256,
                source=row["source"],
                licence=row["licence"],
                consent=row["consent"],
                models={**models, **{note.model: note.model_sha256 for note in said_by}},
                config_hash=measure_hash,
                tool_version=tool_version,
            )
            whole = clip.measures.clip
            trim = whole.trim_of(row["start_s"], row["num_frames"])
            meta = SampleMeta(
                measures=clip.measures.model_copy(update={"clip": whole.trimmed(trim)}),
                omega_face=row["omega_face"],
                omega_body=row["omega_body"],
                person_id=row["person_id"],
                verdict=Verdict(clip_id=row["clip_id"], accepted=True, reasons=()),
                provenance=provenance,
                audio_shift_s=row["audio_shift_s"] or 0.0,
                source=row["listed"],
            )
            yield Order(
                part=part,
                meta=meta,
                video=video,
                stamp=entry.stamp,
                identity=clip.features.get("identity", np.zeros(0, np.float32)),
                split=row["split"] or "train",
                text=chosen.text if chosen else "",
                speech=speech if meta.audio_shift_s else None,
                trim=trim,
            )


def plan(orders: Iterable[Order], config: ShardConfig) -> list[ShardPlan]:
    """Shards for the accepted clips.

    Args:
        orders: of all of them, in any order; each is looked at once.
        config: how large shards are.
    """
    return shards.plan((_shard_clip(order) for order in orders), config)


def _shard_clip(order: Order) -> ShardClip:
    clip = order.meta.clip
    return ShardClip(
        clip_id=clip.clip_id,
        split=order.split,
        num_frames=clip.num_frames,
        fps=clip.fps,
        width_px=clip.width_px,
        height_px=clip.height_px,
        content_hash=hashlib.sha256(sample.meta_json(order.meta) + order.text.encode()).hexdigest(),
    )


def cut_shards(
    store: Store,
    plan: Sequence[ShardPlan],
    orders: Mapping[str, Order],
    config: ShardConfig,
    executor: Executor,
    on_progress: OnProgress = lambda _done, _running: None,
) -> list[CutShard]:
    """Cut and write to `shards.next/` what does not lie there or in a snapshot already as planned.

    Args:
        store: the data set.
        plan: its shards.
        orders: what to cut, by clip id.
        config: how to encode.
        executor: runs the tasks.
        on_progress: called with the clips that are settled, and with those of each running task.

    Returns:
        What became of each shard of the plan, by name.
    """
    there, missing = _look(store, plan)
    last = snapshots.current(store)
    earlier = {key: last.tar(manifest) for manifest in last.shards for key in manifest.keys}
    tasks = (
        CutTask(
            store,
            shard,
            tuple(orders[key] for key in shard.keys),
            config,
            {key: earlier[key] for key in shard.keys if key in earlier},
        )
        for shard in missing
    )
    done = [CutShard(manifest.name, manifest) for manifest in there]
    planned = {shard.name: len(shard.keys) for shard in plan}
    divided: dict[str, list[CutPiece]] = {}

    def show(running: Mapping[str, float]) -> None:
        whole = sum(planned[result.name] for result in done)
        pieces = [piece for of_shard in divided.values() for piece in of_shard]
        on_progress(whole + sum(len(piece.ready) + len(piece.failures) for piece in pieces), running)

    if plan:
        show({})
    for batch in _batches(tasks, executor.num_workers):
        whole = {task.name: task for task in batch}
        todo = [piece for task in batch for piece in (task.pieces() if executor.num_workers > 1 else (task,))]
        for result in executor.isolate(cut_task, todo, give_up, show):
            if isinstance(result, CutPiece):
                divided.setdefault(result.name, []).append(result)
            else:
                done.append(result)
            show({})
        calls = [(_put_together(whole[f"shard {name}"], divided[name]),) for name in sorted(divided)]
        done += [result for result in executor.map(cut_task, calls) if isinstance(result, CutShard)]
        for file in {
            file for of_shard in divided.values() for piece in of_shard for file in piece.ready.values()
        }:
            store.delete(file)
        divided.clear()
    return sorted(done, key=lambda result: result.name)


def _batches(tasks: Iterable[CutTask], num_workers: int) -> Iterator[list[CutTask]]:
    """Shards that are cut before the next ones are begun: few, so that few pieces lie about."""
    batch: list[CutTask] = []
    num_pieces = 0
    for task in tasks:
        batch.append(task)
        num_pieces += len(task.pieces())
        if num_pieces >= PIECES_PER_WORKER * num_workers:
            yield batch
            batch, num_pieces = [], 0
    if batch:
        yield batch


def _look(store: Store, plan: Sequence[ShardPlan]) -> tuple[list[ShardManifest], list[ShardPlan]]:
    """Shards that lie in a snapshot or in `shards.next/` as planned, and those to be written to the latter.

    What else a killed run has left in `shards.next/` is removed.
    """
    known = snapshots.known_shards(store)
    there: list[ShardManifest] = []
    missing: list[ShardPlan] = []
    keep: set[str] = set()
    for shard in plan:
        found = known.get((shard.name, shard.fingerprint))
        written = replace(shard, folder=snapshots.NEXT)
        if found is None or found.keys != shard.keys:
            found = shards.current(store, written)
            keep |= {written.tar, written.manifest} if found else set()
        if found is None:
            missing.append(written)
        else:
            there.append(found)
    for path in store.list(snapshots.NEXT):
        if path not in keep:
            store.delete(path)
    return there, missing


def _put_together(task: CutTask, pieces: Sequence[CutPiece]) -> CutTask:
    ready = {key: file for piece in pieces for key, file in piece.ready.items()}
    failures = sorted((row for piece in pieces for row in piece.failures), key=lambda row: row.key)
    return replace(task, ready=ready, failures=tuple(failures))


def give_up(task: CutTask, error: BaseException) -> CutShard | CutPiece:
    """What becomes of a clip that hangs or crashes wherever it is cut."""
    failures = tuple(_row(task.store, order, error) for order in task.orders)
    for failure in failures:
        log.warning("clip %s: %s", failure.key, failure.message)
    return CutPiece(task.shard.name, {}, failures)


def _row(store: Store, order: Order, error: BaseException) -> Failure:
    return store.named(failure_row("cut", order.key, order.video, error))


def cut_task(task: CutTask, on_progress: Callable[[float], None] = lambda _: None) -> CutShard | CutPiece:
    """Cut the clips of a task and write them, a whole shard as such, a piece to `shards.next/pieces`.

    Args:
        task: what to cut.
        on_progress: called with the number of clips that are cut.
    """
    with scratch.folder() as spool:
        failures = [*task.failures, *_cut_videos(task, spool, on_progress)]
        _copy_samples(task.store, task.ready, spool)
        if not task.whole:
            return CutPiece(task.shard.name, _write_piece(task, spool), tuple(failures))
        failures, kept = _keep_earlier(task, failures, spool)
        manifest = shards.write_shard(task.store, task.shard, _spooled(task, spool), kept)
    return CutShard(task.shard.name, manifest, tuple(failures), kept)


def _cut_videos(task: CutTask, spool: Path, on_progress: Callable[[float], None]) -> Iterator[Failure]:
    """Cut into `spool` what is neither ready nor failed, one video after the other; what cannot be cut."""
    settled = {*task.ready, *(failure.key for failure in task.failures)}
    by_video: dict[str, list[Order]] = {}
    for order in task.orders:
        if order.key not in settled:
            by_video.setdefault(order.video.video_id, []).append(order)
    number = 0
    for orders in by_video.values():
        try:
            with local_video(task.store, orders[0].video, orders[0].stamp) as path:
                for order in orders:
                    on_progress(number)
                    number += 1
                    yield from _cut_into(spool, task, order, path)
        except Exception as error:
            yield from (_failed(task.store, order, error) for order in orders)


def _cut_into(spool: Path, task: CutTask, order: Order, path: Path) -> Iterator[Failure]:
    try:
        members = cut(task.store, order, path, task.config)
        _save(spool, order.key, members)
    except Exception as error:
        yield _failed(task.store, order, error)


def _failed(store: Store, order: Order, error: Exception) -> Failure:
    """The row of a clip that cannot be cut; what concerns the whole run is raised."""
    if isinstance(error, (RunError, ModelError, MissingExtraError)):
        raise error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise RunError(f"no space left for cutting clips in {tempfile.gettempdir()}") from None
    return _row(store, order, error)


def _keep_earlier(
    task: CutTask, failures: Sequence[Failure], spool: Path
) -> tuple[list[Failure], tuple[str, ...]]:
    """Copy to `spool` the earlier samples of clips that failed; the rows, which say so, and the keys."""
    wanted = {row.key: task.earlier[row.key] for row in failures if row.key in task.earlier}
    try:
        _copy_samples(task.store, wanted, spool)
    except DatasetError as error:
        log.warning("shard %s: earlier samples are lost: %s", task.shard.name, error)
    kept = tuple(sorted(key for key in wanted if _file(spool, key).exists()))
    rows = [
        row.model_copy(update={"message": f"{row.message}; the sample of an earlier run is kept"})
        if row.key in kept
        else row
        for row in failures
    ]
    return rows, kept


def _copy_samples(store: Store, wanted: Mapping[str, str], spool: Path) -> None:
    """Copy samples to `spool`, from key -> tar file; each file is read once."""
    for file in sorted(set(wanted.values())):
        try:
            for key, members in shards.read_samples(store, file):
                if wanted.get(key) == file:
                    sample.check_members(key, members)
                    _save(spool, key, members)
        except DatasetError as error:
            raise DatasetError(f"{file}: {error}") from None


def _write_piece(task: CutTask, spool: Path) -> dict[str, str]:
    """Write what was cut to a tar file of its own; key -> file."""
    name = f"{PIECES}/{task.name}.tar"
    with (
        task.store.writing(name) as path,
        task.store.reporting_errors("write", name),
        path.open("wb") as stream,
        tar.tar_writer(stream) as out,
    ):
        keys = []
        for key, members in _spooled(task, spool):
            tar.write_sample(out, key, members)
            keys.append(key)
    return dict.fromkeys(keys, name)


def _file(spool: Path, key: str) -> Path:
    return spool / f"{key}.tar"


def _save(spool: Path, key: str, members: Members) -> None:
    with _writing_temporary(), _file(spool, key).open("wb") as stream, tar.tar_writer(stream) as out:
        tar.write_sample(out, key, members)


@contextmanager
def _writing_temporary() -> Iterator[None]:
    """Turns what the disk of temporary files raises into a RunError: no video is to blame."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {tempfile.gettempdir()}: {one_line(error)}") from None


def _spooled(task: CutTask, spool: Path) -> Iterator[tuple[str, Members]]:
    """The samples in `spool`, in the shard's order; each goes when it was read."""
    for order in task.orders:
        file = _file(spool, order.key)
        if file.exists():
            with file.open("rb") as stream:
                yield from tar.read_samples(stream)
            file.unlink()


def cut(store: Store, order: Order, path: Path, config: ShardConfig) -> Members:
    """Members of one sample, cut from the video at `path`.

    Where the audio is moved, its speech features are computed again.

    Raises:
        MediaError: the video cannot be read any more.
        DatasetError: the clip's arrays are missing, or do not fit the clip.
        ModelError, MissingExtraError: audio is moved, and the encoder of the data set is not here.
    """
    clip, video, shift_s = order.meta.clip, order.video, order.meta.audio_shift_s
    arrays = read_arrays(store, order.part, clip.clip_id, order.identity).trimmed(*order.trim)
    begin_s, end_s = clip.start_s - shift_s, clip.end_s - shift_s
    channels = 1 if video.audio_channels == 1 or video.audio_channel != "mix" else 2
    sound = media.read_audio(path, video, begin_s, end_s, AUDIO_HZ, channels).reshape(-1, channels)
    mono = media.read_audio(path, video, begin_s, end_s)
    if order.speech is not None:
        arrays = replace(arrays, speech=_embedded(mono, order, order.speech))
    with scratch.folder() as folder:
        out = folder / "clip.mp4"
        media.encode_mp4(out, _frames(path, video, clip), clip.fps, sound, config.crf, config.preset)
        mp4 = out.read_bytes()
    masks = (
        lips.rasterise(contour, clip.height_px, clip.width_px)
        if valid
        else np.zeros((clip.height_px, clip.width_px), bool)
        for contour, valid in zip(arrays.contour, arrays.lip_valid, strict=True)
    )
    bits = np.concatenate([sample.pack_mask(mask[None]) for mask in masks])
    face_contour, face_valid = oval.trace(arrays.landmarks)
    arrays = replace(arrays, face_contour=face_contour, face_valid=face_valid)
    return sample.encode(
        order.meta, arrays, bits, mp4=mp4, flac=media.encode_flac(mono), face_jpg=_jpeg(arrays.face_rgb),
        text=order.text,
    )  # fmt: skip


def _embedded(samples: Floats, order: Order, config: SpeechConfig) -> np.ndarray:
    """Speech features of moved audio, by the encoder that embedded all other clips of the data set."""
    encoder, clip = _encoder(config.model_dump_json()), order.meta.clip
    if encoder.sha256 and encoder.sha256 not in order.meta.provenance.models.values():
        raise ModelError(
            f"{config.embedding}: not the speech encoder that the data set was measured with (found sha256 "
            f"{encoder.sha256}), which has to embed audio that is moved (thresholds.repair_sync)"
        )
    (features,) = encoder.encode([samples], [features_from_frames(clip.num_frames, clip.fps)])
    return features


@functools.lru_cache(maxsize=1)
def _encoder(config_json: str) -> speech_encoders.SpeechEncoder:
    """The encoder of a `SpeechConfig` in JSON; kept for the process."""
    return speech_encoders.load_speech_encoder(SpeechConfig.model_validate_json(config_json))


def _frames(path: Path, video: Video, clip: Clip) -> Iterator[Any]:
    """Exactly the clip's frames, as `encode_mp4` takes them; raises DatasetError where some are missing."""
    count = 0
    for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
        shown = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if shown:
            picture = frame.to_encode(clip)
            for _ in shown:
                yield picture
            count += len(shown)
    if count != clip.num_frames:
        raise DatasetError(f"clip {clip.clip_id}: expected {clip.num_frames} frames, decoded {count}")


def read_arrays(store: Store, part: str, clip_id: str, identity: Floats) -> ClipArrays:
    """The arrays of a clip that was traced and embedded.

    Args:
        store: the data set.
        part: name of the part that holds the clip.
        clip_id: the clip.
        identity: its face embedding [D], which the part stores elsewhere; empty where none was measured.

    Raises:
        DatasetError: a file is missing or not readable; names it.
    """
    dense, spoken = f"parts/{part}/{clip_id}.npz", f"parts/{part}/{clip_id}.speech.npz"
    names = {field.name for field in fields(ClipArrays)} - {"speech", "identity"}
    arrays = read_npz(store.read(dense), dense, wanted=names.__contains__)
    if missing := [name for name in TRACED if name not in arrays]:
        raise DatasetError(f"{dense}: expected {', '.join(TRACED)}, found no {', '.join(missing)}")
    arrays |= read_npz(store.read(spoken), spoken, ("speech",))
    try:
        return ClipArrays(**arrays, identity=identity)
    except ValueError as error:
        raise DatasetError(f"{dense}: {error}") from None


def _jpeg(rgb: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise DatasetError("the face crop cannot be encoded")
    return bytes(data)
