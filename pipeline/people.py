"""Clustering of clips into people by their face embeddings, and where the clusters may be wrong.

Clusters are found by average linkage: two clusters are merged while their clips are similar on average.
With single linkage one blurred clip that resembles two people would merge them. Faces that are in view
together are never one person (cannot-link pairs).

Only clips in one connected component of similar pairs are linked, at most `MOST_LINKED` at once. Up to
`MOST_COMPARED` clips all pairs are compared, in blocks. Beyond, each is compared with those that share one of
its `CELLS_EACH` nearest cells, and clips are linked in `STEPS` steps, what is nearly identical first.
docs/scale.md has what that misses.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array, csr_array
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

MOST_COMPARED = 40_000
"""Most vectors that are all compared with each other: a minute on one core."""

CELLS_EACH = 3
"""Cells that a vector lies in, where not all are compared with each other."""

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


@dataclass(frozen=True)
class Faces:
    """Clips with a face embedding, by id.

    Attributes:
        clip_ids: [n], ascending.
        video_ids: [n].
        start_s: [n], in the source.
        end_s: [n], likewise.
        labels: [n], who is seen, by the list of inputs; empty where it does not say.
        vectors: float32 [n, D] of unit length.
    """

    clip_ids: list[str]
    video_ids: list[str]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    labels: list[str]
    vectors: Floats

    @classmethod
    def of(cls, clips: Sequence[FaceClip]) -> Faces:
        """The clips that have an embedding.

        Args:
            clips: in any order.

        Raises:
            DatasetError: embeddings differ in length.
        """
        known = sorted((c for c in clips if c.face is not None and len(c.face)), key=lambda c: c.clip_id)
        faces = [clip.face for clip in known if clip.face is not None]
        return cls(
            [clip.clip_id for clip in known],
            [clip.video_id for clip in known],
            np.array([clip.start_s for clip in known], np.float64),
            np.array([clip.end_s for clip in known], np.float64),
            [clip.label for clip in known],
            unit_vectors([clip.clip_id for clip in known], faces),
        )


def unit_vectors(clip_ids: Sequence[str], faces: Iterable[Floats]) -> Floats:
    """Embeddings at unit length, float32 [n, D].

    Args:
        clip_ids: of the clips.
        faces: their embeddings [D].

    Raises:
        DatasetError: embeddings differ in length.
    """
    vectors = np.zeros((0, 1), np.float32)
    for number, (clip_id, face) in enumerate(zip(clip_ids, faces, strict=True)):
        if not number:
            vectors = np.empty((len(clip_ids), len(face)), np.float32)
        if len(face) != vectors.shape[1]:
            raise DatasetError(
                f"clip {clip_id}: expected a face embedding of {vectors.shape[1]} numbers as in clip "
                f"{clip_ids[0]}, found {len(face)}"
            )
        vectors[number] = normalised(face[None].astype(np.float64))[0]
    return vectors


def name_people(clips: Sequence[FaceClip], same_person: float) -> dict[str, str]:
    """Clip id -> person id, for every clip with an embedding, in any order.

    Args:
        clips: all candidate clips, in any order.
        same_person: least average cosine similarity, 0 to 1, of the clips of two clusters that become one.

    Raises:
        DatasetError: embeddings differ in length.
    """
    faces = Faces.of(clips)
    return dict(zip(faces.clip_ids, person_ids(faces, same_person), strict=True))


def person_ids(faces: Faces, same_person: float) -> list[str]:
    """Person id of every clip.

    A person is named after the smallest clip id, so that names depend on nothing but the clips.

    Args:
        faces: of all candidate clips.
        same_person: least average cosine similarity, 0 to 1, of the clips of two clusters that become one.
    """
    labels = cluster(faces.vectors, _cannot_link(faces), same_person)
    names = [_person_id(faces.clip_ids[first]) for first in np.unique(labels, return_index=True)[1]]
    return [names[label] for label in labels]


def describe_people(faces: Faces, person_of: Sequence[str]) -> list[PersonRow]:
    """One row for each person, by id: who is like whom, and which clip is least like its person.

    Args:
        faces: of all candidate clips.
        person_of: answer of `person_ids` for them.
    """
    if not faces.clip_ids:
        return []
    names, labels = np.unique(np.array(person_of), return_inverse=True)
    vectors = faces.vectors
    sums = _sums(vectors, labels)
    nearest, cosine = _nearest(normalised(sums), labels[_cannot_link(faces)])
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
                num_videos=len({faces.video_ids[i] for i in own}),
                duration_s=round(sum((faces.end_s[own] - faces.start_s[own]).tolist()), 3),
                face_clip_id=faces.clip_ids[own[np.argmax(similarity)]],
                odd_clip_id=faces.clip_ids[own[odd]] if len(own) > 1 else None,
                odd_similarity=round(float(similarity[odd]), 4) if len(own) > 1 else None,
                nearest_person_id=None if other < 0 else str(names[other]),
                nearest_similarity=None if other < 0 else round(float(cosine[person]), 4),
                labels=tuple(sorted({faces.labels[i] for i in own} - {""})),
            )
        )
    return rows


# ------------------------------------------------------------------------------ clustering


def cluster(vectors: Floats, cannot_link: Ints, same_person: float) -> Ints:
    """Number of the person on each vector [n], counted in order of first appearance.

    Two groups of vectors become one while the average cosine similarity of their pairs is at least
    `same_person`, the most similar groups first. Source: UPGMA, Sokal & Michener 1958.

    A connected component of more than `MOST_LINKED` vectors is linked in `STEPS` steps: what is nearly
    identical first, then the means of what was found, down to `same_person`. So are all of more than
    `MOST_COMPARED` vectors.

    Args:
        vectors: float32 [n, D] of unit length.
        cannot_link: pairs of indices [m, 2] that are never one person, nor is any cluster that holds both.
        same_person: least average cosine similarity of two clusters that become one, 0 to 1.
    """
    labels = np.arange(len(vectors))
    if len(vectors) > MOST_COMPARED:
        for level in np.linspace(1.0, same_person, STEPS + 1)[1:]:
            labels = _merged(vectors, labels, cannot_link, float(level))
        return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)
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
    means = vectors
    if len(first) < len(vectors):
        means = _normalised_in_place(_sums(vectors, node_of)).astype(np.float32, copy=False)
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
    if count > MOST_COMPARED:
        return _components_in_cells(vectors, same_person)
    for start in range(0, count, BLOCK):
        # Each pair once: a block against itself and all that follow. Labels carry what is known
        # already, so that no more than one block of pairs is ever held.
        near = vectors[start : start + BLOCK] @ vectors[start:].T >= same_person - 1e-5
        left, right = np.nonzero(near)
        labels = _connected(count, labels[left + start], labels[right + start])[labels]
    return [component for component in _groups(labels) if len(component) > 1]


def _connected(count: int, left: Ints, right: Ints) -> Ints:
    """Number of the connected component of each of `count` nodes, from the ends of edges [m]."""
    codes = np.sort(left * count + right)  # an edge as one number
    edges = np.divmod(codes[np.diff(codes, prepend=-1) > 0], count)
    graph = coo_array((np.ones(len(edges[0]), np.bool_), edges), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _components_in_cells(vectors: Floats, same_person: float) -> list[Ints]:
    """The components under those pairs that share a cell."""
    edges = []
    for members in _cells(vectors):
        inner = vectors[members]
        labels = np.arange(len(members))
        for start in range(0, len(members), BLOCK):
            left, right = np.nonzero(inner[start : start + BLOCK] @ inner[start:].T >= same_person - 1e-5)
            labels = _connected(len(members), labels[left + start], labels[right + start])[labels]
        # Each to the first of its component: as many edges as members.
        _, first = np.unique(labels, return_index=True)
        edges.append(np.stack([members, members[first[labels]]]))
    labels = _connected(len(vectors), *np.concatenate(edges, axis=1))
    return [component for component in _groups(labels) if len(component) > 1]


def _cells(vectors: Floats) -> list[Ints]:
    """Indices of the vectors in each of some cells around centres; a vector lies in its nearest `CELLS_EACH`.

    Source: the inverted file of Jégou, Douze & Schmid, Product quantization for nearest neighbor search
    (PAMI 2011), with several cells for each vector in place of several that are searched. Centres are those
    of two rounds of spherical k-means on a part of the vectors, which begins with every so many-th.
    """
    count = len(vectors)
    num_cells = round(2 * math.sqrt(count))
    sample = vectors[:: max(1, count // (16 * num_cells))]
    centres = sample[:: max(1, len(sample) // num_cells)][:num_cells]
    for _ in range(2):
        nearest = _nearest_cells(sample, centres, 1)[:, 0]
        sums = _sums(sample, nearest, len(centres))
        filled = np.bincount(nearest, minlength=len(centres)) > 0
        centres = np.where(filled[:, None], normalised(sums), centres).astype(np.float32)
    cells = _nearest_cells(vectors, centres, CELLS_EACH).ravel()
    members = np.repeat(np.arange(count), CELLS_EACH)
    return [members[group] for group in _groups(cells)]


def _nearest_cells(vectors: Floats, centres: Floats, most: int) -> Ints:
    """Numbers of the `most` nearest centres of each vector [n, most], in any order."""
    found = np.empty((len(vectors), most), np.int64)
    for start in range(0, len(vectors), 16 * BLOCK):
        similar = vectors[start : start + 16 * BLOCK] @ centres.T
        if most == 1:
            found[start : start + len(similar), 0] = similar.argmax(axis=1)
        else:
            found[start : start + len(similar)] = np.argpartition(similar, -most, axis=1)[:, -most:]
    return found


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


def normalised(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors [n, D] at unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, vectors.dtype.type(1e-12)))


def _normalised_in_place(vectors: NDArray[Any]) -> NDArray[Any]:
    """The same in the memory of the vectors: of very many there is room for no second copy."""
    for start in range(0, len(vectors), 16 * BLOCK):
        vectors[start : start + 16 * BLOCK] = normalised(vectors[start : start + 16 * BLOCK])
    return vectors


def _sums(vectors: Floats, labels: Ints, count: int | None = None) -> NDArray[Any]:
    """Sum of the vectors of each label [labels, D]: float64, of very many vectors float32."""
    shape = (int(labels.max()) + 1 if count is None else count, len(vectors))
    kind = np.float64 if len(vectors) <= MOST_COMPARED else np.float32
    ones = np.ones(len(vectors), kind)
    return np.asarray(csr_array(coo_array((ones, (labels, np.arange(len(vectors)))), shape)) @ vectors)


def _cannot_link(faces: Faces) -> Ints:
    """Pairs of indices [m, 2] of clips whose faces are in view together."""
    starts, ends, videos = faces.start_s.tolist(), faces.end_s.tolist(), faces.video_ids
    order = sorted(range(len(videos)), key=lambda i: (videos[i], starts[i]))
    pairs = []
    for rank, i in enumerate(order):
        for place in range(rank + 1, len(order)):
            j = order[place]
            if videos[j] != videos[i] or starts[j] >= ends[i] - TOGETHER_S:
                break
            if ends[j] - starts[j] > TOGETHER_S:
                pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _nearest(means: NDArray[Any], cannot_link: Ints) -> tuple[Ints, NDArray[np.float64]]:
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
    everyone = np.arange(count)
    for others in [everyone] if count <= MOST_COMPARED else _cells(means.astype(np.float32, copy=False)):
        for start in range(0, len(others), BLOCK):
            block = others[start : start + BLOCK]
            similar = means[block] @ means[others].T
            similar[forbidden[block][:, others].nonzero()] = -np.inf
            best = np.argmax(similar, axis=1)
            found = similar[np.arange(len(block)), best]
            better = found > cosine[block]
            nearest[block[better]], cosine[block[better]] = others[best[better]], found[better]
    nearest[np.isneginf(cosine)] = -1
    return nearest, cosine


def _person_id(first_clip_id: str) -> str:
    return "p" + hashlib.sha256(first_clip_id.encode()).hexdigest()[:12]
