"""People on faces made to measure: who is joined, who never is, and what is said of doubtful ones."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from talkforge.pipeline import people
from talkforge.pipeline.people import FaceClip, Faces, describe_people, name_people
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import PersonRow


def clip(number: int, *face: float, video: str = "", start_s: float = 0.0, end_s: float = 4.0) -> FaceClip:
    """A clip with a face, of a video of its own where none is named."""
    vector = np.array(face, np.float32) if face else None
    return FaceClip(f"c{number:04d}", video or f"v{number:04d}", start_s, end_s, vector)


def at(number: int, angle_deg: float, **where: object) -> FaceClip:
    """A face in the plane: the cosine of two is that of the angle between them."""
    angle = np.radians(angle_deg)
    return clip(number, float(np.cos(angle)), float(np.sin(angle)), **where)  # type: ignore[arg-type]


def person(number: int) -> str:
    """Id of the person whose smallest clip has this number."""
    return "p" + hashlib.sha256(f"c{number:04d}".encode()).hexdigest()[:12]


def crowd(count: int, who: np.ndarray, spread: float) -> list[FaceClip]:
    """Clips of `count` people in 64 dimensions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count, 64))
    faces = centres[who] + spread * rng.normal(size=(len(who), 64))
    return [clip(number, *map(float, face)) for number, face in enumerate(faces)]


def first_seen(who: np.ndarray) -> dict[str, str]:
    first: dict[int, int] = {}
    for number, label in enumerate(who.tolist()):
        first.setdefault(label, number)
    return {f"c{number:04d}": person(first[label]) for number, label in enumerate(who.tolist())}


def test_a_person_is_named_after_the_smallest_clip_in_any_order() -> None:
    clips = [at(5, 90), at(1, 0), at(2, 95), at(3, 10), clip(4)]
    expected = {"c0001": person(1), "c0003": person(1), "c0002": person(2), "c0005": person(2)}
    for order in itertools.permutations(clips):
        assert name_people(order, 0.5) == expected
    assert name_people([], 0.5) == name_people([clip(1)], 0.5) == {}


def test_one_clip_between_two_people_does_not_make_them_one() -> None:
    """Every neighbour is 50 degrees away (0.64), but the two people are 100 degrees apart."""
    two = [*(at(i, 0.1 * i) for i in range(5)), *(at(5 + i, 100 + 0.1 * i) for i in range(5))]
    bridged = name_people([*two, at(99, 49)], 0.5)
    assert {key: who for key, who in bridged.items() if key != "c0099"} == {
        **{f"c{i:04d}": person(0) for i in range(5)},
        **{f"c{i:04d}": person(5) for i in range(5, 10)},
    }
    assert bridged["c0099"] == person(0), "the nearer one"


def test_the_average_of_all_pairs_decides() -> None:
    clips = [at(0, 0), at(1, 40), at(2, 70)]  # 0.77 and 0.87 to the neighbour, 0.34 across
    joined, split = name_people(clips, 0.55), name_people(clips, 0.56)
    assert joined == dict.fromkeys(("c0000", "c0001", "c0002"), person(0)), "(0.34 + 0.77) / 2 = 0.554"
    assert split == {"c0000": person(0), "c0001": person(1), "c0002": person(1)}


def test_faces_in_view_together_are_never_one_person() -> None:
    twins = [at(1, 0, video="v"), at(2, 0, video="v", start_s=3.0, end_s=7.0)]
    assert name_people(twins, 0.5) == {"c0001": person(1), "c0002": person(2)}
    # Whoever is joined with one of them is not joined with the other, however alike they all are.
    several = [*twins, at(3, 0.5), at(4, 0.2), at(5, 1)]
    found = name_people(several, 0.5)
    assert found["c0001"] != found["c0002"] and len(set(found.values())) == 2


@pytest.mark.parametrize(
    ("start_s", "video", "num_people"),
    [(4.0, "v", 1), (3.9, "v", 1), (3.0, "v", 2), (0.0, "v", 2), (3.0, "w", 1)],
)
def test_only_a_true_overlap_in_one_video_is_together(start_s: float, video: str, num_people: int) -> None:
    clips = [at(1, 0, video="v"), at(2, 0, video=video, start_s=start_s, end_s=start_s + 4)]
    assert len(set(name_people(clips, 0.5).values())) == num_people


def test_a_long_take_beside_many_short_ones() -> None:
    """The overlap of a long clip reaches beyond the next clip."""
    short = [at(2 + i, 0, video="v", start_s=10.0 * i, end_s=10.0 * i + 9) for i in range(6)]
    found = name_people([at(1, 0, video="v", end_s=55.0), *short], 0.5)
    assert found == {"c0001": person(1)} | {c.clip_id: person(2) for c in short}


def test_people_are_found_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    who = np.random.default_rng(1).integers(0, 40, 600)
    clips = crowd(40, who, 0.3)
    assert name_people(clips, 0.6) == first_seen(who)
    monkeypatch.setattr(people, "BLOCK", 7)
    assert name_people(clips, 0.6) == first_seen(who)


