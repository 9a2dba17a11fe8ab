"""Calibration of the sync estimator on the data set itself, once it holds enough footage.

The shipped map was fitted on under a minute of footage. Once a data set holds enough of its own, every
clip is scored again by a map fitted on the other videos. The scores are written to `sync.parquet`, and
`select` prefers them to those of the parts. They are computed again when parts are added.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from talkforge.curation.sync import ridge
from talkforge.pipeline import tables
from talkforge.pipeline.ledger import SELECTING, Committed, CommittedClip, read_committed
from talkforge.pipeline.parts import committed_parts
from talkforge.pipeline.store import Store
from talkforge.schemas.records import Record, Sync

TABLE, MARKER = "sync.parquet", "sync.json"


class Rescored(Record):
    """A clip's sync by the data set's own map."""

    clip_id: str
    sync: Sync


def calibrate(store: Store, committed: Committed) -> bool:
    """Score all clips by the data set's own map, where there is enough footage for one.

    Nothing is done again while neither the parts nor the shipped map have changed. Returns whether
    the data set has a map of its own.

    Args:
        store: the data set.
        committed: answer of `read_committed` for this store, with every array.
    """
    state = _state(store)
    if store.exists(MARKER) and json.loads(store.read(MARKER))["state"] == state:
        return store.exists(TABLE)
    store.delete(MARKER)
    rows = rescore(committed)
    if rows:
        tables.write(store, TABLE, Rescored, rows)
    else:
        store.delete(TABLE)
    store.write(MARKER, json.dumps({"state": state}).encode())
    return bool(rows)


def rescore(committed: Committed) -> list[Rescored]:
    """Sync of every traced clip by the data set's own map; empty where there is too little footage."""
    traced = [clip for clip in committed.clips if "mouth" in clip.features]
    if not traced:
        return []
    fps = traced[0].measures.clip.fps
    items = [(c.measures.clip.video_id, c.features["mouth"], c.features["bands"]) for c in traced]
    own = ridge.dataset_map(items, fps)
    if own.method != ridge.DATASET:
        return []
    return [
        Rescored(
            clip_id=clip.measures.clip.clip_id,
            sync=ridge.score(mouth, bands, fps, own, video_id),
        )
        for clip, (video_id, mouth, bands) in zip(traced, items, strict=True)
    ]


def read_calibrated(store: Store) -> Committed:
    """Everything that selection needs of what is committed, with sync by the data set's own map."""
    return calibrated(store, read_committed(store, SELECTING))


def calibrated(store: Store, committed: Committed) -> Committed:
    """The same with sync by the data set's own map where there is one."""
    if store.exists(MARKER) and store.exists(TABLE):
        own = {row.clip_id: row.sync for row in tables.read(store, TABLE, Rescored)}
        clips = [_with_sync(clip, own.get(clip.measures.clip.clip_id)) for clip in committed.clips]
        return replace(committed, clips=clips)
    return committed


def _with_sync(clip: CommittedClip, own: Sync | None) -> CommittedClip:
    return clip if own is None else replace(clip, measures=clip.measures.model_copy(update={"sync": own}))


def _state(store: Store) -> str:
    """Changes with the committed parts and with the shipped map."""
    digest = hashlib.sha256(ridge.MAP_PATH.read_bytes())
    for part in committed_parts(store):
        files = json.loads(store.read(f"parts/{part}/part.json"))["files"]
        digest.update(f"{part} {files['features.npz']}\n".encode())
    return digest.hexdigest()
