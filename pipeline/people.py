"""Clustering of clips into people by their face embeddings, and where the clusters may be wrong.

Clusters are found by average linkage: two clusters are merged while their clips are similar on average.
With single linkage one blurred clip that resembles two people would merge them. Faces that are in view
together are never one person (cannot-link pairs).

Time grows with the square of the number of clips, memory does not. Clips are compared in blocks, and only
clips in one connected component of similar pairs are linked, at most `MOST_LINKED` at once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import PersonRow

log = logging.getLogger(__name__)

BLOCK = 256
"""Vectors compared with all others at a time: 100 MB of similarities for 100,000 clips."""

MOST_LINKED = 4096
"""Most vectors that are linked at once: 0.3 GB of distances."""

STEPS = 4
"""Steps from identical down to the threshold in which a larger component of clips is linked."""

TOGETHER_S = 0.2
"""Faces whose spans overlap by more than this are two people; a shorter overlap may be the rounding of
spans to frames."""

_FAR = 1e9
"""Distance of faces in view together: one such pair keeps any average above every threshold."""

Ints = NDArray[np.int64]


class FaceClip(NamedTuple):
    """A clip with its face embedding [D], None where there is none."""

    clip_id: str
    video_id: str
    start_s: float
    end_s: float
    face: Floats | None
    label: str = ""
    """Who is seen, by the list of inputs; empty where it does not say."""


def name_people(clips: Sequence[FaceClip], same_person: float) -> dict[str, str]:
    """Clip id -> person id, for every clip with an embedding, in any order.

    A person is named after the smallest clip id, so that names depend on nothing but the clips.

    Args:
        clips: all candidate clips, in any order.
        same_person: least average cosine similarity, 0 to 1, of the clips of two clusters that become one.

    Raises:
        DatasetError: embeddings differ in length.
    """
    known = _known(clips)
    labels = cluster(_unit(known), _cannot_link(known), same_person)
    _, first = np.unique(labels, return_index=True)
    return {clip.clip_id: _person_id(known[first[label]]) for clip, label in zip(known, labels, strict=True)}


def describe_people(clips: Sequence[FaceClip], person_of: Mapping[str, str]) -> list[PersonRow]:
    """One row for each person, by id: who is like whom, and which clip is least like its person.

    Args:
        clips: all candidate clips, in any order.
        person_of: answer of `name_people` for the same clips.
    """
    known = _known(clips)
    if not known:
        return []
    names, labels = np.unique([person_of[clip.clip_id] for clip in known], return_inverse=True)
    vectors = _unit(known)
    sums = _sums(vectors, labels)
    nearest, cosine = _nearest(_normalised(sums), labels[_cannot_link(known)])
    members = _groups(labels)
    rows = []
    for person, name in enumerate(names.tolist()):
        own = members[person]
        # To the person's other clips: a clip would resemble an average that it is part of.
        similarity = (vectors[own] @ sums[person] - 1) / max(len(own) - 1, 1)
        odd, other = int(np.argmin(similarity)), int(nearest[person])
        rows.append(
            PersonRow(
                person_id=name,
                num_clips=len(own),
                num_videos=len({known[i].video_id for i in own}),
                duration_s=round(sum(known[i].end_s - known[i].start_s for i in own), 3),
                face_clip_id=known[own[np.argmax(similarity)]].clip_id,
                odd_clip_id=known[own[odd]].clip_id if len(own) > 1 else None,
                odd_similarity=round(float(similarity[odd]), 4) if len(own) > 1 else None,
                nearest_person_id=None if other < 0 else str(names[other]),
                nearest_similarity=None if other < 0 else round(float(cosine[person]), 4),
                labels=tuple(sorted({known[i].label for i in own} - {""})),
            )
        )
    return rows


# ------------------------------------------------------------------------------ clustering


def cluster(vectors: Floats, cannot_link: Ints, same_person: float) -> Ints:
    """Number of the person on each vector [n], counted in order of first appearance.

    Two groups of vectors become one while the average cosine similarity of their pairs is at least
    `same_person`, the most similar groups first. Source: UPGMA, Sokal & Michener 1958.

    A connected component of more than `MOST_LINKED` vectors is linked in `STEPS` steps: what is nearly
    identical first, then the means of what was found, down to `same_person`.

    Args:
        vectors: float32 [n, D] of unit length.
        cannot_link: pairs of indices [m, 2] that are never one person, nor is any cluster that holds both.
        same_person: least average cosine similarity of two clusters that become one, 0 to 1.
    """
    labels = np.arange(len(vectors))
    for component in _components(vectors, same_person):
        steps = 1 if len(component) <= MOST_LINKED else STEPS
        inner, nodes = _within(cannot_link, component), np.arange(len(component))
        for level in np.linspace(1.0, same_person, steps + 1)[1:]:
            nodes = _merged(vectors[component], nodes, inner, float(level))
        labels[component] = component[nodes]
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)


def _merged(vectors: Floats, nodes: Ints, cannot_link: Ints, level: float) -> Ints:
    """Nodes [n], each called after its first vector, after those that are alike at `level` became one."""
    first, node_of = np.unique(nodes, return_inverse=True)
    means = _normalised(_sums(vectors, node_of)).astype(np.float32)
    pairs = node_of[cannot_link]
    joined = np.arange(len(means))
    for component in _components(means, level):
        if len(component) > MOST_LINKED:
            log.info("%d faces are one component at similarity %.3f: linked in blocks", len(component), level)
        for start in range(0, len(component), MOST_LINKED):
            block = component[start : start + MOST_LINKED]
            joined[block] = block[_linked(means[block], _within(pairs, block), level)]
    return np.asarray(first[joined[node_of]], np.int64)


def _linked(vectors: Floats, cannot_link: Ints, same_person: float) -> Ints:
    """Index of the first member of each vector's group [n], by average linkage."""
    if len(vectors) < 2:
        return np.zeros(len(vectors), np.int64)
    # Rounded, so that ties stay ties whatever the order in which a processor adds up.
    distances = np.maximum(0.0, 1.0 - np.round((vectors @ vectors.T).astype(np.float64), 5))
    distances[cannot_link[:, 0], cannot_link[:, 1]] = distances[cannot_link[:, 1], cannot_link[:, 0]] = _FAR
    tree = linkage(squareform(distances, checks=False), "average")
    groups = fcluster(tree, 1.0 - same_person + 1e-9, "distance")
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(first[number], np.int64)