def test_it_is_average_linkage_over_everything() -> None:
    """Heaps and blocks are for speed: the answer is that of one linkage over all pairs."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(300, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for same_person in (0.5, 0.8, 0.95):
        found = people.cluster(vectors.astype(np.float32), np.zeros((0, 2), np.int64), same_person)
        tree = linkage(vectors, "average", metric="cosine")
        expected = fcluster(tree, 1 - same_person, "distance")
        assert len(set(zip(found.tolist(), expected.tolist(), strict=True))) == found.max() + 1
        assert len(set(expected.tolist())) == found.max() + 1


def test_a_component_too_large_to_link_at_once_is_linked_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One person has half of all clips, and a threshold of 0 makes a single component of everything."""
    who = np.random.default_rng(3).integers(0, 20, 600)
    who[::2] = 0
    clips = crowd(20, who, 0.2)
    monkeypatch.setattr(people, "MOST_LINKED", 64)
    assert name_people(clips, 0.6) == first_seen(who)
    vectors = np.stack([c.face for c in clips if c.face is not None])
    assert len(people._components(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0.0)) == 1
    assert len(set(name_people(clips, 0.0).values())) < 20
    apart = [c._replace(video_id="v", end_s=99.0) for c in clips if who[int(c.clip_id[1:])] == 0]
    assert len(set(name_people(apart, 0.6).values())) == len(apart), "all in view together"


def described(clips: list[FaceClip], names: dict[str, str]) -> list[PersonRow]:
    faces = Faces.of(clips)
    return describe_people(faces, [names[key] for key in faces.clip_ids])


def test_rows_say_who_is_like_whom() -> None:
    clips = [
        at(1, 0, end_s=2.5),
        at(2, 10),
        at(3, 30, video="v0001", start_s=9.0, end_s=10.0),
        at(4, 120),
        at(5, 185),
    ]
    names = name_people(clips, 0.8)
    rows = {row.person_id: row for row in described(clips, names)}
    assert list(rows) == sorted(rows) and len(rows) == 3

    def cos(angle_deg: float) -> float:
        return float(np.cos(np.radians(angle_deg)))

    first = clips[:3]
    mean_deg = np.degrees(np.angle(sum(np.exp(1j * np.radians(a)) for a in (0, 10, 30))))
    assert rows[person(1)] == PersonRow(
        person_id=person(1), num_clips=3, num_videos=2, duration_s=7.5, face_clip_id=first[1].clip_id,
        odd_clip_id=first[2].clip_id, odd_similarity=round((cos(30) + cos(20)) / 2, 4),
        nearest_person_id=person(4), nearest_similarity=round(cos(120 - mean_deg), 4),
    )  # fmt: skip
    alone = rows[person(5)]
    assert (alone.num_clips, alone.odd_clip_id, alone.odd_similarity) == (1, None, None)
    assert (alone.nearest_person_id, alone.nearest_similarity) == (person(4), round(cos(65), 4))
    assert described([clip(1)], {}) == []


def test_those_seen_together_are_nobodys_nearest() -> None:
    clips = [at(1, 0, video="v"), at(2, 1, video="v"), at(3, 90)]
    nearest = {row.person_id: row.nearest_person_id for row in described(clips, name_people(clips, 0.5))}
    assert nearest == {person(1): person(3), person(2): person(3), person(3): person(2)}
    (first, second) = described(clips[:2], name_people(clips[:2], 0.5))
    assert first.nearest_person_id is None and second.nearest_similarity is None


def test_embeddings_of_two_models_are_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"^clip c0002: expected a face embedding of 3 numbers as in clip c0001, found 2$"
    ):
        name_people([clip(2, 1, 0), clip(1, 1, 0, 0)], 0.5)


# --- very many faces ------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "least_recall", "least_precision"), [(0.8, 1.0, 1.0), (1.0, 0.98, 0.98)])
def test_faces_that_are_compared_in_cells_give_the_people_of_an_exact_search(
    monkeypatch: pytest.MonkeyPatch, noise: float, least_recall: float, least_precision: float
) -> None:
    """Pairs of clips of one person: those of cells against those of all pairs.

    Faces of one person resemble each other by 0.61, and by 0.50, on average.
    """
    random = np.random.default_rng(0)
    centres = np.repeat(random.normal(size=(60, 128)), 25, axis=0)
    vectors = people.normalised(centres + noise * random.normal(size=centres.shape)).astype(np.float32)
    vectors = vectors[random.permutation(len(vectors))]
    together: list[np.ndarray] = []
    for most in (len(vectors), 300):
        monkeypatch.setattr(people, "MOST_COMPARED", most)
        labels = people.cluster(vectors, np.zeros((0, 2), np.int64), 0.4)
        together.append(labels[:, None] == labels)
    exact, in_cells = together
    both = np.count_nonzero(exact & in_cells)
    assert both >= least_recall * np.count_nonzero(exact)
    assert both >= least_precision * np.count_nonzero(in_cells)


def test_faces_in_view_together_stay_two_where_they_are_compared_in_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(people, "MOST_COMPARED", 4)
    vectors = np.tile(np.array([[1.0, 0.0, 0.0, 0.0]], np.float32), (8, 1))
    labels = people.cluster(vectors, np.array([[0, 7]]), 0.4)
    assert labels[0] != labels[7]
