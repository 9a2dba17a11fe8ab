"""Cutting: accepted clips are cut out of their videos and written into shards, the only pass that encodes.

A shard is one task: its clips are cut in the shard's order and written one by one. A clip that
cannot be cut is a failure row, and the shard is written without it.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation import media
from talkforge.curation.face import lips
from talkforge.pipeline import shards
from talkforge.pipeline.ledger import Selection
from talkforge.pipeline.rows import failure_row
from talkforge.pipeline.shards import ShardClip, ShardPlan
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import local_video
from talkforge.schemas import sample
from talkforge.schemas.arrays import ClipArrays, Floats
from talkforge.schemas.config import ShardConfig, TextSource
from talkforge.schemas.errors import DatasetError, RunError
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import Clip, Failure, LedgerRow, Video
from talkforge.schemas.sample import Members, Provenance, SampleMeta

AUDIO_HZ, AUDIO_CHANNELS = 48_000, 2
"""Sound of the mp4 member; the 16 kHz mono that models hear is the flac member."""


@dataclass(frozen=True)
class Order:
    """One clip to cut: where its arrays lie and what is written of it."""

    part: str
    meta: SampleMeta
    video: Video
    identity: Floats
    """[D], empty where no face embedding was measured."""
    text: str = ""
    """What the txt member holds."""


@dataclass(frozen=True)
class CutShard:
    """What became of one shard: the keys that are in it, and the clips that could not be cut."""

    name: str
    keys: tuple[str, ...]
    failures: tuple[Failure, ...]


def orders(
    selection: Selection,
    videos: Mapping[str, Video],
    models: Mapping[str, str],
    measure_hash: str,
    tool_version: str,
    text: TextSource = "none",
) -> dict[str, Order]:
    """What to cut: one order for each accepted clip, by clip id; `text` is that of the `ShardConfig`."""
    found = {}
    for row in selection.rows:
        if not row.accepted:
            continue
        clip, video = selection.clips[row.clip_id], videos[row.video_id]
        chosen = {"none": None, "transcript": clip.transcript, "caption": clip.caption}[text]
        said_by = [note for note in (clip.transcript, chosen) if note and note.failure is None]
        provenance = Provenance(
            uri=video.uri,
            sha256=video.sha256,
            source=row.source,
            licence=row.licence,
            consent=row.consent,
            models={**models, **{note.model: note.model_sha256 for note in said_by}},
            config_hash=measure_hash,
            tool_version=tool_version,
        )
        meta = SampleMeta(
            measures=clip.measures,
            omega_face=row.omega_face,
            omega_body=row.omega_body,
            person_id=row.person_id,
            verdict=selection.verdicts[row.clip_id],
            provenance=provenance,
            source=selection.listed.get(row.clip_id, {}),
        )
        identity = clip.features.get("identity", np.zeros(0, np.float32))
        found[row.clip_id] = Order(clip.part, meta, video, identity, chosen.text if chosen else "")
    return found


def plan(rows: Sequence[LedgerRow], orders: Mapping[str, Order], config: ShardConfig) -> list[ShardPlan]:
    """Shards for the accepted clips."""
    return shards.plan(
        [
            ShardClip(
                clip_id=row.clip_id,
                split=row.split or "train",
                num_frames=row.num_frames,
                fps=row.fps,
                width_px=row.width_px,
                height_px=row.height_px,
                content_hash=_content_hash(orders[row.clip_id]),
            )
            for row in rows
            if row.accepted
        ],
        config,
    )


def _content_hash(order: Order) -> str:
    return hashlib.sha256(sample.meta_json(order.meta) + order.text.encode()).hexdigest()


def cut_shard(
    store: Store,
    shard: ShardPlan,
    orders: Sequence[Order],
    config: ShardConfig,
    on_progress: Callable[[float], None] = lambda _: None,
) -> CutShard:
    """Cut and write one shard, unless it lies there already as planned.

    Args:
        store: the data set.
        shard: what to write.
        orders: its clips.
        config: how to encode.
        on_progress: called with the number of clips that are cut.
    """
    manifest = shards.current(store, shard)
    if manifest is not None:
        return CutShard(shard.name, manifest.keys, ())
    failures: list[Failure] = []
    manifest = shards.write_shard(store, shard, _samples(store, orders, config, failures, on_progress))
    return CutShard(shard.name, manifest.keys if manifest else (), tuple(failures))


def _samples(
    store: Store,
    orders: Sequence[Order],
    config: ShardConfig,
    failures: list[Failure],
    on_progress: Callable[[float], None],
) -> Iterator[tuple[str, Members]]:
    for number, order in enumerate(orders):
        on_progress(number)
        key = order.meta.clip.clip_id
        try:
            with local_video(store, order.video) as path:
                members = cut(store, order, path, config)
        except RunError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise RunError(f"no space left for cutting clips in {tempfile.gettempdir()}") from None
            failures.append(store.named(failure_row("cut", key, order.video, error)))
            continue
        yield key, members


def cut(store: Store, order: Order, path: Path, config: ShardConfig) -> Members:
    """Members of one sample, cut from the video at `path`.

    Raises:
        MediaError: the video cannot be read any more.
        DatasetError: the clip's arrays are missing, or do not fit the clip.
    """
    clip, video = order.meta.clip, order.video
    arrays = read_arrays(store, order.part, clip.clip_id, order.identity)
    stereo = media.read_audio(path, video, clip.start_s, clip.end_s, AUDIO_HZ, AUDIO_CHANNELS)
    mono = media.read_audio(path, video, clip.start_s, clip.end_s)
    with tempfile.TemporaryDirectory(prefix="talkforge-") as folder:
        out = Path(folder) / "clip.mp4"
        media.encode_mp4(out, _frames(path, video, clip), clip.fps, stereo, config.crf, config.preset)
        mp4 = out.read_bytes()
    masks = (
        lips.rasterise(contour, clip.height_px, clip.width_px)
        if valid
        else np.zeros((clip.height_px, clip.width_px), bool)
        for contour, valid in zip(arrays.contour, arrays.lip_valid, strict=True)
    )
    bits = np.concatenate([sample.pack_mask(mask[None]) for mask in masks])
    return sample.encode(
        order.meta, arrays, bits, mp4=mp4, flac=media.encode_flac(mono), face_jpg=_jpeg(arrays.face_rgb),
        text=order.text,
    )  # fmt: skip


def _frames(path: Path, video: Video, clip: Clip) -> Iterator[np.ndarray]:
    """Exactly the clip's frames, uint8 [H, W, 3]; raises DatasetError where some cannot be decoded."""
    count, rgb = 0, None
    for frame in media.read_frames(path, video, clip.start_s, clip.end_s):
        shown = media.clip_indices(frame, clip.start_s, clip.fps, clip.num_frames)
        if shown:
            rgb = frame.rgb(clip.width_px, clip.height_px)
            for _ in shown:
                yield rgb
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
    names = ("landmarks", "contour", "lip_valid", "joints", "face_rgb")
    arrays = read_npz(store.read(dense), dense, names) | read_npz(store.read(spoken), spoken, ("speech",))
    try:
        return ClipArrays(**arrays, identity=identity)
    except ValueError as error:
        raise DatasetError(f"{dense}: {error}") from None


def _jpeg(rgb: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise DatasetError("the face picture cannot be encoded")
    return bytes(data)
