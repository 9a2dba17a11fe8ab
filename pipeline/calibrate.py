"""Sync scored again over the whole data set, from the mouth measures and audio bands that the parts keep.

There are two reasons. Parts hold the scores of the version that measured them, and that may have had another
scorer. And with `thresholds.adapt_sync` the networks are fitted further on the data set itself
(`pipeline/sync_adaptation.py`). No video is opened. The scores are written to `sync.parquet`, and `select`
prefers them to those of the parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from talkforge.curation.face import identity
from talkforge.curation.sync import contrastive
from talkforge.curation.sync.contrastive import Scorer
from talkforge.pipeline import shards, small_arrays, sync_adaptation, tables
from talkforge.pipeline.ledger import Committed, CommittedClip, read_committed
from talkforge.pipeline.measured import Measured, in_order
from talkforge.pipeline.parts import committed_parts
from talkforge.pipeline.people import FaceClip
from talkforge.pipeline.small_arrays import SCORED
from talkforge.pipeline.store import Store
from talkforge.pipeline.sync_adaptation import Adapted
from talkforge.schemas import extras
from talkforge.schemas.config import Config
from talkforge.schemas.errors import MissingExtraError, ModelError
from talkforge.schemas.records import Record, Sync

log = logging.getLogger(__name__)

TABLE, MARKER, WEIGHTS = "sync.parquet", "sync.json", "sync.npz"


class Rescored(Record):
    """A clip's sync, scored again."""

    clip_id: str
    sync: Sync


def calibrate(store: Store, committed: Committed, config: Config, state: str | None = None) -> bool:
    """Score the clips again where their scores are not those of the scorer that counts now.

    Nothing is done again while the parts, the shipped weights and the settings are the same. Returns whether
    any clip was scored again.

    Args:
        store: the data set.
        committed: answer of `read_committed` for this store, with every array.
        config: says whether the data set's own footage is used, and how people are told apart.
        state: what the scores depend on, where it is known already; None looks.
    """
    state = state or _state(store, config, committed_parts(store))
    if scored_state(store) == state:
        return store.exists(TABLE)
    store.delete(MARKER)
    rows = rescore(store, committed, config)
    if rows:
        tables.write(store, TABLE, Rescored, rows)
    else:
        store.delete(TABLE)
    store.write(MARKER, json.dumps({"state": state}).encode())
    return bool(rows)


def rescore(store: Store, committed: Committed, config: Config) -> list[Rescored]:
    """Sync of the traced clips whose score changes.

    Args:
        store: keeps the data set's own networks.
        committed: as `calibrate`.
        config: as `calibrate`.
    """
    shipped, bands_only = Scorer.load(), Scorer.load(contrastive.BANDS_ONLY_PATH)
    traced = [clip for clip in committed.clips if "mouth" in clip.features]
    found = [_by_shipped(clip, shipped if "phones" in clip.features else bands_only) for clip in traced]
    person_of = _people(traced, config)
    # What an earlier version measured has no phones, and keeps the scorer of then.
    with_phones = [(c, sync) for c, sync in zip(traced, found, strict=True) if "phones" in c.features]
    if adapted := _adapted(store, with_phones, person_of, shipped, config):
        found = [
            _score(clip, adapted.scorer(person_of[clip.measures.clip.clip_id]))
            if "phones" in clip.features
            else sync
            for clip, sync in zip(traced, found, strict=True)
        ]
    return [
        Rescored(clip_id=clip.measures.clip.clip_id, sync=sync)
        for clip, sync in zip(traced, found, strict=True)
        if sync != clip.measures.sync
    ]


def _by_shipped(clip: CommittedClip, shipped: Scorer) -> Sync:
    stored = clip.measures.sync
    return stored if stored and stored.sync_method == shipped.name else _score(clip, shipped)


def _score(clip: CommittedClip, scorer: Scorer) -> Sync:
    features, fps = clip.features, clip.measures.clip.fps
    return contrastive.score(features["mouth"], features["bands"], fps, scorer, features.get("phones"))


def _people(traced: Sequence[CommittedClip], config: Config) -> dict[str, str]:
    """Clip id -> group of its person, as the splits have it; without identity, that of its video."""
    faces = [
        FaceClip(
            clip.measures.clip.clip_id,
            clip.measures.clip.video_id,
            clip.measures.clip.start_s,
            clip.measures.clip.end_s,
            clip.features.get("identity"),
        )
        for clip in traced
    ]
    model = next((clip.measures.identity.identity_model for clip in traced if clip.measures.identity), None)
    groups = shards.split_groups(faces, identity.same_person_threshold(config.shards, model))
    return {key: group for key, (_, group) in groups.items()}


