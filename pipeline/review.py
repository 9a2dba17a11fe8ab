"""Review: what people said of clips, in `review.parquet`, and what the selection makes of it.

A decision is about one clip: `keep` accepts it whatever the rules say, `drop` rejects it. A label (good, bad
and why) decides nothing and serves to judge the rules, see `pipeline.audit`. Nobody can make these rows
again, so nothing but an erasure removes one, and `rollback` leaves them as they are: the ledger of a snapshot
says which decisions went into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from talkforge.curation.verdict import BINDING, REVIEWED_DROP
from talkforge.pipeline import tables
from talkforge.pipeline.dataset import exclusive, tool_version
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import CommandError
from talkforge.schemas.records import Reason, ReviewRow, Verdict

TABLE = "review.parquet"

NAMED = 5
"""Most clips that a message names."""

BAD_REASONS: Mapping[str, str] = {
    "wrong_voice": "The voice is not this person's",
    "out_of_sync": "The voice is early or late",
    "not_speaking": "This person does not speak",
    "mouth_hidden": "The mouth is covered or turned away",
    "frozen": "The picture or the mouth stands still",
    "face_poor": "The face is too small, blurred or dark",
    "several_people": "Somebody else is in view",
    "sound_poor": "Noise, music or a second voice",
    "other": "Something else",
}
"""Why a clip is bad, in the order of the keys 1 to 9: code -> meaning."""


def read(store: Store) -> dict[str, ReviewRow]:
    """Every row there is, by clip id; empty where nobody has reviewed anything.

    Raises:
        DatasetError: the table is damaged.
    """
    return {row.clip_id: row for row in tables.read(store, TABLE, ReviewRow)} if store.exists(TABLE) else {}


def save(store: Store, row: ReviewRow) -> ReviewRow:
    """Write what was said of one clip, in place of what was said of it before.

    Args:
        store: the data set.
        row: of a clip of the ledger; its time and version are set here.

    Returns:
        The row as it was written.

    Raises:
        CommandError: another run is at work on the data set, or an erasure was not finished.
        DatasetError: the table is damaged. RunError: it cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = row.model_copy(update={"reviewed_at": now, "tool_version": tool_version()})
    with exclusive(store):
        rows = read(store) | {row.clip_id: row}
        tables.write(store, TABLE, ReviewRow, [rows[key] for key in sorted(rows)])
    return row


def decide(verdict: Verdict, row: ReviewRow | None, is_traced: bool) -> tuple[Verdict, dict[str, Any]]:
    """The verdict with a reviewer's decision, and the ledger columns that name it.

    Args:
        verdict: that of the rules.
        row: what was said of the clip; None where nothing was.
        is_traced: whether the clip was measured densely. Otherwise `keep` overrules nothing, because there is
            nothing to cut.
    """
    if row is None or row.decision == "none":
        return verdict, {}
    if row.decision == "drop":
        dropped = Reason(code=REVIEWED_DROP.code, field=REVIEWED_DROP.field, value=None, threshold=None)
        reasons = (*verdict.reasons, dropped)
        verdict = verdict.model_copy(update={"accepted": False, "reasons": reasons})
        return verdict, {"reviewed": "drop"}
    if not is_traced:
        return verdict, {"reviewed": "keep"}
    left = tuple(reason for reason in verdict.reasons if reason.code in BINDING)
    overruled = tuple(reason.code for reason in verdict.reasons if reason.code not in BINDING)
    verdict = verdict.model_copy(update={"accepted": not left, "reasons": left})
    return verdict, {"reviewed": "keep", "overruled": overruled}


def find_clip(clip_ids: Iterable[str], given: str, store: Store) -> str:
    """The clip that a user names by its id, or by how it begins.

    Args:
        clip_ids: of all clips.
        given: what the user wrote.
        store: the data set, for the message.

    Raises:
        CommandError: there is no such clip, or several; names some of them.
    """
    found = sorted(key for key in clip_ids if given and key.startswith(given))
    if given in found or len(found) == 1:
        return given if given in found else found[0]
    if not found:
        raise CommandError(f"{store.root}: no clip {given!r}; ledger.parquet lists them")
    named = ", ".join(found[:NAMED]) + (", ..." if len(found) > NAMED else "")
    raise CommandError(f"{store.root}: {len(found)} clips begin with {given!r}: {named}")


def waiting(store: Store) -> int:
    """Number of clips whose decision the last selection does not know, or knows otherwise.

    Args:
        store: the data set.

    Raises:
        DatasetError: a table is damaged.
    """
    rows = read(store)
    if not store.exists("ledger.parquet"):
        return 0
    ledger = tables.from_bytes(store.read("ledger.parquet"), "ledger.parquet")
    clips = ledger.column("clip_id").to_pylist()
    known = (
        ledger.column("reviewed").to_pylist() if "reviewed" in ledger.column_names else [None] * len(clips)
    )
    said = {key: None if row.decision == "none" else row.decision for key, row in rows.items()}
    return sum(said.get(key) != decision for key, decision in zip(clips, known, strict=True))