def _components(vectors: Floats, same_person: float) -> list[Ints]:
    """Connected components of the vectors under pairs of at least `same_person`: indices, two and more.

    No cluster of average linkage reaches beyond one component, because an average is at most its
    largest term.
    """
    count = len(vectors)
    labels = np.arange(count)
    for start in range(0, count, BLOCK):
        # Each pair once: a block against itself and all that follow. Labels carry what is known
        # already, so that no more than one block of pairs is ever held.
        near = vectors[start : start + BLOCK] @ vectors[start:].T >= same_person - 1e-5
        left, right = np.nonzero(near)
        edges = np.unique(np.stack([labels[left + start], labels[right + start]]), axis=1)
        graph = coo_array((np.ones(edges.shape[1], np.bool_), (edges[0], edges[1])), shape=(count, count))
        labels = connected_components(graph, directed=False)[1][labels]
    return [component for component in _groups(labels) if len(component) > 1]


def _groups(labels: Ints) -> list[Ints]:
    """Indices that carry each label, ascending; labels in their order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def _within(pairs: Ints, members: Ints) -> Ints:
    """The pairs [m, 2] both of which are `members`, as positions among them."""
    if not len(pairs):
        return pairs
    position = np.full(int(max(pairs.max(), members.max())) + 1, -1)
    position[members] = np.arange(len(members))
    found = position[pairs]
    return np.asarray(found[(found >= 0).all(axis=1)], np.int64)


# ------------------------------------------------------------------------------ faces


def _known(clips: Sequence[FaceClip]) -> list[FaceClip]:
    """The clips with an embedding, by id.

    Raises:
        DatasetError: embeddings differ in length.
    """
    known = sorted((c for c in clips if c.face is not None and len(c.face)), key=lambda clip: clip.clip_id)
    for clip in known:
        expected, found = len(_face(known[0])), len(_face(clip))
        if found != expected:
            raise DatasetError(
                f"clip {clip.clip_id}: expected a face embedding of {expected} numbers as in clip "
                f"{known[0].clip_id}, found {found}"
            )
    return known


def _face(clip: FaceClip) -> Floats:
    assert clip.face is not None  # of `_known`
    return clip.face


def _unit(known: Sequence[FaceClip]) -> Floats:
    """Embeddings at unit length, float32 [n, D]."""
    faces = np.stack([_face(clip) for clip in known]) if known else np.zeros((0, 1))
    return _normalised(faces.astype(np.float64)).astype(np.float32)


def _normalised(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float64)


def _sums(vectors: Floats, labels: Ints) -> NDArray[np.float64]:
    """Sum of the vectors of each label, float64 [labels, D]."""
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    return sums


def _cannot_link(known: Sequence[FaceClip]) -> Ints:
    """Pairs of indices [m, 2] of clips whose faces are in view together."""
    order = sorted(range(len(known)), key=lambda i: (known[i].video_id, known[i].start_s))
    pairs = []
    for rank, i in enumerate(order):
        for j in order[rank + 1 :]:
            if known[j].video_id != known[i].video_id or known[j].start_s >= known[i].end_s - TOGETHER_S:
                break
            if known[j].end_s - known[j].start_s > TOGETHER_S:
                pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _nearest(means: NDArray[np.float64], cannot_link: Ints) -> tuple[Ints, NDArray[np.float64]]:
    """Index of the person whose mean is nearest [n], -1 where there is none, and the cosine [n].

    Args:
        means: mean embedding of each person, float64 [n, D] of unit length.
        cannot_link: pairs of people [m, 2] who were in view together: however similar, they are two.
    """
    count = len(means)
    nearest, cosine = np.full(count, -1), np.full(count, -np.inf)
    never = [
        *zip(range(count), range(count), strict=True),
        *cannot_link.tolist(),
        *cannot_link[:, ::-1].tolist(),
    ]
    forbidden = coo_array(
        (np.ones(len(never), np.bool_), tuple(np.array(never).T)), shape=(count, count)
    ).tocsr()
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        similar = means[block] @ means.T
        similar[forbidden[block].nonzero()] = -np.inf
        nearest[block] = np.argmax(similar, axis=1)
        cosine[block] = similar.max(axis=1)
    nearest[np.isneginf(cosine)] = -1
    return nearest, cosine


def _person_id(first: FaceClip) -> str:
    return "p" + hashlib.sha256(first.clip_id.encode()).hexdigest()[:12]