def _adapted(
    store: Store,
    scored: Sequence[tuple[CommittedClip, Sync]],
    person_of: Mapping[str, str],
    shipped: Scorer,
    config: Config,
) -> Adapted | None:
    """The data set's own scorers, fitted or read; None where they are not wanted or do not help."""
    talks = sync_adaptation.teachers(scored, person_of) if config.thresholds.adapt_sync else []
    if not sync_adaptation.enough(talks):
        store.delete(WEIGHTS)
        return None
    of = sync_adaptation.digest(talks, shipped)
    if store.exists(WEIGHTS):
        try:
            known, adapted = sync_adaptation.from_bytes(store.read(WEIGHTS), WEIGHTS, shipped, of)
            if known:
                return adapted
        except ModelError as error:
            log.warning("the data set's sync networks are fitted again: %s", error)
        store.delete(WEIGHTS)  # clips that they were fitted on may have been erased
    try:
        extras.require("torch", "thresholds.adapt_sync")
    except MissingExtraError as error:
        log.warning("sync is scored by the shipped weights alone: %s", error)
        return None
    data = sync_adaptation.to_bytes(sync_adaptation.adapt(talks, shipped), shipped, of)
    store.write(WEIGHTS, data)
    return sync_adaptation.from_bytes(data, WEIGHTS, shipped, of)[1]


def settle(store: Store, measured: Measured, config: Config) -> None:
    """Calibrate, and read no more of the parts for that than needs be.

    With `thresholds.adapt_sync` everything is read, because any clip may teach. Otherwise only parts are that
    hold clips of another scorer.

    Args:
        store: the data set.
        measured: what its parts say.
        config: says whether the data set's own footage is used, and how people are told apart.
    """
    state = _state(store, config, measured.parts)
    if scored_state(store) == state:
        return
    if config.thresholds.adapt_sync:
        calibrate(store, read_committed(store), config, state)
        return
    methods = measured.clips.column("sync_method")
    scored_otherwise = pc.fill_null(pc.not_equal(methods, Scorer.load().name), False)
    old = measured.clips.select(["part", "clip_id"]).filter(scored_otherwise)
    parts: dict[str, set[str]] = {}
    for row in old.to_pylist():
        parts.setdefault(row["part"], set()).add(row["clip_id"])
    calibrate(store, read_committed(store, SCORED, parts), config, state)


def read_calibrated(
    store: Store, arrays: Collection[str] | None = None, parts: Mapping[str, Collection[str]] | None = None
) -> Committed:
    """What `read_committed` reads, with sync as it was scored last."""
    committed = read_committed(store, arrays, parts)
    return replace(committed, clips=scored_last(store)(committed.clips))


def with_calibration(store: Store, measured: Measured) -> Measured:
    """What the parts say, with sync as it was scored last."""
    if not (store.exists(MARKER) and store.exists(TABLE)):
        return measured
    own, clips = tables.from_bytes(store.read(TABLE), TABLE), measured.clips
    found = pc.index_in(clips.column("clip_id"), value_set=own.column("clip_id").combine_chunks())
    is_own = found.is_valid()
    for name in Sync.model_fields:
        number = clips.column_names.index(name)
        column = clips.column(number)
        if own.schema.field("sync").type.get_field_index(name) >= 0:
            scored = pc.struct_field(own.column("sync"), name).take(found).cast(column.type)
        else:
            scored = pa.nulls(len(clips), column.type)
        clips = clips.set_column(number, name, pc.if_else(is_own, scored, column))
    return replace(measured, clips=clips)


def scored_last(store: Store) -> Callable[[Sequence[CommittedClip]], list[CommittedClip]]:
    """A function that gives clips sync as it was scored last; the scores are read once for all its calls."""
    if not (store.exists(MARKER) and store.exists(TABLE)):
        return list
    table = tables.Lookup(store, [TABLE], Rescored)

    def scored(clips: Sequence[CommittedClip]) -> list[CommittedClip]:
        own = table.of(clip.measures.clip.clip_id for clip in clips)
        return [_with_sync(clip, own.get(clip.measures.clip.clip_id)) for clip in clips]

    return scored


def _with_sync(clip: CommittedClip, own: Rescored | None) -> CommittedClip:
    if own is None:
        return clip
    return replace(clip, measures=clip.measures.model_copy(update={"sync": own.sync}))


def scored_state(store: Store) -> str | None:
    """State of what was scored last, see `_state`; None where nothing was, or the note of it is damaged."""
    if not store.exists(MARKER):
        return None
    try:
        return str(json.loads(store.read(MARKER))["state"])
    except (ValueError, KeyError, TypeError):
        return None


def _state(store: Store, config: Config, parts: Iterable[str]) -> str:
    """Changes with the committed parts, the shipped weights, and the settings that matter here."""
    digest = hashlib.sha256(contrastive.WEIGHTS_PATH.read_bytes())
    digest.update(contrastive.BANDS_ONLY_PATH.read_bytes())
    if config.thresholds.adapt_sync:
        digest.update(
            f"adapt, shipped calibration {config.shards.same_person} {extras.missing('torch')}\n".encode()
        )
    for part, marker in in_order(parts, lambda part: store.read(f"parts/{part}/part.json")):
        files = json.loads(marker)["files"]
        inputs = files.get(small_arrays.SYNC) or files[small_arrays.OLD]
        digest.update(f"{part} {inputs}\n".encode())
    return digest.hexdigest()
