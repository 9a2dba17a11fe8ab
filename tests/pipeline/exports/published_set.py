"""A small published data set of which everything is known: two shards to train on, one to validate with.

The clips are those of `shard_files`. Clip c of person p<c> says a ramp: sample n of its audio is n + c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.media import encode_flac
from talkforge.pipeline import snapshots, tables
from talkforge.pipeline.shards import ShardPlan, write_shard
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.records import Failure, LedgerRow, PersonRow, SourceRow, ledger_columns
from talkforge.schemas.sample import Members
from talkforge.schemas.units import samples_from_frames
from tests.training.shard_files import Shown, description, members_of

CLIPS: dict[str, list[list[Shown]]] = {
    "train": [[Shown(0), Shown(1, text="hello, you")], [Shown(2, width_px=96, height_px=64)]],
    "validation": [[Shown(3, num_frames=20, text="good\nday")]],
}
"""Split -> shards -> clips."""


def ramp(clip: Shown) -> np.ndarray:
    """int16 samples of a clip's audio."""
    return np.arange(samples_from_frames(clip.num_frames, clip.fps), dtype=np.int16) + clip.number


def members(clip: Shown, changes: Mapping[str, bytes] | None = None) -> Members:
    """The clip as it lies in a shard."""
    flac = encode_flac(ramp(clip).astype(np.float32) / 32768)
    face = cv2.imencode(".jpg", np.full((112, 112, 3), 8 * clip.number, np.uint8))[1].tobytes()
    return members_of(clip) | {"flac": flac, "face.jpg": face} | dict(changes or {})


def ledger_row(
    clip: Shown, split: str, shard: str, *, accepted: bool = True, licence: str = "CC0"
) -> LedgerRow:
    """The clip's row of the ledger."""
    meta = sample.read_meta(clip.key, members_of(clip)["json"])
    row = ledger_columns(meta.measures) | {
        "uri": "video.mp4", "source": "tests", "licence": licence, "consent": "signed", "person": "",
        "accepted": accepted, "reasons": () if accepted else ("too_short",),
        "reason_details": () if accepted else ("too_short (duration_s 1.2, threshold 3)",),
        "person_id": f"p{clip.number:012x}", "split": split if accepted else None,
        "shard": shard if accepted else None, "face_clip_px": 32.0,
        "omega_face": meta.omega_face, "omega_body": meta.omega_body,
    }  # fmt: skip
    texts = {name for name, field in LedgerRow.model_fields.items() if field.annotation == tuple[str, ...]}
    return LedgerRow.model_validate(
        {name: () if name in texts and not row[name] else row[name] for name in row}
    )


def publish(
    folder: Path,
    clips: Mapping[str, Sequence[Sequence[Shown]]] = CLIPS,
    rejected: Sequence[Shown] = (Shown(7),),
    changes: Mapping[str, Mapping[str, bytes]] | None = None,
    licence: str = "CC0",
) -> Store:
    """A data set with one more snapshot, which has these clips.

    Args:
        folder: of the data set.
        clips: split -> shards -> clips.
        rejected: clips that are in the ledger alone.
        changes: key -> member -> other content.
        licence: of the source.
    """
    store = Store(str(folder))
    rows, manifests = [], []
    for split, shards in clips.items():
        for number, of_shard in enumerate(shards):
            name = f"{split}-{number:06d}"
            plan = ShardPlan(name, tuple(clip.key for clip in of_shard), name, snapshots.NEXT)
            found = [(clip.key, members(clip, (changes or {}).get(clip.key))) for clip in of_shard]
            manifest = write_shard(store, plan, found)
            assert manifest is not None
            manifests.append(manifest)
            rows += [ledger_row(clip, split, name, licence=licence) for clip in of_shard]
    rows += [ledger_row(clip, "", "", accepted=False, licence=licence) for clip in rejected]
    rows.sort(key=lambda row: row.clip_id)
    people = [
        PersonRow(
            person_id=str(row.person_id), num_clips=1, num_videos=1, duration_s=row.duration_s,
            face_clip_id=row.clip_id, odd_clip_id=None, odd_similarity=None, nearest_person_id=None,
            nearest_similarity=None,
        )
        for row in rows
    ]  # fmt: skip
    source = SourceRow(
        uri="video.mp4", video_id="video", status="measured", reason="", duration_s=60.0, speech_s=50.0,
        face_s=55.0, num_clips=len(rows), num_bytes=1, width_px=64, height_px=64, fps=25.0, source="tests",
        licence=licence, consent="signed",
    )  # fmt: skip
    held = {
        "dataset.json": description("logmel-80", {}),
        "ledger.parquet": tables.to_bytes(tables.to_table(LedgerRow, rows)),
        "people.parquet": tables.to_bytes(tables.to_table(PersonRow, people)),
        "sources.parquet": tables.to_bytes(tables.to_table(SourceRow, [source])),
        "failures.parquet": tables.to_bytes(tables.to_table(Failure, [])),
    }
    store.write("dataset.json", held["dataset.json"])
    snapshots.publish(store, manifests, held, "0", keep=9)
    return store
