"""The sync networks fitted further on the data set's own footage, where that helps.

Fitted on are clips that the shipped scorer takes to be in sync: no copies, and few of each video and person.
So clips that are off, other voices and listeners do not teach, and one long video does not pull the zero.
People are parted into folds, and a clip is scored by networks that never saw its person. What was fitted
counts only where it tells true pieces from wrong ones better than the shipped scorer, on people that it was
not fitted on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from talkforge.curation.sync import fitting
from talkforge.curation.sync.contrastive import IN_SYNC, LAGS, Scorer
from talkforge.curation.sync.features import SYNC_HZ, at_sync_rate
from talkforge.curation.sync.fitting import Case, Talk
from talkforge.pipeline.ledger import CommittedClip
from talkforge.pipeline.near_duplicates import find_near_duplicates
from talkforge.schemas.config import Thresholds
from talkforge.schemas.records import Sync, ledger_columns

log = logging.getLogger(__name__)

TEACHES_FROM = 0.8
"""Least `sync_probability` by the shipped scorer of a clip that is fitted on. Source: ours."""

NEAR_FRAMES = 2
"""Largest offset of a clip that is fitted on, frames of `SYNC_HZ`. Source: ours."""

VIDEO_MOST_S, PERSON_MOST_S = 20.0, 60.0
"""Most footage of one video, and of one person, that is fitted on. Source: ours."""

LEAST_S, LEAST_PEOPLE = 120.0, 10
"""Least footage and people that are fitted on. Source: docs/sync.md."""

FOLDS, STEPS, PIECE_S = 5, 250, 3.0
"""Folds of people, batches of each fit, and length of the pieces on which scorers are compared."""

SUFFIX = "+own"
"""Ends the name of a scorer that was fitted further."""


@dataclass(frozen=True)
class Adapted:
    """Scorers by fold of people.

    Attributes:
        folds: one scorer for each fold, fitted without it.
        people: the people of each fold.
    """

    folds: tuple[Scorer, ...]
    people: tuple[frozenset[str], ...]

    def scorer(self, person: str) -> Scorer:
        """The scorer that never saw a person.

        Args:
            person: of any clip; who taught nobody is new to every scorer.
        """
        own = (one for one, known in zip(self.folds, self.people, strict=True) if person in known)
        return next(own, self.folds[0])


def teachers(clips: Sequence[tuple[CommittedClip, Sync]], person_of: Mapping[str, str]) -> list[Talk]:
    """The clips that are fitted on, each cut to what its video and person may give.

    Args:
        clips: traced clips and what the shipped scorer says of them.
        person_of: clip id -> who is seen.
    """
    sure = [
        (clip, sync)
        for clip, sync in clips
        if (sync.sync_probability or 0.0) >= TEACHES_FROM
        and abs(sync.sync_offset_frames or 0) * SYNC_HZ / clip.measures.clip.fps <= NEAR_FRAMES
        and clip.failure is None
    ]
    rows = {
        clip.measures.clip.clip_id: (
            ledger_columns(clip.measures) | clip.measures.clip.model_dump(),
            clip.features,
        )
        for clip, _ in sure
    }
    copies = find_near_duplicates(rows.values(), Thresholds())
    found, given = [], dict.fromkeys(person_of.values(), 0)
    by_video: dict[str, int] = {}
    # The surest first, so that the caps leave out what is least sure.
    for clip, _ in sorted(
        sure, key=lambda pair: (-(pair[1].sync_confidence or 0.0), pair[0].measures.clip.clip_id)
    ):
        key, video = clip.measures.clip.clip_id, clip.measures.clip.video_id
        mouth = at_sync_rate(clip.features["mouth"], clip.measures.clip.fps).astype(np.float32)
        bands = at_sync_rate(clip.features["bands"], clip.measures.clip.fps).astype(np.float32)
        person = person_of[key]
        most = min(
            round(VIDEO_MOST_S * SYNC_HZ) - by_video.get(video, 0),
            round(PERSON_MOST_S * SYNC_HZ) - given[person],
        )
        if key in copies or min(most, len(mouth)) < fitting.PIECE_FRAMES:
            continue
        used = min(most, len(mouth))
        spoken = clip.features.get("phones")
        if spoken is not None:
            spoken = at_sync_rate(spoken, clip.measures.clip.fps).astype(np.float16)[:used]
        by_video[video] = by_video.get(video, 0) + used
        given[person] += used
        found.append(Talk(key, person, mouth[:used], bands[:used], spoken))
    return sorted(found, key=lambda talk: talk.name)


def enough(talks: Sequence[Talk]) -> bool:
    """Whether there is enough footage of enough people to fit on."""
    seconds = sum(len(talk.mouth) for talk in talks) / SYNC_HZ
    return seconds >= LEAST_S and len({talk.person for talk in talks}) >= LEAST_PEOPLE


def adapt(talks: Sequence[Talk], shipped: Scorer) -> Adapted | None:
    """Fit the shipped networks further; None where that does not help. Needs torch.

    Args:
        talks: answer of `teachers`.
        shipped: where the fits begin, and what they are compared with.
    """
    folds = fitting.by_folds(talks, FOLDS, shipped.networks, STEPS)
    own = _cases(folds, talks)
    before, after = separation(_cases([(held, shipped) for held, _ in folds], talks)), separation(own)
    seconds = sum(len(talk.mouth) for talk in talks) / SYNC_HZ
    log.info("sync: fitted on %.0f s; AUC of pieces of 3 s %.3f, was %.3f", seconds, after, before)
    if after <= before:
        return None
    # Not calibrated anew: the shipped scorer chose who teaches, so no true piece that is hard to tell is
    # among them, and too much of what is wrong would be accepted (docs/sync.md).
    name = shipped.name + SUFFIX
    return Adapted(
        tuple(Scorer(name, scorer.networks, shipped.calibration) for _, scorer in folds),
        tuple(frozenset(talk.person for talk in held) for held, _ in folds),
    )


def _cases(folds: Sequence[tuple[list[Talk], Scorer]], talks: Sequence[Talk]) -> list[Case]:
    rng = np.random.default_rng(0)
    return [case for held, scorer in folds for case in fitting.cases(held, scorer, PIECE_S, talks, rng)]


def separation(cases: Sequence[Case]) -> float:
    """Probability that a true piece has more evidence near lag zero than a wrong one, 0 to 1 (AUC).

    Wrong are other voices, frozen pictures, and audio that is 240 ms off or more.

    Args:
        cases: answer of `fitting.cases`.
    """
    near = np.abs(LAGS) <= IN_SYNC
    true = np.array([case.evidence.by_lag[near].max() for case in cases if case.kind == "true"])
    wrong = np.array(
        [case.evidence.by_lag[near].max() for case in cases if case.lag is None or abs(case.lag) >= 6]
    )
    return float((true[:, None] > wrong).mean())


# ---------------------------------------------------------------------------- on disk


def digest(talks: Sequence[Talk], shipped: Scorer) -> str:
    """Changes with what is fitted on, and with where the fits begin."""
    state = hashlib.sha256(shipped.to_bytes())
    for talk in talks:
        state.update(f"{talk.name} {talk.person}\n".encode())
        for array in (talk.mouth, talk.bands, talk.phones):
            if array is not None:
                state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def to_bytes(adapted: Adapted | None, shipped: Scorer, of: str) -> bytes:
    """The file that keeps what was fitted, so that scores do not depend on the machine that scores.

    Args:
        adapted: answer of `adapt`.
        shipped: networks that need not be written again.
        of: answer of `digest`.
    """
    own = adapted.folds if adapted else ()
    people = [sorted(one) for one in adapted.people] if adapted else []
    scorer = Scorer(shipped.name + SUFFIX, tuple(one.networks[-1] for one in own), shipped.calibration)
    return scorer.to_bytes({"of": of, "people": people})


def from_bytes(data: bytes, name: str, shipped: Scorer, of: str) -> tuple[bool, Adapted | None]:
    """Whether the file is of this footage, and what it keeps.

    Args:
        data: answer of `to_bytes`.
        name: what messages call the file.
        shipped: the other networks of each scorer, and the calibration of all.
        of: answer of `digest` for the footage of now.

    Raises:
        ModelError: it is no such file.
    """
    found = Scorer.from_bytes(data, name)
    about = Scorer.about(data)
    if about.get("of") != of:
        return False, None
    if not found.networks:
        return True, None
    # What was written is what scores, on the machine that fitted as on any other.
    folds = tuple(Scorer(found.name, (*shipped.networks, one), shipped.calibration) for one in found.networks)
    return True, Adapted(folds, tuple(frozenset(people) for people in about["people"]))
