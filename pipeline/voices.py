"""Whose voice is heard: clips with one voice, and clips in which a face has another voice than usual."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from talkforge.pipeline.people import cluster
from talkforge.schemas.arrays import Floats

SAME_VOICE = 0.75
"""Least average cosine similarity of the clips of one voice. Source: ours, docs/identity.md."""

MIN_CLIPS = 3
"""Least clips of a person from which its usual voice is known. Source: ours."""

MOST_COMPARED = 256
"""Most clips of a person with which one is compared, evenly spaced."""


class Voice(NamedTuple):
    """What is heard in a clip.

    Attributes:
        person: name of the voice; clips with the same one have one voice.
        similarity: to the usual voice of the clip's face, see `compare`.
    """

    person: str
    similarity: float | None


def compare(vectors: Mapping[str, Floats], person_of: Mapping[str, str]) -> dict[str, Voice]:
    """Voice of each clip with an embedding, by clip id.

    Its similarity is the median cosine to the other clips of the same face: of many clips less than half may
    have other voices and not change what is usual. None where the face is unknown, or has fewer than
    `MIN_CLIPS` clips.

    Args:
        vectors: voice embeddings [D] by clip id.
        person_of: person whose face is seen, by clip id; clips without one may be missing.
    """
    keys = sorted(vectors)
    if not keys:
        return {}
    stacked = np.stack([vectors[key] for key in keys]).astype(np.float32)
    labels = cluster(stacked, np.zeros((0, 2), np.int64), SAME_VOICE)
    _, first = np.unique(labels, return_index=True)
    names = [f"v{hashlib.sha256(keys[i].encode()).hexdigest()[:12]}" for i in first]
    usual = _usual(keys, stacked, person_of)
    return {key: Voice(names[label], usual.get(key)) for key, label in zip(keys, labels, strict=True)}


def _usual(keys: Sequence[str], vectors: Floats, person_of: Mapping[str, str]) -> dict[str, float]:
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if person := person_of.get(key):
            members.setdefault(person, []).append(index)
    found = {}
    for own in members.values():
        if len(own) < MIN_CLIPS:
            continue
        step = -(-len(own) // MOST_COMPARED)
        cosines = vectors[own] @ vectors[own[::step]].T
        cosines[np.arange(0, len(own), step), np.arange(cosines.shape[1])] = np.nan  # a clip with itself
        for index, median in zip(own, np.nanmedian(cosines, axis=1), strict=True):
            found[keys[index]] = round(float(median), 4)
    return found
